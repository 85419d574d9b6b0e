//! Our own server as a process of its own, on a port that is free, which ends with its owner.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// See the module.
pub(super) struct ServedProcess {
    child: Child,
    /// Where it listens.
    pub(super) url: String,
}

impl ServedProcess {
    /// Starts `bitnet serve` with these flags and waits until it serves.
    pub(super) fn start(flags: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut command = Command::new(program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--log", "error"]).args(flags);
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("cannot start the server")?;
        let Some(stderr) = child.stderr.take() else { bail!("the server has no standard error") };
        let mut process = Self { child, url: String::new() };
        let mut lines = BufReader::new(stderr).lines();
        for line in &mut lines {
            let line = line.context("cannot read what the server says")?;
            if let Some((_, address)) = line.rsplit_once(" on http://") {
                process.url = format!("http://{address}");
                // A pipe that nobody reads would stop the server one day.
                std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
                return Ok(process);
            }
            eprintln!("{line}");
        }
        bail!("the server ended before it served")
    }
}

impl Drop for ServedProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
