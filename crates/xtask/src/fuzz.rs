//! `cargo xtask fuzz`: builds the fuzz targets with coverage feedback on the stable compiler and runs them. The instrumentation is
//! LLVM's SanitizerCoverage pass asked for by name, so no nightly and no cargo-fuzz is needed; address sanitising is left out, as
//! the parsers hold no unsafe code.
//!
//! Idea: rust-fuzz/cargo-fuzz and rust-fuzz/libfuzzer; the flags are those of llvm-project:compiler-rt/lib/fuzzer.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::command;
use crate::repository::Repository;
use crate::toolchain::{self, Rustc};

const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that makes a target hold more memory than this is a finding.
const RSS_LIMIT_MB: u32 = 1024;
/// An input that takes longer than this, in seconds, is a finding.
const INPUT_SECONDS_MAX: u32 = 10;
/// How much of a failing target's log is worth showing, from the line that says what went wrong.
const LOG_LINES_SHOWN: usize = 12;

/// Fuzz the parsers.
///
/// Builds fuzz/ (its own package) with coverage feedback, overflow checks and debug assertions, then runs each target from the
/// inputs in fuzz/seeds/TARGET and what earlier runs found (fuzz/corpus/TARGET, not tracked). A panic, a hang, or memory out of
/// proportion to the input fails the run and names the file that does it; put that file into fuzz/seeds/TARGET with the fix.
#[derive(Args)]
pub(crate) struct FuzzArgs {
    /// One target (a file name of fuzz/fuzz_targets without .rs); without it, all of them.
    target: Option<String>,
    /// Time for each target.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Stop each target after this many inputs, too.
    #[arg(long)]
    runs: Option<u64>,
    /// Run this one input through TARGET and nothing else.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

/// How long, and how loudly, to run a target.
pub(crate) struct Effort {
    pub(crate) seconds: u32,
    pub(crate) runs: Option<u64>,
    pub(crate) quiet: bool,
}

pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    if toolchain::cxx_compiler().is_none() {
        bail!("libFuzzer is built with a C++ compiler: install g++ or clang++");
    }
    let fuzzer = Fuzzer::build(args.target.as_deref())?;
    if let Some(input) = &args.input {
        let input = input.canonicalize().with_context(|| input.display().to_string())?;
        return command::run(fuzzer.program(&fuzzer.targets[0]).arg(input).arg(format!("-timeout={INPUT_SECONDS_MAX}")));
    }
    fuzzer.run_all(&Effort { seconds: args.seconds, runs: args.runs, quiet: false })
}

/// The tests of what the fuzz targets share: that seeds and small models are valid files. Not with the workspace's, as fuzz/ is a
/// package of its own; not instrumented, since they are no fuzz targets.
pub(crate) fn library_tests(repository: &Repository) -> Result<Command> {
    let mut tests = command::cargo();
    tests.args(["test", "--locked", "--lib", "--manifest-path", "fuzz/Cargo.toml"]);
    tests.arg("--target-dir").arg(fuzz_folder(repository)?).current_dir(&repository.root);
    Ok(tests)
}

/// Where fuzz/ is built.
fn fuzz_folder(repository: &Repository) -> Result<PathBuf> {
    Ok(repository.target_folder()?.join("fuzz"))
}

/// The built targets.
pub(crate) struct Fuzzer {
    root: PathBuf,
    programs: PathBuf,
    pub(crate) targets: Vec<String>,
}

