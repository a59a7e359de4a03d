//! A comparison as one page: a document of figures, curves and cases in a file that loads nothing.
//!
//! # The document
//!
//! ```text
//! {
//!   "format": "report/1",
//!   "title": "…",
//!   "model": {"path": "…", "fingerprint": "…"},
//!   "data": {"path": "…", "records": 100, "note": "…"},
//!   "mode": "single | batch | sequential",
//!   "seed": 0,
//!   "version": "0.1.0",
//!   "statistics": "how intervals and proofs were made, in a sentence or two",
//!   "differences": [{"what": "data", "groups": [{"value": "…", "methods": ["rome"]}], "told": "the difference in a sentence"}],
//!   "notes": ["what must be known beside the figures"],
//!   "methods": [{"name": "rome", "label": "ROME", "config": {…}, "provenance": {…}, "failed": 0, "cases": 100}],
//!   "protocols": [{"name": "counterfact", "about": "…", "metrics": [
//!     {"name": "efficacy", "what": "…", "better": "higher | lower | neither", "unit": "share | seconds | bytes | bits | number"}]}],
//!   "figures": [{"method": "rome", "protocol": "counterfact", "name": "efficacy", "mean": 0.99, "low": 0.97, "high": 1.0,
//!     "cases": 100, "best": true, "proven": false}],
//!   "curves": [{"method": "rome", "protocol": "mend", "mode": "batch | sequential", "metric": "edit_success",
//!     "points": [{"edits": 1, "value": 1.0, "made": 1, "failed": 0, "asked": 1}], "collapsed_at": null}],
//!   "cases": [{"id": "…", "prompt": "…", "target_new": "…", "target_true": "…", "subject": "…", "methods": {"rome": {
//!     "outcome": "success | partial | failure | error", "error": null, "probes": [
//!       {"kind": "rewrite", "class": null, "prompt": "…", "target": "…", "before": "…", "after": "…",
//!        "exact_before": false, "exact_after": true, "p_before": 0.1, "p_after": 0.9}]}}}]
//! }
//! ```
//!
//! Any part may be missing or null. Of runs that differ in what decides a figure, `differences` says in what: then `model`, `data`, `mode`,
//! `seed` or `version` is null where it is no one's alone, and figures that depend on it are neither best nor proven. Of the `edits` of a
//! point `failed` could not be made and `asked` are what its value is over. `best` is the best mean of a metric; `proven` says of the best that its difference from every
//! other method is proven, and of the others that their difference from the best is; null where no test was made, as for a method
//! with `"baseline": true`. `behind` is the best one's number less this one's: mean, low, high, cases, test and corrected p. A curve
//! without a protocol is given the one that alone has its metric. Methods are shown, and coloured, in the order of `methods`; those
//! that only other parts speak of come behind.
//!
//! # The page
//!
//! The page holds the document in three parts, so that it opens at once however many cases there are: all but the cases; a
//! line a case with what lists and filters need; and a line a case with its answers, read when the case is looked at. A line of
//! the second part is
//!
//! ```text
//! [id, prompt, target_new, target_true, subject, outcomes]
//! ```
//!
//! with a letter a method: `s`uccess, `p`artial, `f`ailure, `e`rror, `-` for not run, `?` for anything else. One of the third is
//!
//! ```text
//! [[[kind, class, prompt, target, before, exact_before, p_before], …],
//!  [null or [error, [[probe, after, exact_after, p_after, and where they differ from the probe's: before, exact_before, p_before], …]], …]]
//! ```
//!
//! with probes shared by the methods, truth as 1 or 0 and probabilities to three digits.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

const TEMPLATE: &str = include_str!("report.html");

/// The page of a document.
pub fn page(document: &Value, title: &str) -> String {
    let order = order(document);
    let mut report: Map<String, Value> = document.as_object().cloned().unwrap_or_default();
    report.remove("cases");
    report.insert("title".into(), title.into());
    report.insert("order".into(), json!(order));
    let (mut cases, mut details) = (vec![], vec![]);
    for case in list(&document["cases"]) {
        cases.push(script(&entry(case, &order)));
        details.push(script(&detail(case, &order)));
    }
    let lines = |lines: &[String]| format!("[\n{}\n]", lines.join(",\n"));
    // In the order in which they stand in the template, so that nothing is replaced in what was put in.
    let parts = [
        ("{{title}}", escape(title)),
        ("{{report}}", script(&Value::Object(report))),
        ("{{cases}}", lines(&cases)),
        ("{{details}}", lines(&details)),
    ];
    let mut page = String::with_capacity(TEMPLATE.len() + parts.iter().map(|(_, text)| text.len()).sum::<usize>());
    let mut rest = TEMPLATE;
    for (mark, text) in &parts {
        if let Some((before, after)) = rest.split_once(mark) {
            page += before;
            page += text;
            rest = after;
        }
    }
    page + rest
}

