//! `cargo xtask arm`: the CPU device's tests for aarch64, built across and run under QEMU's user mode with every instruction it knows,
//! so that all NEON kernels are compared with the reference on any machine. On an aarch64 host they run natively. It says nothing
//! about speed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command;
use crate::repository::Repository;
use crate::toolchain::{self, Rustc};

const TARGET: &str = "aarch64-unknown-linux-gnu";
/// Names a sysroot (`bin/rustc` and `lib/rustlib`) that has the target, where rustup has not.
const SYSROOT_VARIABLE: &str = "AARCH64_SYSROOT";

/// Run the CPU device's tests for aarch64, under QEMU where this is another processor.
///
/// Needs Rust's standard library for aarch64-unknown-linux-gnu (`rustup target add`, or a sysroot with bin/rustc named by
/// $AARCH64_SYSROOT), aarch64-linux-gnu-gcc with its C library, and qemu-aarch64 (the last two are installed from Debian when run by
/// root). Emulation is slow: name the tests that matter.
#[derive(Args)]
pub(crate) struct ArmArgs {
    /// Words of which a test's name must contain one; all tests without.
    #[arg(value_name = "TEST")]
    tests: Vec<String>,
    /// Build only.
    #[arg(long)]
    build: bool,
}

/// What builds and runs programs of the target.
struct CrossTools {
    /// A compiler other than cargo's own, and where its libraries lie.
    rustc: Option<(PathBuf, Vec<PathBuf>)>,
    linker: PathBuf,
    /// The emulator with its arguments.
    runner: String,
}

pub(crate) fn run(args: &ArmArgs) -> Result<()> {
    let repository = Repository::find()?;
    let mut cargo = command::cargo();
    cargo.args(["test", "--locked", "--package", "bitnet-device-cpu"]).current_dir(&repository.root);
    if std::env::consts::ARCH != "aarch64" {
        CrossTools::find()?.apply(&mut cargo);
        // A folder of its own: another compiler would make cargo build everything else again, too.
        cargo.env("CARGO_TARGET_DIR", repository.target_folder()?.join("arm"));
    }
    if args.build {
        cargo.arg("--no-run");
    } else {
        cargo.arg("--").args(&args.tests);
    }
    command::run(&mut cargo)
}

impl CrossTools {
    fn find() -> Result<Self> {
        let rustc = match std::env::var_os(SYSROOT_VARIABLE) {
            Some(sysroot) => Some(rustc_of(Path::new(&sysroot))?),
            None => {
                ensure_target()?;
                None
            }
        };
        let linker = toolchain::find_or_install(&["aarch64-linux-gnu-gcc"], &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"]);
        let linker = linker
            .context("no aarch64-linux-gnu-gcc: install it and its C library (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross)")?;
        let qemu = toolchain::find_or_install(&["qemu-aarch64-static", "qemu-aarch64"], &["qemu-user-static"]);
        let qemu = qemu.context("no qemu-aarch64: install QEMU's user mode (Debian: qemu-user-static)")?;
        let runner = format!("{} -cpu max -L {}", qemu.display(), library_root(&linker)?.display());
        Ok(Self { rustc, linker, runner })
    }

    fn apply(&self, cargo: &mut Command) {
        cargo.args(["--target", TARGET]);
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", &self.linker);
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", &self.runner);
        let Some((rustc, libraries)) = &self.rustc else { return };
        cargo.env("RUSTC", rustc);
        let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let paths = libraries.iter().cloned().chain(std::env::split_paths(&inherited));
        if let Ok(paths) = std::env::join_paths(paths) {
            cargo.env("LD_LIBRARY_PATH", paths);
        }
    }
}

/// The compiler of a sysroot and the folders of its shared libraries, which a distribution may keep by machine.
fn rustc_of(sysroot: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let (rustc, libraries) = (sysroot.join("bin/rustc"), sysroot.join("lib"));
    if !rustc.is_file() {
        bail!("${SYSROOT_VARIABLE} is {}, which has no bin/rustc", sysroot.display());
    }
    if !libraries.join("rustlib").join(TARGET).is_dir() {
        bail!("${SYSROOT_VARIABLE} is {}, which has no lib/rustlib/{TARGET}", sysroot.display());
    }
    let entries = libraries.read_dir().with_context(|| libraries.display().to_string())?;
    let by_machine = entries.flatten().map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with("-linux-gnu"));
    Ok((rustc, by_machine.chain([libraries.clone()]).collect()))
}

/// Whether cargo's own compiler has the target's standard library. It is not fetched unasked: without a network that takes minutes.
fn ensure_target() -> Result<()> {
    if !Rustc::ask()?.has_target(TARGET) {
        bail!("no standard library for {TARGET}: run `rustup target add {TARGET}`, or set ${SYSROOT_VARIABLE} to a sysroot that has it");
    }
    Ok(())
}

/// The folder whose `lib` holds the target's C library, as the linker's compiler knows it.
fn library_root(linker: &Path) -> Result<PathBuf> {
    let library = command::output_text(Command::new(linker).arg("-print-file-name=libc.so.6"))?;
    let library = Path::new(library.trim());
    let missing = || format!("{} has no C library: install one (Debian: libc6-dev-arm64-cross)", linker.display());
    let library = library.canonicalize().with_context(missing)?;
    Ok(library.parent().and_then(Path::parent).with_context(missing)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sysroot_without_compiler_or_target_is_refused_with_its_name() {
        let sysroot = tempfile::tempdir().expect("a temporary folder");
        let error = rustc_of(sysroot.path()).expect_err("empty");
        assert!(error.to_string().contains("has no bin/rustc"), "{error}");
        std::fs::create_dir_all(sysroot.path().join("bin")).expect("created");
        std::fs::write(sysroot.path().join("bin/rustc"), "").expect("written");
        let error = rustc_of(sysroot.path()).expect_err("no target");
        assert!(error.to_string().contains(TARGET), "{error}");
        std::fs::create_dir_all(sysroot.path().join("lib/rustlib").join(TARGET)).expect("created");
        std::fs::create_dir_all(sysroot.path().join("lib/x86_64-linux-gnu")).expect("created");
        let (_, libraries) = rustc_of(sysroot.path()).expect("complete");
        assert_eq!(libraries, ["lib/x86_64-linux-gnu", "lib"].map(|folder| sysroot.path().join(folder)));
    }
}
