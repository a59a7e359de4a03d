//! Claims as questions with one of two answers: what the loaders of fact checking share.

/// The answer where a claim holds, or where it does not.
pub(super) fn verdict(holds: bool) -> String {
    if holds { "True" } else { "False" }.to_owned()
}

/// The claim as a prompt whose answer is a verdict.
pub(super) fn question(claim: &str) -> String {
    format!("True or false: {} Answer:", claim.trim())
}
