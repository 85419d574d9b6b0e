//! `cargo xtask tidy`: the house rules that a program can check, over every file that git tracks. One file a family of rules;
//! `rules` names them, `exceptions` excuses from them. It changes no file and judges no design.
//!
//! Idea: tigerbeetle/tigerbeetle:src/tidy.zig and rust-lang/rust:src/tools/tidy, style enforced as a test.

mod crates;
mod decisions;
mod exceptions;
mod names;
mod rules;
mod safety;
mod size;
mod source;
mod text;
mod words;

use anyhow::{Result, bail};
use clap::Args;

use crate::repository::Repository;
use rules::{Finding, RULES, Rule};
use source::SourceFile;

/// Larger tracked files are models and recordings, not prose or code.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// Check the house rules on every tracked file.
///
/// Reads what git tracks (a new file counts once it is added), prints one line for each broken rule as
/// `path:line: rule: what is wrong`, and fails if there is any. The rules are those of STYLE.md that a program can check.
#[derive(Args, Default)]
pub(crate) struct TidyArgs {
    /// Print every rule and what it says, and check nothing.
    #[arg(long)]
    rules: bool,
}

pub(crate) fn run(args: &TidyArgs) -> Result<()> {
    if args.rules {
        for (_, name, meaning) in RULES {
            println!("{name:20} {meaning}");
        }
        return Ok(());
    }
    let repository = Repository::find()?;
    let (n_files, findings) = check(&repository)?;
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} places break a house rule (`cargo xtask tidy --rules` explains them)", findings.len());
    }
    println!("tidy: {} rules hold in {n_files} files, {} exceptions", RULES.len(), exceptions::EXCEPTIONS.len());
    Ok(())
}

/// Every broken rule in the repository, sorted by place, and how many files were read.
fn check(repository: &Repository) -> Result<(usize, Vec<Finding>)> {
    let paths = repository.tracked_files()?;
    let mut findings = Vec::new();
    let mut sources = Vec::new();
    let mut decision_texts = String::new();
    for path in &paths {
        let Some(text) = repository.read_text(path, TEXT_BYTES_MAX)? else { continue };
        text::check(path, &text, &mut findings);
        if path.starts_with(decisions::FOLDER) {
            decision_texts.push_str(&text);
        }
        if path.ends_with(".rs") {
            match SourceFile::parse(path, text) {
                Ok(source) => sources.push(source),
                Err(error) => findings.push(Finding::new(path, 1, Rule::Syntax, format!("{error:#}"))),
            }
        }
    }
    source::mark_test_files(&mut sources);
    for source in &sources {
        size::check(source, &mut findings);
        words::check(source, &mut findings);
        names::check(source, &mut findings);
        safety::check(source, &mut findings);
    }
    safety::check_roots(&sources, &mut findings);
    decisions::check(&paths, &mut findings);
    crates::check(&crates::dependencies(&repository.metadata()?)?, &decision_texts, &mut findings);
    exceptions::apply(exceptions::EXCEPTIONS, &mut findings);
    findings.sort();
    findings.dedup();
    Ok((paths.len(), findings))
}

/// Line ranges of test code in one Rust file that is not itself a test file, for `coverage`.
pub(crate) fn test_lines(path: &str, text: String) -> Result<Vec<std::ops::RangeInclusive<usize>>> {
    Ok(SourceFile::parse(path, text)?.test_lines().to_vec())
}

/// What `check` finds in one file, for the tests of the rules.
#[cfg(test)]
fn broken_by(check: fn(&SourceFile, &mut Vec<Finding>), path: &str, text: &str) -> Vec<(Rule, usize)> {
    let source = SourceFile::parse(path, text.into()).expect("valid Rust");
    let mut findings = Vec::new();
    check(&source, &mut findings);
    findings.into_iter().map(|finding| (finding.rule, finding.line)).collect()
}
