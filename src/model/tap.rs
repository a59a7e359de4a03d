//! Named places in a forward pass, and what may watch and replace the values there.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A stack of blocks. Decoder-only models have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stack {
    /// Causal: a cell sees the cells at its own position and before.
    Decoder,
    /// Bidirectional: every cell sees every cell.
    Encoder,
}

/// A place whose activation a tap may see and replace. All are `[batch, tokens, width]`, `MlpHidden` is
/// `[batch, tokens, mlp_width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Place {
    /// The input of the first block: token embedding with its position, where that is learned. Layer 0.
    Embedding,
    /// Attention's share of the residual stream: after the output projection.
    AttentionOut,
    /// The *key* of the MLP memory: the input of the down-projection.
    MlpHidden,
    /// The *value* of the MLP memory: the down-projection's output with its bias, before any norm.
    MlpOut,
    /// The residual stream after the block.
    BlockOut,
}

const PLACES: [(Place, &str); 4] = [
    (Place::BlockOut, "block"),
    (Place::MlpOut, "mlp"),
    (Place::AttentionOut, "attention"),
    (Place::MlpHidden, "mlp_hidden"),
];

/// An activation in the model, written "11.block", "encoder.3.mlp" or "embedding".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Site {
    /// The stack.
    pub stack: Stack,
    /// The layer, from 0.
    pub layer: usize,
    /// The place in the layer.
    pub place: Place,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.stack == Stack::Encoder {
            f.write_str("encoder.")?;
        }
        match PLACES.iter().find(|(place, _)| *place == self.place) {
            Some((_, name)) => write!(f, "{}.{name}", self.layer),
            None => f.write_str("embedding"),
        }
    }
}

impl FromStr for Site {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            let names: Vec<_> = PLACES.iter().map(|(_, name)| *name).collect();
            Error::Config(format!(
                "no place in a pass is called \"{text}\"; \"embedding\" is one, and in each layer {}, such as \"11.block\"",
                names.join(", ")
            ))
        };
        let (stack, own) = match text.split_once('.') {
            Some(("encoder", own)) => (Stack::Encoder, own),
            Some(("decoder", own)) => (Stack::Decoder, own),
            _ => (Stack::Decoder, text),
        };
        if own == "embedding" {
            return Ok(Site { stack, layer: 0, place: Place::Embedding });
        }
        let (layer, name) = own.split_once('.').ok_or_else(wrong)?;
        let layer = layer.parse().map_err(|_| wrong())?;
        let place = PLACES.iter().find(|(_, own)| *own == name).map(|(place, _)| *place).ok_or_else(wrong)?;
        Ok(Site { stack, layer, place })
    }
}

impl TryFrom<String> for Site {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Site> for String {
    fn from(site: Site) -> String {
        site.to_string()
    }
}

/// What a weight matrix does in its layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Attention's query projection.
    Query,
    /// Attention's key projection.
    Key,
    /// Attention's value projection.
    Value,
    /// Attention's output projection.
    Out,
    /// Cross-attention's query projection.
    CrossQuery,
    /// Cross-attention's key projection.
    CrossKey,
    /// Cross-attention's value projection.
    CrossValue,
    /// Cross-attention's output projection.
    CrossOut,
    /// The gate of a gated MLP.
    MlpGate,
    /// The MLP's first projection.
    MlpUp,
    /// The MLP's second projection.
    MlpDown,
}

const ROLES: [(Role, &str); 11] = [
    (Role::Query, "attention.query"),
    (Role::Key, "attention.key"),
    (Role::Value, "attention.value"),
    (Role::Out, "attention.out"),
    (Role::CrossQuery, "cross.query"),
    (Role::CrossKey, "cross.key"),
    (Role::CrossValue, "cross.value"),
    (Role::CrossOut, "cross.out"),
    (Role::MlpGate, "mlp.gate"),
    (Role::MlpUp, "mlp.up"),
    (Role::MlpDown, "mlp.down"),
];

impl Role {
    /// Each of them.
    pub fn all() -> impl Iterator<Item = Role> {
        ROLES.iter().map(|(role, _)| *role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ROLES.iter().find(|(role, _)| role == self).map_or("", |(_, name)| name);
        f.write_str(name)
    }
}

impl FromStr for Role {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        ROLES.iter().find(|(_, name)| *name == text).map(|(role, _)| *role).ok_or_else(|| {
            let names: Vec<_> = ROLES.iter().map(|(_, name)| *name).collect();
            Error::Config(format!("no weight is called \"{text}\"; the names are {}", names.join(", ")))
        })
    }
}

impl TryFrom<String> for Role {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

/// A weight matrix `[d_in, d_out]` of the model, written "decoder.5.mlp.down".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Weight {
    /// The stack.
    pub stack: Stack,
    /// The layer, from 0.
    pub layer: usize,
    /// What the matrix does there.
    pub role: Role,
}

impl Weight {
    /// The matrix that a config names in a layer: "mlp.up" in the decoder, "encoder.mlp.up" in the encoder.
    ///
    /// # Errors
    /// No role is called so.
    pub fn named(layer: usize, name: &str) -> Result<Self, Error> {
        let (stack, role) = match name.split_once('.') {
            Some(("encoder", role)) => (Stack::Encoder, role),
            Some(("decoder", role)) => (Stack::Decoder, role),
            _ => (Stack::Decoder, name),
        };
        Ok(Weight { stack, layer, role: role.parse()? })
    }

