//! In-context editing (Zheng et al., 2023, IKE): demonstrations of how a new fact is used stand before the prompt. No weight changes.
//!
//! A demonstration is a fact of the training file in one of three roles; f is its prompt, o* its new object, o its old one:
//!
//! ```text
//! copy     New Fact: f o*   Prompt: f o*
//! update   New Fact: f o*   Prompt: (f in other words) o*
//! retain   New Fact: f o*   Prompt: (a fact of the neighborhood) o
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Tensor};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Editor;
use super::memory::Search;
use super::prepared::Prepared;
use crate::data::record::EditRecord;
use crate::data::source::Source;
use crate::data::world::Split;
use crate::edit::memory::{Answer, Consulted, Prefix, Recall, settled};
use crate::edit::{Change, Edit, EditRequest, Edited, Memory, Route};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::chat::Chat;
use crate::model::load::hub;
use crate::model::sentences::{SentenceEncoder, nearest};
use crate::model::separator::joined;
use crate::network::reader::{Pretrained, Reader};
use crate::network::serac::{ITSELF, located};
use crate::random;
use crate::sections::{choice, within};

/// What configs, edits and memories call it.
pub(super) const NAME: &str = "ike";

/// `[editor]` of an IKE config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IkeSettings {
    /// What finds the demonstrations: a sentence encoder, or `model` for the model's own hidden states.
    pub encoder: String,
    /// Records that demonstrations are made of.
    pub demonstrations: String,
    /// Demonstrations of each role; the roles are dealt out at random.
    #[serde(default = "roles")]
    pub roles: Roles,
    /// Where the nearest demonstration stands.
    #[serde(default)]
    pub order: Order,
    /// Whether the edit itself is demonstrated last (EasyEdit leaves this out).
    #[serde(default = "yes")]
    pub final_copy: bool,
    /// Tokens that are left for a prompt with its answer: the farthest demonstrations give way.
    #[serde(default = "room")]
    pub room: usize,
    /// The seed of the roles.
    #[serde(default)]
    pub seed: u64,
}

/// `roles`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roles {
    /// How many copy.
    pub copy: usize,
    /// How many update.
    pub update: usize,
    /// How many retain.
    pub retain: usize,
}

/// Where the nearest demonstration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Behind the others, before the edit.
    #[default]
    NearestLast,
    /// Before the others.
    NearestFirst,
}

fn roles() -> Roles {
    Roles { copy: 4, update: 12, retain: 16 }
}

fn yes() -> bool {
    true
}

fn room() -> usize {
    64
}

impl super::MethodSettings for IkeSettings {
    fn check_used(&self, given: &toml::Table) -> Result<()> {
        let Roles { copy, update, retain } = self.roles;
        choice::refuse_at_zero(
            "editor",
            given,
            ("the sum of roles", (copy + update + retain) as f64),
            &["order", "seed"],
        )
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn editor(self: Box<Self>, prepared: Prepared, model: &Arc<Model>, folder: &Path) -> Result<Box<dyn Editor>> {
        Ok(Box::new(Ike::new(*self, prepared, model, folder)?))
    }
}

/// What a demonstration shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DemonstrationRole {
    Copy,
    Update,
    Retain,
}

/// In-context editing.
pub struct Ike {
    settings: IkeSettings,
    prepared: Prepared,
    records: Vec<EditRecord>,
    /// A hash of these, in hexadecimal.
    records_id: String,
    /// `[records, width]`: what each record's fact is found by.
    embeddings: Option<Tensor<2>>,
    route: Arc<IkeRoute>,
    needs: Value,
}

