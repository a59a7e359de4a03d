//! A part of a comparison, so that several processes, or machines over one folder, share it.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Part `number` of `of`: every `of`-th case from its own on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    number: usize,
    of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { number: 1, of: 1 }
    }
}

impl Shard {
    /// Whether a case is its own, or the curves of an editor are.
    pub fn has(self, number: usize) -> bool {
        number % self.of == self.number - 1
    }

    /// Whether it is a part at all.
    pub fn is_part(self) -> bool {
        self.of > 1
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// "3/16": the third of sixteen.
    fn from_str(text: &str) -> Result<Self, Error> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((number, of)) if (1..=of).contains(&number) => Ok(Shard { number, of }),
            _ => Err(Error::Config(format!("--shard {text}: the first of sixteen is 1/16, the last 16/16"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_share_all_cases() {
        let shards: Vec<Shard> = (1..=3).map(|number| format!("{number}/3").parse().unwrap()).collect();
        for case in 0..10 {
            assert_eq!(shards.iter().filter(|shard| shard.has(case)).count(), 1);
        }
        assert!((0..10).all(|case| Shard::default().has(case)) && !Shard::default().is_part());
        assert_eq!(shards[2].to_string(), "3/3");
        for wrong in ["", "3", "0/3", "4/3", "1/0", "a/b", "-1/3", "1/3/3"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }
}
