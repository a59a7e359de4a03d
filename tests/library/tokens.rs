//! Tokenizers against transformers, and where targets and subjects stand.

use emend::model::tokenizer::Tokenizer;
use emend::model::tokens::BEGIN;

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

/// Unigram with an end behind each text, and byte-level BPE with a beginning and an end: prompts for an encoder, answers for a decoder.
#[test]
fn pairs_are_a_text_each_for_encoder_and_decoder() {
    for (name, opening) in [("t5-tiny", &[][..]), ("bart-tiny", &[0])] {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap().for_pairs().unwrap();
        let text = std::fs::read_to_string(fixture(name).join("tokens.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        for case in cases {
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            let text = case["text"].as_str().unwrap();
            let prompt = tokenizer.encode_prompt(text).unwrap();
            assert_eq!(prompt, [&ids[..], &[BEGIN], opening].concat(), "{name}: {text}");
            let row = tokenizer.continuation(text, " the harbour", Some(" ")).unwrap();
            assert_eq!(row.ids[..row.prompt], prompt);
            assert_eq!(tokenizer.decode(row.target()).unwrap(), "the harbour");
            // The cell at which the first token of the answer is predicted is the decoder's.
            assert!(row.reads().start >= ids.len());
        }
        assert!(tokenizer.encode_prompt("").is_err());
        assert!(tokenizer.continuation("The lake lies", "", None).is_err());
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

/// Byte-level BPE, SentencePiece BPE with byte fallback, and WordPiece: the answer's tokens are its own, whatever stands before them.
#[test]
fn answers_are_their_own_tokens_in_every_script() {
    let pairs = [
        ("甲国的首都是", "乙城"),
        ("甲国的首都是：", "Ost"),
        ("เมืองหลวงคือ", "ปารีส"),
        ("Where is Ost?\n", "In the hills"),
        ("Ada:\t", "yes"),
        ("She said “", "no"),
        ("The river runs", ", and runs"),
        ("수도는", "파리"),
        ("The river runs to", "the sea"),
    ];
    for name in ["gpt2-tiny", "llama-tiny"] {
        let tokenizer = Tokenizer::open(&fixture(name)).unwrap();
        for (prompt, target) in pairs {
            let row = tokenizer.continuation(prompt, target, None).unwrap();
            let whole = emend::model::separator::joined(prompt, target, None);
            assert_eq!(tokenizer.decode(&row.ids).unwrap(), whole, "{name}");
            assert_eq!(tokenizer.decode(row.target()).unwrap().trim_start_matches(' '), target, "{name}: {prompt:?}");
            if !row.apart {
                assert_eq!(row.ids, tokenizer.encode(&whole).unwrap(), "{name}");
            }
            // What a memory is asked is the prompt, to the character.
            assert_eq!(tokenizer.prompt_text(&row.ids[..row.prompt]).unwrap(), prompt, "{name}");
        }
        // In the middle of a word too: where one token would hold the end of the prompt and the beginning of the answer, they stand apart.
        for at in 1.."the river".len() {
            let (prompt, target) = "the river".split_at(at);
            if prompt.ends_with(' ') || target.starts_with(' ') {
                continue;
            }
            let row = tokenizer.continuation(prompt, target, Some("")).unwrap();
            assert_eq!(tokenizer.decode(&row.ids).unwrap(), "the river", "{name}: {prompt}|{target}");
            let text: String = row.target().iter().map(|&id| tokenizer.token(id)).collect();
            assert_eq!(text, target, "{name}: {prompt}|{target}");
        }
    }
    let pieces = Tokenizer::open(&fixture("bert-tiny")).unwrap();
    for (prompt, target) in [("The river runs to", "the sea"), ("甲国的首都是", "乙城"), ("The river runs", ".")]
    {
        let row = pieces.continuation(prompt, target, None).unwrap();
        assert_eq!(row.target(), pieces.encode_plain(target).unwrap(), "{prompt}");
    }
}
