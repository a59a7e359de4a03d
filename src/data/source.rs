//! Where a training, a validation or a test takes its records from.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::RngExt;
use rand::seq::{IndexedMutRandom, IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::claim::Labels;
use super::load::STANDARD_INPUT;
pub use super::record::OTHER_RECORDS;
use super::record::{EditRecord, Probe};
use super::world::{CLASSES, SAME_OLD_OBJECT, Split, World};
use super::{load_records, pocket, sets};
use crate::error::{Error, Result};
use crate::fetch::FetchSettings;
use crate::{paths, random};

/// Records of one part of the data.
#[derive(Debug, Clone)]
pub enum Source {
    /// Facts of a world: each draw is a new counterfactual.
    World {
        /// The world.
        world: World,
        /// Its part.
        split: Split,
        /// The facts of that part.
        facts: Vec<usize>,
        /// Those of them that are meant, by their places in `facts`, in the order in which [`Source::fixed`] has them.
        order: Vec<usize>,
        /// By which labels a classifier judges them, where they are put to one.
        claims: Option<Box<Labels>>,
    },
    /// Records of a file.
    Records(Records),
}

/// Records of a file, each a neighbour of the others.
#[derive(Debug, Clone)]
pub struct Records {
    all: Vec<EditRecord>,
    /// The records of each answer before the edit.
    by_answer: BTreeMap<String, Vec<usize>>,
}

impl From<Vec<EditRecord>> for Source {
    fn from(records: Vec<EditRecord>) -> Self {
        Source::Records(Records::new(records))
    }
}

impl Records {
    fn new(all: Vec<EditRecord>) -> Self {
        let mut by_answer: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, record) in all.iter().enumerate() {
            if let Some(answer) = &record.target_true {
                by_answer.entry(answer.clone()).or_default().push(index);
            }
        }
        Records { all, by_answer }
    }

    /// The records in the order of the file.
    pub fn all(&self) -> &[EditRecord] {
        &self.all
    }

    /// A record with neighbours from among the others, at most `per_class` of each class.
    fn drawn(&self, index: usize, per_class: usize, rng: &mut ChaCha8Rng) -> EditRecord {
        let mut record = self.all[index].clone();
        let everywhere: Vec<usize> = (0..per_class).map(|_| rng.random_range(0..self.all.len())).collect();
        let same = record.target_true.as_ref().and_then(|answer| self.by_answer.get(answer));
        let same: Vec<usize> = same.map_or(vec![], |same| same.sample(rng, per_class + 1).copied().collect());
        for (class, others) in [(OTHER_RECORDS, everywhere), (SAME_OLD_OBJECT, same)] {
            let others = others.into_iter().map(|other| &self.all[other]).filter(|other| {
                other.prompt != record.prompt && (record.subject.is_none() || other.subject != record.subject)
            });
            let probes: Vec<Probe> = others.filter_map(EditRecord::fact).take(per_class).collect();
            // A file may have neighbours of its own under the same name: they stay.
            if !probes.is_empty() {
                record.locality.entry(class.into()).or_default().extend(probes);
            }
        }
        record
    }
}

impl Source {
    /// `pocket` (its part `split`, or the one named: `pocket/train`, `pocket/validation`, `pocket/test`), a file in `folder` or
    /// from the working folder, a named set, or `-` for standard input; with `[from..to]` behind the name, a part of its records.
    ///
    /// # Errors
    /// A file that is missing or broken; a named set that was not fetched names the command.
    pub fn open(name: &str, split: Split, folder: &Path) -> Result<Self> {
        let (name, part) = part_of(name)?;
        let split = match name.strip_prefix(pocket::NAME) {
            Some("") => Some(split),
            Some(part) => Split::ALL.into_iter().find(|split| part.strip_prefix('/') == Some(split.name())),
            None => None,
        };
        if let Some(split) = split {
            let world = pocket::world()?;
            let facts = world.split(split);
            let mut order = fixed_order(facts.len());
            order.truncate(part.end);
            order.drain(..part.start.min(order.len()));
            return Ok(Source::World { world, split, facts, order, claims: None });
        }
        let mut records = load_records(&file(name, folder)?)?;
        let to = part.end.min(records.len());
        records.truncate(to);
        records.drain(..part.start.min(to));
        Ok(records.into())
    }

