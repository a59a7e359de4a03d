//! What a training of MEND and its kin holds.

use std::collections::BTreeSet;

use super::settings::KlTokens;
use super::{MendLossSettings, MendTrainSettings};
use crate::data::source::Source;
use crate::error::Result;
use crate::model::stack::sizes::Pass;
use crate::network::matrices::{EditTokens, Matrices};
use crate::network::mend::{Aggregation, MendSettings, Ridge};
use crate::plan::{Held, Work};
use crate::train::edit_loss::PARTS;
use crate::train::lower_layers::CELLS;
use crate::train::methods::{Planned, TESTING, TRAINING};

/// Records whose texts are counted, for all to be reckoned from.
const COUNTED: usize = 500;

/// What is held of a network over gradients, of hidden states, and of a step.
///
/// # Errors
/// Weights that the model does not have.
pub(in crate::train) fn held(
    editor: &MendSettings,
    loss: &MendLossSettings,
    own: &MendTrainSettings,
    planned: &Planned<'_>,
) -> Result<Vec<Held>> {
    let Planned { work, settings, .. } = planned;
    let texts = work.texts;
    let matrices = Matrices::new(&editor.layers, &editor.weights, work.spec)?;
    let network = editor.network_bytes(&matrices);
    // Itself, two moments, and the gradients of both parts.
    let mut all = vec![
        Held::during(TRAINING, "the network, its gradients and the optimiser's moments", 5 * network)
            .lowered_by("editor.rank"),
        Held::during(TESTING, "the network and the optimiser's moments", 3 * network),
    ];
    let of_answer = editor.edit_tokens == EditTokens::Answer;
    let edit_tokens = settings.edits_per_step.div_ceil(PARTS) * if of_answer { texts.target } else { texts.mean };
    let graph = editor.graph_bytes(&matrices, edit_tokens);
    all.extend(held_of_step(&matrices, loss, own.hidden_memory_gb, graph, planned)?);
    if editor.aggregation == Aggregation::NormalEquations {
        let tokens = settings.edits_per_step * if of_answer { texts.target } else { texts.mean };
        all.push(
            Held::during(TRAINING, "normal equations in f64", matrices.bytes_of_equations(tokens))
                .lowered_by("train.edits_per_step"),
        );
        if editor.normal.ridge == Ridge::Text {
            all.push(Held::always("second moments of running text in f64", matrices.bytes_of_moments()));
        }
    }
    Ok(all)
}

/// What is held of the edited layers, of hidden states, and of a step, whatever makes the edits: `graph` is what it keeps in a graph of its own for one of the parts of a
/// step, `memory` GB are for hidden states.
///
/// # Errors
/// Records that cannot be tokenised.
pub(in crate::train) fn held_of_step(
    matrices: &Matrices,
    loss: &MendLossSettings,
    memory: f64,
    graph: u64,
    planned: &Planned<'_>,
) -> Result<Vec<Held>> {
    let Planned { work, settings, .. } = planned;
    let (spec, texts) = (work.spec, work.texts);
    let (lowest, depth) = (matrices.lowest_layer(), spec.depth());
    let mut all = vec![];
    if work.in_file {
        all.push(Held::always(
            format!("layers {lowest} to {} in f32, over which graphs lie", depth - 1),
            spec.layers_bytes(lowest),
        ));
    }
    let work = &Work { in_file: false, ..*work };
    let kept = kept_states(loss, memory, planned)?.min((memory * 1e9) as u64);
    if kept > 0 {
        let what = format!("hidden states below layer {lowest}, kept over the training");
        all.push(Held::always(what, kept).lowered_by("train.hidden_memory_gb"));
    }

    // One of two parts that run side by side; the loss looks at some of the records.
    let records = settings.edits_per_step.div_ceil(PARTS);
    let looked_at = loss.looked_at.map_or(records, |most| most.div_ceil(PARTS).min(records));
    let (in_scope, near) = (loss.rephrases.in_scope * looked_at, loss.near() * looked_at);
    let facts = Pass::new(in_scope + near, texts.row);
    let of_near = if loss.near.kl == KlTokens::All { texts.row } else { texts.target };
    let reads = in_scope * texts.target + near * of_near;
    let above = depth - lowest;
    let windows = loss.text.as_ref().filter(|text| text.weight > 0.0 && text.share > 0.0);
    let (window, positions) = windows.map_or((Pass::default(), 0), |text| {
        let rows = (text.share * looked_at as f64).ceil() as usize;
        (Pass::new(rows, text.tokens), rows * text.positions)
    });
    // Of each head its gradient stays; the larger one is at work: logits, their logarithms, those of the base, and what makes the gradient.
    let heads = spec.logits_bytes(reads + positions) + 4 * spec.logits_bytes(reads.max(positions));
    let step = spec.graph_bytes(facts, above) + spec.graph_bytes(window, above) + heads + graph;
    let parts = PARTS.min(work.threads.max(1)) as u64;
    let step = parts * step.max(matrices.bytes_of_capture(work, records));
    all.push(
        Held::during(TRAINING, format!("a step over {} records", settings.edits_per_step), step)
            .lowered_by("train.edits_per_step"),
    );
    Ok(all)
}

/// The hidden states of all texts that are met again and again: windows of running text, and the records' texts where records are drawn more than once.
fn kept_states(loss: &MendLossSettings, memory: f64, planned: &Planned<'_>) -> Result<u64> {
    let Planned { work, settings, tokenizer, source, .. } = planned;
    if memory == 0.0 {
        return Ok(0);
    }
    let draws = settings.max_steps * settings.edits_per_step * settings.accumulate;
    let of_records = match source {
        Source::Records(records) if draws > source.len() => {
            let all = records.all();
            let some = all.iter().step_by(all.len().div_ceil(COUNTED).max(1));
            let (mut texts, mut counted) = (BTreeSet::new(), 0);
            for record in some {
                texts.extend(loss.all_texts(tokenizer, record)?);
                counted += 1;
            }
            let tokens: usize = texts.iter().map(Vec::len).sum();
            tokens * all.len() / counted.max(1)
        }
        _ => 0,
    };
    // A text that is drawn brings the others of its pass with it, and no more than that: short trainings do not meet all.
    let windows = loss.text.as_ref().filter(|text| text.weight > 0.0 && text.share > 0.0);
    let of_windows = windows.map_or(0, |text| {
        let drawn = (draws as f64 * text.share).ceil() as usize;
        (text.windows * text.tokens).min(drawn.saturating_mul(CELLS.max(text.tokens)))
    });
    let texts = 1 + loss.rephrases.in_scope + loss.near();
    let of_records = of_records.min(draws.saturating_mul(texts * CELLS));
    Ok(work.spec.stream_bytes(Pass::new(1, of_windows + of_records)))
}
