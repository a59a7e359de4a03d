//! Records as they reach the program: through a pipe, and in letters that are composed in one way or another.

use std::process::Output;

use serde_json::{Value, json};

use crate::common::{TestFolder, Trained, emend, json, one_line_error, records, refused, stdout, text};

/// `emend apply --edits EDITS` with an archive of MEND and a text on standard input.
fn piped(edits: &str, input: &str) -> Output {
    let archive = Trained::Gpt2.archive();
    let args = ["apply", "--archive", text(&archive), "--edits", edits, "--json"];
    emend().args(args).write_stdin(input.to_owned()).output().unwrap()
}

#[test]
fn records_come_through_a_pipe() {
    let (place, archive) = (TestFolder::new(), Trained::Gpt2.archive());
    let file = place.write("facts.json", records().to_string());
    let from_file = json(&["apply", "--archive", text(&archive), "--edits", text(&file)]);
    let lines: Vec<String> = records().as_array().unwrap().iter().map(Value::to_string).collect();
    for input in [records().to_string(), lines.join("\n")] {
        let from_pipe: Value = serde_json::from_str(&stdout(&piped("-", &input))).unwrap();
        for key in ["requests", "edits", "summary"] {
            assert_eq!(from_pipe[key], from_file[key], "{key}");
        }
    }
    let part: Value = serde_json::from_str(&stdout(&piped("-[1..3]", &records().to_string()))).unwrap();
    assert_eq!(part["edits"].as_array().unwrap(), &from_file["edits"].as_array().unwrap()[1..3]);
}

#[test]
fn what_is_wrong_with_a_pipe_is_said_of_standard_input() {
    for (input, words) in [
        ("", "standard input: holds no records"),
        ("[x]", "standard input: line 1, column 2: not JSON"),
        (r#"{"prompt": "Orrin is"}"#, "standard input: record 0: \"target_new\" is missing"),
    ] {
        one_line_error(&piped("-", input), 1, &[words]);
    }
}

#[test]
fn letters_are_the_same_in_one_character_or_in_two_and_stay_as_written() {
    let (place, archive) = (TestFolder::new(), Trained::Gpt2.archive());
    let (one, two) = ("S\u{e3}o Paulo", "Sa\u{303}o Paulo");
    for (subject, prompt) in [(one, two), (two, one)] {
        let prompt = format!("{prompt} lies in");
        let record = json!([{"prompt": prompt, "subject": subject, "target_new": "Vell"}]);
        let file = place.write("facts.json", record.to_string());
        let saved = place.path("edit.safetensors");
        let applied = json(&["apply", "--archive", text(&archive), "--edits", text(&file), "--save", text(&saved)]);
        assert_eq!(applied["requests"][0]["prompt"], prompt);
        let request = json(&["inspect", text(&saved)])["provenance"]["requests"][0].clone();
        assert_eq!((&request["prompt"], &request["subject"]), (&json!(prompt), &json!(subject)));
    }
    // What is refused is shown so that it can be read.
    let record = json!([{"prompt": format!("{two} lies in"), "subject": "Sa\u{303}u", "target_new": "Vell"}]);
    let file = place.write("facts.json", record.to_string());
    let shown = "\"S\u{e3}u\" is not in \"S\u{e3}o Paulo lies in\"";
    refused(&["apply", "--archive", text(&archive), "--edits", text(&file)], 1, &["facts.json", shown]);
}
