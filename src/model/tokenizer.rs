//! Text to tokens and back, and where in the tokens a target or a subject stands.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

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

    /// The cells whose logits predict the target: the one before each of its tokens.
    pub fn reads(&self) -> std::ops::Range<usize> {
        self.prompt - 1..self.ids.len() - 1
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
        Tokenizer::from_bytes(&bytes, &config, folder)
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
        let config: Value = serde_json::from_slice(config)
            .map_err(|error| Error::file(origin.join("tokenizer_config.json"), format!("not JSON: {error}")))?;
        let token = config.get("bos_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let id = token.and_then(|token| inner.token_to_id(token));
        let begin = match (config.get("add_bos_token").and_then(Value::as_bool), id) {
            (Some(true), Some(id)) => Begin::With(id),
            (Some(false), Some(id)) => Begin::Without(id),
            _ => Begin::AsStored,
        };
        Ok(Tokenizer { inner, begin, bos: id, fingerprint: Arc::default() })
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

    /// The tokens of a prompt, of which there is at least one.
    ///
    /// # Errors
    /// A prompt without a token.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>> {
        let ids = self.encode(prompt)?;
        if ids.is_empty() {
            return Err(Error::Input("the prompt is empty; give at least a word".into()));
        }
        Ok(ids)
    }

    /// Prompt, one space and target as one row. The target's tokens are those that begin at or after the prompt's end.
    ///
    /// # Errors
    /// A target without a token, or a prompt without one in a model that adds none.
    pub fn continuation(&self, prompt: &str, target: &str) -> Result<Continuation> {
        let (ids, offsets) = self.encode_with_offsets(&format!("{prompt} {target}"))?;
        let real = |&(from, to): &(usize, usize)| to > from;
        let first = offsets.iter().position(|offset| real(offset) && offset.0 >= prompt.len()).unwrap_or(ids.len());
        let straddles = offsets[..first].iter().any(|&(_, to)| to > prompt.len());
        let continuation = if straddles {
            let mut ids = self.encode(prompt)?;
            let prompt = ids.len();
            let target = self
                .inner
                .encode(format!(" {target}"), false)
                .map_err(|error| Error::Input(format!("\"{target}\" cannot be tokenised: {error}")))?;
            ids.extend(target.get_ids());
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

    /// The index of the token in which the text's first `end` bytes end: of the last one that begins before them.
    ///
    /// # Errors
    /// No token begins there.
    pub fn last_token(&self, text: &str, end: usize) -> Result<usize> {
        let (_, offsets) = self.encode_with_offsets(text)?;
        let last = offsets.iter().rposition(|&(from, to)| from < end && to > from);
        last.ok_or_else(|| Error::Input(format!("no token of \"{text}\" begins in its first {end} bytes")))
    }

    /// The text of tokens, without special ones.
    ///
    /// # Errors
    /// A token that is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner
            .decode(ids, true)
            .map_err(|error| Error::Input(format!("tokens cannot be turned into text: {error}")))
    }

    /// The text of one token as it stands in a sentence, its leading space included.
    pub fn token(&self, id: u32) -> String {
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
