//! Tables in a terminal.

use unicode_width::UnicodeWidthStr;

/// Columns aligned on the left, two spaces apart; a line under the header.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.width());
        cells.chain([header[column].width()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{cell}{}", " ".repeat(width - cell.width()))).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let rule: Vec<String> = widths.iter().map(|width| "─".repeat(*width)).collect();
    let mut text = line(&mut header.iter().copied());
    text += &line(&mut rule.iter().map(String::as_str));
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A text cut to a width, with an ellipsis where something is missing. Line breaks become spaces.
pub fn cut(text: &str, most: usize) -> String {
    let text = text.replace(['\n', '\r', '\t'], " ");
    if text.width() <= most {
        return text;
    }
    let mut kept = String::new();
    for letter in text.chars() {
        if kept.width() + 1 >= most {
            break;
        }
        kept.push(letter);
    }
    kept + "…"
}

/// A share as per cent.
pub fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.1} %", 100.0 * share))
}

/// So many of something: "1 fact", "20 facts".
pub fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
