//! `docs/decisions/NNNN-name.md`: numbered from 0001 without gap or repetition, so that "decision 12" names one page for ever.
//! What a decision says is for its readers to judge.

use super::rules::{Finding, Rule};

pub(super) const FOLDER: &str = "docs/decisions/";

/// `paths` are the tracked files of the repository, in any order.
pub(super) fn check(paths: &[String], findings: &mut Vec<Finding>) {
    let mut numbered: Vec<(usize, &String)> = Vec::new();
    for path in paths.iter().filter(|path| path.starts_with(FOLDER)) {
        match number(&path[FOLDER.len()..]) {
            Some(number) => numbered.push((number, path)),
            None => findings.push(Finding::new(path, 1, Rule::DecisionNumber, "name it NNNN-lower-case-words.md")),
        }
    }
    numbered.sort();
    let mut expected = 1;
    for (number, path) in numbered {
        if number != expected {
            let message = format!("its number should be {expected:04}: numbers neither repeat nor leave gaps");
            findings.push(Finding::new(path, 1, Rule::DecisionNumber, message));
        }
        expected = number.max(expected - 1) + 1;
    }
}

fn number(file_name: &str) -> Option<usize> {
    let (digits, rest) = file_name.split_at_checked(4)?;
    let words = rest.strip_prefix('-')?.strip_suffix(".md")?;
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_number = digits.chars().all(|c| c.is_ascii_digit());
    if is_number && !words.is_empty() && words.chars().all(is_name) { digits.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(names: &[&str]) -> Vec<String> {
        let paths: Vec<String> = names.iter().map(|name| format!("{FOLDER}{name}")).collect();
        let mut findings = Vec::new();
        check(&paths, &mut findings);
        findings.into_iter().map(|finding| finding.path[FOLDER.len()..].to_string()).collect()
    }

    #[test]
    fn decision_without_number_is_caught() {
        assert_eq!(broken(&["0001-first.md", "0002-second.md"]), [""; 0]);
        assert_eq!(broken(&["0001-first.md", "second.md", "2-third.md"]), ["second.md", "2-third.md"]);
        assert_eq!(broken(&["0001-First.md", "0001.md", "0001-.md"]).len(), 3);
    }

    #[test]
    fn repeated_and_skipped_numbers_are_caught() {
        assert_eq!(broken(&["0001-a.md", "0002-b.md", "0002-c.md", "0003-d.md"]), ["0002-c.md"]);
        assert_eq!(broken(&["0001-a.md", "0003-b.md", "0004-c.md"]), ["0003-b.md"]);
    }
}
