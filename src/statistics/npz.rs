//! Second moments in the form in which the authors of ROME and MEMIT publish theirs: a numpy archive a layer, with the sum `Σ k kᵀ` as
//! `mom2.mom2 [width, width]` and the tokens that it is over as `mom2.count`. Arrays of numbers are read and nothing else: an array of
//! objects is a pickle, which can run any code, and its bytes are not looked at.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use crate::error::{Error, Result};
use crate::files;

const SUM: &str = "mom2.mom2";
const COUNT: &str = "mom2.count";

/// Second moments of one layer, as published.
#[derive(Debug, Clone, PartialEq)]
pub struct Published {
    /// Width of the keys.
    pub width: usize,
    /// The tokens that the sum is over.
    pub count: u64,
    /// `Σ k kᵀ [width · width]`
    pub sum: Vec<f64>,
}

/// An array as numpy has it.
struct Array {
    shape: Vec<usize>,
    values: Vec<f64>,
}

/// Reads a file.
///
/// # Errors
/// A file that is missing or no numpy archive, that lacks one of the two arrays, or whose sum can be none.
pub fn read(path: &Path) -> Result<Published> {
    let wrong = |problem: String| Error::file(path, problem);
    let file = File::open(path).map_err(Error::io(path))?;
    let size = file.metadata().map_err(Error::io(path))?.len();
    let mut archive = ZipArchive::new(file).map_err(|error| wrong(format!("no numpy archive ({error})")))?;
    let names: Vec<String> = archive.file_names().flatten().map(String::from).collect();
    let mut array = |name: &str| -> Result<Array> {
        let mut entry = archive.by_name(&format!("{name}.npy")).map_err(|_| {
            let names: Vec<&str> = names.iter().map(|name| name.trim_end_matches(".npy")).collect();
            wrong(format!(
                "there is no \"{name}\"; second moments hold {SUM} and {COUNT}, this file {}",
                names.join(", ")
            ))
        })?;
        // Of numbers deflate leaves far more than a thousandth: what claims less is made to fill the memory.
        if entry.size() / 1000 > size {
            return Err(wrong(format!("\"{name}\" claims {} bytes in a file of {size}", entry.size())));
        }
        let mut bytes = vec![];
        entry.read_to_end(&mut bytes).map_err(|error| wrong(format!("\"{name}\" cannot be read: {error}")))?;
        parse(&bytes).map_err(|problem| wrong(format!("\"{name}\" {problem}")))
    };
    let count = array(COUNT)?;
    let count = match (count.shape.iter().product::<usize>(), count.values.first()) {
        (1, Some(&count)) if count >= 1.0 && count.fract() == 0.0 && count < 1e18 => count as u64,
        _ => return Err(wrong(format!("\"{COUNT}\" is no number of tokens"))),
    };
    let Array { shape, values: sum } = array(SUM)?;
    let width = match shape[..] {
        [rows, columns] if rows == columns && rows > 0 => rows,
        _ => return Err(wrong(format!("\"{SUM}\" is {shape:?}; a second moment is square"))),
    };
    let largest = (0..width).fold(0.0f64, |most, at| most.max(sum[at * width + at]));
    let unlike =
        |(row, column): (usize, usize)| (sum[row * width + column] - sum[column * width + row]).abs() > 1e-3 * largest;
    if sum.iter().any(|value| !value.is_finite()) || (0..width).any(|at| sum[at * width + at] < 0.0) {
        return Err(wrong(format!("\"{SUM}\" holds what no sum of squares can be")));
    }
    if (0..width).flat_map(|row| (0..row).map(move |column| (row, column))).any(unlike) {
        return Err(wrong(format!("\"{SUM}\" is not symmetric")));
    }
    Ok(Published { width, count, sum })
}

/// Writes a file, whole or not at all.
///
/// # Errors
/// A folder that cannot be written.
pub fn write(path: &Path, moments: &Published) -> Result<()> {
    let broken = |error: zip::result::ZipError| Error::file(path, error);
    files::write_by(path, |temporary| {
        let mut archive = ZipWriter::new(File::create(temporary).map_err(Error::io(path))?);
        // As numpy.savez does.
        let stored = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
        let shape = format!("({0}, {0})", moments.width);
        let sum = moments.sum.iter().flat_map(|&value| (value as f32).to_le_bytes());
        let count = moments.count.to_le_bytes();
        // Its reader asks which class holds them.
        let class: Vec<u8> =
            "util.runningstats.SecondMoment()".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        let text = format!("<U{}", class.len() / 4);
        let arrays: [(&str, &str, &str, Vec<u8>); 3] = [
            ("mom2.constructor", &text, "()", class),
            (COUNT, "<i8", "()", count.to_vec()),
            (SUM, "<f4", &shape, sum.collect()),
        ];
        for (name, kind, shape, bytes) in arrays {
            archive.start_file(format!("{name}.npy"), stored).map_err(broken)?;
            archive
                .write_all(&header(kind, shape))
                .and_then(|()| archive.write_all(&bytes))
                .map_err(Error::io(path))?;
        }
        archive.finish().map(drop).map_err(broken)
    })
}

