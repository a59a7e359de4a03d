//! Text to tokens and back, and where in the tokens a target or a subject stands.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use super::chat::{Chat, ChatTemplate};
use super::separator::{parted, without_last_space};
use super::tap::Text;
use super::tokens::BEGIN;
use crate::error::{Error, Result};
use crate::panics::caught;

/// A model's tokenizer with its rule for the beginning of a text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Put before every text, or taken away where tokenizer.json adds one against tokenizer_config.json.
    begin: Begin,
    /// What tokenizer_config.json calls the begin token.
    bos: Option<u32>,
    /// How a chat model writes turns.
    template: Option<ChatTemplate>,
    /// How the decoder of an encoder-decoder begins each text, behind [`BEGIN`]; nothing where there is no encoder.
    opening: Option<Vec<u32>>,
    /// What is put before and behind every text that an encoder reads.
    around: [Vec<u32>; 2],
    /// What a classifier answers with, instead of tokens: the number of a label is its id.
    labels: Option<Vec<String>>,
    /// Written down once it is asked for: a vocabulary takes long to hash.
    fingerprint: Arc<OnceLock<String>>,
}

#[derive(Debug, Clone, Copy)]
enum Begin {
    /// What tokenizer.json does.
    AsStored,
    With(u32),
    Without(u32),
}

/// Tokens, and the bytes of the text that each stands for.
type Offsets = (Vec<u32>, Vec<(usize, usize)>);

/// A prompt and its target as one row of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Continuation {
    /// Prompt, then target.
    pub ids: Vec<u32>,
    /// How many of `ids` are the prompt's.
    pub prompt: usize,
    /// Whether a token would have straddled the boundary, so that the two were tokenised apart.
    pub apart: bool,
}

impl Continuation {
    /// The target's tokens.
    pub fn target(&self) -> &[u32] {
        &self.ids[self.prompt..]
    }

    /// What rows of its tokens are parts of.
    pub fn text(&self) -> Arc<Text> {
        Text::new(&self.ids[..self.prompt])
    }

    /// The cells whose logits predict the target: the one before each of its tokens.
    pub fn reads(&self) -> std::ops::Range<usize> {
        self.prompt - 1..self.ids.len() - 1
    }
}

/// The byte that a letter of a byte-level vocabulary stands for: printable ones stand for themselves, the others for letters from 256 on.
fn byte_level(letter: char) -> Option<u8> {
    let printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u8::try_from(u32::from(letter)) {
        Ok(byte) => Some(byte).filter(printable),
        Err(_) => (0..=255).filter(|byte| !printable(byte)).nth(u32::from(letter).checked_sub(256)? as usize),
    }
}