    /// The same as it is put to a classifier: facts as claims.
    ///
    /// # Errors
    /// Answers that are no labels, and labels of which none judges a claim.
    pub fn as_claims(self, labels: &Labels) -> Result<Self> {
        Ok(match self {
            Source::World { world, split, facts, order, .. } => {
                labels.check()?;
                Source::World { world, split, facts, order, claims: Some(Box::new(labels.clone())) }
            }
            Source::Records(records) => labels.put_all(records.all)?.into(),
        })
    }

    /// The same with each edit of a case as a record of its own.
    pub fn apart(self) -> Self {
        match self {
            Source::Records(records) if records.all.iter().any(|record| !record.also.is_empty()) => {
                let parts = |mut record: EditRecord| {
                    let further = std::mem::take(&mut record.also).into_iter().enumerate();
                    let id = record.id.clone();
                    let further =
                        further.map(move |(number, edit)| EditRecord { id: format!("{id}.{}", number + 1), ..edit });
                    std::iter::once(record).chain(further).collect::<Vec<_>>()
                };
                records.all.into_iter().flat_map(parts).collect::<Vec<_>>().into()
            }
            other => other,
        }
    }

    /// How many records one pass over the data has.
    pub fn len(&self) -> usize {
        match self {
            Source::World { order, .. } => order.len(),
            Source::Records(records) => records.all.len(),
        }
    }

    /// Whether there is no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The classes of out-of-scope prompts that its records can have.
    pub fn classes(&self) -> BTreeSet<&str> {
        match self {
            Source::World { .. } => CLASSES.into(),
            Source::Records(records) => {
                let own = records.all.iter().flat_map(|record| record.locality.keys().map(String::as_str));
                own.chain([OTHER_RECORDS, SAME_OLD_OBJECT]).collect()
            }
        }
    }

    /// BLAKE3 of all that records are drawn from, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        match self {
            Source::World { world, facts, .. } => {
                hasher.update(world.fingerprint().as_bytes());
                self.places().into_iter().for_each(|place| {
                    hasher.update(&(facts[place] as u64).to_le_bytes());
                });
            }
            Source::Records(records) => {
                for record in &records.all {
                    hasher.update(serde_json::to_string(record).unwrap_or_default().as_bytes());
                }
            }
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The records of draws `from..from + count` of a training: pass after pass over the data, each in an order of its own.
    /// `per_class` neighbours of each class are drawn.
    pub fn draws(&self, seed: u64, from: u64, count: usize, per_class: usize) -> Vec<EditRecord> {
        let length = self.len() as u64;
        let mut order: (u64, Vec<usize>) = (u64::MAX, vec![]);
        let draws = (from..from + count as u64).map(|number| {
            let (pass, place) = (number / length, (number % length) as usize);
            if order.0 != pass {
                let mut indices = self.places();
                indices.shuffle(&mut random::stream(seed, "order", pass));
                order = (pass, indices);
            }
            self.record(order.1[place], per_class, &mut random::stream(seed, "record", number))
        });
        draws.collect()
    }

    /// The places of all records that are meant, in order.
    fn places(&self) -> Vec<usize> {
        match self {
            Source::World { order, .. } => {
                let mut places = order.clone();
                places.sort_unstable();
                places
            }
            Source::Records(records) => (0..records.all.len()).collect(),
        }
    }

