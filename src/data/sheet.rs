//! Facts as people keep them in spreadsheets: CSV or TSV with a header.

use std::borrow::Cow;
use std::path::Path;

use csv::{Reader, ReaderBuilder, StringRecord};

use super::error::DataError;
use super::json::{Json, Object, is_blank};
use super::own::nearest;
use super::problem::quoted;

/// What parts the cells of a line.
const DELIMITERS: [char; 4] = [',', '\t', ';', '|'];

/// Columns with one text.
const TEXTS: [&str; 8] =
    ["id", "prompt", "target_new", "subject", "target_true", "relation", "descriptor", "separator"];

/// Columns that may stand several times; the answer to a probe stands in the column behind it.
const LISTS: [(&str, &str); 4] =
    [("rephrase", "rephrases"), ("alias", "aliases"), ("locality", "locality"), ("portability", "portability")];
const ANSWER: &str = "_target";

/// What a column `separator` says for nothing: a cell without text says nothing at all.
const NONE: &str = "none";

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Column {
    Text(&'static str),
    /// A probe of this list.
    Item(&'static str),
    /// The answer to the last probe.
    Answer(&'static str),
    /// A column without a name.
    Nothing,
}

/// Whether a text is such a table: by its header.
pub(super) fn is_sheet(text: &str) -> bool {
    delimiter(table(text)).is_some()
}

/// The table without empty lines before it, and without Excel's line `sep=;`.
fn table(text: &str) -> &str {
    let text = text.trim_start_matches(['\n', '\r']);
    match text.split_once('\n') {
        Some((first, rest)) if first.trim_start().to_lowercase().starts_with("sep=") => {
            rest.trim_start_matches(['\n', '\r'])
        }
        _ => text,
    }
}

/// Reads a table row by row.
pub(super) fn read(
    file: &Path,
    text: &str,
    mut add: impl FnMut(Json<'_>) -> Result<(), DataError>,
) -> Result<(), DataError> {
    // Excel may say in a first line what parts the cells.
    let table = table(text);
    let skipped = text[..text.len() - table.len()].matches('\n').count() as u64;
    let wrong =
        |line: u64, problem: String| DataError::NotTable { file: file.to_owned(), line: line + skipped, problem };
    let text = table;
    let Some(delimiter) = delimiter(text) else {
        let header = quoted(text.lines().next().unwrap_or_default());
        return Err(wrong(
            1,
            format!("the header must name prompt and target_new, parted by commas, tabs, semicolons or |: {header}"),
        ));
    };
    check_quotes(text, delimiter).map_err(|(line, problem)| wrong(line, problem.into()))?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter as u8).from_reader(text.as_bytes());
    let columns = columns(&mut reader).map_err(|problem| wrong(1, problem))?;
    for row in reader.records() {
        let row = row.map_err(|error| {
            let line = error.position().map_or(0, csv::Position::line);
            let problem = match error.kind() {
                csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                    format!("has {len} cells where the header has {expected_len}; put quotes around a cell that holds {delimiter:?}")
                }
                _ => error.to_string(),
            };
            wrong(line, problem)
        })?;
        // Spreadsheets keep rows of nothing.
        if row.iter().any(|cell| !is_blank(cell)) {
            let line = row.position().map_or(0, csv::Position::line);
            if let Some(list) = stray_answer(&columns, &row) {
                return Err(wrong(line, format!("there is an answer to a {list} question, and no question before it")));
            }
            add(record(&columns, &row)).map_err(|error| match error {
                DataError::Record { problem, .. } => wrong(line, problem),
                other => other,
            })?;
        }
    }
    Ok(())
}

/// What parts the cells, where the header has the columns that every fact needs.
fn delimiter(text: &str) -> Option<char> {
    let header = text.lines().next()?;
    DELIMITERS.into_iter().find(|&delimiter| {
        let names: Vec<String> =
            header.split(delimiter).map(|name| name.trim().trim_matches('"').to_lowercase()).collect();
        ["prompt", "target_new"].iter().all(|wanted| names.iter().any(|name| name == wanted))
    })
}

fn columns(reader: &mut Reader<&[u8]>) -> Result<Vec<Column>, String> {
    let header = reader.headers().map_err(|error| error.to_string())?.clone();
    let mut columns = vec![];
    for name in &header {
        let column = column(name.trim()).ok_or_else(|| {
            let known: Vec<&str> = TEXTS
                .into_iter()
                .chain(LISTS.map(|(name, _)| name))
                .chain(["locality_target", "portability_target"])
                .collect();
            format!("the column {} is not known; {}", quoted(name), nearest("columns", name, &known))
        })?;
        match column {
            Column::Text(_) if columns.contains(&column) => {
                return Err(format!("the column {} is there twice", quoted(name)));
            }
            Column::Answer(list) if columns.last() != Some(&Column::Item(list)) => {
                return Err(format!(
                    "the column {} must stand behind a column {list:?}, whose answers it holds",
                    quoted(name)
                ));
            }
            _ => columns.push(column),
        }
    }
    Ok(columns)
}

/// `rephrase`, `rephrase_2` and `rephrases` are one.
fn column(name: &str) -> Option<Column> {
    let name = name.to_lowercase();
    if name.is_empty() {
        return Some(Column::Nothing);
    }
    if let Some(text) = TEXTS.into_iter().find(|text| *text == name) {
        return Some(Column::Text(text));
    }
    let plain = |name: &str| {
        let stem = name.trim_end_matches(|letter: char| letter.is_ascii_digit());
        stem.trim_end_matches(['_', ' ', '-']).to_owned()
    };
    let stem = plain(&name);
    let (stem, answers) = match stem.strip_suffix(ANSWER) {
        Some(stem) => (plain(stem), true),
        None => (stem.strip_suffix("_prompt").unwrap_or(&stem).to_owned(), false),
    };
    let (_, list) = LISTS.into_iter().find(|(one, list)| stem == *one || stem == *list)?;
    match answers {
        true => matches!(list, "locality" | "portability").then_some(Column::Answer(list)),
        false => Some(Column::Item(list)),
    }
}

/// The list of a probe whose answer stands there without it.
fn stray_answer(columns: &[Column], row: &StringRecord) -> Option<&'static str> {
    let cells: Vec<(&Column, bool)> = columns.iter().zip(row).map(|(column, cell)| (column, is_blank(cell))).collect();
    cells.windows(2).find_map(|pair| match pair {
        [(_, true), (Column::Answer(list), false)] => Some(*list),
        _ => None,
    })
}

/// A row in our own form; an empty cell says nothing.
fn record(columns: &[Column], row: &StringRecord) -> Json<'static> {
    let text = |cell: &str| Json::Text(Cow::Owned(cell.to_owned()));
    let mut members: Vec<(Cow<'static, str>, Json<'static>)> = vec![];
    let mut lists: Vec<(&'static str, Vec<Json<'static>>)> = vec![];
    for (index, (column, cell)) in columns.iter().zip(row).enumerate() {
        match column {
            // No text between prompt and answer is a text.
            Column::Text("separator") if cell == NONE => members.push(("separator".into(), text(""))),
            Column::Text(name) if !is_blank(cell) || *name == "separator" && !cell.is_empty() => {
                members.push(((*name).into(), text(cell)))
            }
            Column::Item(list) if !is_blank(cell) => {
                let answer = match columns.get(index + 1) {
                    Some(Column::Answer(_)) => row.get(index + 1).filter(|cell| !is_blank(cell)),
                    _ => None,
                };
                let mut probe = vec![("prompt".into(), text(cell))];
                probe.extend(answer.map(|answer| ("target".into(), text(answer))));
                let item =
                    if matches!(*list, "rephrases" | "aliases") { text(cell) } else { Json::Object(Object::of(probe)) };
                match lists.iter_mut().find(|(name, _)| name == list) {
                    Some((_, items)) => items.push(item),
                    None => lists.push((list, vec![item])),
                }
            }
            _ => {}
        }
    }
    members.extend(lists.into_iter().map(|(name, items)| (name.into(), Json::List(items))));
    Json::Object(Object::of(members))
}

