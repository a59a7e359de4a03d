//! What stands between a prompt and its answer.
//!
//! A prompt is kept to the character; what parts the answer from it is decided by both texts.

use std::borrow::Cow;

use unicode_script::{Script, UnicodeScript};

/// Scripts that write no spaces between words.
const WITHOUT_SPACES: [Script; 8] = [
    Script::Han,
    Script::Hiragana,
    Script::Katakana,
    Script::Thai,
    Script::Lao,
    Script::Khmer,
    Script::Myanmar,
    Script::Tibetan,
];

/// Quotes and brackets behind which a word stands without a space.
const OPENING: &str = "([{¿¡「『（【《〈〔";

/// Quotes that open in one language and close in another, or in the same.
const QUOTES: &str = "\"'“‘«„‚‹”’»›";

/// Marks that stand without a space behind what they close.
const CLOSING: &str = ".,;:!?%…)]}”»›。、，．：；！？」』）】》〉〕؟،؛।॥";

/// What stands between a prompt and its answer: nothing behind white space, an opening quote or bracket, nothing before closing
/// punctuation or beside a script that writes no spaces, else one space. A prompt that ends in one plain space has its space already.
pub fn separator(prompt: &str, target: &str) -> &'static str {
    let nothing = prompt.ends_with(char::is_whitespace)
        || opens(prompt)
        || closes(target)
        || begins_without_spaces(prompt.chars().rev())
        || begins_without_spaces(target.chars());
    if nothing { "" } else { " " }
}

/// A prompt with what stands between it and its answer. The last space of it belongs to the answer, as tokenizers have it: where it ends
/// in one plain space, that is the second text.
pub fn parted<'a>(prompt: &'a str, target: &str, given: Option<&str>) -> (Cow<'a, str>, &'static str) {
    let between = given.unwrap_or_else(|| separator(prompt, target));
    match between {
        " " => (prompt.into(), " "),
        "" => match one_space_less(prompt) {
            Some(prompt) => (prompt.into(), " "),
            None => (prompt.into(), ""),
        },
        between => {
            let whole = format!("{prompt}{between}");
            match one_space_less(&whole) {
                Some(prompt) => (prompt.to_owned().into(), " "),
                None => (whole.into(), ""),
            }
        }
    }
}

/// A prompt and its answer as one text; what stands between them is `given`, or follows from both.
pub fn joined(prompt: &str, target: &str, given: Option<&str>) -> String {
    let (prompt, space) = parted(prompt, target, given);
    format!("{prompt}{space}{target}")
}

/// A text without the one plain space at its end; nothing where it ends otherwise.
fn one_space_less(text: &str) -> Option<&str> {
    text.strip_suffix(' ').filter(|text| !text.is_empty() && !text.ends_with(char::is_whitespace))
}

/// A prompt as records hold it: the one plain space at its end says no more than that the answer follows, and is left off. Where no space
/// would be put there otherwise, it is kept.
pub fn without_last_space(prompt: &str) -> &str {
    match one_space_less(prompt) {
        Some(bare) if !opens(bare) && !begins_without_spaces(bare.chars().rev()) => bare,
        _ => prompt,
    }
}

fn opens(prompt: &str) -> bool {
    let mut letters = prompt.chars().rev();
    match letters.next() {
        // A quote opens where nothing, a space or a bracket stands before it.
        Some(last) if QUOTES.contains(last) => {
            letters.next().is_none_or(|before| before.is_whitespace() || OPENING.contains(before))
        }
        Some(last) => OPENING.contains(last),
        None => false,
    }
}

fn closes(target: &str) -> bool {
    let mut letters = target.chars();
    // ".NET" and ".5" are words.
    letters.next().is_some_and(|first| CLOSING.contains(first)) && !letters.next().is_some_and(char::is_alphanumeric)
}

