//! Heat maps of traces: in a terminal, as SVG and as PNG. The two files are drawn by one hand, on a canvas of either kind.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr;

use super::picture::{Canvas, EDGE, LETTER, LINE, Picture};
use super::table::cut;
use crate::model::tap::Place;
use crate::model::tokenizer::Tokenizer;
use crate::trace::average::Averages;
use crate::trace::result::{Map, Trace};

/// One heat map.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// What its rows are.
    pub rows: Vec<String>,
    /// Row by row, a number a layer.
    pub values: Vec<Vec<f64>>,
    /// What is white, and what is darkest.
    pub scale: (f64, f64),
    /// From light to dark; each is darker than the one before, so that grey shows as much.
    colours: [[u8; 3]; 3],
}

const STATES: [[u8; 3]; 3] = [[252, 251, 253], [158, 154, 200], [63, 0, 125]];
const MLP: [[u8; 3]; 3] = [[247, 252, 245], [116, 196, 118], [0, 68, 27]];
const ATTENTION: [[u8; 3]; 3] = [[255, 245, 240], [251, 106, 74], [103, 0, 13]];

/// The widest label of a row, in letters.
const LABEL: usize = 24;

impl Panel {
    /// The maps of a trace: probabilities, white where nothing is gained.
    pub fn of_trace(trace: &Trace, tokenizer: &Tokenizer) -> Vec<Self> {
        let question = &trace.question;
        let shown = |(number, &id): (usize, &u32)| {
            let mark = if question.at.contains(&number) { "*" } else { "" };
            let text = tokenizer.token(id);
            let text = if text.trim().is_empty() { tokenizer.shown(id) } else { text.trim().to_owned() };
            cut(&format!("{text}{mark}"), LABEL)
        };
        let rows: Vec<String> = question.ids.iter().enumerate().map(shown).collect();
        let panel = |map: &Map| Panel {
            title: format!("p({:?}), {}", tokenizer.token(question.answer).trim(), map.title()),
            rows: rows.clone(),
            values: map.probability.clone(),
            scale: (trace.low(), map.probability.iter().flatten().copied().fold(trace.high, f64::max)),
            colours: match map.window {
                None => STATES,
                Some((Place::MlpOut, _)) => MLP,
                Some(_) => ATTENTION,
            },
        };
        trace.maps.iter().map(panel).collect()
    }

    /// Mean effects by role.
    pub fn of_averages(averages: &Averages) -> Self {
        let values: Vec<Vec<f64>> =
            averages.rows.iter().map(|(_, means)| means.iter().map(|mean| mean.mean).collect()).collect();
        let what = match (averages.name.as_str(), averages.window) {
            ("state", _) => "the block's output".to_owned(),
            (name, window) => {
                format!("{} outputs in windows of {}", if name == "mlp" { "MLP" } else { name }, window.unwrap_or(1))
            }
        };
        Panel {
            title: format!("mean indirect effect, {what}"),
            rows: averages.rows.iter().map(|(role, _)| role.name().to_owned()).collect(),
            scale: (0.0, values.iter().flatten().copied().fold(1e-9, f64::max)),
            values,
            colours: match averages.name.as_str() {
                "state" => STATES,
                "mlp" => MLP,
                _ => ATTENTION,
            },
        }
    }

    /// How dark a value is, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        let (low, high) = self.scale;
        if high > low { ((value - low) / (high - low)).clamp(0.0, 1.0) } else { 0.0 }
    }

    fn colour(&self, value: f64) -> [u8; 3] {
        let at = self.share(value) * 2.0;
        let (from, to) = if at < 1.0 { (self.colours[0], self.colours[1]) } else { (self.colours[1], self.colours[2]) };
        let part = at - at.floor().min(1.0);
        std::array::from_fn(|channel| {
            let (from, to) = (f64::from(from[channel]), f64::from(to[channel]));
            (from + part * (to - from)).round() as u8
        })
    }

    /// For a terminal: a letter a layer, darker where the value is higher.
    pub fn terminal(&self) -> String {
        const SHADES: [char; 6] = ['·', '░', '░', '▒', '▓', '█'];
        let layers = self.values.first().map_or(0, Vec::len);
        let label = self.rows.iter().map(|row| row.width()).max().unwrap_or(0);
        let mut axis = String::new();
        for layer in (0..layers).step_by(5) {
            let _ = write!(axis, "{layer:<5}");
        }
        let mut text = format!("{}\n{}  {}\n", self.title, " ".repeat(label), axis.trim_end());
        for (row, values) in self.rows.iter().zip(&self.values) {
            let shade = |value: &f64| SHADES[(self.share(*value) * 5.0).round() as usize];
            let cells: String = values.iter().map(shade).collect();
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let _ = writeln!(text, "{}{row}  {cells}  {most:.3}", " ".repeat(label - row.width()));
        }
        text + &format!(
            "{}  · {:.3} to █ {:.3}; on the right the row's highest\n",
            " ".repeat(label),
            self.scale.0,
            self.scale.1
        )
    }
}

/// Where the cells of a panel begin.
fn left(panel: &Panel) -> usize {
    panel.rows.iter().map(|row| row.width()).max().unwrap_or(0) * LETTER + LETTER
}

/// The width of a cell.
fn cell(layers: usize) -> usize {
    (640 / layers.max(1)).clamp(8, 32)
}

/// Panels, one below the other.
impl Picture for [Panel] {
    fn size(&self) -> (usize, usize) {
        let width = |panel: &Panel| {
            let layers = panel.values.first().map_or(0, Vec::len);
            let title = panel.title.width() * LETTER;
            (left(panel) + layers * cell(layers) + 12 * LETTER + 30).max(title) + 2 * EDGE
        };
        let height = |panel: &Panel| (panel.rows.len() + 4) * LINE;
        (self.iter().map(width).max().unwrap_or(0), self.iter().map(height).sum::<usize>() + EDGE)
    }

    fn draw(&self, on: &mut dyn Canvas) {
        let mut top = EDGE;
        for panel in self {
            let layers = panel.values.first().map_or(0, Vec::len);
            let (left, wide) = (EDGE + left(panel), cell(layers));
            on.text(EDGE, top + LINE / 2, &panel.title);
            top += LINE;
            for (row, values) in panel.rows.iter().zip(&panel.values) {
                on.text(left - LETTER - row.width() * LETTER, top + LINE / 2, row);
                for (layer, &value) in values.iter().enumerate() {
                    on.rectangle([left + layer * wide, top, wide, LINE], panel.colour(value));
                }
                top += LINE;
            }
            for layer in (0..layers).step_by(5) {
                on.text(left + layer * wide, top + LINE / 2, &layer.to_string());
            }
            on.text(left, top + 3 * LINE / 2, "layer");
            // The scale beside it.
            let (bar, steps, height) = (left + layers * wide + 16, 32, panel.rows.len() * LINE);
            let (low, high) = panel.scale;
            for step in 0..steps {
                let value = high - (high - low) * step as f64 / (steps - 1) as f64;
                let (from, to) = (height * step / steps, height * (step + 1) / steps);
                on.rectangle([bar, top - height + from, 12, to - from], panel.colour(value));
            }
            on.text(bar + 20, top - height + LINE / 2, &format!("{high:.3}"));
            on.text(bar + 20, top - LINE / 2, &format!("{low:.3}"));
            top += 3 * LINE;
        }
    }
}
