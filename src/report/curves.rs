//! Curves over a number: strengths of steering, edits together, sizes of models.

use unicode_width::UnicodeWidthStr;

use super::picture::{Canvas, EDGE, LETTER, LINE, Picture};

/// Curves over one axis of numbers.
#[derive(Debug, Clone)]
pub struct Curves {
    /// Above them.
    pub title: String,
    /// What the numbers below them are of.
    pub axis: String,
    /// Whether equal steps to the right are equal factors; the numbers are above 0 then.
    pub logarithmic: bool,
    /// The value at the upper end; the lower one is 0. What lies outside is drawn at the end.
    pub top: f64,
    /// The name of each curve, and its points: a number of the axis and a value, from left to right.
    pub values: Vec<(String, Vec<[f64; 2]>)>,
}

/// Each darker or lighter than those beside it, so that grey shows as much.
const COLOURS: [[u8; 3]; 8] = [
    [63, 0, 125],
    [230, 130, 30],
    [0, 140, 90],
    [200, 60, 120],
    [60, 120, 210],
    [150, 150, 150],
    [120, 70, 20],
    [0, 0, 0],
];

/// Of the figure, and room for the numbers on the left.
const HEIGHT: usize = 240;
const WIDTH: usize = 480;
const LEFT: usize = EDGE + 6 * LETTER;

impl Curves {
    fn numbers(&self) -> Vec<f64> {
        let mut numbers: Vec<f64> = self.values.iter().flat_map(|(_, points)| points.iter().map(|[x, _]| *x)).collect();
        numbers.sort_by(f64::total_cmp);
        numbers.dedup();
        numbers
    }

    /// Where a number stands between the left end, 0, and the right one, 1.
    fn place(&self, number: f64, numbers: &[f64]) -> f64 {
        let on = |number: f64| if self.logarithmic { number.ln() } else { number };
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return 0.0 };
        if first == last { 0.5 } else { (on(number) - on(*first)) / (on(*last) - on(*first)) }
    }

    fn width(&self) -> usize {
        let legend = self.values.iter().map(|(name, _)| name.width()).max().unwrap_or(0) * LETTER + 2 * LINE;
        (LEFT + WIDTH + legend).max(self.title.width() * LETTER + EDGE) + EDGE
    }

    fn height() -> usize {
        HEIGHT + 5 * LINE + EDGE
    }

    fn draw(&self, above: usize, on: &mut dyn Canvas) {
        let (top, grey) = (above + EDGE + 2 * LINE, [210; 3]);
        let numbers = self.numbers();
        let x = |number: f64| LEFT + (self.place(number, &numbers) * WIDTH as f64).round() as usize;
        // `max` makes 0 of what is no number.
        #[allow(clippy::manual_clamp)]
        let y = |value: f64| top + ((1.0 - (value / self.top).max(0.0).min(1.0)) * HEIGHT as f64).round() as usize;
        on.text(EDGE, above + EDGE + LINE / 2, &self.title);
        for quarter in 0..=4 {
            let value = self.top * f64::from(quarter) / 4.0;
            on.line([LEFT, y(value)], [LEFT + WIDTH, y(value)], grey);
            on.text(EDGE, y(value), &format!("{value:.2}"));
        }
        let mut free = 0;
        for &number in &numbers {
            on.line([x(number), top + HEIGHT], [x(number), top + HEIGHT + LINE / 4], grey);
            // A number that would stand in another's place is left out.
            if x(number) >= free {
                let text = (number * 1000.0).round() / 1000.0;
                on.text(x(number), top + HEIGHT + LINE, &text.to_string());
                free = x(number) + (text.to_string().len() + 1) * LETTER;
            }
        }
        on.text(LEFT, top + HEIGHT + 2 * LINE, &self.axis);
        for (number, (name, points)) in self.values.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let places: Vec<[usize; 2]> = points.iter().map(|&[number, value]| [x(number), y(value)]).collect();
            places.windows(2).for_each(|pair| on.line(pair[0], pair[1], colour));
            places.iter().for_each(|&[x, y]| on.rectangle([x.saturating_sub(3), y.saturating_sub(3), 7, 7], colour));
            let y = top + LINE / 2 + number * LINE;
            on.rectangle([LEFT + WIDTH + LINE, y - 4, 9, 9], colour);
            on.text(LEFT + WIDTH + 2 * LINE, y, name);
        }
    }
}

/// One below the other.
impl Picture for [Curves] {
    fn size(&self) -> (usize, usize) {
        (self.iter().map(Curves::width).max().unwrap_or(0), self.len() * Curves::height())
    }

    fn draw(&self, on: &mut dyn Canvas) {
        self.iter().enumerate().for_each(|(number, curves)| curves.draw(number * Curves::height(), on));
    }
}
