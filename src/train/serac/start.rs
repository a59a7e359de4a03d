//! What a SERAC config says, and the networks as a training begins with them.

use serde::Serialize;

use super::{SeracLossSettings, SeracTrainer};
use crate::archive::{Archive, LearnedEditorSettings};
use crate::data::source::Source;
use crate::edit::EditRequest;
use crate::error::{Error, Result};
use crate::model::Unread;
use crate::model::load::folder::Folder;
use crate::model::load::hub;
use crate::model::stack::sizes::Pass;
use crate::network::serac::{ClassifierKind, Form, ITSELF, Serac, SeracSettings, TrainedNetworks, located};
use crate::plan::Held;
use crate::tensors;
use crate::train::methods::{self, Beginning, Planned, Sections, TESTING, TRAINING};

/// What a config says of SERAC.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Training {
    /// `[editor]`
    pub editor: SeracSettings,
    /// `[loss]`
    pub loss: SeracLossSettings,
}

impl methods::Training for Training {
    type Editor = SeracTrainer;

    fn read(sections: &Sections<'_>) -> Result<Self> {
        let editor = SeracSettings::read(sections.editor, sections.origin)?;
        let loss = SeracLossSettings::read(sections.loss, &editor, sections.origin)?;
        Ok(Training { editor, loss })
    }

    /// Both networks with gradients and moments, and graphs over what of them is trained.
    fn held(&self, planned: &Planned<'_>) -> Result<Vec<Held>> {
        let Planned { work, settings, folder, .. } = planned;
        let SeracSettings { classifier, counterfactual, .. } = &self.editor;
        let mut all = vec![];
        let itself = |name: &str| name == ITSELF;
        let file =
            |name: &str| -> Result<u64> { Ok(Folder::open(&hub::resolve(&located(name, folder))?)?.bytes_in_f32()) };
        let spec = match itself(&counterfactual.model) {
            true => work.spec.clone(),
            false => Unread::open(&located(&counterfactual.model, folder))?.checkpoint.spec().clone(),
        };
        if !itself(&counterfactual.model) {
            all.push(Held::always("the counterfactual model", spec.weights_bytes()));
        }
        if !itself(&classifier.encoder) {
            all.push(Held::always("the classifier's encoder", file(&classifier.encoder)?));
        }
        let (tuned, depth) = counterfactual.tune.bytes(&spec);
        let of_classifier = if itself(&classifier.encoder) { classifier.tune.bytes(work.spec).0 } else { 0 };
        // Themselves, two moments, and the gradients of both parts.
        let times = if tuned + of_classifier > 0 { 5 } else { 0 };
        all.push(Held::during(
            TRAINING,
            "both networks, their gradients and the optimisers' moments",
            times * (tuned + of_classifier),
        ));
        all.push(Held::during(TESTING, "both networks and the optimisers' moments", 3 * (tuned + of_classifier)));
        // A question stands behind its edit.
        let SeracLossSettings { in_scope, counterfactual: answers, .. } = &self.loss;
        let records = settings.edits_per_step.div_ceil(2);
        let rows = records * (in_scope + answers.held);
        let answering = spec.graph_bytes(Pass::new(rows, 2 * work.texts.row), depth)
            + 5 * spec.logits_bytes(rows * (work.texts.target + 2));
        // The classifier reads edits and questions by themselves, or as pairs.
        let SeracLossSettings { out_of_scope, classifier: judged, .. } = &self.loss;
        let questions = in_scope + out_of_scope + judged.mined.count;
        let (rows, tokens) = match classifier.kind {
            ClassifierKind::Embedding => (records * (1 + questions), work.texts.row),
            ClassifierKind::Cross => (records * (1 + questions), 2 * work.texts.row),
        };
        let judging = match itself(&classifier.encoder) {
            true => work.spec.graph_bytes(Pass::new(rows, tokens), classifier.tune.bytes(work.spec).1),
            false => 0,
        };
        let graph = answering + judging;
        let parts = 2.min(work.threads.max(1)) as u64;
        all.push(
            Held::during(TRAINING, format!("a step over {} records", settings.edits_per_step), parts * graph)
                .lowered_by("train.edits_per_step"),
        );
        Ok(all)
    }

    fn begin(&self, beginning: &Beginning<'_>) -> Result<SeracTrainer> {
        let Beginning { base, settings: every, place, source, folder } = beginning;
        let mut settings = self.editor.clone();
        settings.classifier.encoder = located(&settings.classifier.encoder, folder);
        settings.counterfactual.model = located(&settings.counterfactual.model, folder);
        if !settings.forms.is_empty() {
            return Err(Error::Config("editor.forms is filled in by the training; leave it out".into()));
        }
        settings.forms = forms(source);
        let start = settings.start.clone();
        let mut serac = Serac::new(settings, base.base(), *place)?;
        let mut fingerprint = None;
        if let Some(start) = start {
            let archive = Archive::open(&folder.join(start))?;
            serac = started(serac, &archive)?;
            fingerprint = Some(archive.fingerprint()?);
        }
        let trainer = SeracTrainer::new(serac, (*base).clone(), self.loss.clone(), every.learning_rate)?;
        Ok(SeracTrainer { start: fingerprint, ..trainer })
    }
}

/// The forms of the edits in the data.
fn forms(source: &Source) -> Vec<Form> {
    let records = match source {
        Source::World { .. } => return vec![Form::Answer],
        Source::Records(records) => records.all(),
    };
    let forms: std::collections::BTreeSet<Form> =
        records.iter().map(|record| Form::of_request(&EditRequest::from(record))).collect();
    forms.into_iter().collect()
}

/// SERAC with the networks of an archive; what is trained differently there than here begins anew.
///
/// # Errors
/// An archive of another editor, or whose networks are built otherwise.
fn started(serac: Serac, archive: &Archive) -> Result<Serac> {
    let (own, LearnedEditorSettings::Serac(theirs)) = (serac.settings.clone(), &archive.description.editor) else {
        return Err(Error::Config(format!("editor.start: {} is no archive of SERAC", archive.folder.display())));
    };
    let alike = [
        (
            "classifier.",
            own.classifier.kind == theirs.classifier.kind
                && own.classifier.tune == theirs.classifier.tune
                && own.classifier.fingerprint == theirs.classifier.fingerprint
                && own.classifier.embedding.dimensions == theirs.classifier.embedding.dimensions
                && own.classifier.layers == theirs.classifier.layers,
        ),
        (
            "counterfactual.",
            own.counterfactual.tune == theirs.counterfactual.tune
                && own.counterfactual.fingerprint == theirs.counterfactual.fingerprint,
        ),
    ];
    if alike.iter().all(|(_, alike)| !alike) {
        return Err(Error::Config(format!(
            "editor.start: neither network of {} is built as the ones of this config",
            archive.folder.display()
        )));
    }
    // What is not trained here has to come from there.
    let kept = match own.train {
        TrainedNetworks::Both => None,
        TrainedNetworks::Classifier => Some(&alike[1]),
        TrainedNetworks::Counterfactual => Some(&alike[0]),
    };
    if let Some((part, false)) = kept {
        return Err(Error::Config(format!(
            "editor.start: {} has another {} than this config, and editor.train leaves it as it is there",
            archive.folder.display(),
            part.trim_end_matches('.')
        )));
    }
    let mut tensors = serac.tensors();
    for (name, tensor) in tensors::read(&Archive::network_path(&archive.folder))? {
        if alike.iter().any(|(part, alike)| *alike && name.starts_with(part)) {
            tensors.insert(name, tensor);
        }
    }
    serac.restored(tensors)
}
