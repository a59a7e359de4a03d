//! Makes a small model that knows a world of facts: a byte-level BPE, and a GPT-2 trained on sentences that tell the facts or a T5 trained to
//! answer their prompts, or a BERT trained to tell true claims from false ones.

use burn::module::Module;
use burn::optim::{AdamWConfig, GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Device, Distribution, Tensor, TensorData, activation};
use rand::RngExt;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Deserialize;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, TokenizerBuilder};

use super::gradients;
use super::schedule::Schedule;
use crate::data::claim::stated;
use crate::data::world::{Fact, World};
use crate::edit::likelihood::target_log_probabilities;
use crate::error::{Error, Result};
use crate::model::stack::build::{DecoderTensor, NormAt};
use crate::model::stack::decoder::Decoder;
use crate::model::stack::spec::DecoderSpec;
use crate::model::stack::weights::Weights;
use crate::model::tap::{NoTap, Stack, Unseen};
use crate::model::tokens::{BEGIN, Tokens, first_predicted};
use crate::sections::within;
use crate::{parallel, random};

/// The token that begins and ends every sentence.
pub const END: &str = "<|endoftext|>";

/// The tokens of a T5: what begins what the decoder reads, and what ends every text.
pub const PAIR_TOKENS: [&str; 2] = ["<pad>", "</s>"];

/// The tokens of a classifier: what pads texts, what begins and what ends them.
pub const CLAIM_TOKENS: [&str; 3] = ["[PAD]", "[CLS]", "[SEP]"];

/// What it says of a claim that does not hold, and of one that does.
pub const CLAIM_LABELS: [&str; 2] = ["False", "True"];

/// `[train]` of a pretraining: how the model learns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PretrainSettings {
    /// The seed of every draw.
    #[serde(default)]
    pub seed: u64,
    /// Optimiser updates.
    pub max_steps: usize,
    /// Sentences an update.
    pub batch: usize,
    /// The learning rate at its height.
    pub learning_rate: f64,
    /// Updates until it is reached.
    pub warm_up: usize,
    /// AdamW's decay.
    pub weight_decay: f32,
    /// The largest global norm of the gradient.
    pub clip: f64,
    /// How much a token of a prompt counts beside a token of the answer, which counts 1.
    pub prompt_weight: f64,
    /// Share of the sentences whose answer is known that a pass still repeats: the rest of the time goes to what is not known yet.
    pub repeat_known: f64,
    /// How facts are kept at their subjects.
    #[serde(default)]
    pub recall: Recall,
    /// Parts of a batch that are computed side by side. The result depends on it, not on the machine.
    pub shards: usize,
}

/// `recall`: in this share of the sentences, what stands behind a subject sees nothing of it below a layer, and from there on its last token
/// alone. What the model knows of the subject has to be there by then.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recall {
    /// Share of the sentences.
    pub share: f64,
    /// The first layer from which the subject is seen.
    pub layer: usize,
}

impl PretrainSettings {
    /// # Errors
    /// Values out of range.
    pub fn check(&self) -> Result<()> {
        within("train.max_steps", self.max_steps as f64, 1.0, 1e9)?;
        within("train.batch", self.batch as f64, 1.0, 1e6)?;
        within("train.learning_rate", self.learning_rate, 0.0, 1.0)?;
        within("train.warm_up", self.warm_up as f64, 0.0, 1e9)?;
        within("train.weight_decay", f64::from(self.weight_decay), 0.0, 1.0)?;
        within("train.clip", self.clip, 1e-9, f64::INFINITY)?;
        within("train.prompt_weight", self.prompt_weight, 0.0, 1.0)?;
        within("train.repeat_known", self.repeat_known, 0.0, 1.0)?;
        within("train.recall.share", self.recall.share, 0.0, 1.0)?;
        within("train.shards", self.shards as f64, 1.0, self.batch as f64)
    }
}

/// A sentence as tokens, and where its answer begins.
#[derive(Debug, Clone)]
pub struct Sentence {
    /// From [`END`] to [`END`]; for an encoder-decoder the prompt, [`BEGIN`], the answer and the end.
    pub ids: Vec<u32>,
    /// The first token of the answer.
    pub answer: usize,
    /// The subject's tokens: the first, and the first behind them.
    pub subject: [usize; 2],
}

