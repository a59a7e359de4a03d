use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::fetch::Token;
use crate::fetch::server::{Reply, Request, Server, settings};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A repository as the hub shows it: large files by SHA-256, small ones by a hash of Git's length.
#[derive(Clone, Default)]
struct Remote(BTreeMap<&'static str, Vec<u8>>);

impl Remote {
    fn new(files: &[(&'static str, &str)]) -> Self {
        Remote(files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())).collect())
    }

    /// GPT-2's shape: everything in one file.
    fn single() -> Self {
        Remote::new(&[
            ("config.json", "{\"model_type\": \"gpt2\"}"),
            ("tokenizer.json", "{\"version\": \"1.0\"}"),
            ("tokenizer_config.json", "{}"),
            ("model.safetensors", "all the weights"),
            ("pytorch_model.bin", "never to be asked for"),
        ])
    }

    fn sharded() -> Self {
        let index =
            json!({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}});
        let mut remote = Remote::new(&[
            ("config.json", "{}"),
            ("tokenizer.json", "{ }"),
            ("model-00001-of-00002.safetensors", "first half"),
            ("model-00002-of-00002.safetensors", "second half"),
        ]);
        remote.0.insert("model.safetensors.index.json", index.to_string().into_bytes());
        remote
    }

    fn listing(&self) -> String {
        let siblings: Vec<Value> = self
            .0
            .iter()
            .map(|(name, body)| match name.ends_with(".safetensors") {
                true => json!({"rfilename": name, "size": body.len(), "blobId": "f".repeat(40),
                               "lfs": {"sha256": sha(body), "size": body.len(), "pointerSize": 1}}),
                false => json!({"rfilename": name, "size": body.len(), "blobId": sha(body)[..40]}),
            })
            .collect();
        json!({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).to_string()
    }

    fn answer(&self, request: &Request) -> Reply {
        if request.path == "/api/models/org/tiny/revision/main?blobs=true" {
            return Reply::whole(self.listing().as_bytes());
        }
        let file = request.path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).and_then(|name| self.0.get(name));
        match file {
            Some(body) => Reply::ranged(request, body, "\"storage\""),
            None => Reply::status(404),
        }
    }

    fn serve(self) -> Server {
        Server::start(move |request, _| self.answer(request))
    }
}

fn sha(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    sha256_of(file.path()).unwrap()
}

fn get(settings: &FetchSettings) -> Result<PathBuf, FetchError> {
    resolve_with("org/tiny", settings, &mut silent)
}

fn refused(result: Result<PathBuf, FetchError>) -> String {
    let text = result.unwrap_err().to_string();
    assert!(!text.contains('\n'), "{text}");
    text
}

#[test]
fn one_file_lands_in_the_standard_layout_and_then_needs_no_network() {
    let server = Remote::single().serve();
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url);
    let folder = get(&settings).unwrap();
    let repo = settings.hub_cache.join("models--org--tiny");
    assert_eq!(folder, repo.join("snapshots").join(COMMIT));
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"all the weights");
    assert_eq!(fs::read(repo.join("blobs").join(sha(b"all the weights"))).unwrap(), b"all the weights");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
    assert_eq!(fs::read_dir(repo.join("blobs")).unwrap().count(), 4, "no parts or locks stay");
    assert!(server.paths().iter().all(|path| !path.ends_with(".bin")));
    // `hf-hub` finds it where it looks itself.
    let theirs = hf_hub::Cache::new(settings.hub_cache.clone()).model("org/tiny".into()).get("model.safetensors");
    assert_eq!(theirs.unwrap(), folder.join("model.safetensors"));

    let before = server.seen().len();
    settings.offline = true;
    assert_eq!(get(&settings).unwrap(), folder);
    assert_eq!(fetch("org/tiny", &settings, &mut silent).unwrap(), folder);
    settings.offline = false;
    assert_eq!(get(&settings).unwrap(), folder);
    assert_eq!(server.seen().len(), before);
    assert_eq!(cached(&settings), ["org/tiny"]);
}

#[test]
fn shards_come_all_and_one_that_is_missing_makes_it_incomplete() {
    let server = Remote::sharded().serve();
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path(), &server.url);
    let folder = get(&settings).unwrap();
    assert_eq!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"second half");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 5);

    // The blob goes, its link stays and leads nowhere: only that file is brought again.
    fs::remove_file(settings.hub_cache.join("models--org--tiny/blobs").join(sha(b"second half"))).unwrap();
    let before = server.seen().len();
    assert_eq!(get(&settings).unwrap(), folder);
    assert_eq!(server.paths()[before..].len(), 2, "the list and the shard");
    assert_eq!(fs::read(folder.join("model-00002-of-00002.safetensors")).unwrap(), b"second half");
}

#[test]
fn a_broken_connection_is_gone_on_with_and_a_failed_fetch_leaves_no_model() {
    let remote = Remote::single();
    let working = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let works = std::sync::Arc::clone(&working);
    let server = Server::start(move |request, _| match remote.answer(request) {
        reply if request.path.ends_with("model.safetensors") && !works.load(std::sync::atomic::Ordering::SeqCst) => {
            reply.cut(5)
        }
        reply => reply,
    });
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url);
    settings.retries = 0;
    assert!(refused(get(&settings)).contains("broke off"));
    assert!(cached(&settings).is_empty());

    working.store(true, std::sync::atomic::Ordering::SeqCst);
    let folder = get(&settings).unwrap();
    assert_eq!(fs::read(folder.join("model.safetensors")).unwrap(), b"all the weights");
    let asked: Vec<_> =
        server.seen().into_iter().filter(|request| request.path.ends_with("model.safetensors")).collect();
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].header("range"), Some("bytes=5-"));
}

