//! `cargo xtask coverage`: which lines the tests run. The compiler's own instrumentation, LLVM's tools to read it, and a table by
//! crate. The command line, the chores and test code itself are left out: they would only flatter or blur the figure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};

use crate::command;
use crate::repository::Repository;
use crate::tidy;
use crate::toolchain::{self, CoverageTools, Rustc};

/// Crates whose lines are not counted. Their tests run all the same, and what they reach in other crates counts.
const CRATES_LEFT_OUT: &[&str] = &["cli", "xtask"];
const SOURCE_BYTES_MAX: usize = 1 << 20;

/// Measure which lines the tests run.
///
/// Builds the workspace with coverage instrumentation in a target folder of its own, runs all tests, and prints a table by crate.
/// The crates cli and xtask, and test code, are not counted. Needs llvm-profdata and llvm-cov at least as new as rustc's LLVM: from
/// $LLVM_PROFDATA and $LLVM_COV, `rustup component add llvm-tools`, or the system (installed from Debian when run by root).
#[derive(Args)]
pub(crate) struct CoverageArgs {
    /// Print JSON on standard output instead of a table.
    #[arg(long)]
    json: bool,
    /// Show every file, too, least covered first.
    #[arg(long)]
    files: bool,
    /// Count what the same programs ran on other machines, too: a folder of their profiles, raw or merged. For code that this
    /// processor cannot run, or that needs a GPU: copy the test programs that --programs names, run them there with
    /// LLVM_PROFILE_FILE=FOLDER/%p-%m.profraw, and bring the folder back.
    #[arg(long, value_name = "FOLDER")]
    profiles: Option<PathBuf>,
    /// Build the instrumented test programs, print their paths, and run nothing.
    #[arg(long, conflicts_with_all = ["json", "files", "at_least", "profiles"])]
    programs: bool,
    /// Fail if the total is below this percentage.
    #[arg(long, value_name = "PERCENT")]
    at_least: Option<f64>,
}

/// Lines that could run and lines that did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Lines {
    total: usize,
    covered: usize,
}

impl Lines {
    fn add(&mut self, other: Lines) {
        self.total += other.total;
        self.covered += other.covered;
    }

    fn percent(self) -> f64 {
        if self.total == 0 { 100.0 } else { 100.0 * self.covered as f64 / self.total as f64 }
    }
}

pub(crate) fn run(args: &CoverageArgs) -> Result<()> {
    let repository = Repository::find()?;
    let tools = toolchain::coverage_tools()?;
    let build = Build { host: Rustc::ask()?.host, folder: repository.target_folder()?.join("coverage"), repository };
    let programs = build.test_programs()?;
    if args.programs {
        programs.iter().for_each(|program| println!("{}", program.display()));
        return Ok(());
    }
    let mut profiles = args.profiles.as_deref().map(profiles_in).transpose()?.unwrap_or_default();
    let tested = build.run_tests(args.json);
    profiles.extend(profiles_in(&build.profiles())?);
    let lcov = build.export(&tools, &programs, &profiles)?;
    let files = count_lines(&build.repository, &lcov)?;
    let total = if args.json { print_json(&files) } else { print_table(&files, args.files) };
    tested.context("the figures lack what the failed tests would have run")?;
    match args.at_least {
        Some(percent) if total.percent() < percent => bail!("{:.2}% of lines are covered, at least {percent}% asked for", total.percent()),
        _ => Ok(()),
    }
}

/// The instrumented build.
struct Build {
    repository: Repository,
    host: String,
    folder: PathBuf,
}

impl Build {
    fn cargo_test(&self) -> Command {
        let mut cargo = command::cargo();
        // Without --target, build scripts and macros would be instrumented, too. --tests leaves out doc tests, which are not.
        cargo.args(["test", "--locked", "--workspace", "--tests", "--target", &self.host, "--target-dir"]).arg(&self.folder);
        cargo.env("RUSTFLAGS", "-Cinstrument-coverage").env_remove("CARGO_ENCODED_RUSTFLAGS");
        cargo.env("LLVM_PROFILE_FILE", self.profiles().join("%p-%m.profraw")).current_dir(&self.repository.root);
        cargo
    }

