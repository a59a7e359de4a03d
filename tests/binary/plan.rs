//! `--plan` and `--memory-limit`: what will be held, said and refused before anything is done.

use serde_json::Value;

use crate::common::{TestFolder, json, refused, run, sets, stdout, text, training, wrong_usage};

/// Command lines of all commands that plan, on the embedded model; what each would write lies in the folder.
fn commands(place: &TestFolder) -> Vec<Vec<String>> {
    let write = |name: &str, contents: &str| text(&place.write(name, contents)).to_owned();
    write(
        "rome.toml",
        "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"rome\"\nlayers = [2]\nstatistics = \"none\"\nsteps = 3\ncontext_templates = [\"{}\"]\n",
    );
    let ft = write(
        "ft.toml",
        "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"fine_tuning\"\nlayers = [1]\nlearning_rate = 1e-3\nsteps = 3\n",
    );
    let compare = write(
        "compare.toml",
        "[model]\npath = \"pocket\"\n\n[data]\ncases = \"pocket/test\"\nlimit = 4\n\n[[editors]]\nname = \"rome\"\nconfig = \"rome.toml\"\n\n\
         [[editors]]\nname = \"ft\"\nconfig = \"ft.toml\"\n",
    );
    let sweep = write(
        "sweep.toml",
        "[model]\npath = \"pocket\"\n\n[data]\nfacts = \"pocket/test\"\nlimit = 2\n\n[locate]\nproblems = [\"injection\"]\nlayers = [1, 4]\n\n\
         [[editors]]\nname = \"ft\"\nconfig = \"ft.toml\"\n",
    );
    let train = write(
        "mend.toml",
        "[model]\npath = \"pocket\"\n\n[editor]\nmethod = \"mend\"\nlayers = [4, 5]\nweights = [\"mlp.up\", \"mlp.down\"]\nrank = 64\n\n[loss]\n\
         text = \"pocket\"\n\n[data]\ntrain = \"pocket\"\nvalidation = \"pocket\"\ntest = \"pocket\"\ntest_records = 6\n\n[train]\nmax_steps = 4\n\
         edits_per_step = 10\nlearning_rate = 1e-3\nvalidate_every = 2\nvalidation_records = 6\n",
    );
    let out = |name: &str| text(&place.path(name)).to_owned();
    let line = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    vec![
        line(&["train", "--config", &train, "--out", &out("archive")]),
        line(&["apply", "--config", &ft, "--edits", "pocket/test", "--limit", "3"]),
        line(&[
            "stats",
            "--model",
            "pocket",
            "--text",
            "pocket",
            "--layers",
            "0..5",
            "--tokens",
            "4000",
            "--out",
            &out("stats"),
        ]),
        line(&["compare", "--config", &compare, "--out", &out("results")]),
        line(&["trace", "--model", "pocket", "--prompt", "The city of Lyon lies in", "--subject", "Lyon"]),
        line(&["locate", "--config", &sweep, "--out", &out("sweep")]),
    ]
}

#[test]
fn every_command_says_what_it_will_hold_and_does_nothing() {
    let place = TestFolder::new();
    for command in commands(&place) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let plan = json(&[&words[..], &["--plan"]].concat());
        let held = plan["held"].as_array().unwrap();
        let of = |what: &str| held.iter().find(|held| held["what"].as_str().unwrap().contains(what));
        // 1.4 million weights in f32; nothing is said of what this process has not read.
        let weights = of("weights").unwrap()["bytes"].as_u64().unwrap();
        assert!((4_000_000..40_000_000).contains(&weights), "{words:?}: {plan}");
        let peak = plan["peak"]["bytes"].as_u64().unwrap();
        assert!(peak > weights && plan["fits"] == true && plan["peak"]["while"].is_string(), "{words:?}: {plan}");
        let said = stdout(&run(&[&words[..], &["--plan"]].concat()));
        assert!(said.contains(" at most, while ") && said.contains(" can be had"), "{said}");
        assert!(
            !["archive", "stats.safetensors", "results", "sweep"].iter().any(|name| place.path(name).exists()),
            "{words:?}"
        );
    }
}

/// On a model so small the program itself is most of what is held; the shares of larger models are measured by a benchmark.
#[test]
fn a_plan_is_near_what_is_measured() {
    let place = TestFolder::new();
    for command in commands(&place).into_iter().take(3) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        let planned = json(&[&words[..], &["--plan"]].concat())["peak"]["bytes"].as_f64().unwrap();
        let done = json(&words);
        let measured = done["peak_memory_bytes"].as_f64().unwrap();
        assert!((0.6..1.6).contains(&(planned / measured)), "{words:?}: {planned} planned, {measured} measured");
    }
}

#[test]
fn what_is_beyond_the_limit_is_refused_before_it_begins() {
    let place = TestFolder::new();
    for command in commands(&place) {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        refused(&[&words[..], &["--memory-limit", "10MB"]].concat(), 2, &["it takes", "more than there is (10 MB)"]);
        assert!(
            !["archive", "stats.safetensors", "results", "sweep"].iter().any(|name| place.path(name).exists()),
            "{words:?}"
        );
        wrong_usage(&[&words[..], &["--memory-limit", "lots"]].concat(), &["\"lots\" is no size; write 20GB"]);
    }
}

/// What a long training would keep is cut to what there is room for.
#[test]
fn a_training_keeps_fewer_states_under_a_limit() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    place.write("prose.txt", "The river of a valley runs by old mills to the sea.\n");
    let sets = sets(&["loss.text={from=\"prose.txt\", tokens=12, windows=900000}", "train.max_steps=1000000"]);
    let line = [&training(&config, &out, &sets)[..], &["--plan"]].concat();
    let states = |plan: &Value| -> u64 {
        let held = plan["held"].as_array().unwrap().iter();
        let mut kept = held.filter(|held| held["lowered_by"] == "train.hidden_memory_gb");
        kept.next().unwrap()["bytes"].as_u64().unwrap()
    };
    let plan = json(&line);
    let (peak, kept) = (plan["peak"]["bytes"].as_u64().unwrap(), states(&plan));
    assert!(kept > 500_000_000, "{plan}");
    let limit = (peak - kept / 2).to_string();
    let line = [&line[..], &["--memory-limit", &limit, "--json"]].concat();
    let output = run(&line);
    let plan: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let apart = states(&plan) as f64 / (kept / 2) as f64;
    assert!(plan["fits"] == true && (0.9..1.1).contains(&apart), "{plan}");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("train.hidden_memory_gb = ") && errors.contains("within --memory-limit"), "{errors}");
    assert!(!out.exists());
}
