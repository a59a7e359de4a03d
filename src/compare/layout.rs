//! The files of a comparison, laid out as the ROME suite has them: `<method>/run_000/params.json` and `case_<id>.json`, so that
//! scripts written for it read them. What it has no place for stands under "emend".

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::edit::likelihood::Scored;
use crate::error::{Error, Result};
use crate::evaluate::case::Case;
use crate::evaluate::protocol::text::fluency;
use crate::evaluate::{Kind, ProbeRow};
use crate::files;

/// What a run is known by.
const FORMAT: &str = "case/1";

/// One run of one method.
#[derive(Debug, Clone)]
pub struct Run {
    /// `results/NAME/<method>/run_000`
    pub folder: PathBuf,
    /// params.json.
    pub params: Value,
}

/// A hash of all that decides what a case file holds: not where model and cases lie, which other numbers say better, nor what is said
/// of them.
pub fn digest(params: &Value) -> String {
    let mut decisive = params.clone();
    if let Some(decisive) = decisive.as_object_mut() {
        decisive.remove("archive");
    }
    for (section, key) in [("model", "path"), ("data", "path"), ("data", "note")] {
        if let Some(section) = decisive.get_mut(section).and_then(Value::as_object_mut) {
            section.remove(key);
        }
    }
    blake3::hash(decisive.to_string().as_bytes()).to_hex()[..16].to_owned()
}

impl Run {
    /// The runs in a method's folder, oldest first.
    fn all(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let number = |path: &Path| {
            let name = path.file_name()?.to_string_lossy().strip_prefix("run_")?.parse::<usize>().ok();
            name.filter(|_| path.is_dir())
        };
        let mut runs: Vec<(usize, PathBuf)> = entries.filter_map(|path| Some((number(&path)?, path))).collect();
        runs.sort();
        runs.into_iter().map(|(_, path)| path).collect()
    }

    /// Whether a folder is a method's: there is a run in it.
    pub fn any(folder: &Path) -> bool {
        !Run::all(folder).is_empty()
    }

    /// The last run of a method.
    ///
    /// # Errors
    /// There is none, or its params.json is broken.
    pub fn last(folder: &Path) -> Result<Self> {
        let Some(run) = Run::all(folder).pop() else {
            return Err(Error::file(folder, "no run here (no run_000); `emend compare --config FILE` makes one"));
        };
        let params = read_json(&run.join("params.json"))?;
        Ok(Run { folder: run, params })
    }

    /// The run to go on with: the last one where its parameters are these, else a new one.
    ///
    /// # Errors
    /// A folder that cannot be written; a run whose params.json is broken.
    pub fn continued(folder: &Path, params: Value) -> Result<Self> {
        let runs = Run::all(folder);
        if let Some(last) = runs.last() {
            let path = last.join("params.json");
            // A run that was killed before its first file has none.
            if !path.is_file() || digest(&read_json(&path)?) == digest(&params) {
                files::write(&path, format!("{params:#}\n").as_bytes())?;
                return Ok(Run { folder: last.clone(), params });
            }
        }
        let number = runs.last().and_then(|last| last.to_string_lossy().rsplit_once("run_")?.1.parse::<usize>().ok());
        let run = folder.join(format!("run_{:03}", number.map_or(0, |number| number + 1)));
        std::fs::create_dir_all(&run).map_err(Error::io(&run))?;
        files::write(&run.join("params.json"), format!("{params:#}\n").as_bytes())?;
        Ok(Run { folder: run, params })
    }

    /// The one run of a folder that several processes or a sweep share: the last one, which must have these parameters, or the first where there is none yet.
    ///
    /// # Errors
    /// A run with other parameters: what two configurations make does not belong together.
    pub fn shared(folder: &Path, params: Value) -> Result<Self> {
        if let Some(last) = Run::all(folder).last() {
            let path = last.join("params.json");
            if path.is_file() && digest(&read_json(&path)?) != digest(&params) {
                return Err(Error::file(
                    &path,
                    "these results are of another configuration, model or data, and here all must have one; give another --out",
                ));
            }
        }
        Run::continued(folder, params)
    }

