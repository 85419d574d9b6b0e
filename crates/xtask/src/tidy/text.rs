//! Rules on every tracked text file, Rust or not: no build for the building machine's own CPU, no path of a developer's machine.
//! Documents and comments may name the banned flag, since they say that it is banned.

use super::rules::{Finding, Rule};

/// In halves, so that this file does not find itself.
const NATIVE_CPU: &str = concat!("target-cpu=", "native");
/// First folders of paths that exist on one machine only.
const MACHINE_FOLDERS: &[&str] = &["home", "Users", "root", "work", "workspace", "mnt"];

pub(super) fn check(path: &str, text: &str, findings: &mut Vec<Finding>) {
    for (index, line) in text.lines().enumerate() {
        let is_prose = path.ends_with(".md") || line.trim_start().starts_with("//");
        if line.contains(NATIVE_CPU) && !is_prose {
            findings.push(Finding::new(path, index + 1, Rule::NativeCpu, "features are detected at run time"));
        }
        if let Some(folder) = MACHINE_FOLDERS.iter().find(|folder| names_folder(line, folder)) {
            let message = format!("a path below `{folder}` exists on one machine only");
            findings.push(Finding::new(path, index + 1, Rule::MachinePath, message));
        }
    }
}

/// Whether the line holds `/folder/` at the start of a path: not after a character that a longer path or URL would have there.
fn names_folder(line: &str, folder: &str) -> bool {
    let needle = format!("/{folder}/");
    line.match_indices(&needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && !matches!(c, '.' | '_' | '-' | '}' | '~' | '*' | ')' | '>'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<(Rule, usize)> {
        let mut findings = Vec::new();
        check(path, text, &mut findings);
        findings.into_iter().map(|finding| (finding.rule, finding.line)).collect()
    }

    #[test]
    fn build_for_the_native_cpu_is_caught() {
        let text = format!("[build]\nrustflags = [\"-C{NATIVE_CPU}\"]\n");
        assert_eq!(broken(".cargo/config.toml", &text), [(Rule::NativeCpu, 2)]);
        assert_eq!(broken("STYLE.md", &text), []);
        assert_eq!(broken("a.rs", &format!("//! {NATIVE_CPU} is banned\n")), []);
    }

    #[test]
    fn path_of_one_machine_is_caught() {
        for folder in MACHINE_FOLDERS {
            let text = format!("const MODEL: &str = \"/{folder}/models/a\";\n");
            assert_eq!(broken("crates/x/src/a.rs", &text), [(Rule::MachinePath, 1)], "{folder}");
            assert_eq!(broken("README.md", &text), [(Rule::MachinePath, 1)], "{folder} in a document");
            let longer = format!("https://example.org/{folder}/a $HOME/{folder}/a ./{folder}/a\n");
            assert_eq!(broken("README.md", &longer), [], "{folder} inside a longer path");
        }
    }
}
