//! `cargo xtask fixtures`: makes the checked-in binary files again from their sources, with our own code, so that none of them is
//! a mystery. It does not fetch or train anything.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command;
use crate::repository::Repository;

const EMBEDDED_MODEL: &str = "crates/cli/assets/tales-42m.gguf";

/// Make the checked-in binary files again from their sources.
///
/// Today that is one: crates/cli/assets/tales-42m.gguf, the model inside the binary, converted by `bitnet convert` from the
/// Hugging Face folder it was published as. With --check nothing is replaced: the command fails if the file would change.
#[derive(Args)]
pub(crate) struct FixturesArgs {
    /// Folder of the tales-42m checkpoint (config.json, *.safetensors, tokenizer.json).
    #[arg(long, value_name = "FOLDER")]
    tales_42m: PathBuf,
    /// Format of the embedded file, as `bitnet convert --to` names it.
    #[arg(long, default_value = "gguf-tq1_0")]
    to: String,
    /// Compare only.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &FixturesArgs) -> Result<()> {
    let repository = Repository::find()?;
    let fresh = repository.target_folder()?.join("fixtures/tales-42m.gguf");
    let folder = fresh.parent().context("a file in a folder")?;
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    if fresh.exists() {
        std::fs::remove_file(&fresh).with_context(|| fresh.display().to_string())?;
    }
    let source = args.tales_42m.canonicalize().with_context(|| args.tales_42m.display().to_string())?;
    let mut convert = command::cargo();
    convert.args(["run", "--locked", "--release", "--package", "bitnet-cli", "--", "convert"]).arg(source).arg(&fresh);
    command::run(convert.args(["--to", &args.to]).current_dir(&repository.root))?;

    let kept = repository.root.join(EMBEDDED_MODEL);
    let bytes = std::fs::read(&fresh).with_context(|| fresh.display().to_string())?;
    let same = std::fs::read(&kept).is_ok_and(|old| old == bytes);
    match (same, args.check) {
        (true, _) => println!("{EMBEDDED_MODEL}: unchanged, {} bytes", bytes.len()),
        (false, true) => bail!("{EMBEDDED_MODEL} is not what its source converts to; compare with {}", fresh.display()),
        (false, false) => {
            std::fs::create_dir_all(kept.parent().context("a file in a folder")?)?;
            std::fs::write(&kept, &bytes).with_context(|| kept.display().to_string())?;
            println!("{EMBEDDED_MODEL}: written, {} bytes", bytes.len());
        }
    }
    Ok(())
}
