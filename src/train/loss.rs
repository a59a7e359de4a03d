//! What edit losses have in common: the negative log-likelihood of targets in scope, and the KL divergence from the base out of it;
//! and the weights of the classes of out-of-scope prompts.

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData, activation};

use crate::data::source::Source;
use crate::edit::loss;
use crate::error::{Error, Result};
use crate::sections::{unknown, within};

/// The weight of a class of out-of-scope prompts: 1 where `loss.mix` names none, else what it says, and 0 where it says nothing.
pub(super) fn weight_of(mix: &BTreeMap<String, f64>, class: &str) -> f64 {
    if mix.is_empty() { 1.0 } else { mix.get(class).copied().unwrap_or(0.0) }
}

/// # Errors
/// A weight out of range, or none above 0.
pub(super) fn check_weights(mix: &BTreeMap<String, f64>) -> Result<()> {
    if !mix.is_empty() && mix.values().all(|weight| *weight == 0.0) {
        let message = "loss.mix: no class has a weight above 0, so that no out-of-scope prompt is drawn; that is loss.out_of_scope = 0";
        return Err(Error::Config(message.into()));
    }
    mix.iter().try_for_each(|(class, weight)| within(&format!("loss.mix.\"{class}\""), *weight, 0.0, 1e9))
}

/// Sees that records have every class that is given a weight: a misspelt one would never be drawn.
///
/// # Errors
/// A class that no record can have, with the nearest that there is.
pub(super) fn check_classes(mix: &BTreeMap<String, f64>, source: &Source) -> Result<()> {
    let known = source.classes();
    match mix.keys().find(|class| !known.contains(class.as_str())) {
        None => Ok(()),
        Some(strange) => {
            let known: Vec<&str> = known.into_iter().collect();
            Err(Error::Config(format!("loss.mix: {}", unknown("class", strange, &known))))
        }
    }
}

/// Where a batch of rows is read, and with what weight each read counts.
#[derive(Default)]
pub(super) struct Reads {
    pub cells: Vec<(usize, usize)>,
    pub weights: Vec<f64>,
}

/// What the terms of a loss weigh.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Weights {
    /// c_edit
    pub edit: f64,
    /// c_loc
    pub locality: f64,
    /// ε: a target is asked for with 1 − ε, the rest is spread over the vocabulary.
    pub smoothing: f64,
}

/// `c_edit · Σ w NLL + c_loc · Σ w KL`, as a tensor that has its gradient, and both sums.
pub(super) struct EditAndLocality {
    pub surrogate: Tensor<1>,
    pub nll: f64,
    pub kl: f64,
}

impl From<(Tensor<1>, (f64, f64))> for EditAndLocality {
    fn from((surrogate, (nll, kl)): (Tensor<1>, (f64, f64))) -> Self {
        EditAndLocality { surrogate, nll, kl }
    }
}

/// The gradient of the loss at logits `[reads, vocabulary]`, those of the `targets` in scope first, then those out of scope, whose base
/// logits are `base`; each read has its weight. Beside it the sums of NLL and KL.
pub(super) fn edit_and_locality(
    logits: Tensor<2>,
    (targets, scope_weights): (&[u32], &[f64]),
    base: Option<Tensor<2>>,
    near_weights: &[f64],
    Weights { edit, locality, smoothing }: Weights,
) -> (Tensor<2>, (f64, f64)) {
    let log = activation::log_softmax(logits, 1);
    let ([count, vocabulary], in_scope) = (log.dims(), targets.len());
    let (device, dtype) = (log.device(), log.dtype());
    let weights = |of: &[f64]| Tensor::<1>::from_data(TensorData::new(of.to_vec(), [of.len()]), (&device, dtype));
    let number = |tensor: Tensor<1>| tensor.into_data().iter::<f64>().sum::<f64>();
    let mut towards = vec![];
    let (mut nll, mut kl) = (0.0, 0.0);
    if in_scope > 0 {
        let (each, gradient) = loss::smoothed(log.clone().slice([0..in_scope, 0..vocabulary]), targets, smoothing);
        let scope_weights = weights(scope_weights);
        nll = number(each * scope_weights.clone());
        towards.push(gradient * scope_weights.unsqueeze_dim(1).mul_scalar(edit));
    }
    if let Some(base) = base {
        let log_near = log.slice([in_scope..count, 0..vocabulary]);
        let (each, gradient) = loss::kl_from(activation::log_softmax(base, 1), log_near);
        let near_weights = weights(near_weights);
        kl = number(each * near_weights.clone());
        towards.push(gradient * near_weights.unsqueeze_dim(1).mul_scalar(locality));
    }
    (Tensor::cat(towards, 0), (nll, kl))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::train::Config;
    use crate::data::record::{EditRecord, Probe};
    use crate::data::source::OTHER_RECORDS;
    use crate::data::world::{CLASSES, SAME_OLD_OBJECT, Split};
    use crate::train::methods::Trained;

    #[test]
    fn classes_that_are_not_there_are_named_with_the_nearest() {
        let mut record = EditRecord { prompt: "a is in".into(), target_new: "b".into(), ..EditRecord::default() };
        record.locality.insert("near".into(), vec![Probe::new("c is in", None)]);
        let (file, world) = (Source::from(vec![record]), Source::open("pocket", Split::Train, Path::new("")).unwrap());
        let check = |source: &Source, class: &str| {
            check_classes(&[(class.to_owned(), 1.0)].into(), source).err().map(|error| error.to_string())
        };
        for class in ["near", OTHER_RECORDS, SAME_OLD_OBJECT] {
            assert_eq!(check(&file, class), None);
        }
        assert!(CLASSES.iter().all(|class| check(&world, class).is_none()));
        for (source, strange, nearest) in [(&file, "naer", "near"), (&world, "same old objekt", SAME_OLD_OBJECT)] {
            let said = check(source, strange).unwrap();
            assert!(said.starts_with(&format!("loss.mix: unknown class `{strange}`")), "{said}");
            assert!(said.contains(&format!("did you mean `{nearest}`")), "{said}");
        }
    }

    /// Of the shipped configs those whose data is shipped too.
    #[test]
    fn shipped_configs_name_classes_of_their_data() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
        for name in [
            "mend-pocket",
            "malmen-pocket",
            "rledit-pocket",
            "ke-pocket",
            "enn-pocket",
            "serac-pocket",
            "serac-pocket-convsent",
            "serac-pocket-fc",
            "serac-pocket-qa-hard",
        ] {
            let config = Config::read(&folder.join(format!("{name}.toml")), &[]).unwrap();
            let mix = match &config.editor {
                Trained::Mend(mend) => &mend.loss.near.mix,
                Trained::Malmen(malmen) => &malmen.loss.near.mix,
                Trained::RlEdit(rledit) => &rledit.loss.mend.near.mix,
                Trained::Serac(serac) => &serac.loss.mix,
                Trained::Ke(ke) => &ke.loss.mend.near.mix,
                Trained::Enn(enn) => &enn.loss.mend.near.mix,
            };
            assert!(!mix.is_empty());
            check_classes(mix, &Source::open(&config.data.train, Split::Train, &folder).unwrap()).unwrap();
        }
        for name in ["convsent", "fc", "qa-hard"] {
            let config = Config::read(&folder.join(format!("serac-smollm2-{name}.toml")), &[]).unwrap();
            let Trained::Serac(serac) = &config.editor else { panic!("{name} is SERAC's") };
            check_classes(&serac.loss.mix, &Source::open(&config.data.train, Split::Train, &folder).unwrap()).unwrap();
        }
    }
}