/// Whether the first letter of those given, marks that belong to any script passed over, is of a script without spaces.
fn begins_without_spaces(letters: impl Iterator<Item = char>) -> bool {
    letters.filter(|letter| letter.script() != Script::Inherited).take(1).any(writes_no_spaces)
}

/// Whether a letter is of a script that writes no spaces, or of its punctuation.
pub fn writes_no_spaces(letter: char) -> bool {
    let scripts = letter.script_extension();
    let of_all = scripts.is_common() || scripts.is_inherited();
    // Punctuation as wide as a Han letter.
    let wide = matches!(letter, '\u{3000}'..='\u{303f}' | '\u{ff01}'..='\u{ff0f}' | '\u{ff1a}'..='\u{ff20}' | '\u{ff3b}'..='\u{ff40}' | '\u{ff5b}'..='\u{ff65}');
    wide || (!of_all && WITHOUT_SPACES.iter().any(|&script| scripts.contains_script(script)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_parts_words_and_nothing_else() {
        let cases = [
            ("The capital is", "Rome", " "),
            ("Q: capital?\nA:", "Rome", " "),
            ("<|im_start|>assistant\n", "Rome", ""),
            ("Two spaces  ", "Rome", ""),
            ("A tab\t", "Rome", ""),
            ("No-break\u{a0}", "Rome", ""),
            ("She said “", "yes", ""),
            ("She said \"", "yes", ""),
            ("She said \"no\"", "yes", " "),
            ("Er sagte „nein“", "ja", " "),
            ("Er sagte „", "ja", ""),
            ("هل هو هنا", "؟", ""),
            ("The city (", "Rome", ""),
            ("The sentence ends", ".", ""),
            ("He is tired", ", but glad", ""),
            ("Written in", ".NET", " "),
            ("It weighs", ".5 kg", " "),
            ("甲国的首都是", "乙城", ""),
            ("甲国的首都是：", "Paris", ""),
            ("The Chinese name is", "乙城", ""),
            ("首都は", "パリ", ""),
            ("カー", "x", ""),
            ("เมืองหลวงคือ", "ปารีส", ""),
            ("ເມືອງ", "x", ""),
            ("ភ្នំពេញ", "x", ""),
            ("မြို့", "x", ""),
            ("བོད་", "x", ""),
            ("수도는", "파리", " "),
            ("Столица —", "Рим", " "),
            ("العاصمة هي", "روما", " "),
            ("", "Rome", " "),
        ];
        for (prompt, target, between) in cases {
            assert_eq!(separator(prompt, target), between, "{prompt:?} {target:?}");
        }
    }

    #[test]
    fn the_last_space_is_the_answers() {
        let parts = |prompt: &str, target: &str, given: Option<&str>| {
            let (prompt, space) = parted(prompt, target, given);
            (prompt.into_owned(), space)
        };
        assert_eq!(parts("It is", "Rome", None), ("It is".into(), " "));
        assert_eq!(parts("It is ", "Rome", None), ("It is".into(), " "));
        assert_eq!(parts("It is  ", "Rome", None), ("It is  ".into(), ""));
        assert_eq!(parts("It is\n", "Rome", None), ("It is\n".into(), ""));
        assert_eq!(parts("It is", "Rome", Some("")), ("It is".into(), ""));
        assert_eq!(parts("It is", "Rome", Some(": ")), ("It is:".into(), " "));
        assert_eq!(parts("It is", "Rome", Some("\n")), ("It is\n".into(), ""));
        assert_eq!(parts("甲国的首都是", "乙城", Some(" ")), ("甲国的首都是".into(), " "));
    }

    #[test]
    fn one_plain_space_at_the_end_is_left_off_where_it_says_nothing() {
        assert_eq!(without_last_space("It is "), "It is");
        assert_eq!(without_last_space("It is  "), "It is  ");
        assert_eq!(without_last_space("It is\n"), "It is\n");
        assert_eq!(without_last_space("甲国的首都是 "), "甲国的首都是 ");
        assert_eq!(without_last_space(" "), " ");
    }
}
