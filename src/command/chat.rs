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
    /// The same as values that `--set` lays over a config's `[data]`, behind those that are laid over it already.
    pub fn with_sets(&self, sets: &[String]) -> Vec<String> {
        let own = self.chat.then(|| "data.chat=true".to_owned());
        let system = self.system.as_ref().map(|text| format!("data.system={}", toml::Value::from(text.as_str())));
        sets.iter().cloned().chain(own).chain(system).collect()
    }

    /// What was asked for; what was not, as `otherwise` has it.
    pub fn or(&self, otherwise: Asking) -> Asking {
        match self.chat {
            true => Asking { chat: true, system: self.system.clone().or(otherwise.system), ..otherwise },
            false => otherwise,
        }
    }
}
