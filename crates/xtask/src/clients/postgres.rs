//! A PostgreSQL of the journeys' own: made by `initdb` in a temporary folder, listening on a socket in it and nowhere else, run by an
//! unprivileged user, since PostgreSQL refuses to be root; ended and removed with its journey.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::command;

/// A cluster that runs.
pub(super) struct RunningPostgres {
    folder: PathBuf,
    child: Child,
    pub(super) url: String,
}

/// Names the socket's file; nothing listens on a port.
const PORT: &str = "5432";

impl RunningPostgres {
    /// Makes a cluster with one database, and waits until it answers.
    pub(super) fn start(initdb: &Path) -> Result<Self> {
        // The socket's name has a short bound, so not the build folder.
        let folder = std::env::temp_dir().join(format!("bitnet-pg-{}", std::process::id()));
        fs::create_dir_all(&folder).context("cannot make a folder for PostgreSQL")?;
        let is_root = fs::metadata("/proc/self").is_ok_and(|metadata| owner(&metadata) == 0);
        if is_root {
            command::run(Command::new("chown").arg("postgres").arg(&folder))?;
        }
        let as_user = |name: &str| {
            // A program beside `initdb`, whichever link led to it.
            let beside = fs::canonicalize(initdb).ok().and_then(|path| Some(path.parent()?.join(name))).filter(|path| path.is_file());
            let program = beside.unwrap_or_else(|| initdb.with_file_name(name));
            if !is_root {
                return Command::new(program);
            }
            let mut command = Command::new("setpriv");
            command.args(["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"]).arg(program).current_dir("/tmp");
            command
        };
        let data = folder.join("data");
        command::run(
            as_user("initdb").arg("-D").arg(&data).args(["-U", "bitnet", "-A", "trust", "-E", "UTF8", "--no-sync"]).stdout(Stdio::null()),
        )?;
        let mut server = as_user("postgres");
        server.arg("-D").arg(&data).arg("-k").arg(&folder).args(["-p", PORT, "-c", "listen_addresses="]);
        let child = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("cannot start postgres")?;
        let socket = folder.display().to_string().replace('/', "%2F");
        let mut running = Self { child, url: format!("postgres://bitnet@localhost:{PORT}/portal?host={socket}"), folder };
        for _ in 0..240 {
            let mut create = as_user("createdb");
            create.arg("-h").arg(&running.folder).args(["-p", PORT, "-U", "bitnet", "portal"]).stderr(Stdio::null());
            if command::succeeds(&mut create) {
                return Ok(running);
            }
            if running.child.try_wait()?.is_some() {
                bail!("postgres ended at once");
            }
            park_timeout(Duration::from_millis(250));
        }
        bail!("postgres does not answer")
    }
}

#[cfg(unix)]
fn owner(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::MetadataExt::uid(metadata)
}

#[cfg(not(unix))]
fn owner(_: &fs::Metadata) -> u32 {
    1
}

impl Drop for RunningPostgres {
    fn drop(&mut self) {
        // SIGINT ends sessions and then the server; errors mean that it has ended already.
        let _ = command::run(Command::new("kill").args(["-INT", &self.child.id().to_string()]));
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
