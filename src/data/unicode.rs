//! One letter can be written as one character or as a letter with marks behind it ("ã" or "a" with a tilde). Texts are compared in
//! the composed form (Unicode's NFC); what a model reads is what the user wrote.

use std::collections::BTreeMap;
use std::ops::Range;

use unicode_normalization::char::canonical_combining_class;
use unicode_normalization::{UnicodeNormalization, is_nfc};

/// A text in NFC.
pub fn composed(text: &str) -> String {
    text.nfc().collect()
}

/// Where `part` occurs in `text`, both in NFC: bytes of `text` as it is written, from left to right, none in another.
pub fn find_all(text: &str, part: &str) -> Vec<Range<usize>> {
    if is_nfc(text) && is_nfc(part) {
        return text.match_indices(part).map(|(start, found)| start..start + found.len()).collect();
    }
    let mut whole = String::new();
    // For each byte of `whole` at which an occurrence may begin or end, the byte of `text`.
    let mut bounds = BTreeMap::new();
    for letter in letters(text) {
        let written = &text[letter.clone()];
        let letter_composed = composed(written);
        if letter_composed == written {
            bounds.extend(written.char_indices().map(|(index, _)| (whole.len() + index, letter.start + index)));
        } else {
            bounds.insert(whole.len(), letter.start);
        }
        whole += &letter_composed;
    }
    bounds.insert(whole.len(), text.len());
    let part = composed(part);
    let found = whole.match_indices(&part).map(|(start, found)| start..start + found.len());
    found.filter_map(|found| Some(*bounds.get(&found.start)?..*bounds.get(&found.end)?)).collect()
}

/// Whether `part` occurs in `text`, both in NFC.
pub fn contains(text: &str, part: &str) -> bool {
    // Letters of ASCII have one form.
    let one_form = text.is_ascii() && part.is_ascii();
    text.contains(part) || (!one_form && !find_all(text, part).is_empty())
}

/// The letters of a text, each with the marks behind it and whatever else composes with it: in NFC, none depends on the others.
fn letters(text: &str) -> Vec<Range<usize>> {
    let mut letters: Vec<Range<usize>> = vec![];
    for (start, character) in text.char_indices() {
        let end = start + character.len_utf8();
        match letters.last_mut() {
            Some(letter) if belongs(&text[letter.clone()], &text[start..end]) => letter.end = end,
            _ => letters.push(start..end),
        }
    }
    letters
}

/// Whether a character belongs to the letter before it.
fn belongs(letter: &str, next: &str) -> bool {
    let is_mark = next.nfd().next().is_some_and(|first| canonical_combining_class(first) != 0);
    is_mark || composed(&format!("{letter}{next}")) != composed(letter) + &composed(next)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The text of each place.
    fn found<'t>(text: &'t str, part: &str) -> Vec<&'t str> {
        find_all(text, part).into_iter().map(|place| &text[place]).collect()
    }

    #[test]
    fn letters_are_found_however_they_are_written() {
        let (one, two) = ("S\u{e3}o Paulo", "Sa\u{303}o Paulo");
        for part in [one, two] {
            assert_eq!(found(&format!("The city of {one} lies in"), part), [one]);
            assert_eq!(found(&format!("The city of {two} lies in"), part), [two]);
            assert_eq!(find_all(&format!("{two}, {one}"), part), [0..11, 13..23]);
            assert!(found("The city of Sao Paulo lies in", part).is_empty());
        }
        // A letter without its mark is another letter.
        assert!(found(two, "Sa").is_empty() && found(two, "\u{303}o").is_empty());
        assert_eq!(found(two, "o P"), ["o P"]);
    }

    #[test]
    fn marks_may_stand_in_any_order_and_syllables_in_pieces() {
        // A dot below and a circumflex on one letter.
        let orders = ["\u{1ed9}", "o\u{323}\u{302}", "o\u{302}\u{323}", "\u{f4}\u{323}", "\u{1ecd}\u{302}"];
        for (text, part) in orders.iter().flat_map(|text| orders.map(|part| (text, part))) {
            assert_eq!(found(&format!("a{text}b"), part), [*text], "{text} {part}");
        }
        let (whole, pieces) = ("\u{ac01}", "\u{1100}\u{1161}\u{11a8}");
        assert_eq!(found(&format!("x{pieces}y"), whole), [pieces]);
        assert_eq!(found(&format!("x{whole}y"), pieces), [whole]);
        assert!(found(pieces, "\u{ac00}").is_empty());
    }

    proptest! {
        /// In whatever form, a part is found where it was put, and letters put together again are the text in NFC.
        #[test]
        fn what_was_put_there_is_found(
            before in "[a-c \u{e3}\u{1ed9}\u{ac01}]{0,4}",
            part in "[d-f\u{f4}\u{1e69}\u{d6}]{1,4}",
            after in "[a-c \u{e3}\u{ac01}]{0,4}",
        ) {
            let apart = |text: &str| text.nfd().collect::<String>();
            for (before, part, after) in [
                (before.clone(), part.clone(), apart(&after)),
                (before.clone(), apart(&part), after.clone()),
                (apart(&before), apart(&part), apart(&after)),
            ] {
                let text = format!("{before}{part}{after}");
                for wanted in [composed(&part), apart(&part)] {
                    prop_assert!(find_all(&text, &wanted).contains(&(before.len()..before.len() + part.len())));
                }
                let together: String = letters(&text).into_iter().map(|letter| composed(&text[letter])).collect();
                prop_assert_eq!(together, composed(&text));
            }
        }
    }
}
