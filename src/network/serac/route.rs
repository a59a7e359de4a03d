//! SERAC's networks as they answer: the scope of a question, and who speaks.

use std::sync::Arc;

use burn::tensor::{Tensor, activation};
use serde_json::{Value, json};

use super::{ClassifierKind, Form, NAME, Routing, Serac, SeracSettings};
use crate::edit::memory::{Answer, Consulted, Recall, settled};
use crate::edit::{Change, Edit, EditRequest, Edited, Editor, Memory, Provenance, Route};
use crate::error::{Error, Result};
use crate::model::sentences::nearest;
use crate::network::learned::Stored;

/// SERAC's networks as they answer.
pub struct SeracRoute {
    pub(super) serac: Serac,
    pub(super) counterfactual: Edited,
}

impl SeracRoute {
    /// The networks.
    pub fn serac(&self) -> &Serac {
        &self.serac
    }

    /// What edits are found by, `[edits, width]`.
    fn keys(&self, statements: &[&str]) -> Result<Tensor<2>> {
        let Serac { settings, reader, .. } = &self.serac;
        if settings.classifier.kind == ClassifierKind::Cross {
            return reader.embed(statements);
        }
        let rows = statements.iter().map(|text| reader.row(text, None)).collect::<Result<Vec<_>>>()?;
        let device = self.serac.network.classifier.head.weight.val().device();
        reader.batched(&rows, &device, |rows| self.serac.embed(rows))
    }

    /// The scope of each prompt: the nearest entry, and how sure it is that it is meant.
    ///
    /// # Errors
    /// Keys that are not this classifier's; a prompt that it cannot take.
    pub fn scopes(&self, requests: &[EditRequest], keys: &Tensor<2>, prompts: &[String]) -> Result<Vec<(usize, f64)>> {
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let Serac { settings, reader, .. } = &self.serac;
        let width = self.width();
        debug_assert_eq!(keys.dims()[1], width);
        let questions = self.keys(&texts)?;
        let keys = &keys.clone().cast(questions.dtype());
        if settings.classifier.kind == ClassifierKind::Embedding {
            let scale = self.serac.network.classifier.log_scale.as_ref();
            let scale = scale.map_or(1.0, |log| log.val().exp().into_data().iter::<f64>().sum::<f64>());
            let products = questions.matmul(keys.clone().transpose());
            let entries = keys.dims()[0];
            let products: Vec<f32> = products.into_data().iter::<f32>().collect();
            let best = |row: &[f32]| {
                // Of equally near ones the later.
                let by_product = |a: &usize, b: &usize| row[*a].total_cmp(&row[*b]);
                let entry = (0..entries).max_by(by_product).unwrap_or(0);
                let square = (2.0 - 2.0 * f64::from(row[entry])).max(0.0);
                (entry, (-scale * square).exp())
            };
            return Ok(products.chunks(entries).map(best).collect());
        }
        let near = nearest(questions, keys, settings.classifier.pairs.candidates);
        let pairs: Vec<(usize, usize)> =
            near.iter().enumerate().flat_map(|(row, near)| near.iter().map(move |&(entry, _)| (row, entry))).collect();
        let rows = pairs.iter().map(|&(row, entry)| reader.row(&requests[entry].statement(), Some(texts[row])));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        let device = keys.device();
        let logits = reader.batched(&rows, &device, |rows| Ok(self.serac.pairs(rows)?.unsqueeze_dim::<2>(1)))?;
        let scopes: Vec<f64> = activation::sigmoid(logits).into_data().iter::<f64>().collect();
        let mut best = vec![(0, f64::NEG_INFINITY); texts.len()];
        for (&(row, entry), scope) in pairs.iter().zip(scopes) {
            if scope > best[row].1 || (scope == best[row].1 && entry > best[row].0) {
                best[row] = (entry, scope);
            }
        }
        Ok(best)
    }

    /// One edit that remembers all requests. `needs` is written into its file.
    ///
    /// # Errors
    /// A request that the classifier cannot take, or of a form it was not trained on.
    pub fn edit(self: &Arc<Self>, model: &Edited, requests: &[EditRequest], needs: Value) -> Result<Edit> {
        let settings = &self.serac.settings;
        if let Some(strange) = requests
            .iter()
            .find(|request| !settings.forms.is_empty() && !settings.forms.contains(&Form::of_request(request)))
        {
            let known: Vec<&str> = settings.forms.iter().map(|form| form.name()).collect();
            return Err(Error::Input(format!(
                "\"{}\" is stated by {}; this archive was trained on {}",
                strange.statement(),
                if strange.descriptor.is_some() { "a descriptor" } else { "a question with its answer" },
                known.join(" and ")
            )));
        }
        let requests = settled(requests);
        let statements: Vec<String> = requests.iter().map(EditRequest::statement).collect();
        let keys = self.keys(&statements.iter().map(String::as_str).collect::<Vec<_>>())?;
        let settings = serde_json::to_value(settings).unwrap_or_default();
        let provenance = Provenance::new(NAME, settings, 0, model, requests);
        let route: Arc<dyn Route> = self.clone();
        let memory = Memory { needs, keys, texts: vec![], values: None, route: Some(route) };
        Ok(Edit::new(provenance, Change::Memory(memory), Default::default()))
    }
}

/// SERAC out of its archive.
pub(super) struct FromArchive {
    route: Arc<SeracRoute>,
    /// What its memories say of where their networks lie.
    needs: Value,
}

impl SeracSettings {
    /// The editor of an archive.
    pub(in crate::network) fn editor(&self, stored: &Stored<'_>) -> Result<Box<dyn Editor>> {
        let serac = Serac::new(self.clone(), stored.model, stored.place);
        let serac = serac.map_err(|error| stored.of_settings(error))?;
        let serac = serac.restored(stored.tensors()?).map_err(|error| stored.of_network(error))?;
        let folder = stored.folder.canonicalize().unwrap_or_else(|_| stored.folder.to_owned());
        let needs = json!({"method": NAME, "archive": folder, "fingerprint": stored.fingerprint});
        Ok(Box::new(FromArchive { route: serac.route()?, needs }))
    }
}

impl Editor for FromArchive {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.route.edit(model, requests, self.needs.clone())
    }

    fn describe(&self) -> (String, Value) {
        (NAME.into(), serde_json::to_value(&self.route.serac.settings).unwrap_or_default())
    }

    fn remembers(&self) -> bool {
        true
    }

    fn route(&self) -> Option<Arc<dyn Route>> {
        Some(self.route.clone())
    }
}

impl Route for SeracRoute {
    fn width(&self) -> usize {
        match self.serac.settings.classifier.kind {
            ClassifierKind::Embedding => self.serac.settings.classifier.embedding.dimensions,
            ClassifierKind::Cross => self.serac.reader.width(),
        }
    }

    fn consult(&self, recall: &Recall, prompts: &[String]) -> Result<Vec<Option<Consulted>>> {
        let SeracSettings { routing, hard, counterfactual, .. } = &self.serac.settings;
        let scopes = self.scopes(&recall.requests, &recall.keys, prompts)?;
        let answers = scopes.into_iter().zip(prompts).map(|((entry, scope), prompt)| {
            let share = match routing {
                Routing::Hard if scope > hard.threshold => 1.0,
                Routing::Hard => return None,
                Routing::Soft => scope,
            };
            let prompt = counterfactual.prompt(&recall.requests[entry].statement(), prompt);
            Some(Consulted {
                entry: Some(entry),
                scope,
                answer: Answer::Model { model: self.counterfactual.clone(), prompt, share },
            })
        });
        Ok(answers.collect())
    }
}
