//! Values over cases: means with intervals.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::bootstrap::{Bounds, Mean, Sheet, Statistic, interval, wilson};
use super::case::Case;
use super::protocol::balanced::{Labels, Tally};
use super::protocol::{Measured, Protocol, Together, Unit, about, place, together};

/// A number over cases. Its 95 % interval says what other cases of this kind would have given, not what other seeds of the editor
/// would: Wilson's where each case is 0 or 1, else the percentiles of 1,000 draws of the cases with replacement, no narrower at the ends
/// than that of a share of as many cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Whose number it is.
    pub protocol: Protocol,
    /// Its name.
    pub name: String,
    /// The mean over the cases that have the value; `score` and the figures of `balanced` are made of means and sums.
    pub mean: f64,
    /// Where the interval begins; nothing where cases say nothing of other cases.
    pub low: Option<f64>,
    /// Where it ends.
    pub high: Option<f64>,
    /// How many cases it is over.
    pub cases: usize,
}

/// How many cases have no numbers because their edit failed. They are in no mean: a figure is read beside this.
pub fn failed(cases: &[Case]) -> usize {
    cases.iter().filter(|case| case.error.is_some()).count()
}

/// The figures of cases, by protocol in the order of tables. Beside the means of all values there are
///
/// ```text
/// counterfact score       3 / (1/ES + 1/PS + 1/NS), of the means of efficacy, paraphrase and neighborhood
/// balanced in_scope, …    mean over the labels y of Σ right_y / Σ asked_y, sums over all cases
/// ```
///
/// whose intervals come from the same draws of cases. Of `peak_memory` and `perplexity_ratio/worst` it is the largest value, of `perplexity_ratio` the median. Nothing depends on the order of `cases`.
pub fn aggregate(cases: &[Measured], seed: u64) -> Vec<Figure> {
    let cases = in_order(cases);
    let mut sheet = Sheet::new(cases.len());
    let statistics = statistics(&mut sheet, &cases);
    let (sums, draws) = (sheet.sums(), sheet.resampled(seed));
    let figure = |named: &Named| {
        let together = together(named.protocol, &named.name);
        if together != Together::Mean {
            return of_order(named, together, &cases);
        }
        let mean = named.statistic.at(&sums);
        let unit = about(named.protocol, &named.name).unit;
        let between = match named.yes_or_no && unit == Unit::Share {
            true => Some(wilson(mean, named.cases)),
            false => {
                let draws = draws.iter().map(|sums| named.statistic.at(sums)).collect();
                interval(mean, draws, named.cases, Bounds::of_unit(unit))
            }
        };
        let (low, high) = between.unzip();
        Figure { protocol: named.protocol, name: named.name.clone(), mean, low, high, cases: named.cases }
    };
    statistics.iter().map(figure).collect()
}

/// A figure that the order of the cases' values gives: no draw of them says more of the largest, and little of the median of a few.
fn of_order(named: &Named, together: Together, cases: &[&Measured]) -> Figure {
    let values = cases.iter().flat_map(|case| &case.values);
    let mine = values.filter(|value| (value.protocol, &value.name) == (named.protocol, &named.name));
    let mut values: Vec<f64> = mine.map(|value| value.value).collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    let mean = match together {
        Together::Largest => values[last],
        Together::Median | Together::Mean => f64::midpoint(values[last / 2], values[values.len() / 2]),
    };
    Figure { protocol: named.protocol, name: named.name.clone(), mean, low: None, high: None, cases: named.cases }
}

/// Cases by id.
pub(super) fn in_order(cases: &[Measured]) -> Vec<&Measured> {
    let mut cases: Vec<&Measured> = cases.iter().collect();
    cases.sort_by(|a, b| a.id.cmp(&b.id));
    cases
}

/// The values of cases by name: a column each, with a place a case.
pub(super) struct Column {
    pub protocol: Protocol,
    pub name: String,
    pub values: Vec<Option<f64>>,
}

