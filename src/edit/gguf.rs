//! Edits as a LoRA adapter that llama.cpp loads: one GGUF file, as its `convert_lora_to_gguf.py` makes it of PEFT's.
//!
//! llama.cpp adds `B·A·(alpha / rank)` to a matrix `[d_out, d_in]`, with `A [rank, d_in]` and `B [d_out, rank]`. A GGUF file names the
//! dimensions of a tensor from the innermost on: these are `[d_in, rank]` and `[rank, d_out]` there, with the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use super::Edited;
use super::adapter::Adapter;
use super::hf::new_folder;
use crate::error::{Error, Result};
use crate::model::family::gguf::Gguf;
use crate::model::family::in_gguf;
use crate::model::load::checkpoint::Checkpoint;

/// The file's name in its folder.
const FILE: &str = "adapter.gguf";

/// Writes adapter.gguf into `folder`, whole or not at all. Gives the adapter's rank.
///
/// # Errors
/// A folder that is not empty or cannot be written; a family without a mapping; a change of biases, or a memory.
pub fn export(edited: &Edited, folder: &Path) -> Result<usize> {
    let checkpoint = &edited.base().checkpoint;
    let known = mapping(checkpoint)?;
    let Adapter { rank, matrices } = Adapter::of(edited, |at| known.place(at, checkpoint.spec()))?;
    let facts = [
        ("general.architecture", Fact::Text(known.architecture)),
        ("general.type", Fact::Text("adapter")),
        ("adapter.type", Fact::Text("lora")),
        // What is added is scaled by alpha over the rank: by one.
        ("adapter.lora.alpha", Fact::Number(rank as f32)),
    ];
    let tensors = matrices.iter().flat_map(|(name, factors)| {
        let part = |part: &str, shape, values| Tensor { name: format!("{name}.lora_{part}"), shape, values };
        [part("a", [rank, factors.d_in], factors.down(rank)), part("b", [factors.d_out, rank], factors.up(rank))]
    });
    let tensors: Vec<Tensor> = tensors.collect();
    new_folder(folder, |temporary| {
        let file = File::create(temporary.join(FILE)).map(BufWriter::new);
        file.and_then(|mut file| write(&mut file, &facts, &tensors)).map_err(Error::io(folder.join(FILE)))
    })?;
    Ok(rank)
}

/// How llama.cpp keeps a model's family.
///
/// # Errors
/// A family that it keeps otherwise, or not at all.
pub fn mapping(checkpoint: &Checkpoint) -> Result<Gguf> {
    checkpoint.family().gguf().ok_or_else(|| {
        Error::Input(format!(
            "gguf-lora: how llama.cpp calls the weights of family {} is not known here; it is of {}",
            checkpoint.family().name(),
            in_gguf().join(", ")
        ))
    })
}

/// What a file says of itself.
enum Fact {
    Text(&'static str),
    Number(f32),
}

/// A matrix in f32.
struct Tensor {
    name: String,
    /// Rows and columns.
    shape: [usize; 2],
    /// Row by row.
    values: Vec<f32>,
}

/// Tensors begin at multiples of so many bytes.
const ALIGNMENT: usize = 32;

/// The types of facts and tensors, by their numbers in a file.
const TYPE_F32: u32 = 6;
const TYPE_TEXT: u32 = 8;
const TENSOR_F32: u32 = 0;

/// Writes a GGUF file of version 3: what it says of itself, where its tensors lie, and these.
fn write(out: &mut impl Write, facts: &[(&str, Fact)], tensors: &[Tensor]) -> io::Result<()> {
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((facts.len() as u64).to_le_bytes());
    let text = |head: &mut Vec<u8>, text: &str| {
        head.extend((text.len() as u64).to_le_bytes());
        head.extend(text.as_bytes());
    };
    for (name, fact) in facts {
        text(&mut head, name);
        match fact {
            Fact::Text(value) => {
                head.extend(TYPE_TEXT.to_le_bytes());
                text(&mut head, value);
            }
            Fact::Number(value) => {
                head.extend(TYPE_F32.to_le_bytes());
                head.extend(value.to_le_bytes());
            }
        }
    }
    let mut begin = 0u64;
    for Tensor { name, shape: [rows, columns], values } in tensors {
        text(&mut head, name);
        head.extend(2u32.to_le_bytes());
        head.extend((*columns as u64).to_le_bytes());
        head.extend((*rows as u64).to_le_bytes());
        head.extend(TENSOR_F32.to_le_bytes());
        head.extend(begin.to_le_bytes());
        begin += (4 * values.len()).next_multiple_of(ALIGNMENT) as u64;
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT), 0);
    out.write_all(&head)?;
    for Tensor { values, .. } in tensors {
        let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        out.write_all(&bytes)?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads on from where it stands.
    struct Reader<'a>(&'a [u8], usize);

    impl Reader<'_> {
        fn take<const N: usize>(&mut self) -> [u8; N] {
            self.1 += N;
            self.0[self.1 - N..self.1].try_into().unwrap()
        }

        fn small(&mut self) -> u32 {
            u32::from_le_bytes(self.take())
        }

        fn large(&mut self) -> usize {
            u64::from_le_bytes(self.take()) as usize
        }

        fn text(&mut self) -> String {
            let length = self.large();
            self.1 += length;
            String::from_utf8(self.0[self.1 - length..self.1].to_vec()).unwrap()
        }
    }

    #[test]
    fn a_file_is_read_back() {
        let facts = [("general.type", Fact::Text("adapter")), ("adapter.lora.alpha", Fact::Number(2.0))];
        let numbers = |count: usize| (0..count).map(|value| value as f32).collect();
        let tensors = [
            Tensor { name: "blk.0.ffn_down.weight.lora_a".into(), shape: [1, 3], values: numbers(3) },
            Tensor { name: "blk.0.ffn_down.weight.lora_b".into(), shape: [5, 2], values: numbers(10) },
        ];
        let mut bytes = vec![];
        write(&mut bytes, &facts, &tensors).unwrap();
        let mut read = Reader(&bytes, 0);
        assert_eq!((&read.take::<4>(), read.small(), read.large(), read.large()), (b"GGUF", 3, 2, 2));
        assert_eq!((read.text(), read.small(), read.text()), ("general.type".into(), 8, "adapter".into()));
        assert_eq!((read.text(), read.small()), ("adapter.lora.alpha".into(), 6));
        assert_eq!(f32::from_le_bytes(read.take()), 2.0);
        let mut places = vec![];
        for tensor in &tensors {
            assert_eq!((read.text(), read.small()), (tensor.name.clone(), 2));
            // From the innermost dimension on.
            assert_eq!([read.large(), read.large()], [tensor.shape[1], tensor.shape[0]]);
            assert_eq!(read.small(), 0);
            places.push(read.large());
        }
        // Twelve bytes leave room up to the next multiple of 32.
        assert_eq!(places, [0, 32]);
        let data = read.1.next_multiple_of(32);
        assert_eq!(bytes.len(), data + 32 + 64);
        for (tensor, place) in tensors.iter().zip(places) {
            let mut read = Reader(&bytes, data + place);
            assert!(tensor.values.iter().all(|value| f32::from_le_bytes(read.take()) == *value));
        }
    }
}