const MAGIC: &[u8] = b"\x93NUMPY";

/// Version 1 of numpy's form: the header is padded to whole lines of 64 bytes.
fn header(kind: &str, shape: &str) -> Vec<u8> {
    let mut text = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    let whole = (MAGIC.len() + 4 + text.len() + 1).next_multiple_of(64);
    text += &" ".repeat(whole - MAGIC.len() - 4 - text.len() - 1);
    text += "\n";
    [MAGIC, &[1, 0], &(text.len() as u16).to_le_bytes(), text.as_bytes()].concat()
}

/// An array of numbers.
fn parse(bytes: &[u8]) -> std::result::Result<Array, String> {
    let cut = || "is cut off".to_owned();
    let rest = bytes.strip_prefix(MAGIC).ok_or("is no numpy array")?;
    let (version, rest) = rest.split_at_checked(2).ok_or_else(cut)?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(size, rest)| (usize::from(u16::from_le_bytes(*size)), rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(size, rest)| (u32::from_le_bytes(*size) as usize, rest)),
        version => return Err(format!("is written in version {version} of numpy's form, which is not known")),
    }
    .ok_or_else(cut)?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut)?;
    let header = std::str::from_utf8(header).map_err(|_| "has a header that is no text")?;
    let key = |name: &str| -> std::result::Result<&str, String> {
        let (_, rest) =
            header.split_once(&format!("'{name}':")).ok_or_else(|| format!("says nothing of its {name}"))?;
        Ok(rest.trim_start())
    };
    let kind = key("descr")?.strip_prefix('\'').and_then(|rest| rest.split_once('\'')).map(|(kind, _)| kind);
    let kind = kind.ok_or("is no array of numbers")?;
    if kind.contains('O') {
        return Err("holds pickled objects, which are never read".into());
    }
    let size = match kind {
        "<f8" | "<i8" | "<u8" => 8,
        "<f4" | "<i4" | "<u4" => 4,
        _ => return Err(format!("is of type {kind}; numbers of 32 or 64 bits are read")),
    };
    let shape = key("shape")?.strip_prefix('(').and_then(|rest| rest.split_once(')')).map(|(shape, _)| shape);
    let numbers = shape.ok_or("has no shape")?.split(',').map(str::trim).filter(|number| !number.is_empty());
    let shape = numbers.map(|number| number.parse::<usize>().map_err(|_| format!("has the shape {number}")));
    let shape = shape.collect::<std::result::Result<Vec<usize>, String>>()?;
    let count = shape.iter().try_fold(size, |count: usize, &side| count.checked_mul(side)).ok_or_else(cut)?;
    if data.len() != count {
        return Err(format!("holds {} bytes where its shape {shape:?} wants {count}", data.len()));
    }
    // A matrix by columns is its transpose by rows, and these are symmetric.
    let number = |bytes: &[u8]| -> f64 {
        let (four, eight) = (bytes.first_chunk::<4>(), bytes.first_chunk::<8>());
        match (kind, four, eight) {
            ("<f4", Some(bytes), _) => f64::from(f32::from_le_bytes(*bytes)),
            ("<i4", Some(bytes), _) => f64::from(i32::from_le_bytes(*bytes)),
            ("<u4", Some(bytes), _) => f64::from(u32::from_le_bytes(*bytes)),
            ("<f8", _, Some(bytes)) => f64::from_le_bytes(*bytes),
            ("<i8", _, Some(bytes)) => i64::from_le_bytes(*bytes) as f64,
            (_, _, Some(bytes)) => u64::from_le_bytes(*bytes) as f64,
            _ => f64::NAN,
        }
    };
    Ok(Array { shape, values: data.chunks_exact(size).map(number).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(kind: &str, shape: &str, bytes: &[u8]) -> String {
        parse(&[&header(kind, shape), bytes].concat()).err().unwrap_or_default()
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("moments.npz");
        let moments = Published { width: 2, count: 7, sum: vec![1.0, 0.5, 0.5, 4.0] };
        write(&path, &moments).unwrap();
        assert_eq!(read(&path).unwrap(), moments);
    }

    #[test]
    fn headers_end_where_numpy_wants_them_to() {
        for (kind, shape) in [("<f4", "(2, 2)"), ("<i8", "()")] {
            assert_eq!(header(kind, shape).len() % 64, 0);
        }
        assert_eq!(parse(&[&header("<i8", "()"), &3i64.to_le_bytes()[..]].concat()).unwrap().values, [3.0]);
    }

    #[test]
    fn arrays_that_are_none_are_refused() {
        assert!(problem("|O", "()", &[0; 8]).contains("pickled"));
        assert!(problem("<f2", "(2,)", &[0; 4]).contains("<f2"));
        assert!(problem("<f4", "(3,)", &[0; 8]).contains("holds 8 bytes"));
        assert!(problem("<f4", "(99999999999, 99999999999)", &[0; 8]).contains("cut off"));
        assert!(problem("<f4", "(x,)", &[0; 8]).contains("shape x"));
        for bytes in [&b""[..], b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"\x93NUMPY\x09\x00"] {
            assert!(parse(bytes).is_err());
        }
    }
}
