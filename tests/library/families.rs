//! What holds for every family: gradients, exports, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{DType, Device, Distribution, Tensor};
use emend::Edited;
use emend::edit::{Change, Delta, Edit, PassChange, Provenance};
use emend::model::layers::matrix::Matrix;
use emend::model::load::checkpoint::{Checkpoint, Hold};
use emend::model::stack::decoder::Decoder;
use emend::model::stack::taps::GradientProbes;
use emend::model::tap::{NoTap, Role, Stack, Tap, Weight};
use emend::model::tokens::Tokens;
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::common::{FAMILIES, Golden, PAIRS, difference, fixture, model, pair, values};

const ROLES: [Role; 11] = [
    Role::Query,
    Role::Key,
    Role::Value,
    Role::Out,
    Role::CrossQuery,
    Role::CrossKey,
    Role::CrossValue,
    Role::CrossOut,
    Role::MlpGate,
    Role::MlpUp,
    Role::MlpDown,
];

fn ids(name: &str) -> Vec<Vec<u32>> {
    let golden = Golden::open(fixture(name).join("golden.safetensors"));
    if PAIRS.contains(&name) { pair(&golden) } else { golden.ids() }
}

fn all() -> impl Iterator<Item = &'static str> {
    FAMILIES.into_iter().chain(PAIRS)
}

/// Every matrix of the first layer of each stack.
fn weights(decoder: &Decoder) -> Vec<Weight> {
    let each = |stack| ROLES.map(|role| Weight { stack, layer: 0, role });
    [Stack::Decoder, Stack::Encoder].into_iter().flat_map(each).filter(|&at| decoder.linear(at).is_ok()).collect()
}

/// Log-probabilities of the tokens that follow in the first row, summed.
fn log_likelihood(decoder: &Decoder, ids: &[u32], tap: &mut dyn Tap) -> Tensor<1> {
    let tokens = Tokens::new(vec![ids.to_vec()]);
    let hidden = decoder.embed(&tokens, tap).unwrap();
    let hidden = decoder.blocks(hidden, 0..decoder.spec.depth(), tokens.span(), None, tap).unwrap();
    let source = tokens.texts()[0].source;
    let cells: Vec<_> = (source..ids.len() - 1).map(|cell| (0, cell)).collect();
    let log = burn::tensor::activation::log_softmax(decoder.head(hidden, &cells), 1);
    let next: Vec<i64> = ids[source + 1..].iter().map(|&id| i64::from(id)).collect();
    let next = Tensor::<1, burn::tensor::Int>::from_data(next.as_slice(), &log.device().inner());
    log.gather(1, next.unsqueeze_dim::<2>(1)).sum()
}

#[test]
fn u_and_delta_are_the_slope_of_the_loss() {
    for name in all() {
        let model = model(name, DType::F64);
        let (decoder, ids) = (&model.decoder, &ids(name)[0]);
        let weights = weights(decoder);
        let mut probes = GradientProbes::at(weights.iter().copied());
        let gradients = log_likelihood(decoder, ids, &mut probes).backward();
        let mut read = probes.read(&gradients);
        for at in weights {
            let (u, delta) = read.remove(&at).unwrap();
            let matrix = decoder.linear(at).unwrap().weight.val();
            let way = Tensor::<2>::random(matrix.dims(), Distribution::Normal(0.0, 1.0), (&Device::flex(), DType::F64));
            let slope = u.squeeze_dim::<2>(0).transpose().matmul(delta.squeeze_dim(0)) * way.clone();
            let slope: f64 = values(slope).iter().sum();
            let moved = |by: f64| {
                let bias = decoder.linear(at).unwrap().bias.as_ref().map(|bias| bias.val());
                let moved = matrix.clone() + way.clone().mul_scalar(by);
                let moved = decoder.clone().with_linear(at, moved, bias).unwrap();
                values(log_likelihood(&moved, ids, &mut NoTap))[0]
            };
            let found = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((found - slope).abs() < 1e-5 * found.abs().max(1.0), "{name} {at}: {found} {slope}");
        }
    }
}

/// A family's fixture with all its tensors in 16 bits.
pub fn in_16_bits(name: &str, brain: bool) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap().flatten() {
        fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
    }
    let dtype = if brain { safetensors::Dtype::BF16 } else { safetensors::Dtype::F16 };
    let rounded = |value: f64| match brain {
        true => half::bf16::from_f64(value).to_le_bytes(),
        false => half::f16::from_f64(value).to_le_bytes(),
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = stored(place.path())
        .into_iter()
        .map(|(name, (shape, values))| (name, shape, values.into_iter().flat_map(rounded).collect()))
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(dtype, shape.clone(), bytes).unwrap())
    });
    for entry in fs::read_dir(place.path()).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.contains("safetensors") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    fs::write(place.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    place
}

