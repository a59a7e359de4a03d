//! Questions beside an edit that comes with none.

use super::pocket;
use super::record::{EditRecord, Probe};
use crate::error::Result;

/// Prompts about other things.
const UNRELATED: [&str; 3] = ["The capital of Japan is", "Water is made of hydrogen and", "The largest planet is"];

/// A record with rephrases and prompts out of scope, where it has none. Of a fact that the embedded world tells, and so a model of this name knows, other ways
/// to ask and neighbours are known, and what else is known of the fact is filled in.
///
/// # Errors
/// None in a program that was built whole.
pub fn with_questions(record: EditRecord, model: &str) -> Result<EditRecord> {
    let world = pocket::of_model(model).map(|_| pocket::world()).transpose()?;
    let known = world.as_ref().and_then(|world| world.about(&record.prompt)).unwrap_or_default();
    let mut locality = if record.locality.is_empty() { known.locality } else { record.locality };
    if locality.is_empty() {
        let unrelated = match &world {
            Some(world) => world.unrelated(&record.prompt, UNRELATED.len()),
            None => UNRELATED.map(|prompt| Probe::new(prompt, None)).to_vec(),
        };
        locality = [("unrelated".to_owned(), unrelated)].into();
    }
    Ok(EditRecord {
        rephrases: if record.rephrases.is_empty() { known.rephrases } else { record.rephrases },
        locality,
        subject: record.subject.or(known.subject),
        target_true: record.target_true.or(known.target_true),
        relation: record.relation.or(known.relation),
        ..record
    })
}
