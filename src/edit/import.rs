//! A LoRA adapter that the PEFT library wrote, as an edit.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Tensor, TensorData};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::peft::{CONFIG, WEIGHTS, module};
use super::{Change, Delta, Edit, Edited, PassChange, Provenance};
use crate::error::{Error, Result};
use crate::files;
use crate::model::family::InAdapter;
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::folder::{Stored, floats};
use crate::model::tap::{Role, Stack, Weight};

/// The method that the edit's provenance names.
const METHOD: &str = "imported-lora";

/// One edit of the adapter in `folder`, for a model without edits. Nothing is known of what was asked for: it has no requests. What the
/// adapter's own config says of its base is only told.
///
/// # Errors
/// A file that is missing, broken, or no LoRA adapter; one that does more than add low-rank changes to matrices; one that was made for
/// another model.
pub fn adapter(folder: &Path, model: &Edited) -> Result<Edit> {
    let (config, facts) = Config::read(folder)?;
    let checkpoint = &model.base().checkpoint;
    let modules = modules(checkpoint);
    let path = weights(folder)?;
    let mut change = PassChange::default();
    for (name, [down, up]) in pairs(&path)? {
        let wrong = |message: String| Error::file(&path, format!("module \"{name}\" {message}"));
        let prefixes = checkpoint.family().prefixes().iter().chain(&[""]);
        let mut ours = prefixes.filter_map(|prefix| modules.get(name.strip_prefix(prefix)?));
        let within = ours.next().ok_or_else(|| wrong("is none of this model's, or none that edits change".into()))?;
        let [d_in, width] = [checkpoint.spec().shape(within[0].0.role)[0], within[0].1.width];
        let scale = config.scale(&name, &down, &up).map_err(wrong)?;
        if [down.columns, up.rows] != [d_in, width] {
            return Err(wrong(format!(
                "has lora_A {:?} and lora_B {:?}, but the model's is {d_in} wide and gives {width}: the adapter was made for another model",
                down.shape(),
                up.shape()
            )));
        }
        for (at, place) in within {
            let Some([a, b]) = factors(&down, &up, &place.outputs, scale) else { continue };
            let device = model.base().decoder.device();
            let tensor = |Matrix { rows, columns, values }| {
                Tensor::<2>::from_data(TensorData::new(values, [rows, columns]), (&device, DType::F32))
            };
            change.matrices.insert(*at, Delta::LowRank { a: tensor(a), b: tensor(b) }.smaller());
        }
    }
    if change.matrices.is_empty() {
        return Err(Error::file(&path, "the adapter changes nothing: every product of its factors is zero"));
    }
    let edit = Edit::new(Provenance::new(METHOD, facts, 0, model, []), Change::Pass(change), BTreeMap::new());
    match edit.is_finite() {
        true => Ok(edit),
        false => Err(Error::file(&path, "scaled as its config says, the adapter holds values that are not finite")),
    }
}

/// What of adapter_config.json says how its tensors are meant. Whether a module stores its matrix transposed (`fan_in_fan_out`) changes
/// nothing of its factors, and which modules it changes (`target_modules`) is seen in the tensors.
#[derive(Deserialize)]
struct Config {
    r: usize,
    lora_alpha: f64,
    use_rslora: Option<bool>,
    rank_pattern: Option<Map<String, Value>>,
    alpha_pattern: Option<Map<String, Value>>,
}

/// What of a config the edit remembers.
const FACTS: [&str; 8] = [
    "base_model_name_or_path",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "target_modules",
];

/// Keys that make an adapter more than low-rank changes of matrices, and what they mean.
const MORE: [(&str, &str); 9] = [
    ("use_dora", "DoRA scales whole columns too"),
    ("modules_to_save", "these modules are replaced as a whole"),
    ("lora_bias", "the factors carry biases"),
    ("use_qalora", "inputs are pooled before they meet the factors"),
    ("alora_invocation_tokens", "it acts behind these tokens only"),
    ("trainable_token_indices", "embeddings of these tokens are replaced"),
    ("target_parameters", "parameters that are no module's matrix are changed"),
    ("layer_replication", "layers are repeated, which makes another model"),
    ("arrow_config", "several adapters are routed"),
];

