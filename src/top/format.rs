//! Numbers as people read them, short and of steady width.

use crate::stats::FileSystemStats;

/// Bytes: `0 B`, `12.3 MiB`.
pub fn bytes(value: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = value;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// The same of a whole number.
pub fn whole_bytes(value: u64) -> String {
    bytes(value as f64)
}

/// Bytes a second, as MB/s (10⁶): `0.0`, `12.3`, `1234`.
pub fn megabytes(value: f64) -> String {
    let value = value / 1e6;
    if value >= 99.95 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// A count: `0`, `8.5`, `1234`, `123k`, `1.23M`.
pub fn count(value: f64) -> String {
    match value {
        v if v >= 999_500.0 => format!("{:.2}M", v / 1e6),
        v if v >= 99_950.0 => format!("{:.0}k", v / 1e3),
        v if v >= 9_995.0 => format!("{:.1}k", v / 1e3),
        v if v >= 9.95 || v == 0.0 => format!("{v:.0}"),
        v => format!("{v:.1}"),
    }
}

/// Microseconds: `3.2 µs`, `1.5 ms`, `2.0 s`; `–` for none.
pub fn micros(value: Option<f64>) -> String {
    match value {
        None => "–".into(),
        Some(v) if v >= 999_500.0 => format!("{:.1} s", v / 1e6),
        Some(v) if v >= 9_995.0 => format!("{:.0} ms", v / 1e3),
        Some(v) if v >= 999.5 => format!("{:.1} ms", v / 1e3),
        Some(v) if v >= 9.95 => format!("{v:.0} µs"),
        Some(v) => format!("{v:.1} µs"),
    }
}

/// A share: `100 %`, `99.3 %`; `–` for none.
pub fn percent(value: Option<f64>) -> String {
    match value.map(|share| share * 100.0) {
        None => "–".into(),
        Some(v) if v == 0.0 || v >= 99.95 => format!("{v:.0} %"),
        Some(v) => format!("{v:.1} %"),
    }
}

/// Seconds: `12 s`, `3 min 4 s`, `5 d 6 h`.
pub fn duration(seconds: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates, and a time is not negative"
    )]
    let seconds = seconds as u64;
    match seconds {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min {} s", s / 60, s % 60),
        s if s < 86400 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86400, s % 86400 / 3600),
    }
}

/// A file system's free space, with amounts of bytes as `amount` has them: `12GiB of 50GiB`.
pub fn room(disk: &FileSystemStats, amount: impl Fn(u64) -> String) -> String {
    match (disk.silent_seconds, disk.free_bytes.zip(disk.size_bytes)) {
        (Some(seconds), _) => format!("no answer for {seconds} s"),
        (None, Some((free, size))) => format!("{} of {}", amount(free), amount(size)),
        (None, None) => "not known".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_three_digits_or_so() {
        let texts = [0.0, 1023.0, 1024.0, 10240.0, 1_048_576.0 * 123.4].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.00 KiB", "10.0 KiB", "123 MiB"]);
        let texts = [0.0, 8.52, 9.96, 1234.0, 12_340.0, 123_400.0, 1_234_000.0].map(count);
        assert_eq!(texts, ["0", "8.5", "10", "1234", "12.3k", "123k", "1.23M"]);
        let texts = [0.5, 12.3, 1500.0, 12_000.0, 2_000_000.0].map(|us| micros(Some(us)));
        assert_eq!(texts, ["0.5 µs", "12 µs", "1.5 ms", "12 ms", "2.0 s"]);
        assert_eq!(micros(None), "–");
        let texts = [0.0, 0.25, 0.9994, 0.9996, 1.0].map(|share| percent(Some(share)));
        assert_eq!(texts, ["0 %", "25.0 %", "99.9 %", "100 %", "100 %"]);
        assert_eq!(
            [3.9, 184.0, 7260.0, 190_000.0].map(duration),
            ["3 s", "3 min 4 s", "2 h 1 min", "2 d 4 h"]
        );
        assert_eq!([0.0, 12_340_000.0, 2e9].map(megabytes), ["0.0", "12.3", "2000"]);
    }
}
