//! What runs must have in common so that their figures may stand side by side: all in params.json that decides a figure and belongs
//! to no editor. Where runs of one folder differ in it, that is said, and figures that it decides are in no order.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::document::Entry;
use crate::evaluate::Protocol;
use crate::evaluate::protocol::efficiency::PEAK;

/// Something that decides figures.
struct Deciding {
    /// What it is called.
    name: &'static str,
    /// Where params.json has it.
    path: &'static [&'static str],
    /// Whether a number depends on it.
    decides: fn(Protocol, &str) -> bool,
}

const MODEL: &str = "model";
const PRECISION: &str = "precision";
const DATA: &str = "data";
const REPHRASES: &str = "data.rephrases";
const PER_CLASS: &str = "data.per_class";

const DECIDING: [Deciding; 13] = [
    Deciding { name: MODEL, path: &["model", "fingerprint"], decides: every },
    Deciding { name: PRECISION, path: &["model", "dtype"], decides: every },
    Deciding { name: DATA, path: &["data", "hash"], decides: every },
    Deciding { name: REPHRASES, path: &["data", "rephrases"], decides: every },
    Deciding { name: PER_CLASS, path: &["data", "per_class"], decides: every },
    Deciding { name: "mode", path: &["mode"], decides: every },
    Deciding { name: "what is looked at", path: &["looks"], decides: every },
    Deciding { name: "version", path: &["version"], decides: every },
    Deciding { name: "compare.generate", path: &["generate"], decides: free_answers },
    Deciding { name: "compare.texts", path: &["texts"], decides: written },
    Deciding { name: "compare.seed", path: &["seed"], decides: written },
    Deciding { name: "compare.perplexity", path: &["perplexity"], decides: read },
    Deciding { name: "compare.text", path: &["text"], decides: read },
];

fn every(_: Protocol, _: &str) -> bool {
    true
}

/// Whatever is looked at takes time and memory.
fn of_looking(protocol: Protocol, name: &str) -> bool {
    protocol == Protocol::Efficiency && (name == "seconds/evaluation" || name == PEAK)
}

fn free_answers(protocol: Protocol, name: &str) -> bool {
    protocol == Protocol::Generate && name != "fluency" || of_looking(protocol, name)
}

/// Texts that models write are drawn.
fn written(protocol: Protocol, name: &str) -> bool {
    matches!(name, "fluency" | "reference_score" | "essence" | "essence_rise") || of_looking(protocol, name)
}

/// The text whose perplexity is taken.
fn read(protocol: Protocol, name: &str) -> bool {
    name.starts_with("perplexity") || of_looking(protocol, name)
}

fn none(_: Protocol, _: &str) -> bool {
    false
}

/// Something in which the runs of a folder differ.
pub struct Unlike {
    /// What it is called.
    name: &'static str,
    decides: fn(Protocol, &str) -> bool,
    /// What it is, and in whose runs.
    groups: Vec<(String, Vec<String>)>,
}

impl Unlike {
    /// Whether a number depends on it.
    pub fn decides(&self, protocol: Protocol, name: &str) -> bool {
        (self.decides)(protocol, name)
    }

    /// Whether the unedited model says something else, or is asked something else, because of it.
    pub fn of_the_unedited(&self) -> bool {
        [MODEL, PRECISION, REPHRASES, PER_CLASS].contains(&self.name)
    }

    /// Whether it stands in a section of params.json.
    pub fn in_section(&self, section: &str) -> bool {
        DECIDING.iter().any(|deciding| deciding.name == self.name && deciding.path[0] == section)
    }

    /// The difference in a sentence.
    pub fn sentence(&self) -> String {
        let groups = self.groups.iter().map(|(value, methods)| format!("{value} ({})", methods.join(", ")));
        let groups = groups.collect::<Vec<_>>().join("; ");
        format!("not alike in {}: {groups}; figures that depend on it do not compare and carry no mark", self.name)
    }

    /// The difference as a document has it.
    pub fn json(&self) -> Value {
        let groups = self.groups.iter().map(|(value, methods)| json!({"value": value, "methods": methods}));
        json!({"what": self.name, "groups": groups.collect::<Vec<_>>(), "told": self.sentence()})
    }
}

