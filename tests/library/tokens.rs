//! Tokenizers against transformers, and where targets and subjects stand.

use emend::model::tokenizer::Tokenizer;

use crate::common::fixture;

#[test]
fn ids_are_those_of_transformers() {
    for name in ["gpt2-tiny", "llama-tiny", "llama3-tiny", "llama-linear-tiny"] {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let text = std::fs::read_to_string(fixture(name).join("tokens.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        assert!(cases.len() >= 10);
        for case in cases {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), ids, "{name}: {}", case["text"]);
        }
    }
}

#[test]
fn targets_and_subjects_stand_where_their_text_does() {
    for name in ["gpt2-tiny", "llama-tiny", "llama-linear-tiny"] {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        let text = tokenizer.continuation("The river runs to", "the sea", None).unwrap();
        assert_eq!(text.ids, tokenizer.encode("The river runs to the sea").unwrap(), "{name}");
        assert_eq!(tokenizer.decode(text.target()).unwrap().trim(), "the sea", "{name}");

        // Up to its last token the text ends with the subject.
        let prompt = "Ada met Ada Park in town";
        let ids = tokenizer.encode(prompt).unwrap();
        for end in [3, 11, 16] {
            let last = tokenizer.last_token(prompt, end).unwrap();
            assert_eq!(tokenizer.decode(&ids[..=last]).unwrap().trim(), &prompt[..end], "{name}");
        }
        assert!(tokenizer.last_token(prompt, 0).is_err());
    }
}