impl Ike {
    /// The editor for a model; the encoder and the demonstrations are looked for in `folder`.
    ///
    /// # Errors
    /// An encoder or records that are missing or broken.
    pub fn new(mut settings: IkeSettings, prepared: Prepared, model: &Arc<Model>, folder: &Path) -> Result<Self> {
        within("editor.room", settings.room as f64, 1.0, 1e6)?;
        settings.encoder = located(&settings.encoder, folder);
        let reader = reader(&settings.encoder, model)?;
        let Roles { copy, update, retain } = settings.roles;
        let wanted = copy + update + retain;
        let records = match Source::open(&settings.demonstrations, Split::Train, folder)? {
            _ if wanted == 0 => vec![],
            Source::Records(records) => records.all().to_vec(),
            world => world.fixed(usize::MAX, 1),
        };
        let records_id = blake3::hash(&serde_json::to_vec(&records).unwrap_or_default()).to_hex()[..16].to_owned();
        let facts: Vec<String> = records.iter().map(|record| EditRequest::from(record).statement()).collect();
        let embeddings = match facts.is_empty() {
            true => None,
            false => Some(reader.embed(&facts.iter().map(String::as_str).collect::<Vec<_>>())?),
        };
        let needs = json!({"method": NAME, "encoder": settings.encoder, "fingerprint": reader.fingerprint()});
        let width = reader.width();
        let route = Arc::new(IkeRoute::new(Some(reader), width));
        Ok(Ike { settings, prepared, records, records_id, embeddings, route, needs })
    }

    /// The text before a prompt, ending in "Prompt:".
    fn prefix(&self, model: &Edited, request: &EditRequest, embedding: Tensor<2>) -> Result<String> {
        let IkeSettings { roles, order, final_copy, room, seed, .. } = &self.settings;
        let Roles { copy, update, retain } = *roles;
        let mut dealt = [
            vec![DemonstrationRole::Copy; copy],
            vec![DemonstrationRole::Update; update],
            vec![DemonstrationRole::Retain; retain],
        ]
        .concat();
        // Drawn for the statement: a request has the same demonstrations wherever it stands, alone, in a batch or in a sequence.
        let statement = request.said();
        dealt.shuffle(&mut random::stream_of(*seed, "roles", &statement));
        let near = match &self.embeddings {
            Some(known) => nearest(embedding, known, dealt.len() + OWN).remove(0),
            None => vec![],
        };
        let other = |record: &&EditRecord| {
            record.prompt != request.prompt && (request.subject.is_none() || record.subject != request.subject)
        };
        let near = near.into_iter().map(|(index, _)| &self.records[index]).filter(other).take(dealt.len());
        let mut shown: Vec<Demonstration> =
            near.zip(&dealt).map(|(record, role)| demonstration(record, *role)).collect();
        let tokenizer = &model.base().tokenizer;
        let chat = request.chat.as_ref().map(|asked| tokenizer.chat(asked.system.clone())).transpose()?;
        let own = final_copy.then(|| Demonstration::copy(request));
        let context = model.base().decoder.spec.context;
        let wanted = shown.len();
        loop {
            let mut in_order: Vec<&Demonstration> = shown.iter().collect();
            if *order == Order::NearestLast {
                in_order.reverse();
            }
            in_order.extend(&own);
            let text = match &chat {
                Some(chat) => as_turns(chat, &in_order, &statement)?,
                None => in_order.iter().map(|shown| shown.text()).collect::<String>() + &asked(&statement, ""),
            };
            let length = tokenizer.encode_prompt(&text)?.len();
            if length + room <= context {
                if shown.len() < wanted {
                    tracing::warn!(
                        "{} of {wanted} demonstrations fit into the context of {context} tokens",
                        shown.len()
                    );
                }
                return Ok(text);
            }
            if shown.pop().is_none() {
                return Err(Error::Input(format!(
                    "\"{statement}\" takes {length} tokens as a prefix; with editor.room = {room} that is more than the context of {context}"
                )));
            }
        }
    }
}

/// Demonstrations as turns of a chat, up to where the question stands in the last one.
fn as_turns(chat: &Chat, shown: &[&Demonstration], statement: &str) -> Result<String> {
    // No question would be this.
    const QUESTION: &str = "41b0d8 question 9f2c7e";
    let mut turns = vec![];
    for Demonstration { fact, prompt, answer, .. } in shown {
        turns.push(json!({"role": "user", "content": asked(fact, &format!(" {prompt}"))}));
        turns.push(json!({"role": "assistant", "content": answer}));
    }
    turns.push(json!({"role": "user", "content": asked(statement, &format!(" {QUESTION}"))}));
    if let Some(system) = &chat.asked.system {
        turns.insert(0, json!({"role": "system", "content": system}));
    }
    let text = chat.render(&json!(turns), true)?;
    match text.split_once(QUESTION) {
        Some((before, _)) => Ok(before.trim_end().to_owned()),
        None => Err(Error::Input("the chat template leaves out the last question behind demonstrations".into())),
    }
}

