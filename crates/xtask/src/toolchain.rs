//! The tools that chores need besides cargo: rustfmt, clippy, a C++ compiler, LLVM's coverage tools. Each is found, or installed
//! where that is plainly wanted (rustup components; Debian packages when run by root), or its absence is explained.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Makes sure that `cargo fmt` and `cargo clippy` run.
pub(crate) fn ensure_component(verb: &str, component: &str) -> Result<()> {
    let works = || command::succeeds(command::cargo().args([verb, "--version"]));
    if works() {
        return Ok(());
    }
    if command::succeeds(Command::new("rustup").arg("--version")) {
        command::run(Command::new("rustup").args(["component", "add", component]))?;
    }
    if !works() {
        bail!("`cargo {verb}` does not run: install {component} (rustup component add {component})");
    }
    Ok(())
}

/// A C++ compiler, which libFuzzer is built with: `$CXX`, g++ or clang++; installed when root on Debian. `None` says there is none.
pub(crate) fn cxx_compiler() -> Option<PathBuf> {
    let found = || {
        let named = std::env::var_os("CXX").map(PathBuf::from);
        let known = ["g++", "clang++", "c++"].into_iter().map(PathBuf::from);
        named.into_iter().chain(known).find(|program| command::succeeds(Command::new(program).arg("--version")))
    };
    found().or_else(|| {
        apt_install("g++");
        found()
    })
}

/// The first of these programs that runs, after installing Debian's packages for it if need be (and if we may).
pub(crate) fn find_or_install(programs: &[&str], packages: &[&str]) -> Option<PathBuf> {
    let found = || programs.iter().map(PathBuf::from).find(|program| command::succeeds(Command::new(program).arg("--version")));
    found().or_else(|| {
        packages.iter().for_each(|package| apt_install(package));
        found()
    })
}

/// PostgreSQL's `initdb`, which the platform's tests make a server of their own with: in the path, or where Debian puts it;
/// installed when root on Debian. `None` says there is none.
pub(crate) fn postgres() -> Option<PathBuf> {
    let found = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
        std::env::split_paths(&path).chain(debian).map(|folder| folder.join("initdb")).find(|program| program.is_file())
    };
    found().or_else(|| {
        apt_install("postgresql");
        found()
    })
}

/// `llvm-profdata` and `llvm-cov`.
pub(crate) struct CoverageTools {
    pub(crate) profdata: PathBuf,
    pub(crate) cov: PathBuf,
}

/// Finds coverage tools that read this rustc's profiles: `$LLVM_PROFDATA` and `$LLVM_COV`, rustup's llvm-tools, or a system LLVM at
/// least as new as rustc's own; installs Debian's package when root.
pub(crate) fn coverage_tools() -> Result<CoverageTools> {
    if let (Some(profdata), Some(cov)) = (std::env::var_os("LLVM_PROFDATA"), std::env::var_os("LLVM_COV")) {
        return Ok(CoverageTools { profdata: profdata.into(), cov: cov.into() });
    }
    let rustc = Rustc::ask()?;
    if let Some(tools) = installed_tools(&rustc) {
        return Ok(tools);
    }
    apt_install(&format!("llvm-{}", rustc.llvm_major));
    if let Some(tools) = installed_tools(&rustc) {
        return Ok(tools);
    }
    bail!(
        "no llvm-profdata and llvm-cov of LLVM {} or newer: run `rustup component add llvm-tools`, install llvm-{0}, or set $LLVM_PROFDATA and $LLVM_COV",
        rustc.llvm_major
    )
}

fn installed_tools(rustc: &Rustc) -> Option<CoverageTools> {
    let in_folder = |folder: PathBuf| (folder.join("llvm-profdata"), folder.join("llvm-cov"));
    let mut candidates = vec![in_folder(rustc.sysroot.join("lib/rustlib").join(&rustc.host).join("bin"))];
    for major in rustc.llvm_major..rustc.llvm_major + 3 {
        candidates.push((format!("llvm-profdata-{major}").into(), format!("llvm-cov-{major}").into()));
        candidates.push(in_folder(format!("/usr/lib/llvm-{major}/bin").into()));
    }
    candidates.push(("llvm-profdata".into(), "llvm-cov".into()));
    let reads_profiles = |program: &Path| llvm_major(program).is_some_and(|major| major >= rustc.llvm_major);
    let (profdata, cov) = candidates.into_iter().find(|(profdata, cov)| reads_profiles(profdata) && reads_profiles(cov))?;
    Some(CoverageTools { profdata, cov })
}

fn llvm_major(program: &Path) -> Option<u32> {
    major_after("LLVM version ", &command::output_text(Command::new(program).arg("--version")).ok()?)
}

fn major_after(label: &str, text: &str) -> Option<u32> {
    let (_, version) = text.split_once(label)?;
    version.split('.').next()?.trim().parse().ok()
}

/// What `rustc -vV` says.
pub(crate) struct Rustc {
    pub(crate) host: String,
    sysroot: PathBuf,
    llvm_major: u32,
}

impl Rustc {
    pub(crate) fn ask() -> Result<Self> {
        let version = command::output_text(Command::new("rustc").arg("-vV"))?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let sysroot = command::output_text(Command::new("rustc").args(["--print", "sysroot"]))?;
        let llvm_major = major_after("LLVM version: ", &version).context("rustc names no LLVM version")?;
        Ok(Self { host: host.into(), sysroot: sysroot.trim().into(), llvm_major })
    }

    /// Whether the standard library of a target is installed.
    pub(crate) fn has_target(&self, target: &str) -> bool {
        self.sysroot.join("lib/rustlib").join(target).join("lib").is_dir()
    }
}

/// Installs a Debian package when we are root on a machine that has apt-get. Whether that worked shows in whether the tool is there.
fn apt_install(package: &str) {
    let is_root = command::output_text(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    if !is_root || !command::succeeds(Command::new("apt-get").arg("--version")) {
        return;
    }
    for arguments in [vec!["update", "-qq"], vec!["install", "-y", "-qq", "--no-install-recommends", package]] {
        let mut apt = Command::new("apt-get");
        if let Err(error) = command::run(apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive")) {
            eprintln!("note: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_of_every_spelling_is_read() {
        assert_eq!(major_after("LLVM version ", "Debian LLVM version 22.1.8\n  Optimized build."), Some(22));
        assert_eq!(major_after("LLVM version: ", "host: x\nLLVM version: 22.1.2\n"), Some(22));
        assert_eq!(major_after("LLVM version ", "gcc 12"), None);
        assert!(Rustc::ask().expect("rustc is there").llvm_major > 14);
    }
}
