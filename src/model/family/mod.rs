//! Families of models: a Hugging Face config to our spec, tensor names to our tensors. Nothing else knows a family.

mod bert;
mod distilbert;
mod gpt2;
mod llama;

use std::fmt::Debug;
use std::ops::Range;

use serde_json::Value;

use super::decoder::DecoderTensor;
use super::encoder::{EncoderSpec, EncoderTensor};
use super::spec::DecoderSpec;
use super::tap::Role;
use crate::error::Result;

/// Where a tensor of ours stands in a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredAt {
    /// Its name there.
    pub name: String,
    /// Whether a matrix is stored `[d_out, d_in]`, as PyTorch's `Linear` does.
    pub transposed: bool,
    /// The columns that are ours, where the matrix `[d_in, d_out]` or bias `[d_out]` holds several roles side by side.
    pub columns: Option<Range<usize>>,
}

impl StoredAt {
    fn plain(name: impl Into<String>) -> Self {
        StoredAt { name: name.into(), transposed: false, columns: None }
    }

    fn transposed(name: impl Into<String>) -> Self {
        StoredAt { name: name.into(), transposed: true, columns: None }
    }
}

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
    fn module(&self, layer: usize, role: Role) -> String;
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

static FAMILIES: [&dyn Family; 2] = [&gpt2::Gpt2, &llama::Llama];
static ENCODERS: [&dyn EncoderFamily; 2] = [&bert::Bert, &distilbert::DistilBert];

/// The family of a decoder's config, by its `model_type`.
///
/// # Errors
/// Names the type found and the types known.
pub fn for_decoder(config: &Value) -> Result<&'static dyn Family, String> {
    let known = FAMILIES.map(|family| family.name());
    Ok(FAMILIES[index_of(config, &known, "known")?])
}

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
    let index = known.iter().position(|known| *known == name);
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
    let sizes = [
        ("layers", spec.layers, 10_000),
        ("width", spec.width, 1 << 20),
        ("heads", spec.heads, 1 << 16),
        ("key-value heads", spec.key_value_heads, 1 << 16),
        ("head width", spec.head_width, 1 << 16),
        ("MLP width", spec.mlp_width, 1 << 24),
        ("vocabulary", spec.vocabulary, 1 << 26),
        ("context", spec.context, 1 << 30),
    ];
    check_sizes(&sizes)?;
    if !spec.heads.is_multiple_of(spec.key_value_heads) {
        return Err(format!("{} heads cannot share {} key-value heads evenly", spec.heads, spec.key_value_heads));
    }
    if !(spec.norm_epsilon > 0.0 && spec.norm_epsilon < 1.0) {
        return Err(format!("the norm's epsilon is {}; it must lie between 0 and 1", spec.norm_epsilon));
    }
    Ok(spec)
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
