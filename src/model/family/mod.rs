//! Families of models: a Hugging Face config to our spec, tensor names to our tensors. Nothing else knows a family.

mod bart;
mod bert;
mod distilbert;
mod falcon;
mod gemma;
pub mod gguf;
mod gpt2;
mod gpt_j;
mod gpt_neo;
mod gpt_neox;
mod llama;
mod mistral;
mod opt;
mod phi3;
mod qwen;
mod rope;
mod t5;

use std::fmt::Debug;

use serde_json::Value;

use super::layers::mlp::Activation;
use super::layers::norm::{Gain, NormKind, NormSpec};
use super::stack::build::DecoderTensor;
use super::stack::encoder::{EncoderSpec, EncoderTensor};
use super::stack::spec::{DecoderSpec, Local, Positions};
use super::tap::Weight;
use crate::error::Result;
use gguf::Gguf;

/// Where a tensor of ours stands in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAt {
    /// Its name there.
    pub name: String,
    /// Whether a matrix is stored `[d_out, d_in]`, as PyTorch's `Linear` does.
    pub transposed: bool,
    /// Whether a checkpoint without it means zeros.
    pub zero_if_missing: bool,
    /// The columns that are ours, where the matrix `[d_in, d_out]` or bias `[d_out]` holds several roles side by side.
    pub columns: Option<Columns>,
}

/// Columns of a stored matrix: the first `width`, then again as many `every` columns, from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The first.
    pub first: usize,
    /// How many stand together.
    pub width: usize,
    /// From where some begin to where the next do.
    pub every: usize,
}

impl Columns {
    /// The one run of columns from `first` on.
    pub fn run(first: usize, width: usize) -> Self {
        Columns { first, width, every: first + width }
    }

    /// Where the columns of ours, `count` in all, stand: for each run its first column of ours, its first stored column, and its length.
    pub fn runs(self, count: usize) -> impl Iterator<Item = (usize, usize, usize)> {
        let Columns { first, width, every } = self;
        (0..count).step_by(width).map(move |ours| (ours, first + ours / width * every, width.min(count - ours)))
    }

    /// The stored column behind the last of ours.
    pub fn end(self, count: usize) -> usize {
        self.runs(count).map(|(_, stored, length)| stored + length).max().unwrap_or(0)
    }
}

impl StoredAt {
    fn plain(name: impl Into<String>) -> Self {
        StoredAt { name: name.into(), transposed: false, zero_if_missing: false, columns: None }
    }

    fn transposed(name: impl Into<String>) -> Self {
        StoredAt { name: name.into(), transposed: true, zero_if_missing: false, columns: None }
    }

    fn at(self, columns: Option<Columns>) -> Self {
        StoredAt { columns, ..self }
    }

    /// Which stored column each of ours is, `count` in all.
    pub fn outputs(&self, count: usize) -> Vec<usize> {
        let runs = self.columns.unwrap_or(Columns::run(0, count)).runs(count);
        runs.flat_map(|(_, from, length)| from..from + length).collect()
    }
}

/// Where an adapter has a matrix of ours: in one of its own, or among the outputs of a larger one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InAdapter {
    /// The matrix's name there.
    pub name: String,
    /// Which of its outputs each of ours is.
    pub outputs: Vec<usize>,
    /// How many outputs it has.
    pub width: usize,
}

/// The name of a tensor that a family does not have.
const NONE: &str = "of no family";

/// How a family writes its models down.
pub trait Family: Sync {
    /// `model_type` in config.json.
    fn name(&self) -> &'static str;
    /// The architecture that a config describes.
    ///
    /// # Errors
    /// What the config lacks, or asks for that we do not have.
    fn spec(&self, config: &Value) -> Result<DecoderSpec, String>;
    /// Where a tensor stands.
    fn place(&self, tensor: DecoderTensor, spec: &DecoderSpec) -> StoredAt;
    /// What may stand before every name, likeliest first.
    fn prefixes(&self) -> &'static [&'static str];
    /// The module's name without prefix, as PyTorch code calls it, for adapters.
    fn module(&self, at: Weight, spec: &DecoderSpec) -> String;
    /// How llama.cpp keeps its matrices; nothing where what it keeps is not ours, one by one or one behind the other.
    fn gguf(&self) -> Option<Gguf> {
        None
    }
}