/// The columns of cases, in the order of tables.
pub(super) fn columns(cases: &[&Measured]) -> Vec<Column> {
    let mut numbers: HashMap<(Protocol, &str), usize> = HashMap::new();
    let mut columns: Vec<Column> = vec![];
    for (number, case) in cases.iter().enumerate() {
        for value in &case.values {
            let column = *numbers.entry((value.protocol, &value.name)).or_insert_with(|| {
                let values = vec![None; cases.len()];
                columns.push(Column { protocol: value.protocol, name: value.name.clone(), values });
                columns.len() - 1
            });
            columns[column].values[number] = Some(value.value).filter(|value| !value.is_nan());
        }
    }
    sort(&mut columns, |column| (column.protocol, &column.name));
    columns
}

/// In the order of tables; classes by name.
pub(super) fn sort<T>(list: &mut [T], key: impl Fn(&T) -> (Protocol, &str)) {
    list.sort_by(|a, b| {
        let (a, b) = (key(a), key(b));
        (a.0, place(a.0, a.1), a.1).cmp(&(b.0, place(b.0, b.1), b.1))
    });
}

/// A statistic and what it is called.
pub(super) struct Named {
    pub protocol: Protocol,
    pub name: String,
    pub cases: usize,
    /// Whether every case has 0 or 1.
    pub yes_or_no: bool,
    pub statistic: Statistic,
}

/// All statistics of cases, in the order of tables; their columns are added to the sheet.
fn statistics(sheet: &mut Sheet, cases: &[&Measured]) -> Vec<Named> {
    let columns = columns(cases);
    let mut named = made_of_parts(sheet, cases, &columns);
    for column in columns {
        let Some(mean) = Mean::of_column(sheet, &column.values) else { continue };
        let cases = column.values.iter().flatten().count();
        let yes_or_no = column.values.iter().flatten().all(|value| [0.0, 1.0].contains(value));
        let statistic = Statistic::Mean(mean);
        named.push(Named { protocol: column.protocol, name: column.name, cases, yes_or_no, statistic });
    }
    sort(&mut named, |named| (named.protocol, &named.name));
    named
}

/// What no single case has: score and balanced accuracy.
pub(super) fn made_of_parts(sheet: &mut Sheet, cases: &[&Measured], columns: &[Column]) -> Vec<Named> {
    let score = score(sheet, columns);
    type Scope = fn(&Labels) -> [Tally; 2];
    let scopes: [(&str, Scope); 2] =
        [("in_scope", |labels| labels.in_scope), ("out_of_scope", |labels| labels.out_of_scope)];
    let balanced = scopes.into_iter().filter_map(|(name, scope)| {
        let tallies = || cases.iter().map(|case| scope(&case.labels));
        let asked = tallies().filter(|tallies| tallies.iter().any(|tally| tally.asked > 0)).count();
        let mut column = |of: fn(&Tally) -> usize, label: usize| {
            sheet.column(tallies().map(|tallies| of(&tallies[label]) as f64).collect())
        };
        let labels = (asked > 0)
            .then(|| [0, 1].map(|label| (column(|tally| tally.right, label), column(|tally| tally.asked, label))))?;
        let statistic = Statistic::Balanced(labels);
        Some(Named { protocol: Protocol::Balanced, name: name.into(), cases: asked, yes_or_no: false, statistic })
    });
    score.into_iter().chain(balanced).collect()
}

/// The harmonic mean of the means of efficacy, paraphrase and neighborhood, where there are all three.
fn score(sheet: &mut Sheet, columns: &[Column]) -> Option<Named> {
    let part = |name: &str| columns.iter().find(|c| c.protocol == Protocol::Counterfact && c.name == name);
    let parts = [part("efficacy")?, part("paraphrase")?, part("neighborhood")?];
    let cases = parts.iter().map(|column| column.values.iter().flatten().count()).min()?;
    let [efficacy, paraphrase, neighborhood] = parts.map(|column| Mean::of_column(sheet, &column.values));
    let statistic = Statistic::Harmonic([efficacy?, paraphrase?, neighborhood?]);
    Some(Named { protocol: Protocol::Counterfact, name: "score".into(), cases, yes_or_no: false, statistic })
}
