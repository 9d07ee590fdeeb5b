//! JSON as Python writes it.

use std::borrow::Cow;

/// The words that Python writes for numbers that JSON does not have.
const NOT_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// `text` with null in the place of every number that JSON does not have, outside of strings.
pub(crate) fn strict(text: &str) -> Cow<'_, str> {
    if !NOT_NUMBERS.iter().any(|word| text.contains(word)) {
        return Cow::Borrowed(text);
    }
    let mut strict = String::with_capacity(text.len());
    let (mut rest, mut in_string) = (text, false);
    while let Some(next) = rest.chars().next() {
        let word = NOT_NUMBERS
            .iter()
            .find(|word| !in_string && rest.starts_with(**word));
        let taken = match word {
            Some(word) => word.len(),
            None if in_string && next == '\\' => 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            None => next.len_utf8(),
        };
        strict.push_str(if word.is_some() {
            "null"
        } else {
            &rest[..taken]
        });
        in_string ^= next == '"';
        rest = &rest[taken..];
    }
    Cow::Owned(strict)
}

#[cfg(test)]
mod tests {
    use super::strict;

    #[test]
    fn only_bare_words_become_null() {
        let text = r#"{"NaN": [NaN, -Infinity, 1], "a\"NaN": "Infinity"}"#;
        let wanted = r#"{"NaN": [null, null, 1], "a\"NaN": "Infinity"}"#;
        assert_eq!(strict(text), wanted);
        assert_eq!(strict("{\"NaN\\"), "{\"NaN\\");
    }
}
