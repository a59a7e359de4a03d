//! What a model and its passes hold in memory, from its spec alone: nothing is read and nothing is run.

use super::spec::{DecoderSpec, Positions};
use crate::model::tap::{Role, Stack, Weight};

/// Bytes of a number in a pass.
const NUMBER: u64 = 4;

/// A pass: rows of so many tokens behind so many that are known already.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass {
    /// Texts.
    pub rows: usize,
    /// New tokens of each.
    pub tokens: usize,
    /// Tokens of each to the left, whose keys and values are kept.
    pub past: usize,
}

impl Pass {
    /// Rows of so many tokens.
    pub fn new(rows: usize, tokens: usize) -> Self {
        Pass { rows, tokens, past: 0 }
    }

    /// How many cells it has.
    pub fn cells(self) -> usize {
        self.rows * self.tokens
    }
}

/// Sizes in bytes, of f32.
impl DecoderSpec {
    /// All weights.
    pub fn weights_bytes(&self) -> u64 {
        let embedding = self.vocabulary * self.width;
        let head = if self.head.tied { 0 } else { self.outputs() * self.width };
        let stacks = 1 + usize::from(self.source.is_some());
        let positions = match &self.positions {
            Positions::Learned { offset } => stacks * (offset + self.context) * self.width,
            Positions::Rotary(_) | Positions::Relative(_) => 0,
        };
        NUMBER * (embedding + head + positions) as u64 + self.layers_bytes(0)
    }

    /// The matrices of the topmost layers, from number `lowest` of a pass on.
    pub fn layers_bytes(&self, lowest: usize) -> u64 {
        let of_stack = |stack, layers| (0..layers).map(move |layer| (stack, layer));
        let all = of_stack(Stack::Encoder, self.source_layers()).chain(of_stack(Stack::Decoder, self.layers));
        let matrices = all.skip(lowest).flat_map(|(stack, layer)| {
            let own = Role::all().map(move |role| Weight { stack, layer, role });
            own.filter(|weight| self.has(*weight)).map(|weight| self.shape(weight.role))
        });
        matrices.map(|[d_in, d_out]| NUMBER * (d_in * d_out) as u64).sum()
    }

    /// The residual stream of a pass.
    pub fn stream_bytes(&self, pass: Pass) -> u64 {
        NUMBER * (pass.cells() * self.width) as u64
    }

    /// Logits at so many cells.
    pub fn logits_bytes(&self, cells: usize) -> u64 {
        NUMBER * (cells * self.outputs()) as u64
    }

    /// Keys and values of a pass in so many layers.
    pub fn past_bytes(&self, pass: Pass, layers: usize) -> u64 {
        let attention = &self.attention;
        NUMBER * (2 * layers * pass.cells() * attention.key_value_heads * attention.head_width) as u64
    }

    /// What a block holds at its largest while it is run, stream included, and nothing is kept for a way back.
    pub fn block_bytes(&self, pass: Pass) -> u64 {
        // Gate and up, and what comes of the two.
        let mlp = self.width + self.mlp.width * if self.mlp.gated { 3 } else { 2 };
        2 * self.stream_bytes(pass) + self.attention_bytes(pass).max(NUMBER * (pass.cells() * mlp) as u64)
    }

    /// What a graph over so many layers keeps for the way back: what norms, scores, and products of two changing things need. A product with a frozen weight
    /// needs nothing but the weight.
    pub fn graph_bytes(&self, pass: Pass, layers: usize) -> u64 {
        let (cells, attention) = (pass.cells(), &self.attention);
        let (heads, shared) =
            (attention.heads * attention.head_width, attention.key_value_heads * attention.head_width);
        let scores = pass.rows * attention.heads * pass.tokens * (pass.past + pass.tokens);
        // Gate and up, what the non-linearity makes, and what goes into the down-projection.
        let mlp = self.mlp.width * if self.mlp.gated { 4 } else { 3 };
        let keys = pass.rows * (pass.past + pass.tokens) * 2 * shared;
        NUMBER * (layers * (cells * (5 * self.width + heads + mlp) + keys + scores)) as u64
    }

    /// What attention makes on the way: queries and keys before and after they are turned, values, what is mixed of them; scores with the mask, and their softmax.
    fn attention_bytes(&self, pass: Pass) -> u64 {
        let attention = &self.attention;
        let (heads, shared) =
            (attention.heads * attention.head_width, attention.key_value_heads * attention.head_width);
        let scores = pass.rows * attention.heads * pass.tokens * (pass.past + pass.tokens);
        NUMBER * (pass.cells() * (self.width + 3 * heads + 3 * shared) + 3 * scores) as u64
    }
}
