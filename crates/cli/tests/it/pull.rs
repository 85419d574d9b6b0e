//! Downloads from a hub: whole, broken off, refused, lied about, and without a network.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::command::{Finished, bitnet, finish};
use crate::hub_server::{COMMIT, Fault, Hub, HubServer, ServedFile};

/// Bytes that differ everywhere, so that a shifted or repeated stretch shows.
fn weights() -> Vec<u8> {
    (0..300_000u32).flat_map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

fn checkpoint(fault: Fault) -> Hub {
    let mut large = ServedFile::new("model.safetensors", weights());
    (large.fault, large.in_store) = (fault, true);
    let files =
        vec![ServedFile::new("config.json", "{}"), ServedFile::new("README.md", "no"), ServedFile::new("pytorch_model.bin", "no"), large];
    Hub { files, ..Hub::default() }
}

struct Client {
    home: TempDir,
    endpoint: String,
}

impl Client {
    fn new(server: &HubServer) -> Self {
        Self { home: tempfile::tempdir().expect("a temporary folder"), endpoint: server.endpoint.clone() }
    }

    fn pull(&self, arguments: &[&str]) -> Finished {
        let mut command = bitnet(self.home.path());
        command.env("HF_ENDPOINT", &self.endpoint).arg("pull").args(arguments);
        finish(command)
    }

    fn pulled(&self, arguments: &[&str]) -> PathBuf {
        let finished = self.pull(arguments);
        assert_eq!(finished.status, Some(0), "{finished:?}");
        PathBuf::from(finished.stdout.trim_end())
    }

    /// Standard error with the port taken out.
    fn refused(&self, arguments: &[&str]) -> String {
        let finished = self.pull(arguments);
        assert_eq!((finished.status, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
        finished.stderr.replace(&self.endpoint, "http://hub")
    }

    fn repository(&self) -> PathBuf {
        self.home.path().join("hf/hub/models--owner--model")
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn n_bodies(server: &HubServer) -> usize {
    server.requests().iter().filter(|request| request.starts_with("GET /store/")).count()
}

#[test]
fn pull_of_a_checkpoint_takes_what_makes_a_model() {
    let server = HubServer::start(checkpoint(Fault::None));
    let client = Client::new(&server);
    let folder = client.pulled(&["hf:owner/model"]);
    assert_eq!(folder, client.repository().join("snapshots").join(COMMIT));
    assert_eq!(names(&folder), ["config.json", "model.safetensors"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("readable"), weights());
    assert_eq!(std::fs::read_to_string(client.repository().join("refs/main")).expect("readable"), COMMIT);
    assert_eq!(names(&client.repository().join("blobs")).len(), 2, "no unfinished file is left");
    let n_requests = server.requests().len();
    assert_eq!(client.pulled(&["owner/model"]), folder);
    assert_eq!(server.requests().len(), n_requests + 1, "a second pull asks for the listing and nothing else");
}

#[test]
fn connection_cut_midway_is_continued_to_the_right_bytes() {
    let server = HubServer::start(checkpoint(Fault::Cut { n_times: 3, after_bytes: 250_000 }));
    let client = Client::new(&server);
    let folder = client.pulled(&["hf:owner/model"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("readable"), weights());
    let requests = server.requests();
    assert!(requests.iter().any(|request| request.contains(" from 250000")), "{requests:?}");
    assert_eq!(n_bodies(&server), 4);
}

#[test]
fn download_interrupted_for_good_goes_on_with_the_next_command() {
    let server = HubServer::start(checkpoint(Fault::None));
    let client = Client::new(&server);
    let folder = client.pulled(&["hf:owner/model"]);
    let blob = std::fs::canonicalize(folder.join("model.safetensors")).expect("a link to a blob");
    std::fs::remove_dir_all(client.repository().join("snapshots")).expect("removed");
    std::fs::write(blob.with_extension("part"), &weights()[..400_001]).expect("written");
    std::fs::remove_file(&blob).expect("removed");
    assert_eq!(client.pulled(&["hf:owner/model"]), folder);
    assert_eq!(std::fs::read(&blob).expect("readable"), weights());
    assert!(server.requests().iter().any(|request| request.ends_with(" from 400001")));
}

#[test]
fn part_that_is_complete_or_damaged_or_too_long_is_dealt_with() {
    let damaged = {
        let mut bytes = weights();
        bytes.truncate(1000);
        bytes[5] ^= 1;
        bytes
    };
    let too_long = [weights(), vec![0]].concat();
    for (part, n_bodies_expected) in [(weights(), 0), (damaged, 2), (too_long, 1)] {
        let server = HubServer::start(checkpoint(Fault::None));
        let client = Client::new(&server);
        let sha256 = <sha2::Sha256 as sha2::Digest>::digest(weights());
        let name: String = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        let blobs = client.repository().join("blobs");
        std::fs::create_dir_all(&blobs).expect("made");
        std::fs::write(blobs.join(format!("{name}.part")), part).expect("written");
        let folder = client.pulled(&["hf:owner/model"]);
        assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("readable"), weights());
        assert_eq!(n_bodies(&server), n_bodies_expected);
    }
}

#[test]
fn server_without_ranges_starts_again_instead_of_appending() {
    let server = HubServer::start(checkpoint(Fault::NoRanges));
    let client = Client::new(&server);
    let folder = client.pulled(&["hf:owner/model"]);
    let blob = std::fs::canonicalize(folder.join("model.safetensors")).expect("a link to a blob");
    std::fs::rename(&blob, blob.with_extension("part")).expect("renamed");
    std::fs::write(blob.with_extension("part"), &weights()[..1000]).expect("written");
    client.pulled(&["hf:owner/model"]);
    assert_eq!(std::fs::read(&blob).expect("readable"), weights());
}

#[test]
fn bytes_other_than_announced_are_refused_and_leave_no_model() {
    let faults = [Fault::FlipsAByte, Fault::Announces(1_199_999), Fault::Announces(1_200_001)];
    let stderr = faults.map(|fault| {
        let server = HubServer::start(checkpoint(fault));
        let client = Client::new(&server);
        let stderr = client.refused(&["-q", "hf:owner/model"]);
        assert!(!client.repository().join("snapshots").join(COMMIT).join("model.safetensors").exists());
        assert!(!client.repository().join("refs/main").exists(), "an incomplete model has no ref");
        stderr
    });
    insta::assert_snapshot!(stderr.join("\n"));
}

#[test]
fn connection_that_never_yields_is_given_up() {
    let server = HubServer::start(checkpoint(Fault::Dead));
    insta::assert_snapshot!(Client::new(&server).refused(&["-q", "hf:owner/model"]));
}

#[test]
fn refusals_of_the_hub_say_what_to_do() {
    let refusals = [(404, "RepoNotFound"), (401, "RepoNotFound"), (403, "GatedRepo"), (404, "RevisionNotFound"), (429, ""), (500, "")];
    let stderr = refusals.map(|refusal| {
        let server = HubServer::start(Hub { refuses: Some(refusal), ..Hub::default() });
        format!("{refusal:?}\n{}", Client::new(&server).refused(&["hf:owner/model@v2"]))
    });
    insta::assert_snapshot!(stderr.join("\n"));
}

#[test]
fn token_opens_a_private_repository() {
    let server = HubServer::start(Hub { needs_token: Some("Bearer secret"), ..checkpoint(Fault::None) });
    let client = Client::new(&server);
    assert!(client.refused(&["hf:owner/model"]).contains("HF_TOKEN"));
    std::fs::create_dir_all(client.home.path().join("hf")).expect("made");
    std::fs::write(client.home.path().join("hf/token"), "secret\n").expect("written");
    client.pulled(&["hf:owner/model"]);
}

#[test]
fn mirror_with_a_bare_listing_is_asked_file_by_file() {
    let server = HubServer::start(Hub { bare_listing: true, ..checkpoint(Fault::None) });
    let client = Client::new(&server);
    let folder = client.pulled(&["hf:owner/model"]);
    assert_eq!(std::fs::read(folder.join("model.safetensors")).expect("readable"), weights());
    assert!(server.requests().iter().any(|request| request.starts_with("HEAD ")));
}

#[test]
fn sharded_checkpoint_takes_the_shards_of_its_index() {
    let index = r#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let files = vec![
        ServedFile::new("config.json", "{}"),
        ServedFile::new("model.safetensors.index.json", index),
        ServedFile::new("model-00001-of-00002.safetensors", "one"),
        ServedFile::new("model-00002-of-00002.safetensors", "two"),
        ServedFile::new("optimizer.safetensors", "no"),
    ];
    let client = Client::new(&HubServer::start(Hub { files, ..Hub::default() }));
    let folder = client.pulled(&["hf:owner/model"]);
    assert_eq!(names(&folder).len(), 4);
}

#[test]
fn names_from_the_server_never_leave_the_cache() {
    let files = vec![ServedFile::new("../../../escaped.gguf", "no"), ServedFile::new("sub/model.gguf", "yes")];
    let client = Client::new(&HubServer::start(Hub { files, ..Hub::default() }));
    let path = client.pulled(&["hf:owner/model"]);
    assert!(path.ends_with("sub/model.gguf"));
    assert_eq!(std::fs::read(&path).expect("the link in a folder leads to its blob"), b"yes");
    assert!(client.refused(&["hf:owner/model:../../../escaped.gguf"]).contains("would leave its folder"));
    assert_eq!(names(client.home.path()), ["hf"]);
}

#[test]
fn several_ggufs_are_listed_for_the_user_to_choose() {
    let files = vec![ServedFile::new("m-i2_s.gguf", "a"), ServedFile::new("m-tq2_0.gguf", "b")];
    let client = Client::new(&HubServer::start(Hub { files, ..Hub::default() }));
    insta::assert_snapshot!(client.refused(&["hf:owner/model"]), @r"
    error: owner/model holds 2 GGUF files
    help: name one, as in hf:owner/model:m-i2_s.gguf; it has: m-i2_s.gguf, m-tq2_0.gguf
    ");
    assert!(client.pulled(&["hf:owner/model:m-tq2_0.gguf"]).ends_with("m-tq2_0.gguf"));
}

#[test]
fn model_downloaded_before_is_found_without_the_network() {
    let server = HubServer::start(checkpoint(Fault::None));
    let mut client = Client::new(&server);
    assert!(client.refused(&["--offline", "hf:owner/model"]).contains("run once without --offline"));
    let folder = client.pulled(&["hf:owner/model"]);
    let n_requests = server.requests().len();
    assert_eq!(client.pulled(&["--offline", "hf:owner/model"]), folder);
    assert_eq!(client.pulled(&["--offline", &format!("hf:owner/model@{COMMIT}")]), folder);
    assert_eq!(server.requests().len(), n_requests, "--offline asks nobody");
    // A port that was just free and is closed again: nobody answers.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    client.endpoint = format!("http://{closed}");
    assert_eq!(client.pulled(&["hf:owner/model"]), folder);
    assert!(client.refused(&["hf:owner/other"]).starts_with("error: cannot reach http://hub"));
}