/// Ways to begin a training that change the base too.
const CHANGED_BASE: [&str; 4] = ["pissa", "olora", "corda", "loftq"];

impl Config {
    /// The config in a folder, and what of it is remembered.
    fn read(folder: &Path) -> Result<(Self, Value)> {
        if !folder.is_dir() {
            return Err(Error::file(folder, format!("no folder; an adapter is a folder with {CONFIG} and {WEIGHTS}")));
        }
        let path = folder.join(CONFIG);
        let wrong = |message: String| Error::file(&path, message);
        if !path.is_file() {
            return Err(Error::file(folder, format!("no {CONFIG} here; an adapter is a folder with it and {WEIGHTS}")));
        }
        let value: Value =
            serde_json::from_slice(&files::read(&path)?).map_err(|error| wrong(format!("not JSON: {error}")))?;
        match value["peft_type"].as_str() {
            Some("LORA") => {}
            Some(other) => return Err(wrong(format!("peft_type is \"{other}\"; only LORA is read"))),
            None => return Err(wrong("\"peft_type\" is missing; this is no config of a PEFT adapter".into())),
        }
        if let Some(bias) = value["bias"].as_str().filter(|bias| *bias != "none") {
            return Err(wrong(format!(
                "bias is \"{bias}\": the model's own biases are replaced too, which is not read"
            )));
        }
        if let Some((key, why)) = MORE.iter().find(|(key, _)| is_set(&value[*key])) {
            return Err(wrong(format!("{key} is {}: {why}, which is not read", value[*key])));
        }
        if let Some(begin) = value["init_lora_weights"].as_str().map(str::to_lowercase)
            && CHANGED_BASE.iter().any(|way| begin.starts_with(way))
        {
            return Err(wrong(format!(
                "init_lora_weights is \"{begin}\": the adapter stands on a changed base; save it with path_initial_model_for_weight_conversion"
            )));
        }
        let config: Config = serde_path_to_error::deserialize(&value)
            .map_err(|error| wrong(format!("{}: {}", error.path(), error.inner())))?;
        let numbers = |pattern: &Option<Map<String, Value>>, fits: fn(&Value) -> bool| {
            let mut pairs = pattern.iter().flatten();
            pairs.find(|(key, value)| !is_plain(key) || !fits(value)).map(|(key, value)| format!("\"{key}\": {value}"))
        };
        let strange = numbers(&config.rank_pattern, Value::is_u64).map(|pair| ("rank_pattern", pair));
        if let Some((key, pair)) =
            strange.or_else(|| numbers(&config.alpha_pattern, Value::is_number).map(|pair| ("alpha_pattern", pair)))
        {
            return Err(wrong(format!("{key} has {pair}; names of modules with a number are read, no other patterns")));
        }
        let facts =
            FACTS.iter().filter(|key| is_set(&value[**key])).map(|key| ((*key).to_owned(), value[*key].clone()));
        let facts = Value::Object(facts.collect());
        Ok((config, facts))
    }

    /// What PEFT multiplies the product of a module's factors by.
    fn scale(&self, module: &str, down: &Matrix, up: &Matrix) -> Result<f64, String> {
        let rank = of_pattern(&self.rank_pattern, module).and_then(Value::as_u64).map_or(self.r, |rank| rank as usize);
        if rank == 0 || [down.rows, up.columns] != [rank; 2] {
            return Err(format!(
                "has lora_A {:?} and lora_B {:?}, but its rank is {rank} by {CONFIG}",
                down.shape(),
                up.shape()
            ));
        }
        let alpha = of_pattern(&self.alpha_pattern, module).and_then(Value::as_f64).unwrap_or(self.lora_alpha);
        let by_root = self.use_rslora == Some(true);
        Ok(alpha / if by_root { (rank as f64).sqrt() } else { rank as f64 })
    }
}

/// Whether a key says anything.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    }
}

