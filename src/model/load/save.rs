//! Writes a model in Hugging Face layout.

use std::path::Path;

use burn::tensor::Tensor;
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::family;
use crate::model::layers::norm::Norm;
use crate::model::stack::block::Block;
use crate::model::stack::decoder::{Decoder, DecoderTensor, NormAt};
use crate::model::tap::{Role, Stack, Weight};

/// Writes a T5 with its tokenizer: weights in 16 bits. `special` are the tokens that begin a decoder's text and end every text.
///
/// # Errors
/// A folder that cannot be written.
pub fn t5(folder: &Path, decoder: &Decoder, tokenizer: &tokenizers::Tokenizer, special: [&str; 2]) -> Result<()> {
    let spec = &decoder.spec;
    let family = family::for_decoder(&json!({"model_type": "t5"})).map_err(Error::Training)?;
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = vec![];
    let mut put = |at: DecoderTensor, tensor: Tensor<2>| {
        let place = family.place(at, spec);
        let tensor = if place.transposed { tensor.transpose() } else { tensor };
        let shape = match at {
            DecoderTensor::Gamma(..) => vec![tensor.dims()[1]],
            _ => tensor.dims().to_vec(),
        };
        let bytes = tensor.into_data().iter::<f32>().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
        tensors.push((place.name, shape, bytes));
    };
    put(DecoderTensor::Embedding, decoder.embedding.val());
    let source = decoder.source.as_ref();
    let stacks = [
        (Stack::Encoder, source.map(|source| (&source.distances, &source.norm, &source.blocks))),
        (Stack::Decoder, Some((&decoder.distances, &decoder.norm, &decoder.blocks))),
    ];
    for (stack, parts) in stacks {
        let Some((distances, norm, blocks)) = parts else { continue };
        if let Some(distances) = distances {
            put(DecoderTensor::Distances(stack), distances.val());
        }
        let gains = |block: &Block, layer: usize| {
            let cross = block.cross.as_ref().map(|cross| (NormAt::Cross(layer), cross.norm.gamma.val()));
            let mlp = block.mlp_norm.as_ref().map(|norm| (NormAt::Mlp(layer), norm.gamma.val()));
            [Some((NormAt::Attention(layer), block.attention_norm.gamma.val())), cross, mlp]
        };
        let of_blocks = blocks.iter().enumerate().flat_map(|(layer, block)| gains(block, layer)).flatten();
        let last = norm.as_ref().map(|norm| (NormAt::Head, norm.gamma.val()));
        for (at, gamma) in of_blocks.chain(last) {
            put(DecoderTensor::Gamma(stack, at), gamma.unsqueeze());
        }
        for (layer, block) in blocks.iter().enumerate() {
            for (role, linear) in Role::all().filter_map(|role| Some((role, block.linear(role)?))) {
                put(DecoderTensor::Matrix(Weight { stack, layer, role }), linear.weight.val());
            }
        }
    }
    let id = |token: &str| tokenizer.token_to_id(token);
    let config = json!({
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "vocab_size": spec.vocabulary,
        "d_model": spec.width,
        "d_kv": spec.attention.head_width,
        "d_ff": spec.mlp.width,
        "num_layers": spec.source_layers(),
        "num_decoder_layers": spec.layers,
        "num_heads": spec.attention.heads,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": spec.norm.epsilon,
        "feed_forward_proj": "relu",
        "n_positions": spec.context,
        "tie_word_embeddings": true,
        "is_encoder_decoder": true,
        "decoder_start_token_id": id(special[0]),
        "pad_token_id": id(special[0]),
        "eos_token_id": id(special[1]),
        "dropout_rate": 0.0,
        "torch_dtype": "float16",
    });
    let tokenizer_config =
        json!({"pad_token": special[0], "eos_token": special[1], "tokenizer_class": "PreTrainedTokenizerFast"});
    write(folder, &tensors, &config, tokenizer, &tokenizer_config)
}

/// Writes a model's files.
fn write(
    folder: &Path,
    tensors: &[(String, Vec<usize>, Vec<u8>)],
    config: &Value,
    tokenizer: &tokenizers::Tokenizer,
    tokenizer_config: &Value,
) -> Result<()> {
    let views = tensors.iter().filter_map(|(name, shape, bytes)| {
        TensorView::new(Dtype::F16, shape.clone(), bytes).ok().map(|view| (name.as_str(), view))
    });
    let path = folder.join("model.safetensors");
    let contents = safetensors::serialize(views, None).map_err(|error| Error::file(&path, error))?;
    let tokenizer = tokenizer.to_string(false).map_err(|error| Error::file(folder.join("tokenizer.json"), error))?;
    crate::files::write(&folder.join("config.json"), format!("{config:#}\n").as_bytes())?;
    crate::files::write(&folder.join("tokenizer.json"), tokenizer.as_bytes())?;
    crate::files::write(&folder.join("tokenizer_config.json"), format!("{tokenizer_config:#}\n").as_bytes())?;
    crate::files::write(&path, &contents)
}

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
    write(folder, &tensors, &config, tokenizer, &tokenizer_config)
}
