//! Rotary position embedding (Su et al., 2021): pairs of channels of queries and keys, turned by an angle that grows with the position.
//!
//! `(a, b) → m · (a cos φ − b sin φ, b cos φ + a sin φ)`, with `φ = position · frequency` of the pair. Scalings for contexts longer than those
//! trained on stretch the frequencies, and some of them (m) also make scores sharper.

use std::f64::consts::PI;

use burn::tensor::{DType, Device, Tensor, TensorData};

use crate::model::tap::Span;

/// Rotary position embedding of the first channels of each head.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// The base θ of the frequencies `θ^(−2i/width)`.
    pub theta: f64,
    /// Channels of a head that are turned, even; those behind them stay as they are.
    pub width: usize,
    /// Which channels are a pair.
    pub pairs: Pairs,
    /// How frequencies are stretched for contexts longer than those trained on.
    pub scaling: RotaryScaling,
}

/// Which channels of a head are turned together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// i and i + width/2.
    Halves,
    /// 2i and 2i + 1.
    Neighbors,
}

/// How rotary frequencies are stretched.
#[derive(Debug, Clone, PartialEq)]
pub enum RotaryScaling {
    /// Not at all.
    None,
    /// All frequencies divided by a factor.
    Linear(f64),
    /// Llama 3: slow frequencies divided by `factor`, fast ones kept, those between blended.
    Llama3 {
        /// Divides the slow frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are slow.
        low: f64,
        /// Wavelengths below `original_context / high` are fast.
        high: f64,
        /// The context the model was first trained on.
        original_context: f64,
    },
    /// YaRN (Peng et al., 2023): as Llama 3, blended along the number of the pair, and m = `magnitude`.
    Yarn {
        /// Divides the slow frequencies.
        factor: f64,
        /// Pairs that turn fewer times than this over the original context are slow.
        slow: f64,
        /// Pairs that turn more often are fast.
        fast: f64,
        /// The context the model was first trained on.
        original_context: f64,
        /// Whether the ends of the blend are whole numbers of pairs.
        truncate: bool,
        /// m
        magnitude: f64,
    },
    /// LongRoPE (Ding et al., 2024): each frequency divided by a factor of its own, and m = `magnitude`.
    Each {
        /// One a pair.
        factors: Vec<f64>,
        /// m
        magnitude: f64,
    },
}

impl Rotary {
    /// The angle that a position adds, for each of the `width / 2` pairs.
    pub fn frequencies(&self) -> Vec<f64> {
        let pairs = self.width / 2;
        let plain = |pair: usize| self.theta.powf(-2.0 * pair as f64 / self.width as f64);
        let scale = |pair: usize| {
            let frequency = plain(pair);
            match &self.scaling {
                RotaryScaling::None => frequency,
                RotaryScaling::Linear(factor) => frequency / factor,
                RotaryScaling::Llama3 { factor, low, high, original_context } => {
                    let turns = original_context * frequency / (2.0 * PI);
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    frequency * (kept + (1.0 - kept) / factor)
                }
                RotaryScaling::Yarn { factor, slow, fast, original_context, truncate, .. } => {
                    // The pair, as a real number, that turns so often over the original context.
                    let turning =
                        |turns: &f64| pairs as f64 * (original_context / (turns * 2.0 * PI)).ln() / self.theta.ln();
                    let (first, last) = match truncate {
                        true => (turning(fast).floor(), turning(slow).ceil()),
                        false => (turning(fast), turning(slow)),
                    };
                    let (first, mut last) = (first.max(0.0), last.min(self.width as f64 - 1.0));
                    if first == last {
                        last += 0.001;
                    }
                    let stretched = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                    frequency * (1.0 - stretched + stretched / factor)
                }
                RotaryScaling::Each { factors, .. } => frequency / factors[pair],
            }
        };
        (0..pairs).map(scale).collect()
    }

    /// m, what cosines and sines are multiplied by.
    pub fn magnitude(&self) -> f64 {
        match self.scaling {
            RotaryScaling::Yarn { magnitude, .. } | RotaryScaling::Each { magnitude, .. } => magnitude,
            _ => 1.0,
        }
    }

    /// The angles of the cells of `rows` rows.
    pub(in crate::model) fn angles(&self, span: &Span, rows: usize, device: &Device, dtype: DType) -> Angles {
        let (frequencies, magnitude) = (self.frequencies(), self.magnitude());
        let cells = (0..rows).flat_map(|row| (0..span.width).map(move |cell| (row, cell)));
        let positions: Vec<f64> = cells.map(|(row, cell)| span.position(row, cell).unwrap_or(0) as f64).collect();
        let [cos, sin] = [f64::cos, f64::sin].map(|of: fn(f64) -> f64| {
            let of = |angle: f64| magnitude * of(angle);
            let values: Vec<f64> =
                positions.iter().flat_map(|position| frequencies.iter().map(move |f| of(position * f))).collect();
            Tensor::from_data(TensorData::new(values, [rows, span.width, 1, frequencies.len()]), (device, dtype))
        });
        Angles { cos, sin, pairs: self.pairs }
    }
}

/// Cosines and sines of the cells of a pass, `[batch or 1, tokens, 1, pairs]`.
#[derive(Clone)]
pub(in crate::model) struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
    pairs: Pairs,
}

impl Angles {
    /// Turns the pairs of each head of `x [batch, tokens, heads, head width]`.
    pub fn turn(&self, x: Tensor<4>) -> Tensor<4> {
        let [batch, tokens, heads, channels] = x.dims();
        let half = self.cos.dims()[3];
        let turned = x.clone().slice([0..batch, 0..tokens, 0..heads, 0..2 * half]);
        let kept = (2 * half < channels).then(|| x.slice([0..batch, 0..tokens, 0..heads, 2 * half..channels]));
        let turned = match self.pairs {
            Pairs::Halves => {
                let part = |from: usize| turned.clone().narrow(3, from, half);
                let (a, b) = self.turned(part(0), part(half));
                Tensor::cat(vec![a, b], 3)
            }
            Pairs::Neighbors => {
                let pairs = turned.reshape([batch, tokens, heads, half, 2]);
                let part = |which: usize| pairs.clone().narrow(4, which, 1).reshape([batch, tokens, heads, half]);
                let (a, b) = self.turned(part(0), part(1));
                Tensor::stack::<5>(vec![a, b], 4).reshape([batch, tokens, heads, 2 * half])
            }
        };
        match kept {
            Some(kept) => Tensor::cat(vec![turned, kept], 3),
            None => turned,
        }
    }

    fn turned(&self, a: Tensor<4>, b: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        (a.clone() * cos.clone() - b.clone() * sin.clone(), b * cos + a * sin)
    }
}