    /// The matrices that a config names: each name in each of the layers, and those that have a layer of their own ("encoder.3.mlp.up").
    ///
    /// # Errors
    /// No role is called so.
    pub fn all_named(layers: &[usize], names: &[String]) -> Result<Vec<Self>, Error> {
        let (whole, in_layers): (Vec<&String>, Vec<&String>) =
            names.iter().partition(|name| name.parse::<Weight>().is_ok());
        let each = layers.iter().flat_map(|&layer| in_layers.iter().map(move |name| Weight::named(layer, name)));
        each.chain(whole.into_iter().map(|name| name.parse())).collect()
    }

    /// Whether it works on what an encoder reads: the encoder's own, and those that bring it into a decoder.
    pub fn reads_encoder(self) -> bool {
        self.stack == Stack::Encoder || matches!(self.role, Role::CrossKey | Role::CrossValue)
    }

    /// A matrix of the decoder.
    pub fn decoder(layer: usize, role: Role) -> Self {
        Weight { stack: Stack::Decoder, layer, role }
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stack = match self.stack {
            Stack::Decoder => "decoder",
            Stack::Encoder => "encoder",
        };
        write!(f, "{stack}.{}.{}", self.layer, self.role)
    }
}

impl FromStr for Weight {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Input(format!("\"{text}\" names no weight; names look like \"decoder.5.mlp.down\""));
        let mut parts = text.splitn(3, '.');
        let stack = match parts.next() {
            Some("decoder") => Stack::Decoder,
            Some("encoder") => Stack::Encoder,
            _ => return Err(wrong()),
        };
        let layer = parts.next().and_then(|layer| layer.parse().ok()).ok_or_else(wrong)?;
        let role = parts.next().ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
        Ok(Weight { stack, layer, role })
    }
}

impl TryFrom<String> for Weight {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<Weight> for String {
    fn from(weight: Weight) -> String {
        weight.to_string()
    }
}

/// What a row is a part of: a prompt, behind which an answer may stand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    /// The prompt's tokens: the text's first positions. What is asked and nothing else stands in it whole.
    pub prompt: Vec<u32>,
    /// How many positions of the text an encoder reads; those behind are the decoder's. 0 where there is no encoder.
    pub source: usize,
}

/// One row of a batch: `len` consecutive positions of one text, the first of them at `start`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The record the row belongs to. Several rows may share one.
    pub record: usize,
    /// The absolute position of the row's first cell.
    pub start: usize,
    /// How many cells are real. Those behind are padding.
    pub len: usize,
    /// The text.
    pub text: Arc<Text>,
    /// Cells that some do not see, in a pretraining.
    pub unseen: Option<Unseen>,
}

/// The cells `from..to` of a row, which the cell `by` and those behind it do not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unseen {
    /// The first.
    pub from: usize,
    /// The first that is seen again.
    pub to: usize,
    /// The first that does not see them.
    pub by: usize,
}

/// What the rows and cells of a batch `[batch, tokens, ...]` are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// One entry a row.
    pub rows: Vec<Row>,
    /// Cells a row, padding included.
    pub width: usize,
}

impl Span {
    /// The absolute position of a cell, or nothing where the cell is padding.
    pub fn position(&self, row: usize, cell: usize) -> Option<usize> {
        let row = &self.rows[row];
        (cell < row.len).then_some(row.start + cell)
    }

    /// The cell of a row that stands at an absolute position.
    pub fn cell(&self, row: usize, position: usize) -> Option<usize> {
        let row = &self.rows[row];
        position.checked_sub(row.start).filter(|&cell| cell < row.len)
    }
}

/// Something that watches a forward pass and may replace what passes. Both methods give back what goes on.
pub trait Tap {
    /// An activation `[batch, tokens, width]` passes `at`.
    fn activation(&mut self, at: Site, span: &Span, value: Tensor<3>) -> Tensor<3> {
        let _ = (at, span);
        value
    }

    /// A weight matrix has made `output [batch, tokens, d_out]` (its bias included) of `input [batch, tokens, d_in]`.
    fn linear(&mut self, at: Weight, span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        let _ = (at, span, input);
        output
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {}

/// Two taps, the first before the second.
#[derive(Debug)]
pub struct Both<A, B>(pub A, pub B);

impl<A: Tap, B: Tap> Tap for Both<A, B> {
    fn activation(&mut self, at: Site, span: &Span, value: Tensor<3>) -> Tensor<3> {
        let value = self.0.activation(at, span, value);
        self.1.activation(at, span, value)
    }

    fn linear(&mut self, at: Weight, span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        let output = self.0.linear(at, span, input, output);
        self.1.linear(at, span, input, output)
    }
}

impl<T: Tap + ?Sized> Tap for &mut T {
    fn activation(&mut self, at: Site, span: &Span, value: Tensor<3>) -> Tensor<3> {
        (**self).activation(at, span, value)
    }

    fn linear(&mut self, at: Weight, span: &Span, input: &Tensor<3>, output: Tensor<3>) -> Tensor<3> {
        (**self).linear(at, span, input, output)
    }
}
