//! A small world of facts, each told by many prompts, and the edits and neighbours drawn from it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;

use super::record::{EditRecord, Probe};
use crate::error::{Error, Result};

/// Prompts that a fact is never told with when a model learns the world: they show whether it knows the fact or the sentence.
const HELD_OUT: usize = 2;

/// The classes of locality prompts, from the loosest to the tightest neighbour.
pub const CLASSES: [&str; 4] = ["random", "same relation", SAME_OLD_OBJECT, "same subject"];

/// The class of facts whose answer is the one that the edit replaces: the hardest to leave alone.
pub const SAME_OLD_OBJECT: &str = "same old object";

/// A world of facts.
#[derive(Debug, Clone)]
pub struct World {
    relations: Vec<Relation>,
    facts: Vec<Fact>,
    /// Fact indices by subject and by object.
    by_subject: BTreeMap<String, Vec<usize>>,
    by_object: BTreeMap<String, Vec<usize>>,
    by_relation: Vec<Vec<usize>>,
    fingerprint: String,
}

#[derive(Debug, Clone)]
struct Relation {
    name: String,
    /// Statements, then questions; `{}` stands for the subject, and the object comes directly after.
    prompts: Vec<String>,
    objects: Vec<String>,
}

/// A true fact.
#[derive(Debug, Clone)]
pub struct Fact {
    relation: usize,
    /// What it is about.
    pub subject: String,
    /// The answer.
    pub object: String,
    /// Where it may be used.
    pub split: Split,
}

/// Facts are split by subject: all facts of a subject stand in one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// For training editors.
    Train,
    /// For choosing settings.
    Validation,
    /// For reported figures.
    Test,
}

impl Split {
    /// All parts.
    pub const ALL: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

    /// What it is called behind a set's name.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
            Split::Test => "test",
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    relations: Vec<FileRelation>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRelation {
    name: String,
    templates: Vec<String>,
    questions: Vec<String>,
    facts: Vec<(String, String)>,
}

impl Split {
    /// By the hash of the subject: 1 in 16 validation, 1 in 12 test.
    fn of_subject(subject: &str) -> Self {
        let draw = u16::from_le_bytes([
            blake3::hash(subject.as_bytes()).as_bytes()[0],
            blake3::hash(subject.as_bytes()).as_bytes()[1],
        ]) % 48;
        match draw {
            0..3 => Split::Validation,
            3..7 => Split::Test,
            _ => Split::Train,
        }
    }
}

impl World {
    /// Reads a world file; `origin` names it in errors.
    ///
    /// # Errors
    /// Contents that are no world, a prompt without its one `{}`, a relation with fewer than two objects.
    pub fn parse(contents: &[u8], origin: &Path) -> Result<Self> {
        let wrong = |message: String| Error::file(origin, message);
        let file: File = serde_json::from_slice(contents).map_err(|error| wrong(error.to_string()))?;
        let mut world = World {
            relations: vec![],
            facts: vec![],
            by_subject: BTreeMap::new(),
            by_object: BTreeMap::new(),
            by_relation: vec![],
            fingerprint: blake3::hash(contents).to_hex().to_string(),
        };
        for (relation, read) in file.relations.into_iter().enumerate() {
            let prompts: Vec<String> = read.templates.into_iter().chain(read.questions).collect();
            if prompts.len() <= HELD_OUT || prompts.iter().any(|prompt| prompt.matches("{}").count() != 1) {
                let message =
                    format!("relation {}: it needs more than {HELD_OUT} prompts, each with one {{}}", read.name);
                return Err(wrong(message));
            }
            let objects: BTreeSet<String> = read.facts.iter().map(|(_, object)| object.clone()).collect();
            if objects.len() < 2 {
                return Err(wrong(format!(
                    "relation {}: it needs at least two objects, or no fact can be changed",
                    read.name
                )));
            }
            world.relations.push(Relation { name: read.name, prompts, objects: objects.into_iter().collect() });
            world.by_relation.push(vec![]);
            for (subject, object) in read.facts {
                let index = world.facts.len();
                world.by_subject.entry(subject.clone()).or_default().push(index);
                world.by_object.entry(object.clone()).or_default().push(index);
                world.by_relation[relation].push(index);
                world.facts.push(Fact { relation, split: Split::of_subject(&subject), subject, object });
            }
        }
        if world.facts.is_empty() {
            return Err(wrong("it tells no fact".into()));
        }
        Ok(world)
    }

    /// BLAKE3 of the file, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// All facts.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// The names of the relations.
    pub fn relations(&self) -> impl Iterator<Item = &str> {
        self.relations.iter().map(|relation| relation.name.as_str())
    }

    /// The indices of the facts of one part.
    pub fn split(&self, split: Split) -> Vec<usize> {
        (0..self.facts.len()).filter(|&index| self.facts[index].split == split).collect()
    }

    /// The prompts of a fact with its subject in place, those it is learnt with and those held out.
    pub fn prompts(&self, index: usize) -> (Vec<String>, Vec<String>) {
        let fact = &self.facts[index];
        let templates = &self.relations[fact.relation].prompts;
        let hash = blake3::hash(format!("{}\n{}", fact.subject, self.relations[fact.relation].name).as_bytes());
        let first = usize::from(hash.as_bytes()[0]) % templates.len();
        let step = 1 + usize::from(hash.as_bytes()[1]) % (templates.len() - 1);
        let held: Vec<usize> = (0..HELD_OUT).map(|number| (first + number * step) % templates.len()).collect();
        let fill = |wanted: bool| {
            let chosen = (0..templates.len()).filter(|number| held.contains(number) == wanted);
            chosen.map(|number| templates[number].replace("{}", &fact.subject)).collect()
        };
        (fill(false), fill(true))
    }

