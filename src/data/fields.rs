//! What loaders share: what they say of keys that are missing, and subjects in their prompts.

use super::problem::{Problem, quoted};
use super::unicode::find_all;

/// What every loader says of a missing target or prompt.
pub(super) const NEEDS_TARGET: &str = "every record needs a target";
pub(super) const NEEDS_PROMPT: &str = "every record needs a prompt";
pub(super) const NEEDS_SUBJECT: &str = "every record of this form needs a subject";
pub(super) const NEEDS_PROBE_PROMPT: &str = "every probe needs a prompt";

/// The key of an edit in CounterFact and in what is made after it.
pub(super) const REWRITE: &str = "requested_rewrite";

/// An error unless the subject occurs in the prompt, however its letters are composed.
pub(super) fn check_subject(key: &str, prompt: &str, subject: &str) -> Result<(), Problem> {
    if !find_all(prompt, subject).is_empty() {
        return Ok(());
    }
    let problem = format!(
        "does not contain the subject: {} is not in {}; write the subject in the prompt letter for letter",
        quoted(subject),
        quoted(prompt)
    );
    Err(Problem::new(problem).within(key))
}

/// A template with the subject in the place of its one `{}`.
pub(super) fn fill(key: &str, template: &str, subject: &str) -> Result<String, Problem> {
    let holds = match template.matches("{}").count() {
        0 => "holds no {}".to_owned(),
        1 => return Ok(template.replacen("{}", subject, 1)),
        count => format!("holds {{}} {count} times"),
    };
    let problem = format!("{holds}: {}; one {{}} must stand where the subject belongs", quoted(template));
    Err(Problem::new(problem).within(key))
}