    /// Where a case of an id lies.
    pub fn path(&self, id: &str) -> PathBuf {
        // Capitals are none: to some file systems they are small letters.
        let plain =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || matches!(letter, '-' | '_' | '.');
        let name = match id.chars().all(plain) && !id.is_empty() && id.len() < 100 {
            true => id.to_owned(),
            // An id that is no file name is known by its hash.
            false => blake3::hash(id.as_bytes()).to_hex()[..24].to_owned(),
        };
        self.folder.join(format!("case_{name}.json"))
    }

    /// Where the points of its curves lie.
    pub fn points(&self) -> PathBuf {
        self.folder.join("curves.json")
    }

    /// Writes a case, whole or not at all.
    ///
    /// # Errors
    /// A folder that cannot be written.
    pub fn write(&self, case: &Case) -> Result<()> {
        let text = case_json(case, &digest(&self.params)).to_string();
        files::write(&self.path(&case.id), text.as_bytes())
    }

    /// The cases of this run, by id.
    ///
    /// # Errors
    /// A file that is half-written, was changed by hand, or belongs to another run: it is named.
    pub fn cases(&self) -> Result<BTreeMap<String, Case>> {
        let digest = digest(&self.params);
        let entries = std::fs::read_dir(&self.folder).map_err(Error::io(&self.folder))?.flatten();
        let is_case = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("case_") && name.ends_with(".json")
        };
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_case).collect();
        paths.sort();
        let device = burn::tensor::Device::flex();
        let parts = paths.chunks(paths.len().div_ceil(crate::parallel::parts(&device)).max(1)).collect();
        let read = crate::parallel::run(parts, |paths: &[PathBuf]| {
            paths.iter().map(|path| Ok((path.clone(), read_case(path, &digest)?))).collect::<Result<Vec<_>>>()
        })?;
        let mut cases: BTreeMap<String, Case> = BTreeMap::new();
        for (path, case) in read.into_iter().flatten() {
            if self.path(&case.id) != path {
                let message = format!(
                    "case \"{}\" belongs into {}; give the file its name back",
                    case.id,
                    self.path(&case.id).display()
                );
                return Err(Error::file(&path, message));
            }
            cases.insert(case.id.clone(), case);
        }
        Ok(cases)
    }
}

/// A case file: what ROME's scripts read, made from what stands under "emend".
#[derive(Deserialize)]
struct File {
    case_id: Value,
    num_edits: Value,
    requested_rewrite: Value,
    time: Value,
    post: Value,
    pre: Value,
    emend: Own,
}

#[derive(Deserialize)]
struct Own {
    format: String,
    run: String,
    case: Case,
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = files::read(path)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::file(path, format!("not JSON: {error}")))
}

fn read_case(path: &Path, digest: &str) -> Result<Case> {
    let bytes = files::read(path)?;
    let remedy = "remove the file and run the comparison again";
    let file: File = serde_json::from_slice(&bytes)
        .map_err(|error| Error::file(path, format!("no case of a comparison ({error}); {remedy}")))?;
    let own = &file.emend;
    if own.format != FORMAT {
        return Err(Error::file(path, format!("format {}; this program reads {FORMAT}; {remedy}", own.format)));
    }
    if own.run != digest {
        return Err(Error::file(path, format!("a case of another run ({}, this is {digest}); {remedy}", own.run)));
    }
    check(&file).map_err(|what| Error::file(path, format!("{what}: changed by hand? {remedy}")))?;
    Ok(file.emend.case)
}

/// What a file says twice it must say alike, and its tables must fit each other.
fn check(file: &File) -> Result<(), String> {
    let case = &file.emend.case;
    let whole = |scored: &Scored| {
        let tokens = scored.target.len();
        tokens > 0 && scored.log_probabilities.len() == tokens
    };
    for (number, row) in case.rows.iter().enumerate().chain(case.right_after.iter().enumerate()) {
        let rival = row.rival.iter().flat_map(|rival| [&rival.before, &rival.after]);
        if ![&row.before, &row.after].into_iter().chain(rival).all(whole) {
            return Err(format!("probe {number} has not a number for every token"));
        }
    }
    if case.answers.iter().any(|answer| answer.row >= case.rows.len()) {
        return Err("an answer to a probe that is not there".into());
    }
    let told = [&file.case_id, &file.num_edits, &file.requested_rewrite, &file.time, &file.post, &file.pre];
    match rome(case).iter().zip(told).find(|((_, own), told)| !alike(told, own)) {
        Some(((key, _), _)) => Err(format!("\"{key}\" differs from what stands under \"emend\"")),
        None => Ok(()),
    }
}

