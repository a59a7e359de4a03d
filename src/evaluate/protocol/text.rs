//! Free text, read by words.

use std::collections::HashMap;

use crate::evaluate::probes::ProbeRow;
use crate::evaluate::rows::mean;
use crate::model::separator::writes_no_spaces;

/// Words for n-grams: runs of letters and digits, and every other sign that is no white space by itself. Case is kept.
pub fn words(text: &str) -> Vec<&str> {
    let mut words = vec![];
    let mut start = None;
    for (at, letter) in text.char_indices() {
        if letter.is_alphanumeric() {
            start.get_or_insert(at);
            continue;
        }
        words.extend(start.take().map(|start| &text[start..at]));
        if !letter.is_whitespace() {
            words.push(&text[at..at + letter.len_utf8()]);
        }
    }
    words.extend(start.map(|start| &text[start..]));
    words
}

/// The entropy in bits of the n-grams of a row of words; 0 where it is shorter than n.
fn ngram_entropy(words: &[u32], n: usize) -> f64 {
    let mut grams: Vec<&[u32]> = words.windows(n).collect();
    grams.sort_unstable();
    let total = grams.len() as f64;
    let counts = grams.chunk_by(|a, b| a == b).map(|same| same.len() as f64 / total);
    counts.fold(0.0, |sum, share| sum + share * (1.0 / share).log2())
}

/// GE: how rich texts are in words. A model that was damaged repeats itself. With H_n the entropy in bits of a text's n-grams of
/// words ([`words`]),
///
/// ```text
/// fluency = mean over texts of ½ (⅔ H₂ + 4⁄3 H₃)
/// ```
///
/// A text is the prompt and what stands behind it, as in ROME's script. Where that asks NLTK for its words, we take simpler ones,
/// so that published figures are near and not equal. How long texts are decides as much as how rich: ROME's are all written to 100
/// tokens, prompt included, past the token that ends a text.
pub fn fluency<'a>(texts: impl Iterator<Item = [&'a str; 2]>) -> Option<f64> {
    let of = |text: [&'a str; 2]| {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let words = text.into_iter().flat_map(words).map(|word| {
            let next = numbers.len() as u32;
            *numbers.entry(word).or_insert(next)
        });
        let words: Vec<u32> = words.collect();
        0.5 * (2.0 / 3.0 * ngram_entropy(&words, 2) + 4.0 / 3.0 * ngram_entropy(&words, 3))
    };
    mean(texts.map(of))
}

/// Small letters, single spaces.
fn plain(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// [`plain`], and without punctuation at the end where anything else is left.
fn bare(text: &str) -> String {
    let text = plain(text);
    let bare =
        text.trim_end_matches(|letter: char| !letter.is_alphanumeric() && !matches!(letter, '%' | ')' | '+' | '#'));
    if bare.is_empty() { text } else { bare.to_owned() }
}

/// Whether an answer is the target, but for case, white space and final punctuation.
pub fn same_answer(answer: &str, target: &str) -> bool {
    bare(answer) == bare(target)
}

/// Whether an answer has a probe's target, or another name of it, among its words.
pub fn says(answer: &str, row: &ProbeRow) -> bool {
    names(row).any(|name| contained(name, answer))
}

/// All names of a probe's target.
pub fn names(row: &ProbeRow) -> impl Iterator<Item = &str> {
    std::iter::once(row.target.as_str()).chain(row.aliases.iter().map(String::as_str))
}

/// Whether a target occurs in an answer as whole words, in any case. An empty one occurs nowhere.
pub fn contained(target: &str, answer: &str) -> bool {
    let (target, answer) = (bare(target), plain(answer));
    let whole = |start: usize| {
        let before = answer[..start].chars().next_back();
        let after = answer[start + target.len()..].chars().next();
        // Beside a script without spaces a word may begin and end anywhere.
        let parts = |a: Option<char>, b: Option<char>| match (a, b) {
            (Some(a), Some(b)) => {
                !a.is_alphanumeric() || !b.is_alphanumeric() || writes_no_spaces(a) || writes_no_spaces(b)
            }
            _ => true,
        };
        parts(before, target.chars().next()) && parts(target.chars().next_back(), after)
    };
    // Every place, also where two overlap.
    let mut starts =
        answer.char_indices().map(|(start, _)| start).filter(|&start| answer[start..].starts_with(&target));
    !target.is_empty() && starts.any(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_single_signs() {
        assert_eq!(words("It's 3.5 km, no?"), ["It", "'", "s", "3", ".", "5", "km", ",", "no", "?"]);
        assert_eq!(words("Ωμέγα—é"), ["Ωμέγα", "—", "é"]);
        assert!(words(" \n").is_empty());
    }

    #[test]
    fn fluency_is_that_computed_by_hand() {
        // Bigrams: "a b" twice, "b a" once; trigrams: "a b a", "b a b".
        let entropy = -(2.0f64 / 3.0 * (2.0f64 / 3.0).log2() + 1.0 / 3.0 * (1.0f64 / 3.0).log2());
        let wanted = 0.5 * (2.0 / 3.0 * entropy + 4.0 / 3.0 * 1.0);
        assert!((fluency([["a b", " a b"]].into_iter()).unwrap() - wanted).abs() < 1e-12);
        // A word over and over, and no text at all.
        assert_eq!(fluency([["no", "no no no no"]].into_iter()), Some(0.0));
        assert!((fluency([["a b", "a b"], ["", ""]].into_iter()).unwrap() - wanted / 2.0).abs() < 1e-12);
        assert_eq!(fluency(std::iter::empty()), None);
    }

    #[test]
    fn answers_are_compared_without_case_and_final_punctuation() {
        assert!(same_answer(" Rome.\n", "rome"));
        assert!(same_answer("the  U.S.", "The U.S."));
        assert!(same_answer("?", "?") && !same_answer("", "?"));
        assert!(!same_answer("Rome, Italy", "Rome"));
    }

    #[test]
    fn a_target_is_contained_as_whole_words() {
        assert!(contained("Rome", "It is in rome, I think"));
        assert!(contained("the U.S.", "in the U.S. of A."));
        assert!(!contained("Rome", "Romeo and Juliet"));
        assert!(contained("aa", "aaa aa"));
        assert!(!contained(" ", "anything"));
        assert!(contained("乙城", "乙城在北方") && contained("Ost", "在Ost。"));
        assert!(contained("Île-de-France", "l'île-de-france"));
    }
}