/// Every sentence that tells a fact by a prompt it may be learnt with.
///
/// # Errors
/// What the tokenizer says.
pub fn sentences(world: &World, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<Sentence>> {
    let end = tokenizer.token_to_id(END).unwrap_or(0);
    let encode = |text: String| tokenizer.encode(text, false).map_err(|error| Error::Training(error.to_string()));
    let mut sentences = vec![];
    for (index, fact) in world.facts().iter().enumerate() {
        let answer = encode(format!(" {}.", fact.object))?;
        for prompt in world.prompts(index).0 {
            let mut ids = vec![end];
            let from = prompt.rfind(&fact.subject).unwrap_or(0);
            let prompt = encode(prompt)?;
            // Byte-level words begin at their space, so that prompt and answer can be tokenised apart.
            let at = |byte: usize| prompt.get_offsets().iter().position(|&(_, to)| to > byte).unwrap_or(0);
            let subject =
                [at(from), at((from + fact.subject.len()).saturating_sub(1)) + 1].map(|token| ids.len() + token);
            ids.extend(prompt.get_ids());
            let begin = ids.len();
            ids.extend(answer.get_ids());
            ids.push(end);
            sentences.push(Sentence { ids, answer: begin, subject });
        }
    }
    Ok(sentences)
}

/// Every fact by a prompt it may be learnt with, for an encoder, and its object, for a decoder.
///
/// # Errors
/// What the tokenizer says.
pub fn pairs(world: &World, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<Sentence>> {
    let encode = |text: &str| tokenizer.encode(text, true).map_err(|error| Error::Training(error.to_string()));
    let mut pairs = vec![];
    for (index, fact) in world.facts().iter().enumerate() {
        let answer = encode(&fact.object)?;
        for prompt in world.prompts(index).0 {
            let mut ids = encode(&prompt)?.get_ids().to_vec();
            ids.push(BEGIN);
            let begin = ids.len();
            ids.extend(answer.get_ids());
            pairs.push(Sentence { ids, answer: begin, subject: [0, 0] });
        }
    }
    Ok(pairs)
}

/// Every fact by a prompt it may be learnt with as a claim that holds, and the same with another object as one that does not, for a
/// classifier of `CLAIM_LABELS`.
///
/// # Errors
/// What the tokenizer says.
pub fn claims(world: &World, tokenizer: &tokenizers::Tokenizer) -> Result<Vec<Sentence>> {
    let mut claims = vec![];
    for (index, fact) in world.facts().iter().enumerate() {
        for (number, prompt) in world.prompts(index).0.iter().enumerate() {
            for (claim, holds) in claims_of(world, fact, prompt, number) {
                let encoded = tokenizer.encode(claim, true).map_err(|error| Error::Training(error.to_string()))?;
                let mut ids = encoded.get_ids().to_vec();
                ids.extend([BEGIN, u32::from(holds)]);
                claims.push(Sentence { answer: ids.len() - 1, ids, subject: [0, 0] });
            }
        }
    }
    Ok(claims)
}

/// A prompt of a fact with its object and with another one, and which of them holds.
pub fn claims_of(world: &World, fact: &Fact, prompt: &str, number: usize) -> Vec<(String, bool)> {
    let hash = blake3::hash(format!("{} {prompt} {number}", fact.subject).as_bytes());
    let draw = u64::from_le_bytes(std::array::from_fn(|byte| hash.as_bytes()[byte]));
    let other = world.other_object(&fact.object, &mut random::stream(0, "claims", draw));
    let objects = std::iter::once((fact.object.clone(), true)).chain(other.map(|other| (other, false)));
    objects.map(|(object, holds)| (stated(prompt, &object, None), holds)).collect()
}

/// A byte-level BPE of `size` entries, [`END`] among them, learnt from the prompts and, each fact once, its sentence.
///
/// # Errors
/// What the trainer says.
pub fn tokenizer(world: &World, size: usize) -> Result<tokenizers::Tokenizer> {
    learnt(world, size, &[END], false)
}

/// The same for an encoder-decoder: [`PAIR_TOKENS`] among them, a space before every text and an end behind it.
///
/// # Errors
/// What the trainer says.
pub fn pair_tokenizer(world: &World, size: usize) -> Result<tokenizers::Tokenizer> {
    let tokenizer = learnt(world, size, &PAIR_TOKENS, true)?;
    around(tokenizer, &format!("$A {}", PAIR_TOKENS[1]), &PAIR_TOKENS)
}

/// The same for a classifier: [`CLAIM_TOKENS`] among them, the second before every text and the third behind it.
///
/// # Errors
/// What the trainer says.
pub fn claim_tokenizer(world: &World, size: usize) -> Result<tokenizers::Tokenizer> {
    let tokenizer = learnt(world, size, &CLAIM_TOKENS, true)?;
    around(tokenizer, &format!("{} $A {}", CLAIM_TOKENS[1], CLAIM_TOKENS[2]), &CLAIM_TOKENS)
}

/// A tokenizer that puts tokens around every text.
fn around(mut tokenizer: tokenizers::Tokenizer, template: &str, special: &[&str]) -> Result<tokenizers::Tokenizer> {
    let known: Vec<(&str, u32)> =
        special.iter().map(|token| (*token, tokenizer.token_to_id(token).unwrap_or(0))).collect();
    let made = TemplateProcessing::builder()
        .try_single(template)
        .map(|builder| builder.special_tokens(known).clone())
        .map_err(|error| error.to_string())
        .and_then(|builder| builder.build().map_err(|error| error.to_string()));
    let made = made.map_err(|error| Error::Training(format!("the tokenizer cannot be made: {error}")))?;
    tokenizer.with_post_processor(Some(made));
    Ok(tokenizer)
}

fn learnt(world: &World, size: usize, special: &[&str], space: bool) -> Result<tokenizers::Tokenizer> {
    let wrong = |error: tokenizers::Error| Error::Training(format!("the tokenizer cannot be learnt: {error}"));
    let mut trainer = BpeTrainerBuilder::new()
        .show_progress(false)
        .vocab_size(size)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.iter().map(|token| AddedToken::from(*token, true)).collect())
        .build();
    let byte_level = ByteLevel::new(space, true, true);
    let mut tokenizer = TokenizerBuilder::default()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(byte_level))
        .with_post_processor(Some(byte_level))
        .with_decoder(Some(byte_level))
        .build()
        .map_err(wrong)?;
    // One sentence a fact: were all told, every object would become one token.
    let once = (0..world.facts().len()).map(|index| {
        let (prompts, _) = world.prompts(index);
        format!("{} {}.", prompts[index % prompts.len()], world.facts()[index].object)
    });
    tokenizer.train(&mut trainer, once).map_err(wrong)?;
    Ok(tokenizer.into())
}