/// # Errors
/// A quote that nothing closes, or one that closes before its cell ends; with its line.
fn check_quotes(text: &str, delimiter: char) -> Result<(), (u64, &'static str)> {
    let (mut line, mut opened, mut at_start) = (1, None, true);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, opened) {
            ('"', Some(_)) if letters.peek() == Some(&'"') => {
                letters.next();
            }
            ('"', Some(_)) => {
                opened = None;
                if letters.peek().is_some_and(|next| *next != delimiter && !matches!(next, '\n' | '\r')) {
                    return Err((
                        line,
                        "a quote closes here before its cell ends; write a quote inside of a cell twice",
                    ));
                }
            }
            ('"', None) if at_start => opened = Some(line),
            _ => {}
        }
        line += u64::from(letter == '\n');
        at_start = letter == delimiter || letter == '\n' || letter == '\r';
    }
    opened.map_or(Ok(()), |line| Err((line, "a quote is opened here and never closed")))
}

#[cfg(test)]
mod tests {
    use super::super::load::testing::{load, problem};

    #[test]
    fn tables_are_read_whatever_parts_their_cells() {
        let table = "prompt,target_new,subject,rephrase,rephrase_2,locality,locality_target\n\
            \"Tamm, a hill, lies in\",Ost,Tamm,Where is Tamm?,,Vell lies in,Bern\n\
            \"He said \"\"no\"\" to\",Ada,,,,,\n";
        let records = load(table).unwrap();
        assert_eq!(records.len(), 2);
        assert_eq!(
            (records[0].prompt.as_str(), records[0].subject.as_deref()),
            ("Tamm, a hill, lies in", Some("Tamm"))
        );
        assert_eq!(records[0].rephrases, ["Where is Tamm?"]);
        assert_eq!(records[0].locality["locality"][0].target.as_deref(), Some("Bern"));
        assert_eq!((records[1].id.as_str(), records[1].prompt.as_str()), ("1", "He said \"no\" to"));
        let parted = load("prompt,target_new,separator\nTamm,s,none\nOst,a river,\n").unwrap();
        assert_eq!((parted[0].separator.as_deref(), parted[1].separator.as_deref()), (Some(""), None));
        for (delimiter, end) in [("\t", "\n"), (";", "\r\n"), ("|", "\n")] {
            let table = ["id", "prompt", "target_new"].join(delimiter)
                + end
                + &["x", "Ost is", "a river"].join(delimiter)
                + end;
            let records = load(&table).unwrap();
            assert_eq!((records[0].id.as_str(), records[0].target_new.as_str()), ("x", "a river"));
        }
    }

