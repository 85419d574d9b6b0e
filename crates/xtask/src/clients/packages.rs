//! What journeys need, pinned, in the build directory: a Python environment with openai-python's own tests beside it, Node packages;
//! and of the machine, Chromium and promtool, installed by apt where they are missing and we may.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::journeys::Component;
use crate::{command, toolchain};

/// The programs of the components that are there.
pub(super) struct Packages {
    found: BTreeMap<Component, Option<PathBuf>>,
}

impl Packages {
    /// Finds or installs these components.
    pub(super) fn prepare(components: &[Component], sources: &Path, build: &Path) -> Result<Self> {
        let find = |&component: &Component| {
            let program = match component {
                Component::Python => python(sources, build)?,
                Component::Node => node(sources, build)?,
                Component::Chromium => toolchain::find_or_install(&["chromium", "chromium-browser", "google-chrome"], &["chromium"]),
                Component::Postgres => toolchain::postgres(),
                Component::Promtool => toolchain::find_or_install(&["promtool"], &["prometheus"]),
            };
            Ok((component, program))
        };
        Ok(Self { found: components.iter().map(find).collect::<Result<_>>()? })
    }

    /// Whether all of these are there.
    pub(super) fn have(&self, components: &[Component]) -> bool {
        components.iter().all(|&component| self.program(component).is_some())
    }

    /// What runs this component.
    pub(super) fn program(&self, component: Component) -> Option<&Path> {
        self.found.get(&component)?.as_deref()
    }

    /// Names of those that are not there.
    pub(super) fn missing(&self) -> String {
        let missing = self.found.iter().filter(|(_, program)| program.is_none());
        missing.map(|(component, _)| component.name()).collect::<Vec<_>>().join(", ")
    }
}

fn python(sources: &Path, build: &Path) -> Result<Option<PathBuf>> {
    if !command::succeeds(Command::new("python3").args(["-m", "venv", "--help"])) {
        return Ok(None);
    }
    let python = build.join("venv/bin/python");
    install(sources, build, "requirements.txt", &mut |list| {
        command::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(build.join("venv")))?;
        command::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(list))?;
        openai_tests(&python, list, build)
    })?;
    Ok(Some(python))
}

/// openai-python's source package, which holds its tests, of the version that is installed.
fn openai_tests(python: &Path, list: &Path, build: &Path) -> Result<()> {
    let list = fs::read_to_string(list)?;
    let pinned = list.lines().find(|line| line.starts_with("openai==")).context("requirements.txt does not pin openai")?;
    let folder = build.join("openai-source");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "download", "--quiet", "--no-binary", "openai", "--no-deps", "--dest"]);
    command::run(pip.arg(&folder).arg(pinned))?;
    let archive = folder.join(format!("{}.tar.gz", pinned.replace("==", "-")));
    command::run(Command::new(python).args(["-m", "tarfile", "--extract"]).arg(archive).arg(&folder))?;
    let unpacked = folder.join(pinned.replace("==", "-"));
    fs::rename(&unpacked, folder.join("openai")).with_context(|| format!("no {} in the package", unpacked.display()))
}

fn node(sources: &Path, build: &Path) -> Result<Option<PathBuf>> {
    let node = PathBuf::from("node");
    if !command::succeeds(Command::new("npm").arg("--version")) || !command::succeeds(Command::new(&node).arg("--version")) {
        return Ok(None);
    }
    install(sources, build, "package.json", &mut |_| {
        command::run(Command::new("npm").args(["install", "--no-audit", "--no-fund"]).current_dir(build))
    })?;
    // Imports are looked for above a script, so scripts run from beside the packages.
    for script in ["journeys.mjs", "journey.mjs", "page.mjs", "payment.mjs", "portal.mjs"] {
        fs::copy(sources.join(script), build.join(script)).with_context(|| format!("cannot copy {script}"))?;
    }
    Ok(Some(node))
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
