//! A file of records, of whatever form, as edit records.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};

use super::error::DataError;
use super::form::{Form, Sure};
use super::json::{Json, Object};
use super::problem::{Problem, quoted};
use super::record::EditRecord;
use super::sheet;
use super::vitaminc;

/// What stands for standard input in the place of a file. (A file of this name is `./-`.)
pub(super) const STANDARD_INPUT: &str = "-";

/// Reads a JSON array of records, one record a line, or a CSV or TSV table; `-` reads standard input.
///
/// The keys of the first record tell the form of the file: emend's own, CounterFact (ROME's or EasyEdit's), zsRE (MEND's
/// or KE's), KnowEdit, VitaminC, FEVER (KE's) or ConvSent; later records must fit it. Records of published files that hold
/// nothing to edit are left out with a warning, and the others keep their index.
pub fn load_records(path: &Path) -> Result<Vec<EditRecord>, DataError> {
    Ok(load_with_form(path)?.1)
}

/// The same with the form that the first record has.
///
/// # Errors
/// As [`load_records`].
pub fn load_with_form(path: &Path) -> Result<(Option<Form>, Vec<EditRecord>), DataError> {
    if path == Path::new(STANDARD_INPUT) {
        return from_reader(Path::new("standard input"), std::io::stdin().lock());
    }
    let unreadable = |source| DataError::Unreadable { file: path.to_owned(), source };
    if !fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(DataError::NotAFile { file: path.to_owned() });
    }
    parse(path, &fs::read(path).map_err(unreadable)?)
}

/// One record in emend's own form, the text of a JSON object; `origin` names its place in errors.
///
/// # Errors
/// A text that is not JSON, or not one record.
pub fn own_record(text: &str, origin: &str) -> Result<EditRecord, DataError> {
    let mut reader = Reader { form: Some(Form::Own), ..Reader::new(Path::new(origin)) };
    reader.lines(text)?;
    let mut records = reader.finish()?;
    Ok(records.remove(0))
}

/// Reads to the end; `origin` names the records' place in errors.
fn from_reader(origin: &Path, mut reader: impl Read) -> Result<(Option<Form>, Vec<EditRecord>), DataError> {
    let mut bytes = vec![];
    reader.read_to_end(&mut bytes).map_err(|source| DataError::Unreadable { file: origin.to_owned(), source })?;
    parse(origin, &bytes)
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(Option<Form>, Vec<EditRecord>), DataError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| DataError::NotUtf8 { file: path.to_owned(), byte: error.valid_up_to() })?;
    // Some editors put a byte order mark before the text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader::new(path);
    match text.trim_start().chars().next() {
        None => {}
        Some('[') => reader.array(text)?,
        Some('{') => reader.lines(text)?,
        Some(_) if sheet::is_sheet(text) || named_as_sheet(path) => {
            sheet::read(path, text, |record| reader.add(record))?
        }
        Some(_) => reader.neither(text)?,
    }
    Ok((reader.form, reader.finish()?))
}

/// So many unknown keys are named at most.
const MOST_STRANGE: usize = 20;

/// Whether a file's name says that it is a table.
fn named_as_sheet(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("csv") || kind.eq_ignore_ascii_case("tsv"))
}

/// Collects records one by one, so that the JSON of only one is held at a time.
struct Reader<'f> {
    file: &'f Path,
    form: Option<Form>,
    records: Vec<EditRecord>,
    /// How many records were met.
    count: usize,
    /// How many of them hold nothing to edit.
    left_out: usize,
    /// Keys that the form does not have.
    strange: BTreeSet<String>,
}

impl<'f> Reader<'f> {
    fn new(file: &'f Path) -> Self {
        Self { file, form: None, records: Vec::new(), count: 0, left_out: 0, strange: BTreeSet::new() }
    }

    fn array(&mut self, text: &str) -> Result<(), DataError> {
        let mut json = serde_json::Deserializer::from_str(text);
        let mut failure = None;
        let items = Items { reader: self, failure: &mut failure };
        let outcome = items.deserialize(&mut json).and_then(|()| json.end());
        match failure {
            Some(failure) => Err(failure),
            None => outcome.map_err(|error| self.not_json(&error)),
        }
    }

