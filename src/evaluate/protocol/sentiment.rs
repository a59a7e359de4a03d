//! The protocol `sentiment` (Mitchell et al., 2022, SERAC): replies on a topic, in the wanted sentiment or the other.

use super::{Protocol, Value, Values};
use crate::evaluate::case::Case;
use crate::evaluate::probes::{Kind, ProbeRow};
use crate::evaluate::rows::{Side, against, mean, verdict};

/// The mean of `of(z_sentiment, z_topic)` over the in-scope replies of one edit; see [`crate::evaluate::Sentiment`].
pub(in crate::evaluate) fn over_probes<'a>(
    rows: impl Iterator<Item = &'a ProbeRow>,
    side: Side,
    of: fn(f64, f64) -> f64,
) -> Option<f64> {
    let replies = rows.filter(|row| row.described && row.kind != Kind::Locality && verdict(row).is_none());
    let values = replies.filter_map(|row| {
        let (before, now) = (against(row, Side::Before)?, against(row, side)?);
        if now.0.is_nan() || now.1.is_nan() {
            // A model that has no number to say speaks neither in a sentiment nor on a topic.
            return Some(of(0.0, 0.0));
        }
        let sentiment = 1.0 / (1.0 + (now.0 - now.1).exp());
        let topic = (0.5 * (before.0 - now.0 + (before.1 - now.1))).exp().min(1.0);
        Some(of(sentiment, topic))
    });
    mean(values)
}

/// The values of a case: `sentiment`, `topic` and `success`, means of z_sentiment, z_topic and their product over its replies.
pub fn values(case: &Case) -> Vec<Value> {
    let of = |of| over_probes(case.rows.iter(), Side::After, of);
    let mut values = Values::new(Protocol::Sentiment);
    values.push("sentiment", of(|sentiment, _| sentiment));
    values.push("topic", of(|_, topic| topic));
    values.push("success", of(|sentiment, topic| sentiment * topic));
    values.all()
}
