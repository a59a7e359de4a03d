//! Sentences to vectors, as sentence-transformers has them: an encoder, a mean over the tokens, length one.

use std::path::Path;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::encoder::EncoderModel;
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
    pub fn open(folder: &Path, device: &Device) -> Result<Self> {
        let model = EncoderModel::open(folder, device, DType::F32)?;
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
        let device = self.model.encoder.embedding.val().device();
        let width = self.width();
        let rows = sentences.iter().map(|text| self.model.tokenizer.encode_whole(text, self.longest));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_key(|&row| rows[row].len());
        let mut batches: Vec<&[usize]> = vec![];
        for alike in order.chunk_by(|&a, &b| rows[a].len() == rows[b].len()) {
            batches.extend(alike.chunks((CELLS / rows[alike[0]].len()).max(1)));
        }
        // Dealt out like cards: every part gets short and long ones.
        let parts = parallel::parts(&device);
        let parts: Vec<Vec<&[usize]>> =
            (0..parts).map(|part| batches.iter().copied().skip(part).step_by(parts).collect()).collect();
        let done = parallel::run(parts, |batches| {
            let embedded = batches.into_iter().map(|batch| {
                let tokens = Tokens::new(batch.iter().map(|&row| rows[row].clone()).collect());
                Ok((batch, self.pass(&tokens)?.into_data().iter::<f32>().collect::<Vec<f32>>()))
            });
            embedded.collect::<Result<Vec<_>>>()
        })?;
        let mut values = vec![0.0; rows.len() * width];
        for (batch, embedded) in done.into_iter().flatten() {
            for (&row, vector) in batch.iter().zip(embedded.chunks(width)) {
                values[row * width..][..width].copy_from_slice(vector);
            }
        }
        Ok(Tensor::from_data(TensorData::new(values, [rows.len(), width]), &device))
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
