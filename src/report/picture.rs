//! Pictures as SVG and as PNG, drawn by one hand on a canvas of either kind.

use std::fmt::Write as _;
use std::path::Path;

use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};

use crate::error::{Error, Result};
use crate::files;

/// What can be drawn.
pub trait Picture {
    /// Width and height in pixels.
    fn size(&self) -> (usize, usize);
    /// Draws it on a canvas of that size.
    fn draw(&self, on: &mut dyn Canvas);
}

/// Sees that a file's name says what kind of picture it is to be.
///
/// # Errors
/// It ends neither in .svg nor in .png.
pub fn check_name(path: &Path) -> Result<()> {
    kind(path).map(|_| ())
}

/// Which kind of picture a file is to be.
fn kind(path: &Path) -> Result<&'static str> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let known = ["svg", "png"].into_iter().find(|known| ending.eq_ignore_ascii_case(known));
    known.ok_or_else(|| Error::Config(format!("--plot {}: a picture is a .svg or a .png", path.display())))
}

/// Writes a picture as its file's name says.
///
/// # Errors
/// As [`check_name`]; a picture too large for the format; a file that cannot be written.
pub fn write(path: &Path, picture: &(impl Picture + ?Sized)) -> Result<()> {
    match kind(path)? {
        "png" => files::write(path, &png(picture)?),
        _ => files::write(path, svg(picture).as_bytes()),
    }
}

/// What a picture is drawn on. Places are in pixels, from the upper left corner.
pub trait Canvas {
    /// Left, top, width and height.
    fn rectangle(&mut self, at: [usize; 4], colour: [u8; 3]);
    /// A text whose left end is at x and whose middle is at y.
    fn text(&mut self, x: usize, y: usize, text: &str);
    /// A line from one place to another.
    fn line(&mut self, from: [usize; 2], to: [usize; 2], colour: [u8; 3]);
}

/// Width of a letter and height of a line.
pub(super) const LETTER: usize = 8;
pub(super) const LINE: usize = 20;
/// Around everything.
pub(super) const EDGE: usize = 12;

struct Svg(String);

impl Canvas for Svg {
    fn rectangle(&mut self, [x, y, width, height]: [usize; 4], [red, green, blue]: [u8; 3]) {
        let colour = format!("#{red:02x}{green:02x}{blue:02x}");
        let _ = writeln!(self.0, "<rect x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"{colour}\"/>");
    }

    fn line(&mut self, [x, y]: [usize; 2], [to_x, to_y]: [usize; 2], [red, green, blue]: [u8; 3]) {
        let colour = format!("#{red:02x}{green:02x}{blue:02x}");
        let _ = writeln!(
            self.0,
            "<line x1=\"{x}\" y1=\"{y}\" x2=\"{to_x}\" y2=\"{to_y}\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        );
    }

    fn text(&mut self, x: usize, y: usize, text: &str) {
        let text: String = text.chars().filter(|letter| !letter.is_control()).collect();
        let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
        let _ = writeln!(self.0, "<text x=\"{x}\" y=\"{}\">{text}</text>", y + 5);
    }
}

/// As SVG.
pub fn svg(picture: &(impl Picture + ?Sized)) -> String {
    let (width, height) = picture.size();
    let mut svg = Svg(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
         font-family=\"monospace\" font-size=\"13\" xml:space=\"preserve\" shape-rendering=\"crispEdges\">\n"
    ));
    svg.rectangle([0, 0, width, height], [255; 3]);
    picture.draw(&mut svg);
    svg.0 + "</svg>\n"
}

struct Pixels {
    width: usize,
    /// Row by row, three bytes each.
    bytes: Vec<u8>,
}

impl Pixels {
    fn set(&mut self, x: usize, y: usize, of: impl Fn(u8) -> [u8; 3]) {
        let at = 3 * (y * self.width + x);
        if x < self.width && at + 3 <= self.bytes.len() {
            let colour = of(self.bytes[at]);
            self.bytes[at..at + 3].copy_from_slice(&colour);
        }
    }
}

impl Canvas for Pixels {
    fn rectangle(&mut self, [x, y, width, height]: [usize; 4], colour: [u8; 3]) {
        for row in y..y + height {
            (x..x + width).for_each(|column| self.set(column, row, |_| colour));
        }
    }

    fn line(&mut self, from: [usize; 2], to: [usize; 2], colour: [u8; 3]) {
        let steps = from[0].abs_diff(to[0]).max(from[1].abs_diff(to[1])).max(1);
        let between = |axis: usize, step: usize| (from[axis] * (steps - step) + to[axis] * step) / steps;
        for step in 0..=steps {
            self.rectangle([between(0, step), between(1, step), 2, 2], colour);
        }
    }

    fn text(&mut self, x: usize, y: usize, text: &str) {
        let (weight, height) = (FontWeight::Regular, RasterHeight::Size16);
        debug_assert_eq!(get_raster_width(weight, height), 7);
        let mut from = x;
        for letter in text.chars().filter(|letter| !letter.is_control()) {
            // The font has the Latin letters; others are shown as unknown.
            let raster = get_raster(letter, weight, height).or_else(|| get_raster('?', weight, height));
            for (row, line) in raster.iter().flat_map(|raster| raster.raster().iter().enumerate()) {
                for (column, &ink) in line.iter().enumerate().filter(|(_, ink)| **ink > 0) {
                    self.set(from + column, (y + row).saturating_sub(8), |paper| [paper.min(255 - ink); 3]);
                }
            }
            from += LETTER * unicode_width::UnicodeWidthChar::width(letter).unwrap_or(1).max(1);
        }
    }
}

/// As PNG.
///
/// # Errors
/// A picture too large for the format.
fn png(picture: &(impl Picture + ?Sized)) -> Result<Vec<u8>> {
    let (width, height) = picture.size();
    let mut pixels = Pixels { width, bytes: vec![255; 3 * width * height] };
    picture.draw(&mut pixels);
    let wrong = |error: png::EncodingError| Error::Input(format!("the picture cannot be written: {error}"));
    let mut bytes = vec![];
    let mut encoder = png::Encoder::new(&mut bytes, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header().and_then(|mut writer| writer.write_image_data(&pixels.bytes)).map_err(wrong)?;
    Ok(bytes)
}