    /// A counterfactual edit of one fact: another object of its relation, told by one of its prompts, with the others as
    /// rephrases in random order and `per_class` neighbours of each class that has any among the facts that `allowed` takes.
    pub fn record(
        &self,
        index: usize,
        per_class: usize,
        allowed: impl Fn(&Fact) -> bool,
        rng: &mut ChaCha8Rng,
    ) -> EditRecord {
        let fact = &self.facts[index];
        let relation = &self.relations[fact.relation];
        let (mut prompts, held) = self.prompts(index);
        let others: Vec<&String> = relation.objects.iter().filter(|object| **object != fact.object).collect();
        let target_new = others.choose(rng).map(|object| (*object).clone()).unwrap_or_default();
        prompts.shuffle(rng);
        let prompt = prompts.remove(0);
        // Held-out prompts first, so that a short list of rephrases holds them.
        let rephrases = held.into_iter().chain(prompts).collect();
        // Each class has a stream of its own: whoever asks for more neighbours gets the same ones first.
        let mut stream = || ChaCha8Rng::seed_from_u64(rng.random());
        let near = |pool: &[usize], fits: &dyn Fn(&Fact) -> bool, mut rng: ChaCha8Rng| -> Vec<Probe> {
            let fits = |other: &usize| {
                let other = &self.facts[*other];
                other.subject != fact.subject && fits(other) && allowed(other)
            };
            let mut pool: Vec<usize> = pool.iter().copied().filter(fits).collect();
            pool.shuffle(&mut rng);
            pool.iter().take(per_class).map(|&other| self.probe(other, by_hash(other, &fact.subject))).collect()
        };
        let mut anywhere = stream();
        let all: BTreeSet<usize> = (0..SOME).map(|_| anywhere.random_range(0..self.facts.len())).collect();
        let all: Vec<usize> = all.into_iter().collect();
        let mut locality = BTreeMap::new();
        let random = near(&all, &|other| other.relation != fact.relation && other.object != fact.object, stream());
        let relation_facts = near(&self.by_relation[fact.relation], &|other| other.object != fact.object, stream());
        let object_facts = near(&self.by_object[&fact.object], &|_| true, stream());
        let mut own_stream = stream();
        let subject_facts: Vec<usize> = self.by_subject[&fact.subject]
            .iter()
            .copied()
            .filter(|&other| self.facts[other].relation != fact.relation)
            .collect();
        // Few subjects have many facts: each fact is asked for in several ways, as far as there is room.
        let mut own: Vec<Probe> = vec![];
        for number in 0..per_class * usize::from(!subject_facts.is_empty()) {
            let probe = self.probe(subject_facts[number % subject_facts.len()], own_stream.random_range(0..1 << 16));
            if !own.contains(&probe) {
                own.push(probe);
            }
        }
        for (class, probes) in CLASSES.into_iter().zip([random, relation_facts, object_facts, own]) {
            if !probes.is_empty() {
                locality.insert(class.to_owned(), probes);
            }
        }
        EditRecord {
            id: index.to_string(),
            prompt,
            target_new,
            target_true: Some(fact.object.clone()),
            subject: Some(fact.subject.clone()),
            template: None,
            relation: Some(relation.name.clone()),
            rephrases,
            locality,
            ..EditRecord::default()
        }
    }

    /// Facts of different relations that have nothing to do with a prompt: questions beside an edit that comes with none.
    pub fn unrelated(&self, prompt: &str, count: usize) -> Vec<Probe> {
        let apart = |&&index: &&usize| {
            let Fact { subject, object, .. } = &self.facts[index];
            !prompt.contains(subject.as_str()) && !prompt.contains(object.as_str())
        };
        let of_each = self.by_relation.iter().filter_map(|facts| facts.iter().find(apart));
        of_each.take(count).map(|&index| self.probe(index, 0)).collect()
    }

    /// An object of the same kind as another one: both are answers to one relation.
    pub fn other_object(&self, object: &str, rng: &mut ChaCha8Rng) -> Option<String> {
        let relation = self.relations.iter().find(|relation| relation.objects.iter().any(|known| known == object))?;
        let others: Vec<&String> = relation.objects.iter().filter(|other| *other != object).collect();
        others.choose(rng).map(|other| (*other).clone())
    }

    /// The record of the fact that a prompt asks for, if it is one of this world's prompts.
    pub fn about(&self, prompt: &str) -> Option<EditRecord> {
        let asks = |&index: &usize| {
            let (known, held) = self.prompts(index);
            known.iter().chain(&held).any(|known| known == prompt)
        };
        let index = (0..self.facts.len()).find(asks)?;
        let mut record = self.record(index, 2, |_| true, &mut crate::random::stream(0, "about", index as u64));
        record.rephrases.retain(|rephrase| rephrase != prompt);
        Some(record)
    }

    /// A question about a fact, by a prompt that the fact is learnt with.
    fn probe(&self, index: usize, draw: usize) -> Probe {
        let (mut prompts, _) = self.prompts(index);
        let prompt = prompts.swap_remove(draw % prompts.len());
        Probe::new(prompt, Some(self.facts[index].object.clone()))
    }
}

/// Facts that random neighbours are drawn from.
const SOME: usize = 64;

/// Which prompt asks for a neighbour: by hash, so that it does not depend on how many draws came before.
fn by_hash(other: usize, subject: &str) -> usize {
    let hash = blake3::hash(format!("{other} {subject}").as_bytes());
    usize::from(hash.as_bytes()[0])
}