#[test]
fn matrices_in_16_bits_may_stay_in_their_file() {
    for (name, brain) in all().flat_map(|name| [(name, false), (name, true)]) {
        let place = in_16_bits(name, brain);
        let files = Checkpoint::open(place.path()).unwrap();
        let of = |hold| files.decoder(&Device::flex(), DType::F32, hold).unwrap();
        let (cast, in_file) = (of(Hold::Cast), of(Hold::InFile));
        let weights = weights(&cast);
        let what = |decoder: &Decoder| {
            let tokens = Tokens::new(ids(name));
            let hidden = decoder.embed(&tokens, &mut NoTap).unwrap();
            let hidden = decoder.blocks(hidden, 0..decoder.spec.depth(), tokens.span(), None, &mut NoTap).unwrap();
            let row = &tokens.span().rows[0];
            let cells: Vec<_> = (row.text.source..row.len).map(|cell| (0, cell)).collect();
            let logits = values(decoder.head(hidden, &cells));
            let mut probes = GradientProbes::at(weights.iter().copied());
            let gradients = log_likelihood(decoder, &ids(name)[0], &mut probes).backward();
            let read = probes.read(&gradients).into_values().flat_map(|(u, delta)| [values(u), values(delta)].concat());
            (logits, read.collect::<Vec<f64>>())
        };
        let ((logits, slopes), (logits_in_file, slopes_in_file)) = (what(&cast), what(&in_file));
        let apart = difference(&logits, &logits_in_file).max(difference(&slopes, &slopes_in_file));
        assert!(apart < 2e-5, "{name}: {apart:e}");
        for at in weights {
            let (held, stored) = (&cast.linear(at).unwrap().weight, &in_file.linear(at).unwrap().weight);
            assert!(matches!(stored, Matrix::Stored(_)), "{name} {at}");
            assert_eq!(values(held.val()), values(stored.val()), "{name} {at}");
        }
        let index = burn::tensor::Tensor::<1, burn::tensor::Int>::from_data([3i64, 0, 3].as_slice(), &Device::flex());
        assert_eq!(values(cast.embedding.rows(index.clone())), values(in_file.embedding.rows(index.clone())));
        if let Some((held, stored)) = cast.head.as_ref().zip(in_file.head.as_ref()) {
            let index = index.mul_scalar(0);
            assert_eq!(values(held.columns(index.clone())), values(stored.columns(index)), "{name}");
        }
    }
}

/// A change of every matrix of the first layer.
fn edit(model: &Edited) -> Edit {
    let decoder = &model.base().decoder;
    let mut matrices = BTreeMap::new();
    for at in weights(decoder) {
        let [d_in, d_out] = decoder.linear(at).unwrap().weight.dims();
        let drawn = |shape| Tensor::random(shape, Distribution::Normal(0.0, 0.3), (&Device::flex(), DType::F32));
        matrices.insert(at, Delta::LowRank { a: drawn([d_in, 2]), b: drawn([2, d_out]) });
    }
    let provenance = Provenance {
        method: "random".into(),
        settings: json!({}),
        requests: vec![],
        seed: 0,
        version: "0".into(),
        base: model.base().fingerprint.clone(),
        computed_on: vec![],
        joined: vec![],
        findings: Value::Null,
    };
    Edit::new(provenance, Change::Pass(PassChange { matrices, ..Default::default() }), BTreeMap::new())
}

/// The tensors of a folder's safetensors files.
fn stored(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "safetensors"))
    {
        if entry.file_name() == "golden.safetensors" {
            continue;
        }
        let bytes = fs::read(entry.path()).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for (name, view) in file.tensors() {
            let values = view.data();
            let values: Vec<f64> = match view.dtype() {
                safetensors::Dtype::F32 => {
                    values.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
                }
                safetensors::Dtype::F16 => {
                    values.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f64()).collect()
                }
                _ => values.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f64()).collect(),
            };
            found.insert(name.to_owned(), (view.shape().to_vec(), values));
        }
    }
    found
}

