//! Writes a model in Hugging Face layout.

use std::path::Path;

use burn::tensor::Tensor;
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;

use crate::error::{Error, Result};
use crate::model::layers::norm::Norm;
use crate::model::stack::decoder::Decoder;

/// Writes a GPT-2 with its tokenizer: weights in 16 bits, the fused c_attn put together again.
///
/// # Errors
/// A folder that cannot be written.
pub fn gpt2(folder: &Path, decoder: &Decoder, tokenizer: &tokenizers::Tokenizer, end: u32) -> Result<()> {
    let spec = &decoder.spec;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    let mut put = |name: String, shape: Vec<usize>, data: Vec<f32>| {
        tensors.push((name, shape, data.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect()));
    };
    let mut matrix = |name: String, tensor: Tensor<2>| {
        put(name, tensor.dims().to_vec(), tensor.into_data().iter::<f32>().collect());
    };
    matrix("transformer.wte.weight".into(), decoder.embedding.val());
    if let Some(positions) = &decoder.positions {
        matrix("transformer.wpe.weight".into(), positions.val());
    }
    let vectors = |norm: &Norm| [Some(norm.gamma.val()), norm.beta.as_ref().map(|beta| beta.val())];
    let mut flat: Vec<(String, Tensor<1>)> = vec![];
    let mut norm = |name: String, norm: &Norm| {
        for (part, vector) in ["weight", "bias"].into_iter().zip(vectors(norm)) {
            flat.extend(vector.map(|vector| (format!("{name}.{part}"), vector)));
        }
    };
    if let Some(last) = &decoder.norm {
        norm("transformer.ln_f".into(), last);
    }
    let mut biases: Vec<(String, Tensor<1>)> = vec![];
    for (layer, block) in decoder.blocks.iter().enumerate() {
        let name = |part: &str| format!("transformer.h.{layer}.{part}");
        norm(name("ln_1"), &block.attention_norm);
        if let Some(before) = &block.mlp_norm {
            norm(name("ln_2"), before);
        }
        let fused = [&block.query, &block.key, &block.value];
        matrix(name("attn.c_attn.weight"), Tensor::cat(fused.map(|linear| linear.weight.val()).to_vec(), 1));
        biases.push((
            name("attn.c_attn.bias"),
            Tensor::cat(fused.iter().filter_map(|linear| Some(linear.bias.as_ref()?.val())).collect(), 0),
        ));
        for (part, linear) in [("attn.c_proj", &block.out), ("mlp.c_fc", &block.up), ("mlp.c_proj", &block.down)] {
            matrix(name(&format!("{part}.weight")), linear.weight.val());
            biases.extend(linear.bias.as_ref().map(|bias| (name(&format!("{part}.bias")), bias.val())));
        }
    }
    for (name, vector) in flat.into_iter().chain(biases) {
        put(name, vector.dims().to_vec(), vector.into_data().iter::<f32>().collect());
    }
    let views = tensors.iter().filter_map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F16, shape.clone(), bytes).ok().map(|view| (name.as_str(), view))
    });
    let path = folder.join("model.safetensors");
    let contents = safetensors::serialize(views, None).map_err(|error| Error::file(&path, error))?;
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.vocabulary,
        "n_positions": spec.context,
        "n_embd": spec.width,
        "n_layer": spec.layers,
        "n_head": spec.attention.heads,
        "n_inner": spec.mlp.width,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": spec.norm.epsilon,
        "tie_word_embeddings": true,
        "bos_token_id": end,
        "eos_token_id": end,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "torch_dtype": "float16",
    });
    // Every sentence it learns begins with this token: so must every text it reads.
    let bos = tokenizer.id_to_token(end);
    let tokenizer_config = json!({
        "add_bos_token": true,
        "bos_token": bos,
        "eos_token": bos,
        "tokenizer_class": "GPT2Tokenizer",
    });
    let tokenizer = tokenizer.to_string(false).map_err(|error| Error::file(folder.join("tokenizer.json"), error))?;
    crate::files::write(&folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    crate::files::write(&folder.join("tokenizer.json"), tokenizer.as_bytes())?;
    crate::files::write(&folder.join("tokenizer_config.json"), format!("{tokenizer_config:#}\n").as_bytes())?;
    crate::files::write(&path, &contents)
}