/// Weights drawn as GPT-2's: N(0, 0.02²), residual outputs divided by √(2·layers), norms 1, biases 0. The last gain takes back what the head scales by.
struct Fresh<'a> {
    spec: &'a DecoderSpec,
    device: &'a Device,
}

impl Weights<DecoderTensor> for Fresh<'_> {
    fn vector(&mut self, at: DecoderTensor, length: usize) -> Result<Tensor<1>> {
        let value = match at {
            DecoderTensor::Gamma(Stack::Decoder, NormAt::Head) => 1.0 / self.spec.head.scale,
            DecoderTensor::Gamma(..) => 1.0,
            _ => 0.0,
        };
        Ok(Tensor::from_data(TensorData::new(vec![value; length], [length]), (self.device, DType::F32)))
    }

    fn matrix(&mut self, at: DecoderTensor, shape: [usize; 2]) -> Result<Tensor<2>> {
        use crate::model::tap::{Role, Weight};
        let residual =
            matches!(at, DecoderTensor::Matrix(Weight { role: Role::Out | Role::CrossOut | Role::MlpDown, .. }));
        let std = if residual { 0.02 / (2.0 * self.spec.depth() as f64).sqrt() } else { 0.02 };
        Ok(Tensor::random(shape, Distribution::Normal(0.0, std), (self.device, DType::F32)))
    }
}

