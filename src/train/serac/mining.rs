//! Hard negatives: questions of other records that stand near an edit's by the pretrained reader, and are not in its scope.

use std::collections::HashMap;

use burn::tensor::Tensor;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::in_scope;
use crate::data::record::{EditRecord, Probe};
use crate::data::source::Source;
use crate::data::unicode;
use crate::edit::memory::select;
use crate::error::{Error, Result};
use crate::model::sentences::nearest;
use crate::network::reader::Reader;
use crate::random;
use crate::train::learned::Watch;

/// `[loss.mined]`: questions of other records that the pretrained reader finds near an edit's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Mined {
    /// How many a record is given in a step.
    pub count: usize,
    /// Where they are looked for.
    #[serde(flatten)]
    pub search: MiningSearch,
}

impl Default for Mined {
    fn default() -> Self {
        Mined { count: 1, search: MiningSearch::default() }
    }
}

/// Keys of a `count` above 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MiningSearch {
    /// Among how many of the nearest they are drawn.
    pub among: usize,
    /// How many of the nearest are left out, where a file holds one fact several times.
    pub skip: usize,
    /// The lower, the more the nearest are preferred.
    pub temperature: f64,
    /// Questions that are searched: a sample, where the data has more; at least as many as there are records.
    pub pool: usize,
}

impl Default for MiningSearch {
    fn default() -> Self {
        MiningSearch { among: 100, skip: 0, temperature: 0.1, pool: 4096 }
    }
}

/// Questions that are embedded between two looks at whether to go on.
const AT_ONCE: usize = 1024;

/// The records' own questions, each with those out of its scope.
fn questions_of(records: &[EditRecord]) -> Vec<Probe> {
    let questions = records.iter().flat_map(|record| {
        let own = Probe::new(&record.prompt, record.target_true.clone());
        std::iter::once(own).chain(record.locality.values().flatten().cloned())
    });
    questions.collect()
}

/// At most so many of the questions, in their order.
fn sample(questions: Vec<Probe>, most: usize) -> Vec<Probe> {
    if questions.len() <= most {
        return questions;
    }
    let mut order: Vec<usize> = (0..questions.len()).collect();
    // Which questions there are to find belongs to the data, not to a training's seed.
    order.shuffle(&mut random::stream(0, "questions to mine among", 0));
    order.truncate(most);
    order.sort_unstable();
    order.into_iter().map(|index| questions[index].clone()).collect()
}

/// Questions among which hard negatives are mined.
#[derive(Default)]
pub(super) struct Pool {
    questions: Vec<Probe>,
    /// `[questions, width]`, by the pretrained reader.
    embeddings: Option<Tensor<2>>,
    index: HashMap<String, usize>,
}

impl Pool {
    /// The records' own questions and those out of their scope, `most` of them or as many as there are records.
    ///
    /// # Errors
    /// A question that cannot be read; Ctrl-C.
    pub(super) fn build(source: &Source, most: usize, reader: &Reader, watch: Watch<'_>) -> Result<Self> {
        let mut pool = Pool::default();
        let questions = match source {
            // A file may be sorted: its beginning is no sample of it.
            Source::Records(records) => sample(questions_of(records.all()), most.max(records.all().len())),
            // What is drawn from a world is a sample already.
            Source::World { .. } => {
                let mut questions = questions_of(&source.draws(0, 0, most, 1));
                questions.truncate(most);
                questions
            }
        };
        for question in questions {
            if !pool.index.contains_key(&question.prompt) {
                pool.index.insert(question.prompt.clone(), pool.questions.len());
                pool.questions.push(question);
            }
        }
        let total = pool.questions.len();
        let mut parts = vec![];
        for questions in pool.questions.chunks(AT_ONCE) {
            let texts: Vec<&str> = questions.iter().map(|question| question.prompt.as_str()).collect();
            parts.push(reader.embed(&texts)?);
            let done: usize = parts.iter().map(|part: &Tensor<2>| part.dims()[0]).sum();
            if !watch(done, total) {
                return Err(Error::Interrupted(
                    " while texts were prepared; the same command begins with them again".into(),
                ));
            }
        }
        pool.embeddings = Some(Tensor::cat(parts, 0));
        Ok(pool)
    }

    /// Hard negatives: questions near each record's, about other subjects.
    pub(super) fn mine(
        &self,
        records: &[EditRecord],
        mined: &Mined,
        reader: &Reader,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Vec<Probe>>> {
        let (count, MiningSearch { among, skip, temperature, .. }) = (mined.count, mined.search);
        let Some(embeddings) = self.embeddings.as_ref().filter(|_| count > 0) else {
            return Ok(vec![vec![]; records.len()]);
        };
        let known: Vec<Option<&usize>> = records.iter().map(|record| self.index.get(&record.prompt)).collect();
        let queries = match known.iter().copied().collect::<Option<Vec<_>>>() {
            Some(known) => select(embeddings.clone(), &known.into_iter().copied().collect::<Vec<_>>()),
            None => reader.embed(&records.iter().map(|record| record.prompt.as_str()).collect::<Vec<_>>())?,
        };
        // Some of the nearest are about the edit's own subject: twice as many as are wanted leave enough where every second one is.
        let near = nearest(queries, embeddings, skip + 2 * among);
        let mined = records.iter().zip(near).map(|(record, near)| {
            let own = in_scope(record);
            let other = |&(index, _): &(usize, f32)| {
                let prompt = self.questions[index].prompt.as_str();
                own.iter().all(|(known, _)| *known != prompt)
                    && record.subject.as_ref().is_none_or(|subject| !unicode::contains(prompt, subject))
            };
            let mut near: Vec<(usize, f32)> = near.into_iter().filter(other).skip(skip).take(among).collect();
            let mut drawn = vec![];
            while drawn.len() < count {
                let weight = |(_, product): &(usize, f32)| (f64::from(*product - 1.0) / temperature).exp();
                let Ok(&chosen) = near.choose_weighted(rng, weight) else { break };
                near.retain(|(index, _)| *index != chosen.0);
                drawn.push(self.questions[chosen.0].clone());
            }
            drawn
        });
        Ok(mined.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_of_the_whole_file() {
        let questions: Vec<Probe> = (0..1000).map(|number| Probe::new(number.to_string(), None)).collect();
        let numbers = |most: usize| -> Vec<usize> {
            sample(questions.clone(), most).iter().map(|question| question.prompt.parse().unwrap()).collect()
        };
        assert_eq!(numbers(1000), (0..1000).collect::<Vec<_>>());
        let found = numbers(100);
        assert!(found.len() == 100 && found.is_sorted() && found == numbers(100));
        // Of every quarter there is something: 100 draws miss one with a chance of 1e-13.
        assert!((0..4).all(|quarter| found.iter().any(|number| number / 250 == quarter)), "{found:?}");
    }
}