    fn profiles(&self) -> PathBuf {
        self.folder.join("profiles")
    }

    /// Builds every test and says where the programs are.
    fn test_programs(&self) -> Result<Vec<PathBuf>> {
        let messages =
            command::output_text(self.cargo_test().args(["--no-run", "--message-format", "json"]).stderr(std::process::Stdio::inherit()))?;
        let mut programs = Vec::new();
        for line in messages.lines() {
            let message: Value = serde_json::from_str(line).context("cargo printed something other than JSON")?;
            programs.extend(message["executable"].as_str().map(PathBuf::from));
        }
        if programs.is_empty() {
            bail!("no test programs were built");
        }
        Ok(programs)
    }

    fn run_tests(&self, quiet: bool) -> Result<()> {
        if self.profiles().exists() {
            std::fs::remove_dir_all(self.profiles()).with_context(|| self.profiles().display().to_string())?;
        }
        let mut cargo = self.cargo_test();
        cargo.arg("--no-fail-fast");
        if quiet { command::output(&mut cargo).map(drop) } else { command::run(cargo.arg("--quiet")) }
    }

    /// Merges the profiles and exports line counts in the lcov format.
    fn export(&self, tools: &CoverageTools, programs: &[PathBuf], profiles: &[PathBuf]) -> Result<String> {
        let merged = self.folder.join("merged.profdata");
        command::output(Command::new(&tools.profdata).args(["merge", "--sparse", "-o"]).arg(&merged).args(profiles))?;
        let mut cov = Command::new(&tools.cov);
        cov.args(["export", "--format=lcov", "--skip-functions"]).arg(format!("--instr-profile={}", merged.display()));
        for program in programs {
            cov.arg("--object").arg(program);
        }
        command::output_text(&mut cov)
    }
}

/// The profiles in a folder; one without any is an error, since it would change nothing in silence.
fn profiles_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut profiles = Vec::new();
    for entry in folder.read_dir().with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "profraw" || extension == "profdata") {
            profiles.push(path);
        }
    }
    if profiles.is_empty() {
        bail!("no profiles (*.profraw, *.profdata) in {}", folder.display());
    }
    Ok(profiles)
}

/// Counts by file, paths from the repository root: only counted crates, no test code.
fn count_lines(repository: &Repository, lcov: &str) -> Result<BTreeMap<String, Lines>> {
    let mut files = BTreeMap::new();
    for (path, hits) in parse_lcov(lcov) {
        let Some(path) = counted_path(&repository.root, &path) else { continue };
        let text = repository.read_text(&path, SOURCE_BYTES_MAX)?.with_context(|| format!("{path} is not readable"))?;
        let test_lines = tidy::test_lines(&path, text)?;
        let mut lines = Lines::default();
        for (line, n_runs) in hits {
            if !test_lines.iter().any(|range| range.contains(&line)) {
                lines.add(Lines { total: 1, covered: usize::from(n_runs > 0) });
            }
        }
        if lines.total > 0 {
            files.insert(path, lines);
        }
    }
    Ok(files)
}

/// The path from the root, if it is a source file of a counted crate.
fn counted_path(root: &Path, path: &str) -> Option<String> {
    let path = Path::new(path).strip_prefix(root).ok()?.to_string_lossy().replace('\\', "/");
    let (name, rest) = path.strip_prefix("crates/")?.split_once('/')?;
    let is_counted = rest.starts_with("src/") && !CRATES_LEFT_OUT.contains(&name);
    is_counted.then_some(path)
}