#[test]
fn a_corrupted_file_in_the_cache_is_found_by_fetch_and_replaced() {
    let server = Remote::single().serve();
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), &server.url);
    let folder = get(&settings).unwrap();
    let blob = settings.hub_cache.join("models--org--tiny/blobs").join(sha(b"all the weights"));
    fs::write(&blob, b"all the weighty").unwrap();

    settings.offline = true;
    let text = refused(fetch("org/tiny", &settings, &mut silent));
    assert!(text.contains("model.safetensors") && text.contains("SHA-256"), "{text}");
    settings.offline = false;
    assert_eq!(fetch("org/tiny", &settings, &mut silent).unwrap(), folder);
    assert_eq!(fs::read(&blob).unwrap(), b"all the weights");
}

#[test]
fn wrong_weights_from_the_hub_are_refused() {
    let (remote, mut lying) = (Remote::single(), Remote::single());
    lying.0.insert("model.safetensors", b"other weights!!".to_vec());
    let server = Server::start(move |request, _| match request.path.starts_with("/api") {
        true => remote.answer(request),
        false => lying.answer(request),
    });
    let home = tempfile::tempdir().unwrap();
    let settings = settings(home.path(), &server.url);
    assert!(refused(get(&settings)).contains("SHA-256"));
    assert!(cached(&settings).is_empty());
}

#[test]
fn gated_missing_and_unreachable_are_one_clear_line() {
    let home = tempfile::tempdir().unwrap();
    for status in [401, 403] {
        let remote = Remote::single();
        let server = Server::start(move |request, _| match request.path.starts_with("/api") {
            true => remote.answer(request),
            false => Reply::status(status),
        });
        let mut settings = settings(home.path(), &server.url);
        let text = refused(get(&settings));
        assert!(
            text.contains("gated") && text.contains(&format!("{}/org/tiny", server.url)) && text.contains("HF_TOKEN"),
            "{text}"
        );
        assert!(text.contains("no token is set"), "{text}");
        settings.token = Token::new("t");
        assert!(refused(get(&settings)).contains("was refused"));
        assert_eq!(server.seen().last().unwrap().header("authorization"), Some("Bearer t"));

        let server = Server::start(move |_, _| Reply::status(status).with("X-Error-Code", "GatedRepo"));
        settings.endpoint = server.url;
        assert!(refused(get(&settings)).contains("gated"));
    }
    for status in [401, 404] {
        let server = Server::start(move |_, _| Reply::status(status).with("X-Error-Code", "RepoNotFound"));
        let text = refused(get(&settings(home.path(), &server.url)));
        assert!(
            text.contains("no such folder") && text.contains("none of that id") && text.contains("HF_TOKEN"),
            "{text}"
        );
    }
    let text = refused(get(&settings(home.path(), "http://127.0.0.1:1")));
    assert!(text.contains("no such folder") && text.contains("is there a network"), "{text}");
    let mut offline = settings(home.path(), "http://127.0.0.1:1");
    offline.offline = true;
    assert!(refused(get(&offline)).contains("HF_HUB_OFFLINE"));
    let server = Server::start(|_, _| Reply::whole(b"<html>"));
    assert!(refused(get(&settings(home.path(), &server.url))).contains("HF_ENDPOINT"));
}

#[test]
fn a_repository_that_cannot_be_used_says_what_it_lacks() {
    let without = |gone: &[&str]| {
        let mut remote = Remote::single();
        remote.0.retain(|name, _| !gone.contains(name));
        let server = remote.serve();
        let home = tempfile::tempdir().unwrap();
        let text = refused(get(&settings(home.path(), &server.url)));
        assert_eq!(server.seen().len(), 1, "said before anything is brought");
        text
    };
    let text = without(&["model.safetensors"]);
    assert!(text.contains("pytorch_model.bin") && text.contains("safe_serialization"), "{text}");
    assert!(without(&["model.safetensors", "pytorch_model.bin"]).contains("no weights"));
    assert!(without(&["tokenizer.json"]).contains("no tokenizer.json"));
    assert!(without(&["config.json"]).contains("no config.json"));
}

#[test]
fn an_index_cannot_lead_out_of_the_cache() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for name in ["../../evil.safetensors", "/etc/passwd", "a\\b.safetensors", "pytorch_model.bin"] {
        fs::write(file.path(), json!({"weight_map": {"a": name}}).to_string()).unwrap();
        assert!(shards_of(file.path()).is_err(), "{name}");
    }
    for text in ["", "[]", "{\"weight_map\": {}}", "{\"weight_map\": 3}"] {
        fs::write(file.path(), text).unwrap();
        assert!(shards_of(file.path()).is_err(), "{text}");
    }
}

#[test]
fn folders_come_before_the_hub() {
    let home = tempfile::tempdir().unwrap();
    let mut settings = settings(home.path(), "http://127.0.0.1:1");
    let folder = home.path().join("here");
    fs::create_dir_all(&folder).unwrap();
    assert_eq!(resolve_with(folder.to_str().unwrap(), &settings, &mut silent).unwrap(), folder);
    fs::create_dir_all(settings.models.join("org/tiny")).unwrap();
    assert_eq!(get(&settings).unwrap(), settings.models.join("org/tiny"));

    settings.offline = true;
    for name in ["", "a/b/c", "../here", "/nowhere", "a b", "-x", "tiny/", "a--b"] {
        let text = refused(resolve_with(name, &settings, &mut silent));
        assert!(text.contains("no such folder") && text.contains("form of a hub id"), "{text}");
    }
    for name in ["gpt2", "EleutherAI/gpt-j-6b", "HuggingFaceTB/SmolLM2-135M-Instruct"] {
        assert!(is_hub_id(name));
    }
}
