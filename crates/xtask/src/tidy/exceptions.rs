//! The one table of places that may break a house rule, each with its reason. An exception that excuses nothing is itself a
//! finding, so the table only ever holds what is true.

use super::rules::{Finding, Rule};

/// A file that may break a rule.
pub(super) struct Exception {
    pub(super) path: &'static str,
    pub(super) rule: Rule,
    pub(super) reason: &'static str,
}

const THIS_FILE: &str = "crates/xtask/src/tidy/exceptions.rs";

pub(super) const EXCEPTIONS: &[Exception] = &[
    Exception {
        path: "fuzz/src/allocation.rs",
        rule: Rule::UnsafeRoom,
        reason: "a counting allocator is unsafe by its trait; it is never part of the product",
    },
    Exception {
        path: "crates/device-cpu/tests/allocation/main.rs",
        rule: Rule::UnsafeRoom,
        reason: "a counting allocator is unsafe by its trait; it is never part of the product",
    },
    Exception {
        path: "crates/device-cpu/tests/allocation/main.rs",
        rule: Rule::TestBinary,
        reason: "it counts the allocations of every thread, so no other test may run beside it",
    },
];

/// Removes the excused findings and adds one for every exception that excused none.
pub(super) fn apply(exceptions: &[Exception], findings: &mut Vec<Finding>) {
    let excuses = |exception: &Exception, finding: &Finding| exception.path == finding.path && exception.rule == finding.rule;
    let stale: Vec<Finding> = exceptions
        .iter()
        .filter(|exception| exception.reason.is_empty() || !findings.iter().any(|finding| excuses(exception, finding)))
        .map(|exception| {
            let message = format!("{} no longer breaks {} (or no reason is given)", exception.path, exception.rule);
            Finding::new(THIS_FILE, 1, Rule::StaleException, message)
        })
        .collect();
    findings.retain(|finding| !exceptions.iter().any(|exception| excuses(exception, finding)));
    findings.extend(stale);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(exception: Exception) -> Vec<Rule> {
        let mut findings = vec![Finding::new("a.rs", 601, Rule::FileLength, "long"), Finding::new("b.rs", 601, Rule::FileLength, "long")];
        apply(&[exception], &mut findings);
        findings.into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn exception_excuses_its_file_and_rule_only() {
        assert_eq!(left(Exception { path: "a.rs", rule: Rule::FileLength, reason: "a table" }), [Rule::FileLength]);
    }

    #[test]
    fn stale_exception_is_caught() {
        let stale = left(Exception { path: "a.rs", rule: Rule::Nesting, reason: "once was deep" });
        assert_eq!(stale, [Rule::FileLength, Rule::FileLength, Rule::StaleException]);
        let unexplained = left(Exception { path: "a.rs", rule: Rule::FileLength, reason: "" });
        assert_eq!(unexplained, [Rule::FileLength, Rule::StaleException]);
    }
}
