//! `emend new-config`: a config for a method and a model, with every key and what it does.
//!
//! It begins with the config that is shipped for the method, puts layers and weights of the model into it, and adds every other key with
//! its default. What keys do is read from the documentation of the settings' types: it cannot say anything else than the code does.

use std::path::PathBuf;

use serde_json::{Value as Json, json};
use toml::{Table, Value};

use super::print;
use crate::apply::{EditorSettings, needs_no_training};
use crate::config::{self, merge};
use crate::data::pocket;
use crate::error::{Error, Result};
use crate::files;
use crate::model::load::checkpoint::Checkpoint;
use crate::model::load::{hub, pocket as pocket_model};
use crate::model::stack::spec::DecoderSpec;
use crate::sections;

/// Write a commented config for a method and a model, with layers and weights chosen for it and every key explained.
///
/// Layers are chosen by depth, as in the shipped configs; `emend locate --propose` chooses them by validation facts instead.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: emend new-config --method rome --model gpt2 --out rome.toml")]
pub struct Args {
    /// The method, such as rome, memit, ft, lora, wise or mend
    #[arg(long)]
    pub method: String,
    /// The model: `pocket`, a folder, a name under $EMEND_MODELS, or a hub id
    #[arg(long)]
    pub model: String,
    /// Write this file instead of printing
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace the file where there is one
    #[arg(long, requires = "out")]
    pub force: bool,
}

/// Runs the command.
///
/// # Errors
/// A method that is not known or cannot edit the model, a model that is not there, a file that is there already.
pub fn run(args: &Args) -> Result<()> {
    if let Some(out) = args.out.as_ref().filter(|out| out.exists() && !args.force) {
        return Err(Error::Config(format!("{} is there already; --force replaces it", out.display())));
    }
    let shipped = Shipped::find(&args.method)?;
    // Shapes are all that is asked for: neither weights nor a tokenizer.
    let checkpoint = match pocket_model::find(&args.model) {
        Some(embedded) => embedded.checkpoint()?,
        None => Checkpoint::open(&hub::resolve(&args.model)?)?,
    };
    let kind = checkpoint.config()["model_type"].as_str().unwrap_or_default().to_owned();
    let text = written(shipped, &args.model, checkpoint.spec(), &kind)?;
    match &args.out {
        Some(out) => files::write(out, text.as_bytes()),
        None => print(&text),
    }
}

/// The configs that a method begins with.
struct Shipped {
    /// As its configs are called.
    name: &'static str,
    /// As `editor.method` names it, where that is another word.
    method: &'static str,
    /// For the embedded model, and for SmolLM2.
    configs: [&'static str; 2],
}

macro_rules! shipped {
    ($($name:literal $method:literal),* $(,)?) => {
        &[$(Shipped {
            name: $name,
            method: $method,
            configs: [
                include_str!(concat!("../../configs/", $name, "-pocket.toml")),
                include_str!(concat!("../../configs/", $name, "-smollm2.toml")),
            ],
        }),*]
    };
}

static SHIPPED: &[Shipped] = shipped![
    "ft" "fine_tuning", "ft-l" "ft-l", "ft-kl" "ft-kl", "lora" "lora", "rome" "rome", "memit" "memit", "emmet" "emmet",
    "alphaedit" "alphaedit", "ultraedit" "ultraedit", "t-patcher" "t_patcher", "calinet" "calinet", "kn" "knowledge_neurons",
    "ike" "ike", "lookup" "lookup", "grace" "grace", "wise" "wise", "mend" "mend", "malmen" "malmen", "rledit" "rledit",
    "serac" "serac", "ke" "ke", "enn" "enn",
];

macro_rules! included {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../configs/base/", $name)))),*] };
}

/// The files that shipped configs include.
static BASE: &[(&str, &str)] = included![
    "alphaedit.toml",
    "calinet.toml",
    "emmet.toml",
    "ft-kl.toml",
    "ft-l.toml",
    "ft.toml",
    "grace.toml",
    "ike.toml",
    "kn.toml",
    "lora.toml",
    "memit.toml",
    "rome.toml",
    "serac-pocket.toml",
    "serac-smollm2.toml",
    "spread.toml",
    "t-patcher.toml",
    "ultraedit.toml",
    "wise.toml",
];

/// Layers of the embedded model, and of SmolLM2.
const DEPTHS: [usize; 2] = [6, 30];

impl Shipped {
    fn find(name: &str) -> Result<&'static Self> {
        SHIPPED.iter().find(|one| one.name == name || one.method == name).ok_or_else(|| {
            let known: Vec<&str> = SHIPPED.iter().map(|one| one.name).collect();
            Error::Config(format!("--method {name} is not known; known: {}", known.join(", ")))
        })
    }

