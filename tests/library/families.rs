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

/// What an edit changes of each matrix, multiplied out.
fn dense(edit: &Edit) -> BTreeMap<Weight, Vec<f64>> {
    edit.pass().unwrap().matrices.iter().map(|(at, delta)| (*at, values(delta.dense()))).collect()
}

/// An adapter that was exported comes in again as the same changes, matrix by matrix.
#[test]
fn an_adapter_goes_out_and_comes_in() {
    for name in all() {
        let base = Edited::new(Arc::new(model(name, DType::F32)));
        let edit = edit(&base);
        let place = tempfile::tempdir().unwrap();
        emend::edit::peft::export(&base.with(edit.clone()).unwrap(), place.path().join("peft").as_path()).unwrap();
        let back = emend::edit::import::adapter(&place.path().join("peft"), &base).unwrap();
        let (wanted, found) = (dense(&edit), dense(&back));
        assert!(wanted.keys().eq(found.keys()), "{name}: {:?}", found.keys());
        for (at, wanted) in &wanted {
            let apart = difference(&found[at], wanted);
            assert!(apart < 1e-6, "{name} {at}: {apart:e}");
            // Neither the zeros that fill up ranks nor a fused matrix's other roles come with it.
            assert!(
                back.pass().unwrap().matrices[at].rank() <= 2
                    || matches!(back.pass().unwrap().matrices[at], Delta::Dense(_))
            );
        }
        assert_eq!((back.provenance.method.as_str(), back.provenance.requests.len()), ("imported-lora", 0));
        base.with(back).unwrap();
    }
}

/// Tensors by their names, `[rows, columns]` each.
type Matrices = BTreeMap<String, ([usize; 2], Vec<f64>)>;

/// The tensors of a GGUF file of f32, and its texts.
fn gguf(path: &Path) -> (Matrices, BTreeMap<String, String>) {
    let bytes = fs::read(path).unwrap();
    let mut at = 8;
    let mut take = |count: usize| {
        at += count;
        &bytes[at - count..at]
    };
    let large = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap()) as usize;
    let small = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let [tensors, facts] = [large(take(8)), large(take(8))];
    let mut texts = BTreeMap::new();
    for _ in 0..facts {
        let length = large(take(8));
        let name = String::from_utf8(take(length).to_vec()).unwrap();
        let value = match small(take(4)) {
            8 => {
                let length = large(take(8));
                String::from_utf8(take(length).to_vec()).unwrap()
            }
            6 => f32::from_le_bytes(take(4).try_into().unwrap()).to_string(),
            other => panic!("a fact of type {other}"),
        };
        texts.insert(name, value);
    }
    let mut places = vec![];
    for _ in 0..tensors {
        let length = large(take(8));
        let name = String::from_utf8(take(length).to_vec()).unwrap();
        assert_eq!(small(take(4)), 2);
        let [columns, rows] = [large(take(8)), large(take(8))];
        assert_eq!(small(take(4)), 0);
        places.push((name, [rows, columns], large(take(8))));
    }
    let begin = at.next_multiple_of(32);
    let read = |(name, shape, place): (String, [usize; 2], usize)| {
        assert_eq!(place % 32, 0);
        let data = &bytes[begin + place..][..4 * shape[0] * shape[1]];
        (name, (shape, data.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()))
    };
    (places.into_iter().map(read).collect(), texts)
}

/// `B·A` of two factors `[d_out, rank]` and `[rank, d_in]`, row by row.
fn product((up_shape, up): &([usize; 2], Vec<f64>), (down_shape, down): &([usize; 2], Vec<f64>)) -> Vec<Vec<f64>> {
    let ([d_out, rank], [_, d_in]) = (*up_shape, *down_shape);
    assert_eq!(rank, down_shape[0]);
    let element = |row: usize, column: usize| (0..rank).map(|r| up[row * rank + r] * down[r * d_in + column]).sum();
    (0..d_out).map(|row| (0..d_in).map(|column| element(row, column)).collect()).collect()
}

