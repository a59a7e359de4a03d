//! Sentences to vectors, as sentence-transformers has them: an encoder, a mean over the tokens, length one.

use std::path::Path;

use burn::tensor::{DType, Device, Int, Tensor};

use super::load::encoder::EncoderModel;
use super::tap::NoTap;
use super::tokens::Tokens;
use crate::error::{Error, Result};
use crate::{files, parallel};

/// Cells of one forward pass: few enough that what passes between two products stays in the cache.
const CELLS: usize = 512;

/// An encoder of sentences.
pub struct SentenceEncoder {
    model: EncoderModel,
    pooling: Pooling,
    /// Tokens of a sentence at most; what stands behind is cut off.
    longest: usize,
}

/// How the vectors of a sentence's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    /// That of the first token.
    First,
}

impl SentenceEncoder {
    /// Loads a folder in Hugging Face layout; how tokens are pooled is read from `1_Pooling/config.json`, the mean where there is none.
    ///
    /// # Errors
    /// What of the files is wrong.
    pub fn open(folder: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let model = EncoderModel::open(folder, device, dtype)?;
        let setting = |file: &str, key: &str| -> Result<Option<serde_json::Value>> {
            let path = folder.join(file);
            if !path.is_file() {
                return Ok(None);
            }
            let json: serde_json::Value = serde_json::from_slice(&files::read(&path)?)
                .map_err(|error| Error::file(&path, format!("not JSON: {error}")))?;
            Ok(json.get(key).cloned())
        };
        let pooling = |name: &str| setting("1_Pooling/config.json", name);
        let pooling = match (pooling("pooling_mode_mean_tokens")?, pooling("pooling_mode_cls_token")?) {
            (Some(mean), Some(first)) if mean == false && first == true => Pooling::First,
            (Some(mean), _) if mean == false => {
                return Err(Error::file(
                    folder,
                    "it pools tokens neither by their mean nor by the first: not supported",
                ));
            }
            _ => Pooling::Mean,
        };
        let longest = setting("sentence_bert_config.json", "max_seq_length")?.and_then(|most| most.as_u64());
        let context = model.encoder.spec.context;
        let longest = longest.map_or(context, |most| context.min(most as usize)).max(3);
        Ok(SentenceEncoder { model, pooling, longest })
    }

    /// Elements of an embedding.
    pub fn width(&self) -> usize {
        self.model.encoder.spec.width
    }

    /// Tokens of a sentence at most.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The encoder.
    pub fn model(&self) -> &EncoderModel {
        &self.model
    }

    /// The embeddings of sentences, `[sentences, width]`, each of length one. Only sentences of one length share a pass, so that
    /// none is padded.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn embed(&self, sentences: &[&str]) -> Result<Tensor<2>> {
        let device = self.model.encoder.embedding.device();
        let rows = sentences.iter().map(|text| self.model.tokenizer.encode_whole(text, self.longest));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        alike_together(&rows.iter().map(Vec::len).collect::<Vec<_>>(), CELLS, &device, |batch| {
            self.pass(&Tokens::new(batch.iter().map(|&row| rows[row].clone()).collect()))
        })
    }

    fn pass(&self, tokens: &Tokens) -> Result<Tensor<2>> {
        let encoder = &self.model.encoder;
        let hidden = encoder.embed(tokens, &[], &mut NoTap)?;
        let hidden = encoder.blocks(hidden, 0..encoder.spec.layers, tokens.span(), &mut NoTap);
        let pooled = match self.pooling {
            Pooling::Mean => hidden.mean_dim(1).squeeze_dim::<2>(1),
            Pooling::First => hidden.narrow(1, 0, 1).squeeze_dim::<2>(1),
        };
        Ok(normalized(pooled))
    }
}

/// `of` on rows of these lengths, in batches of at most `cells` cells side by side; gives its rows `[rows, width]` in their order. Only
/// rows of one length share a batch: none is padded, and what stands beside a text changes nothing.
///
/// # Errors
/// What `of` says.
pub fn alike_together(
    lengths: &[usize],
    cells: usize,
    device: &Device,
    of: impl Fn(&[usize]) -> Result<Tensor<2>> + Sync,
) -> Result<Tensor<2>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&row| lengths[row]);
    let alike = order.chunk_by(|&a, &b| lengths[a] == lengths[b]);
    let batches: Vec<&[usize]> =
        alike.flat_map(|alike| alike.chunks((cells / lengths[alike[0]].max(1)).max(1))).collect();
    // Dealt out like cards: every part gets short and long ones.
    let parts = parallel::parts(device);
    let parts: Vec<Vec<&[usize]>> =
        (0..parts).map(|part| batches.iter().copied().skip(part).step_by(parts).collect()).collect();
    let done = parallel::run(parts, |batches: Vec<&[usize]>| {
        batches.into_iter().map(|batch| Ok((batch, of(batch)?.inner()))).collect::<Result<Vec<_>>>()
    })?;
    let (order, parts): (Vec<&[usize]>, Vec<Tensor<2>>) = done.into_iter().flatten().unzip();
    let mut place = vec![0i64; lengths.len()];
    order.concat().into_iter().enumerate().for_each(|(from, row)| place[row] = from as i64);
    let place = Tensor::<1, Int>::from_data(place.as_slice(), &device.clone().inner());
    Ok(Tensor::cat(parts, 0).select(0, place))
}

/// Rows `[rows, width]` scaled to length one.
pub fn normalized(rows: Tensor<2>) -> Tensor<2> {
    let length = rows.clone().square().sum_dim(1).sqrt().clamp_min(1e-12);
    rows / length
}

/// For each row of `queries [queries, width]` the `k` rows of `known [rows, width]` with the largest product, likeliest first; of
/// equal ones the first.
pub fn nearest(queries: Tensor<2>, known: &Tensor<2>, k: usize) -> Vec<Vec<(usize, f32)>> {
    let [count, rows] = [queries.dims()[0], known.dims()[0]];
    let k = k.min(rows);
    if count == 0 || k == 0 {
        return vec![vec![]; count];
    }
    let products: Vec<f32> = queries.matmul(known.clone().transpose()).into_data().iter::<f32>().collect();
    let best = |products: &[f32]| {
        let mut order: Vec<usize> = (0..rows).collect();
        let by_product = |a: &usize, b: &usize| products[*b].total_cmp(&products[*a]).then(a.cmp(b));
        if k < rows {
            order.select_nth_unstable_by(k - 1, by_product);
            order.truncate(k);
        }
        order.sort_by(by_product);
        order.into_iter().map(|row| (row, products[row])).collect()
    };
    products.chunks(rows).map(best).collect()
}