    fn lines(&mut self, text: &str) -> Result<(), DataError> {
        for record in serde_json::Deserializer::from_str(text).into_iter() {
            let record = record.map_err(|error| self.not_json(&error))?;
            self.add(record)?;
        }
        Ok(())
    }

    fn neither(&self, text: &str) -> Result<(), DataError> {
        match serde_json::from_str::<Json>(text) {
            Ok(json) => Err(DataError::NotRecords { file: self.file.to_owned(), found: json.kind() }),
            Err(error) => Err(self.not_json(&error)),
        }
    }

    fn add(&mut self, json: Json) -> Result<(), DataError> {
        let index = self.count;
        self.count += 1;
        let record = json.object().map_err(|problem| self.wrong(index, None, problem))?;
        let id = own_id(&record).map_err(|problem| self.wrong(index, None, problem))?;
        let seen = Form::detect(&record);
        let form = match (self.form, seen) {
            (Some(form), _) | (None, Some((form, _))) => form,
            (None, None) => return Err(self.unknown(&record)),
        };
        self.form = Some(form);
        if let Some((other, Sure::Yes)) = seen
            && other != form
        {
            return Err(self.wrong(index, id, mixture(other, form)));
        }
        if self.strange.len() < MOST_STRANGE {
            self.strange.extend(form.strange(&record).map(str::to_owned));
        }
        let name = id.clone().unwrap_or_else(|| index.to_string());
        match form.read(record, name) {
            Ok(records) => {
                self.left_out += usize::from(records.is_empty());
                self.records.extend(records);
                Ok(())
            }
            Err(problem) => {
                let problem = match seen {
                    Some((other, _)) if other != form => mixture(other, form),
                    _ => problem,
                };
                Err(self.wrong(index, id, problem))
            }
        }
    }

    fn finish(mut self) -> Result<Vec<EditRecord>, DataError> {
        let file = self.file;
        if self.form == Some(Form::VitaminC) {
            // Only here are all lines of one evidence known.
            self.records = vitaminc::merge(self.records);
            self.count = self.records.len();
            self.records.retain(|record| !record.target_new.is_empty());
            self.left_out = self.count - self.records.len();
        }
        if self.records.is_empty() {
            return Err(DataError::Empty { file: file.to_owned() });
        }
        if self.left_out > 0 {
            tracing::warn!(
                "{}: {} of {} records name no new answer and are left out",
                file.display(),
                self.left_out,
                self.count
            );
        }
        if let (Some(form), false) = (self.form, self.strange.is_empty()) {
            let keys: Vec<String> = self.strange.iter().take(MOST_STRANGE).map(|key| quoted(key)).collect();
            tracing::warn!(
                "{}: keys that {} does not have are not read: {}",
                file.display(),
                form.name(),
                keys.join(", ")
            );
        }
        // Facts to trace are no edits.
        let edits = self.form != Some(Form::Known);
        // What is to become less likely, or likelier under noise, is the old answer.
        let changes_nothing = |record: &EditRecord| record.changes_nothing() && record.objective.is_none();
        if let Some(first) = self.records.iter().find(|record| edits && changes_nothing(record)) {
            tracing::warn!(
                "{}: {} of {} records have the new answer as the old one too (the first is record {}: \"{}\"); nothing shows whether \
                 such an edit was made, and their probes are in no figure of counterfact",
                file.display(),
                self.records.iter().filter(|record| changes_nothing(record)).count(),
                self.records.len(),
                first.id.escape_debug(),
                first.target_new.escape_debug()
            );
        }
        Ok(self.records)
    }

    fn wrong(&self, record: usize, id: Option<String>, problem: Problem) -> DataError {
        DataError::Record { file: self.file.to_owned(), record, id, problem: problem.to_string() }
    }

    fn unknown(&self, record: &Object) -> DataError {
        const SHOWN: usize = 20;
        let mut keys: Vec<String> = record.keys().take(SHOWN).map(quoted).collect();
        match record.keys().count() {
            0 => keys.push("none".to_owned()),
            count if count > SHOWN => keys.push("...".to_owned()),
            _ => {}
        }
        DataError::UnknownForm { file: self.file.to_owned(), keys: keys.join(", "), forms: Form::list() }
    }

