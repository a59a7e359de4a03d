//! Learning rates over the steps of a training.

use serde::{Deserialize, Serialize};

/// How the rate goes on after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// It stays.
    #[default]
    Constant,
    /// It falls along a half cosine.
    Cosine,
}

/// A learning rate: a linear warm-up, then a constant or a half cosine down to a share of the height.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The rate after the warm-up.
    pub height: f64,
    /// Steps of the warm-up.
    pub warm_up: usize,
    /// Steps of the training.
    pub steps: usize,
    /// What is left at the end, as a share of the height.
    pub end: f64,
    /// How it goes on.
    pub shape: Shape,
}

impl Schedule {
    /// A half cosine.
    pub fn cosine(height: f64, warm_up: usize, steps: usize, end: f64) -> Self {
        Schedule { height, warm_up, steps, end, shape: Shape::Cosine }
    }

    /// The rate of a step, from 0.
    pub fn at(&self, step: usize) -> f64 {
        if step < self.warm_up {
            return self.height * (step + 1) as f64 / self.warm_up as f64;
        }
        match self.shape {
            Shape::Constant => self.height,
            Shape::Cosine => {
                let length = self.steps.saturating_sub(self.warm_up).max(1);
                let done = ((step - self.warm_up) as f64 / length as f64).min(1.0);
                let half = 0.5 * (1.0 + (std::f64::consts::PI * done).cos());
                self.height * (self.end + (1.0 - self.end) * half)
            }
        }
    }
}
