//! Every random draw comes from one seed through named streams, so that a run can be taken up anywhere.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The stream of a name and a number under a seed. The number names what is drawn for (a step, a pass over the data, a record), never its
/// place in whatever list it happens to stand in.
pub fn stream(seed: u64, name: &str, number: u64) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(name.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}

/// The stream of a name and a text under a seed, for what has no number of its own.
pub fn stream_of(seed: u64, name: &str, text: &str) -> ChaCha8Rng {
    let mut first = [0; 8];
    first.copy_from_slice(&blake3::hash(text.as_bytes()).as_bytes()[..8]);
    stream(seed, name, u64::from_le_bytes(first))
}
