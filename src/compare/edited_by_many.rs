//! A model edited by many cases: by all at once, or by one after the other. A case that cannot be edited in is left out, with the reason; the
//! others stay. Most cases are one request; those of several are made or left out whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::apply::Editor;
use crate::edit::memory::without_contradictions;
use crate::edit::{Change, Delta, EditRequest, Edited, PassChange, edited_by};
use crate::error::{Error, Result};
use crate::evaluate::case::Size;
use crate::tensors::sum_of_squares;

/// A model after many cases.
#[derive(Clone)]
pub struct EditedByMany {
    /// The model with all that could be edited in.
    pub after: Edited,
    /// How many cases were tried, those that are lost included.
    pub shown: usize,
    /// The cases that could not be edited in, by number, each with the reason.
    pub lost: BTreeMap<usize, String>,
}

impl EditedByMany {
    /// The model before any edit.
    pub fn new(base: &Edited) -> Self {
        EditedByMany { after: base.clone(), shown: 0, lost: BTreeMap::new() }
    }

    /// All cases by one edit. Where two contradict each other the later one stays, as it does in a sequence.
    ///
    /// # Errors
    /// An error that no case is the cause of.
    pub fn at_once(editor: &dyn Editor, base: &Edited, cases: &[Vec<EditRequest>]) -> Result<Self> {
        let mut lost = BTreeMap::new();
        if !editor.remembers() {
            let all = cases.concat();
            let owners: Vec<usize> =
                cases.iter().enumerate().flat_map(|(case, requests)| requests.iter().map(move |_| case)).collect();
            for (first, second) in without_contradictions(&all).1 {
                if all[first].target_new != all[second].target_new {
                    let (prompt, target) = (&all[second].prompt, &all[second].target_new);
                    let message = format!("contradicted by a later request: \"{prompt}\" is to be \"{target}\"");
                    lost.insert(owners[first], message);
                }
            }
        }
        let after = loop {
            let left: Vec<usize> = (0..cases.len()).filter(|number| !lost.contains_key(number)).collect();
            if left.is_empty() {
                break base.clone();
            }
            let mut chosen: Vec<EditRequest> = left.iter().flat_map(|&number| cases[number].iter().cloned()).collect();
            let mut owners: Vec<usize> =
                left.iter().flat_map(|&number| cases[number].iter().map(move |_| number)).collect();
            // The same request again is made once.
            if !editor.remembers() {
                let stay = without_contradictions(&chosen).0;
                owners = stay.iter().map(|&number| owners[number]).collect();
                chosen = stay.into_iter().map(|number| chosen[number].clone()).collect();
            }
            match with_one_edit(editor, base, &chosen) {
                Ok(after) => break after,
                Err(Error::Record { number, message }) if number < owners.len() => {
                    lost.insert(owners[number], message);
                }
                Err(error) => {
                    let message = fault(error)?;
                    let known = lost.len();
                    // The error names no request: each case is tried alone.
                    for &number in &left {
                        if let Err(error) = with_one_edit(editor, base, &cases[number]) {
                            lost.insert(number, fault(error)?);
                        }
                    }
                    if lost.len() == known {
                        lost.extend(left.into_iter().map(|number| (number, message.clone())));
                    }
                }
            }
        };
        Ok(EditedByMany { after, shown: cases.len(), lost })
    }

    /// Edits in the cases that were not tried yet, one after the other. `watch` gets the model right after each edit, with the
    /// case's number.
    ///
    /// # Errors
    /// What is no case's fault, and what `watch` says.
    pub fn continue_with(
        &mut self,
        editor: &dyn Editor,
        cases: &[Vec<EditRequest>],
        watch: &mut dyn FnMut(usize, &Edited) -> Result<()>,
    ) -> Result<()> {
        for (number, requests) in cases.iter().enumerate().skip(self.shown) {
            match with_one_edit(editor, &self.after, requests) {
                Ok(after) => {
                    watch(number, &after)?;
                    self.after = after;
                }
                Err(error) => {
                    self.lost.insert(number, fault(error)?);
                }
            }
        }
        self.shown = self.shown.max(cases.len());
        Ok(())
    }
}

/// A model with one more edit.
pub(super) fn with_one_edit(editor: &dyn Editor, on: &Edited, requests: &[EditRequest]) -> Result<Edited> {
    let edit = edited_by(editor, on, requests)?;
    if !edit.is_finite() {
        return Err(Error::Input("the edit holds values that are not finite".into()));
    }
    on.with(Arc::new(edit))
}

/// What was wrong with a request.
///
/// # Errors
/// The error itself, where it is the machine's.
pub(super) fn fault(error: Error) -> Result<String> {
    match error {
        Error::Input(message) | Error::Training(message) | Error::Record { message, .. } => Ok(message),
        other => Err(other),
    }
}

/// How large the change of a stack is.
///
/// # Errors
/// A weight that the model does not have.
pub(super) fn size(after: &Edited) -> Result<Size> {
    let weights = after.edits().iter().filter_map(|edit| match &edit.change {
        Change::Pass(change) => Some(change),
        // Counted by its entries.
        Change::Memory(_) => None,
    });
    let sum = PassChange::sum(weights);
    let mut size = Size { entries: after.memories().iter().map(|list| list.requests.len()).sum(), ..Size::default() };
    let (mut change, mut weight) = (0.0, 0.0);
    for (at, delta) in &sum.matrices {
        size.rank += delta.rank();
        change += delta.norm().powi(2);
        let base = after.base().decoder.linear(*at)?.weight.val();
        weight += sum_of_squares(base);
    }
    for neurons in sum.neurons.values().flatten() {
        // What they would add to the MLP's matrices if their activation did nothing: K·V.
        size.rank += neurons.count();
        change += Delta::LowRank { a: neurons.keys.clone(), b: neurons.values.clone() }.norm().powi(2);
    }
    size.norm = change.sqrt();
    size.relative = if weight > 0.0 { (change / weight).sqrt() } else { 0.0 };
    Ok(size)
}
