//! A platform as an operator runs it, on SQLite: from nothing to a metered answer, keys that end, backups, an audit log that notices,
//! and a server that is killed while it works.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::command::{Finished, bitnet, finish};

/// Kills in the middle of work: a few, or with `cargo xtask endure` as many as are meant.
fn n_kills() -> u32 {
    if std::env::var_os("BITNET_ENDURE").is_some() { 200 } else { 3 }
}

fn operator(home: &Path, arguments: &[&str]) -> Finished {
    let mut command = bitnet(home);
    command.current_dir(home).args(arguments);
    finish(command)
}

/// What a command that must succeed printed.
fn printed(home: &Path, arguments: &[&str]) -> String {
    let finished = operator(home, arguments);
    assert_eq!(finished.status, Some(0), "{arguments:?}: {finished:?}");
    finished.stdout.trim().to_string()
}

/// The command of a server on the platform in this folder.
fn serve(home: &Path) -> Command {
    let mut command = bitnet(home);
    command.current_dir(home).args(["serve", "--platform", "--listen", "127.0.0.1:0", "--log", "error"]);
    command
}

/// A server on the platform in this folder; killed when its test ends, however that is.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    fn start(home: &Path) -> Self {
        Self::started(serve(home))
    }

    fn started(mut command: Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
        let address = lines.find_map(|line| Some(line.expect("text").trim().rsplit_once("http://")?.1.to_string()));
        // Somebody has to read what it says from now on.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address: address.expect("it says where it listens") }
    }

    fn send(&self, key: &str, body: &Value) -> TcpStream {
        let body = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer {key}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes())).expect("sent");
        stream
    }

    fn post(&self, key: &str, body: &Value) -> String {
        let mut answer = String::new();
        self.send(key, body).read_to_string(&mut answer).expect("answered");
        answer
    }

    fn end(mut self) {
        let ended = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
        assert!(ended.expect("kill starts").success());
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn completion(n_tokens: u32) -> Value {
    json!({ "model": "embedded", "prompt": "Once upon a time", "max_tokens": n_tokens, "temperature": 0, "ignore_eos": true })
}

#[test]
#[cfg(unix)]
fn operator_gets_from_nothing_to_a_metered_answer() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    let account = printed(home, &["accounts", "create", "My company", "--plan", "payg", "--spending-cap", "1"]);
    let key = printed(home, &["keys", "create", &account, "--name", "laptop"]);
    assert!(account.starts_with("acct_") && key.starts_with("sk-bitnet-"), "{account} {key}");
    let admin = printed(home, &["keys", "create", &account, "--name", "usage", "--admin"]);
    let serving = Serving::start(home);
    assert!(serving.post("sk-bitnet-none", &completion(3)).starts_with("HTTP/1.1 401"));
    assert!(serving.post(&admin, &completion(3)).starts_with("HTTP/1.1 403"));
    let answer = serving.post(&key, &completion(3));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"completion_tokens\":3"), "{answer}");

    let listed = printed(home, &["keys", "list", &account]);
    let line = listed.lines().find(|line| line.contains("laptop")).expect("listed");
    assert!(!listed.contains(&key), "a key is shown once");
    let id = line.split_whitespace().find(|word| word.starts_with("key_")).expect("its id");
    let newer = printed(home, &["keys", "rotate", id, "--keep-hours", "1"]);
    printed(home, &["keys", "revoke", id]);
    let revoked = Instant::now();
    while serving.post(&key, &completion(1)).starts_with("HTTP/1.1 200") {
        assert!(revoked.elapsed() < Duration::from_secs(1), "a key is revoked within a second");
    }
    while !serving.post(&newer, &completion(1)).starts_with("HTTP/1.1 200") {
        assert!(revoked.elapsed() < Duration::from_secs(1), "a new key works within a second");
    }
    let backup = home.join("while-serving.backup");
    printed(home, &["db", "backup", backup.to_str().expect("text")]);
    serving.end();
    let reconciled = operator(home, &["db", "reconcile", "--rebuild"]);
    assert!(reconciled.status == Some(0) && reconciled.stderr.contains("all sums agree"), "{reconciled:?}");
    assert_eq!(operator(home, &["db", "check"]).status, Some(0));
    let restored = operator(home, &["db", "restore", backup.to_str().expect("text"), "--platform", "sqlite:restored.db"]);
    assert!(restored.status == Some(0) && restored.stderr.contains("all sums agree"), "{restored:?}");
    let again = operator(home, &["db", "restore", backup.to_str().expect("text"), "--platform", "sqlite:restored.db"]);
    assert!(again.status == Some(1) && again.stderr.contains("not empty"), "{again:?}");
}

