//! The text of tokens as they come, and what of it is held back: letters that are not whole yet, and what may be the beginning of a stop string.

use crate::error::Result;
use crate::model::tokenizer::Tokenizer;

/// Tokens of which a letter is made at most.
const PARTS: usize = 4;

/// Turns tokens into text one by one.
pub struct TextStream {
    ids: Vec<u32>,
    /// Tokens from here on are read again with what comes: how a token is written may depend on the one before it.
    from: usize,
    /// How many of the tokens were written.
    written: usize,
}

impl TextStream {
    /// Text behind a token; at the beginning of a text where there is none.
    pub fn new(behind: Option<u32>) -> Self {
        let ids: Vec<u32> = behind.into_iter().collect();
        TextStream { from: 0, written: ids.len(), ids }
    }

    /// What a further token adds; nothing as long as its last letter is not whole.
    ///
    /// # Errors
    /// A token that is not in the vocabulary.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.unwritten(tokenizer)?;
        let broken = text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() - self.written < PARTS;
        if text.is_empty() || broken {
            return Ok(String::new());
        }
        (self.from, self.written) = (self.written, self.ids.len());
        Ok(text)
    }

    /// What is left when no token comes any more.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn rest(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = self.unwritten(tokenizer)?;
        (self.from, self.written) = (self.written, self.ids.len());
        Ok(text)
    }

    fn unwritten(&self, tokenizer: &Tokenizer) -> Result<String> {
        let known = tokenizer.decode(&self.ids[self.from..self.written])?;
        let all = tokenizer.decode(&self.ids[self.from..])?;
        match all.strip_prefix(&known) {
            Some(new) => Ok(new.to_owned()),
            None => tokenizer.decode(&self.ids[self.written..]),
        }
    }
}

/// Finds stop strings in a text that comes in pieces.
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
}

/// What may be given out of a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Released {
    /// The text, up to where a stop string begins.
    pub text: String,
    /// Whether a stop string was met.
    pub stopped: bool,
}

impl StopStrings {
    /// Of strings that are not empty.
    pub fn new(strings: Vec<String>) -> Self {
        StopStrings { strings, held: String::new() }
    }

    /// What a further piece sets free. What may be the beginning of a stop string is held back.
    pub fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        if let Some(at) = self.strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return Released { text: self.rest(), stopped: true };
        }
        let begins = |from: &usize| self.strings.iter().any(|stop| stop.starts_with(&self.held[*from..]));
        let mut places = self.held.char_indices().map(|(at, _)| at);
        let keep = places.find(begins).unwrap_or(self.held.len());
        let behind = self.held.split_off(keep);
        Released { text: std::mem::replace(&mut self.held, behind), stopped: false }
    }

    /// What is held back, when nothing comes any more.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::load::pocket;

    #[test]
    fn stop_strings_are_found_across_pieces_and_never_shown() {
        let mut stops = StopStrings::new(vec!["\n\n".into(), "END".into()]);
        let shown = |piece: &str, stops: &mut StopStrings| stops.push(piece).text;
        assert_eq!(shown("One\n", &mut stops), "One");
        assert_eq!(shown("two E", &mut stops), "\ntwo ");
        assert_eq!(shown("N", &mut stops), "");
        assert_eq!(shown("E", &mut stops), "EN");
        let last = stops.push("ND and more");
        assert_eq!(last, Released { text: String::new(), stopped: true });
        // The earliest counts, and what is held at the end is text.
        let mut stops = StopStrings::new(vec!["later".into(), "b".into()]);
        assert_eq!(stops.push("a b later"), Released { text: "a ".into(), stopped: true });
        let mut stops = StopStrings::new(vec!["abc".into()]);
        assert_eq!(stops.push("xab"), Released { text: "x".into(), stopped: false });
        assert_eq!(stops.rest(), "ab");
        assert_eq!(StopStrings::new(vec![]).push("é"), Released { text: "é".into(), stopped: false });
    }

    #[test]
    fn text_in_pieces_is_the_text_as_a_whole() {
        let tokenizer = pocket::find("pocket").unwrap().tokenizer().unwrap();
        for text in ["The city of Lyon lies in France.", "São Luís, 東京 and 🦀 are here", "\u{fffd} a"] {
            let ids = tokenizer.encode_plain(text).unwrap();
            assert!(ids.len() > 2);
            let mut stream = TextStream::new(None);
            let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(&tokenizer, id).unwrap()).collect();
            pieces.push(stream.rest(&tokenizer).unwrap());
            assert_eq!(pieces.concat(), text);
            // No piece ends within a letter.
            assert!(text.starts_with('\u{fffd}') || pieces.iter().all(|piece| !piece.contains('\u{fffd}')));
        }
        let ids = tokenizer.encode_plain("東").unwrap();
        assert!(ids.len() > 1);
        let mut stream = TextStream::new(None);
        assert_eq!(stream.push(&tokenizer, ids[0]).unwrap(), "");
        assert!(stream.rest(&tokenizer).unwrap().contains('\u{fffd}'));
    }
}