/// A pattern's name: PEFT reads it as a regular expression, in which "^" ties it to the beginning.
fn plain_name(pattern: &str) -> String {
    pattern.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".")
}

/// Whether a pattern is the name of a module, or of the end of some.
fn is_plain(pattern: &str) -> bool {
    plain_name(pattern).chars().all(|letter| letter.is_ascii_alphanumeric() || "_.-".contains(letter))
}

/// The value of the first pattern that a module fits: its name, or the end of it from a dot on.
fn of_pattern<'a>(pattern: &'a Option<Map<String, Value>>, module: &str) -> Option<&'a Value> {
    let fits = |pattern: &str| {
        let before = module.strip_suffix(&plain_name(pattern));
        before.is_some_and(|before| before.is_empty() || before.ends_with('.') && !pattern.starts_with('^'))
    };
    pattern.iter().flatten().find(|(pattern, _)| fits(pattern)).map(|(_, value)| value)
}

/// The file of an adapter's tensors.
fn weights(folder: &Path) -> Result<PathBuf> {
    let (path, pickle) = (folder.join(WEIGHTS), folder.join("adapter_model.bin"));
    match (path.is_file(), pickle.is_file()) {
        (true, _) => Ok(path),
        (false, true) => Err(Error::file(
            pickle,
            "pickled weights can run any code and are never read; load the adapter once in PEFT and save it with safe_serialization=True",
        )),
        (false, false) => Err(Error::file(folder, format!("no {WEIGHTS} here"))),
    }
}

/// A matrix of an adapter, row by row.
#[derive(Default)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }
}

/// The factors of each module, `A [r, d_in]` and `B [d_out, r]`.
fn pairs(path: &Path) -> Result<BTreeMap<String, [Matrix; 2]>> {
    let wrong = |message: String| Error::file(path, message);
    let bytes = files::read(path)?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| wrong(format!("not a whole safetensors file ({error})")))?;
    let mut found: BTreeMap<String, [Option<Matrix>; 2]> = BTreeMap::new();
    let mut adapters = BTreeSet::new();
    for (name, view) in file.tensors() {
        let strange =
            || wrong(format!("tensor \"{name}\" is no factor of a module's matrix, which is all that is read"));
        let (module, part, adapter) = part_of(&name).ok_or_else(strange)?;
        adapters.insert(adapter.to_owned());
        let &[rows, columns] = view.shape() else {
            return Err(wrong(format!("tensor \"{name}\" has the shape {:?}; a factor is a matrix", view.shape())));
        };
        let stored = Stored { dtype: view.dtype(), shape: view.shape(), bytes: view.data() };
        let values =
            floats(stored).ok_or_else(|| wrong(format!("tensor \"{name}\" holds {:?}, not floats", view.dtype())))?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(wrong(format!("tensor \"{name}\" holds values that are not finite")));
        }
        found.entry(module.to_owned()).or_default()[part] = Some(Matrix { rows, columns, values });
    }
    if adapters.len() > 1 {
        let names = adapters.into_iter().collect::<Vec<_>>().join("\", \"");
        return Err(wrong(format!("it holds several adapters, \"{names}\"; save each into a folder of its own")));
    }
    let both = |(module, parts): (String, [Option<Matrix>; 2])| match parts {
        [Some(down), Some(up)] => Ok((module, [down, up])),
        [down, _] => {
            let missing = if down.is_none() { "A" } else { "B" };
            Err(wrong(format!("module \"{module}\" has no lora_{missing}")))
        }
    };
    found.into_iter().map(both).collect()
}

/// The module of a tensor, which of its factors it is, and the adapter's name where it stands between.
fn part_of(name: &str) -> Option<(&str, usize, &str)> {
    let inner = name.strip_prefix("base_model.model.")?.strip_suffix(".weight")?;
    let parts = [".lora_A", ".lora_B"].into_iter().enumerate();
    parts.into_iter().find_map(|(part, word)| {
        let (module, adapter) = inner.rsplit_once(word)?;
        let named = adapter.strip_prefix('.').is_some_and(|adapter| !adapter.is_empty() && !adapter.contains('.'));
        (adapter.is_empty() || named).then_some((module, part, adapter.trim_start_matches('.')))
    })
}