/// Trains a decoder on the token rows; `watch` gets the step and its loss.
///
/// # Errors
/// What the model says of the tokens, or `watch` of going on.
pub fn pretrain(
    spec: DecoderSpec,
    rows: &[Sentence],
    settings: &PretrainSettings,
    device: &Device,
    mut watch: impl FnMut(usize, f64) -> Result<()>,
) -> Result<Decoder> {
    let device = device.clone().autodiff();
    device.seed(settings.seed);
    let mut decoder = Decoder::build(spec.clone(), &mut Fresh { spec: &spec, device: &device })?;
    let mut optimizer = AdamWConfig::new().with_beta_2(0.95).with_weight_decay(settings.weight_decay).init();
    let schedule = Schedule::cosine(settings.learning_rate, settings.warm_up, settings.max_steps, 0.02);
    let mut batches: Vec<Vec<usize>> = vec![];
    // The loss of each sentence's answer when it was last read.
    let mut last = vec![f64::INFINITY; rows.len()];
    for step in 0..settings.max_steps {
        if batches.is_empty() {
            batches = epoch(rows, &last, settings, &mut random::stream(settings.seed, "sentences", step as u64));
        }
        let indices = batches.pop().unwrap_or_default();
        let mut rng = random::stream(settings.seed, "recall", step as u64);
        let read =
            |&row: &usize| (&rows[row], settings.recall.share > 0.0 && rng.random::<f64>() < settings.recall.share);
        let batch: Vec<Reading> = indices.iter().map(read).collect();
        let (loss, answers, gradients) = sharded(&decoder, &batch, settings)?;
        indices.iter().zip(answers).for_each(|(&row, answer)| last[row] = answer);
        watch(step, loss)?;
        let (gradients, _) = gradients::clip(gradients, &decoder, settings.clip);
        decoder = optimizer.step(schedule.at(step), decoder, gradients);
    }
    Ok(decoder.valid())
}

/// The mean loss of an answer's token below which the answer counts as known: each token then has a probability of e^−0.05 = 95 %
/// in the geometric mean. Greedy reading needs 50 % at most; what is above that is room for the weights to move in until the
/// sentence is read again.
const KNOWN: f64 = 0.05;

/// One pass in batches of rows of like length, the batches in random order: all that is not known, and a share of what is.
fn epoch(rows: &[Sentence], last: &[f64], settings: &PretrainSettings, rng: &mut ChaCha8Rng) -> Vec<Vec<usize>> {
    let batch = settings.batch;
    let wanted = |row: &usize| last[*row] > KNOWN || rng.random::<f64>() < settings.repeat_known;
    let mut order: Vec<usize> = (0..rows.len()).filter(wanted).collect();
    if order.is_empty() {
        order = (0..rows.len()).collect();
    }
    order.shuffle(rng);
    let mut batches = vec![];
    // Sorted in stretches, so that batches hold rows of like length and yet differ from pass to pass.
    for stretch in order.chunks_mut(16 * batch) {
        stretch.sort_by_key(|&row| rows[row].ids.len());
        batches.extend(stretch.chunks(batch).map(<[usize]>::to_vec));
    }
    batches.shuffle(rng);
    batches
}

/// A sentence, and whether it is read as [`Recall`] says.
type Reading<'a> = (&'a Sentence, bool);

/// What a batch, or a part of one, teaches.
struct Taught {
    loss: f64,
    /// For each sentence the mean loss of its answer's tokens.
    answers: Vec<f64>,
    gradients: GradientsParams,
}

/// Loss, losses of the answers, and gradient of a batch, its parts computed side by side and added in their order.
fn sharded(
    decoder: &Decoder,
    batch: &[Reading],
    settings: &PretrainSettings,
) -> Result<(f64, Vec<f64>, GradientsParams)> {
    let total: f64 = batch.iter().map(|(sentence, _)| weights(sentence, settings).iter().sum::<f64>()).sum();
    let parts: Vec<&[Reading]> = batch.chunks(batch.len().div_ceil(settings.shards)).collect();
    // Graphs that share a leaf share a tape, and the first backward pass consumes it: each part has leaves of its own.
    let own = |part| (decoder.clone().fork(&decoder.device()), part);
    let results =
        parallel::run(parts.into_iter().map(own).collect(), |(own, part)| gradients_of(&own, part, settings, total))?;
    let (mut loss, mut answers) = (0.0, vec![]);
    let mut sum = GradientsAccumulator::<Decoder>::new();
    for part in results {
        loss += part.loss;
        answers.extend(part.answers);
        sum.accumulate(decoder, part.gradients);
    }
    Ok((loss, answers, sum.grads()))
}

