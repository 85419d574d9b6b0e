//! `cargo xtask clients`: real clients against the real binary. Prepares pinned packages in the build directory, starts
//! `bitnet serve` on a free port, runs the scripted journeys of `crates/cli/tests/clients`, and ends the server by SIGTERM, which it
//! must answer with status 0. Where Python or Node is missing, it says which journeys it left out, and fails unless that is allowed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command;
use crate::repository::Repository;

/// Run the official OpenAI and Anthropic clients against the server.
#[derive(Args, Default)]
pub(crate) struct ClientsArgs {
    /// Leave out the journeys whose language is not installed, and say so.
    #[arg(long)]
    pub(crate) allow_missing: bool,
}

/// What a journey's program needs.
struct Journey {
    name: &'static str,
    program: PathBuf,
    script: PathBuf,
}

const FOLDER: &str = "crates/cli/tests/clients";
const KEY: &str = "sk-journey";
/// What requests call the embedded model.
const SERVED: &str = "tales";

/// Runs all journeys, and hands each line that they print to `on_line`.
pub(crate) fn run(args: &ClientsArgs, on_line: &mut dyn FnMut(&str)) -> Result<()> {
    let repository = Repository::find()?;
    let sources = repository.root.join(FOLDER);
    let build = repository.target_folder()?.join("clients");
    fs::create_dir_all(&build).with_context(|| format!("cannot make {}", build.display()))?;
    let journeys = prepare(args, &sources, &build)?;
    let mut cargo = command::cargo();
    command::run(cargo.args(["build", "--locked", "--package", "bitnet-cli"]).current_dir(&repository.root))?;
    let binary = repository.target_folder()?.join("debug").join(format!("bitnet{}", std::env::consts::EXE_SUFFIX));
    let server = RunningServer::start(&binary, &sources, &build)?;
    let mut failed = Vec::new();
    for journey in &journeys {
        on_line(&format!("── {}", journey.name));
        let mut program = Command::new(&journey.program);
        program.arg(&journey.script).current_dir(&build);
        program.env("BITNET_URL", &server.url).env("BITNET_KEY", KEY).env("BITNET_SERVED", SERVED);
        if !command::run_lines(&mut program, &mut *on_line)? {
            failed.push(journey.name);
        }
    }
    server.end()?;
    if !failed.is_empty() {
        bail!("{} failed", failed.join(", "));
    }
    Ok(())
}

/// Installs what the journeys import, once; a changed list of packages is installed anew.
fn prepare(args: &ClientsArgs, sources: &Path, build: &Path) -> Result<Vec<Journey>> {
    let mut journeys = Vec::new();
    let mut missing = Vec::new();
    if command::succeeds(Command::new("python3").args(["-m", "venv", "--help"])) {
        let python = build.join("venv/bin/python");
        install(sources, build, "requirements.txt", &mut |list| {
            command::run(Command::new("python3").args(["-m", "venv"]).arg(build.join("venv")))?;
            command::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(list))
        })?;
        journeys.push(Journey { name: "openai (Python)", program: python.clone(), script: sources.join("openai_journey.py") });
        journeys.push(Journey { name: "anthropic (Python)", program: python, script: sources.join("anthropic_journey.py") });
    } else {
        missing.push("python3 with venv");
    }
    if command::succeeds(Command::new("npm").arg("--version")) {
        install(sources, build, "package.json", &mut |_| {
            command::run(Command::new("npm").args(["install", "--no-audit", "--no-fund"]).current_dir(build))
        })?;
        // Imports are looked for above a script, so it runs from beside the packages.
        let script = build.join("journey.mjs");
        fs::copy(sources.join("journey.mjs"), &script).context("cannot copy the Node journey")?;
        journeys.push(Journey { name: "openai and anthropic (Node)", program: "node".into(), script });
    } else {
        missing.push("npm");
    }
    match missing.is_empty() {
        true => Ok(journeys),
        false if args.allow_missing => {
            println!("left out, since it is not installed: {}", missing.join(", "));
            Ok(journeys)
        }
        false => bail!("{} is missing: install it, or leave its journeys out with --allow-missing", missing.join(", ")),
    }
}

/// Runs `work` unless it was done for exactly this list.
fn install(sources: &Path, build: &Path, list: &str, work: &mut dyn FnMut(&Path) -> Result<()>) -> Result<()> {
    let (wanted, installed) = (fs::read(sources.join(list))?, build.join(list));
    let stamp = build.join(format!("{list}.installed"));
    if fs::read(&stamp).ok().as_ref() == Some(&wanted) {
        return Ok(());
    }
    fs::write(&installed, &wanted).with_context(|| format!("cannot write {}", installed.display()))?;
    work(&installed)?;
    fs::write(&stamp, &wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// A server that is ended when it is dropped, whatever happens.
struct RunningServer {
    child: Child,
    url: String,
}

impl RunningServer {
    fn start(binary: &Path, sources: &Path, build: &Path) -> Result<Self> {
        let data = build.join("data");
        let mut command = Command::new(binary);
        command.args(["serve", "--listen", "127.0.0.1:0", "--api-key", KEY, "--log", "error", "--model", &format!("{SERVED}=embedded")]);
        command.arg("--chat-template").arg(sources.join("plain.jinja")).arg("--data-folder").arg(data);
        println!("$ {}", command::shown(&command));
        let mut child = command.stderr(Stdio::piped()).spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let stderr = child.stderr.take().context("standard error was asked for and not given")?;
        let mut lines = BufReader::new(stderr).lines();
        let mut said = String::new();
        for line in lines.by_ref() {
            let line = line.context("cannot read what the server says")?;
            if let Some((_, address)) = line.split_once(" on http://") {
                let url = format!("http://{}", address.trim());
                // What the server says later must go somewhere, or it would wait for a reader.
                std::thread::spawn(move || lines.for_each(|line| eprintln!("server: {}", line.unwrap_or_default())));
                return Ok(Self { child, url });
            }
            said.push_str(&line);
            said.push('\n');
        }
        bail!("the server did not start:\n{said}")
    }

    /// Asks the server to end, and expects that it does so in order.
    fn end(mut self) -> Result<()> {
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
