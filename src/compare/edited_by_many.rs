//! A model edited by many requests: by all at once, or by one after the other. A request that cannot be edited in is left out, with the
//! reason; the others stay.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::apply::Editor;
use crate::edit::memory::without_contradictions;
use crate::edit::{Change, Edit, EditRequest, Edited, WeightChange};
use crate::error::{Error, Result};
use crate::evaluate::case::Size;
use crate::tensors::sum_of_squares;

/// A model after many requests.
#[derive(Clone)]
pub struct EditedByMany {
    /// The model with all that could be edited in.
    pub after: Edited,
    /// How many requests were tried, those that are lost included.
    pub shown: usize,
    /// The requests that could not be edited in, by number, each with the reason.
    pub lost: BTreeMap<usize, String>,
}

impl EditedByMany {
    /// The model before any request.
    pub fn new(base: &Edited) -> Self {
        EditedByMany { after: base.clone(), shown: 0, lost: BTreeMap::new() }
    }

    /// All requests by one edit. Where two contradict each other the later one stays, as it does in a sequence.
    ///
    /// # Errors
    /// An error that no request is the cause of.
    pub fn at_once(editor: &dyn Editor, base: &Edited, requests: &[EditRequest]) -> Result<Self> {
        let mut lost = BTreeMap::new();
        if !editor.remembers() {
            for (first, second) in without_contradictions(requests).1 {
                if requests[first].target_new != requests[second].target_new {
                    let (prompt, target) = (&requests[second].prompt, &requests[second].target_new);
                    lost.insert(first, format!("contradicted by a later request: \"{prompt}\" is to be \"{target}\""));
                }
            }
        }
        let after = loop {
            let left: Vec<usize> = (0..requests.len()).filter(|number| !lost.contains_key(number)).collect();
            if left.is_empty() {
                break base.clone();
            }
            let chosen: Vec<EditRequest> = left.iter().map(|&number| requests[number].clone()).collect();
            match with_one_edit(editor, base, &chosen) {
                Ok(after) => break after,
                Err(Error::Record { number, message }) if number < left.len() => {
                    lost.insert(left[number], message);
                }
                Err(error) => {
                    let message = fault(error)?;
                    let known = lost.len();
                    // The error names no request: each is tried alone.
                    for &number in &left {
                        if let Err(error) = with_one_edit(editor, base, &requests[number..=number]) {
                            lost.insert(number, fault(error)?);
                        }
                    }
                    if lost.len() == known {
                        lost.extend(left.into_iter().map(|number| (number, message.clone())));
                    }
                }
            }
        };
        Ok(EditedByMany { after, shown: requests.len(), lost })
    }

    /// Edits in the requests that were not tried yet, one after the other. `watch` gets the model right after each edit, with the
    /// request's number.
    ///
    /// # Errors
    /// What is no request's fault, and what `watch` says.
    pub fn continue_with(
        &mut self,
        editor: &dyn Editor,
        requests: &[EditRequest],
        watch: &mut dyn FnMut(usize, &Edited) -> Result<()>,
    ) -> Result<()> {
        for (number, request) in requests.iter().enumerate().skip(self.shown) {
            match with_one_edit(editor, &self.after, std::slice::from_ref(request)) {
                Ok(after) => {
                    watch(number, &after)?;
                    self.after = after;
                }
                Err(error) => {
                    self.lost.insert(number, fault(error)?);
                }
            }
        }
        self.shown = self.shown.max(requests.len());
        Ok(())
    }
}

/// A model with one more edit.
pub(super) fn with_one_edit(editor: &dyn Editor, on: &Edited, requests: &[EditRequest]) -> Result<Edited> {
    let edit: Edit = editor.edit(on, requests)?;
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
        Change::Weights(change) => Some(change),
        // Counted by its entries.
        Change::Memory(_) => None,
    });
    let sum = WeightChange::sum(weights);
    let mut size = Size { entries: after.memories().iter().map(|list| list.requests.len()).sum(), ..Size::default() };
    let (mut change, mut weight) = (0.0, 0.0);
    for (at, delta) in &sum.matrices {
        size.rank += delta.rank();
        change += delta.norm().powi(2);
        let base = after.base().decoder.linear(*at)?.weight.val();
        weight += sum_of_squares(base);
    }
    size.norm = change.sqrt();
    size.relative = if weight > 0.0 { (change / weight).sqrt() } else { 0.0 };
    Ok(size)
}
