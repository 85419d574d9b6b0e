//! The server under test: `bitnet serve` on a free port of this machine, ended by SIGTERM, which it must answer with status 0.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command;

/// The key that journeys send.
pub(super) const KEY: &str = "sk-journey";
/// That of openai-python's own tests.
const KEY_OF_OPENAI_TESTS: &str = "My API Key";
/// What requests call the embedded model, and the random model for embeddings.
pub(super) const SERVED: &str = "tales";
pub(super) const SERVED_VECTORS: &str = "vectors";

/// The file that holds what the present server has said, mails among it: it has no mail server.
pub(super) fn mails(build: &Path) -> PathBuf {
    build.join("server-said.txt")
}

/// A server that is ended when it is dropped, whatever happens.
pub(super) struct RunningServer {
    child: Child,
    pub(super) url: String,
}

impl RunningServer {
    pub(super) fn start(binary: &Path, sources: &Path, build: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--api-key", KEY, "--api-key", KEY_OF_OPENAI_TESTS]);
        command.args(["--model", &format!("{SERVED}=embedded"), "--model"]);
        command.arg(format!("{SERVED_VECTORS}={}", build.join("vectors").display()));
        command.arg("--chat-template").arg(sources.join("plain.jinja")).arg("--data-folder").arg(build.join("data"));
        Self::spawn(command, build)
    }

    /// One with accounts and a portal, in a database at this URL.
    pub(super) fn start_platform(binary: &Path, sources: &Path, build: &Path, (url, secret): (&str, &Path)) -> Result<Self> {
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--platform", url, "--platform-secret"]).arg(secret);
        command.args(["--model", &format!("{SERVED}=embedded")]).arg("--chat-template").arg(sources.join("plain.jinja"));
        // Checkpoints of the audit log stand beside the database, or in this folder.
        command.current_dir(secret.parent().context("a secret without a folder")?);
        Self::spawn(command, build)
    }

    fn spawn(mut command: Command, build: &Path) -> Result<Self> {
        println!("$ {}", command::shown(&command));
        let binary = command.get_program().to_os_string();
        let mut mails = File::create(mails(build)).context("cannot keep what the server says")?;
        let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let stderr = child.stderr.take().context("standard error was asked for and not given")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.context("cannot read what the server says")?;
            if let Some((_, address)) = line.split_once(" on http://") {
                let url = format!("http://{}", address.trim());
                // What the server says later must go somewhere, or it would wait for a reader.
                std::thread::spawn(move || {
                    lines.for_each(|line| {
                        let line = line.unwrap_or_default();
                        // An error means that the folder is gone, and with it who reads it.
                        let _ = writeln!(mails, "{line}");
                        eprintln!("server: {line}");
                    })
                });
                return Ok(Self { child, url });
            }
            said.push_str(&line);
            said.push('\n');
        }
        bail!("the server did not start:\n{said}")
    }

    /// Asks the server to end, and expects that it does so in order.
    pub(super) fn end(mut self) -> Result<()> {
        command::run(Command::new("kill").args(["-TERM", &self.child.id().to_string()]))?;
        let status = self.child.wait().context("cannot wait for the server")?;
        if !status.success() {
            bail!("the server ended with {status}, not 0");
        }
        Ok(())
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
