//! Many requests in one model: at once, or one on the other. One that cannot be edited in is left out and named; the others go on.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::apply::Editor;
use crate::edit::memory::without_contradictions;
use crate::edit::{Edit, EditRequest, Edited, WeightChange};
use crate::error::{Error, Result};
use crate::evaluate::case::Size;

/// What some requests have made of a model.
#[derive(Clone)]
pub struct Reached {
    /// The model with all that could be edited in.
    pub after: Edited,
    /// The requests that it was shown, those that were lost included.
    pub shown: usize,
    /// Why a request, by its number, was not edited in.
    pub lost: BTreeMap<usize, String>,
}

impl Reached {
    /// A model that was shown nothing.
    pub fn new(base: &Edited) -> Self {
        Reached { after: base.clone(), shown: 0, lost: BTreeMap::new() }
    }

    /// All requests by one edit. Where two contradict each other the later one stays, as it does in a sequence.
    ///
    /// # Errors
    /// What is no request's fault.
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
            match one(editor, base, &chosen) {
                Ok(after) => break after,
                Err(Error::Record { number, message }) if number < left.len() => {
                    lost.insert(left[number], message);
                }
                Err(error) => {
                    let message = fault(error)?;
                    let known = lost.len();
                    // Nobody was named: each is asked alone.
                    for &number in &left {
                        if let Err(error) = one(editor, base, &requests[number..=number]) {
                            lost.insert(number, fault(error)?);
                        }
                    }
                    if lost.len() == known {
                        lost.extend(left.into_iter().map(|number| (number, message.clone())));
                    }
                }
            }
        };
        Ok(Reached { after, shown: requests.len(), lost })
    }

    /// Goes on with the requests that were not shown yet, one on the other. `watch` is shown the model right after each edit, with the
    /// request's number.
    ///
    /// # Errors
    /// What is no request's fault, and what `watch` says.
    pub fn go_on(
        &mut self,
        editor: &dyn Editor,
        requests: &[EditRequest],
        watch: &mut dyn FnMut(usize, &Edited) -> Result<()>,
    ) -> Result<()> {
        for (number, request) in requests.iter().enumerate().skip(self.shown) {
            match one(editor, &self.after, std::slice::from_ref(request)) {
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
pub(super) fn one(editor: &dyn Editor, on: &Edited, requests: &[EditRequest]) -> Result<Edited> {
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
    let sum = WeightChange::sum(after.edits().iter().filter_map(|edit| edit.weights()));
    let mut size = Size { entries: after.memories().iter().map(|list| list.requests.len()).sum(), ..Size::default() };
    let (mut change, mut weight) = (0.0, 0.0);
    for (at, delta) in &sum.matrices {
        size.rank += delta.rank();
        change += delta.norm().powi(2);
        let base = after.base().decoder.linear(*at)?.weight.val();
        weight += base.square().sum().into_data().iter::<f64>().sum::<f64>();
    }
    size.norm = change.sqrt();
    size.relative = if weight > 0.0 { (change / weight).sqrt() } else { 0.0 };
    Ok(size)
}