/// All in which the runs of some editors differ.
pub fn unlike(entries: &[Entry]) -> Vec<Unlike> {
    let mut found: Vec<Unlike> = vec![];
    for deciding in &DECIDING {
        let values = entries.iter().map(|entry| (at(&entry.params, deciding.path).to_string(), entry));
        let groups = grouped(values, |entry| shown(deciding, &entry.params));
        if groups.len() > 1 {
            found.push(Unlike { name: deciding.name, decides: deciding.decides, groups });
        }
    }
    // Points of curves at the same number of edits were made of the same edits and read on the same text.
    let mut points: BTreeMap<(&str, usize), Vec<(String, &Entry)>> = BTreeMap::new();
    for (entry, point) in entries.iter().flat_map(|entry| entry.points.iter().map(move |point| (entry, point))) {
        points.entry((&point.mode, point.edits)).or_default().push((point.made_of.clone(), entry));
    }
    let groups = points.into_values().map(|values| {
        let made_of: BTreeMap<&str, String> =
            values.iter().map(|(made_of, entry)| (entry.name.as_str(), made_of.clone())).collect();
        grouped(values.into_iter(), |entry| made_of[entry.name.as_str()].clone())
    });
    if let Some(groups) = groups.max_by_key(Vec::len).filter(|groups| groups.len() > 1) {
        found.push(Unlike { name: "the edits or the text of the curves", decides: none, groups });
    }
    found
}

/// Names of editors by value, in the order of the editors; what is shown of a value is its first editor's.
fn grouped<'a>(
    values: impl Iterator<Item = (String, &'a Entry)>,
    shown: impl Fn(&Entry) -> String,
) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, String, Vec<String>)> = vec![];
    for (value, entry) in values {
        match groups.iter_mut().find(|(known, ..)| *known == value) {
            Some((.., names)) => names.push(entry.name.clone()),
            None => groups.push((value, shown(entry), vec![entry.name.clone()])),
        }
    }
    groups.into_iter().map(|(_, shown, names)| (shown, names)).collect()
}

fn at<'a>(params: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(params, |value, key| &value[*key])
}

/// A value as people know it.
fn shown(deciding: &Deciding, params: &Value) -> String {
    let plain = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    let value = plain(at(params, deciding.path));
    match deciding.name {
        MODEL => format!("{} {value}", plain(&params["model"]["path"])),
        DATA => format!("{} records of {} {value}", plain(&params["data"]["records"]), plain(&params["data"]["path"])),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, params: Value) -> Entry {
        Entry { name: name.into(), params, cases: vec![], points: vec![] }
    }

    #[test]
    fn what_decides_a_figure_is_compared() {
        let params = json!({
            "model": {"path": "a", "fingerprint": "1", "dtype": "f32"}, "settings": {"steps": 1}, "mode": "single", "seed": 0,
            "data": {"path": "x.json", "records": 3, "hash": "2", "rephrases": 4, "per_class": 2}, "text": "3", "perplexity": 1,
        });
        let mut other = params.clone();
        // Neither where files lie nor an editor's own settings.
        (other["model"]["path"], other["data"]["path"]) = (json!("b"), json!("y.json"));
        other["settings"]["steps"] = json!(2);
        assert!(unlike(&[entry("ft", params.clone()), entry("rome", other.clone())]).is_empty());
        for (pointer, name, score, perplexity) in [
            ("/model/fingerprint", "model", true, true),
            ("/model/dtype", "precision", true, true),
            ("/data/hash", "data", true, true),
            ("/data/rephrases", "data.rephrases", true, true),
            ("/data/per_class", "data.per_class", true, true),
            ("/mode", "mode", true, true),
            ("/text", "compare.text", false, true),
            ("/perplexity", "compare.perplexity", false, true),
            ("/seed", "compare.seed", false, false),
        ] {
            let mut changed = other.clone();
            *changed.pointer_mut(pointer).unwrap() = json!("else");
            let found = unlike(&[entry("ft", params.clone()), entry("rome", changed), entry("mend", params.clone())]);
            assert_eq!(found.len(), 1, "{pointer}");
            let told = found[0].sentence();
            assert!(told.starts_with(&format!("not alike in {name}: ")) && told.contains("(ft, mend)"), "{told}");
            assert!(told.contains("(rome)"), "{told}");
            assert_eq!(found[0].decides(Protocol::Counterfact, "score"), score, "{pointer}");
            assert_eq!(found[0].decides(Protocol::Mend, "perplexity_drawdown"), perplexity, "{pointer}");
            assert_eq!(found[0].decides(Protocol::Counterfact, "fluency"), score || pointer == "/seed", "{pointer}");
        }
        // What only one run has is a difference too.
        let mut more = params.clone();
        more["texts"] = json!(2);
        assert!(unlike(&[entry("ft", params), entry("rome", more)])[0].sentence().contains("none (ft); 2 (rome)"));
    }
}