impl Fuzzer {
    /// Builds one target, or all.
    pub(crate) fn build(only: Option<&str>) -> Result<Self> {
        let repository = Repository::find()?;
        let all = target_names(&repository.root.join("fuzz/fuzz_targets"))?;
        let targets = match only {
            Some(name) if all.iter().any(|target| target == name) => vec![name.to_string()],
            Some(name) => bail!("no fuzz target `{name}`; there are {}", all.join(", ")),
            None => all,
        };
        let host = Rustc::ask()?.host;
        let folder = fuzz_folder(&repository)?;
        let mut build = command::cargo();
        build.args(["build", "--locked", "--release", "--manifest-path", "fuzz/Cargo.toml", "--target", &host]);
        build.arg("--target-dir").arg(&folder).current_dir(&repository.root);
        for target in &targets {
            build.args(["--bin", target]);
        }
        // The flags reach only what runs on the target, not build scripts and macros, because a target is named.
        command::run(build.env("RUSTFLAGS", RUSTFLAGS).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
        Ok(Self { programs: folder.join(host).join("release"), root: repository.root, targets })
    }

    /// Runs every built target; all run even if one fails, and the error names those that did.
    pub(crate) fn run_all(&self, effort: &Effort) -> Result<()> {
        let mut failures = Vec::new();
        for target in &self.targets {
            if let Err(error) = self.run_one(target, effort) {
                failures.push(format!("{error:#}"));
            }
        }
        if !failures.is_empty() {
            bail!("{}", failures.join("\n"));
        }
        Ok(())
    }

    fn run_one(&self, target: &str, effort: &Effort) -> Result<()> {
        // Relative to the root, where the program runs, so that what it prints can be typed.
        let [corpus, artifacts, seeds] = ["corpus", "artifacts", "seeds"].map(|kind| format!("fuzz/{kind}/{target}"));
        for folder in [&corpus, &artifacts] {
            std::fs::create_dir_all(self.root.join(folder)).with_context(|| folder.clone())?;
        }
        let mut program = self.program(target);
        program.arg(&corpus).args(self.root.join(&seeds).is_dir().then_some(&seeds));
        program.arg(format!("-artifact_prefix={artifacts}/"));
        program.arg(format!("-max_total_time={}", effort.seconds)).args(effort.runs.map(|runs| format!("-runs={runs}")));
        program.args([format!("-rss_limit_mb={RSS_LIMIT_MB}"), format!("-timeout={INPUT_SECONDS_MAX}")]);
        program.args(["-print_final_stats=1", "-use_value_profile=1"]);
        if !effort.quiet {
            println!("fuzzing {target} for {} s", effort.seconds);
        }
        let scratch = scratch_folder(&self.programs);
        std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        let output = program
            .env("TMPDIR", &scratch)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start the fuzz target {target}"))?;
        std::fs::remove_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
        let log = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            println!("  {target}: {}", summary(&log));
            return Ok(());
        }
        eprintln!("{}", failure(&log));
        match reproducer(&log) {
            Some(file) => bail!("fuzz target {target} failed; reproduce it with `cargo xtask fuzz {target} --input {file}`"),
            None => bail!("fuzz target {target} failed ({}) and left no input behind", output.status),
        }
    }

    fn program(&self, target: &str) -> Command {
        let mut program = Command::new(self.programs.join(target));
        program.current_dir(&self.root);
        program
    }
}

/// Where targets write the files that their parsers open: in memory where the system has such a place, since a disk makes it ten times
/// slower.
fn scratch_folder(programs: &Path) -> PathBuf {
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory } else { programs };
    parent.join(format!("bitnet-fuzz-scratch-{}", std::process::id()))
}

fn target_names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// What a successful run says of itself: inputs run, and how much of the code they reached.
fn summary(log: &str) -> String {
    let statistic = |name: &str| log.lines().rev().find_map(|line| line.strip_prefix(name)).map_or("?", str::trim);
    let reached = log.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split(' ').next()).unwrap_or("?");
    let (n_runs, rss) = (statistic("stat::number_of_executed_units:"), statistic("stat::peak_rss_mb:"));
    format!("{n_runs} inputs, {reached} code edges reached, {rss} MB at most")
}

/// The part of a failed run's log that says what went wrong: the panic, else libFuzzer's own error.
fn failure(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let first = ["panicked at", "ERROR: libFuzzer"].iter().find_map(|words| lines.iter().position(|line| line.contains(words)));
    let first = first.unwrap_or(lines.len().saturating_sub(LOG_LINES_SHOWN));
    lines[first..].iter().take(LOG_LINES_SHOWN).copied().collect::<Vec<_>>().join("\n")
}

/// The file that libFuzzer wrote the failing input to.
fn reproducer(log: &str) -> Option<&str> {
    log.lines().rev().find_map(|line| line.split_once("Test unit written to ")).map(|(_, file)| file.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_of_a_good_run_is_summed_up() {
        let log = "#7 INITED cov: 31 ft: 60 corp: 3\n#9 DONE   cov: 42 ft: 99 corp: 5/9b\nstat::number_of_executed_units: 1000\nstat::peak_rss_mb:             37\n";
        assert_eq!(summary(log), "1000 inputs, 42 code edges reached, 37 MB at most");
        assert_eq!(reproducer(log), None);
    }

    #[test]
    fn log_of_a_crash_names_the_input() {
        let log = "#1 INITED\nthread '<unnamed>' panicked at a.rs:1:1:\nno\nartifact_prefix='a/'; Test unit written to a/crash-12\nBase64: AA==\n";
        assert!(failure(log).starts_with("thread '<unnamed>' panicked at a.rs:1:1:\nno\n"));
        assert_eq!(reproducer(log), Some("a/crash-12"));
    }

    #[test]
    fn targets_are_the_files_of_the_folder() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for name in ["b.rs", "a.rs", "notes.md"] {
            std::fs::write(folder.path().join(name), "").expect("written");
        }
        assert_eq!(target_names(folder.path()).expect("readable"), ["a", "b"]);
    }
}