/// `(file, [(line, times run)])` of an lcov export.
fn parse_lcov(lcov: &str) -> Vec<(String, Vec<(usize, u64)>)> {
    let mut files: Vec<(String, Vec<(usize, u64)>)> = Vec::new();
    for line in lcov.lines() {
        if let Some(path) = line.strip_prefix("SF:") {
            files.push((path.to_string(), Vec::new()));
        }
        let counts = line.strip_prefix("DA:").and_then(|counts| counts.split_once(','));
        if let (Some((line, n_runs)), Some((_, hits))) = (counts, files.last_mut()) {
            hits.extend(line.parse().ok().zip(n_runs.parse().ok()));
        }
    }
    files
}

fn by_crate(files: &BTreeMap<String, Lines>) -> (BTreeMap<&str, Lines>, Lines) {
    let mut crates: BTreeMap<&str, Lines> = BTreeMap::new();
    let mut total = Lines::default();
    for (path, lines) in files {
        crates.entry(path.split('/').nth(1).unwrap_or(path)).or_default().add(*lines);
        total.add(*lines);
    }
    (crates, total)
}

fn print_table(files: &BTreeMap<String, Lines>, with_files: bool) -> Lines {
    let row = |name: &str, lines: Lines| println!("{name:<60} {:>7} {:>7} {:>7.2}%", lines.total, lines.covered, lines.percent());
    let (crates, total) = by_crate(files);
    if with_files {
        let mut sorted: Vec<_> = files.iter().collect();
        sorted.sort_by(|a, b| a.1.percent().total_cmp(&b.1.percent()));
        for (path, lines) in sorted {
            row(path, *lines);
        }
        println!();
    }
    println!("{:<60} {:>7} {:>7} {:>8}", "crate", "lines", "run", "share");
    for (name, lines) in crates {
        row(name, lines);
    }
    row("total", total);
    total
}

fn print_json(files: &BTreeMap<String, Lines>) -> Lines {
    let (crates, total) = by_crate(files);
    let object = |lines: Lines| json!({ "lines": lines.total, "covered": lines.covered, "percent": lines.percent() });
    let crates: serde_json::Map<String, Value> = crates.into_iter().map(|(name, lines)| (name.to_string(), object(lines))).collect();
    let files: serde_json::Map<String, Value> = files.iter().map(|(path, lines)| (path.clone(), object(*lines))).collect();
    println!("{:#}", json!({ "total": object(total), "crates": crates, "files": files }));
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_profiles_is_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("notes.txt"), "").expect("written");
        let error = profiles_in(folder.path()).expect_err("no profile in it");
        assert!(error.to_string().contains(&folder.path().display().to_string()), "{error}");
        std::fs::write(folder.path().join("1-2.profraw"), "").expect("written");
        assert_eq!(profiles_in(folder.path()).expect("one"), [folder.path().join("1-2.profraw")]);
    }

    #[test]
    fn lcov_lines_are_counted_without_tests_and_left_out_crates() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path();
        let text = "fn a() {\n    b();\n}\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
        for name in ["ternary", "cli"] {
            std::fs::create_dir_all(root.join(format!("crates/{name}/src"))).expect("created");
            std::fs::write(root.join(format!("crates/{name}/src/a.rs")), text).expect("written");
        }
        let record = |name: &str| format!("SF:{}/crates/{name}/src/a.rs\nDA:1,4\nDA:2,0\nDA:6,9\nLF:3\nend_of_record\n", root.display());
        let lcov = format!("{}{}SF:/rustc/library/core.rs\nDA:1,1\nend_of_record\n", record("ternary"), record("cli"));
        let files = count_lines(&Repository { root: root.into() }, &lcov).expect("readable");
        let expected = Lines { total: 2, covered: 1 };
        assert_eq!(files, BTreeMap::from([("crates/ternary/src/a.rs".to_string(), expected)]));
        assert_eq!(by_crate(&files), (BTreeMap::from([("ternary", expected)]), expected));
        assert_eq!(expected.percent(), 50.0);
    }
}