/// Whether two values are the same but for the last digits of numbers.
fn alike(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| alike(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            // A list without an entry may be left out.
            let told = |map: &Map<String, Value>| map.values().filter(|value| **value != json!([])).count();
            told(a) == told(b) && b.iter().all(|(key, b)| a.get(key).is_some_and(|a| alike(a, b)))
        }
        (Value::Number(a), Value::Number(b)) => match (a.as_f64(), b.as_f64()) {
            // A number that is not finite is written in more than one way.
            (Some(a), Some(b)) if a > 1e30 && b > 1e30 => true,
            (Some(a), Some(b)) => (a - b).abs() <= 1e-6 * a.abs().max(b.abs()).max(1e-6),
            _ => false,
        },
        (a, b) => a == b,
    }
}

fn post(case: &Case) -> Value {
    let mut side = side(case, |row| &row.after, |row| row.rival.as_ref().map(|rival| &rival.after));
    if let Some(entropy) = fluency(case.texts.iter().map(|text| [text.prompt.as_str(), text.after.as_str()])) {
        side.insert("ngram_entropy".into(), entropy.into());
        let texts: Vec<String> = case.texts.iter().map(|text| format!("{}{}", text.prompt, text.after)).collect();
        side.insert("text".into(), texts.into());
    }
    Value::Object(side)
}

fn pre(case: &Case) -> Value {
    Value::Object(side(case, |row| &row.before, |row| row.rival.as_ref().map(|rival| &rival.before)))
}

fn case_json(case: &Case, run: &str) -> Value {
    let mut file: Map<String, Value> = rome(case).into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    file.insert("emend".into(), json!({"format": FORMAT, "run": run, "case": case}));
    Value::Object(file)
}

