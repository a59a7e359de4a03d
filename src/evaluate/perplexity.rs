//! How well a model predicts plain text: what an edit costs where nothing was asked of it.

use burn::tensor::{DType, Tensor, activation};

use crate::edit::Edited;
use crate::edit::score::{buckets, check_targets, target_log_probabilities};
use crate::error::{Error, Result};
use crate::model::tap::NoTap;
use crate::model::tokenizer::Tokenizer;
use crate::model::tokens::Tokens;
use crate::parallel;

/// Places whose logits are held at a time: a vocabulary is wide.
const READS: usize = 256;

/// Texts as rows of at most `length` tokens. A row begins with the last token of the one before it, so that every token of a text
/// but its first is predicted once.
///
/// # Errors
/// A length below 2, and a text that cannot be tokenised.
pub fn windows(tokenizer: &Tokenizer, texts: &[String], length: usize) -> Result<Vec<Vec<u32>>> {
    if length < 2 {
        return Err(Error::Input(format!("rows of {length} tokens leave none to predict; take 2 or more")));
    }
    let mut rows = vec![];
    for text in texts {
        let ids = tokenizer.encode(text)?;
        let starts = (0..ids.len().saturating_sub(1)).step_by(length - 1);
        rows.extend(starts.map(|start| ids[start..ids.len().min(start + length)].to_vec()));
    }
    Ok(rows)
}

/// The perplexity of rows of tokens. The first token of a row is read, never predicted; every other token counts alike:
///
/// ```text
/// exp( − (1/N) Σ over rows x, t ≥ 1 of ln p(x_t | x_<t) ),   N the number of summands
/// ```
///
/// It is the weights' own word: memories answer prompts, and a running text is none.
///
/// # Errors
/// No row of two tokens, a row longer than the context, or a token outside the vocabulary.
pub fn perplexity(model: &Edited, rows: &[Vec<u32>]) -> Result<f64> {
    let rows: Vec<&Vec<u32>> = rows.iter().filter(|row| row.len() > 1).collect();
    let predicted: usize = rows.iter().map(|row| row.len() - 1).sum();
    if predicted == 0 {
        return Err(Error::Input("there is no token to predict; give texts of two tokens or more".into()));
    }
    // The last token is predicted, never read.
    let batches = buckets(rows.iter().map(|row| row.len() - 1));
    let of_batch = |batch: &Vec<usize>| -> Result<f64> {
        let tokens = Tokens::new(batch.iter().map(|&index| rows[index][..rows[index].len() - 1].to_vec()).collect());
        let hidden = model.embed(&tokens, &mut NoTap)?;
        let hidden = model.blocks(hidden, 0..model.layers(), tokens.span(), None, &mut NoTap)?;
        let cells =
            batch.iter().enumerate().flat_map(|(row, &index)| (0..rows[index].len() - 1).map(move |cell| (row, cell)));
        let cells: Vec<(usize, usize)> = cells.collect();
        let targets: Vec<u32> = batch.iter().flat_map(|&index| rows[index][1..].iter().copied()).collect();
        check_targets(model, &targets)?;
        let reads = cells.chunks(READS).zip(targets.chunks(READS)).map(|(cells, targets)| {
            let logits: Tensor<2> = model.head(hidden.clone(), cells).cast(DType::F32);
            let log = target_log_probabilities(activation::log_softmax(logits, 1), targets);
            log.into_data().iter::<f32>().map(f64::from).sum::<f64>()
        });
        Ok(reads.sum())
    };
    let parts = batches.len().div_ceil(parallel::parts(&model.base().decoder.device()));
    let sums = parallel::run(batches.chunks(parts).collect(), |batches: &[Vec<usize>]| {
        batches.iter().map(of_batch).collect::<Result<Vec<f64>>>()
    })?;
    let sum: f64 = sums.iter().flatten().sum();
    Ok((-sum / predicted as f64).exp())
}
