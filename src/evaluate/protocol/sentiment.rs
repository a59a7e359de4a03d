//! The protocol `sentiment` (Mitchell et al., 2022, SERAC): replies on a topic, in the wanted sentiment or the other.

use super::{Protocol, Value, Values};
use crate::edit::likelihood::Scored;
use crate::evaluate::case::Case;
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::{Side, mean, verdict};

/// What one edit makes of a topic.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::evaluate) struct Reply {
    /// z_sentiment.
    pub sentiment: f64,
    /// z_topic.
    pub topic: f64,
}

/// The mean of the log-probabilities of all tokens of some replies together: a long reply counts more than a short one.
fn pooled<'a>(replies: impl Iterator<Item = &'a Scored>) -> Option<f64> {
    mean(replies.flat_map(|reply| reply.log_probabilities.iter().map(|&log| f64::from(log))))
}

/// One side of one edit, as the authors' code has it; see [`crate::evaluate::Sentiment`]. Nothing where there is no pair of replies.
pub(in crate::evaluate) fn reply<'a>(rows: impl Iterator<Item = &'a ProbeRow>, side: Side) -> Option<Reply> {
    let replies = rows.filter(|row| row.described && row.kind != Kind::Locality && verdict(row).is_none());
    let pairs: Vec<_> = replies.filter_map(|row| Some((row, row.rival.as_ref()?))).collect();
    let right_before = pooled(pairs.iter().map(|(row, _)| &row.before))?;
    let (right, wrong) = match side {
        Side::Before => (right_before, pooled(pairs.iter().map(|(_, rival)| &rival.before))?),
        Side::After => {
            (pooled(pairs.iter().map(|(row, _)| &row.after))?, pooled(pairs.iter().map(|(_, rival)| &rival.after))?)
        }
    };
    if right.is_nan() || wrong.is_nan() {
        // A model that has no number to say speaks neither in a sentiment nor on a topic.
        return Some(Reply { sentiment: 0.0, topic: 0.0 });
    }
    let sentiment = 1.0 / (1.0 + (wrong - right).exp());
    Some(Reply { sentiment, topic: (right - right_before).exp().min(1.0) })
}

/// The values of a case: `sentiment`, `topic` and `success`, z_sentiment, z_topic and their product.
pub fn values(case: &Case) -> Vec<Value> {
    let reply = reply(case.rows.iter(), Side::After);
    let mut values = Values::new(Protocol::Sentiment);
    values.push("sentiment", reply.map(|reply| reply.sentiment));
    values.push("topic", reply.map(|reply| reply.topic));
    values.push("success", reply.map(|reply| reply.sentiment * reply.topic));
    values.all()
}
