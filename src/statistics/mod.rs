//! Second moments of keys: `C = E[k kᵀ]` at the inputs of down-projections, over text. What the attribution-based
//! editors keep as still as they can (Meng et al., 2022, section 3.1).

mod collect;
pub mod npz;
mod store;

pub use collect::{Collect, Collected, collect, held};
pub use store::{Header, MomentChange, Moments, Source, UNKNOWN};

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use faer::linalg::solvers::{Llt, Solve};
use faer::{Mat, MatRef, Side};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::stack::spec::DecoderSpec;

/// Bytes of what an editor keeps of the statistics of some layers: the moments and a factor of each, in f64.
pub fn bytes_of(spec: &DecoderSpec, layers: usize) -> u64 {
    2 * 8 * (layers * spec.mlp.width * spec.mlp.width) as u64
}

/// Moments as an editor uses them: with one Cholesky factor a layer, made when it is first asked for.
pub struct Statistics {
    moments: Moments,
    factors: BTreeMap<usize, OnceLock<Option<Llt<f64>>>>,
    origin: String,
}

impl Statistics {
    /// Opens the statistics of a model for some layers.
    ///
    /// # Errors
    /// As [`Statistics::check`].
    pub fn open(path: &Path, model: &Model, name: &str, layers: &[usize]) -> Result<Self> {
        let path = Statistics::check(path, model, name, layers)?;
        let moments = Moments::load(&path, Some(layers))?;
        if moments.header.tokens < moments.header.width as u64 {
            tracing::warn!(
                "{}: {} tokens for keys of width {}: C has not full rank; more text with --tokens",
                path.display(),
                moments.header.tokens,
                moments.header.width
            );
        }
        Ok(Statistics::new(moments, path.display().to_string()))
    }

    /// Reads a file's header and sees whether it serves; gives the file's path.
    ///
    /// # Errors
    /// A file that is missing, of another model, or without one of the layers; each names the command that makes them.
    pub fn check(path: &Path, model: &Model, name: &str, layers: &[usize]) -> Result<PathBuf> {
        let path = Moments::path(path);
        let command = |layers: &BTreeSet<usize>, more: &str| {
            let layers: Vec<String> = layers.iter().map(usize::to_string).collect();
            let layers = layers.join(",");
            format!("emend stats --model {name} --text FILE --layers {layers} --out {}{more}", path.display())
        };
        let wanted: BTreeSet<usize> = layers.iter().copied().collect();
        if !path.is_file() {
            return Err(Error::file(
                &path,
                format!(
                    "there are no statistics here; `{}` makes them, statistics = \"none\" goes without",
                    command(&wanted, "")
                ),
            ));
        }
        let Moments { header, .. } = Moments::load(&path, Some(&[]))?;
        if header.model != model.fingerprint {
            return Err(Error::file(
                &path,
                format!(
                    "statistics of the model {}, this one is {}; `{}` makes its own",
                    header.model,
                    model.fingerprint,
                    command(&wanted, " --again")
                ),
            ));
        }
        let (found, width) = (header.width, model.decoder.spec.mlp.width);
        if found != width {
            return Err(Error::file(&path, format!("keys of width {found}, the model's are {width} wide")));
        }
        if let Some(layer) = layers.iter().find(|layer| !header.layers.contains(layer)) {
            let there: Vec<String> = header.layers.iter().map(usize::to_string).collect();
            let there = there.join(", ");
            let all = wanted.iter().chain(&header.layers).copied().collect();
            let command = command(&all, " --again");
            let message = format!("no statistics of layer {layer} (there are: {there}); `{command}` makes them");
            return Err(Error::file(&path, message));
        }
        Ok(path)
    }

    /// Of moments at hand; `origin` names them in errors.
    pub fn new(moments: Moments, origin: String) -> Self {
        let factors = moments.sums.keys().map(|&layer| (layer, OnceLock::new())).collect();
        Statistics { moments, factors, origin }
    }

    /// What these are known by: a hash of the model, the texts, and how they were read, in hexadecimal.
    pub fn id(&self) -> String {
        let header = serde_json::to_vec(&self.moments.header).unwrap_or_default();
        blake3::hash(&header).to_hex()[..16].to_owned()
    }

    /// What cannot be known of them; nothing where they were collected here.
    pub fn unknown(&self) -> Option<String> {
        let names = || self.moments.header.sources.iter().map(|source| source.name.as_str()).collect::<Vec<_>>();
        self.moments
            .header
            .imported()
            .then(|| format!("imported from {}; tokenizer and texts are not known", names().join(", ")))
    }

    /// `C [width, width]` of a layer.
    ///
    /// # Errors
    /// There is none.
    pub fn second_moment(&self, layer: usize) -> Result<Mat<f64>> {
        let sum = self.moments.sums.get(&layer).ok_or_else(|| self.without(layer))?;
        let width = self.moments.header.width;
        let count = self.moments.header.tokens as f64;
        Ok(MatRef::from_row_major_slice(sum, width, width) * faer::Scale(1.0 / count))
    }

    /// `C⁻¹ K` of a layer for keys `K [width, count]`.
    ///
    /// # Errors
    /// There are no statistics of the layer, or C is singular.
    pub fn solve(&self, layer: usize, keys: MatRef<'_, f64>) -> Result<Mat<f64>> {
        let factor = self.factors.get(&layer).ok_or_else(|| self.without(layer))?;
        let c = if factor.get().is_none() { Some(self.second_moment(layer)?) } else { None };
        let factor = factor.get_or_init(|| c.and_then(|c| c.llt(Side::Lower).ok()));
        let factor = factor.as_ref().ok_or_else(|| {
            Error::Input(format!(
                "{}: the second moment of layer {layer} is singular ({} tokens for keys of width {}); \
                 collect more with --tokens",
                self.origin, self.moments.header.tokens, self.moments.header.width
            ))
        })?;
        Ok(factor.solve(keys))
    }

    fn without(&self, layer: usize) -> Error {
        Error::Input(format!("{}: there are no statistics of layer {layer}", self.origin))
    }
}