/// Neighbours that are looked at beyond those wanted: the edit itself may stand in the training file, and so may other facts of its subject,
/// of which benchmarks have a handful.
const OWN: usize = 16;

/// A fact, and a prompt that it answers or leaves alone, with its answer.
struct Demonstration {
    fact: String,
    prompt: String,
    answer: String,
    /// Both as one text.
    answered: String,
}

impl Demonstration {
    /// The edit's own prompt behind itself.
    fn copy(request: &EditRequest) -> Self {
        let prompt = request.chat.as_ref().map_or(request.prompt.as_str(), |chat| chat.said(&request.prompt));
        let (fact, answer) = (request.said(), request.target_new.clone());
        Demonstration { answered: fact.clone(), fact, prompt: prompt.to_owned(), answer }
    }

    fn text(&self) -> String {
        asked(&self.fact, &format!(" {}\n\n", self.answered))
    }
}

/// `New Fact: …`, and the prompt behind it.
fn asked(fact: &str, prompt: &str) -> String {
    format!("New Fact: {fact}\nPrompt:{prompt}")
}

/// A record in a role; it copies where it has nothing to update or to retain.
fn demonstration(record: &EditRecord, role: DemonstrationRole) -> Demonstration {
    let request = EditRequest::from(record);
    let answered = match role {
        DemonstrationRole::Copy => None,
        DemonstrationRole::Update => record.rephrases.first().map(|prompt| (prompt, &record.target_new)),
        DemonstrationRole::Retain => {
            let mut near = record.locality.values().flatten();
            near.find_map(|probe| Some((&probe.prompt, probe.target.as_ref()?)))
        }
    };
    match answered {
        Some((prompt, answer)) => {
            let answered = joined(prompt, answer, record.separator.as_deref());
            Demonstration { fact: request.statement(), prompt: prompt.clone(), answer: answer.clone(), answered }
        }
        None => Demonstration::copy(&request),
    }
}

impl Editor for Ike {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        let requests = settled(requests);
        let statements: Vec<String> = requests.iter().map(EditRequest::said).collect();
        let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
        let keys = self.route.embed(&statements)?;
        let texts = requests
            .iter()
            .enumerate()
            .map(|(number, request)| self.prefix(model, request, keys.clone().narrow(0, number, 1)));
        let texts = texts.collect::<Result<Vec<_>>>()?;
        let provenance = self.provenance(model, &requests);
        let route: Arc<dyn Route> = self.route.clone();
        let memory = Memory { needs: self.needs.clone(), keys, texts, values: None, route: Some(route) };
        Ok(Edit::new(provenance, Change::Memory(memory), Default::default()))
    }

    fn seed(&self) -> u64 {
        self.prepared.seed
    }

    fn describe(&self) -> (String, Value) {
        let (method, mut settings) = self.prepared.describe(NAME, &self.settings);
        settings["demonstrations_id"] = json!(self.records_id);
        (method, settings)
    }

    fn remembers(&self) -> bool {
        true
    }
}

/// What consults a memory that was read from a file.
///
/// # Errors
/// As [`IkeRoute::find`].
pub(super) fn route(edit: &Edit, memory: &Memory, search: &Search<'_>) -> Result<Arc<dyn Route>> {
    Ok(Arc::new(IkeRoute::find(memory, edit.provenance.requests.len(), search.model)?))
}

/// The reader of a name.
///
/// # Errors
/// An encoder that is missing or broken.
fn reader(encoder: &str, model: &Arc<Model>) -> Result<Reader> {
    let stack = match encoder {
        ITSELF => Pretrained::Decoder(model.clone()),
        name => {
            let folder = hub::resolve(name)?;
            Pretrained::Encoder(Arc::new(SentenceEncoder::open(&folder, &model.decoder.device(), DType::F32)?))
        }
    };
    Reader::new(stack, 0)
}

/// Prefixes whose keys and values are kept: those of the requests that are looked at now.
const KEPT: usize = 4;

/// Puts the nearest edit's prefix before every prompt.
pub struct IkeRoute {
    reader: Option<Reader>,
    width: usize,
    prefixes: Mutex<Vec<Arc<Prefix>>>,
}

