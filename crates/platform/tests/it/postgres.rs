//! A PostgreSQL of the tests' own: made by `initdb` in a temporary folder, listening on a socket in it and nowhere else, run by an
//! unprivileged user (PostgreSQL refuses to be root), gone with the test process. Where there is none, tests fail, unless
//! `BITNET_ALLOW_MISSING_POSTGRES` says that they may be left out.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

const ALLOW_MISSING: &str = "BITNET_ALLOW_MISSING_POSTGRES";
/// Names the socket's file; nothing listens on a port.
const PORT: &str = "5432";

/// A cluster of the tests' own.
pub(crate) struct Server {
    folder: PathBuf,
    user: String,
}

impl Server {
    /// Runs it, and waits until it answers.
    pub(crate) fn start(&self) -> Child {
        let postgres = bin("postgres").expect("it was there");
        let mut server = as_user(&self.user, &postgres);
        server.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&self.folder);
        server.args(["-p", PORT, "-c", "listen_addresses=", "-c", "max_connections=200"]);
        let mut child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("postgres starts");
        wait_until_ready(&self.user, &self.folder, &mut child);
        child
    }

    /// Makes a database; returns its URL.
    pub(crate) fn create(&self, name: &str) -> String {
        let folder = self.folder.to_str().expect("a plain path");
        let createdb = bin("createdb").expect("it comes with postgres");
        let created = as_user(&self.user, &createdb).args(["-h", folder, "-p", PORT, "-U", &self.user, name]).status();
        assert!(created.is_ok_and(|status| status.success()), "createdb failed");
        format!("postgres://{}@localhost:{PORT}/{name}?host={}", self.user, folder.replace('/', "%2F"))
    }
}

/// A fresh database's URL; `None` where tests of PostgreSQL may be left out.
pub(crate) fn fresh_database() -> Option<String> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    static N_DATABASES: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(|| {
        let server = make()?;
        // It ends with this process, whoever holds it.
        let _child: &'static mut Child = Box::leak(Box::new(server.start()));
        Some(server)
    });
    let number = N_DATABASES.fetch_add(1, Ordering::Relaxed);
    server.as_ref().map(|server| server.create(&format!("test_{number}")))
}

/// Makes a cluster; `None` where tests of PostgreSQL may be left out.
pub(crate) fn make() -> Option<Server> {
    let (Some(initdb), Some(_)) = (bin("initdb"), bin("postgres")) else {
        assert!(
            std::env::var_os(ALLOW_MISSING).is_some(),
            "no PostgreSQL: install Debian's package postgresql (`cargo xtask test` does, as root), or set {ALLOW_MISSING}=1 to leave its tests out"
        );
        println!("tests of PostgreSQL are left out: it is not installed, and {ALLOW_MISSING} is set");
        return None;
    };
    let user = unprivileged_user();
    let folder = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").expect("a temporary folder").keep();
    let owned = Command::new("chown").arg(&user).arg(&folder).status();
    assert!(owned.is_ok_and(|status| status.success()), "chown to {user} failed");
    let data = folder.join("data");
    let mut made = as_user(&user, &initdb);
    made.arg("-D").arg(&data).args(["-U", &user, "-A", "trust", "-E", "UTF8", "--no-sync"]).stdout(Stdio::null());
    assert!(made.status().is_ok_and(|status| status.success()), "initdb failed");
    watch_over(&folder);
    Some(Server { folder, user })
}

/// A shell that outlives this process by a moment: it ends the server and removes its folder, whatever way the tests end.
fn watch_over(folder: &Path) {
    let script = "while kill -0 \"$1\" 2>/dev/null; do sleep 1; done; pid=$(head -n 1 \"$2/data/postmaster.pid\" 2>/dev/null); [ -z \"$pid\" ] || kill -INT \"$pid\"; while [ -n \"$pid\" ] && kill -0 \"$pid\" 2>/dev/null; do sleep 1; done; rm -rf \"$2\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "watch", &std::process::id().to_string()]).arg(folder);
    // Nobody waits for it: it ends after this process, whose parent then reaps it.
    let _watcher: &'static mut Child =
        Box::leak(Box::new(shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("sh starts")));
}

fn wait_until_ready(user: &str, folder: &Path, child: &mut Child) {
    let ready = bin("pg_isready").expect("it comes with createdb");
    for _ in 0..120 {
        // It waits up to a second itself where nothing listens yet.
        let mut ask = as_user(user, &ready);
        let answer = ask.arg("-h").arg(folder).args(["-p", PORT, "-t", "1"]).stdout(Stdio::null()).status();
        if answer.is_ok_and(|status| status.success()) {
            return;
        }
        assert!(child.try_wait().expect("it can be asked").is_none(), "postgres ended at once");
        std::thread::park_timeout(std::time::Duration::from_millis(250));
    }
    panic!("postgres does not answer");
}

/// A program of PostgreSQL: in the path, or where Debian puts it.
fn bin(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    std::env::split_paths(&path).chain(debian).map(|folder| folder.join(name)).find(|program| program.is_file())
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

fn unprivileged_user() -> String {
    if is_root() {
        return "postgres".into();
    }
    let output = Command::new("id").arg("-un").output().expect("id runs");
    String::from_utf8(output.stdout).expect("a name").trim().into()
}

fn as_user(user: &str, program: &Path) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", user, "--clear-groups", "--"]).arg(program).current_dir("/tmp");
    command
}