    /// At most `limit` records for validation or test: always the same ones, whoever asks. They belong to the data.
    pub fn fixed(&self, limit: usize, per_class: usize) -> Vec<EditRecord> {
        match self {
            Source::Records(records) => records.all.iter().take(limit).cloned().collect(),
            Source::World { order, .. } => {
                let record = |&index: &usize| {
                    self.record(index, per_class, &mut random::stream(0, "fixed record", index as u64))
                };
                order.iter().take(limit).map(record).collect()
            }
        }
    }

    fn record(&self, index: usize, per_class: usize, rng: &mut ChaCha8Rng) -> EditRecord {
        match self {
            Source::World { world, split, facts, claims, .. } => {
                // A training never sees a subject of the other parts, not even as a neighbour.
                let allowed = |fact: &super::world::Fact| *split != Split::Train || fact.split == Split::Train;
                let mut record = world.record(facts[index], per_class, allowed, rng);
                let Some(labels) = claims else { return record };
                for probe in record.locality.values_mut().flatten() {
                    probe.rival = probe.target.as_ref().and_then(|object| world.other_object(object, rng));
                }
                let number = rng.random_range(0..2);
                labels.put(record.clone(), number).unwrap_or(record)
            }
            Source::Records(records) => records.drawn(index, per_class, rng),
        }
    }
}

/// The order in which so many facts are validated and tested: the data's own.
fn fixed_order(facts: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..facts).collect();
    order.shuffle(&mut random::stream(0, "fixed order", 0));
    order
}

/// The file of a name, or what stands for standard input.
fn file(name: &str, folder: &Path) -> Result<PathBuf> {
    if name == STANDARD_INPUT {
        return Ok(name.into());
    }
    let named = sets::find(name.split('/').next().unwrap_or(name)).is_some();
    match paths::find(name, folder, Path::is_file) {
        Some(file) => Ok(file),
        None if named => Ok(sets::local_path(name, &FetchSettings::from_env())?),
        None => Ok(folder.join(name)),
    }
}

/// `counterfact[500..1000]`: the name, and the records meant; all of them where no part is named.
fn part_of(name: &str) -> Result<(&str, Range<usize>)> {
    let Some((stem, part)) = name.strip_suffix(']').and_then(|rest| rest.rsplit_once('[')) else {
        return Ok((name, 0..usize::MAX));
    };
    let wrong = || {
        Error::Config(format!("\"{name}\": a part of a data set is written NAME[from..to], NAME[from..] or NAME[..to]"))
    };
    let (from, to) = part.split_once("..").ok_or_else(wrong)?;
    let number =
        |text: &str, otherwise| if text.is_empty() { Ok(otherwise) } else { text.parse().map_err(|_| wrong()) };
    Ok((stem, number(from, 0)?..number(to, usize::MAX)?))
}