/// Nothing but an array has entries.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The names of all methods, in one order.
pub(super) fn order(document: &Value) -> Vec<&str> {
    let named =
        |part: &str, key: &'static str| list(&document[part]).iter().filter_map(move |entry| entry[key].as_str());
    let of_cases = list(&document["cases"]).iter().filter_map(|case| case["methods"].as_object());
    let all = named("methods", "name").chain(named("figures", "method")).chain(named("curves", "method"));
    let mut order: Vec<&str> = vec![];
    for name in all.chain(of_cases.flat_map(|methods| methods.keys().map(String::as_str))) {
        if !order.contains(&name) {
            order.push(name);
        }
    }
    order
}

/// What the list of cases and its filters need of a case.
fn entry(case: &Value, order: &[&str]) -> Value {
    let letter = |name: &&str| match case["methods"].get(*name) {
        None | Some(Value::Null) => '-',
        Some(result) => match result["outcome"].as_str() {
            Some("success") => 's',
            Some("partial") => 'p',
            Some("failure") => 'f',
            Some("error") => 'e',
            _ => '?',
        },
    };
    let outcomes: String = order.iter().map(letter).collect();
    json!([case["id"], case["prompt"], case["target_new"], case["target_true"], case["subject"], outcomes])
}

/// The answers of a case.
fn detail(case: &Value, order: &[&str]) -> Value {
    let mut probes: Vec<(Vec<Value>, [Value; 3])> = vec![];
    let mut known: HashMap<String, Vec<usize>> = HashMap::new();
    let mut results = vec![];
    for name in order {
        let result = &case["methods"][*name];
        if result.is_null() {
            results.push(Value::Null);
            continue;
        }
        let mut answers = vec![];
        let mut taken = vec![];
        for probe in list(&result["probes"]) {
            let asked: Vec<Value> = ["kind", "class", "prompt", "target"].map(|key| probe[key].clone()).into();
            let before = [probe["before"].clone(), flag(&probe["exact_before"]), brief(&probe["p_before"])];
            // The same may be asked twice of a method.
            let numbers = known.entry(json!(asked).to_string()).or_default();
            let number = numbers.iter().copied().find(|number| !taken.contains(number)).unwrap_or_else(|| {
                numbers.push(probes.len());
                probes.push((asked, before.clone()));
                probes.len() - 1
            });
            taken.push(number);
            let mut answer =
                vec![json!(number), probe["after"].clone(), flag(&probe["exact_after"]), brief(&probe["p_after"])];
            if probes[number].1 != before {
                answer.extend(before);
            }
            answers.push(Value::Array(answer));
        }
        results.push(json!([result["error"], answers]));
    }
    let probes: Vec<Value> =
        probes.into_iter().map(|(asked, before)| asked.into_iter().chain(before).collect()).collect();
    json!([probes, results])
}

/// Truth in one letter.
fn flag(value: &Value) -> Value {
    value.as_bool().map_or(Value::Null, |truth| json!(u8::from(truth)))
}

/// A number to three digits.
fn brief(value: &Value) -> Value {
    value
        .as_f64()
        .and_then(|number| format!("{number:.2e}").parse::<f64>().ok())
        .map_or(Value::Null, |number| json!(number))
}

/// JSON that may stand in a script element: nothing in it ends the element or opens a comment.
fn script(value: &Value) -> String {
    value.to_string().replace("</", "<\\/").replace("<!", "\\u003c!")
}

