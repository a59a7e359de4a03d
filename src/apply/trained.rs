//! Trained editors from their archives.

use super::Editor;
use crate::archive::Trained;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::Result;

impl Editor for Trained {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        Trained::edit(self, model, requests, 0)
    }

    fn describe(&self) -> (String, serde_json::Value) {
        match self {
            Trained::Mend(mend) => ("mend".into(), serde_json::to_value(&mend.settings).unwrap_or_default()),
            Trained::Serac(route, _) => {
                ("serac".into(), serde_json::to_value(&route.serac().settings).unwrap_or_default())
            }
        }
    }

    fn remembers(&self) -> bool {
        matches!(self, Trained::Serac(..))
    }
}