    fn not_json(&self, error: &serde_json::Error) -> DataError {
        let text = error.to_string();
        // The place stands in front of the line already.
        let place = format!(" at line {} column {}", error.line(), error.column());
        DataError::NotJson {
            file: self.file.to_owned(),
            line: error.line(),
            column: error.column().max(1),
            problem: text.strip_suffix(&place).unwrap_or(&text).to_owned(),
        }
    }
}

fn mixture(found: Form, first: Form) -> Problem {
    Problem::new(format!(
        "has the form {}, but the first record has the form {}; a file holds records of one form",
        found.name(),
        first.name()
    ))
}

/// The id that the record itself carries.
fn own_id(record: &Object) -> Result<Option<String>, Problem> {
    for key in ["case_id", "id", "known_id"] {
        match record.get(key) {
            None | Some(Json::Null) => {}
            Some(Json::Number(id)) => return Ok(Some(id.clone())),
            Some(Json::Text(id)) if !id.trim().is_empty() => return Ok(Some(id.trim().to_owned())),
            Some(Json::Text(_)) => return Err(Problem::new("is empty; leave it out").within(key)),
            Some(other) => {
                let problem = format!("is {}; it should be a string or a number", other.kind());
                return Err(Problem::new(problem).within(key));
            }
        }
    }
    Ok(None)
}

/// Feeds the items of an array to a reader as they are parsed. What the reader objects to is put into `failure`,
/// because serde's own errors are text.
struct Items<'r, 'f> {
    reader: &'r mut Reader<'f>,
    failure: &'r mut Option<DataError>,
}

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str("an array of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(record) = items.next_element()? {
            if let Err(failure) = self.reader.add(record) {
                *self.failure = Some(failure);
                return Err(A::Error::custom("a record is wrong"));
            }
        }
        Ok(())
    }
}

/// What the tests of every form use.
#[cfg(test)]
pub(super) mod testing {
    use super::*;

    pub fn load(text: &str) -> Result<Vec<EditRecord>, DataError> {
        Ok(parse(Path::new("facts.json"), text.as_bytes())?.1)
    }

    /// The one record of a text.
    pub fn load_one(text: &str) -> EditRecord {
        let mut records = load(text).unwrap();
        assert_eq!(records.len(), 1);
        records.remove(0)
    }

