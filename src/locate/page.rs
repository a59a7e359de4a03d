//! A sweep as one page that loads nothing, and as text: regressions, scores and tracing effects by layer, and what they do and do not show.

use std::fmt::Write as _;

use serde_json::Value;

use crate::evaluate::problem::Problem;
use crate::report::html::list;
use crate::report::table::{counted, table};

/// The methods' colours, in the order of a sweep; each differs in lightness.
const COLOURS: [&str; 6] = ["#3f6fb5", "#c8553d", "#3b8c66", "#8661a8", "#b8892b", "#4a4a4a"];

/// Rows of a document that are of a metric and a window.
fn rows<'a>(document: &'a Value, metric: &'a str, window: &'a Value) -> impl Iterator<Item = &'a Value> {
    list(&document["rows"]).iter().filter(move |row| row["metric"] == metric && row["window"] == *window)
}

/// A number of a document as so many of something.
fn counted_in(value: &Value, what: &str) -> String {
    counted(value.as_u64().unwrap_or(0) as usize, what)
}

fn share(value: &Value) -> String {
    value.as_f64().map_or("–".into(), |value| format!("{value:.3}"))
}

fn p_value(value: &Value) -> String {
    match value.as_f64() {
        Some(p) if p < 1e-3 => "< 0.001".into(),
        Some(p) => format!("{p:.3}"),
        None => "–".into(),
    }
}

/// A correlation with its interval.
fn correlated(value: &Value) -> String {
    let interval = list(&value["interval"]);
    match (value["r"].as_f64(), interval) {
        (Some(r), [low, high]) => {
            format!("{r:.2} ({:.2} to {:.2})", low.as_f64().unwrap_or(r), high.as_f64().unwrap_or(r))
        }
        (Some(r), _) => format!("{r:.2}"),
        (None, _) => "–".into(),
    }
}

fn title_of(problem: &Value) -> &str {
    let named = problem.as_str().unwrap_or_default();
    Problem::ALL.iter().find(|known| known.name() == named).map_or(named, |known| known.title())
}

/// The table of regressions of one metric and one window.
fn regressions(document: &Value, metric: &str, window: &Value) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec![
        "problem",
        "method",
        "R² layer",
        "R² tracing",
        "R² both",
        "difference",
        "by chance",
        "p",
        "best layers",
        "r at the traced layer",
    ];
    let line = |row: &Value| {
        let (of, r2) = (&row["regression"], &row["regression"]["r2"]);
        let best = layers(&row["as_good"]);
        let mut line =
            vec![title_of(&row["problem"]).to_owned(), row["method"].as_str().unwrap_or_default().to_owned()];
        line.extend([
            share(&r2["layer"]),
            share(&r2["effect"]),
            share(&r2["both"]),
            share(&r2["difference"]),
            share(&r2["by_chance"]),
        ]);
        line.extend([p_value(&of["p"]), best, correlated(&row["at_peak"])]);
        line
    };
    (header, rows(document, metric, window).map(line).collect())
}

