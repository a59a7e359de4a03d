//! What plans are made of: a model's shapes, and how long the texts are that it is given.

use crate::data::record::EditRecord;
use crate::error::Result;
use crate::model::stack::spec::DecoderSpec;
use crate::model::tokenizer::Tokenizer;

/// A model and the texts that it is to work on.
#[derive(Debug, Clone, Copy)]
pub struct Work<'a> {
    /// Its shapes.
    pub spec: &'a DecoderSpec,
    /// Whether its matrices stay in their file.
    pub in_file: bool,
    /// Parts of a batch that run side by side.
    pub threads: usize,
    /// The texts.
    pub texts: Lengths,
    /// Draws of noise under which edits are made; one where there is none.
    pub draws: usize,
}

/// How long the texts of records are, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Lengths {
    /// The longest prompt among those looked at, with its target.
    pub row: usize,
    /// A prompt with its target, on average.
    pub mean: usize,
    /// Tokens of a target on average, at least one.
    pub target: usize,
    /// Questions of a record, the edit's own among them.
    pub probes: usize,
    /// How many records there are.
    pub records: usize,
}

/// Records whose texts are measured: of more the longest is hardly longer.
const MEASURED: usize = 100;

impl Lengths {
    /// Of the first of some records.
    ///
    /// # Errors
    /// A text that cannot be tokenised.
    pub fn of(tokenizer: &Tokenizer, records: &[EditRecord]) -> Result<Self> {
        let (mut longest, mut tokens, mut targets, mut probes, mut edits) = (1, 0, 0, 0, 0);
        let measured = &records[..records.len().min(MEASURED)];
        for record in measured {
            for edit in record.edits() {
                let between = record.separator.as_deref();
                let row = tokenizer.continuation(&edit.prompt, &edit.target_new, between)?;
                longest = longest.max(row.ids.len());
                tokens += row.ids.len();
                targets += row.target().len();
                probes += 1 + edit.rephrases.len();
                edits += 1;
            }
            probes += record.locality.values().chain(record.portability.values()).map(Vec::len).sum::<usize>();
        }
        let mean = |sum: usize, count: usize| sum.div_ceil(count.max(1)).max(1);
        Ok(Lengths {
            row: longest,
            mean: mean(tokens, edits),
            target: mean(targets, edits),
            probes: mean(probes, measured.len()),
            records: records.len(),
        })
    }
}