/// What llama.cpp's converter makes of the rows of a module, by its own description: Llama's queries and keys are permuted, each head seen
/// as two halves which come to alternate; GPT-NeoX and Falcon have queries, keys and values sorted out of their heads.
fn as_llama_cpp_has_it(family: &str, module: &str, rows: Vec<Vec<f64>>, heads: [usize; 3]) -> Vec<Vec<f64>> {
    let [query_heads, key_heads, head_width] = heads;
    let of = |order: Vec<usize>| order.into_iter().map(|row| rows[row].clone()).collect::<Vec<_>>();
    let run = |first: usize| first..first + head_width;
    match (family, module) {
        ("llama" | "mistral", "self_attn.q_proj" | "self_attn.k_proj") => {
            let half = head_width / 2;
            let count = rows.len() / head_width;
            let head = |head: usize| (0..half).flat_map(move |i| [0, half].map(|part| head * head_width + part + i));
            of((0..count).flat_map(head).collect())
        }
        ("gpt_neox", "attention.query_key_value") => {
            let part = |part: usize| (0..query_heads).flat_map(move |head| run((3 * head + part) * head_width));
            of((0..3).flat_map(part).collect())
        }
        ("falcon", "self_attention.query_key_value") => {
            let group = query_heads / key_heads;
            let parts = [(0, group), (group, group + 1), (group + 1, group + 2)];
            let part = |(from, to): (usize, usize)| {
                (0..key_heads)
                    .flat_map(move |head| (from..to).flat_map(move |one| run((head * (group + 2) + one) * head_width)))
            };
            of(parts.into_iter().flat_map(part).collect())
        }
        _ => rows,
    }
}

/// llama.cpp's names of modules.
const IN_GGUF: [(&str, &str); 19] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("attention.query_key_value", "attn_qkv"),
    ("attention.dense", "attn_output"),
    ("mlp.dense_h_to_4h", "ffn_up"),
    ("mlp.dense_4h_to_h", "ffn_down"),
    ("self_attention.query_key_value", "attn_qkv"),
    ("self_attention.dense", "attn_output"),
];

/// An adapter for llama.cpp is the one for PEFT, as its converter would make it; of other families it is refused by name.
///
/// Checked once against llama.cpp itself: see `tests/binary/leave.rs`.
#[test]
fn an_adapter_for_llama_cpp() {
    let mut known = vec![];
    for name in all() {
        let base = Edited::new(Arc::new(model(name, DType::F32)));
        let edited = base.with(edit(&base)).unwrap();
        let (checkpoint, spec) = (&base.base().checkpoint, &base.base().decoder.spec);
        let place = tempfile::tempdir().unwrap();
        let (folder, peft) = (place.path().join("gguf"), place.path().join("peft"));
        let made = emend::edit::gguf::export(&edited, &folder);
        let family = checkpoint.family().name();
        if checkpoint.family().gguf().is_none() {
            let error = made.unwrap_err().to_string();
            assert!(
                error.contains(&format!("of family {family} is not known here; it is of falcon, gemma")),
                "{error}"
            );
            assert!(!folder.exists());
            continue;
        }
        emend::edit::peft::export(&edited, &peft).unwrap();
        let adapter = stored(&peft);
        let (tensors, texts) = gguf(&folder.join("adapter.gguf"));
        let wanted =
            [("general.type", "adapter"), ("adapter.type", "lora"), ("adapter.lora.alpha", &made.unwrap().to_string())];
        assert!(wanted.iter().all(|(key, value)| texts[*key] == *value), "{name}: {texts:?}");
        known.push((family, texts["general.architecture"].clone()));
        let heads = [spec.attention.heads, spec.attention.key_value_heads, spec.attention.head_width];
        assert_eq!(tensors.len(), adapter.len(), "{name}");
        for (tensor, (shape, down)) in adapter.iter().filter(|(tensor, _)| tensor.ends_with("lora_A.weight")) {
            let (shape_up, up) = &adapter[&tensor.replace("lora_A", "lora_B")];
            let two = |shape: &[usize]| [shape[0], shape[1]];
            let rows = product(&(two(shape_up), up.clone()), &(two(shape), down.clone()));
            let module = tensor.split_once(".0.").unwrap().1.strip_suffix(".lora_A.weight").unwrap();
            let (_, theirs) = IN_GGUF.iter().find(|(ours, _)| *ours == module).unwrap();
            let part = |part: &str| &tensors[&format!("blk.0.{theirs}.weight.lora_{part}")];
            let (found, wanted) = (product(part("b"), part("a")), as_llama_cpp_has_it(family, module, rows, heads));
            assert!(difference(&found.concat(), &wanted.concat()) < 1e-6, "{name} {module}");
        }
    }
    known.dedup();
    let known: Vec<(&str, &str)> = known.iter().map(|(family, theirs)| (*family, theirs.as_str())).collect();
    for pair in
        [("llama", "llama"), ("mistral", "llama"), ("gpt2", "gpt2"), ("gemma3_text", "gemma3"), ("qwen2", "qwen2")]
    {
        assert!(known.contains(&pair), "{known:?}");
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