/// Where tracing points, and what it adds to the layer: a sentence each, for each window; and what they do not show.
pub fn words(document: &Value) -> Vec<String> {
    let mut words = vec![];
    for window in list(&document["windows"]) {
        let trace = list(&document["trace"]).iter().find(|trace| trace["window"] == *window);
        let around = match window.as_u64() {
            Some(1) => "the MLP's output there".to_owned(),
            _ => format!("the MLP's outputs in the {window} layers around it"),
        };
        if let Some((trace, peak)) = trace.and_then(|trace| Some((trace, trace["peak"].as_u64()?))) {
            let most = trace["last_subject"][peak as usize].as_f64().unwrap_or(0.0);
            words.push(format!(
                "Tracing with windows of {window} points at layer {peak}: with {around} restored at the subject's last token, {:.0} % of the lost probability \
                 comes back, on the mean of {}.",
                100.0 * most,
                counted_in(&trace["facts"], "fact")
            ));
        }
        let all = |key: &str| -> Vec<f64> {
            rows(document, "rewrite", window).filter_map(|row| row["regression"]["r2"][key].as_f64()).collect()
        };
        let (gains, chances) = (all("difference"), all("by_chance"));
        if let Some(most) = gains.iter().copied().reduce(f64::max) {
            let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
            words.push(format!(
                "Where the layer of an edit is known already, a fact's tracing effect (windows of {window}) explains {:.1} % more of the variance of the rewrite \
                 score, on the mean over problems and methods, and at most {:.1} %. Numbers without meaning would explain {:.1} % more on the mean: each layer has a slope of its own.",
                100.0 * mean(&gains),
                100.0 * most,
                100.0 * mean(&chances)
            ));
        }
    }
    if document["unharmed"].as_u64().is_some_and(|facts| facts > 0) {
        words.push(format!(
            "{} without a part in the regressions: noise on the subject does no harm there, or the model's first word is not the answer.",
            counted_in(&document["unharmed"], "fact")
        ));
    }
    for row in failing(document) {
        let r2 = |of: &Value| share(&of["layer"]);
        words.push(format!(
            "{}, {}: edits fail at layer {} (less than a tenth of the best layer's score), and that is what the layer explains: R² {} with them, {} without.",
            capital(title_of(&row["problem"])),
            row["method"].as_str().unwrap_or_default(),
            layers(&row["fails"]),
            r2(&row["regression"]["r2"]),
            r2(&row["without_failing"])
        ));
    }
    words.push(
        "The tracing effect of an edit is the greatest over tokens of what restoring the MLP's outputs \
         around its layer brings back, as a share of the total effect; \"both\" is the layer, the effect, and a slope of its own for each layer."
            .into(),
    );
    words.push(format!(
        "These are correlations over {} of one model. A small share says that tracing does not tell which layer to edit for which fact; it does not \
         say that facts are not kept where tracing finds them. A p-value counts edits of one fact at several layers as independent, which they are not, and of \
         {} some are small by chance.",
        counted_in(&document["facts"], "fact"),
        counted(list(&document["rows"]).len(), "p-value")
    ));
    words
}

/// Rows of the rewrite score, with windows of the first width, in which edits fail at some layers.
fn failing(document: &Value) -> Vec<&Value> {
    let Some(window) = list(&document["windows"]).first() else { return vec![] };
    let own = list(&document["rows"]).iter().filter(|row| row["metric"] == "rewrite" && row["window"] == *window);
    own.filter(|row| !list(&row["fails"]).is_empty() && row["regression"].is_object()).collect()
}

/// Layers as a reader writes them: "0 to 3, 5".
fn layers(value: &Value) -> String {
    let all: Vec<u64> = list(value).iter().filter_map(Value::as_u64).collect();
    let runs = all.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] if run.len() > 2 => format!("{first} to {last}"),
        run => run.iter().map(u64::to_string).collect::<Vec<_>>().join(", "),
    });
    let runs: Vec<String> = runs.collect();
    if runs.is_empty() { "–".into() } else { runs.join(", ") }
}

/// What the sweep is about, in a line.
fn about(document: &Value) -> String {
    let posed = document["posed"].as_object().into_iter().flatten();
    let posed: Vec<String> =
        posed.map(|(name, count)| format!("{} {count}", title_of(&Value::from(name.as_str())))).collect();
    let unread = match document["unread"].as_u64() {
        None | Some(0) => String::new(),
        Some(_) => format!(" ({} left out that it cannot read)", counted_in(&document["unread"], "fact")),
    };
    format!(
        "{}: {} of {} that it knows{unread}, {} of noise with σ = {}, layers {}. Facts in each problem: {}. Edits that failed: {}.",
        document["model"]["path"].as_str().unwrap_or("a model"),
        counted_in(&document["facts"], "fact"),
        document["config"]["data"]["facts"].as_str().unwrap_or("a file"),
        counted_in(&document["noise"]["draws"], "draw"),
        share(&document["noise"]["sigma"]),
        layers(&document["layers"]),
        posed.join(", "),
        document["failed"]
    )
}

