//! `rope_scaling` and `rope_parameters`, as configs of many families have them.

use serde::Deserialize;

use super::super::layers::rotary::{Pairs, Rotary, RotaryScaling};
use super::agreed;

/// `rope_scaling` or `rope_parameters`.
#[derive(Deserialize)]
pub(super) struct Rope {
    rope_type: Option<String>,
    /// What older files call `rope_type`. A file may have both.
    #[serde(rename = "type")]
    old_type: Option<String>,
    rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    partial_rotary_factor: Option<f64>,
    /// Models whose layers differ have a section for each kind of layer instead.
    full_attention: Option<Box<Rope>>,
    sliding_attention: Option<Box<Rope>>,
}

/// The kinds of layers that may have sections of their own.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Full,
    Sliding,
}

impl Rope {
    fn of(&self, kind: Kind) -> Option<&Rope> {
        match kind {
            Kind::Full => self.full_attention.as_deref(),
            Kind::Sliding => self.sliding_attention.as_deref(),
        }
    }
}

/// All that a config says of rotary positions. What two places say they must say alike.
pub(super) struct Ropes<'a> {
    /// θ outside of the sections, with its key.
    pub theta: (&'static str, Option<f64>),
    /// The sections that the file has, by their names.
    pub sections: Vec<(String, &'a Rope)>,
    /// `max_position_embeddings`
    pub context: usize,
    /// `original_max_position_embeddings` outside of the sections.
    pub original_context: Option<f64>,
}

impl<'a> Ropes<'a> {
    /// Of the usual keys.
    pub fn new(theta: Option<f64>, scaling: Option<&'a Rope>, parameters: Option<&'a Rope>, context: usize) -> Self {
        let scaling = scaling.map(|rope| ("rope_scaling".to_owned(), rope));
        let parameters = parameters.map(|rope| ("rope_parameters".to_owned(), rope));
        let sections = scaling.into_iter().chain(parameters).collect();
        Ropes { theta: ("rope_theta", theta), sections, context, original_context: None }
    }

    /// What is said of one kind of layer, where the sections are by kind.
    pub fn of(self, kind: Kind) -> Self {
        let inner = |(name, rope): (String, &'a Rope)| match rope.of(kind) {
            Some(inner) => {
                let kind = match kind {
                    Kind::Full => "full_attention",
                    Kind::Sliding => "sliding_attention",
                };
                (format!("{name}.{kind}"), inner)
            }
            None => (name, rope),
        };
        Ropes { sections: self.sections.into_iter().map(inner).collect(), ..self }
    }

    /// Rotary positions of `width` channels, θ being `theta` where nothing says it.
    ///
    /// # Errors
    /// A scaling that is not known or lacks a number; places that say different things.
    pub fn rotary(&self, width: usize, theta: f64, pairs: Pairs) -> Result<Rotary, String> {
        if let Some((section, _)) =
            self.sections.iter().find(|(_, rope)| rope.full_attention.is_some() || rope.sliding_attention.is_some())
        {
            return Err(format!("{section} differs by kind of layer, which is not known of this family"));
        }
        let own = (self.theta.0.to_owned(), self.theta.1);
        let said = self.sections.iter().map(|(section, rope)| (format!("{section}.rope_theta"), rope.rope_theta));
        let theta = agreed(std::iter::once(own).chain(said))?.unwrap_or(theta);
        Ok(Rotary { theta, width, pairs, scaling: self.scaling(width)? })
    }

    /// `partial_rotary_factor` of the sections.
    pub fn share(&self) -> Result<Option<f64>, String> {
        self.number("partial_rotary_factor", |rope| rope.partial_rotary_factor)
    }

    fn number(&self, key: &str, value: fn(&Rope) -> Option<f64>) -> Result<Option<f64>, String> {
        agreed(self.sections.iter().map(|(section, rope)| (format!("{section}.{key}"), value(rope))))
    }

    /// The same; it must be above 0.
    fn positive(&self, key: &str, value: fn(&Rope) -> Option<f64>) -> Result<Option<f64>, String> {
        match self.number(key, value)? {
            Some(value) if !(value > 0.0 && value.is_finite()) => {
                Err(format!("rope_scaling's {key} is {value}; it must be above 0"))
            }
            value => Ok(value),
        }
    }

    /// A number that the scaling cannot do without.
    fn needed(&self, key: &str, value: fn(&Rope) -> Option<f64>) -> Result<f64, String> {
        self.positive(key, value)?.ok_or_else(|| format!("rope_scaling lacks \"{key}\""))
    }

    /// The context that the model was first trained on, where the file says it.
    fn original(&self) -> Result<Option<f64>, String> {
        let key = "original_max_position_embeddings";
        let own = (key.to_owned(), self.original_context);
        let of =
            |(section, rope): &(String, &Rope)| (format!("{section}.{key}"), rope.original_max_position_embeddings);
        match agreed(std::iter::once(own).chain(self.sections.iter().map(of)))? {
            Some(value) if !(value > 0.0 && value.is_finite()) => Err(format!("{key} is {value}; it must be above 0")),
            value => Ok(value),
        }
    }

    fn scaling(&self, width: usize) -> Result<RotaryScaling, String> {
        const KNOWN: &str = "known are default, linear, llama3, yarn, longrope";
        let types = self.sections.iter().flat_map(|(section, rope)| {
            [("rope_type", &rope.rope_type), ("type", &rope.old_type)]
                .map(|(key, value)| (format!("{section}.{key}"), value.clone()))
        });
        match agreed(types)?.as_deref() {
            None if self.number("factor", |rope| rope.factor)?.is_some_and(|factor| factor != 1.0) => {
                Err(format!("rope_scaling has a factor and no rope_type, which says how it scales; {KNOWN}"))
            }
            None | Some("default") => Ok(RotaryScaling::None),
            Some("linear") => Ok(RotaryScaling::Linear(self.needed("factor", |rope| rope.factor)?)),
            Some("llama3") => {
                let factor = self.needed("factor", |rope| rope.factor)?;
                let low = self.needed("low_freq_factor", |rope| rope.low_freq_factor)?;
                let high = self.needed("high_freq_factor", |rope| rope.high_freq_factor)?;
                let original_context =
                    self.original()?.ok_or("rope_scaling lacks \"original_max_position_embeddings\"")?;
                if low >= high {
                    return Err("rope_scaling's low_freq_factor must be below its high_freq_factor".into());
                }
                Ok(RotaryScaling::Llama3 { factor, low, high, original_context })
            }
            Some("yarn") => {
                let factor = self.needed("factor", |rope| rope.factor)?;
                let magnitude = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
                let told = self.positive("attention_factor", |rope| rope.attention_factor)?;
                let (scale, of_all) = (
                    self.number("mscale", |rope| rope.mscale)?,
                    self.number("mscale_all_dim", |rope| rope.mscale_all_dim)?,
                );
                let magnitude = match (told, scale, of_all) {
                    (Some(told), ..) => told,
                    (None, Some(scale), Some(of_all)) => magnitude(scale) / magnitude(of_all),
                    (None, ..) => magnitude(1.0),
                };
                let truncate =
                    agreed(self.sections.iter().map(|(section, rope)| (format!("{section}.truncate"), rope.truncate)))?;
                Ok(RotaryScaling::Yarn {
                    factor,
                    slow: self.positive("beta_slow", |rope| rope.beta_slow)?.unwrap_or(1.0),
                    fast: self.positive("beta_fast", |rope| rope.beta_fast)?.unwrap_or(32.0),
                    original_context: self.original()?.unwrap_or(self.context as f64),
                    truncate: truncate.unwrap_or(true),
                    magnitude,
                })
            }
            Some("longrope" | "su") => {
                let short = self
                    .sections
                    .iter()
                    .map(|(section, rope)| (format!("{section}.short_factor"), rope.short_factor.clone()));
                let factors = agreed(short)?.ok_or("rope_scaling lacks \"short_factor\"")?;
                if factors.len() != width / 2 || !factors.iter().all(|factor| *factor > 0.0 && factor.is_finite()) {
                    return Err(format!(
                        "rope_scaling's short_factor has {} numbers; {} above 0 are wanted",
                        factors.len(),
                        width / 2
                    ));
                }
                let original = self.original()?.unwrap_or(self.context as f64);
                let factor = match self.original()? {
                    Some(original) => self.context as f64 / original,
                    None => self.positive("factor", |rope| rope.factor)?.unwrap_or(1.0),
                };
                let magnitude = match self.positive("attention_factor", |rope| rope.attention_factor)? {
                    Some(told) => told,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / original.ln()).sqrt(),
                };
                if !magnitude.is_finite() {
                    return Err(format!(
                        "rope_scaling stretches a context of {original} by {factor}, which gives no number"
                    ));
                }
                Ok(RotaryScaling::Each { factors, magnitude })
            }
            Some(other) => Err(format!("rope_scaling of type \"{other}\" is not known here; {KNOWN}")),
        }
    }

    /// The positions that may be read: where long texts would want other frequencies for all their positions, those of short ones.
    pub fn context(&self) -> Result<usize, String> {
        let long = self.sections.iter().any(|(_, rope)| rope.short_factor.is_some());
        Ok(match self.original()? {
            Some(original) if long => self.context.min(original as usize),
            _ => self.context,
        })
    }
}
