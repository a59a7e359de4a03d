//! Every random draw comes from one seed through named streams, so that a run can be taken up anywhere.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// The stream of a name and a number (a step, a pass over the data) under a seed.
pub fn stream(seed: u64, name: &str, number: u64) -> ChaCha8Rng {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&number.to_le_bytes());
    hasher.update(name.as_bytes());
    ChaCha8Rng::from_seed(*hasher.finalize().as_bytes())
}
