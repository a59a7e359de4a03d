//! What a command will hold in memory, worked out before a weight is read.
//!
//! Each room says of its own work what it holds and while what is done ([`Held`]). What is held always counts with each part of the work; the largest sum is
//! the peak.

mod work;

use serde::Serialize;

use crate::error::{Error, Result};

pub use work::{Lengths, Work};

/// Something that is held.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Held {
    /// What it is.
    pub what: String,
    /// How much.
    pub bytes: u64,
    /// The part of the work it is held in; always where none is named.
    #[serde(rename = "while")]
    pub during: Option<&'static str>,
    /// The setting that makes it smaller.
    #[serde(rename = "lowered_by")]
    pub lower: Option<&'static str>,
}

impl Held {
    /// Held from beginning to end.
    pub fn always(what: impl Into<String>, bytes: u64) -> Self {
        Held { what: what.into(), bytes, during: None, lower: None }
    }

    /// Held in a part of the work.
    pub fn during(part: &'static str, what: impl Into<String>, bytes: u64) -> Self {
        Held { what: what.into(), bytes, during: Some(part), lower: None }
    }

    /// The same, with the setting that makes it smaller.
    pub fn lowered_by(self, setting: &'static str) -> Self {
        Held { lower: Some(setting), ..self }
    }
}

/// The part of the work in which edits are made.
pub const EDITING: &str = "editing";

/// What an editor holds, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OfEditor {
    /// From one edit to the next.
    pub kept: u64,
    /// While it makes one.
    pub edit: u64,
}

/// All that a command will hold.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// In the order in which it is told.
    pub held: Vec<Held>,
}

impl Plan {
    /// The parts of the work.
    fn parts(&self) -> Vec<&'static str> {
        let mut parts = vec![];
        for part in self.held.iter().filter_map(|held| held.during) {
            if !parts.contains(&part) {
                parts.push(part);
            }
        }
        parts
    }

    /// What is held at once in a part of the work.
    fn sum(&self, part: Option<&str>) -> u64 {
        self.held.iter().filter(|held| held.during.is_none() || held.during == part).map(|held| held.bytes).sum()
    }

    /// The most that is held at once, and in which part of the work.
    pub fn peak(&self) -> (u64, Option<&'static str>) {
        let sums = self.parts().into_iter().map(|part| (self.sum(Some(part)), Some(part)));
        sums.max_by_key(|(bytes, _)| *bytes).unwrap_or((self.sum(None), None))
    }

    /// Refuses work that needs more than there is.
    ///
    /// # Errors
    /// Says how much is missing, and which settings make it smaller.
    pub fn check(&self, limit: u64) -> Result<()> {
        if self.peak().0 <= limit { Ok(()) } else { Err(Error::Config(self.advice(limit))) }
    }

    /// What would have to be smaller.
    fn advice(&self, limit: u64) -> String {
        let (peak, part) = self.peak();
        let mut large: Vec<&Held> =
            self.held.iter().filter(|held| held.during.is_none() || held.during == part).collect();
        large.sort_by_key(|held| std::cmp::Reverse(held.bytes));
        let settings =
            large.iter().filter_map(|held| Some(format!("{} ({} for {})", held.lower?, size(held.bytes), held.what)));
        let settings: Vec<String> = settings.collect();
        let (largest, what) = large.first().map_or((0, ""), |held| (held.bytes, held.what.as_str()));
        format!(
            "it takes {}, {} more than there is ({}); {}",
            size(peak),
            size(peak.saturating_sub(limit)),
            size(limit),
            match settings.is_empty() {
                true => format!("the largest part is {what}, {}, which no setting makes smaller", size(largest)),
                false => format!("lower {}", settings.join(", or ")),
            }
        )
    }
}

/// Bytes as people read them.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..=999_999 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..=999_499_999 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// `20GB`, `512MB` or a number of bytes.
///
/// # Errors
/// What is no size.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let wrong = || format!("\"{text}\" is no size; write 20GB, 800MB or a number of bytes");
    let number = text.trim();
    let units = [("GB", 1e9), ("MB", 1e6), ("GiB", 1024f64.powi(3)), ("MiB", 1024f64.powi(2)), ("G", 1e9), ("M", 1e6)];
    let (number, unit) =
        units.iter().find_map(|(unit, times)| Some((number.strip_suffix(unit)?, *times))).unwrap_or((number, 1.0));
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    if number.is_finite() && number > 0.0 && number * unit < 1e18 { Ok((number * unit) as u64) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        let held = vec![
            Held::always("weights", 600_000_000),
            Held::during("training", "kept states", 2_000_000_000).lowered_by("train.hidden_memory_gb"),
            Held::during("training", "a step", 300_000_000),
            Held::during("testing", "passes", 900_000_000),
        ];
        Plan { held }
    }

    #[test]
    fn the_peak_is_of_the_part_that_holds_most() {
        assert_eq!(plan().peak(), (2_900_000_000, Some("training")));
        assert_eq!(Plan { held: vec![Held::always("weights", 5)] }.peak(), (5, None));
        assert!(plan().check(2_900_000_000).is_ok());
        let error = plan().check(1_000_000_000).unwrap_err().to_string();
        assert!(
            error.contains("2.90 GB") && error.contains("lower train.hidden_memory_gb (2.00 GB for kept states)"),
            "{error}"
        );
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(parse_size("20GB"), Ok(20_000_000_000));
        assert_eq!(parse_size(" 1.5 GiB"), Ok(1_610_612_736));
        assert_eq!(parse_size("512"), Ok(512));
        for wrong in ["", "GB", "-1GB", "0", "nanGB", "1e30GB", "ten"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