/// What a collector of syslog gets over TCP: each message behind its length.
fn sent_to_a_collector(home: &Path) -> Vec<String> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let collector = std::thread::spawn(move || {
        let mut text = String::new();
        listener.accept().expect("somebody comes").0.read_to_string(&mut text).expect("text");
        let (mut messages, mut rest) = (Vec::new(), text.as_str());
        while let Some((length, behind)) = rest.split_once(' ') {
            let (message, more) = behind.split_at(length.parse().expect("a length"));
            messages.push(message.to_string());
            rest = more;
        }
        messages
    });
    let sent = operator(home, &["audit", "export", "--format", "syslog", "--after", "2", "--to", &address]);
    assert!(sent.status == Some(0) && sent.stderr.contains("--after 4 goes on there"), "{sent:?}");
    collector.join().expect("it ends")
}

#[test]
fn audit_log_of_commands_is_whole_until_somebody_edits_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    let account = printed(home, &["accounts", "create", "Ann"]);
    std::fs::copy(home.join("bitnet.db"), home.join("old.db")).expect("copied");
    printed(home, &["accounts", "credit", &account, "12.50", "--reason", "pilot"]);
    printed(home, &["accounts", "suspend", &account]);
    let verified = operator(home, &["audit", "verify"]);
    assert!(verified.status == Some(0) && verified.stderr.starts_with("4 records are whole, 3 signed states agree"), "{verified:?}");
    let exported = printed(home, &["audit", "export"]);
    let records: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(records[2]["action"], "credit.granted");
    assert_eq!(records[2]["after"]["amount_micros"], 12_500_000);
    let messages = printed(home, &["audit", "export", "--format", "syslog", "--after", "2"]);
    assert!(messages.starts_with("<109>1 20") && messages.contains(" - credit.granted [bitnet@32473 seq=\"3\""), "{messages}");
    assert_eq!(sent_to_a_collector(home), messages.lines().collect::<Vec<_>>());
    // The database of before is put back: its copies of signed states are elsewhere.
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(home.join(format!("bitnet.db{suffix}")));
    }
    std::fs::rename(home.join("old.db"), home.join("bitnet.db")).expect("put back");
    let verified = operator(home, &["audit", "verify"]);
    assert!(verified.status == Some(1) && verified.stdout.contains("an older state was put back"), "{verified:?}");
}

#[test]
fn licence_is_issued_verified_and_refused_when_forged() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    let issue = ["licence", "issue", "--customer", "Ann & Co", "--days", "30", "--signing-key", "vendor.key"];
    let issued = operator(home, &issue);
    assert_eq!(issued.status, Some(0), "{issued:?}");
    let public_key = issued.stderr.trim().rsplit_once(' ').expect("it says so").1.to_string();
    let file = home.join("ann.licence");
    std::fs::write(&file, &issued.stdout).expect("written");
    let told = printed(home, &["licence", "verify", "ann.licence", "--public-key", &public_key]);
    assert!(told.starts_with("licence of Ann & Co, plan enterprise, valid until"), "{told}");
    std::fs::write(&file, issued.stdout.replace("Ann & Co", "Bob & Co")).expect("written");
    let forged = operator(home, &["licence", "verify", "ann.licence", "--public-key", &public_key]);
    assert!(forged.status == Some(1) && forged.stderr.contains("not as it was signed"), "{forged:?}");
    let served = operator(home, &["serve", "--listen", "127.0.0.1:0", "--licence", "ann.licence", "--licence-public-key", &public_key]);
    assert!(served.status == Some(1) && served.stderr.contains("not as it was signed"), "{served:?}");
    let untrusted = operator(home, &["licence", "verify", "ann.licence"]);
    assert!(untrusted.stderr.contains("nobody's licences are trusted"), "{untrusted:?}");
}

#[test]
fn wrong_platform_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    printed(home, &["accounts", "create", "Ann"]);
    std::fs::remove_file(home.join("bitnet.db.secret")).expect("removed");
    for (arguments, expected) in [
        (&["accounts", "list"][..], "not the secret that the database was set up with"),
        (&["accounts", "list", "--platform", "mysql://h/b"], "begins with sqlite: or postgres:"),
        (&["serve", "--platform", "--api-key", "k"], "keys of a platform stand in its database"),
        (&["keys", "create", "acct_1", "--name", "k"], "32 hexadecimal digits"),
    ] {
        let refused = operator(home, arguments);
        assert!(refused.status != Some(0) && refused.stderr.contains(expected), "{arguments:?}: {refused:?}");
    }
}