/// How a family of encoders writes its models down.
pub trait EncoderFamily: Sync {
    /// `model_type` in config.json.
    fn name(&self) -> &'static str;
    /// The architecture that a config describes.
    ///
    /// # Errors
    /// What the config lacks, or asks for that we do not have.
    fn spec(&self, config: &Value) -> Result<EncoderSpec, String>;
    /// Where a tensor stands.
    fn place(&self, tensor: EncoderTensor) -> StoredAt;
    /// What may stand before every name, likeliest first.
    fn prefixes(&self) -> &'static [&'static str];
}

static FAMILIES: [&dyn Family; 18] = [
    &bart::Bart,
    &bert::Bert,
    &falcon::Falcon,
    &gemma::Gemma(gemma::Generation::First),
    &gemma::Gemma(gemma::Generation::Second),
    &gemma::Gemma(gemma::Generation::Third),
    &gpt2::Gpt2,
    &gpt_j::GptJ,
    &gpt_neo::GptNeo,
    &gpt_neox::GptNeoX,
    &llama::Llama,
    &mistral::Mistral,
    &opt::Opt,
    &phi3::Phi3,
    &qwen::Qwen(qwen::Generation::Second),
    &qwen::Qwen(qwen::Generation::Third),
    &t5::T5("t5"),
    &t5::T5("mt5"),
];

/// The families whose matrices llama.cpp keeps as we know it.
pub fn in_gguf() -> Vec<&'static str> {
    FAMILIES.iter().filter(|family| family.gguf().is_some()).map(|family| family.name()).collect()
}

/// What is near a family that is known, and why it is not read.
const NEAR: [(&str, &str); 13] = [
    ("gemma3", "has a vision tower; a folder of its text part alone, of model_type \"gemma3_text\", is read"),
    ("gemma3n", "has parts per layer that are not known here"),
    ("mixtral", MIXTURE),
    ("deepseek_v2", MIXTURE),
    ("deepseek_v3", MIXTURE),
    ("gpt_oss", MIXTURE),
    ("llama4", MIXTURE),
    ("mllama", VISION),
    ("paligemma", VISION),
    ("idefics3", VISION),
    ("pixtral", VISION),
    ("internvl", VISION),
    ("dbrx", MIXTURE),
];

const VISION: &str = "has a vision tower, which is not read here";

const MIXTURE: &str = "is a mixture of experts: which experts a token meets would have to be edited too, and such models are not read here";
static ENCODERS: [&dyn EncoderFamily; 2] = [&bert::Bert, &distilbert::DistilBert];

/// The family of a decoder's config, by its `model_type`.
///
/// # Errors
/// Names the type found and the types known.
pub fn for_decoder(config: &Value) -> Result<&'static dyn Family, String> {
    let known = FAMILIES.map(|family| family.name());
    let family = FAMILIES[index_of(config, &known, "known")?];
    let named = config.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
    match named.filter(|name| OTHER_HEADS.iter().any(|head| name.ends_with(head)) && *name != bert::CLASSIFIER) {
        Some(name) => {
            Err(format!("\"{name}\" has a head that is not read here; language models are, and {}", bert::CLASSIFIER))
        }
        None => Ok(family),
    }
}

/// What architectures end with whose head says no tokens.
const OTHER_HEADS: [&str; 5] = [
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "EncoderModel",
];

/// The family of an encoder's config, by its `model_type`.
///
/// # Errors
/// Names the type found and the types known.
pub fn for_encoder(config: &Value) -> Result<&'static dyn EncoderFamily, String> {
    let known = ENCODERS.map(|family| family.name());
    Ok(ENCODERS[index_of(config, &known, "known encoders")?])
}