impl IkeRoute {
    fn new(reader: Option<Reader>, width: usize) -> Self {
        IkeRoute { reader, width, prefixes: Mutex::default() }
    }

    /// For a memory that was read from a file. With one entry there is nothing to find, and no encoder is wanted.
    ///
    /// # Errors
    /// An encoder that is missing, or another than the memory was made with.
    pub fn find(memory: &Memory, entries: usize, model: &Arc<Model>) -> Result<Self> {
        if memory.texts.len() != entries {
            return Err(Error::Input(format!(
                "the memory is not whole: {entries} edits, {} texts",
                memory.texts.len()
            )));
        }
        if entries == 1 {
            return Ok(IkeRoute::new(None, memory.keys.dims()[1]));
        }
        let needs = &memory.needs;
        let name = needs["encoder"].as_str().unwrap_or_default();
        let reader = reader(name, model)?;
        let wanted = needs["fingerprint"].as_str().unwrap_or_default();
        if reader.fingerprint() != wanted {
            return Err(Error::Input(format!(
                "it is a memory for another encoder: it was made with {wanted}, {name} is {}",
                reader.fingerprint()
            )));
        }
        let width = reader.width();
        Ok(IkeRoute::new(Some(reader), width))
    }

    fn embed(&self, texts: &[&str]) -> Result<Tensor<2>> {
        match &self.reader {
            Some(reader) => reader.embed(texts),
            None => Err(Error::Input("a memory of several edits wants its sentence encoder".into())),
        }
    }

    fn kept(&self, text: &str, request: &EditRequest) -> Arc<Prefix> {
        let mut prefixes = self.prefixes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = prefixes.iter().find(|known| known.text == text) {
            return known.clone();
        }
        if prefixes.len() == KEPT {
            prefixes.remove(0);
        }
        let prefix = Arc::new(Prefix::new(
            text.to_owned(),
            request.chat.as_ref().map_or(String::new(), |chat| chat.before.clone()),
        ));
        prefixes.push(prefix.clone());
        prefix
    }
}

impl Route for IkeRoute {
    fn width(&self) -> usize {
        self.width
    }

    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        if prompts.is_empty() {
            return Ok(vec![]);
        }
        let entries = match recall.requests.len() {
            1 => vec![(0, 1.0); prompts.len()],
            _ => {
                let chat = recall.requests[0].chat.as_ref();
                let said = prompts.iter().map(|prompt| chat.map_or(prompt.as_str(), |chat| chat.said(prompt)));
                let questions = self.embed(&said.collect::<Vec<_>>())?;
                let keys = recall.keys.clone().cast(questions.dtype());
                nearest(questions, &keys, 1).into_iter().map(|near| near[0]).collect()
            }
        };
        let said = entries.into_iter().map(|(entry, likeness)| {
            let scope = f64::from(likeness).clamp(0.0, 1.0);
            Some(Consulted {
                entry: Some(entry),
                scope,
                answer: Answer::Prefixed(self.kept(&recall.texts[entry], &recall.requests[entry])),
            })
        });
        Ok(said.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::record::Probe;

    #[test]
    fn demonstrations_read_as_the_paper_has_them() {
        let mut record = EditRecord {
            prompt: "Lake Orrin lies in".into(),
            target_new: "Vell".into(),
            target_true: Some("Tamm".into()),
            rephrases: vec!["One finds Lake Orrin in".into()],
            ..EditRecord::default()
        };
        record.locality.insert("near".into(), vec![Probe::new("Lake Ost lies in", Some("Tamm".into()))]);
        let fact = "New Fact: Lake Orrin lies in Vell\n";
        assert_eq!(
            demonstration(&record, DemonstrationRole::Copy).text(),
            format!("{fact}Prompt: Lake Orrin lies in Vell\n\n")
        );
        assert_eq!(
            demonstration(&record, DemonstrationRole::Update).text(),
            format!("{fact}Prompt: One finds Lake Orrin in Vell\n\n")
        );
        assert_eq!(
            demonstration(&record, DemonstrationRole::Retain).text(),
            format!("{fact}Prompt: Lake Ost lies in Tamm\n\n")
        );
        // Without a neighbor it copies.
        record.locality.clear();
        let text = |role| demonstration(&record, role).text();
        assert_eq!(text(DemonstrationRole::Retain), text(DemonstrationRole::Copy));
    }
}