/// The matrices of a model by the module that each stands in, without prefix.
fn modules(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<(Weight, InAdapter)>> {
    let spec = checkpoint.spec();
    let mut found: BTreeMap<String, Vec<(Weight, InAdapter)>> = BTreeMap::new();
    let stacks = [(Stack::Encoder, spec.source_layers()), (Stack::Decoder, spec.layers)];
    let layers = stacks.into_iter().flat_map(|(stack, layers)| (0..layers).map(move |layer| (stack, layer)));
    let all = layers.flat_map(|(stack, layer)| Role::all().map(move |role| Weight { stack, layer, role }));
    for at in all.filter(|at| spec.has(*at)) {
        let place = module(checkpoint, at);
        found.entry(place.name.clone()).or_default().push((at, place));
    }
    found
}

/// Our factors `A [d_in, rank]` and `B [rank, d_out]` of some outputs of a module, `B` scaled; nothing where these do not change.
/// Components that change none of them are left out: PEFT fills low ranks up with zeros, and a module may hold several of our matrices.
fn factors(down: &Matrix, up: &Matrix, outputs: &[usize], scale: f64) -> Option<[Matrix; 2]> {
    let (rank, d_in) = (down.rows, down.columns);
    let reads = |component: usize| &down.values[component * d_in..(component + 1) * d_in];
    let adds = |component: usize| outputs.iter().map(move |output| up.values[output * rank + component]);
    let acts = |component: &usize| {
        reads(*component).iter().any(|value| *value != 0.0) && adds(*component).any(|value| value != 0.0)
    };
    let kept: Vec<usize> = (0..rank).filter(acts).collect();
    if kept.is_empty() {
        return None;
    }
    let a = (0..d_in).flat_map(|input| kept.iter().map(move |component| reads(*component)[input]));
    let b = kept.iter().flat_map(|component| adds(*component)).map(|value| (f64::from(value) * scale) as f32);
    Some([
        Matrix { rows: d_in, columns: kept.len(), values: a.collect() },
        Matrix { rows: kept.len(), columns: outputs.len(), values: b.collect() },
    ])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_tensors() {
        let module = "model.layers.0.mlp.up_proj";
        let named = |end: &str| part_of(&format!("base_model.model.{module}{end}")).map(|(name, ..)| name.to_owned());
        for end in [".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight"] {
            assert_eq!(named(end).as_deref(), Some(module), "{end}");
        }
        for end in [".lora_embedding_A", ".lora_magnitude_vector.weight", ".lora_A.bias", ".lora_Ax.weight", ".weight"]
        {
            assert_eq!(named(end), None, "{end}");
        }
    }

    #[test]
    fn scales_of_modules() {
        let config = |more: Value| {
            let mut config = json!({"r": 4, "lora_alpha": 8});
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            serde_json::from_value::<Config>(config).unwrap()
        };
        let matrix = |rows, columns| Matrix { rows, columns, values: vec![] };
        let scale = |more: Value, rank| {
            config(more).scale("model.layers.0.mlp.up_proj", &matrix(rank, 2), &matrix(3, rank)).ok()
        };
        assert_eq!(scale(json!({}), 4), Some(2.0));
        assert_eq!(scale(json!({"use_rslora": true, "rank_pattern": null}), 4), Some(4.0));
        assert_eq!(scale(json!({}), 5), None);
        let pattern = |name: &str| json!({"rank_pattern": {name: 2}, "alpha_pattern": {name: 6}});
        for name in ["up_proj", "0.mlp.up_proj", "^model.layers.0.mlp.up_proj", "mlp\\.up_proj$"] {
            assert_eq!(scale(pattern(name), 2), Some(3.0), "{name}");
        }
        // The end of a word is no name, and what begins with "^" is the whole.
        for name in ["p_proj", "^up_proj", "down_proj"] {
            assert_eq!(scale(pattern(name), 4), Some(2.0), "{name}");
        }
    }
}