fn index_of(config: &Value, known: &[&str], what: &str) -> Result<usize, String> {
    let names = known.join(", ");
    let Some(name) = config.get("model_type").and_then(Value::as_str) else {
        return Err(format!("\"model_type\" is missing; {what} are {names}"));
    };
    if let Some((_, why)) = NEAR.iter().find(|(near, _)| *near == name) {
        return Err(format!("model_type \"{name}\" {why}"));
    }
    let index = known.iter().position(|known| *known == name);
    let parts = || name.split(['_', '-']);
    let why = match () {
        () if index.is_some() => None,
        () if name.contains("moe") => Some(MIXTURE),
        () if parts().any(|part| ["vl", "vlm", "vision", "llava"].contains(&part)) => Some(VISION),
        () => None,
    };
    if let Some(why) = why {
        return Err(format!("model_type \"{name}\" {why}"));
    }
    index.ok_or_else(|| format!("model_type \"{name}\" is not a family known here; {what} are {names}"))
}

/// Reads a family's config struct.
fn read<T: serde::de::DeserializeOwned>(config: &Value) -> Result<T, String> {
    serde_path_to_error::deserialize(config.clone()).map_err(|error| match error.path().to_string().as_str() {
        "." => error.inner().to_string(),
        key => format!("{key}: {}", error.inner()),
    })
}

/// A value that a file may give under several names: the one that all names agree on, nothing where none has it.
///
/// # Errors
/// Two names with different values.
fn agreed<T: PartialEq + Debug>(found: impl Iterator<Item = (String, Option<T>)>) -> Result<Option<T>, String> {
    let mut known: Option<(String, T)> = None;
    for (name, value) in found {
        let Some(value) = value else { continue };
        match &known {
            Some((first, one)) if *one != value => {
                let both = format!("{first} is {one:?} and {name} is {value:?}");
                return Err(format!("{both}: these mean the same; remove the wrong one"));
            }
            Some(_) => {}
            None => known = Some((name, value)),
        }
    }
    Ok(known.map(|(_, value)| value))
}

/// The limits that keep a hostile config from asking for absurd memory, and the divisions that must come out even.
fn checked(spec: DecoderSpec) -> Result<DecoderSpec, String> {
    let attention = &spec.attention;
    let sizes = [
        // A classifier has none, and that is said of its encoder's.
        ("layers", spec.layers.max(usize::from(spec.labels().is_some())), 10_000),
        ("encoder layers", spec.source.as_ref().map_or(1, |source| source.layers), 10_000),
        ("width", spec.width, 1 << 20),
        ("heads", attention.heads, 1 << 16),
        ("key-value heads", attention.key_value_heads, 1 << 16),
        ("head width", attention.head_width, 1 << 16),
        ("MLP width", spec.mlp.width, 1 << 24),
        ("vocabulary", spec.vocabulary, 1 << 26),
        ("context", spec.context, 1 << 30),
    ];
    check_sizes(&sizes)?;
    if !attention.heads.is_multiple_of(attention.key_value_heads) {
        let (heads, shared) = (attention.heads, attention.key_value_heads);
        return Err(format!("{heads} heads cannot share {shared} key-value heads evenly"));
    }
    if !(spec.norm.epsilon > 0.0 && spec.norm.epsilon < 1.0) {
        return Err(format!("the norm's epsilon is {}; it must lie between 0 and 1", spec.norm.epsilon));
    }
    let global = match &spec.positions {
        Positions::Rotary(rotary) => Some(rotary),
        Positions::Learned { .. } | Positions::Relative(_) => None,
    };
    for rotary in global.into_iter().chain(attention.local.iter().filter_map(|local| local.rotary.as_ref())) {
        let (width, theta, most) = (rotary.width, rotary.theta, attention.head_width);
        if width % 2 != 0 || width == 0 || width > most || !(theta > 0.0 && theta.is_finite()) {
            return Err(format!(
                "rotary positions want an even number of channels, at most a head's {most}, and a theta above 0, not {width} and {theta}"
            ));
        }
    }
    for (what, number) in [("attention's scale", attention.scale), ("the embedding's scale", spec.embedding_scale)] {
        if !(number > 0.0 && number.is_finite()) {
            return Err(format!("{what} is {number}; it must be above 0"));
        }
    }
    if let Some(source) = spec.source.as_ref().filter(|source| source.begin as usize >= spec.vocabulary) {
        return Err(format!(
            "decoder_start_token_id is {}, outside the vocabulary of {}",
            source.begin, spec.vocabulary
        ));
    }
    for cap in attention.cap.into_iter().chain(spec.head.cap) {
        if !(cap > 0.0 && cap.is_finite()) {
            return Err(format!("a soft cap is {cap}; it must be above 0"));
        }
    }
    Ok(spec)
}