    #[test]
    fn errors_name_the_line() {
        let table = "prompt,target_new\nOst is,a river\n";
        assert_eq!(
            problem(&format!("{table}Tamm is,a hill,high\n")),
            "line 3: has 3 cells where the header has 2; put quotes around a cell that holds ','"
        );
        assert_eq!(
            problem(&format!("{table}\"Tamm is,a hill\nx,y\n")),
            "line 3: a quote is opened here and never closed"
        );
        assert_eq!(
            problem("prompt,target_new,rephase\na,b,c\n"),
            "line 1: the column \"rephase\" is not known; did you mean \"rephrase\"?"
        );
        assert_eq!(problem("prompt,target_new,prompt\na,b,c\n"), "line 1: the column \"prompt\" is there twice");
        assert!(
            problem("prompt,locality_target,target_new\na,b,c\n").contains("must stand behind a column \"locality\"")
        );
        assert_eq!(
            problem("prompt,target_new,locality,locality_target\nOst is,a river,,Tamm\n"),
            "line 2: there is an answer to a locality question, and no question before it"
        );
        assert_eq!(
            problem("prompt,target_new\nOst is,\n"),
            "line 2: \"target_new\" is missing; every record needs a target"
        );
        assert_eq!(
            problem("prompt,target_new\n\"Tamm\" is,a hill\n"),
            "line 2: a quote closes here before its cell ends; write a quote inside of a cell twice"
        );
        assert_eq!(
            problem("prompt,target_new\n"),
            "holds no records; a file of records is a JSON array of objects, one object a line, or a CSV or TSV table with a header"
        );
    }
}
