//! MEND from its archive.

use super::Editor;
use crate::edit::{Edit, EditRequest, Edited};
use crate::error::Result;
use crate::network::mend::Mend;

/// A trained MEND.
pub struct MendEditor {
    /// The network and its settings.
    pub mend: Mend,
}

impl Editor for MendEditor {
    fn edit(&self, model: &Edited, requests: &[EditRequest]) -> Result<Edit> {
        self.mend.edit(model, requests, 0)
    }

    fn describe(&self) -> (String, serde_json::Value) {
        ("mend".into(), serde_json::to_value(&self.mend.settings).unwrap_or_default())
    }
}