    fn table(&self, which: usize) -> Result<Table> {
        with_included(self.configs[which], self.name)
    }
}

/// A shipped config, laid over what it includes.
fn with_included(text: &str, name: &str) -> Result<Table> {
    let wrong = |why: String| Error::Config(format!("the config that is shipped for {name}: {why}"));
    let mut own: Table = text.parse().map_err(|error: toml::de::Error| wrong(error.message().to_owned()))?;
    let Some(include) = own.remove("include") else { return Ok(own) };
    let file = include.as_str().unwrap_or_default().trim_start_matches("base/");
    let base = BASE.iter().find(|(known, _)| *known == file).ok_or_else(|| wrong(format!("{file} is not there")))?;
    let mut under = with_included(base.1, name)?;
    merge(&mut under, own);
    Ok(under)
}

/// Layers of a model of `depth` for those of one that has `of` layers: those at the top stay as far from it, others lie at the same
/// share of the depth, and neighbours stay neighbours.
fn layers_for(layers: &[usize], of: usize, depth: usize) -> Vec<usize> {
    let Some(&(first, last)) = layers.first().zip(layers.last()).map(|(a, b)| (*a, *b)).as_ref() else { return vec![] };
    let begin = match last + 1 == of {
        true => (depth + first).saturating_sub(of),
        false => (first as f64 * depth as f64 / of as f64).floor() as usize,
    };
    let begin = begin.min(depth - 1);
    (begin..=begin + (last - first)).filter(|layer| *layer < depth).collect()
}

