//! `pull` against a hub on this machine, with every fault a long download meets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use super::hub::{COMMIT, Hub};
use super::worker::command;

/// A cache of one test.
struct Home(tempfile::TempDir);

impl Home {
    fn make() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn pull(&self, hub: &Hub, args: &[&str], environment: &[(&str, &str)]) -> Output {
        let mut command = command(&["pull", "org/model"]);
        for name in
            ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH", "http_proxy", "HTTP_PROXY"]
        {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.0.path()).env("HF_ENDPOINT", format!("http://{}", hub.addr));
        command.args(args).envs(environment.iter().copied()).output().unwrap()
    }

    fn repository(&self) -> PathBuf {
        self.0.path().join("hub/models--org--model")
    }

    fn partial(&self, hub: &Hub) -> PathBuf {
        self.repository().join("blobs").join(format!("{}.incomplete", hub.etag()))
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The path that a successful run prints.
fn path(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{}", stderr(output));
    Path::new(std::str::from_utf8(&output.stdout).unwrap().trim_end()).to_owned()
}

#[track_caller]
fn refused(output: &Output, reason: &str) {
    assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
    assert!(stderr(output).contains(reason), "{}", stderr(output));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_file_comes_once_and_lies_where_other_tools_look() {
    let (hub, home) = (Hub::start(&["README.md", "sub/m-Q4_K_M.gguf"]), Home::make());
    let file = path(&home.pull(&hub, &[], &[]));
    let root = home.repository();
    assert_eq!(file, root.join("snapshots").join(COMMIT).join("sub/m-Q4_K_M.gguf"));
    assert_eq!(fs::read(&file).unwrap(), hub.shelf.lock().unwrap().bytes);
    assert_eq!(fs::read_link(&file).unwrap(), Path::new("../../../blobs").join(hub.etag()));
    assert_eq!(fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    assert!(!home.partial(&hub).exists());
    assert_eq!(path(&home.pull(&hub, &["sub/m-Q4_K_M.gguf"], &[])), file, "again, by its name");
    assert_eq!(hub.fetched().len(), 1, "the bytes are asked for once");
    assert_eq!(path(&home.pull(&hub, &["q4_k_m", "--offline"], &[])), file, "and then without the hub");
    let json: Value = serde_json::from_slice(&home.pull(&hub, &["--json"], &[]).stdout).unwrap();
    assert_eq!((&json["path"], &json["commit"]), (&file.to_str().unwrap().into(), &COMMIT.into()));
}

#[test]
fn a_cut_connection_goes_on_where_it_ended() {
    let (hub, home) = (Hub::start(&["m.gguf"]), Home::make());
    hub.shelf.lock().unwrap().cuts = vec![40_000, 20_000];
    let file = path(&home.pull(&hub, &[], &[]));
    assert_eq!(fs::read(file).unwrap(), hub.shelf.lock().unwrap().bytes);
    let ranges: Vec<_> = hub.fetched().into_iter().map(|asked| asked.range).collect();
    assert_eq!(ranges, [None, Some("bytes=40000-".into()), Some("bytes=60000-".into())]);
}

#[test]
fn an_earlier_run_s_bytes_are_kept_where_the_server_can_go_on() {
    for (ranges, left) in [(true, 50_000), (false, 50_000), (true, 70_001), (true, 80_000)] {
        let (hub, home) = (Hub::start(&["m.gguf"]), Home::make());
        hub.shelf.lock().unwrap().ranges = ranges;
        let bytes = hub.shelf.lock().unwrap().bytes.clone();
        let partial = home.partial(&hub);
        fs::create_dir_all(partial.parent().unwrap()).unwrap();
        let mut earlier = bytes.clone();
        earlier.resize(left, 0);
        fs::write(&partial, earlier).unwrap();
        assert_eq!(fs::read(path(&home.pull(&hub, &[], &[]))).unwrap(), bytes, "{ranges} {left}");
        let asked: Vec<_> = hub.fetched().into_iter().map(|asked| asked.range).collect();
        match left {
            50_000 => assert_eq!(asked, [Some("bytes=50000-".to_owned())]),
            // Complete, but for its check.
            70_001 => assert!(asked.is_empty(), "{asked:?}"),
            _ => assert_eq!(asked, [None], "what is too long is thrown away"),
        }
    }
}

#[test]
fn other_bytes_than_promised_are_not_kept() {
    let (hub, home) = (Hub::start(&["m.gguf"]), Home::make());
    hub.shelf.lock().unwrap().etag = Some("ab".repeat(32));
    refused(&home.pull(&hub, &[], &[]), &format!("expected SHA-256 {}", "ab".repeat(32)));
    let blobs: Vec<_> = fs::read_dir(home.repository().join("blobs")).unwrap().collect();
    assert!(blobs.is_empty(), "{blobs:?}");
    assert!(!home.repository().join("snapshots").exists());
}

#[test]
fn a_token_opens_and_stays_with_the_hub() {
    let (hub, home) = (Hub::start(&["m.gguf"]), Home::make());
    hub.shelf.lock().unwrap().token = Some("hf_secret");
    let without = home.pull(&hub, &[], &[]);
    refused(&without, "HTTP 401");
    assert!(stderr(&without).contains("HF_TOKEN"));
    let wrong = home.pull(&hub, &[], &[("HF_TOKEN", "hf_wrong")]);
    refused(&wrong, "HTTP 401");
    assert!(!stderr(&wrong).contains("hf_wrong"));
    path(&home.pull(&hub, &[], &[("HF_TOKEN", "hf_secret")]));
    assert!(hub.fetched().iter().all(|asked| asked.authorization.is_none()), "{:?}", hub.asked());
    fs::write(home.0.path().join("token"), "hf_secret\n").unwrap();
    path(&home.pull(&hub, &[], &[]));
}

#[test]
fn what_is_not_there_or_not_clear_is_said() {
    let (hub, home) = (Hub::start(&["a-Q4_0.gguf", "b-Q8_0.gguf", "../c.gguf"]), Home::make());
    refused(&home.pull(&hub, &[], &[]), "name one of them:\n  a-Q4_0.gguf");
    refused(&home.pull(&hub, &["c.gguf"], &[]), "no file \"c.gguf\"");
    refused(
        &home.pull(&hub, &["--revision", "other"], &[]),
        "HTTP 404: no such repository, revision or file",
    );
    refused(&home.pull(&hub, &["--offline"], &[]), "not in the cache");
    refused(&home.pull(&hub, &["--revision", "../x"], &[]), "--revision");
    hub.shelf.lock().unwrap().etag = Some("../../escape".into());
    refused(&home.pull(&hub, &["q8_0"], &[]), "ETag");
    hub.shelf.lock().unwrap().status = Some(403);
    refused(&home.pull(&hub, &[], &[]), "HTTP 403: the token has no access");
}

/// A device that is always full stands in for a disk that is.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_with_what_the_file_needs() {
    let (hub, home) = (Hub::start(&["m.gguf"]), Home::make());
    let partial = home.partial(&hub);
    fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    refused(&home.pull(&hub, &[], &[]), "no space left on the disk; the file needs 70001 bytes");
}