/// What each predicted token counts.
fn weights(sentence: &Sentence, settings: &PretrainSettings) -> Vec<f64> {
    (first_predicted(&sentence.ids)..sentence.ids.len())
        .map(|token| if token < sentence.answer { settings.prompt_weight } else { 1.0 })
        .collect()
}

/// The weighted loss of some sentences over the `total` weight of the batch, and its gradient.
fn gradients_of(decoder: &Decoder, read: &[Reading], settings: &PretrainSettings, total: f64) -> Result<Taught> {
    let rows: Vec<&Sentence> = read.iter().map(|(sentence, _)| *sentence).collect();
    let cells = rows.iter().enumerate().flat_map(|(row, sentence)| {
        (first_predicted(&sentence.ids) - 1..sentence.ids.len() - 1).map(move |cell| (row, cell))
    });
    let reads: Vec<(usize, usize)> = cells.collect();
    let targets: Vec<u32> =
        rows.iter().flat_map(|sentence| sentence.ids[first_predicted(&sentence.ids)..].iter().copied()).collect();
    let weights: Vec<f64> =
        rows.iter().flat_map(|sentence| weights(sentence, settings)).map(|weight| weight / total).collect();
    let tokens = Tokens::new(rows.iter().map(|sentence| sentence.ids[..sentence.ids.len() - 1].to_vec()).collect());
    let hidden = decoder.embed(&tokens, &mut NoTap)?;
    // What stands behind a subject sees none of it, then its last token.
    let unseen = |seen: usize| {
        let mut span = tokens.span().clone();
        for (row, (sentence, recall)) in span.rows.iter_mut().zip(read) {
            let [from, to] = sentence.subject;
            row.unseen = recall.then_some(Unseen { from, to: to - seen, by: to });
        }
        span
    };
    let layers = decoder.spec.depth();
    let layer = settings.recall.layer.min(layers);
    let hidden = decoder.blocks(hidden, 0..layer, &unseen(0), None, &mut NoTap)?;
    let hidden = decoder.blocks(hidden, layer..layers, &unseen(1), None, &mut NoTap)?;
    let log = activation::log_softmax(decoder.head(hidden, &reads), 1);
    let count = weights.len();
    let weights = Tensor::<1>::from_data(TensorData::new(weights, [count]), (&decoder.device().inner(), DType::F32));
    let log = target_log_probabilities(log, &targets);
    let loss = (log.clone() * weights).sum().neg();
    let gradients = GradientsParams::from_grads(loss.backward(), decoder);
    let log: Vec<f64> = log.inner().into_data().iter::<f64>().collect();
    let mut from = 0;
    let answers = rows.iter().map(|sentence| {
        let skipped = first_predicted(&sentence.ids);
        let here = from + sentence.answer - skipped..from + sentence.ids.len() - skipped;
        from = here.end;
        -log[here.clone()].iter().sum::<f64>() / here.len() as f64
    });
    Ok(Taught { loss: loss.into_data().iter::<f64>().sum(), answers: answers.collect(), gradients })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_repeats_a_share_of_what_is_known() {
        let settings = |repeat_known| PretrainSettings {
            seed: 0,
            max_steps: 1,
            batch: 8,
            learning_rate: 0.0,
            warm_up: 0,
            weight_decay: 0.0,
            clip: 1.0,
            prompt_weight: 0.0,
            repeat_known,
            recall: Recall::default(),
            shards: 1,
        };
        let rows = vec![Sentence { ids: vec![0; 4], answer: 2, subject: [1, 2] }; 1000];
        // Each answer just known, but for ten that are just not.
        let last: Vec<f64> = (0..1000).map(|row| if row < 10 { KNOWN + 1e-9 } else { KNOWN }).collect();
        let read = |share: f64| -> Vec<usize> {
            let mut read = epoch(&rows, &last, &settings(share), &mut random::stream(0, "sentences", 0)).concat();
            read.sort_unstable();
            read
        };
        assert!(read(0.0).into_iter().eq(0..10));
        assert!(read(1.0).into_iter().eq(0..1000));
        // 990 draws of 0.25: 248 within five standard deviations of 14.
        let some = read(0.25);
        assert!(some[..10].iter().copied().eq(0..10) && some.len().abs_diff(258) < 70, "{}", some.len());
    }
}
