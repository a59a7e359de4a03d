use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use super::server::{Reply, Server, settings};
use super::*;

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn sum(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    fs::write(&path, bytes).unwrap();
    sha256_of(&path).unwrap()
}

fn want<'a>(url: &'a str, target: &'a Path) -> Download<'a> {
    Download { url, target, label: "x", token: None, length: None, sha256: None }
}

/// Only the target may be left when all went well.
fn alone(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().count() == 1
}

#[test]
fn a_whole_file_arrives_with_progress() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("deep/x");
    let mut steps = Vec::new();
    let got = download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut |step| {
        steps.push((step.done, step.total));
        ControlFlow::Continue(())
    });
    assert_eq!(got.unwrap(), sum(&content()));
    assert_eq!(fs::read(&target).unwrap(), content());
    assert!(alone(&folder.path().join("deep")));
    assert_eq!(steps.first(), Some(&(0, Some(300_000))));
    assert_eq!(steps.last(), Some(&(300_000, Some(300_000))));
    assert!(steps.is_sorted());
}

#[test]
fn a_broken_connection_is_gone_on_with() {
    let server = Server::start(|request, before| match before {
        0 => Reply::ranged(request, &content(), "\"1\"").cut(150_000),
        _ => Reply::ranged(request, &content(), "\"1\""),
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap();
    assert_eq!(fs::read(&target).unwrap(), content());
    let seen = server.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0].header("range"), None);
    assert_eq!(seen[1].header("range"), Some("bytes=150000-"));
    assert_eq!(seen[1].header("if-range"), Some("\"1\""));
    assert!(alone(folder.path()));
}

#[test]
fn a_stopped_process_is_gone_on_with_by_the_next() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let settings = settings(folder.path(), &server.url);
    let stopped = download(&want(&server.url, &target), &settings, &mut |step| match step.done {
        done if done > 100_000 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert!(matches!(stopped, Err(FetchError::Interrupted { .. })));
    assert!(!target.exists());
    let here = fs::metadata(folder.path().join("x.part")).unwrap().len();
    assert!(here > 100_000);

    download(&want(&server.url, &target), &settings, &mut silent).unwrap();
    assert_eq!(fs::read(&target).unwrap(), content());
    assert_eq!(server.seen()[1].header("range"), Some(format!("bytes={here}-").as_str()));
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let server = Server::start(|_, before| match before {
        0 => Reply::whole(&content()).with("ETag", "\"1\"").cut(150_000),
        _ => Reply::whole(&content()).with("ETag", "\"1\""),
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap();
    assert_eq!(server.seen()[1].header("range"), Some("bytes=150000-"));
    assert_eq!(fs::read(&target).unwrap(), content());
}

#[test]
fn a_file_that_changed_meanwhile_begins_anew() {
    let other: Vec<u8> = content().iter().map(|byte| !byte).collect();
    let now = other.clone();
    let server = Server::start(move |request, before| match before {
        0 => Reply::ranged(request, &content(), "\"old\"").cut(150_000),
        _ => Reply::ranged(request, &now, "\"new\""),
    });
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap();
    assert_eq!(server.seen()[1].header("if-range"), Some("\"old\""));
    assert_eq!(fs::read(&target).unwrap(), other);
}

#[test]
fn without_a_mark_or_checksum_a_part_is_not_trusted() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "W/\"weak\""));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    fs::write(folder.path().join("x.part"), vec![9; 1000]).unwrap();
    download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap();
    assert_eq!(server.seen()[0].header("range"), None);
    assert_eq!(fs::read(&target).unwrap(), content());
}

#[test]
fn a_wrong_beginning_is_found_by_the_checksum_and_replaced() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let (expected, settings) = (sum(&content()), settings(folder.path(), &server.url));
    let want = Download { sha256: Some(&expected), length: Some(300_000), ..want(&server.url, &target) };
    fs::write(folder.path().join("x.part"), vec![9; 1000]).unwrap();
    download(&want, &settings, &mut silent).unwrap();
    assert_eq!(fs::read(&target).unwrap(), content());
    let ranges: Vec<_> = server.seen().iter().map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [Some("bytes=1000-".to_owned()), None]);

    // A part that was whole, but not yet renamed, needs no request at all.
    fs::rename(&target, folder.path().join("x.part")).unwrap();
    download(&want, &settings, &mut silent).unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[test]
