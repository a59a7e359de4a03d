//! What is wrong with a value of a record, said on one line.

use std::fmt;

use super::unicode::composed;

/// What is wrong with one value, and where in its record it stands.
#[derive(Debug)]
pub(super) struct Problem {
    path: String,
    what: String,
}

impl Problem {
    pub fn new(what: impl Into<String>) -> Self {
        Self { path: String::new(), what: what.into() }
    }

    /// The same problem seen from one level up.
    pub fn within(mut self, key: &str) -> Self {
        self.path = match self.path.chars().next() {
            None => key.to_owned(),
            Some('[') => format!("{key}{}", self.path),
            Some(_) => format!("{key}.{}", self.path),
        };
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            write!(f, "{}", self.what)
        } else {
            write!(f, "{} {}", quoted(&self.path), self.what)
        }
    }
}

/// A text as errors quote it: on one line, not longer than one, and composed, for a mark that stands alone is quoted as a number.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN: usize = 100;
    let text = composed(text);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_grows_outwards() {
        let problem = Problem::new("is wrong").within("[2]").within("list").within("outer");
        assert_eq!(problem.to_string(), r#""outer.list[2]" is wrong"#);
        assert_eq!(Problem::new("is wrong").to_string(), "is wrong");
    }

    #[test]
    fn quotes_are_short_and_on_one_line() {
        assert_eq!(quoted("a\nb"), r#""a\nb""#);
        assert_eq!(quoted("Sa\u{303}o"), "\"S\u{e3}o\"");
        assert!(quoted(&"é".repeat(5000)).chars().count() < 110);
    }
}