/// The whole file.
fn written(shipped: &Shipped, name: &str, spec: &DecoderSpec, kind: &str) -> Result<String> {
    let which = usize::from(pocket::of_model(name).is_none());
    let mut table = shipped.table(which)?;
    let depth = spec.layers.max(spec.source_layers()).max(1);
    table.insert("model".into(), toml::toml! { path = name }.into());
    let editor =
        table.get_mut("editor").and_then(Value::as_table_mut).ok_or_else(|| Error::Config("no [editor]".into()))?;
    let trained = !needs_no_training(editor.get("method").and_then(Value::as_str).unwrap_or_default());
    fit(editor, spec, DEPTHS[which], depth, kind, name);
    let origin = format!("the config for {}", shipped.name);
    let given = table.clone();
    let every = if trained { trained_keys(&table, &origin)? } else { apply_keys(&table, &origin, spec, name)? };

    let mut text = format!("# {} for {name}, written by `emend new-config`.\n", shipped.name);
    text += &match trained {
        true => {
            "# `emend train --config FILE --out DIR` trains it, `emend apply --archive DIR` edits with it.\n".to_owned()
        }
        false => "# `emend apply --config FILE --prompt … --target …` edits with it.\n".to_owned(),
    };
    text += &format!(
        "# The model has {depth} layers, counted from 0. Those below lie where the shipped config for a model of {} layers has them;\n\
         # `emend locate --propose` chooses by validation facts.\n\
         # A key behind a # is one that has no value, or that another key's value makes of no use.\n",
        DEPTHS[which]
    );
    if let Some(statistics) = given["editor"].get("statistics").and_then(Value::as_str) {
        let layers: Vec<i64> = given["editor"]
            .get("layers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_integer)
            .collect();
        let layers = match layers.as_slice() {
            [first, .., last] => format!("{first}..{last}"),
            one => one.first().map(ToString::to_string).unwrap_or_default(),
        };
        let texts = if which == 0 { "pocket" } else { "FILE" };
        text += &format!(
            "# It needs statistics of the model's keys: `emend stats --model {name} --layers {layers} --text {texts} --until 0.02 --out {statistics}`.\n"
        );
    }
    for (section, keys) in every.as_object().into_iter().flatten() {
        let Some(keys) = keys.as_object().filter(|keys| !keys.is_empty()) else { continue };
        text += &format!("\n[{section}]\n");
        let given = given.get(section).and_then(Value::as_table).cloned().unwrap_or_default();
        for (key, value) in keys {
            if let Some(doc) = docs(shipped.method, section, key) {
                text += &format!("# {doc}\n");
            }
            text += &match (given.get(key), toml_of(value)) {
                (Some(value), _) => format!("{key} = {value}\n"),
                (None, None) => format!("# {key} =\n"),
                (None, Some(value)) => {
                    let mut with = table.clone();
                    if let Some(into) = with.entry(section).or_insert_with(|| Table::new().into()).as_table_mut() {
                        into.insert(key.clone(), value.clone());
                    }
                    let taken = match trained {
                        true => config::train::Config::of(with.clone(), &origin).is_ok(),
                        false => apply_keys(&with, &origin, spec, name).is_ok(),
                    };
                    if taken {
                        table = with;
                    }
                    format!("{}{key} = {value}\n", if taken { "" } else { "# " })
                }
            };
        }
    }
    Ok(text)
}

/// Puts the model's layers, weights and statistics into a section.
fn fit(editor: &mut Table, spec: &DecoderSpec, of: usize, depth: usize, kind: &str, name: &str) {
    let number = |value: &Value| value.as_integer().and_then(|layer| usize::try_from(layer).ok());
    let value = |layer: usize| Value::Integer(layer as i64);
    if let Some(layers) = editor.get("layers").and_then(Value::as_array) {
        let layers: Vec<usize> = layers.iter().filter_map(number).collect();
        let mut fitted = layers_for(&layers, of, depth);
        // GPT-2s keep facts higher: ROME's layer is 17 of 48 there, and 5 of 28 to 32 in later families.
        if kind == "gpt2" && editor.contains_key("statistics") && of == DEPTHS[1] {
            let last = (17 * depth / 48).min(depth - 1);
            fitted = (last.saturating_sub(layers.len() - 1)..=last).collect();
        }
        editor.insert("layers".into(), Value::Array(fitted.into_iter().map(value).collect()));
    }
    if let Some(layer) = editor.get("layer").and_then(number) {
        editor.insert("layer".into(), value(layers_for(&[layer], of, depth).first().copied().unwrap_or(0)));
    }
    if let Some(weights) = editor.get_mut("weights").and_then(Value::as_array_mut) {
        if !spec.mlp.gated {
            weights.retain(|weight| weight.as_str() != Some("mlp.gate"));
        }
        // With two stacks weights say in which they are; a classifier has the encoder alone.
        if spec.source.is_some() {
            let stack = if spec.layers > 0 { "decoder" } else { "encoder" };
            for weight in weights {
                *weight = Value::String(format!("{stack}.{}", weight.as_str().unwrap_or_default()));
            }
        }
    }
    if editor.contains_key("statistics") {
        let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
        editor.insert("statistics".into(), Value::String(format!("stats/{last}")));
    }
}

/// Every key of a config of `emend apply`, section by section.
fn apply_keys(table: &Table, origin: &str, spec: &DecoderSpec, name: &str) -> Result<Json> {
    let section = |name: &str| table.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
    let editor = section("editor");
    let settings = EditorSettings::parse(editor.clone(), origin)?;
    settings.check_stack(spec, name)?;
    let model: config::ModelSection = sections::parse(section("model").into(), origin)?;
    let mut keys = json!({"method": editor["method"].as_str()});
    if let (Some(keys), Json::Object(own)) = (keys.as_object_mut(), EditorSettings::written(editor, origin)?) {
        keys.extend(own);
    }
    Ok(json!({"model": model, "editor": keys}))
}

/// Every key of a config of `emend train`, section by section.
fn trained_keys(table: &Table, origin: &str) -> Result<Json> {
    Ok(config::train::Config::of(table.clone(), origin)?.written())
}

/// A value as TOML has it; nothing for one that is not given.
fn toml_of(value: &Json) -> Option<Value> {
    match value {
        Json::Null => None,
        Json::Object(table) => {
            Some(Value::Table(table.iter().filter_map(|(key, value)| Some((key.clone(), toml_of(value)?))).collect()))
        }
        Json::Array(list) => Some(Value::Array(list.iter().filter_map(toml_of).collect())),
        other => Value::try_from(other).ok(),
    }
}

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../", $name, ".rs")))),*] };
}