fn a_wrong_checksum_or_length_leaves_nothing() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let (wrong, settings) = (sum(b"something else"), settings(folder.path(), &server.url));
    let error = download(&Download { sha256: Some(&wrong), ..want(&server.url, &target) }, &settings, &mut silent);
    let error = error.unwrap_err();
    assert!(matches!(&error, FetchError::Checksum { expected, .. } if *expected == wrong));
    assert!(!error.to_string().contains('\n'));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);

    let error =
        download(&Download { length: Some(5), ..want(&server.url, &target) }, &settings, &mut silent).unwrap_err();
    assert!(error.to_string().contains("300000 bytes long, expected 5"), "{error}");
    assert!(!target.exists());
}

#[test]
fn a_page_of_another_length_does_not_cost_what_is_here() {
    let server = Server::start(|_, _| Reply::whole(b"<html>log in</html>"));
    let folder = tempfile::tempdir().unwrap();
    let (target, part) = (folder.path().join("x"), folder.path().join("x.part"));
    fs::write(&part, &content()[..1000]).unwrap();
    let (expected, settings) = (sum(&content()), settings(folder.path(), &server.url));
    let want = Download { sha256: Some(&expected), length: Some(300_000), ..want(&server.url, &target) };
    assert!(matches!(download(&want, &settings, &mut silent), Err(FetchError::Content { .. })));
    assert_eq!(fs::read(&part).unwrap(), &content()[..1000]);
}

#[test]
fn a_connection_that_always_breaks_at_the_same_place_is_given_up() {
    let server = Server::start(|_, _| Reply::whole(&content()).cut(10));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let error = download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap_err();
    assert!(error.to_string().contains("broke off"), "{error}");
    assert!(!target.exists());
    // The first gains ten bytes, two more tries gain nothing further.
    assert_eq!(server.seen().len(), 3);
}

#[test]
fn refusals_are_one_line_and_only_passing_ones_are_tried_again() {
    for (status, tries) in [(404, 1), (401, 1), (403, 1), (503, 3), (429, 3)] {
        let server = Server::start(move |_, _| Reply::status(status));
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("x");
        let error =
            download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&status.to_string()) && text.contains(&server.url) && !text.contains('\n'), "{text}");
        assert_eq!(server.seen().len(), tries, "{status}");
    }
}

#[test]
fn no_network_is_said_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    // Nothing listens on port 1, and `.invalid` never resolves.
    for url in ["http://127.0.0.1:1/x", "http://nowhere.invalid/x", "no address"] {
        // A second try would wait for an hour.
        let settings = FetchSettings { backoff: Duration::from_secs(3600), ..settings(folder.path(), url) };
        let error = download(&want(url, &target), &settings, &mut silent).unwrap_err();
        assert!(matches!(error, FetchError::Network { .. }), "{error}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing came, nothing stays");
}

#[test]
fn a_token_goes_to_its_own_host_only() {
    let storage = Server::start(|request, _| Reply::ranged(request, b"weights", "\"1\""));
    let elsewhere = storage.url.replace("127.0.0.1", "localhost");
    let hub = Server::start(move |_, _| Reply::status(302).with("Location", &format!("{elsewhere}/blob")));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let token = Token::new("secret").unwrap();
    let want = Download { token: Some(&token), ..want(&hub.url, &target) };
    download(&want, &settings(folder.path(), &hub.url), &mut silent).unwrap();
    assert_eq!(hub.seen()[0].header("authorization"), Some("Bearer secret"));
    assert_eq!(storage.seen()[0].header("authorization"), None);
}

#[test]
fn two_processes_do_not_write_one_file() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("x");
    let settings = settings(folder.path(), &server.url);
    let mut second = None;
    download(&want(&server.url, &target), &settings, &mut |_| {
        second.get_or_insert_with(|| download(&want(&server.url, &target), &settings, &mut silent));
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(matches!(second, Some(Err(FetchError::Busy { .. }))));
    assert_eq!(fs::read(&target).unwrap(), content());
}

#[test]
fn a_place_that_cannot_be_written_is_named() {
    let server = Server::start(|request, _| Reply::ranged(request, &content(), "\"1\""));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "in the way").unwrap();
    let target = folder.path().join("file/x");
    let error = download(&want(&server.url, &target), &settings(folder.path(), &server.url), &mut silent).unwrap_err();
    assert!(matches!(error, FetchError::File { .. }), "{error}");

    // Linux has a file that is always full.
    if Path::new("/dev/full").exists() {
        let error = FetchError::file("write", &target, &fs::write("/dev/full", "x").unwrap_err());
        assert!(error.to_string().contains("disk is full"), "{error}");
    }
}