/// What the ROME suite's scripts read, in the order of [`File`].
fn rome(case: &Case) -> [(&'static str, Value); 6] {
    let request = &case.request;
    let prompt = request.template.clone().unwrap_or_else(|| match &request.subject {
        Some(subject) => request.prompt.replacen(subject, "{}", 1),
        None => request.prompt.clone(),
    });
    [
        ("case_id", case.id.parse::<u64>().map_or_else(|_| json!(case.id), |id| json!(id))),
        ("num_edits", json!(case.edits)),
        (
            "requested_rewrite",
            json!({
                "prompt": prompt,
                "subject": request.subject,
                "target_new": {"str": request.target_new},
                "target_true": {"str": request.target_true},
            }),
        ),
        ("time", json!(case.seconds.get("edit"))),
        ("post", post(case)),
        ("pre", pre(case)),
    ]
}

/// The figures that the ROME suite's scripts read: negative log-likelihoods a token of both answers, and whether the right one is the
/// likeliest at every token.
fn side<'a>(
    case: &'a Case,
    of: impl Fn(&'a ProbeRow) -> &'a Scored,
    rival: impl Fn(&'a ProbeRow) -> Option<&'a Scored>,
) -> Map<String, Value> {
    let mut side = Map::new();
    // A number that is not finite has no form in JSON: a likelihood of nothing stands for it.
    let plain = |nll: f64| if nll.is_finite() { nll } else { f64::MAX };
    for (kind, name) in [(Kind::Rewrite, "rewrite"), (Kind::Rephrase, "paraphrase"), (Kind::Locality, "neighborhood")] {
        // Where some have a rival the others are no neighbors in the suite's sense.
        let against = case.rows.iter().any(|row| row.kind == kind && row.rival.is_some());
        let rows = || case.rows.iter().filter(|row| row.kind == kind && (row.rival.is_some() || !against));
        let rivals: Vec<_> = rows().filter_map(|row| Some((plain(of(row).nll()), plain(rival(row)?.nll())))).collect();
        let probs: Vec<Value> = rivals
            .into_iter()
            .map(|(right, wrong)| match kind {
                Kind::Locality => json!({"target_true": right, "target_new": wrong}),
                _ => json!({"target_new": right, "target_true": wrong}),
            })
            .collect();
        let correct: Vec<Value> = rows().map(|row| json!(of(row).exact())).collect();
        // The scripts take the mean of a list that is there: an empty one would make all their means NaN.
        for (name, list) in [(format!("{name}_prompts_probs"), probs), (format!("{name}_prompts_correct"), correct)] {
            if !list.is_empty() {
                side.insert(name, list.into());
            }
        }
    }
    side
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::record::EditRecord;
    use crate::edit::EditRequest;
    use crate::evaluate::case::Size;

    fn scored(log_probabilities: &[f32]) -> Scored {
        let tokens: Vec<u32> = (0..log_probabilities.len() as u32).collect();
        Scored { target: tokens.clone(), log_probabilities: log_probabilities.into(), argmax: tokens, text: None }
    }

    fn case(id: &str, after: &[f32]) -> Case {
        let row = ProbeRow {
            record: 0,
            described: false,
            kind: Kind::Rewrite,
            class: None,
            prompt: "A lies in".into(),
            target: "B".into(),
            given: true,
            aliases: vec![],
            test: None,
            separator: None,
            lowered: false,
            apart: false,
            before: scored(&[-0.1, -0.7]),
            after: scored(after),
            rival: Some(crate::evaluate::probes::Rival {
                target: "C".into(),
                before: scored(&[-0.3]),
                after: scored(&[-1e-7]),
            }),
        };
        let record = EditRecord { id: id.into(), ..EditRecord::default() };
        Case {
            request: EditRequest::new("A lies in", "B"),
            rows: vec![row],
            seconds: BTreeMap::from([("edit".to_owned(), 0.1)]),
            peak_memory_bytes: 1,
            size: Size { norm: f64::INFINITY, relative: f64::NAN, ..Size::default() },
            ..Case::new(&record, 1)
        }
    }

    #[test]
    fn a_case_of_a_ruined_model_can_be_read_again() {
        let place = tempfile::tempdir().unwrap();
        let run = Run::continued(&place.path().join("ft"), json!({"seed": 0})).unwrap();
        run.write(&case("1", &[f32::NAN, -0.5])).unwrap();
        run.write(&case("2", &[f32::NEG_INFINITY, -0.5])).unwrap();
        let cases = run.cases().unwrap();
        let of = |id: &str| cases[id].rows[0].after.log_probabilities.clone();
        assert!(of("1")[0].is_nan() && of("1")[1] == -0.5);
        assert_eq!(of("2"), [f32::MIN, -0.5]);
        assert!(cases["1"].size.norm.is_nan() && cases["1"].size.relative.is_nan());
        // What ROME's scripts read are numbers.
        let file = read_json(&run.path("1")).unwrap();
        assert_eq!(file["post"]["rewrite_prompts_probs"][0]["target_new"], f64::MAX);
        assert_eq!(file["post"].as_object().unwrap().len(), 2);
    }

    #[test]
    fn ids_have_files_of_their_own() {
        let run = Run { folder: "run_000".into(), params: Value::Null };
        let ids = ["a", "A", "a/b", "a b", "", "é", "..", &"x".repeat(300)];
        let paths: std::collections::BTreeSet<String> =
            ids.iter().map(|id| run.path(id).to_string_lossy().to_lowercase()).collect();
        assert_eq!(paths.len(), ids.len());
        assert_eq!(run.path("12"), Path::new("run_000/case_12.json"));
        assert!(paths.iter().all(|path| path.starts_with("run_000/case_") && path.len() < 130));
    }

    #[test]
    fn the_thousandth_run_is_the_last() {
        let place = tempfile::tempdir().unwrap();
        for number in ["run_999", "run_1000", "run_x"] {
            std::fs::create_dir(place.path().join(number)).unwrap();
        }
        std::fs::write(place.path().join("run_1000/params.json"), "{\"seed\": 1}").unwrap();
        assert!(Run::last(place.path()).unwrap().folder.ends_with("run_1000"));
        assert!(Run::continued(place.path(), json!({"seed": 2})).unwrap().folder.ends_with("run_1001"));
    }
}
