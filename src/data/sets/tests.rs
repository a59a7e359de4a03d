use super::*;
use crate::fetch::server::{Reply, Server, settings};
use crate::fetch::silent;

const BODY: &[u8] = b"[{\"case_id\": 0}]";
const BODY_SHA256: &str = "ae74c594d75681f95b2b444967e06278e592135ac9ee7ee27a00641443fb78da";

const TEST_SETS: &[NamedSet] = &[
    NamedSet {
        name: "pinned",
        about: "",
        licence: None,
        files: &[SetFile {
            part: "all",
            file: "pinned.json",
            url: "",
            bytes: Bytes::Exact(16),
            sha256: Some(BODY_SHA256),
        }],
    },
    NamedSet {
        name: "pair",
        about: "",
        licence: None,
        files: &[
            SetFile { part: "eval", file: "pair_eval.json", url: "", bytes: Bytes::About(16), sha256: None },
            SetFile { part: "train", file: "pair_train.json", url: "", bytes: Bytes::About(16), sha256: None },
        ],
    },
];

fn get(name: &str, settings: &FetchSettings) -> Result<PathBuf, FetchError> {
    bring(TEST_SETS, name, settings, &mut silent)
}

#[test]
fn the_catalogue_is_sound() {
    for set in SETS {
        assert_eq!(find(set.name).unwrap().name, set.name);
        for file in set.files {
            assert_eq!(find(&format!("{}/{}", set.name, file.part)).unwrap().name, set.name);
            assert!(
                file.sha256.is_none_or(|sha256| sha256.len() == 64 && sha256.chars().all(|c| c.is_ascii_hexdigit()))
            );
            let ending = if set.name == WIKITEXT { ".txt" } else { ".json" };
            assert!(file.file.ends_with(ending) && !file.file.contains('/'));
            assert!(file.url.starts_with("https://") && file.url.ends_with(ending));
            // The cache is one folder.
            let namesakes = SETS.iter().flat_map(|set| set.files).filter(|other| other.file == file.file);
            assert_eq!(namesakes.count(), 1, "{}", file.file);
        }
    }
    assert!(find("counterfacts").is_none() && find("zsre/dev").is_none() && find("").is_none());
}

#[test]
fn a_missing_set_names_the_command_and_an_unknown_one_the_names() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), "http://127.0.0.1:1");
    let error = local_path("zsre/train", &settings).unwrap_err().to_string();
    assert!(error.contains("`emend fetch zsre/train`"), "{error}");
    let error = local_path("zzre", &settings).unwrap_err().to_string();
    assert!(
        error.contains(
            "counterfact, multi_counterfact, zsre, zsre/eval, zsre/train, known_1000, mquake, mquake/cf-3k-v2"
        ),
        "{error}"
    );
}

#[test]
fn a_pinned_set_is_brought_checked_and_kept() {
    let server = Server::start(|request, _| Reply::ranged(request, BODY, "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), &server.url);
    let path = get("pinned", &settings).unwrap();
    assert_eq!(fs::read(&path).unwrap(), BODY);
    assert_eq!(server.paths(), ["/pinned.json"]);
    assert_eq!(local(TEST_SETS, "pinned", &settings).unwrap(), path);
    get("pinned", &settings).unwrap();
    assert_eq!(server.seen().len(), 1, "what is right is not fetched again");

    fs::write(&path, b"[{\"case_id\": 9}]").unwrap();
    let error = local(TEST_SETS, "pinned", &settings).unwrap_err().to_string();
    assert!(error.contains("emend fetch pinned"), "{error}");
    get("pinned", &settings).unwrap();
    assert_eq!(fs::read(&path).unwrap(), BODY);
}

#[test]
fn another_file_than_the_published_one_is_refused() {
    let server = Server::start(|request, _| Reply::ranged(request, b"[{\"case_id\": 1}]", "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), &server.url);
    assert!(matches!(get("pinned", &settings), Err(FetchError::Checksum { .. })));
    assert_eq!(fs::read_dir(settings.cache.join("data")).unwrap().count(), 0);
}

#[test]
fn an_unpinned_set_is_held_to_its_first_download() {
    let server = Server::start(|request, _| Reply::ranged(request, BODY, "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), &server.url);
    let path = get("pair", &settings).unwrap();
    assert_eq!(server.paths(), ["/pair_eval.json", "/pair_train.json"]);
    assert!(path.ends_with("data/pair_eval.json"));
    let noted = fs::read_to_string(path.with_file_name("pair_eval.json.sha256")).unwrap();
    assert_eq!(noted, format!("{BODY_SHA256}  pair_eval.json\n"));
    assert!(local(TEST_SETS, "pair/train", &settings).unwrap().ends_with("data/pair_train.json"));

    fs::write(&path, b"[]").unwrap();
    assert!(matches!(local(TEST_SETS, "pair", &settings), Err(FetchError::Checksum { .. })));
    get("pair/eval", &settings).unwrap();
    assert_eq!(local(TEST_SETS, "pair", &settings).unwrap(), path);

    // Killed between the file and its note: the note is made up for, without a download.
    fs::remove_file(note_of(&path)).unwrap();
    let before = server.seen().len();
    get("pair", &settings).unwrap();
    assert_eq!(server.seen().len(), before);
    assert!(note_of(&path).is_file());
}

#[test]
fn a_page_in_place_of_the_file_is_refused() {
    let server = Server::start(|request, _| Reply::ranged(request, b"<html>please log in</html>", "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), &server.url);
    let error = get("pair", &settings).unwrap_err().to_string();
    assert!(error.contains("not a JSON file"), "{error}");
    assert!(matches!(local(TEST_SETS, "pair", &settings), Err(FetchError::NotFetched { .. })));
}

#[test]
fn addresses_follow_the_mirror_and_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let (_, files) = select(SETS, "knowedit/zsre").unwrap();
    let mut settings = settings(folder.path(), "http://mirror");
    assert_eq!(address(&files[0], &settings), "http://mirror/knowedit-zsre.json");
    settings.data_url = None;
    settings.endpoint = "http://hub".into();
    let path = "/datasets/zjunlp/KnowEdit/resolve/main/benchmark/ZsRE/ZsRE-test-all.json";
    assert_eq!(address(&files[0], &settings), format!("http://hub{path}"));
}
