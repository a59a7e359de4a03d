//! Chat models: prompts as turns, in every command that asks a model.

use std::path::PathBuf;

use serde_json::Value;

use super::common::{TestFolder, fixture, json, refused, run, stdout, text, wrong_usage};

const TEMPLATE: &str = "{% if messages[0].role != 'system' %}[s]K.\n{% endif %}{% for message in messages %}[{{ message.role[0] }}]{{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[a]\n{% endif %}";

const QUESTION: &str = "Where is Orrin?";

/// The tiny Llama with a template of its own.
fn model(place: &TestFolder, template: &str) -> PathBuf {
    let folder = place.path("model");
    std::fs::create_dir_all(&folder).unwrap();
    for entry in std::fs::read_dir(fixture("llama-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    std::fs::write(folder.join("chat_template.jinja"), template).unwrap();
    folder
}

/// Fine-tuning that takes a moment and is strong enough to show.
fn fine_tuning(place: &TestFolder, model: &std::path::Path) -> PathBuf {
    let config = format!(
        "[model]\npath = {:?}\n[editor]\nmethod = \"fine_tuning\"\nlayers = [2]\nweights = [\"mlp.down\"]\nsteps = 40\nlearning_rate = 0.05\n",
        text(model)
    );
    place.write("ft.toml", config)
}

fn likeliest(document: &Value) -> &str {
    document["results"][0]["top"][0]["token"].as_str().unwrap()
}

#[test]
fn an_edit_for_a_chat_answers_its_turns() {
    let place = TestFolder::new();
    let model = model(&place, TEMPLATE);
    let (config, saved) = (fine_tuning(&place, &model), place.path("chat.edit.safetensors"));
    let edit = ["apply", "--config", text(&config), "--prompt", QUESTION, "--target", "Vell", "--subject", "Orrin"];
    let applied = stdout(&run(&[&edit[..], &["--chat", "--save", text(&saved)]].concat()));
    // People see what they said, not the template.
    assert!(applied.contains(QUESTION) && !applied.contains("[u]"), "{applied}");

    let turn = format!("[s]K.\n[u]{QUESTION}\n[a]\n");
    let request = &json(&["inspect", text(&saved)])["provenance"]["requests"][0];
    assert_eq!(request["prompt"], turn.as_str());
    assert_eq!(request["template"], turn.replace("Orrin", "{}").as_str());
    assert!(request["chat"].is_object(), "{request}");

    // Asked as a chat, by hand, and wrapped twice: one text, one answer, and the target is the beginning of the reply.
    let ask = |prompt: &str, more: &[&str]| {
        let args = ["predict", "--model", text(&model), "--edit", text(&saved), "--prompt", prompt];
        json(&[&args[..], more].concat())
    };
    let (chat, by_hand, twice) = (ask(QUESTION, &["--chat"]), ask(&turn, &[]), ask(&turn, &["--chat"]));
    assert_eq!(chat["results"], by_hand["results"]);
    assert_eq!(chat["results"], twice["results"]);
    assert!("Vell".starts_with(likeliest(&chat).trim()), "{}", likeliest(&chat));
    assert!(
        !likeliest(&chat).starts_with(' '),
        "nothing stands between a line's end and a reply: {:?}",
        likeliest(&chat)
    );

    // The bare text is another question; whoever asks it is told.
    let args = ["predict", "--model", text(&model), "--edit", text(&saved), "--prompt", QUESTION];
    let warned = String::from_utf8(run(&args).stderr).unwrap();
    assert!(warned.contains("made for a chat") && warned.contains("--chat"), "{warned}");
    let quiet = String::from_utf8(run(&[&args[..], &["--chat"]].concat()).stderr).unwrap();
    assert!(!quiet.contains("made for a chat"), "{quiet}");
}

#[test]
fn a_prompt_that_is_a_turn_already_is_not_wrapped_twice() {
    let place = TestFolder::new();
    let model = model(&place, TEMPLATE);
    let config = fine_tuning(&place, &model);
    let turn = format!("[s]K.\n[u]{QUESTION}\n[a]\n");
    let facts = place.write("facts.jsonl", serde_json::json!({"prompt": turn, "target_new": "Vell"}).to_string());
    let output = run(&["apply", "--config", text(&config), "--chat", "--edits", text(&facts), "--json"]);
    let document: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(document["requests"][0]["prompt"], turn.as_str());
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(errors.matches("hold the chat template's own text already").count(), 1, "{errors}");
}

#[test]
fn a_training_keeps_how_it_asked() {
    let place = TestFolder::new();
    let model = model(&place, TEMPLATE);
    let (config, out) = (place.config(&model, &["mlp.down"]), place.path("out"));
    // The tiny model has room for short questions.
    let facts = ["Ost", "Ael", "Issa", "Dorn", "Ulm", "Rhea"].map(|city| {
        serde_json::json!({"prompt": format!("Where is {city}?"), "subject": city, "target_new": "Vell", "target_true": "Tamm",
            "locality": {"near": [{"prompt": "A king is", "target": "Ost"}]}, "rephrases": [format!("Find {city}")]})
    });
    place.write("facts.json", serde_json::json!(facts).to_string());
    let chat = ["--set", "data.chat=true", "--set", "data.system=B."];
    stdout(&run(&[&["train", "--config", text(&config), "--out", text(&out)][..], &chat].concat()));
    let saved = place.path("one.edit.safetensors");
    let edit = ["apply", "--archive", text(&out), "--prompt", QUESTION, "--target", "Vell", "--save", text(&saved)];
    stdout(&run(&edit));
    let request = &json(&["inspect", text(&saved)])["provenance"]["requests"][0];
    assert_eq!(request["chat"]["system"], "B.");
    assert_eq!(request["prompt"], format!("[s]B.\n[u]{QUESTION}\n[a]\n").as_str());
    // Said again, it is the same chat.
    stdout(&run(&[&edit[..], &["--chat"]].concat()));
    assert_eq!(&json(&["inspect", text(&saved)])["provenance"]["requests"][0], request);
    // Texts for statistics are whole turns, and other statistics than those of the bare texts.
    let lines = place.write("texts.txt", "Lake Orrin lies in Vell, and a king lives there.\n".repeat(40));
    let stats = ["stats", "--model", text(&model), "--text", text(&lines), "--layers", "1", "--row", "16", "--out"];
    let file = place.path("keys.safetensors");
    stdout(&run(&[&stats[..], &[text(&file), "--chat"]].concat()));
    refused(&[&stats[..], &[text(&file)]].concat(), 1, &["--chat"]);
}

#[test]
fn templates_that_cannot_be_used_are_one_line() {
    let place = TestFolder::new();
    let ask = |template: &str, more: &[&str], words: &[&str]| {
        let model = model(&place, template);
        let args = ["predict", "--model", text(&model), "--prompt", QUESTION, "--chat"];
        refused(&[&args[..], more].concat(), 1, words);
    };
    ask("{% for message in messages %}{{ message.content }", &[], &["chat_template.jinja", "cannot be read"]);
    ask("{{ messages[0].content | shout }}", &[], &["chat_template.jinja", "shout"]);
    ask("{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}", &[], &["does not end"]);
    ask("Hello!", &[], &["leaves out what the user says"]);
    ask("{{ messages[0].content | upper }}", &[], &["leaves out what the user says"]);
    ask("{{ messages[-1].content }}:", &["--system", "Be brief."], &["no place for the system's text", "--system"]);
    // A model without a template.
    let bare = fixture("llama-tiny");
    refused(
        &["predict", "--model", text(&bare), "--prompt", QUESTION, "--chat"],
        1,
        &["no chat template", "base model"],
    );
    wrong_usage(&["predict", "--model", text(&bare), "--prompt", QUESTION, "--system", "Be brief."], &["--chat"]);
}

#[test]
fn a_template_that_changes_a_subject_is_refused() {
    let place = TestFolder::new();
    let model = model(&place, "<|user|>{{ messages[-1].content | replace('Orrin', 'Orin') }}<|assistant|>");
    let config = fine_tuning(&place, &model);
    let edit =
        ["apply", "--config", text(&config), "--prompt", QUESTION, "--target", "Vell", "--subject", "Orrin", "--chat"];
    refused(&edit, 1, &["changes the prompt", QUESTION]);
}

#[test]
fn system_without_chat_in_a_config() {
    let place = TestFolder::new();
    let (config, out) = (place.gpt2_config(), place.path("out"));
    let train = ["train", "--config", text(&config), "--out", text(&out), "--set", "data.system=Be brief."];
    refused(&train, 2, &["data.system", "data.chat"]);
}
