//! How llama.cpp calls a family's matrices in GGUF files, and how they lie there.

use super::InAdapter;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tap::{Role, Weight};

/// A family as llama.cpp keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gguf {
    /// Its name of the architecture.
    pub architecture: &'static str,
    /// Whether queries, keys and values stand one behind the other in one matrix.
    pub attention_together: bool,
    /// Whether gate and up do.
    pub gate_together: bool,
    /// Whether two channels that are turned together are neighbours among a head's queries and keys; else they are half a head apart,
    /// as with us.
    pub neighbours: bool,
}

impl Gguf {
    /// A family each of whose matrices stands by itself, as we have it.
    pub(super) const fn apart(architecture: &'static str) -> Self {
        Gguf { architecture, attention_together: false, gate_together: false, neighbours: false }
    }

    /// A family whose queries, keys and values stand in one matrix.
    pub(super) const fn attention_together(architecture: &'static str) -> Self {
        Gguf { attention_together: true, ..Gguf::apart(architecture) }
    }

    /// Where a matrix of a decoder stands.
    pub fn place(&self, at: Weight, spec: &DecoderSpec) -> InAdapter {
        let (name, together): (_, &[Role]) = match at.role {
            Role::Query | Role::Key | Role::Value if self.attention_together => {
                ("attn_qkv", &[Role::Query, Role::Key, Role::Value])
            }
            Role::MlpGate | Role::MlpUp if self.gate_together => ("ffn_up", &[Role::MlpGate, Role::MlpUp]),
            Role::Query => ("attn_q", &[Role::Query]),
            Role::Key => ("attn_k", &[Role::Key]),
            Role::Value => ("attn_v", &[Role::Value]),
            Role::Out => ("attn_output", &[Role::Out]),
            Role::MlpGate => ("ffn_gate", &[Role::MlpGate]),
            Role::MlpDown => ("ffn_down", &[Role::MlpDown]),
            _ => ("ffn_up", &[Role::MlpUp]),
        };
        let width = |role: &Role| spec.shape(*role)[1];
        let before: usize = together.iter().take_while(|role| **role != at.role).map(width).sum();
        let turned = self.neighbours && matches!(at.role, Role::Query | Role::Key);
        let output = |ours| if turned { neighbour(ours, spec.attention.head_width) } else { ours };
        InAdapter {
            name: format!("blk.{}.{name}.weight", at.layer),
            outputs: (0..width(&at.role)).map(|ours| before + output(ours)).collect(),
            width: together.iter().map(width).sum(),
        }
    }
}

/// A channel of halves among neighbours: of a head's channels 0, 1, 2, 3 the pairs (0, 2) and (1, 3) come to stand as 0, 2, 1, 3.
fn neighbour(channel: usize, head_width: usize) -> usize {
    let (head, own, half) = (channel / head_width, channel % head_width, head_width / 2);
    head * head_width + 2 * (own % half) + own / half
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{for_decoder, in_gguf};
    use super::*;

    fn spec() -> (Gguf, DecoderSpec) {
        let config = json!({
            "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
        });
        let family = for_decoder(&config).unwrap();
        (family.gguf().unwrap(), family.spec(&config).unwrap())
    }

    #[test]
    fn channels_that_turn_together_become_neighbours() {
        let (gguf, spec) = spec();
        // Two key-value heads of width 4; the rest of each head is written out by hand.
        let key = gguf.place(Weight::decoder(0, Role::Key), &spec);
        assert_eq!((key.name.as_str(), key.width), ("blk.0.attn_k.weight", 8));
        assert_eq!(key.outputs, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(gguf.place(Weight::decoder(0, Role::Query), &spec).outputs[8..], [8, 10, 9, 11, 12, 14, 13, 15]);
        assert_eq!(gguf.place(Weight::decoder(0, Role::Value), &spec).outputs, Vec::from_iter(0..8));
        assert_eq!(gguf.place(Weight::decoder(0, Role::MlpDown), &spec).name, "blk.0.ffn_down.weight");
    }

    #[test]
    fn matrices_stand_one_behind_the_other() {
        let (_, spec) = spec();
        let gguf = Gguf { gate_together: true, ..Gguf::attention_together("phi3") };
        let place = |role| gguf.place(Weight::decoder(3, role), &spec);
        let value = place(Role::Value);
        assert_eq!((value.name.as_str(), value.width), ("blk.3.attn_qkv.weight", 32));
        assert_eq!(value.outputs, Vec::from_iter(24..32));
        let up = place(Role::MlpUp);
        assert_eq!((up.name.as_str(), up.width, up.outputs[0]), ("blk.3.ffn_up.weight", 48, 24));
        assert_eq!(place(Role::MlpGate).outputs[0], 0);
    }

    #[test]
    fn families_with_a_mapping() {
        let known = in_gguf();
        assert!(known.contains(&"llama") && known.contains(&"gpt2") && !known.contains(&"t5"), "{known:?}");
    }
}
