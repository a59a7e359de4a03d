//! Curves over a few settings of one thing, as SVG and as PNG.

use unicode_width::UnicodeWidthStr;

use super::canvas::{self, Canvas, EDGE, LETTER, LINE};
use crate::error::Result;

/// Curves between 0 and 1 over the same settings.
#[derive(Debug, Clone)]
pub struct Curves {
    /// Above them.
    pub title: String,
    /// What the settings are of.
    pub axis: String,
    /// The settings, in their order.
    pub settings: Vec<String>,
    /// The name of each curve, and its value at each setting.
    pub values: Vec<(String, Vec<f64>)>,
}

/// Each darker or lighter than the others, so that grey shows as much.
const COLOURS: [[u8; 3]; 4] = [[63, 0, 125], [0, 140, 90], [230, 130, 30], [120, 120, 120]];

/// Height of the figure, width of a step, and room for the numbers on the left.
const HEIGHT: usize = 240;
const STEP: usize = 80;
const LEFT: usize = EDGE + 6 * LETTER;

impl Curves {
    fn size(&self) -> (usize, usize) {
        let legend = self.values.iter().map(|(name, _)| name.width()).max().unwrap_or(0) * LETTER + 2 * LINE;
        let wide = LEFT + self.settings.len() * STEP + legend;
        (wide.max(self.title.width() * LETTER + EDGE) + EDGE, HEIGHT + 5 * LINE + EDGE)
    }

    fn draw(&self, on: &mut dyn Canvas) {
        let (top, grey) = (EDGE + 2 * LINE, [210; 3]);
        let right = LEFT + self.settings.len().saturating_sub(1) * STEP;
        // `max` makes 0 of what is no number.
        #[allow(clippy::manual_clamp)]
        let at = |index: usize, value: f64| {
            [LEFT + index * STEP, top + ((1.0 - value.max(0.0).min(1.0)) * HEIGHT as f64).round() as usize]
        };
        on.text(EDGE, EDGE + LINE / 2, &self.title);
        for quarter in 0..=4 {
            let value = quarter as f64 / 4.0;
            let [_, y] = at(0, value);
            on.line([LEFT, y], [right.max(LEFT + 1), y], grey);
            on.text(EDGE, y, &format!("{value:.2}"));
        }
        for (index, setting) in self.settings.iter().enumerate() {
            on.text(LEFT + index * STEP, top + HEIGHT + LINE, setting);
        }
        on.text(LEFT, top + HEIGHT + 2 * LINE, &self.axis);
        for (number, (name, values)) in self.values.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let places: Vec<[usize; 2]> = values.iter().enumerate().map(|(index, &value)| at(index, value)).collect();
            places.windows(2).for_each(|pair| on.line(pair[0], pair[1], colour));
            places.iter().for_each(|&[x, y]| on.rectangle([x.saturating_sub(3), y.saturating_sub(3), 7, 7], colour));
            let y = top + LINE / 2 + number * LINE;
            on.rectangle([right + LINE, y - 4, 9, 9], colour);
            on.text(right + 2 * LINE, y, name);
        }
    }

    /// As SVG.
    pub fn svg(&self) -> String {
        canvas::svg(self.size(), |on| self.draw(on))
    }

    /// As PNG.
    ///
    /// # Errors
    /// A picture too large for the format.
    pub fn png(&self) -> Result<Vec<u8>> {
        canvas::png(self.size(), |on| self.draw(on))
    }
}
