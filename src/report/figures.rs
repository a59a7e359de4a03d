//! The figures of a protocol in a terminal.

use serde_json::Value;

use super::table::{percent, table};
use crate::evaluate::{Balanced, Completion, CounterFact, PerplexityRatio, Sentiment, Summary, WatchedText};

/// Those of the `mend` protocol.
pub fn mend(summary: &Summary) -> String {
    let mut rows = vec![
        vec![
            "edit success".to_owned(),
            percent(summary.edit_success),
            "the edit's own prompt, whole target exact".to_owned(),
        ],
        vec!["generalization".into(), percent(summary.generalization), "rephrases, whole target exact".into()],
        vec!["locality".into(), percent(summary.locality), "out of scope, likeliest tokens unchanged".into()],
    ];
    rows.extend(
        summary
            .locality_by_class
            .iter()
            .map(|(class, share)| vec![format!("  {class}"), percent(Some(*share)), String::new()]),
    );
    rows.push(vec![
        "drawdown".into(),
        percent(summary.drawdown),
        "out of scope, exact answers before less those after".into(),
    ]);
    rows.extend(
        summary
            .drawdown_by_class
            .iter()
            .map(|(class, share)| vec![format!("  {class}"), percent(Some(*share)), String::new()]),
    );
    let header = format!("{} edits", summary.edits);
    table(&[&header, "share", "protocol mend: teacher-forced"], &rows)
}

/// What edits did to a running text, in a line; `before` is its perplexity on the unedited model.
pub fn running_text(text: &WatchedText, before: f64, ratio: &PerplexityRatio) -> String {
    let of = format!("perplexity of {} ({} tokens): {before:.1} before", text.name, text.tokens());
    let PerplexityRatio { median, worst, cases } = ratio;
    match cases {
        1 => format!("{of}, {:.1} after: {median:.3} ×", median * before),
        _ => format!("{of}; after an edit {median:.3} × (median of {cases}), {worst:.3} × (worst)"),
    }
}

/// Those of the `completion` protocol.
pub fn completion(figures: &Completion) -> String {
    let rows = [
        vec!["tokens".to_owned(), percent(figures.tokens), "behind the whole passage".to_owned()],
        vec!["cut tokens".into(), percent(figures.cut_tokens), "behind the passage without its beginning".into()],
    ];
    table(&["", "share", "protocol completion: the completion's tokens that are the likeliest"], &rows)
}

/// Those of the `counterfact` protocol before and after; nothing where no record knows its old answer.
pub fn counterfact(before: &CounterFact, after: &CounterFact) -> Option<String> {
    after.efficacy?;
    let row = |name: &str, of: fn(&CounterFact) -> Option<f64>, what: &str| {
        vec![name.to_owned(), percent(of(before)), percent(of(after)), what.to_owned()]
    };
    let rows = [
        row("efficacy", |figures| figures.efficacy, "the edit's own prompt, new answer likelier than the old"),
        row("paraphrase", |figures| figures.paraphrase, "rephrases, new answer likelier than the old"),
        row("neighborhood", |figures| figures.neighborhood, "other subjects, old answer likelier than the new"),
        row("score", |figures| figures.score, "harmonic mean of the three"),
    ];
    Some(table(&["", "before", "after", "protocol counterfact: by probability a token"], &rows))
}

/// Those of the `balanced` protocol before and after; nothing where no record has claims.
pub fn balanced(before: &Balanced, after: &Balanced) -> Option<String> {
    after.in_scope.or(after.out_of_scope)?;
    let row = |name: &str, of: fn(&Balanced) -> Option<f64>, what: &str| {
        vec![name.to_owned(), percent(of(before)), percent(of(after)), what.to_owned()]
    };
    let rows = [
        row("in scope", |figures| figures.in_scope, "claims that the edit decides, mean over True and False"),
        row("out of scope", |figures| figures.out_of_scope, "claims about others, mean over True and False"),
    ];
    Some(table(&["", "before", "after", "protocol balanced: by log-likelihood a token"], &rows))
}

/// Those of the `sentiment` protocol before and after; nothing where no record is about a sentiment.
pub fn sentiment(before: &Sentiment, after: &Sentiment) -> Option<String> {
    after.success?;
    let row = |name: &str, of: fn(&Sentiment) -> Option<f64>, what: &str| {
        vec![name.to_owned(), percent(of(before)), percent(of(after)), what.to_owned()]
    };
    let rows = [
        row("sentiment", |figures| figures.sentiment, "right replies against wrong ones"),
        row("topic", |figures| figures.topic, "right replies as likely as before"),
        row("success", |figures| figures.success, "product of the two"),
    ];
    Some(table(
        &["", "before", "after", "protocol sentiment: by log-likelihood, all tokens of all replies together"],
        &rows,
    ))
}

/// A bar for each layer: how many of the neurons that knowledge-neuron edits found stand there. Nothing of other edits.
pub fn neurons_by_layer<'a>(findings: impl Iterator<Item = &'a Value>) -> Option<String> {
    const WIDTH: usize = 40;
    let mut counts: Vec<usize> = vec![];
    for finding in findings {
        let layers = finding["layers"].as_u64()? as usize;
        counts.resize(counts.len().max(layers), 0);
        for neuron in finding["neurons"].as_array()?.iter().filter_map(Value::as_array).flatten() {
            *counts.get_mut(neuron["layer"].as_u64()? as usize)? += 1;
        }
    }
    let most = counts.iter().copied().max().filter(|&most| most > 0)?;
    let rows: Vec<Vec<String>> = counts
        .iter()
        .enumerate()
        .map(|(layer, &count)| vec![layer.to_string(), count.to_string(), "█".repeat((count * WIDTH).div_ceil(most))])
        .collect();
    Some(table(&["layer", "neurons", ""], &rows))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::neurons_by_layer;

    #[test]
    fn neurons_are_counted_by_layer() {
        let findings = [
            json!({"layers": 3, "neurons": [[{"layer": 1, "neuron": 7}, {"layer": 2, "neuron": 7}]]}),
            json!({"layers": 3, "neurons": [[{"layer": 2, "neuron": 8}]]}),
        ];
        let text = neurons_by_layer(findings.iter()).unwrap();
        let bars: Vec<usize> = text.lines().skip(2).map(|line| line.matches('█').count()).collect();
        assert_eq!(bars, [0, 20, 40]);
        assert_eq!(neurons_by_layer([json!(null)].iter()), None);
    }
}
