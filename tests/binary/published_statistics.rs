//! Second moments taken over from others, and given to them.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use zip::write::SimpleFileOptions;

use crate::common::{TensorFile, TestFolder, fixture, one_line_error, refused, run, stdout, text};

/// Statistics of the pocket model's layers 1 and 2 over a few sentences, and their files in the authors' form.
fn exported(place: &TestFolder) -> (PathBuf, Vec<PathBuf>) {
    let (ours, folder) = (place.path("ours.safetensors"), place.path("npz"));
    let model = ["--model", "pocket", "--layers", "1,2", "--out", text(&ours)];
    stdout(&run(&[&["stats"], &model[..], &["--text", "pocket", "--tokens", "4000"]].concat()));
    let said = stdout(&run(&[&["stats"], &model[..], &["--export", "npz", text(&folder)]].concat()));
    let file = |layer: usize| folder.join(format!("transformer.h.{layer}.mlp.c_proj_float32_mom2.npz"));
    assert!(said.contains(text(&file(1))) && said.contains(text(&file(2))), "{said}");
    let files = vec![file(1), file(2)];
    (ours, files)
}

fn import(files: &[PathBuf], layers: &str, out: &Path) -> Vec<String> {
    let mut args: Vec<String> =
        ["stats", "--model", "pocket", "--layers", layers, "--out", text(out), "--import"].map(String::from).to_vec();
    args.extend(files.iter().map(|file| text(file).to_owned()));
    args
}

