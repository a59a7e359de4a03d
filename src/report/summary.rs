//! The figures of a comparison in short: for spreadsheets, for texts, for a terminal. All from the document that
//! [`super::html`] describes.

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::html::list;
use super::metrics::{Mark, Metric, protocols};
use super::table::{cut, table};

/// A terminal's line.
const WIDTH: usize = 110;
/// The width of a method's name at most.
const LABEL: usize = 28;

/// One line a figure, with a header: numbers as they are, nothing where there is none.
pub fn csv(document: &Value) -> String {
    let mut text = "method,label,protocol,metric,unit,better,mean,low,high,cases,best,proven\n".to_owned();
    for protocol in protocols(document) {
        for metric in &protocol.metrics {
            for (method, figure) in metric.figures.iter().filter_map(|(method, figure)| Some((method, (*figure)?))) {
                let told = [method.name, method.label, &protocol.name, &metric.name, metric.unit, metric.better];
                let seen = ["mean", "low", "high", "cases", "best", "proven"].map(|key| plain(&figure[key]));
                let cells: Vec<String> =
                    told.into_iter().map(quoted).chain(seen.iter().map(|cell| quoted(cell))).collect();
                text += &cells.join(",");
                text.push('\n');
            }
        }
    }
    text
}

/// A table a protocol; means with their intervals, the best in bold only where that is proven.
pub fn markdown(document: &Value) -> String {
    let mut text = String::new();
    let mut marks = Marks::default();
    for difference in sentences(document, "differences") {
        text += &format!("**{}**\n\n", marked_down(&difference));
    }
    let heading = heading(document, usize::MAX);
    for protocol in protocols(document) {
        let name = marked_down(&protocol.name);
        text += &format!("### Protocol {name}\n\n");
        if !protocol.about.is_empty() {
            text += &format!("{}\n\n", marked_down(&protocol.about));
        }
        if !heading.is_empty() {
            text += &format!("{}\n\n", marked_down(&heading));
        }
        let heads =
            protocol.metrics.iter().map(|metric| format!("{} ({name}){}", marked_down(&metric.words()), metric.note()));
        text += &format!(
            "| Method | {} |\n|---|{}\n",
            heads.collect::<Vec<_>>().join(" | "),
            "---:|".repeat(protocol.metrics.len())
        );
        for (row, method) in protocol.methods() {
            let cell = |metric: &Metric| {
                let mark = marks.see(metric.mark(row));
                let mean = match mark {
                    Some(Mark::Best) => format!("**{}**", metric.mean(row)),
                    _ => metric.mean(row),
                };
                let tie = if mark == Some(Mark::Tie) { " tie" } else { "" };
                format!("{mean}{}{tie}", beside(metric, row))
            };
            let cells: Vec<String> = protocol.metrics.iter().map(cell).collect();
            text += &format!("| {} | {} |\n", marked_down(method), cells.join(" | "));
        }
        text.push('\n');
    }
    if marks.best {
        text += "**Bold**: the difference from every other method is proven.\n\n";
    }
    if marks.tie {
        text += "tie: the best mean, and those not proven to differ from it.\n\n";
    }
    for note in failures(document).into_iter().chain(sentences(document, "notes")) {
        text += &format!("{}.\n\n", marked_down(&note));
    }
    text.truncate(text.trim_end().len());
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// What a terminal shows of a protocol; the files and the page have all.
const HEADLINES: [(&str, &[&str]); 5] = [
    ("easyedit", &["rewrite_acc", "rephrase_acc", "portability"]),
    ("counterfact", &["score", "efficacy", "paraphrase", "neighborhood"]),
    ("mend", &["edit_success", "generalization", "locality", "perplexity_ratio"]),
    ("generate", &["rewrite_exact", "rewrite_contained", "locality_same"]),
    ("efficiency", &["seconds/edit", "relative_norm"]),
];

/// The document with the figures that a terminal shows.
pub fn headlines(document: &Value) -> Value {
    let mut short = document.clone();
    let shown = |figure: &Value| {
        let of = HEADLINES.iter().find(|(name, _)| figure["protocol"] == *name);
        let name = figure["name"].as_str().unwrap_or_default();
        // A class stands behind its metric.
        let stem = name.split_once('/').map_or(name, |(stem, _)| stem);
        of.is_none_or(|(_, shown)| shown.contains(&name) || shown.contains(&stem))
    };
    if let Some(figures) = short["figures"].as_array_mut() {
        figures.retain(shown);
    }
    short
}

/// A block a protocol, no wider than 110 columns: first the metrics of which one way is better, costs behind them, the others
/// last. A block too wide for that goes on below.
pub fn terminal(document: &Value) -> String {
    let mut text = String::new();
    let mut marks = Marks::default();
    for difference in sentences(document, "differences") {
        text += &format!("{difference}\n\n");
    }
    let heading = heading(document, WIDTH);
    for mut protocol in protocols(document) {
        if !heading.is_empty() {
            text += &format!("{heading}\n");
        }
        protocol.metrics.sort_by_key(|metric| match (metric.better, metric.unit) {
            ("higher" | "lower", "seconds" | "bytes") => 1,
            ("higher" | "lower", _) => 0,
            _ => 2,
        });
        let methods: Vec<(usize, String)> =
            protocol.methods().into_iter().map(|(row, label)| (row, cut(label, LABEL))).collect();
        let mut columns: Vec<Vec<String>> = vec![];
        for metric in &protocol.metrics {
            let mut column = vec![cut(&format!("{}{}", metric.words(), metric.note()), WIDTH - LABEL - 2)];
            column.extend(methods.iter().map(|&(row, _)| {
                let mark = marks.see(metric.mark(row)).map(|mark| format!(" {}", mark.word())).unwrap_or_default();
                format!("{}{}{mark}", metric.mean(row), beside(metric, row))
            }));
            columns.push(column);
        }
        let head = cut(&format!("protocol {}", protocol.name), LABEL);
        let names = methods.iter().map(|(_, label)| label.width()).chain([head.width()]).max().unwrap_or(0);
        let mut rest = columns.as_slice();
        while !rest.is_empty() {
            let mut width = names;
            let fits = rest.iter().take_while(|column| {
                width += 2 + column.iter().map(|cell| cell.width()).max().unwrap_or(0);
                width <= WIDTH
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let header: Vec<&str> =
                std::iter::once(head.as_str()).chain(now.iter().map(|column| column[0].as_str())).collect();
            let rows: Vec<Vec<String>> = methods
                .iter()
                .enumerate()
                .map(|(row, (_, label))| {
                    std::iter::once(label.clone()).chain(now.iter().map(|column| column[row + 1].clone())).collect()
                })
                .collect();
            text += &table(&header, &rows);
            text.push('\n');
        }
    }
    if marks.best {
        text += "best: the difference from every other method is proven\n";
    }
    if marks.tie {
        text += "tie: the best mean, and those not proven to differ from it\n";
    }
    for note in failures(document).into_iter().chain(sentences(document, "notes")) {
        text += &format!("{note}\n");
    }
    text
}

/// What stands behind a mean: its interval, and how many cases it is over where others have more.
fn beside(metric: &Metric, row: usize) -> String {
    let interval = metric.interval(row).map(|interval| format!(" ({interval})")).unwrap_or_default();
    let fewer = metric.fewer(row).map(|cases| format!(" n={cases}")).unwrap_or_default();
    interval + &fewer
}

/// What the figures of a table are of, in one line of some width at most: the model, the cases, how edits were made, and which model was
/// read. Where runs differ in one of these it is left out, for then it stands among the differences.
fn heading(document: &Value, most: usize) -> String {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let (model, data) = (text(&document["model"]["path"]), text(&document["data"]["path"]));
    let dtype = text(&document["model"]["dtype"]).map(|dtype| format!(" {dtype}")).unwrap_or_default();
    let count = document["data"]["records"].as_u64().map(|count| format!("{count} cases of ")).unwrap_or_default();
    let read = document["mode"].as_str().and_then(|mode| match mode {
        "single" => Some("single: read with its own edit alone"),
        "batch" => Some("batch: read with all edits in"),
        "sequential" => Some("sequential: read at the end, and right after its edit"),
        _ => None,
    });
    let line = |names: usize| {
        let model = model.as_ref().map(|model| format!("{}{dtype}", cut(model, names)));
        let data = data.as_ref().map(|data| format!("{count}{}", cut(data, names)));
        [model, data, read.map(str::to_owned)].into_iter().flatten().collect::<Vec<_>>().join(" · ")
    };
    // Names of models and files are cut where they are too long for the line.
    let whole = line(usize::MAX);
    if whole.width() <= most { whole } else { line(most.saturating_sub(line(0).width() + 2) / 2) }
}

/// The sentences of a part of the document: plain strings, or objects with the sentence under "told".
fn sentences(document: &Value, part: &str) -> Vec<String> {
    let sentence = |entry: &Value| entry.as_str().or(entry["told"].as_str()).map(str::to_owned);
    list(&document[part]).iter().filter_map(sentence).collect()
}

/// Whose cases failed: no mean knows of them.
fn failures(document: &Value) -> Vec<String> {
    let failed = list(&document["methods"]).iter().filter_map(|method| {
        let (failed, all) = (method["failed"].as_u64().filter(|failed| *failed > 0)?, method["cases"].as_u64()?);
        Some(format!("{}: {failed} of {all} cases failed and are in no mean", method["name"].as_str()?))
    });
    failed.collect()
}

/// Which marks were made, and are to be explained.
#[derive(Default)]
struct Marks {
    best: bool,
    tie: bool,
}

impl Marks {
    fn see(&mut self, mark: Option<Mark>) -> Option<Mark> {
        self.best |= mark == Some(Mark::Best);
        self.tie |= mark == Some(Mark::Tie);
        mark
    }
}

/// A value as it stands, nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

/// A cell of a CSV file (RFC 4180).
fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// A text of which Markdown makes nothing else.
fn marked_down(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\n' | '\r' | '\t' => safe.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '<' | '>' => safe.extend(['\\', letter]),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use unicode_width::UnicodeWidthStr;

    use super::{csv, markdown, terminal};

    fn figure(method: &str, name: &str, values: [f64; 3], best: bool, proven: Value) -> Value {
        json!({"method": method, "protocol": "counterfact", "name": name, "mean": values[0], "low": values[1], "high": values[2],
            "cases": 100, "best": best, "proven": proven})
    }

    fn document() -> Value {
        json!({
            "methods": [{"name": "rome", "label": "ROME"}, {"name": "mend", "label": "MEND|2"}, {"name": "ft"}],
            "protocols": [{"name": "counterfact", "about": "by probability a token", "metrics": [
                {"name": "norm", "better": "neither", "unit": "number"},
                {"name": "edit_seconds", "better": "lower", "unit": "seconds"},
                {"name": "efficacy", "better": "higher", "unit": "share"},
                {"name": "neighborhood", "better": "higher", "unit": "share"},
                {"name": "never_seen", "better": "higher", "unit": "share"}]}],
            "figures": [
                figure("rome", "efficacy", [0.99, 0.97, 1.0], true, json!(true)),
                figure("mend", "efficacy", [0.5, 0.4, 0.6], false, json!(true)),
                figure("rome", "neighborhood", [0.8, 0.7, 0.9], true, json!(false)),
                figure("mend", "neighborhood", [0.79, 0.69, 0.89], false, json!(false)),
                figure("ft", "neighborhood", [0.2, 0.1, 0.3], false, json!(true)),
                figure("rome", "norm", [-1.5, -2.0, -1.0], false, Value::Null),
                {"method": "rome", "protocol": "counterfact", "name": "edit_seconds", "mean": 0.0123, "low": null, "high": null},
                {"method": "ft", "protocol": "other, too", "name": "m", "mean": 3},
                {"method": "ft", "protocol": "other, too", "name": "n", "mean": null},
            ],
        })
    }

    #[test]
    fn nothing_gives_nothing() {
        for document in [json!(null), json!({}), json!({"figures": [null, {}], "protocols": [{}], "methods": 3})] {
            assert_eq!(csv(&document).lines().count(), 1);
            assert_eq!(markdown(&document), "");
            assert_eq!(terminal(&document), "");
        }
    }

    #[test]
    fn a_line_a_figure() {
        let text = csv(&document());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 9);
        assert!(lines.contains(&"rome,ROME,counterfact,efficacy,share,higher,0.99,0.97,1.0,100,true,true"));
        assert!(lines.contains(&"rome,ROME,counterfact,edit_seconds,seconds,lower,0.0123,,,,,"));
        assert!(lines.contains(&"ft,ft,\"other, too\",m,number,neither,3,,,,,"));
    }

    #[test]
    fn every_heading_names_its_protocol() {
        let text = markdown(&document());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "### Protocol counterfact");
        assert_eq!(lines[2], "by probability a token");
        assert_eq!(
            lines[4],
            "| Method | norm (counterfact) | edit seconds (counterfact), ms ↓ | efficacy (counterfact), % ↑ | neighborhood (counterfact), % ↑ |"
        );
        assert_eq!(
            lines[6],
            "| ROME | −1.50 (−2.00 to −1.00) | 12.30 | **99.0** (97.0–100.0) | 80.0 (70.0–90.0) tie |"
        );
        assert_eq!(lines[7], "| MEND\\|2 | – | – | 50.0 (40.0–60.0) | 79.0 (69.0–89.0) tie |");
        assert_eq!(lines[8], "| ft | – | – | – | 20.0 (10.0–30.0) |");
        assert!(text.contains("| Method | m (other, too) |"));
        assert!(text.ends_with("tie: the best mean, and those not proven to differ from it.\n"));
    }

    #[test]
    fn a_line_above_each_table_says_what_it_is_of() {
        let mut document = document();
        document["model"] = json!({"path": "pocket", "dtype": "f32"});
        document["data"] = json!({"path": "facts.json", "records": 100});
        document["mode"] = json!("sequential");
        let line = "pocket f32 · 100 cases of facts.json · sequential: read at the end, and right after its edit";
        assert_eq!(terminal(&document).matches(line).count(), 2);
        assert_eq!(markdown(&document).matches(line).count(), 2);
        assert!(terminal(&document).starts_with(line));
        for path in ["model", "data"] {
            document[path]["path"] = json!("a/very/long/path".repeat(9));
        }
        let text = terminal(&document);
        let first = text.lines().next().unwrap();
        assert!(first.width() <= 110 && first.ends_with("read at the end, and right after its edit"), "{first}");
        assert!(first.contains("a/very/long") && first.contains("100 cases of a/very"), "{first}");
    }

    #[test]
    fn differences_and_notes_are_told() {
        let mut document = document();
        document["differences"] = json!([{"what": "data", "told": "not alike in data: 3 (ft); 2 (rome)"}]);
        document["notes"] = json!(["ft: 3 of 10 cases are there"]);
        assert!(terminal(&document).starts_with("not alike in data: 3 (ft); 2 (rome)\n"));
        assert!(markdown(&document).starts_with("**not alike in data: 3 (ft); 2 (rome)**\n"));
        assert!(terminal(&document).ends_with("ft: 3 of 10 cases are there\n"));
        assert!(markdown(&document).ends_with("ft: 3 of 10 cases are there.\n"));
    }

    #[test]
    fn whoever_has_fewer_cases_says_so() {
        let mut document = document();
        document["figures"][1]["cases"] = json!(3);
        assert!(terminal(&document).contains("50.0 (40.0–60.0) n=3") && !terminal(&document).contains("n=100"));
        assert!(markdown(&document).contains("| 50.0 (40.0–60.0) n=3 |"));
    }

    #[test]
    fn what_was_not_tested_has_no_mark() {
        let mut document = document();
        for figure in document["figures"].as_array_mut().unwrap() {
            figure["proven"] = Value::Null;
        }
        assert!(!terminal(&document).contains("best") && !terminal(&document).contains("tie"));
        assert!(!markdown(&document).contains("**") && !markdown(&document).contains("tie"));
    }

    #[test]
    fn failed_cases_are_told() {
        let mut document = document();
        document["methods"][0]["failed"] = json!(2);
        document["methods"][0]["cases"] = json!(10);
        let told = "rome: 2 of 10 cases failed and are in no mean";
        assert!(terminal(&document).ends_with(&format!("{told}\n")));
        assert!(markdown(&document).ends_with(&format!("{told}.\n")));
    }

    #[test]
    fn main_metrics_come_first() {
        let text = terminal(&document());
        let lines: Vec<&str> = text.lines().collect();
        let places: Vec<usize> =
            ["protocol counterfact", "efficacy, % ↑", "neighborhood, % ↑", "edit seconds, ms ↓", "norm"]
                .map(|name| lines[0].find(name).unwrap())
                .into();
        assert!(places.is_sorted());
        assert!(lines[2].starts_with("ROME ") && lines[2].contains("99.0 (97.0–100.0) best  80.0 (70.0–90.0) tie"));
        assert!(lines[4].contains(" 20.0 (10.0–30.0)") && !lines[4].contains("tie"));
        assert!(text.contains("protocol other, too"));
    }

    #[test]
    fn no_line_is_too_wide() {
        let mut figures = vec![];
        for method in ["a method with a name that is far too long for a table", "b"] {
            for metric in 0..12 {
                figures.push(figure(
                    method,
                    &format!("a_metric_of_number_{metric}"),
                    [0.5, 0.25, 0.75],
                    false,
                    Value::Null,
                ));
            }
        }
        figures.push(figure("b", &"endless_".repeat(40), [0.5, 0.25, 0.75], false, Value::Null));
        let text = terminal(&json!({"figures": figures}));
        assert!(text.lines().all(|line| line.width() <= 110));
        for metric in 0..12 {
            assert!(text.contains(&format!("a metric of number {metric}")));
        }
        assert!(text.matches("protocol counterfact").count() > 1);
    }
}