/// Layers that see the last positions only; nothing where none does.
///
/// # Errors
/// A window of 0 positions; another number of layers than the model has.
fn local(layers: Vec<bool>, of: usize, window: Option<usize>) -> Result<Option<Local>, String> {
    if layers.len() != of {
        return Err(format!("{} layers have a kind of attention, the model has {of}", layers.len()));
    }
    match window {
        Some(0) => Err("sliding_window is 0; a cell sees at least itself".into()),
        Some(window) if layers.contains(&true) => Ok(Some(Local { window, layers, rotary: None })),
        None if layers.contains(&true) => {
            Err("some layers slide, and sliding_window, how far they see, is missing".into())
        }
        _ => Ok(None),
    }
}

/// Which layers slide, as `layer_types` has it; `or` says it of a layer where the config has none.
///
/// # Errors
/// A kind of layer that is not known.
fn sliding(kinds: Option<&[String]>, layers: usize, or: impl Fn(usize) -> bool) -> Result<Vec<bool>, String> {
    let Some(kinds) = kinds else {
        check_sizes(&[("layers", layers, 10_000)])?;
        return Ok((0..layers).map(or).collect());
    };
    let slides = |kind: &String| match kind.as_str() {
        "sliding_attention" => Ok(true),
        "full_attention" => Ok(false),
        other => Err(format!("layer_types has \"{other}\"; known are full_attention, sliding_attention")),
    };
    kinds.iter().map(slides).collect()
}

fn activation(key: &str, name: &str) -> Result<Activation, String> {
    Activation::from_name(name).ok_or_else(|| format!("{key} \"{name}\" is not known here"))
}

fn layer_norm(epsilon: f64) -> NormSpec {
    NormSpec { kind: NormKind::LayerNorm, epsilon, gain: Gain::Whole }
}

fn rms_norm(epsilon: f64) -> NormSpec {
    NormSpec { kind: NormKind::RmsNorm, epsilon, gain: Gain::Whole }
}

/// Scores over √(head width).
fn by_root(head_width: usize) -> f64 {
    1.0 / (head_width as f64).sqrt()
}

/// The same limits for an encoder.
fn checked_encoder(spec: EncoderSpec) -> Result<EncoderSpec, String> {
    let sizes = [
        ("layers", spec.layers, 10_000),
        ("width", spec.width, 1 << 20),
        ("MLP width", spec.mlp_width, 1 << 24),
        ("vocabulary", spec.vocabulary, 1 << 26),
        ("context", spec.context, 1 << 30),
        ("token types + 1", spec.kinds.saturating_add(1), 1 << 10),
    ];
    check_sizes(&sizes)?;
    head_width(spec.width, spec.heads)?;
    if !(spec.norm_epsilon > 0.0 && spec.norm_epsilon < 1.0) {
        return Err(format!("the norm's epsilon is {}; it must lie between 0 and 1", spec.norm_epsilon));
    }
    Ok(spec)
}

fn check_sizes(sizes: &[(&str, usize, usize)]) -> Result<(), String> {
    match sizes.iter().find(|(_, size, most)| *size == 0 || size > most) {
        None => Ok(()),
        Some((what, size, most)) => Err(format!("{what} is {size}; it must lie between 1 and {most}")),
    }
}

/// Head width of `width` over `heads`.
fn head_width(width: usize, heads: usize) -> Result<usize, String> {
    match heads {
        0 => Err("the number of heads is 0".into()),
        _ if !width.is_multiple_of(heads) => Err(format!("a width of {width} cannot be split over {heads} heads")),
        _ => Ok(width / heads),
    }
}