/// For each problem and method the best layer beside the one where tracing points.
fn best_layers(document: &Value) -> Vec<String> {
    let Some(window) = list(&document["windows"]).first() else { return vec![] };
    let sentence = |row: &Value| {
        let at = |layer: &Value| list(&row["by_layer"]).iter().find(|one| one["layer"] == *layer);
        let (best, traced) = (at(&row["best_layer"])?, at(&row["at_peak"]["layer"])?);
        Some(format!(
            "{}, {}: best at layer {} (rewrite score {}), which so many facts do not tell apart from layers {}; at layer {}, where tracing with windows of {window} points, {}.",
            capital(title_of(&row["problem"])),
            row["method"].as_str()?,
            best["layer"],
            share(&best["mean"]),
            layers(&row["as_good"]),
            traced["layer"],
            share(&traced["mean"])
        ))
    };
    rows(document, "rewrite", window).filter_map(sentence).collect()
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}

/// For a terminal.
pub fn terminal(document: &Value) -> String {
    let mut text = String::new();
    for window in list(&document["windows"]) {
        let (header, lines) = regressions(document, "rewrite", window);
        let _ = write!(
            text,
            "rewrite score (protocol localize), tracing with windows of {window}\n\n{}\n",
            table(&header, &lines)
        );
    }
    for words in words(document) {
        let _ = writeln!(text, "{words}");
    }
    let first = list(&document["windows"]).first().cloned().unwrap_or_default();
    let reasons = rows(document, "rewrite", &first).filter_map(|row| -> Option<String> {
        let why = row["why"].as_str()?;
        Some(format!("no regression for {} by {}: {why}\n", title_of(&row["problem"]), row["method"].as_str()?))
    });
    reasons.for_each(|reason| text += &reason);
    text
}

/// Markdown, for a README.
pub fn markdown(document: &Value) -> String {
    let mut text = format!("{}\n\n", about(document));
    for window in list(&document["windows"]) {
        let (header, lines) = regressions(document, "rewrite", window);
        let _ = writeln!(
            text,
            "Rewrite score, tracing with windows of {window}:\n\n| {} |\n|{}|",
            header.join(" | "),
            "---|".repeat(header.len() - 1) + "---"
        );
        for line in lines {
            let _ = writeln!(text, "| {} |", line.join(" | "));
        }
        text.push('\n');
    }
    text + &words(document).join("\n\n") + "\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// The page. `heat_map` is a picture of the mean effects, as SVG.
pub fn page(document: &Value, heat_map: &str) -> String {
    let title = escape(document["title"].as_str().unwrap_or_default());
    let mut body = format!("<h1>{title}</h1>\n<p>{}</p>\n", escape(&about(document)));
    body += "<h2>What the numbers say</h2>\n";
    for words in words(document) {
        let _ = writeln!(body, "<p>{}</p>", escape(&words));
    }
    let best: String = best_layers(document).iter().map(|line| format!("<li>{}</li>\n", escape(line))).collect();
    let _ = writeln!(body, "<details><summary>The best layers</summary>\n<ul>\n{best}</ul></details>");
    for (metric, open) in
        [("rewrite", true), ("paraphrase", false), ("neighborhood", false), ("essence", false), ("target", false)]
    {
        for window in list(&document["windows"]) {
            let (header, lines) = regressions(document, metric, window);
            if lines.is_empty() {
                continue;
            }
            let cells = |cells: &mut dyn Iterator<Item = String>, tag: &str| -> String {
                cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(&cell))).collect()
            };
            let head = cells(&mut header.into_iter().map(str::to_owned), "th");
            let lines: String =
                lines.into_iter().map(|line| format!("<tr>{}</tr>\n", cells(&mut line.into_iter(), "td"))).collect();
            let opened = if open { " open" } else { "" };
            let _ = writeln!(
                body,
                "<details{opened}><summary>R² of the {metric} score, tracing with windows of {window}</summary>\n<div class=\"wide\"><table><tr>{head}</tr>\n{lines}</table></div></details>"
            );
        }
    }
    let first = list(&document["windows"]).first().cloned().unwrap_or_default();
    body += "<h2>Score by layer, beside the mean tracing effect</h2>\n<div class=\"figures\">\n";
    for problem in Problem::ALL {
        let own: Vec<&Value> =
            rows(document, "rewrite", &first).filter(|row| row["problem"] == problem.name()).collect();
        if !own.is_empty() {
            body += &bars(document, problem, &own, &first);
        }
    }
    body += "</div>\n<h2>Rewrite score against tracing effect, a point an edit</h2>\n<div class=\"figures\">\n";
    for row in rows(document, "rewrite", &first) {
        body += &scatter(row);
    }
    body += "</div>\n<h2>Mean tracing effects</h2>\n<div class=\"wide\">";
    body += heat_map;
    body += "</div>\n";
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>{title}</title>\n<style>\n\
         :root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}\nbody {{ max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}\n\
         table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}\nth, td {{ padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap }}\n\
         .figures {{ display: flex; flex-wrap: wrap; gap: 1rem }}\n.wide {{ overflow-x: auto }}\nsummary {{ cursor: pointer; margin: .6rem 0 }}\nsvg text {{ fill: currentColor; font-size: 12px }}\n\
         .wide svg text {{ fill: #111 }}\n</style></head>\n<body>\n{body}</body></html>\n"
    )
}