fn sums(path: &Path, layer: usize) -> Vec<f64> {
    let (_, _, data) = &TensorFile::read(path).tensors[&format!("sum.{layer}")];
    data.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

fn header(path: &Path) -> Value {
    serde_json::from_str(&TensorFile::read(path).header.unwrap()["emend"]).unwrap()
}

/// An archive of arrays: their names, and what numpy would write.
fn archive(path: &Path, arrays: &[(&str, &[u8])]) {
    let mut archive = zip::ZipWriter::new(std::fs::File::create(path).unwrap());
    for (name, bytes) in arrays {
        archive.start_file(format!("{name}.npy"), SimpleFileOptions::default()).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap();
}

fn array(kind: &str, shape: &str, bytes: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n");
    [b"\x93NUMPY\x01\x00", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), bytes].concat()
}

#[test]
fn what_is_exported_is_imported() {
    let place = TestFolder::new();
    let (ours, files) = exported(&place);
    let theirs = place.path("theirs.safetensors");
    let args = import(&files, "1,2", &theirs);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = stdout(&run(&args));
    assert!(said.contains("which tokenizer read which texts"), "{said}");
    for layer in [1, 2] {
        let (ours, theirs) = (sums(&ours, layer), sums(&theirs, layer));
        let largest = ours.iter().fold(0.0f64, |most, value| most.max(value.abs()));
        assert!(ours.iter().zip(&theirs).all(|(a, b)| (a - b).abs() < 1e-6 * largest));
    }
    assert!(
        stdout(&run(&["inspect", text(&theirs)])).contains("mom2.npz; which tokenizer read which texts is not known")
    );
    assert!(stdout(&run(&["inspect", text(&ours)])).contains("second moments of keys of width 768, layers 1, 2, over"));
    let (ours, theirs) = (header(&ours), header(&theirs));
    assert_eq!((&ours["tokens"], &ours["model"]), (&theirs["tokens"], &theirs["model"]));
    assert_eq!(theirs["tokenizer"], "unknown");
    assert_eq!(theirs["sources"][0]["name"], "transformer.h.1.mlp.c_proj_float32_mom2.npz");
}

/// An editor takes them as its own, and its edits say what is not known.
#[test]
fn edits_say_that_statistics_were_imported() {
    let place = TestFolder::new();
    let (ours, files) = exported(&place);
    let theirs = place.path("theirs.safetensors");
    let args = import(&files[..1], "1", &theirs);
    stdout(&run(&args.iter().map(String::as_str).collect::<Vec<_>>()));
    let edit = |statistics: &Path| -> Value {
        let statistics = format!("editor.statistics={}", text(statistics));
        let args =
            ["apply", "--config", "configs/rome-pocket.toml", "--set", &statistics, "--set", "editor.layers=[1]"];
        let fact = [
            "--set",
            "editor.steps=3",
            "--prompt",
            "The city of Lyon lies in",
            "--subject",
            "Lyon",
            "--target",
            "Japan",
        ];
        serde_json::from_str(&stdout(&run(&[&args[..], &fact[..], &["--json"]].concat()))).unwrap()
    };
    let (with_ours, with_theirs) = (edit(&ours), edit(&theirs));
    assert_eq!(with_ours["settings"]["statistics_unknown"], json!(null));
    let unknown = with_theirs["settings"]["statistics_unknown"].as_str().unwrap();
    assert!(unknown.contains("mom2.npz; tokenizer and texts are not known"), "{unknown}");
    let probability = |edit: &Value| edit["requests"][0]["probes"][0]["after"]["target_probability"].as_f64().unwrap();
    assert!((probability(&with_ours) - probability(&with_theirs)).abs() < 1e-4);
}

#[test]
fn files_that_are_none_are_refused() {
    let place = TestFolder::new();
    let (ours, files) = exported(&place);
    let out = place.path("out.safetensors");
    let whole = std::fs::read(&files[0]).unwrap();
    let count = array("<i8", "()", &7i64.to_le_bytes());
    let square = |values: [f32; 4]| array("<f4", "(2, 2)", &values.map(f32::to_le_bytes).concat());
    let good = square([1.0, 0.0, 0.0, 1.0]);
    type Arrays = Vec<(&'static str, Vec<u8>)>;
    let cases: [(&str, Arrays, &str); 8] = [
        ("no-sum", vec![("mom2.count", count.clone())], "there is no \"mom2.mom2\""),
        ("no-count", vec![("mom2.mom2", good.clone())], "there is no \"mom2.count\""),
        (
            "pickle",
            vec![("mom2.count", count.clone()), ("mom2.mom2", array("|O", "()", b"\x80\x04."))],
            "pickled objects",
        ),
        (
            "nothing",
            vec![("mom2.count", array("<i8", "()", &[0; 8])), ("mom2.mom2", good.clone())],
            "no number of tokens",
        ),
        ("width", vec![("mom2.count", count.clone()), ("mom2.mom2", good)], "second moments of width 2"),
        ("nan", vec![("mom2.count", count.clone()), ("mom2.mom2", square([f32::NAN; 4]))], "no sum of squares"),
        ("lopsided", vec![("mom2.count", count.clone()), ("mom2.mom2", square([1.0, 0.0, 0.9, 1.0]))], "not symmetric"),
        (
            "long",
            vec![("mom2.count", count), ("mom2.mom2", array("<f4", "(1, 4)", &[0; 16]))],
            "a second moment is square",
        ),
    ];
    let refuse = |file: PathBuf, words: &[&str]| {
        let args = import(&[file], "1", &out);
        refused(&args.iter().map(String::as_str).collect::<Vec<_>>(), 1, words);
        assert!(!out.exists());
    };
    for (name, arrays, words) in cases {
        let path = place.path(&format!("{name}.npz"));
        archive(&path, &arrays.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect::<Vec<_>>());
        refuse(path, &[name, words]);
    }
    refuse(place.write("cut.npz", ""), &["no numpy archive"]);
    let cut = place.path("half.npz");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    refuse(cut, &["no numpy archive"]);
    refuse(place.path("nowhere.npz"), &["nowhere.npz"]);
    refuse(ours.clone(), &["no numpy archive"]);

    let both = import(&files, "1", &out);
    refused(&both.iter().map(String::as_str).collect::<Vec<_>>(), 2, &["2 files for the layers [1]"]);
    // What is there is not written over unasked.
    let over = import(&files, "1,2", &ours);
    let over: Vec<&str> = over.iter().map(String::as_str).collect();
    refused(&over, 1, &["ours.safetensors: statistics of", "--again"]);
    stdout(&run(&[&over[..], &["--again"]].concat()));
}

#[test]
fn exports_that_cannot_be_are_refused() {
    let place = TestFolder::new();
    let (ours, _) = exported(&place);
    let export = |layers: &str, form: &str, out: &Path| {
        let folder = place.path("again");
        let args =
            ["stats", "--model", "pocket", "--layers", layers, "--out", text(out), "--export", form, text(&folder)];
        run(&args)
    };
    let cases = [
        (export("3", "npz", &ours), 1, "no statistics of layer 3"),
        (export("1", "hdf", &ours), 2, "the one format is npz"),
        (export("1", "npz", &place.path("none")), 1, "no statistics here to export"),
    ];
    for (output, code, words) in cases {
        one_line_error(&output, code, &[words]);
    }
    let tiny = fixture("gpt2-tiny");
    let args = ["stats", "--model", text(&tiny), "--layers", "1", "--out", text(&ours), "--export", "npz", "x"];
    refused(&args, 1, &["statistics of the model"]);
}
