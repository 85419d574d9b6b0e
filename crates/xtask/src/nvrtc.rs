//! `cargo xtask nvrtc`: compiles the CUDA kernels for every supported architecture on a machine without a GPU, with NVIDIA's run-time
//! compiler as PyPI has it, pinned. It says nothing about results or speed: that needs a GPU and the crate's other tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command;
use crate::repository::Repository;

/// The package and its version.
const PACKAGE: &str = "nvidia-cuda-nvrtc==13.0.88";
/// The environment variable by which the tests find it.
pub(crate) const VARIABLE: &str = "BITNET_NVRTC";
/// Where the wheel holds the library.
const LIBRARY: &str = "nvidia/cu13/lib/libnvrtc.so.13";

/// Compile the CUDA kernels for every supported architecture, without a GPU.
///
/// Fetches NVIDIA's run-time compiler (the Python package nvidia-cuda-nvrtc, pinned; needs python3 with pip, once) into the target folder
/// and runs the tests `kernels_compile_for_*` of bitnet-device-cuda with it.
#[derive(Args)]
pub(crate) struct NvrtcArgs {
    /// Fetch only, and print where the library lies.
    #[arg(long)]
    fetch: bool,
}

pub(crate) fn run(args: &NvrtcArgs) -> Result<()> {
    let repository = Repository::find()?;
    let library = library(&repository)?;
    if args.fetch {
        println!("{}", library.display());
        return Ok(());
    }
    let mut test = command::cargo();
    test.args(["test", "--locked", "--package", "bitnet-device-cuda", "--test", "it", "--", "kernels_compile_for"]);
    command::run(test.env(VARIABLE, library).current_dir(&repository.root))
}

/// The compiler: the one that the environment names, else fetched if it is not there.
pub(crate) fn library(repository: &Repository) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Ok(path.into());
    }
    fetch(&repository.target_folder()?.join("nvrtc"))
}

/// The library, unpacked from its wheel into `folder` unless it is there.
fn fetch(folder: &Path) -> Result<PathBuf> {
    let library = folder.join(LIBRARY);
    if library.is_file() {
        return Ok(library);
    }
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let mut download = Command::new("python3");
    download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest"]).arg(folder);
    for platform in ["manylinux2010_x86_64", "manylinux_2_12_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64"] {
        download.args(["--platform", platform]);
    }
    command::run(download.arg(PACKAGE))?;
    let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let wheel = entries.flatten().map(|entry| entry.path()).find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    let wheel = wheel.context("pip fetched no wheel")?;
    command::run(Command::new("python3").args(["-m", "zipfile", "--extract"]).arg(&wheel).arg(folder))?;
    if !library.is_file() {
        bail!("{} holds no {LIBRARY}", wheel.display());
    }
    Ok(library)
}
