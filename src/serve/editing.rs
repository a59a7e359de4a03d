//! The thread that edits: one request after the other, while answers go on being generated.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedSender;

use super::edits::Edits;
use super::refusal::Refusal;
use crate::apply::{Editor, Mode, apply};
use crate::data::asking::Asking;
use crate::data::beside::with_questions;
use crate::data::record::EditRecord;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::{Error, Result};
use crate::evaluate::WatchedText;
use crate::evaluate::answers::probes_json;
use crate::evaluate::probes::{Limits, probe_table};
use crate::panics::survived;

/// Requests that may wait.
const QUEUE: usize = 16;

/// What is asked of an edit: enough to see what it does, and little enough that a person waits for it.
const PROBES: Limits = Limits { rephrases: 3, per_class: 2, rivals: false };

/// An editor that a server offers.
pub struct NamedEditor {
    /// The name in requests.
    pub name: String,
    /// Whether a request must name its subject.
    pub needs_subject: bool,
    /// Where it comes from.
    pub origin: String,
    /// The editor.
    pub editor: Box<dyn Editor>,
    /// How its records are put to the model.
    pub asking: Asking,
}

/// What editing needs.
pub struct Workshop {
    /// What the model was loaded as.
    pub loaded_as: String,
    /// The editors.
    pub editors: Vec<NamedEditor>,
    /// A running text that is read before and after.
    pub text: Option<WatchedText>,
    /// Where edits are kept.
    pub edits: Arc<Edits>,
}

/// A request for an edit.
pub struct Wanted {
    /// The number of the editor.
    pub editor: usize,
    /// What is to be edited.
    pub record: EditRecord,
    /// What the edit is to be called; a name is found unless given.
    pub id: Option<String>,
    /// The model that it is made on; that with all edits that are on unless given.
    pub on: Option<Arc<Edited>>,
    /// What comes of it. The edit is made whether anybody listens or not.
    pub events: UnboundedSender<Progress>,
}

/// What comes of a request for an edit.
#[derive(Debug)]
pub enum Progress {
    /// What is being done now.
    Stage(&'static str, f64),
    /// The edit, as soon as it is kept: models may name it from now on.
    Made(Value),
    /// The same with what was seen of it.
    Done(Value),
    /// There is none.
    Failed(Refusal),
}

/// A handle on the thread.
#[derive(Clone)]
pub struct Editing {
    queue: SyncSender<Wanted>,
    workshop: Arc<Workshop>,
}

impl Editing {
    /// Starts the thread.
    ///
    /// # Errors
    /// A system without threads.
    pub fn start(workshop: Workshop) -> Result<Self> {
        let (queue, wanted) = sync_channel(QUEUE);
        let workshop = Arc::new(workshop);
        let own = workshop.clone();
        let thread = std::thread::Builder::new().name("editing".into()).spawn(move || own.run(&wanted));
        thread.map_err(|error| Error::Input(format!("no thread could be started: {error}")))?;
        Ok(Editing { queue, workshop })
    }

    /// The editors.
    pub fn editors(&self) -> &[NamedEditor] {
        &self.workshop.editors
    }

    /// Takes on a request.
    ///
    /// # Errors
    /// Too many wait.
    pub fn submit(&self, wanted: Wanted) -> Result<(), Refusal> {
        self.queue.try_send(wanted).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::overloaded(format!("{QUEUE} edits wait already; try again in a while")),
            TrySendError::Disconnected(_) => Refusal::closing(),
        })
    }
}

impl Workshop {
    fn run(&self, queue: &Receiver<Wanted>) {
        for wanted in queue {
            let events = wanted.events.clone();
            let made = survived(|| self.edit(wanted));
            let last = match made {
                Some(Ok(edit)) => Progress::Done(edit),
                Some(Err(refusal)) => Progress::Failed(refusal),
                None => {
                    Progress::Failed(Refusal::own("the editor met an error of its own; the request was not the reason"))
                }
            };
            // Nobody listens any more: the edit is kept all the same.
            let _ = events.send(last);
        }
    }

    fn edit(&self, wanted: Wanted) -> Result<Value, Refusal> {
        let Wanted { editor, record, id, on, events } = wanted;
        let start = Instant::now();
        // Whoever has gone away need not be told.
        let stage = |name| drop(events.send(Progress::Stage(name, start.elapsed().as_secs_f64())));
        let NamedEditor { name, editor, asking, .. } = &self.editors[editor];
        stage("editing");
        id.as_ref().map_or(Ok(()), |id| self.edits.check_free(id))?;
        let before = match on {
            Some(on) => on,
            None => self.edits.all_on()?,
        };
        let tokenizer = &before.base().tokenizer;
        let record = asking.put(vec![with_questions(record, &self.loaded_as)?], tokenizer)?.remove(0);
        let adapted = editor.adapted(&before)?;
        let case = EditRequest::of_case(&record);
        let look = |_: usize, edit: &Arc<Edit>, after: &Edited| Ok((edit.clone(), after.clone()));
        let applied = apply(editor.as_ref(), &adapted, &[case], Mode::Single, &look, &|| false);
        let (edit, after) = applied.map_err(Error::without_number)?.looks.remove(0);
        stage("saving");
        // What an editor's edits lie on is an edit of its own, which comes first.
        let laid = adapted.edits()[before.edits().len()..].iter();
        for under in laid.filter(|under| !self.edits.knows(under)) {
            self.edits.add(&self.edits.free_id(&format!("{name}-adapted")), under.clone())?;
        }
        let id = id.unwrap_or_else(|| self.edits.free_id(name));
        self.edits.add(&id, edit)?;
        // Nobody may listen any more.
        let _ = events.send(Progress::Made(self.edits.describe(&id)?));
        stage("scoring");
        // The edit is kept by now, whatever comes of looking at it.
        match self.report(&before, &after, &record) {
            Ok(mut report) => {
                report["seconds"] = json!(start.elapsed().as_secs_f64());
                self.edits.report(&id, report)?;
            }
            Err(error) => tracing::warn!("edit {id} could not be looked at: {error}"),
        }
        self.edits.describe(&id)
    }

    /// What an edit did to its record's probes and to the running text.
    fn report(&self, before: &Edited, after: &Edited, record: &EditRecord) -> Result<Value> {
        let table = probe_table(before, after, &[(0, record)], PROBES)?;
        let probes = probes_json(before, after, &table)?;
        let base = Edited::new(before.base().clone());
        let perplexity = match &self.text {
            None => None,
            Some(text) => {
                let was = match before.edits().is_empty() {
                    true => text.unedited(&base)?,
                    false => Some(text.edited(&base, before)?),
                };
                let now = text.edited(&base, after)?;
                was.map(|was| json!({"before": was, "after": now, "ratio": now / was}))
            }
        };
        Ok(json!({"probes": probes, "perplexity": perplexity}))
    }
}
