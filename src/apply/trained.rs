//! Trained editors from their archives.

use crate::archive::Trained;
use crate::edit::{Edit, EditRequest, Edited, Editor};
use crate::error::Result;
use crate::network::{mend, serac};

impl Editor for Trained {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        Trained::edit(self, model, requests, 0)
    }

    fn describe(&self) -> (String, serde_json::Value) {
        match self {
            Trained::Mend(trained) => (mend::NAME.into(), serde_json::to_value(&trained.settings).unwrap_or_default()),
            Trained::Serac(route, _) => {
                (serac::NAME.into(), serde_json::to_value(&route.serac().settings).unwrap_or_default())
            }
        }
    }

    fn remembers(&self) -> bool {
        matches!(self, Trained::Serac(..))
    }
}
