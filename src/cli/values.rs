//! Values of flags, from their text.

use crate::config::UsageError;
use crate::config::size::parse_size;

/// A size, named after its flag in the sentence of its mistake.
pub(super) fn size(setting: &str, text: Option<&str>) -> Result<Option<u64>, UsageError> {
    text.map(|text| {
        parse_size(text).map_err(|reason| UsageError::Size {
            setting: setting.into(),
            text: text.into(),
            reason,
        })
    })
    .transpose()
}

/// A whole number, likewise; `range` says which.
pub(super) fn number(
    setting: &str,
    range: &str,
    text: Option<&str>,
) -> Result<Option<u64>, UsageError> {
    text.map(|text| {
        text.parse().map_err(|_| UsageError::Number {
            setting: setting.into(),
            text: text.into(),
            range: range.into(),
        })
    })
    .transpose()
}