/// The exported checkpoint says what the edited model says, and the adapter is the change of its stored matrices, fused ones included.
#[test]
fn exports_put_each_change_where_it_belongs() {
    for name in all() {
        let base = Edited::new(Arc::new(model(name, DType::F32)));
        let edited = base.with(edit(&base)).unwrap();
        let place = tempfile::tempdir().unwrap();
        let (hf, peft) = (place.path().join("hf"), place.path().join("peft"));
        emend::edit::hf::export(&edited, &hf).unwrap();
        emend::edit::peft::export(&edited, &peft).unwrap();

        let opened = Checkpoint::open(&hf).unwrap().decoder(&Device::flex(), DType::F32, Hold::Cast).unwrap();
        let tokens = Tokens::new(ids(name));
        let row = &tokens.span().rows[0];
        let cells: Vec<_> = (row.text.source..row.len).map(|cell| (0, cell)).collect();
        let logits = |hidden: Tensor<3>, decoder: &Decoder| values(decoder.head(hidden, &cells));
        let hidden = edited.embed(&tokens, &mut NoTap).unwrap();
        let hidden = edited.blocks(hidden, 0..edited.layers(), tokens.span(), None, &mut NoTap).unwrap();
        let wanted = values(edited.head(hidden, &cells));
        let hidden = opened.embed(&tokens, &mut NoTap).unwrap();
        let hidden = opened.blocks(hidden, 0..edited.layers(), tokens.span(), None, &mut NoTap).unwrap();
        // What is stored in 16 bits is rounded.
        let apart = difference(&logits(hidden, &opened), &wanted);
        assert!(apart < 2e-2, "{name}: {apart:e}");

        let (before, after, adapter) = (stored(&fixture(name)), stored(&hf), stored(&peft));
        let config: Value = serde_json::from_slice(&fs::read(peft.join("adapter_config.json")).unwrap()).unwrap();
        let turned = config["fan_in_fan_out"] == true;
        let mut changed = 0;
        for (tensor, (shape, values)) in &after {
            let (_, old) = &before[tensor];
            let largest = values.iter().zip(old).fold(0.0f64, |most, (new, old)| most.max((new - old).abs()));
            if largest == 0.0 {
                continue;
            }
            changed += 1;
            let module = tensor.strip_suffix(".weight").unwrap();
            let part = |part: &str| &adapter[&format!("base_model.model.{module}.lora_{part}.weight")];
            let ((a_shape, a), (b_shape, b)) = (part("A"), part("B"));
            let (rank, d_in, d_out) = (a_shape[0], a_shape[1], b_shape[0]);
            assert_eq!(*shape, if turned { [d_in, d_out] } else { [d_out, d_in] });
            for output in 0..d_out {
                for input in 0..d_in {
                    let sum: f64 = (0..rank).map(|r| b[output * rank + r] * a[r * d_in + input]).sum();
                    let at = if turned { input * d_out + output } else { output * d_in + input };
                    assert!((values[at] - old[at] - sum).abs() < 2e-2, "{name} {tensor} {output} {input}");
                }
            }
        }
        assert_eq!(changed, adapter.len() / 2, "{name}");
    }
}

/// A family's config with some keys laid over it; the error it meets.
fn refused(name: &str, more: Value) -> String {
    let place = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap().flatten() {
        fs::copy(entry.path(), place.path().join(entry.file_name())).unwrap();
    }
    let path = place.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs::write(&path, config.to_string()).unwrap();
    let opened =
        Checkpoint::open(place.path()).and_then(|files| files.decoder(&Device::flex(), DType::F32, Hold::Cast));
    opened.err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn what_a_family_does_not_know_is_refused_by_name() {
    let dynamic = json!({"rope_type": "dynamic", "factor": 2.0});
    let cases = [
        ("llama-tiny", json!({"model_type": "mixtral"}), "\"mixtral\" is a mixture of experts"),
        ("llama-tiny", json!({"model_type": "gemma3"}), "\"gemma3\" has a vision tower"),
        ("gpt2-tiny", json!({"architectures": ["GPT2ForSequenceClassification"]}), "has a head that is not read here"),
        ("bart-tiny", json!({"tie_word_embeddings": false}), "BART's head is its embedding"),
        (
            "llama-tiny",
            json!({"model_type": "mamba"}),
            "known are bart, bert, falcon, gemma, gemma2, gemma3_text, gpt2, gptj, gpt_neo",
        ),
        (
            "llama-tiny",
            json!({"rope_scaling": dynamic}),
            "\"dynamic\" is not known here; known are default, linear, llama3, yarn, longrope",
        ),
        ("falcon-tiny", json!({"alibi": true}), "alibi"),
        ("opt-tiny", json!({"do_layer_norm_before": false}), "OPT-350m"),
        ("opt-tiny", json!({"word_embed_proj_dim": 8}), "word_embed_proj_dim"),
        ("gemma3-tiny", json!({"use_bidirectional_attention": true}), "use_bidirectional_attention"),
        (
            "gemma3-tiny",
            json!({"layer_types": ["full_attention"]}),
            "1 layers have a kind of attention, the model has 3",
        ),
        ("gemma3-tiny", json!({"sliding_window": null}), "sliding_window, how far they see, is missing"),
        ("gemma2-tiny", json!({"sliding_window": 0}), "sliding_window is 0"),
        ("gemma2-tiny", json!({"attn_logit_softcapping": -1.0}), "a soft cap is -1"),
        ("gptneo-tiny", json!({"attention_types": [[["far"], 4]]}), "\"far\"; known are global, local"),
        ("gptj-tiny", json!({"rotary_dim": 10}), "at most a head's 8"),
        (
            "phi3-tiny",
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}),
            "short_factor has 1 numbers; 2 above 0 are wanted",
        ),
        // Tensors that are not there, or of another shape.
        ("qwen2-tiny", json!({"tie_word_embeddings": false}), "no tensor \"lm_head.weight\""),
        (
            "mistral-tiny",
            json!({"model_type": "qwen3", "sliding_window": null}),
            "no tensor \"layers.0.self_attn.q_norm.weight\"",
        ),
        ("pythia-tiny", json!({"num_attention_heads": 8, "hidden_size": 64}), "the config wants"),
    ];
    for (name, more, words) in cases {
        let error = refused(name, more.clone());
        assert!(error.contains(words), "{name} {more}: {error}");
    }
}
