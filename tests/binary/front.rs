//! What a newcomer meets first: help, doctor, configs, completions and man pages.

use std::fs;

use crate::common::{TestFolder, emend, fixture, json, refused, run, stdout, text};

/// The commands that the help lists.
fn commands() -> Vec<String> {
    let help = stdout(&run(&["--help"]));
    let list = help.lines().skip_while(|line| !line.starts_with("Commands:")).skip(1);
    let names = list.take_while(|line| !line.is_empty()).filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).filter(|name| name != "help").collect()
}

#[test]
fn completions_know_every_command() {
    let commands = commands();
    assert!(commands.len() >= 18, "{commands:?}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(&["completions", shell]));
        for command in &commands {
            assert!(script.contains(command.as_str()), "{shell} lacks {command}");
        }
    }
}

#[test]
fn there_is_a_man_page_for_each_command() {
    let page = stdout(&run(&["man"]));
    assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{page}");
    let folder = TestFolder::new();
    stdout(&run(&["man", "--out", text(&folder.path("man"))]));
    for command in commands() {
        let page = fs::read_to_string(folder.path(&format!("man/emend-{command}.1"))).unwrap();
        assert!(
            page.contains(".SH SYNOPSIS") && page.contains(&format!("emend {command}").replace('-', "\\-")),
            "{page}"
        );
    }
}

#[test]
fn doctor_says_what_is_there_and_what_is_missing() {
    let folder = TestFolder::new();
    let home = folder.path("home");
    let found = emend().args(["doctor", "--json"]).env("HOME", &home).output().unwrap();
    let found: serde_json::Value = serde_json::from_str(&stdout(&found)).unwrap();
    assert!(found["cores"].as_u64().unwrap() >= 1 && found["threads"].as_u64().unwrap() >= 1);
    assert_eq!(found["models"]["embedded"], serde_json::json!(["pocket", "pocket-t5"]));
    assert_eq!(found["devices"][0], serde_json::json!({"name": "cpu", "usable": true, "why_not": null}));
    assert_eq!(found["missing"].as_array().unwrap().len(), 2);
    // A cache that is no folder cannot be read.
    fs::create_dir_all(home.join(".cache")).unwrap();
    fs::write(home.join(".cache/emend-models"), "").unwrap();
    let output = emend().arg("doctor").env("HOME", &home).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        errors.starts_with("error: ") && errors.contains("emend-models") && errors.lines().count() == 1,
        "{errors}"
    );
    assert_eq!(json(&["doctor"])["version"], env!("CARGO_PKG_VERSION"));
}

/// The methods that `--method` knows: those of its error.
fn methods() -> Vec<String> {
    let output = run(&["new-config", "--method", "none", "--model", "pocket"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let known = errors.trim().split("known: ").nth(1).unwrap_or_else(|| panic!("{errors}"));
    known.split(", ").map(str::to_owned).collect()
}

/// Every config of every method is read again whole, for every family that has one; each key in it is explained.
#[test]
fn configs_are_written_for_every_method_and_family() {
    let methods = methods();
    assert_eq!(methods.len(), 22, "{methods:?}");
    let models = [
        "gpt2-tiny",
        "llama-tiny",
        "qwen3-tiny",
        "gemma3-tiny",
        "pythia-tiny",
        "gptj-tiny",
        "opt-tiny",
        "phi3-tiny",
        "mistral-tiny",
        "falcon-tiny",
        "gptneo-tiny",
    ];
    let mut names: Vec<String> = models.iter().map(|model| text(&fixture(model)).to_owned()).collect();
    names.push("pocket".into());
    for method in &methods {
        for model in &names {
            let written = stdout(&run(&["new-config", "--method", method, "--model", model]));
            let table: toml::Table = written.parse().unwrap_or_else(|error| panic!("{method} {model}: {error}"));
            assert!(table.contains_key("editor"), "{written}");
            // A key that is set, or one behind a #, which is not.
            let is_key = |line: &str| {
                let key = line.trim_start_matches("# ").split_once(" =").map(|(key, _)| key);
                key.is_some_and(|key| key.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_'))
            };
            let lines: Vec<&str> = written.lines().collect();
            for (at, line) in lines.iter().enumerate().filter(|(_, line)| is_key(line)) {
                let above = lines[at - 1];
                assert!(above.starts_with("# ") && !is_key(above), "{method}: {line} is not explained:\n{written}");
            }
        }
    }
}

#[test]
fn a_written_config_edits() {
    let folder = TestFolder::new();
    for method in ["ft", "lora", "grace", "lookup", "kn"] {
        let config = folder.path(&format!("{method}.toml"));
        stdout(&run(&["new-config", "--method", method, "--model", "pocket", "--out", text(&config)]));
        let edit = ["--prompt", "The city of Lyon lies in", "--subject", "Lyon", "--target", "Japan"];
        stdout(&run(&[
            &["apply", "--config", text(&config), "--set", "editor.steps=2"][..if method == "lookup" { 3 } else { 5 }],
            &edit[..],
        ]
        .concat()));
    }
    refused(
        &["new-config", "--method", "ft", "--model", "pocket", "--out", text(&folder.path("ft.toml"))],
        2,
        &["there already", "--force"],
    );
    refused(&["new-config", "--method", "rome", "--model", "pocket-t5"], 2, &["encoder that reads it whole"]);
}
