//! The protocol `generate`: what the model says by itself, with nothing of the answer given away.

use super::ripple::{answered, test, uncounted_in_answers};
use super::text::{fluency, names, same_answer, says};
use super::{Protocol, Value, Values};
use crate::evaluate::case::{Case, FreeAnswer};
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::{in_headline, mean};

/// The values of a case, over its free answers and texts. An answer that is another name of the target counts as the target.
///
/// ```text
/// rewrite_exact      share of answers to own prompts that are the target, but for case and final punctuation
/// rewrite_contained  share in which the target occurs as whole words
/// rewrite_forced     share of the same probes whose whole target is the likeliest under teacher forcing: what would have been said of them
/// rephrase_…         the same on rephrases
/// portability_…      the same on consequences; of RippleEdits' tests, those whose conditions the unedited model answers
/// locality_same      share of answers to out-of-scope prompts that are, letter for letter, those from before the edit
///                    (CounterFact's attribute prompts left out)
/// fluency            entropy of what it writes up to its own end, bits; a short text has little, however well it is written
/// ```
pub fn values(case: &Case) -> Vec<Value> {
    let uncounted = uncounted_in_answers(case);
    let asked = |kind: Kind| {
        let rows = answered(case)
            .filter(move |(row, _)| if kind == Kind::Locality { in_headline(row) } else { row.kind == kind });
        rows.filter(|(row, _)| test(row).is_none_or(|test| !uncounted.contains(&test)))
    };
    let figure = |kind: Kind, holds: fn(&FreeAnswer, &ProbeRow) -> bool| {
        mean(asked(kind).map(|(row, answer)| f64::from(u8::from(holds(answer, row)))))
    };
    let mut values = Values::new(Protocol::Generate);
    for (name, kind) in [("rewrite", Kind::Rewrite), ("rephrase", Kind::Rephrase), ("portability", Kind::Portability)] {
        values.push(
            format!("{name}_exact"),
            figure(kind, |answer, row| names(row).any(|name| same_answer(&answer.after, name))),
        );
        values.push(format!("{name}_contained"), figure(kind, |answer, row| says(&answer.after, row)));
        values.push(format!("{name}_forced"), figure(kind, |_, row| row.after.exact()));
    }
    let same = figure(Kind::Locality, |answer, _| answer.before.trim() == answer.after.trim());
    values.push("locality_same", same);
    values.push("fluency", fluency(case.own_texts()));
    values.all()
}