    /// The error without the name of the file.
    pub fn problem(text: &str) -> String {
        let error = load(text).unwrap_err().to_string();
        assert!(!error.contains('\n'), "{error}");
        error.strip_prefix("facts.json: ").unwrap().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{load, problem};
    use super::*;

    const OWN: &str = r#"{"prompt": "Orrin is", "target_new": "b"}"#;
    const ZSRE: &str = r#"{"src": "Is Orrin?", "alt": "b", "subject": "Orrin", "answers": ["c"]}"#;

    #[test]
    fn an_array_and_lines_are_the_same() {
        let array = load(&format!("\u{feff} [{OWN},\n{OWN}]\n")).unwrap();
        let lines = load(&format!("\n{OWN}\r\n\n{OWN}\n")).unwrap();
        assert_eq!(array, lines);
        assert_eq!(array[1].id, "1");
    }

    #[test]
    fn text_that_is_not_json_is_placed() {
        assert_eq!(problem(&format!("[{OWN},\n{{\"prompt\": x}}]")), "line 2, column 12: not JSON: expected value");
        assert_eq!(
            problem(&format!("{OWN}\n{OWN}\n{{\"prompt\"")),
            "line 3, column 9: not JSON: EOF while parsing an object"
        );
        assert_eq!(
            problem(&format!("[{OWN}] x")),
            format!("line 1, column {}: not JSON: trailing characters", OWN.len() + 4)
        );
        assert!(problem("prompt, target\n").starts_with("line 1, column 1: not JSON"));
        assert!(problem(&"[".repeat(100_000)).contains("recursion limit"));
        assert!(problem(r#"{"prompt": "a", "prompt": "b"}"#).contains(r#"the key "prompt" occurs twice"#));
    }

    #[test]
    fn files_without_records_are_refused() {
        for text in ["", " \n", "[]", "\u{feff}"] {
            assert_eq!(
                problem(text),
                "holds no records; a file of records is a JSON array of objects, one object a line, or a CSV or TSV table with a header"
            );
        }
        assert!(problem("\"text\"").starts_with("holds a string; a file of records is"));
        assert!(problem("[[1]]").contains("record 0: is a list; it should be an object"));
        assert!(problem(&format!("[{OWN}, null]")).contains("record 1: is null; it should be an object"));
    }

    #[test]
    fn bytes_that_are_not_utf8_are_placed() {
        let error = parse(Path::new("facts.json"), b"[\"a\xff\"]").unwrap_err();
        assert_eq!(error.to_string(), "facts.json: byte 3 is not UTF-8; save the file as UTF-8");
    }

    #[test]
    fn an_unknown_form_names_its_keys_and_the_known_forms() {
        let error = problem(r#"{"question": "a", "answer": "b"}"#);
        assert!(
            error.starts_with(
                "record 0 has no known form: its keys are \"question\", \"answer\"; known forms are emend's own"
            ),
            "{error}"
        );
        assert!(error.contains("KnowEdit") && error.contains("KE"), "{error}");
        assert!(problem("{}").contains("its keys are none;"));
        // Mostly strange keys: rather no known form than a misspelt key.
        assert!(problem(r#"{"prompt": "a", "b": 1, "c": 2}"#).contains("no known form"));
    }

    #[test]
    fn later_records_must_have_the_form_of_the_first() {
        for text in [format!("[{OWN}, {ZSRE}]"), format!("[{ZSRE}, {OWN}]")] {
            let error = problem(&text);
            assert!(error.starts_with("record 1: has the form "), "{error}");
            assert!(error.contains("but the first record has the form "), "{error}");
        }
        let knowedit = r#"{"prompt": "Orrin is", "subject": "Orrin", "target_new": "b", "ground_truth": "c"}"#;
        let own = r#"{"prompt": "Orrin is", "subject": "Orrin", "target_new": "b", "rephrases": []}"#;
        assert!(problem(&format!("[{knowedit}, {own}]")).contains("has the form emend's own"));
        // One that lacks the optional keys which told the form still fits it.
        let less = r#"{"prompt": "Orrin is", "subject": "Orrin", "target_new": "b"}"#;
        assert_eq!(load(&format!("[{knowedit}, {less}]")).unwrap().len(), 2);
    }

    #[test]
    fn errors_of_a_record_name_its_index_and_id() {
        let text = format!(r#"[{OWN}, {{"prompt": "a", "id": 4021}}]"#);
        assert_eq!(problem(&text), r#"record 1 (id 4021): "target_new" is missing; every record needs a target"#);
    }

    #[test]
    fn an_id_with_a_line_break_stays_on_the_line() {
        assert!(problem(r#"{"id": "a\nb", "prompt": "c"}"#).starts_with(r"record 0 (id a\nb): "));
    }

    #[test]
    fn files_are_read_and_folders_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("facts.jsonl");
        fs::write(&file, OWN).unwrap();
        assert_eq!(load_records(&file).unwrap().len(), 1);
        let error = load_records(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is not a regular file"), "{error}");
        let error = load_records(&folder.path().join("none.json")).unwrap_err();
        assert!(error.to_string().contains("none.json: cannot be read: "), "{error}");
    }

    #[test]
    fn what_comes_from_a_pipe_is_named_so() {
        let read = |text: &str| from_reader(Path::new("standard input"), text.as_bytes());
        assert_eq!(read(OWN).unwrap().1, load(OWN).unwrap());
        assert!(read("").unwrap_err().to_string().starts_with("standard input: holds no records"));
        assert!(read("[x]").unwrap_err().to_string().starts_with("standard input: line 1, column 2: not JSON"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = parse(Path::new("facts.json"), &bytes);
        }

        /// Any value under any key: a result or one line, never a panic.
        #[test]
        fn no_value_makes_a_panic(
            value in r#"(null|true|-1.5e3|""|"\{\}"|\[\]|\[\[""\]\]|\{\}|\[\{"prompt":1\}\])"#,
            key in "(id|subject|target_true|ground_truth|locality|src|input|requested_rewrite|locality_prompt)",
        ) {
            let text = format!(r#"{{"prompt": "Orrin is", "target_new": "b", "{key}": {value}}}"#);
            if let Err(error) = load(&text) {
                prop_assert!(!error.to_string().contains('\n'));
            }
        }
    }
}
