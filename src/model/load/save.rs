//! Writes a model in Hugging Face layout.

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::Tensor;
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::model::family::{self, Family};
use crate::model::layers::matrix::Linear;
use crate::model::layers::norm::Norm;
use crate::model::stack::block::Block;
use crate::model::stack::build::{ClassifierTensor, DecoderTensor, NormAt};
use crate::model::stack::decoder::{Decoder, Source};
use crate::model::tap::{Role, Stack, Weight};

/// Writes a T5 with its tokenizer: weights in 16 bits. `special` are the tokens that begin a decoder's text and end every text.
///
/// # Errors
/// A folder that cannot be written.
pub fn t5(folder: &Path, decoder: &Decoder, tokenizer: &tokenizers::Tokenizer, special: [&str; 2]) -> Result<()> {
    let spec = &decoder.spec;
    let family = family::for_decoder(&json!({"model_type": "t5"})).map_err(Error::Training)?;
    let tensors = tensors(decoder, family);
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

/// Writes a BERT that classifies, with its tokenizer: weights in 16 bits. `special` are what pads texts, begins and ends them.
///
/// # Errors
/// A folder that cannot be written.
pub fn bert(folder: &Path, decoder: &Decoder, tokenizer: &tokenizers::Tokenizer, special: [&str; 3]) -> Result<()> {
    let spec = &decoder.spec;
    let labels = || spec.labels().unwrap_or_default().iter().enumerate();
    let by_id: BTreeMap<String, &String> = labels().map(|(id, label)| (id.to_string(), label)).collect();
    let by_label: BTreeMap<&String, usize> = labels().map(|(id, label)| (label, id)).collect();
    let config = json!({
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "id2label": by_id,
        "label2id": by_label,
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.width,
        "num_hidden_layers": spec.source_layers(),
        "num_attention_heads": spec.attention.heads,
        "intermediate_size": spec.mlp.width,
        "hidden_act": "gelu",
        "max_position_embeddings": spec.context,
        "type_vocab_size": spec.source.as_ref().map_or(0, |source| source.kinds),
        "layer_norm_eps": spec.norm.epsilon,
        "pad_token_id": tokenizer.token_to_id(special[0]),
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "torch_dtype": "float16",
    });
    let family = family::for_decoder(&config).map_err(Error::Training)?;
    let tokenizer_config = json!({
        "pad_token": special[0],
        "cls_token": special[1],
        "sep_token": special[2],
        "tokenizer_class": "PreTrainedTokenizerFast",
    });
    write(folder, &tensors(decoder, family), &config, tokenizer, &tokenizer_config)
}

/// The tensors of a model under its family's names, in 16 bits. A family that fuses matrices has a function of its own.
fn tensors(decoder: &Decoder, family: &dyn Family) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let spec = &decoder.spec;
    let mut tensors = vec![];
    let mut put = |at: DecoderTensor, tensor: Tensor<2>, vector: bool| {
        let place = family.place(at, spec);
        let tensor = if place.transposed { tensor.transpose() } else { tensor };
        let shape = if vector { vec![tensor.dims()[1]] } else { tensor.dims().to_vec() };
        let bytes = tensor.into_data().iter::<f32>().flat_map(|value| f16::from_f32(value).to_le_bytes()).collect();
        tensors.push((place.name, shape, bytes));
    };
    put(DecoderTensor::Embedding, decoder.embedding.val(), false);
    if let Some(head) = &decoder.head {
        put(DecoderTensor::Head, head.val(), false);
    }
    if let Some(bias) = &decoder.head_bias {
        put(DecoderTensor::HeadBias, bias.val().unsqueeze(), true);
    }
    if let Some(Linear { weight, bias }) = &decoder.pooler {
        put(DecoderTensor::Classifier(ClassifierTensor::Pooler), weight.val(), false);
        if let Some(bias) = bias {
            put(DecoderTensor::Classifier(ClassifierTensor::PoolerBias), bias.val().unsqueeze(), true);
        }
    }
    if let Some(kinds) = decoder.source.as_ref().and_then(|source| source.kinds.as_ref()) {
        put(DecoderTensor::Classifier(ClassifierTensor::Kinds), kinds.val(), false);
    }
    let encoder = decoder.source.as_ref().map(|source| {
        let Source { positions, distances, embedding_norm, blocks, norm, .. } = source;
        (Stack::Encoder, positions, distances, embedding_norm, blocks, norm)
    });
    let Decoder { positions, distances, embedding_norm, blocks, norm, .. } = decoder;
    let both = encoder.into_iter().chain([(Stack::Decoder, positions, distances, embedding_norm, blocks, norm)]);
    for (stack, positions, distances, embedding_norm, blocks, last) in both {
        let tables = [(DecoderTensor::Positions(stack), positions), (DecoderTensor::Distances(stack), distances)];
        for (at, table) in tables.into_iter().filter_map(|(at, table)| Some((at, table.as_ref()?))) {
            put(at, table.val(), false);
        }
        let of_block = |layer: usize, block: &Block| {
            let of_heads = [(NormAt::Query(layer), &block.query_norm), (NormAt::Key(layer), &block.key_norm)];
            let behind = [
                (NormAt::AttentionPost(layer), &block.attention_post_norm),
                (NormAt::MlpPost(layer), &block.mlp_post_norm),
            ];
            let maybe = of_heads.into_iter().chain(behind).chain([(NormAt::Mlp(layer), &block.mlp_norm)]);
            let maybe = maybe.filter_map(|(at, norm)| Some((at, norm.clone()?)));
            let cross = block.cross.as_ref().map(|cross| (NormAt::Cross(layer), cross.norm.clone()));
            maybe.chain(cross).chain([(NormAt::Attention(layer), block.attention_norm.clone())]).collect::<Vec<_>>()
        };
        let norms = blocks.iter().enumerate().flat_map(|(layer, block)| of_block(layer, block));
        let ends = [(NormAt::Embedding, embedding_norm), (NormAt::Head, last)];
        for (at, norm) in norms.chain(ends.into_iter().filter_map(|(at, norm)| Some((at, norm.clone()?)))) {
            put(DecoderTensor::Gamma(stack, at), norm.gamma.val().unsqueeze(), true);
            if let Some(beta) = &norm.beta {
                put(DecoderTensor::Beta(stack, at), beta.val().unsqueeze(), true);
            }
        }
        for (layer, block) in blocks.iter().enumerate() {
            for (role, linear) in Role::all().filter_map(|role| Some((role, block.linear(role)?))) {
                let at = Weight { stack, layer, role };
                put(DecoderTensor::Matrix(at), linear.weight.val(), false);
                if let Some(bias) = &linear.bias {
                    put(DecoderTensor::Bias(at), bias.val().unsqueeze(), true);
                }
            }
        }
    }
    tensors
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
