//! `cargo xtask test`: everything a change has to pass, in the order in which it fails fastest. Each stage is a command that can
//! also be run alone. It fetches what the stages need first, so that a fresh machine with Rust and a C compiler is enough.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::clients::{self, ClientsArgs};
use crate::command;
use crate::fuzz::{self, Effort, Fuzzer};
use crate::repository::Repository;
use crate::{nvrtc, tidy, toolchain};

/// Run everything that a change has to pass.
///
/// Format check, clippy with warnings denied, all tests, the CUDA kernels' compilation among them, tidy, journeys of real clients, and a short run of every fuzz target, whose seeds are tested first. Stops at the first stage
/// that fails and names it. The last line is `N passed, N failed`, summed over all tests.
#[derive(Args)]
pub(crate) struct TestArgs {
    /// Leave out a stage whose tools are neither there nor can be installed (fuzzing needs a C++ compiler, journeys Python, Node, Chromium and promtool, the platform PostgreSQL, CUDA kernels Python with pip), and say so.
    #[arg(long)]
    allow_missing: bool,
    /// Time for each fuzz target; 0 leaves fuzzing out.
    #[arg(long, default_value_t = 4)]
    fuzz_seconds: u32,
}

/// Tests that passed and failed, over all test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
}

struct Stages {
    counts: Counts,
    started: Instant,
    durations: Vec<(&'static str, f64)>,
}

pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let mut stages = Stages { counts: Counts::default(), started: Instant::now(), durations: Vec::new() };
    let result = stages.run_all(args);
    println!();
    for (stage, seconds) in &stages.durations {
        println!("{stage:10} {seconds:8.1} s");
    }
    println!("{:10} {:8.1} s", "total", stages.started.elapsed().as_secs_f64());
    if result.is_err() {
        // A stage without test counts that fails is a failure all the same.
        stages.counts.failed = stages.counts.failed.max(1);
    }
    println!("{} passed, {} failed", stages.counts.passed, stages.counts.failed);
    result
}

impl Stages {
    fn run_all(&mut self, args: &TestArgs) -> Result<()> {
        let repository = Repository::find()?;
        let cargo = |arguments: &[&str]| {
            let mut cargo = command::cargo();
            cargo.args(arguments).current_dir(&repository.root);
            cargo
        };
        let fuzzes = self.stage("tools", |_| find_tools(args))?;
        self.stage("format", |_| {
            command::run(&mut cargo(&["fmt", "--all", "--check"]))?;
            command::run(&mut cargo(&["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
        })?;
        self.stage("tidy", |_| tidy::run(&tidy::TidyArgs::default()))?;
        self.stage("clippy", |_| {
            command::run(&mut cargo(&["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]))
        })?;
        let compiler = self.stage("nvrtc", |_| find_compiler(&repository, args))?;
        self.stage("tests", |counts| {
            let mut tests = cargo(&["test", "--locked", "--workspace", "--no-fail-fast"]);
            if let Some(compiler) = &compiler {
                tests.env(nvrtc::VARIABLE, compiler);
            }
            if args.allow_missing {
                // Those of PostgreSQL say themselves that they are left out, where there is none.
                tests.env("BITNET_ALLOW_MISSING_POSTGRES", "1");
            }
            run_tests(&mut tests, counts)
        })?;
        self.stage("clients", |counts| {
            let clients = ClientsArgs { allow_missing: args.allow_missing, ..ClientsArgs::default() };
            clients::run(&clients, &mut |line| {
                println!("{line}");
                counts.add_result_line(line);
            })
        })?;
        if fuzzes {
            let effort = Effort { seconds: args.fuzz_seconds, runs: None, quiet: true };
            self.stage("fuzz tests", |counts| run_tests(&mut fuzz::library_tests(&repository)?, counts))?;
            self.stage("fuzz", |_| Fuzzer::build(None)?.run_all(&effort))?;
        }
        Ok(())
    }

    /// Runs one stage, remembers how long it took, and names it if it fails.
    fn stage<T>(&mut self, name: &'static str, work: impl FnOnce(&mut Counts) -> Result<T>) -> Result<T> {
        println!("\n── {name}");
        let started = Instant::now();
        let result = work(&mut self.counts);
        self.durations.push((name, started.elapsed().as_secs_f64()));
        result.map_err(|error| error.context(format!("stage `{name}` failed")))
    }
}

/// Finds or installs what the stages need; the result says whether fuzzing is possible and wanted.
fn find_tools(args: &TestArgs) -> Result<bool> {
    toolchain::ensure_component("fmt", "rustfmt")?;
    toolchain::ensure_component("clippy", "clippy")?;
    if toolchain::postgres().is_none() && !args.allow_missing {
        bail!("no PostgreSQL for the platform's tests: install postgresql, or leave them out with --allow-missing");
    }
    if args.fuzz_seconds == 0 {
        println!("fuzzing is left out, as asked");
        return Ok(false);
    }
    match toolchain::cxx_compiler() {
        Some(compiler) => {
            println!("rustfmt, clippy and {} are there", compiler.display());
            Ok(true)
        }
        None if args.allow_missing => {
            println!("fuzzing is left out: no C++ compiler to build libFuzzer with");
            Ok(false)
        }
        None => bail!("no C++ compiler to build libFuzzer with: install g++ or clang++, or leave fuzzing out with --allow-missing"),
    }
}

/// NVIDIA's run-time compiler, with which the tests compile the CUDA kernels for every architecture; without it they leave that out.
fn find_compiler(repository: &Repository, args: &TestArgs) -> Result<Option<PathBuf>> {
    // It is made for x86-64 Linux; elsewhere a toolkit may have one, which the tests find themselves.
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Ok(None);
    }
    match nvrtc::library(repository) {
        Ok(library) => Ok(Some(library)),
        Err(error) if args.allow_missing => {
            println!("the CUDA kernels are not compiled: {error:#}");
            Ok(None)
        }
        Err(error) => {
            Err(error.context("no compiler for the CUDA kernels: python3 with pip fetches it, or leave them out with --allow-missing"))
        }
    }
}

/// Runs tests, shows what they print, and adds up their results.
fn run_tests(tests: &mut Command, counts: &mut Counts) -> Result<()> {
    let succeeded = command::run_lines(tests, |line| {
        println!("{line}");
        counts.add_result_line(line);
    })?;
    if !succeeded {
        bail!("`{}` failed", command::shown(tests));
    }
    Ok(())
}

impl Counts {
    /// Adds what a line like `test result: ok. 5 passed; 0 failed; 0 ignored; …` says; other lines say nothing.
    fn add_result_line(&mut self, line: &str) {
        let Some(rest) = line.strip_prefix("test result: ") else { return };
        let Some((_, counts)) = rest.split_once(". ") else { return };
        for part in counts.split("; ") {
            match part.split_once(' ') {
                Some((n, "passed")) => self.passed += n.parse::<u64>().unwrap_or(0),
                Some((n, "failed")) => self.failed += n.parse::<u64>().unwrap_or(0),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_of_all_binaries_are_summed() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "test result: FAILED. 40 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s",
        ] {
            counts.add_result_line(line);
        }
        assert_eq!(counts, Counts { passed: 43, failed: 2 });
    }

    #[test]
    fn failing_stage_is_named_and_timed() {
        let mut stages = Stages { counts: Counts::default(), started: Instant::now(), durations: Vec::new() };
        let error = stages.stage("tests", |_| -> Result<()> { bail!("no") }).expect_err("it fails");
        assert_eq!(format!("{error:#}"), "stage `tests` failed: no");
        assert_eq!(stages.durations.len(), 1);
    }
}
