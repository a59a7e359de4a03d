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