/// `count` out-of-scope prompts (fewer where there are fewer), each of a class drawn by its weight.
pub fn draw_locality<'a>(
    record: &'a EditRecord,
    count: usize,
    weight: impl Fn(&str) -> f64,
    rng: &mut ChaCha8Rng,
) -> Vec<&'a Probe> {
    let mut pools: Vec<(f64, Vec<&Probe>)> =
        record.locality.iter().map(|(class, probes)| (weight(class), probes.iter().collect())).collect();
    let mut drawn = vec![];
    while drawn.len() < count {
        pools.retain(|(weight, probes)| *weight > 0.0 && !probes.is_empty());
        let Ok((_, pool)) = pools.choose_weighted_mut(rng, |(weight, _)| *weight) else { break };
        let index = rng.random_range(0..pool.len());
        drawn.push(pool.swap_remove(index));
    }
    drawn
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_neighbours_of_each_other() {
        let record = |subject: &str, prompt: &str, answer: Option<&str>| EditRecord {
            prompt: prompt.into(),
            subject: Some(subject.into()),
            target_true: answer.map(str::to_owned),
            target_new: "new".into(),
            ..EditRecord::default()
        };
        let source = Source::from(vec![
            record("a", "a is in", Some("Rome")),
            record("b", "b is in", Some("Rome")),
            record("a", "a lies in", Some("Rome")),
            record("c", "c is in", Some("Oslo")),
            record("d", "d is in", None),
        ]);
        let drawn = source.draws(0, 0, 200, 2);
        let mut seen = std::collections::BTreeSet::new();
        for record in &drawn {
            for (class, probes) in &record.locality {
                assert!(!probes.is_empty() && probes.len() <= 2);
                for probe in probes {
                    // Never the subject itself, never a fact whose answer is not known.
                    assert!(!probe.prompt.starts_with(&record.subject.clone().unwrap()) && probe.target.is_some());
                    assert!(class == OTHER_RECORDS || probe.target == record.target_true);
                    seen.insert((class.clone(), record.prompt.clone(), probe.prompt.clone()));
                }
            }
        }
        let near = |prompt: &str| seen.iter().filter(|(class, of, _)| class == SAME_OLD_OBJECT && of == prompt).count();
        assert_eq!([near("a is in"), near("b is in"), near("c is in"), near("d is in")], [1, 2, 0, 0]);
        // Neighbours that the file itself calls so are not lost.
        let own = Probe::new("e is in", Some("Rome".into()));
        let mut records = [record("a", "a is in", Some("Rome")), record("b", "b is in", Some("Rome"))];
        records[0].locality.insert(SAME_OLD_OBJECT.into(), vec![own.clone()]);
        let drawn_of_own = Source::from(records.to_vec()).draws(0, 0, 20, 2);
        let of_a = drawn_of_own.iter().filter(|record| record.prompt == "a is in");
        assert!(of_a.clone().count() > 0);
        of_a.for_each(|record| assert!(record.locality[SAME_OLD_OBJECT].contains(&own)));
        // The same draw is the same record.
        assert_eq!(source.draws(0, 7, 1, 2), drawn[7..8]);
    }

    #[test]
    fn the_facts_of_a_world_are_the_same_whoever_asks() {
        let world = Source::open("pocket/test", Split::Train, Path::new("")).unwrap();
        let some = Source::open("pocket/test[10..25]", Split::Train, Path::new("")).unwrap();
        assert_eq!(some.fixed(usize::MAX, 2), world.fixed(25, 2)[10..]);
        let drawn = |source: &Source| source.draws(1, 0, source.len(), 0).into_iter().map(|record| record.subject);
        let (some, all): (BTreeSet<_>, BTreeSet<_>) = (drawn(&some).collect(), drawn(&world).collect());
        assert!(some.len() <= 15 && all.len() > 15 && some.is_subset(&all));
        let (few, more) = (world.fixed(20, 2), world.fixed(30, 3));
        for (few, more) in few.iter().zip(&more) {
            assert_eq!((&few.id, &few.prompt, &few.target_new), (&more.id, &more.prompt, &more.target_new));
            assert_eq!(few.rephrases, more.rephrases);
            for (class, probes) in &few.locality {
                assert_eq!(probes[..], more.locality[class][..probes.len()], "{class}");
            }
        }
        assert!(more.iter().any(|record| record.locality["same relation"].len() == 3));
    }

    #[test]
    fn a_fingerprint_tells_what_records_are_drawn_from() {
        let record =
            |answer: &str| EditRecord { prompt: "a".into(), target_new: answer.into(), ..EditRecord::default() };
        let file = |answers: &[&str]| Source::from(answers.iter().map(|text| record(text)).collect::<Vec<_>>());
        let world = |name: &str| Source::open(name, Split::Train, Path::new("")).unwrap();
        let all = [file(&["b"]), file(&["c"]), file(&["b", "c"]), world("pocket/train"), world("pocket/test")];
        let found: BTreeSet<String> = all.iter().map(Source::fingerprint).collect();
        assert_eq!(found.len(), all.len());
        assert_eq!(file(&["b"]).fingerprint(), all[0].fingerprint());
    }
}
