//! The word that was probably meant, for mistakes in names and keys.

/// Of `known`, the one that `word` is most likely a slip of; `None` where nothing is
/// near. Dashes and underscores count as one.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.replace('_', "-").to_lowercase();
    let word = plain(word);
    // One slip in three letters; two letters that changed places are one.
    let slips_max = (word.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(slips, _)| *slips <= slips_max)
        .min_by_key(|(slips, _)| *slips)
        .map(|(_, candidate)| candidate)
}

/// `; did you mean web1?`, or nothing where no name is near.
pub fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known).map_or_else(String::new, |meant| format!("; did you mean {meant}?"))
}

/// What serde says of a key that does not exist, with the key that was probably meant.
/// Other messages stay as they are.
pub fn with_hint(message: String) -> String {
    // serde has no other form for it: "unknown field `a`, expected one of `b`, `c`".
    let Some((key, known)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'))
    else {
        return message;
    };
    let hint = hint(key, known.split('`').skip(1).step_by(2));
    message + &hint
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_word_and_another_word_finds_none() {
        let keys = ["cache-size", "cache-block", "hugepages", "http-port"];
        for (word, meant) in [
            ("cache_size", Some("cache-size")),
            ("Cache-Size", Some("cache-size")),
            ("hugepage", Some("hugepages")),
            ("htpt-port", Some("http-port")),
            ("frobnicate", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
        assert_eq!(nearest("wbe1", ["web1", "web2"]), Some("web1"));
        assert_eq!(hint("wbe1", ["web1"]), "; did you mean web1?");
        assert_eq!(hint("db", ["web1"]), "");
    }

    #[test]
    fn serdes_sentence_gets_the_key_that_was_meant() {
        let message = "unknown field `sise`, expected one of `name`, `size`, `leaf`".to_owned();
        assert_eq!(with_hint(message.clone()), format!("{message}; did you mean size?"));
        for other in ["unknown field `x`, there are no fields", "missing field `name`", ""] {
            assert_eq!(with_hint(other.to_owned()), other);
        }
    }
}
