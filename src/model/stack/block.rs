//! A block of a stack: its matrices and its norms. Where the norms stand, the stack says.

use burn::module::Module;
use burn::tensor::DType;

use crate::model::layers::matrix::Linear;
use crate::model::layers::norm::Norm;
use crate::model::tap::Role;

/// What a decoder's block reads of an encoder.
#[derive(Module, Debug)]
pub struct Cross {
    /// Before it; after it in a stack with post-norms.
    pub norm: Norm,
    /// `[width, heads · head_width]`
    pub query: Linear,
    /// `[width, key_value_heads · head_width]`
    pub key: Linear,
    /// `[width, key_value_heads · head_width]`
    pub value: Linear,
    /// `[heads · head_width, width]`
    pub out: Linear,
}

/// One layer: attention and MLP.
#[derive(Module, Debug)]
pub struct Block {
    /// Before attention; after it in a stack with post-norms.
    pub attention_norm: Norm,
    /// `[width, heads · head_width]`
    pub query: Linear,
    /// `[width, key_value_heads · head_width]`
    pub key: Linear,
    /// `[width, key_value_heads · head_width]`
    pub value: Linear,
    /// Of each head's queries, where they are normed.
    pub query_norm: Option<Norm>,
    /// Of each head's keys, where they are normed.
    pub key_norm: Option<Norm>,
    /// `[heads · head_width, width]`
    pub out: Linear,
    /// After attention, where there is one.
    pub attention_post_norm: Option<Norm>,
    /// Attention over what an encoder made, where there is one.
    pub cross: Option<Cross>,
    /// Before the MLP, where it has one of its own; after it in a stack with post-norms.
    pub mlp_norm: Option<Norm>,
    /// `[width, mlp_width]`, in a gated MLP.
    pub gate: Option<Linear>,
    /// `[width, mlp_width]`
    pub up: Linear,
    /// `[mlp_width, width]`
    pub down: Linear,
    /// After the MLP, where there is one.
    pub mlp_post_norm: Option<Norm>,
}

impl Block {
    /// The element type of its weights. Trained blocks over a base in 16 bits are of another type than the ones below them.
    pub(super) fn dtype(&self) -> DType {
        self.query.weight.dtype()
    }

    /// The matrix of a role, where the block has it.
    pub fn linear(&self, role: Role) -> Option<&Linear> {
        match role {
            Role::Query => Some(&self.query),
            Role::Key => Some(&self.key),
            Role::Value => Some(&self.value),
            Role::Out => Some(&self.out),
            Role::MlpGate => self.gate.as_ref(),
            Role::MlpUp => Some(&self.up),
            Role::MlpDown => Some(&self.down),
            Role::CrossQuery => self.cross.as_ref().map(|cross| &cross.query),
            Role::CrossKey => self.cross.as_ref().map(|cross| &cross.key),
            Role::CrossValue => self.cross.as_ref().map(|cross| &cross.value),
            Role::CrossOut => self.cross.as_ref().map(|cross| &cross.out),
        }
    }

    /// The same with its matrices as tensors, so that they can be trained.
    pub fn in_memory(mut self) -> Self {
        for role in Role::all() {
            if let Some(linear) = self.linear_mut(role) {
                linear.weight = linear.weight.clone().in_memory();
            }
        }
        self
    }

    pub(super) fn linear_mut(&mut self, role: Role) -> Option<&mut Linear> {
        match role {
            Role::Query => Some(&mut self.query),
            Role::Key => Some(&mut self.key),
            Role::Value => Some(&mut self.value),
            Role::Out => Some(&mut self.out),
            Role::MlpGate => self.gate.as_mut(),
            Role::MlpUp => Some(&mut self.up),
            Role::MlpDown => Some(&mut self.down),
            Role::CrossQuery => self.cross.as_mut().map(|cross| &mut cross.query),
            Role::CrossKey => self.cross.as_mut().map(|cross| &mut cross.key),
            Role::CrossValue => self.cross.as_mut().map(|cross| &mut cross.value),
            Role::CrossOut => self.cross.as_mut().map(|cross| &mut cross.out),
        }
    }
}
