//! Texts that fit their place: a shorter form where the long one has no room, and an
//! ellipsis between two words where there is none.

/// The first of `forms`, from the longest on, that has at most `width` characters; the
/// last one, if none has.
pub(super) fn longest(width: usize, forms: impl IntoIterator<Item = String>) -> String {
    let mut last = String::new();
    for form in forms {
        let fits = form.chars().count() <= width;
        last = form;
        if fits {
            break;
        }
    }
    last
}

/// `text` in at most `width` characters. What is left out is whole words, where there
/// is more than one, and is marked by an ellipsis.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let Some(room) = width.checked_sub(1) else {
        return String::new();
    };
    let head: String = text.chars().take(room).collect();
    // A word ends where the head does, or at the last space in it.
    let ends_there = text.chars().nth(room).is_some_and(char::is_whitespace);
    let whole = if ends_there { Some(head.len()) } else { head.rfind(char::is_whitespace) };
    let head = whole.and_then(|end| head.get(..end)).map_or(head.as_str(), str::trim_end);
    format!("{head}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_form_that_fits_is_taken() {
        let forms = || ["12 fills/s  3 evictions/s", "12 fills/s", "12"].map(str::to_owned);
        assert_eq!(longest(30, forms()), "12 fills/s  3 evictions/s");
        assert_eq!(longest(10, forms()), "12 fills/s");
        assert_eq!(longest(1, forms()), "12");
    }

    #[test]
    fn a_text_is_cut_between_words_and_says_so() {
        assert_eq!(cut("late.raw can't be read", 22), "late.raw can't be read");
        assert_eq!(cut("late.raw can't be read", 21), "late.raw can't be…");
        assert_eq!(cut("late.raw can't be read", 18), "late.raw can't be…");
        assert_eq!(cut("late.raw can't be read", 17), "late.raw can't…");
        assert_eq!(cut("web-frontend-0017", 8), "web-fro…");
        assert_eq!(cut("web", 0), "");
        assert_eq!(cut("täglich", 4), "täg…");
    }
}