/// Width and height of a figure's field, and the room around it; height of a line of text below.
const FIELD: (f64, f64) = (300.0, 160.0);
const ROOM: (f64, f64) = (56.0, 26.0);
const LINE: f64 = 18.0;

/// A figure with its axes, each with its name: the marks of x in shares of the field, the ends of y. What is drawn in it is given in shares of the field.
fn figure(
    title: &str,
    (x_name, x): (&str, &[(f64, String)]),
    (y_name, y): (&str, (f64, f64)),
    inside: &str,
    legend: &[(String, String)],
) -> String {
    let (width, height) = (FIELD.0 + 2.0 * ROOM.0, FIELD.1 + 2.0 * ROOM.1 + LINE * (1 + legend.len()) as f64);
    let (left, top) = ROOM;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" role=\"img\" aria-label=\"{0}\">\n<text x=\"{left}\" y=\"16\">{0}</text>\n",
        escape(title)
    );
    let (bottom, right) = (top + FIELD.1, left + FIELD.0);
    let _ = writeln!(
        svg,
        "<path d=\"M{left} {top}V{bottom}H{right}\" fill=\"none\" stroke=\"currentColor\" stroke-opacity=\".5\"/>"
    );
    for (at, value) in [(bottom, y.0), (top + FIELD.1 / 2.0, f64::midpoint(y.0, y.1)), (top, y.1)] {
        let _ = writeln!(svg, "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{:.2}</text>", left - 4.0, at + 4.0, value);
    }
    for (at, label) in x {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{label}</text>",
            left + at * FIELD.0,
            bottom + 15.0
        );
    }
    let (middle_x, middle_y) = (left + FIELD.0 / 2.0, top + FIELD.1 / 2.0);
    let _ =
        writeln!(svg, "<text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">{x_name}</text>", bottom + 15.0 + LINE);
    let _ = writeln!(
        svg,
        "<text x=\"14\" y=\"{middle_y}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle_y})\">{y_name}</text>"
    );
    svg += inside;
    for (number, (colour, label)) in legend.iter().enumerate() {
        let at = bottom + 2.0 * ROOM.1 - 12.0 + LINE * (1 + number) as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{colour}\"/><text x=\"{}\" y=\"{at}\">{}</text>",
            at - 9.0,
            left + 16.0,
            escape(label)
        );
    }
    svg + "</svg>\n"
}

/// What a figure shows of scores: from 0 on, or from the least on where some are below it, and no further than −1.
fn floor(scores: impl Iterator<Item = f64>) -> f64 {
    let least = scores.fold(0.0, f64::min).max(-1.0);
    if least > -0.005 { 0.0 } else { least }
}

/// The place of a point: x in shares of the field, y from `floor` to 1.
fn at(x: f64, y: f64, floor: f64) -> (f64, f64) {
    (ROOM.0 + x * FIELD.0, ROOM.1 + (1.0 - (y.clamp(floor, 1.0) - floor) / (1.0 - floor)) * FIELD.1)
}

