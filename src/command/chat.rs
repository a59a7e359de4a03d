//! What several subcommands take to ask a chat model.

use crate::data::asking::Asking;

/// How prompts are put to the model.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ChatArgs {
    /// Put prompts through the model's chat template; the target is then the beginning of the reply
    #[arg(long)]
    pub chat: bool,
    /// What the system says first in a chat
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
}

impl ChatArgs {
    /// What was asked for; what was not, as `otherwise` has it.
    pub fn or(&self, otherwise: Asking) -> Asking {
        match self.chat {
            true => Asking { chat: true, system: self.system.clone().or(otherwise.system), ..otherwise },
            false => otherwise,
        }
    }
}