/// A text that may stand between tags.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::page;

    /// The contents of one of the page's script elements.
    fn part(page: &str, id: &str) -> Value {
        let (_, rest) = page.split_once(&format!("<script type=\"application/json\" id=\"{id}\">")).unwrap();
        serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
    }

    #[test]
    fn a_page_of_nothing() {
        for document in [json!({}), json!(null), json!({"methods": null, "cases": {}, "figures": 3, "curves": [null]})]
        {
            let page = page(&document, "Nothing");
            assert!(!page.contains("{{"));
            assert!(page.contains("<title>Nothing</title>"));
            assert_eq!(part(&page, "data-report")["order"], json!([]));
            assert_eq!(part(&page, "data-cases"), json!([]));
            assert_eq!(part(&page, "data-details"), json!([]));
        }
        let page = page(&json!({"cases": [{}, null, {"methods": {"a": {}, "b": null}}]}), "Holes");
        let outcomes: Vec<Value> =
            part(&page, "data-cases").as_array().unwrap().iter().map(|case| case[5].clone()).collect();
        assert_eq!(outcomes, ["--", "--", "?-"]);
        assert_eq!(part(&page, "data-details")[2], json!([[], [[null, []], null]]));
    }

    #[test]
    fn no_text_leaves_its_element() {
        let evil = "</script><script>alert(1)</script><!--<script> {{details}} {{cases}} \u{2028}\r\n & <b>";
        let document = json!({
            "methods": [{"name": evil, "config": {evil: evil}}],
            "cases": [{"id": evil, "prompt": evil, "methods": {evil: {"outcome": "error", "error": evil, "probes": [
                {"kind": "rewrite", "prompt": evil, "target": evil, "before": evil, "after": evil}]}}}],
        });
        let page = page(&document, evil);
        let plain = super::page(&json!({}), "");
        for tag in ["</script", "<!--"] {
            let count = |page: &str| page.matches(tag).count();
            assert_eq!(count(&page), count(&plain), "{tag}");
        }
        assert!(page.contains("<title>&lt;/script&gt;&lt;script&gt;alert(1)"));
        assert_eq!(part(&page, "data-report")["title"], evil);
        assert_eq!(part(&page, "data-report")["methods"], document["methods"]);
        assert_eq!(part(&page, "data-cases")[0][1], evil);
        assert_eq!(part(&page, "data-details")[0][1][0][0], evil);
        assert_eq!(part(&page, "data-details")[0][0][0][4], evil);
    }

    #[test]
    fn a_case_a_line() {
        let document = json!({"cases": [{"id": "a\nb"}, {"id": "c"}]});
        let page = page(&document, "Lines");
        for id in ["data-cases", "data-details"] {
            let (_, rest) = page.split_once(&format!("id=\"{id}\">")).unwrap();
            let lines: Vec<&str> = rest.split_once("</script>").unwrap().0.split('\n').collect();
            assert_eq!(lines.len(), 4);
            for line in &lines[1..3] {
                serde_json::from_str::<Value>(line.trim_end_matches(',')).unwrap();
            }
        }
    }

    #[test]
    fn probes_are_shared() {
        let probe = |before: &str, after: &str, p: f64| {
            json!({"kind": "rewrite", "class": null, "prompt": "Lyon is in", "target": "Japan", "before": before, "after": after,
                "exact_before": false, "exact_after": after == "Japan", "p_before": 0.000123456, "p_after": p})
        };
        let document = json!({
            "methods": [{"name": "rome"}, {"name": "mend"}],
            "cases": [{"id": "x", "methods": {
                "late": {"outcome": "failure", "probes": [probe("Italy", "Italy", 0.25)]},
                "mend": {"outcome": "success", "probes": [probe("France", "Japan", 0.98765), probe("France", "France", 0.0)]},
                "rome": {"outcome": "partial", "probes": [probe("France", "Japan", 1.0)]},
            }}],
        });
        let page = page(&document, "Shared");
        assert_eq!(part(&page, "data-report")["order"], json!(["rome", "mend", "late"]));
        assert!(part(&page, "data-report").get("cases").is_none());
        assert_eq!(part(&page, "data-cases"), json!([["x", null, null, null, null, "psf"]]));
        let asked = json!(["rewrite", null, "Lyon is in", "Japan", "France", 0, 0.000123]);
        let expected = json!([
            [asked, asked],
            [
                [null, [[0, "Japan", 1, 1.0]]],
                [null, [[0, "Japan", 1, 0.988], [1, "France", 0, 0.0]]],
                [null, [[0, "Italy", 0, 0.25, "Italy", 0, 0.000123]]],
            ]
        ]);
        assert_eq!(part(&page, "data-details")[0], expected);
    }

    #[test]
    fn the_page_loads_nothing() {
        let page = page(&json!({}), "Alone");
        assert!(page.contains("default-src 'none'"));
        for outside in
            ["src=", "@import", "url(", "https:", "innerHTML", "insertAdjacentHTML", "document.write", "eval("]
        {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!(page.replace("http://www.w3.org/2000/svg", "").matches("http:").count(), 0);
    }
}
