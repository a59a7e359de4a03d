//! A training that was stopped, killed or broken off ends as the one that was left alone, byte for byte.

#![cfg(unix)]

use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;

use crate::common::{KE, TestFolder, json, one_line_error, process, run, same_training, sets, stdout, text, training};

/// Settings under which everything that a snapshot has to hold is in use: both optimisers, a schedule, draws over several passes of
/// the data, a normaliser that freezes on the way, patience.
const EVERYTHING: [&str; 8] = [
    "train.accumulate=2",
    "train.edits_per_step=2",
    "train.warm_up=5",
    "train.schedule=cosine",
    "train.patience=1000",
    "train.seed=3",
    "editor.normalization_records=30",
    "loss.scope=both",
];

/// The same for SERAC, whose networks have optimisers with rates of their own.
const EVERYTHING_OF_SERAC: [&str; 8] = [
    "train.accumulate=2",
    "train.edits_per_step=2",
    "train.warm_up=5",
    "train.schedule=cosine",
    "train.patience=1000",
    "train.seed=3",
    "editor.classifier.learning_rate=1e-3",
    "editor.classifier.tune={lora={rank=2}}",
];

fn spawn(args: &[&str]) -> Child {
    process().args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits until a training has done at least so many steps.
fn wait_for_steps(child: &mut Child, out: &Path, steps: usize) {
    let start = Instant::now();
    let done = || std::fs::read_to_string(out.join("metrics.jsonl")).unwrap_or_default().matches("\"loss\"").count();
    while done() < steps {
        assert!(child.try_wait().unwrap().is_none(), "the training ended before step {steps}");
        assert!(start.elapsed() < Duration::from_secs(60), "no step {steps}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn killed_again_and_again() {
    let place = TestFolder::new();
    kill_again_and_again(&place, &place.gpt2_config(), &EVERYTHING);
}

/// The same for edits that are met by normal equations, four at once.
#[test]
fn malmen_killed_again_and_again() {
    let place = TestFolder::new();
    let together = ["editor.method=malmen", "train.edits_per_step=4", "train.edits_together=4"];
    let rest = EVERYTHING.iter().copied().filter(|set| !set.starts_with("train.edits_per_step"));
    let settings: Vec<&str> = rest.chain(together).collect();
    kill_again_and_again(&place, &place.gpt2_config(), &settings);
}

/// The same for edits that follow each other, with a term on running text and a ridge made of it.
#[test]
fn rledit_killed_again_and_again() {
    let place = TestFolder::new();
    let lines = (0..30).map(|line| format!("The river of valley {line} runs by old mills to the sea.\n"));
    place.write("prose.txt", lines.collect::<String>());
    let episode = [
        "editor.method=rledit",
        "editor.ridge=text",
        "loss.text={from=\"prose.txt\", tokens=12}",
        "data.text_tokens=20",
        "train.edits_per_step=4",
        "train.edits_together=[1, 3]",
    ];
    let rest = EVERYTHING.iter().copied().filter(|set| !set.starts_with("train.edits_per_step"));
    let settings: Vec<&str> = rest.chain(episode).collect();
    kill_again_and_again(&place, &place.gpt2_config(), &settings);
}

/// The same for KE, whose multiplier and margin move on the way, and for ENN, whose base does.
#[test]
fn ke_interrupted_by_control_c() {
    let place = TestFolder::new();
    let own = ["loss.margin=0.5", "loss.margin_success=0.0"].into_iter().chain(KE);
    let rest = EVERYTHING.iter().copied().filter(|set| !set.starts_with("editor."));
    interrupt(&place, &place.gpt2_config(), &rest.chain(own).collect::<Vec<_>>());
}

#[test]
fn enn_interrupted_by_control_c() {
    let place = TestFolder::new();
    let own = ["editor.method=enn", "editor.rank=", "editor.steps=2"];
    let rest = EVERYTHING.iter().copied().filter(|set| !set.starts_with("editor."));
    interrupt(&place, &place.gpt2_config(), &rest.chain(own).collect::<Vec<_>>());
}

/// What a sequence has edited in until Ctrl-C is kept where --save names a file.
#[test]
fn a_sequence_interrupted_by_control_c() {
    let place = TestFolder::new();
    let config = place.write(
        "ft.toml",
        "[model]\npath = \"pocket\"\n[editor]\nmethod = \"fine_tuning\"\nlayers = [4]\nweights = [\"mlp.down\"]\nlearning_rate = 1e-4\nsteps = 60\n\
         early_stop = 0.0\n",
    );
    let saved = place.path("so-far.edit.safetensors");
    let args =
        ["apply", "--config", text(&config), "--edits", "pocket/test", "--mode", "sequential", "--save", text(&saved)];
    let mut child = spawn(&args);
    std::thread::sleep(Duration::from_secs(4));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
    let kill = format!("kill -INT {}", child.id());
    assert!(Process::new("sh").args(["-c", &kill]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    one_line_error(&output, 130, &["interrupted after", "of 386 edits", "so-far.edit.safetensors holds"]);
    let kept = json(&["inspect", text(&saved)]);
    let edits = kept["provenance"]["requests"].as_array().unwrap().len();
    assert!((1..386).contains(&edits), "{edits}");
}

/// A training is saved by the clock too: what was done since a validation is not lost, and the end is the same.
#[test]
fn saved_between_validations() {
    let place = TestFolder::new();
    let (config, whole, out) = (place.gpt2_config(), place.path("whole"), place.path("out"));
    let settings = sets(&[&EVERYTHING[..], &["train.max_steps=300", "train.validate_every=300"]].concat());
    stdout(&run(&training(&config, &whole, &settings)));
    let every_step = [&settings[..], &["--set", "train.save_minutes=0.000001"]].concat();
    let mut child = spawn(&training(&config, &out, &every_step));
    wait_for_steps(&mut child, &out, 12);
    child.kill().unwrap();
    child.wait().unwrap();
    let current = std::fs::read_to_string(out.join("training/current")).unwrap();
    let step: usize = current.trim().trim_start_matches("step-").parse().unwrap();
    assert!((11..300).contains(&step), "{current}");
    // It decides nothing, so that the training goes on under another.
    stdout(&run(&training(&config, &out, &[&["--resume"], &settings[..]].concat())));
    same_training(&whole, &out);
}

/// A mapped file that is shortened ends the program with a line, not without a word.
#[test]
fn lost_pages_are_explained() {
    let mut child = process();
    let mut child = child
        .args(["apply", "--config", "configs/ft-pocket.toml", "--edits", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let kill = format!("kill -BUS {}", child.id());
    assert!(Process::new("sh").args(["-c", &kill]).status().unwrap().success());
    drop(child.stdin.take());
    one_line_error(&child.wait_with_output().unwrap(), 1, &["was shortened or cannot be read"]);
}

#[test]
fn serac_killed_again_and_again() {
    let place = TestFolder::new();
    kill_again_and_again(&place, &place.serac_config(), &EVERYTHING_OF_SERAC);
}

fn kill_again_and_again(place: &TestFolder, config: &Path, everything: &[&str]) {
    let (whole, out) = (place.path("whole"), place.path("out"));
    // A snapshot a step: most kills fall into its writing.
    let settings = sets(&[everything, &["train.max_steps=40", "train.validate_every=1"]].concat());
    stdout(&run(&training(config, &whole, &settings)));
    let resume = training(config, &out, &[&["--resume"], &settings[..]].concat());
    let mut delays = emend::random::stream(11, "kills", 0);
    let mut kills = 0;
    // Longer and longer, so that a slow machine gets there too.
    for most in (20..400).step_by(10) {
        let mut child = spawn(&resume);
        std::thread::sleep(Duration::from_millis(delays.random_range(5..most)));
        if child.try_wait().unwrap().is_some() {
            break;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
        // At any moment the archive is whole, or not there yet.
        if out.join("archive.toml").exists() {
            assert_eq!(json(&["inspect", text(&out)])["kind"], "archive");
            stdout(&run(&["apply", "--archive", text(&out), "--prompt", "Ost is", "--target", "Vell"]));
        }
    }
    assert!(kills >= 3, "only {kills} kills");
    stdout(&run(&resume));
    same_training(&out, &whole);
}

#[test]
fn interrupted_by_control_c() {
    let place = TestFolder::new();
    interrupt(&place, &place.gpt2_config(), &EVERYTHING);
}

#[test]
fn serac_interrupted_by_control_c() {
    let place = TestFolder::new();
    interrupt(&place, &place.serac_config(), &EVERYTHING_OF_SERAC);
}

/// One network trained alone, from a start whose other network is kept.
#[test]
fn serac_interrupted_in_one_network() {
    let place = TestFolder::new();
    let (config, start) = (place.serac_config(), place.path("start"));
    let lora = EVERYTHING_OF_SERAC[7];
    stdout(&run(&training(&config, &start, &sets(&["editor.train=classifier", lora]))));
    let alone = ["editor.train=counterfactual", "editor.start=start"];
    let own = EVERYTHING_OF_SERAC.into_iter().filter(|set| !set.starts_with("editor.classifier.learning_rate"));
    interrupt(&place, &place.counterfactual_config(), &own.chain(alone).collect::<Vec<_>>());
}

fn interrupt(place: &TestFolder, config: &Path, everything: &[&str]) {
    let (whole, out) = (place.path("whole"), place.path("out"));
    let settings = sets(&[everything, &["train.max_steps=150", "train.validate_every=20"]].concat());
    stdout(&run(&training(config, &whole, &settings)));
    let mut args = training(config, &out, &settings);
    // Once before there is a best network, once after.
    for steps in [3, 30] {
        let mut child = spawn(&args);
        wait_for_steps(&mut child, &out, steps);
        let kill = format!("kill -INT {}", child.id());
        assert!(Process::new("sh").args(["-c", &kill]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        one_line_error(&output, 130, &["interrupted at step", "--resume"]);
        if !args.contains(&"--resume") {
            args.push("--resume");
        }
    }
    let progress = json(&["inspect", text(&out)]);
    assert_eq!(progress["training"]["finished"], false);
    stdout(&run(&args));
    same_training(&out, &whole);
}

/// What a kill may leave: a snapshot half written, also one of the next name, temporary files, metrics of steps that do not count.
#[test]
fn leftovers_of_a_kill_disturb_nothing() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let (whole, out) = (place.path("whole"), place.path("out"));
    let settings = sets(&[&EVERYTHING[..], &["train.max_steps=60", "train.validate_every=5"]].concat());
    stdout(&run(&training(&config, &whole, &settings)));
    let mut child = spawn(&training(&config, &out, &settings));
    wait_for_steps(&mut child, &out, 12);
    child.kill().unwrap();
    child.wait().unwrap();

    let state = out.join("training");
    let current = std::fs::read_to_string(state.join("current")).unwrap();
    let step: usize = current.trim_start_matches("step-").parse().unwrap();
    for name in [format!("step-{:08}", step + 5), "step-00000060-end".into(), "step-99999999".into()] {
        std::fs::create_dir_all(state.join(&name)).unwrap();
        for file in ["last.safetensors", "progress.json", "of-no-use"] {
            std::fs::write(state.join(&name).join(file), "half").unwrap();
        }
    }
    for file in [out.join(".emend-a1b2c3"), state.join(".emend-d4e5f6"), state.join(&current).join(".emend-g7h8i9")] {
        std::fs::write(file, "half").unwrap();
    }
    let metrics = out.join("metrics.jsonl");
    std::fs::write(&metrics, std::fs::read_to_string(&metrics).unwrap() + "{\"step\":99,\"lo").unwrap();

    let resume = training(&config, &out, &[&["--resume"], &settings[..]].concat());
    stdout(&run(&resume));
    same_training(&out, &whole);
    let snapshots = std::fs::read_dir(&state).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(snapshots.count(), 1, "stale snapshots stay");
    // A training that has ended has nothing to go on with, and says the same again.
    stdout(&run(&resume));
    same_training(&out, &whole);
}

/// The state of early stopping is part of a snapshot.
#[test]
fn patience_runs_on_over_a_kill() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let (whole, out) = (place.path("whole"), place.path("out"));
    // Rates of zero: nothing is ever gained after the first validation.
    let settings = sets(&[
        "train.max_steps=100000",
        "train.validate_every=5",
        "train.patience=8",
        "train.learning_rate=0.0",
        "train.edit_rate_learning_rate=0.0",
        "editor.normalization=off",
    ]);
    let steps = json(&training(&config, &whole, &settings))["steps"].clone();
    assert_eq!(steps, 45);
    let mut child = spawn(&training(&config, &out, &settings));
    wait_for_steps(&mut child, &out, 17);
    child.kill().unwrap();
    child.wait().unwrap();
    stdout(&run(&training(&config, &out, &[&["--resume"], &settings[..]].concat())));
    same_training(&out, &whole);
}

#[test]
fn two_trainings_in_one_folder() {
    let place = TestFolder::new();
    let config = place.gpt2_config();
    let out = place.path("out");
    let settings = sets(&["train.max_steps=100000"]);
    let mut child = spawn(&training(&config, &out, &settings));
    wait_for_steps(&mut child, &out, 3);
    let second = training(&config, &out, &[&["--resume"], &settings[..]].concat());
    one_line_error(&run(&second), 1, &["another process", "--out"]);
    wait_for_steps(&mut child, &out, 6);
    child.kill().unwrap();
    child.wait().unwrap();
}
