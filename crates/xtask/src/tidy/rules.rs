//! The names of the house rules that tidy checks, what each one says, and what a broken one looks like. No checking happens here.

use std::fmt;

/// A house rule that a program can check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rule {
    Syntax,
    FileLength,
    FunctionLength,
    Parameters,
    Nesting,
    FileDoc,
    BannedWord,
    Unwrap,
    SleepInTest,
    ModuleName,
    TypeName,
    TestName,
    TestBinary,
    ErrorMessage,
    UnsafeRoom,
    SafetyComment,
    ForbidUnsafe,
    NativeCpu,
    MachinePath,
    CrateArrow,
    AnyhowRoom,
    DecisionNumber,
    DependencyDecision,
    StaleException,
}

/// Every rule, its name on the command line and in the exceptions table, and what it says.
pub(crate) const RULES: &[(Rule, &str, &str)] = &[
    (Rule::Syntax, "syntax", "a Rust file parses"),
    (Rule::FileLength, "file-length", "a Rust file has at most 600 lines"),
    (Rule::FunctionLength, "function-length", "a function body has at most 70 lines between its braces; test code is exempt"),
    (Rule::Parameters, "parameters", "a function has at most 5 parameters, self not counted"),
    (Rule::Nesting, "nesting", "if, match, for, while and loop nest at most 3 deep in a function body; `else if` and closures add nothing"),
    (Rule::FileDoc, "file-doc", "a Rust file opens with a //! paragraph: what it is for, what it does not do, where the idea comes from"),
    (
        Rule::BannedWord,
        "banned-word",
        "no unfinished or silenced code: the to-do macros and comments, debug prints, ignored tests, allowed dead code",
    ),
    (Rule::Unwrap, "unwrap", "no .unwrap() outside tests; .expect() states the proof that it cannot fail"),
    (Rule::SleepInTest, "sleep-in-test", "a test never sleeps: time is passed in"),
    (
        Rule::ModuleName,
        "module-name",
        "no module or crate named common, utils, helpers, prelude, traits; none named core or types at the root of a crate",
    ),
    (Rule::TypeName, "type-name", "no type name ends in Manager, Helper, Util, Impl, Base or V2"),
    (Rule::TestName, "test-name", "a test is named subject_condition_expectation: at least three words"),
    (Rule::TestBinary, "test-binary", "integration tests of a crate are one binary, tests/it/"),
    (Rule::ErrorMessage, "error-message", "an error message starts in lower case (or with an acronym) and has no full stop"),
    (Rule::UnsafeRoom, "unsafe-room", "unsafe code lives only in the rooms that STYLE.md names"),
    (Rule::SafetyComment, "safety-comment", "every unsafe block and unsafe impl has a // SAFETY: comment directly above"),
    (Rule::ForbidUnsafe, "forbid-unsafe", "the root of a crate without an unsafe room says #![forbid(unsafe_code)]"),
    (Rule::NativeCpu, "native-cpu", "no build for the CPU of the building machine: a shipped binary must be fast everywhere"),
    (Rule::MachinePath, "machine-path", "no absolute path of a developer's machine in a tracked file"),
    (
        Rule::CrateArrow,
        "crate-arrow",
        "a crate depends only on crates to its left: ternary, checkpoint, model, devices, engine, server, platform, cli",
    ),
    (Rule::AnyhowRoom, "anyhow-room", "anyhow only in cli, xtask and tests; a library has typed errors"),
    (Rule::DecisionNumber, "decision-number", "files in docs/decisions are NNNN-name.md, numbered from 0001 without gap or repetition"),
    (Rule::DependencyDecision, "dependency-decision", "every external dependency is named, in backticks, in docs/decisions"),
    (Rule::StaleException, "stale-exception", "an exception that excuses nothing is removed"),
];

impl Rule {
    fn name(self) -> &'static str {
        RULES.iter().find(|(rule, ..)| *rule == self).map_or("unnamed", |(_, name, _)| name)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A place where a rule is broken.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) rule: Rule,
    pub(crate) message: String,
}

impl Finding {
    pub(crate) fn new(path: &str, line: usize, rule: Rule, message: impl Into<String>) -> Self {
        Self { path: path.into(), line, rule, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_all_named_once() {
        let mut names: Vec<&str> = RULES.iter().map(|(_, name, _)| *name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Rule::StaleException as usize + 1);
        assert!(RULES.iter().all(|(rule, name, _)| rule.to_string() == *name));
    }
}
