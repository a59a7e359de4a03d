//! The embedded models: small ones that know the facts of the embedded world (`data::pocket`).

use std::path::Path;

use super::checkpoint::Checkpoint;
use crate::error::Result;
use crate::model::tokenizer::Tokenizer;

/// What the default one is called in configs and on the command line.
pub const NAME: &str = "pocket";

/// A model that is part of the program.
pub struct Embedded {
    name: &'static str,
    /// The files beside the weights: config.json, tokenizer.json and tokenizer_config.json.
    side: [(&'static str, &'static [u8]); 3],
    weights: &'static [u8],
}

/// A decoder, and an encoder-decoder.
static ALL: [Embedded; 2] = [
    Embedded {
        name: NAME,
        side: [
            ("config.json", include_bytes!("../../../data/pocket/config.json")),
            ("tokenizer.json", include_bytes!("../../../data/pocket/tokenizer.json")),
            ("tokenizer_config.json", include_bytes!("../../../data/pocket/tokenizer_config.json")),
        ],
        weights: include_bytes!("../../../data/pocket/model.safetensors"),
    },
    Embedded {
        name: "pocket-t5",
        side: [
            ("config.json", include_bytes!("../../../data/pocket-t5/config.json")),
            ("tokenizer.json", include_bytes!("../../../data/pocket-t5/tokenizer.json")),
            ("tokenizer_config.json", include_bytes!("../../../data/pocket-t5/tokenizer_config.json")),
        ],
        weights: include_bytes!("../../../data/pocket-t5/model.safetensors"),
    },
];

/// The embedded model that is meant by a name: a folder of that name comes first.
pub fn find(name: &str) -> Option<&'static Embedded> {
    ALL.iter().find(|embedded| embedded.name == name && !Path::new(name).is_dir())
}

/// The names of the embedded models.
pub fn names() -> [&'static str; 2] {
    [ALL[0].name, ALL[1].name]
}

impl Embedded {
    /// Its files.
    ///
    /// # Errors
    /// None in a program that was built whole.
    pub fn checkpoint(&'static self) -> Result<Checkpoint> {
        Checkpoint::embedded(self.name, &self.side, self.weights)
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// None in a program that was built whole.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_bytes(self.side[1].1, self.side[2].1, Path::new(self.name))
    }
}