/// Where settings are defined.
static SOURCES: &[(&str, &str)] = sources![
    "config/mod",
    "apply/fine_tuning",
    "apply/lora",
    "apply/rome",
    "apply/memit",
    "apply/emmet",
    "apply/alphaedit",
    "apply/ultraedit",
    "apply/t_patcher",
    "apply/calinet",
    "apply/knowledge_neurons",
    "apply/ike",
    "apply/lookup",
    "apply/grace",
    "apply/wise",
    "apply/side_memory",
    "apply/association",
    "apply/contexts",
    "apply/value",
    "apply/tuning",
    "apply/patch",
    "train/mend/settings",
    "train/mend/mod",
    "train/malmen",
    "train/rledit",
    "train/ke",
    "train/enn",
    "train/serac/mod",
    "network/mend",
    "network/malmen",
    "network/normal_equations",
    "network/ke",
    "network/enn",
    "network/matrices",
    "network/serac/settings",
    "train/edit_loss",
    "train/text",
    "train/loss",
    "config/train",
    "train/settings",
    "train/schedule",
];

/// What a key does, as the documentation of its field says: of the method's own files first, of those of [`SOURCES`] then.
fn docs(method: &str, section: &str, key: &str) -> Option<String> {
    let method = if method.starts_with("ft-") { "fine_tuning" } else { method };
    let of = |method: &str, name: &str| {
        name.split('/').any(|part| part == method) || method == "wise" && name == "apply/side_memory"
    };
    let own = |name: &str| of(method, name);
    let of_section = |name: &str| match section {
        "data" => name == "config/train",
        "train" => name == "train/settings" || name == "train/schedule",
        "model" => name == "config/mod",
        _ => false,
    };
    // Another method's key of the same name may mean another thing.
    let others = |name: &str| SHIPPED.iter().any(|one| one.method != method && of(one.method, name));
    let rank = |name: &str| match name {
        _ if of_section(name) => 0,
        _ if own(name) => 1,
        _ if !others(name) => 2,
        // RLEdit and MALMEN have MEND's keys, for one.
        _ => 3,
    };
    let mut sources: Vec<_> = SOURCES.iter().collect();
    sources.sort_by_key(|(name, _)| rank(name));
    if key == "method" {
        return Some("The method.".into());
    }
    sources.iter().find_map(|(_, source)| doc_of(source, key))
}

/// The documentation above the field `key` in a file of Rust, in one line.
fn doc_of(source: &str, key: &str) -> Option<String> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let field = |line: &str| {
        let line = line.strip_prefix("pub(super) ").or(line.strip_prefix("pub ")).unwrap_or("");
        line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':'))
    };
    lines.iter().enumerate().filter(|(_, line)| field(line)).find_map(|(at, _)| {
        let above = lines[..at].iter().rev().take_while(|line| line.starts_with("///") || line.starts_with("#["));
        let mut doc: Vec<&str> = above.filter_map(|line| line.strip_prefix("///")).map(str::trim).collect();
        doc.reverse();
        (!doc.is_empty()).then(|| doc.join(" ").replace("[`", "`").replace("`]", "`"))
    })
}
