//! Editors: functions from a model and requests to an edit.

pub mod alphaedit;
pub mod association;
pub mod calinet;
pub mod contexts;
pub mod emmet;
pub mod fine_tuning;
pub mod grace;
pub mod ike;
pub mod knowledge_neurons;
pub mod lookup;
pub mod lora;
pub mod memit;
pub mod memory;
mod methods;
mod nearest;
mod patch;
pub mod prepared;
pub mod rome;
mod settings;
pub mod side_memory;
pub mod steering;
pub mod t_patcher;
pub mod tuning;
pub mod ultraedit;
pub mod value;
pub mod wise;

use std::sync::Arc;

use crate::edit::join::Joined;
use crate::edit::{Edit, EditRequest, Edited, edited_by, memory as entries};
use crate::error::{Error, Result};
use crate::parallel;

pub use crate::edit::Editor;
pub use methods::needs_no_training;
pub use prepared::Prepared;
pub use settings::{EditorSettings, MethodSettings, settings};

/// How several cases are edited in; most are one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Each on the model as it is.
    Single,
    /// All by one edit.
    Batch,
    /// Each on the model that the last edit gave.
    Sequential,
}

impl Mode {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Single => "single",
            Mode::Batch => "batch",
            Mode::Sequential => "sequential",
        }
    }
}

/// What came of the cases.
pub struct Applied<R> {
    /// What `look` gave, in the order of the cases; of a batch it is one. Of a sequence that was stopped there are fewer than cases.
    pub looks: Vec<R>,
    /// All edits as one, and the model with all of them; nothing in single mode, where each stands by itself.
    pub end: Option<(Edit, Edited)>,
}

/// Called with each edit, the number of its case, and the model right after it. Neither is kept longer.
pub type Look<'a, R> = &'a (dyn Fn(usize, &Arc<Edit>, &Edited) -> Result<R> + Sync);

/// Edits cases into a model, all requests of a case together. `stop` is asked after each edit of a sequence whether to end there.
///
/// # Errors
/// The first case that cannot be edited, by its number, and the errors of `look`.
pub fn apply<R: Send>(
    editor: &dyn Editor,
    model: &Edited,
    cases: &[Vec<EditRequest>],
    mode: Mode,
    look: Look<'_, R>,
    stop: &dyn Fn() -> bool,
) -> Result<Applied<R>> {
    if cases.is_empty() {
        prepared::check(&[])?;
    }
    let model = &editor.adapted(model)?;
    let finite = |edit: Edit| match edit.is_finite() {
        true => Ok(Arc::new(edit)),
        false => Err(Error::Input("the edit holds values that are not finite; try a lower learning rate".into())),
    };
    let one = |on: &Edited, number: usize| -> Result<(Arc<Edit>, Edited)> {
        let contradiction = if editor.remembers() { Ok(()) } else { prepared::check(&cases[number]) };
        let edit = contradiction.and_then(|()| edited_by(editor, on, &cases[number])).and_then(finite);
        let edit = edit.map_err(|error| match error {
            // Of which of the case's edits is said by its prompt.
            Error::Record { message, .. } => Error::Record { number, message },
            other => other.of_record(number),
        })?;
        let after = on.with(edit.clone())?;
        Ok((edit, after))
    };
    match mode {
        Mode::Batch => {
            let owners: Vec<usize> =
                cases.iter().enumerate().flat_map(|(case, edits)| edits.iter().map(move |_| case)).collect();
            let (mut all, mut owners) = (cases.concat(), owners);
            // A memory settles what it is asked to hold by itself.
            if !editor.remembers() {
                cases
                    .iter()
                    .enumerate()
                    .try_for_each(|(number, case)| prepared::check(case).map_err(|error| error.of_record(number)))?;
                let stay = entries::without_repetitions(&all);
                owners = stay.iter().map(|&number| owners[number]).collect();
                all = stay.into_iter().map(|number| all[number].clone()).collect();
            }
            // An error names a request by its number: what is wanted is the case's.
            let edit = edited_by(editor, model, &all).map_err(|error| match error {
                Error::Record { number, message } => {
                    Error::Record { number: owners.get(number).copied().unwrap_or(number), message }
                }
                other => other,
            })?;
            let edit = finite(edit)?;
            let after = model.with(edit.clone())?;
            let looks = vec![look(0, &edit, &after)?];
            Ok(Applied { looks, end: Some((Arc::unwrap_or_clone(edit), after)) })
        }
        Mode::Sequential => {
            let (mut joined, mut looks, mut current) = (Joined::default(), vec![], model.clone());
            for number in 0..cases.len() {
                let (edit, after) = one(&current, number)?;
                looks.push(look(number, &edit, &after)?);
                joined.add(&edit)?;
                // What an edit changes stands in the weights by now, and in the sum.
                current = after.without_changes();
                if stop() {
                    break;
                }
            }
            Ok(Applied { looks, end: Some((joined.edit()?, current)) })
        }
        Mode::Single => {
            let looks = parallel::each(&model.base().decoder.device(), (0..cases.len()).collect(), |number| {
                let (edit, after) = one(model, number)?;
                look(number, &edit, &after)
            })?;
            Ok(Applied { looks, end: None })
        }
    }
}