#[test]
#[cfg(unix)]
fn server_killed_under_load_loses_nothing_and_bills_nothing_twice() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    let account = printed(home, &["accounts", "create", "Ann", "--plan", "payg", "--spending-cap", "100"]);
    let key = printed(home, &["keys", "create", &account, "--name", "k"]);
    let (mut n_seen, mut n_kept) = (0, 0);
    for round in 0..n_kills() {
        let mut serving = Serving::start(home);
        let mut streams: Vec<TcpStream> = (0..8)
            .map(|_| {
                let mut body = completion(200);
                body["stream"] = true.into();
                serving.send(&key, &body)
            })
            .collect();
        // The round decides how far they get.
        let mut seen = vec![0; 256 << (round % 5)];
        streams[0].read_exact(&mut seen).expect("it streams");
        serving.child.kill().expect("killed");
        serving.child.wait().expect("it is gone");
        for (index, mut stream) in streams.into_iter().enumerate() {
            let mut rest = if index == 0 { seen.clone() } else { Vec::new() };
            let _ = stream.read_to_end(&mut rest);
            let text = String::from_utf8_lossy(&rest);
            // A chunk with text has at least one token.
            n_seen += (text.matches("\"text\":\"").count() - text.matches("\"text\":\"\"").count()) as i64;
        }
        drop(serving);
        // Whoever comes next settles what was recorded; every token that was seen is among it.
        let serving = Serving::start(home);
        let admin = if round == 0 { Some(printed(home, &["keys", "create", &account, "--name", "a", "--admin"])) } else { None };
        drop(admin);
        serving.end();
        let invoice: Value = serde_json::from_str(&printed(home, &["invoices", "draft", &account, "--json"])).expect("JSON");
        let lines = invoice["lines"].as_array().expect("lines");
        n_kept = lines.iter().filter_map(|line| line["n_output"].as_i64()).sum();
        assert!(n_seen <= n_kept, "{n_seen} tokens were seen and {n_kept} are billed");
        let reconciled = operator(home, &["db", "reconcile"]);
        assert_eq!(reconciled.status, Some(0), "{reconciled:?}");
        let requests: i64 = lines.iter().filter(|line| line["kind"] == "usage").filter_map(|line| line["n_requests"].as_i64()).sum();
        assert!(requests <= i64::from(8 * (round + 1)), "each request is billed once");
    }
    assert!(n_kept > 0 && n_seen > 0);
}

/// The same command, to which writing too long a file is an error and not its end.
#[cfg(target_os = "linux")]
fn outliving_its_file_size(command: &Command, home: &Path) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(command.get_program()).args(command.get_args()).current_dir(home);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell
}

/// What comes back in a moment; empty if nothing does.
#[cfg(target_os = "linux")]
fn begins(stream: &mut TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_millis(300))).expect("set");
    let mut bytes = [0; 512];
    let n = stream.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..n]).into()
}

#[test]
#[cfg(target_os = "linux")]
fn server_on_a_full_disk_refuses_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path();
    let account = printed(home, &["accounts", "create", "Ann", "--plan", "payg", "--spending-cap", "1"]);
    let key = printed(home, &["keys", "create", &account, "--name", "k"]);
    let serving = Serving::started(outliving_its_file_size(&serve(home), home));
    assert!(serving.post(&key, &completion(3)).starts_with("HTTP/1.1 200"));
    // No file grows beyond this: to SQLite it is a disk that takes nothing more.
    let limit = |fsize: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &serving.child.id().to_string(), &format!("--fsize={fsize}:")]);
        assert!(prlimit.status().expect("prlimit comes with util-linux").success());
    };
    limit("4096");
    let began = Instant::now();
    let mut waiting = vec![serving.send(&key, &completion(3))];
    loop {
        let mut stream = serving.send(&key, &completion(1));
        let answer = begins(&mut stream);
        if answer.starts_with("HTTP/1.1 503") {
            assert!(answer.to_lowercase().contains("retry-after"), "{answer}");
            break;
        }
        assert_eq!(answer, "", "nothing is shown that is not recorded");
        assert!(began.elapsed() < Duration::from_secs(30), "whoever comes is refused");
        waiting.push(stream);
    }
    limit("unlimited");
    for mut stream in waiting {
        stream.set_read_timeout(None).expect("set");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answered");
        assert!(answer.starts_with("HTTP/1.1 200"), "whoever was let in is served: {answer}");
    }
    let again = Instant::now();
    while !serving.post(&key, &completion(1)).starts_with("HTTP/1.1 200") {
        assert!(again.elapsed() < Duration::from_secs(30), "it goes on by itself");
    }
    serving.end();
    let reconciled = operator(home, &["db", "reconcile"]);
    assert_eq!(reconciled.status, Some(0), "{reconciled:?}");
}