fn bars(document: &Value, problem: Problem, own: &[&Value], window: &Value) -> String {
    let layers: Vec<u64> = list(&document["layers"]).iter().filter_map(Value::as_u64).collect();
    let count = layers.len().max(1) as f64;
    let (mut inside, mut legend) = (String::new(), vec![]);
    let wide = 0.8 / count / own.len() as f64;
    let means = own.iter().flat_map(|row| list(&row["by_layer"])).filter_map(|one| one["mean"].as_f64());
    let low = floor(means);
    for (number, row) in own.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        for one in list(&row["by_layer"]) {
            let place = layers.iter().position(|layer| Some(*layer) == one["layer"].as_u64());
            let (Some(place), Some(mean)) = (place, one["mean"].as_f64()) else { continue };
            let (x, y) = at((place as f64 + 0.1) / count + wide * number as f64, mean.max(0.0), low);
            let (_, end) = at(0.0, mean.min(0.0), low);
            let _ = writeln!(
                inside,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"><title>layer {}: {mean:.3}</title></rect>",
                wide * FIELD.0,
                end - y,
                layers[place]
            );
        }
        legend.push((colour.to_owned(), row["method"].as_str().unwrap_or_default().to_owned()));
    }
    let trace = list(&document["trace"]).iter().find(|trace| trace["window"] == *window);
    let line: Vec<String> = layers
        .iter()
        .enumerate()
        .filter_map(|(place, &layer)| {
            let effect = trace?["last_subject"][layer as usize].as_f64()?;
            let (x, y) = at((place as f64 + 0.5) / count, effect, low);
            Some(format!("{x:.1},{y:.1}"))
        })
        .collect();
    let _ = writeln!(
        inside,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"currentColor\" stroke-width=\"2\" stroke-dasharray=\"4 3\"/>",
        line.join(" ")
    );
    legend.push(("currentColor".into(), "tracing effect at the subject's last token (dashed)".into()));
    let every = layers.len().div_ceil(10).max(1);
    let ticks: Vec<(f64, String)> = layers
        .iter()
        .enumerate()
        .step_by(every)
        .map(|(place, layer)| ((place as f64 + 0.5) / count, layer.to_string()))
        .collect();
    let title = format!("{}: rewrite score by layer", problem.title());
    figure(&title, ("layer", &ticks), ("score, effect", (low, 1.0)), &inside, &legend)
}

fn scatter(row: &Value) -> String {
    let points: Vec<(f64, f64, String)> = list(&row["points"])
        .iter()
        .filter_map(|point| {
            Some((point[2].as_f64()?, point[3].as_f64()?, format!("fact {}, layer {}", point[0].as_str()?, point[1])))
        })
        .collect();
    let most = points.iter().map(|point| point.0).fold(1.0, f64::max);
    let low = floor(points.iter().map(|point| point.1));
    let mut inside = String::new();
    for (effect, score, what) in &points {
        let (x, y) = at(effect / most, *score, low);
        let _ = writeln!(
            inside,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{}\" fill-opacity=\".5\"><title>{}</title></circle>",
            COLOURS[0],
            escape(what)
        );
    }
    // The least-squares line.
    let count = points.len() as f64;
    let (mean_x, mean_y) =
        (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count);
    let spread: f64 = points.iter().map(|p| (p.0 - mean_x).powi(2)).sum();
    if spread > 0.0 {
        let slope = points.iter().map(|p| (p.0 - mean_x) * (p.1 - mean_y)).sum::<f64>() / spread;
        let (from, to) = (at(0.0, mean_y - slope * mean_x, low), at(1.0, mean_y + slope * (most - mean_x), low));
        let _ = writeln!(
            inside,
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"{}\" stroke-width=\"2\"/>",
            from.0, from.1, to.0, to.1, COLOURS[1]
        );
    }
    let r2 = share(&row["regression"]["r2"]["effect"]);
    let title = format!("{}, {}: R² {r2}", title_of(&row["problem"]), row["method"].as_str().unwrap_or_default());
    let ticks = [(0.0, "0".to_owned()), (0.5, format!("{:.1}", most / 2.0)), (1.0, format!("{most:.1}"))];
    figure(&title, ("tracing effect", &ticks), ("rewrite score", (low, 1.0)), &inside, &[])
}