impl Tokenizer {
    /// Reads tokenizer.json and, where there is one, tokenizer_config.json in a folder.
    ///
    /// # Errors
    /// A file that is missing or broken.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::file(
                folder,
                "no tokenizer.json here; a model folder holds config.json, tokenizer.json and model.safetensors",
            ));
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let config_path = folder.join("tokenizer_config.json");
        let config = match config_path.is_file() {
            true => std::fs::read(&config_path).map_err(Error::io(&config_path))?,
            false => b"{}".to_vec(),
        };
        let mut tokenizer = Tokenizer::from_bytes(&bytes, &config, folder)?;
        // Newer folders have the template as a file of its own, which counts.
        let path = folder.join("chat_template.jinja");
        if path.is_file() {
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            tokenizer.template =
                Some(ChatTemplate { text, origin: path, ..tokenizer.template_of(String::new(), &config)? });
        }
        Ok(tokenizer)
    }

    /// A template with the tokens that it may write.
    fn template_of(&self, text: String, config: &[u8]) -> Result<ChatTemplate> {
        let config: Value = serde_json::from_slice(config).map_err(|error| Error::Input(error.to_string()))?;
        let token = |key: &str| {
            let token = config.get(key);
            token.and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str())).map(str::to_owned)
        };
        let added = self.inner.get_added_tokens_decoder();
        let special = added.into_values().filter(|token| token.special).map(|token| token.content).collect();
        let origin = "tokenizer_config.json".into();
        Ok(ChatTemplate { text, origin, begin: token("bos_token"), end: token("eos_token"), special })
    }

    /// How many tokens there are, without those that were added to them.
    pub fn tokens(&self) -> usize {
        self.inner.get_vocab_size(false)
    }

    /// The model's chat template, with what the system says first.
    ///
    /// # Errors
    /// A model that has none, or one that cannot be used.
    pub fn chat(&self, system: Option<String>) -> Result<Chat> {
        let template = self.template.clone().ok_or_else(|| {
            Error::Input(
                "the model has no chat template (no chat_template.jinja; in tokenizer_config.json no chat_template that is a text, or a \
                 list with one named default): it is a base model; ask it without chat"
                    .into(),
            )
        })?;
        Chat::new(template, system)
    }

    /// From the contents of tokenizer.json and tokenizer_config.json; `origin` names them in errors.
    ///
    /// # Errors
    /// Contents that are broken.
    pub fn from_bytes(tokenizer: &[u8], config: &[u8], origin: &Path) -> Result<Self> {
        let wrong = |message: String| Error::file(origin.join("tokenizer.json"), message);
        // The crate panics on some broken files, on a few of them only when it first encodes.
        let load = || -> tokenizers::Result<tokenizers::Tokenizer> {
            let mut inner = tokenizers::Tokenizer::from_bytes(tokenizer)?;
            inner.with_padding(None);
            inner.with_truncation(None)?;
            inner.encode("a b", true)?;
            Ok(inner)
        };
        let inner = match caught(load) {
            Some(loaded) => loaded.map_err(|error| wrong(format!("not a tokenizer: {error}")))?,
            None => return Err(wrong("not a tokenizer that can be used: its parts do not fit together".into())),
        };
        let config_bytes = config;
        let config: Value = serde_json::from_slice(config)
            .map_err(|error| Error::file(origin.join("tokenizer_config.json"), format!("not JSON: {error}")))?;
        let token = config.get("bos_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let id = token.and_then(|token| inner.token_to_id(token));
        let begin = match (config.get("add_bos_token").and_then(Value::as_bool), id) {
            (Some(true), Some(id)) => Begin::With(id),
            (Some(false), Some(id)) => Begin::Without(id),
            _ => Begin::AsStored,
        };
        // One template, or several by name, of which one is the default.
        let named = |list: &Value| {
            let default = list.as_array()?.iter().find(|one| one["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        };
        let template =
            config.get("chat_template").and_then(|given| given.as_str().map(str::to_owned).or_else(|| named(given)));
        let mut tokenizer = Tokenizer {
            inner,
            begin,
            bos: id,
            template: None,
            opening: None,
            around: Default::default(),
            labels: None,
            fingerprint: Arc::default(),
        };
        if let Some(text) = template {
            let origin = origin.join("tokenizer_config.json");
            tokenizer.template = Some(ChatTemplate { origin, ..tokenizer.template_of(text, config_bytes)? });
        }
        Ok(tokenizer)
    }

    /// The ids of a text and the byte range of the text that each stands for; a token that the tokenizer adds has an empty range.
    fn encode_with_offsets(&self, text: &str) -> Result<Offsets> {
        let encoding = self
            .inner
            .encode(text, true)
            .map_err(|error| Error::Input(format!("\"{text}\" cannot be tokenised: {error}")))?;
        let added = encoding.get_special_tokens_mask();
        // A decoder reads on from the text's end: what a tokenizer adds behind it is left off.
        let end = added.iter().rposition(|&added| added == 0).map_or(0, |last| last + 1);
        let begin = added.iter().position(|&added| added == 0).unwrap_or(added.len());
        let end = end.max(begin);
        let mut ids = encoding.get_ids()[..end].to_vec();
        let mut offsets = encoding.get_offsets()[..end].to_vec();
        match self.begin {
            Begin::With(id) if ids.first() != Some(&id) => {
                ids.insert(0, id);
                offsets.insert(0, (0, 0));
            }
            Begin::Without(id) if begin > 0 && ids.first() == Some(&id) => {
                ids.remove(0);
                offsets.remove(0);
            }
            _ => {}
        }
        // A text that brings its own begin token gets no second one.
        if let ([first, second, ..], [(0, 0), (0, to), ..]) = (ids.as_slice(), offsets.as_slice())
            && first == second
            && *to > 0
        {
            ids.remove(0);
            offsets.remove(0);
        }
        Ok((ids, offsets))
    }

    /// The token that texts begin with, where the tokenizer names one.
    pub fn begin(&self) -> Option<u32> {
        self.bos
    }

    /// BLAKE3 of the tokenizer and of its rule for the beginning of a text, in hexadecimal.
    ///
    /// # Errors
    /// A tokenizer that cannot be written down.
    pub fn fingerprint(&self) -> Result<String> {
        if let Some(known) = self.fingerprint.get() {
            return Ok(known.clone());
        }
        let text = self.inner.to_string(false);
        let text = text.map_err(|error| Error::Input(format!("the tokenizer cannot be written down: {error}")))?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(text.as_bytes()).update(format!("{:?}", self.begin).as_bytes());
        Ok(self.fingerprint.get_or_init(|| hasher.finalize().to_hex().to_string()).clone())
    }

    /// The tokens of a text, with the tokenizer's own beginning.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_with_offsets(text)?.0)
    }

    /// Where the tokens of a text begin, in bytes; those that the tokenizer adds are left out.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn starts(&self, text: &str) -> Result<Vec<usize>> {
        let (_, offsets) = self.encode_with_offsets(text)?;
        Ok(offsets.into_iter().filter(|(from, to)| to > from).map(|(from, _)| from).collect())
    }

    /// The tokens of a text alone, without what the tokenizer puts around it.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>> {
        let encoded = self.inner.encode(text, false);
        Ok(encoded
            .map_err(|error| Error::Input(format!("\"{text}\" cannot be tokenised: {error}")))?
            .get_ids()
            .to_vec())
    }

    /// The tokens of a text for an encoder, with all that the tokenizer puts around it; at most `most`, the closing ones among them.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn encode_whole(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        Ok(self.encode_pair(text, None, most)?.0)
    }

    /// The tokens of one text or of two as one row, with all that the tokenizer puts around them, and the index at which the second
    /// begins (the row's length where there is none). Of texts that are longer than `most` together, the longer one is cut.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn encode_pair(&self, text: &str, second: Option<&str>, most: usize) -> Result<(Vec<u32>, usize)> {
        let wrong = |error| Error::Input(format!("\"{text}\" cannot be tokenised: {error}"));
        let encode = |input: tokenizers::EncodeInput<'_>| self.inner.encode(input, true).map_err(wrong);
        let mut encoding = match second {
            Some(second) => encode((text, second).into())?,
            None => encode(text.into())?,
        };
        if encoding.len() > most {
            let mut shorter = self.inner.clone();
            let limit = tokenizers::TruncationParams { max_length: most, ..Default::default() };
            shorter.with_truncation(Some(limit)).map_err(wrong)?;
            encoding = match second {
                Some(second) => shorter.encode((text, second), true).map_err(wrong)?,
                None => shorter.encode(text, true).map_err(wrong)?,
            };
        }
        let from = encoding.get_type_ids().iter().position(|&kind| kind == 1).unwrap_or(encoding.len());
        Ok((encoding.get_ids().to_vec(), from))
    }

    /// The same tokenizer for an encoder-decoder: the encoder reads a prompt with all that is put around a text, the decoder begins with
    /// [`BEGIN`] and what is put before one.
    ///
    /// # Errors
    /// A tokenizer that cannot read a letter.
    pub fn for_pairs(mut self) -> Result<Self> {
        let (ids, offsets) = self.encode_with_offsets("a")?;
        let real = |&(from, to): &(usize, usize)| from < to;
        let first = offsets.iter().position(real).unwrap_or(0);
        let end = offsets.iter().rposition(real).map_or(first, |last| last + 1);
        self.opening = Some(ids[..first].to_vec());
        self.around = [ids[..first].to_vec(), ids[end..].to_vec()];
        Ok(self)
    }

    /// Tokens of a running text as an encoder-decoder reads them: the encoder the first half, and the decoder the rest, which it predicts.
    /// Nothing for other models, which read a text as it stands.
    pub fn halved(&self, ids: &[u32]) -> Option<Vec<u32>> {
        let opening = self.opening.as_ref().filter(|_| self.labels.is_none())?;
        let (read, written) = ids.split_at(ids.len() / 2);
        Some([&self.around[0], read, &self.around[1], &[BEGIN], opening, written].concat())
    }

    /// The same tokenizer for a classifier: a prompt is read as by an encoder, and a target is one of the labels.
    pub fn for_labels(mut self, labels: Vec<String>) -> Self {
        self.opening = Some(vec![]);
        self.labels = Some(labels);
        self
    }

    /// Whether a text is a prompt that an encoder reads, and an answer.
    pub fn of_pairs(&self) -> bool {
        self.opening.is_some()
    }

    /// What a classifier answers with; nothing for a language model.
    pub fn labels(&self) -> Option<&[String]> {
        self.labels.as_deref()
    }

    /// The tokens of a target: in a classifier its label.
    fn answer(&self, target: &str) -> Result<Vec<u32>> {
        let target = target.strip_prefix(' ').unwrap_or(target);
        let Some(labels) = &self.labels else { return self.encode_plain(target) };
        match labels.iter().position(|label| label == target) {
            Some(label) => Ok(vec![label as u32]),
            None => Err(Error::Input(format!(
                "\"{target}\" is no label of this classifier; its labels are {}",
                labels.join(", ")
            ))),
        }
    }

    /// What an encoder reads of a prompt, and how the decoder begins.
    fn begun(&self, prompt: &str, opening: &[u32]) -> Result<Vec<u32>> {
        let mut ids = self.encode_whole(prompt, usize::MAX)?;
        if self.encode_plain(prompt)?.is_empty() {
            return Err(Error::Input("the prompt is empty; give at least a word".into()));
        }
        ids.push(BEGIN);
        ids.extend(opening);
        Ok(ids)
    }

    /// The tokens of a prompt, of which there is at least one.
    ///
    /// # Errors
    /// A prompt without a token.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        if let Some(opening) = &self.opening {
            return self.begun(prompt, opening);
        }
        let ids = self.encode(prompt)?;
        if ids.is_empty() {
            return Err(Error::Input("the prompt is empty; give at least a word".into()));
        }
        Ok(ids)
    }

    /// Prompt and target as one row, with what stands between them: `between` where it is given, else what [`separator`](super::separator)
    /// says. The target's tokens are those that begin at or after the prompt's end; one plain space before the target is the target's.
    ///
    /// # Errors
    /// A target without a token, or a prompt without one in a model that adds none.
    pub fn continuation(&self, prompt: &str, target: &str, between: Option<&str>) -> Result<Continuation> {
        if let Some(opening) = &self.opening {
            // Nothing stands between them: they are two texts.
            let mut ids = self.begun(prompt, opening)?;
            let read = ids.len();
            ids.extend(self.answer(target)?);
            if ids.len() == read {
                return Err(Error::Input(format!("the target \"{target}\" of \"{prompt}\" has no token")));
            }
            return Ok(Continuation { ids, prompt: read, apart: true });
        }
        let (lead, space) = parted(prompt, target, between);
        let (ids, offsets) = self.encode_with_offsets(&format!("{lead}{space}{target}"))?;
        let real = |&(from, to): &(usize, usize)| to > from;
        let first = offsets.iter().position(|offset| real(offset) && offset.0 >= lead.len()).unwrap_or(ids.len());
        // Some tokenizers say nothing of the white space that a token begins with.
        let brings_space = |&id: &u32| space.is_empty() && self.token(id).starts_with(char::is_whitespace);
        let straddles =
            offsets[..first].iter().any(|&(_, to)| to > lead.len()) || ids.get(first).is_some_and(brings_space);
        let continuation = if straddles {
            let mut ids = self.encode(&lead)?;
            let prompt = ids.len();
            ids.extend(match space {
                "" => self.encode_inside(target)?,
                space => self.encode_plain(&format!("{space}{target}"))?,
            });
            Continuation { ids, prompt, apart: true }
        } else {
            Continuation { ids, prompt: first, apart: false }
        };
        if continuation.target().is_empty() {
            return Err(Error::Input(format!(
                "the target \"{target}\" of \"{prompt}\" has no token; give a target that is not empty"
            )));
        }
        if continuation.prompt == 0 {
            return Err(Error::Input("the prompt is empty; give at least a word".into()));
        }
        Ok(continuation)
    }

    /// The tokens of a text within a line: some tokenizers write a space at the beginning of every text.
    fn encode_inside(&self, text: &str) -> Result<Vec<u32>> {
        let line = self.encode_plain("\n")?;
        let behind = self.encode_plain(&format!("\n{text}"))?;
        match behind.strip_prefix(line.as_slice()) {
            Some(ids) if !line.is_empty() => Ok(ids.to_vec()),
            _ => self.encode_plain(text),
        }
    }

    /// The tokens of what ends an answer.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn encode_end(&self, text: &str) -> Result<Vec<u32>> {
        if self.of_pairs() { self.encode_inside(text) } else { self.encode_plain(text) }
    }

    /// The index of the token in which the text's first `end` bytes end: of the last one that begins before them.
    ///
    /// # Errors
    /// No token begins there.
    pub fn last_token(&self, text: &str, end: usize) -> Result<usize> {
        let (_, offsets) = self.encode_with_offsets(text)?;
        let last = offsets.iter().rposition(|&(from, to)| from < end && to > from);
        last.ok_or_else(|| Error::Input(format!("no token of \"{text}\" begins in its first {end} bytes")))
    }

    /// Which tokens of a text stand, in part at least, in some of its bytes.
    ///
    /// # Errors
    /// None does.
    pub fn tokens_of(&self, text: &str, bytes: Range<usize>) -> Result<Range<usize>> {
        let (_, offsets) = self.encode_with_offsets(text)?;
        let inside = |&(from, to): &(usize, usize)| from < bytes.end && to > bytes.start && to > from;
        match (offsets.iter().position(inside), offsets.iter().rposition(inside)) {
            (Some(first), Some(last)) => Ok(first..last + 1),
            _ => Err(Error::Input(format!("no token of \"{text}\" stands in its bytes {bytes:?}"))),
        }
    }

    /// The text of tokens, without special ones; of a classifier's answer, its label.
    ///
    /// # Errors
    /// A token that is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.labels {
            Some(labels) => {
                let name = |&id: &u32| labels.get(id as usize).map_or_else(String::new, String::clone);
                Ok(ids.iter().map(name).collect::<Vec<_>>().join(" "))
            }
            None => self.decode_read(ids),
        }
    }

    /// The text of tokens that are read.
    fn decode_read(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|error| Error::Input(format!("tokens cannot be turned into text: {error}")))
    }

    /// The text of a prompt, as records hold it: with the tokens that stand for no text, but for the one that begins it.
    ///
    /// # Errors
    /// A token that is not in the vocabulary.
    pub fn prompt_text(&self, ids: &[u32]) -> Result<String> {
        if let Some(begin) = ids.iter().position(|&id| id == BEGIN).filter(|_| self.opening.is_some()) {
            return self.decode_read(&ids[..begin]);
        }
        let (any, offsets) = self.encode_with_offsets("a")?;
        let added = offsets.iter().take_while(|(from, to)| from == to).count();
        let own = ids.strip_prefix(&any[..added]).unwrap_or(ids);
        let decode = |ids: &[u32]| {
            let text = self.inner.decode(ids, false);
            text.map_err(|error| Error::Input(format!("tokens cannot be turned into text: {error}")))
        };
        // Some put a space before every text.
        let lead = if decode(&any[added..])?.starts_with(' ') { " " } else { "" };
        let text = decode(own)?;
        Ok(without_last_space(text.strip_prefix(lead).unwrap_or(&text)).to_owned())
    }

    /// A token as people read it, in quotes; of one that is a part of a letter, its bytes.
    pub fn shown(&self, id: u32) -> String {
        let text = self.token(id);
        let piece = self.inner.id_to_token(id).filter(|_| text.contains(char::REPLACEMENT_CHARACTER));
        let bytes = |piece: String| -> Option<String> {
            let bytes: Option<Vec<u8>> = piece.chars().map(byte_level).collect();
            Some(bytes?.iter().map(|byte| format!("<0x{byte:02X}>")).collect())
        };
        match piece {
            // A byte of SentencePiece's stands as such.
            Some(piece) if piece.starts_with("<0x") => piece,
            Some(piece) => bytes(piece).unwrap_or_else(|| format!("{text:?}")),
            None => format!("{text:?}"),
        }
    }

    /// The bytes that a token stands for.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let text = self.token(id);
        let piece = self.inner.id_to_token(id).filter(|_| text.contains(char::REPLACEMENT_CHARACTER));
        let bytes = piece.and_then(|piece| match piece.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
            Some(byte) => u8::from_str_radix(byte, 16).ok().map(|byte| vec![byte]),
            None => piece.chars().map(byte_level).collect(),
        });
        bytes.unwrap_or_else(|| text.into_bytes())
    }

    /// The token that ends a turn of a chat, where the model has a template and names one.
    pub fn end_of_turn(&self) -> Option<u32> {
        self.inner.token_to_id(self.template.as_ref()?.end.as_deref()?)
    }

    /// The text of one token as it stands in a sentence, its leading space included.
    pub fn token(&self, id: u32) -> String {
        if let Some(labels) = &self.labels {
            return labels.get(id as usize).map_or_else(String::new, String::clone);
        }
        // Decoding after another token keeps the leading space that some decoders drop at the start.
        let anchor = self.inner.encode("a", false).ok().and_then(|encoding| encoding.get_ids().last().copied());
        let text = |ids: &[u32]| self.inner.decode(ids, false).unwrap_or_default();
        match anchor {
            Some(anchor) => {
                let (alone, both) = (text(&[anchor]), text(&[anchor, id]));
                both.strip_prefix(&alone).map_or_else(|| text(&[id]), str::to_owned)
            }
            None => text(&[id]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::byte_level;

    #[test]
    fn letters_of_a_byte_level_vocabulary_are_its_bytes() {
        // The bytes of 甲, as such a vocabulary writes them, and a space.
        let bytes: Vec<u8> = "çĶ²Ġ".chars().map(|letter| byte_level(letter).unwrap()).collect();
        assert_eq!(bytes, [0xE7, 0x94, 0xB2, b' ']);
        assert_eq!(byte_level('甲'), None);
    }
}
