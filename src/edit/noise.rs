//! Noise that hides subjects: on the embeddings of their tokens, and nowhere else.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData, activation};
use rand_distr::{Distribution, StandardNormal};

use super::Edited;
use super::likelihood::{Scored, target_log_probabilities};
use crate::data::objective::Hidden;
use crate::data::record::place_of_subject;
use crate::error::{Error, Result};
use crate::model::tap::{NoTap, Place, Site, Span, Tap};
use crate::model::tokenizer::{Continuation, Tokenizer};
use crate::model::tokens::Tokens;
use crate::random;

/// The draws of these numbers, `[draws, tokens, width]`, N(0, σ²). A draw depends on the seed, its number and its shape alone: a further one
/// changes none before.
pub fn draw(model: &Edited, tokens: usize, hidden: Hidden, draws: Range<usize>) -> Tensor<3> {
    let decoder = &model.base().decoder;
    let shape = [draws.len(), tokens, decoder.spec.width];
    let mut values = Vec::with_capacity(shape.iter().product());
    for draw in draws {
        let mut stream = random::stream(hidden.seed, "subject noise", draw as u64);
        let mut normal = || -> f64 { StandardNormal.sample(&mut stream) };
        values.extend((0..shape[1] * shape[2]).map(|_| (hidden.sigma * normal()) as f32));
    }
    Tensor::from_data(TensorData::new(values, shape), (&decoder.device(), decoder.dtype()))
}

/// What hides the subjects of a batch, as a tap of [`Edited::embed`]: for each row the cell at which the noise begins and the noise
/// `[tokens, width]`, or nothing.
#[derive(Debug, Clone, Default)]
pub struct Noise(pub Vec<Option<(usize, Tensor<2>)>>);

impl Tap for Noise {
    fn activation(&mut self, at: Site, _: &Span, mut value: Tensor<3>) -> Tensor<3> {
        if at.place != Place::Embedding {
            return value;
        }
        for (row, (first, noise)) in self.0.iter().enumerate().filter_map(|(row, own)| Some((row, own.clone()?))) {
            let [tokens, width] = noise.dims();
            let part = [row..row + 1, first..first + tokens, 0..width];
            let sum = value.clone().slice(part.clone()) + noise.unsqueeze_dim(0);
            value = value.slice_assign(part, sum);
        }
        value
    }
}

impl Noise {
    /// Some draws of the noise for a text whose subject stands in a prompt: where it begins, and `[draws, tokens, width]`. None where it does not.
    ///
    /// # Errors
    /// A prompt that cannot be tokenised; a model with an encoder, whose subjects nothing here hides.
    pub fn of_subject(
        model: &Edited,
        prompt: &str,
        (subject, template): (&str, Option<&str>),
        hidden: Hidden,
        draws: Range<usize>,
    ) -> Result<Option<(usize, Tensor<3>)>> {
        if model.base().decoder.spec.source.is_some() {
            let message = "a subject is hidden in what a causal stack reads, and this model has an encoder";
            return Err(Error::Config(message.into()));
        }
        let tokenizer: &Tokenizer = &model.base().tokenizer;
        let Some(place) = place_of_subject(prompt, subject, template) else { return Ok(None) };
        let at = tokenizer.tokens_of(prompt, place)?;
        Ok(Some((at.start, draw(model, at.len(), hidden, draws))))
    }
}

/// Scores a continuation whose subject is hidden, on several stacks: what is told of each token is how likely it is given those before it,
/// where the probabilities of the beginnings are means over draws. `noise` is where the subject begins, and `[draws, tokens, width]`.
///
/// # Errors
/// A continuation longer than the context.
pub fn score(models: &[&Edited], text: &Continuation, (first, noise): &(usize, Tensor<3>)) -> Result<Vec<Scored>> {
    let [draws, tokens, width] = noise.dims();
    let rows: Vec<Vec<u32>> = vec![text.ids[..text.ids.len() - 1].to_vec(); draws];
    let own = |draw: usize| noise.clone().slice([draw..draw + 1, 0..tokens, 0..width]).squeeze_dim::<2>(0);
    let tap = Noise((0..draws).map(|draw| Some((*first, own(draw)))).collect());
    let rows = Tokens::new(rows).of(vec![text.text(); draws]);
    let reads: Vec<(usize, usize)> = (0..draws).flat_map(|row| text.reads().map(move |cell| (row, cell))).collect();
    let target = text.target();
    let targets = target.repeat(draws);
    let score = |model: &&Edited| -> Result<Scored> {
        let hidden = model.embed(&rows, &mut tap.clone())?;
        let hidden = model.blocks(hidden, 0..model.layers(), rows.span(), None, &mut NoTap)?;
        let log = activation::log_softmax(model.head(hidden, &reads), 1);
        let [_, vocabulary] = log.dims();
        let each: Vec<f64> = target_log_probabilities(log.clone(), &targets).into_data().iter::<f64>().collect();
        // ln of the mean over draws of the probability of the first 0, 1, 2, … tokens.
        let beginnings = (0..=target.len()).map(|count| {
            let of_draw = each.chunks(target.len()).map(|own| own[..count].iter().sum::<f64>().exp());
            let mean = of_draw.sum::<f64>() / draws as f64;
            // A model that has no number to say has none here either.
            if mean.is_nan() { mean } else { mean.max(f64::MIN_POSITIVE).ln() }
        });
        let beginnings: Vec<f64> = beginnings.collect();
        let mean = log.exp().reshape([draws, target.len(), vocabulary]).mean_dim(0).squeeze_dim::<2>(0);
        Ok(Scored {
            target: target.to_vec(),
            log_probabilities: beginnings.windows(2).map(|pair| (pair[1] - pair[0]) as f32).collect(),
            argmax: mean.argmax(1).into_data().iter::<i64>().map(|id| id as u32).collect(),
            text: None,
        })
    };
    models.iter().map(score).collect()
}
