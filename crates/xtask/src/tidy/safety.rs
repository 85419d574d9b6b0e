//! Where unsafe code may live, that each unsafe block says why it is sound, and that every other crate forbids it. Clippy's
//! `undocumented_unsafe_blocks` and `multiple_unsafe_ops_per_block` check the same code as it is compiled; this reads also what a
//! given platform does not compile, and files that are excused from the rooms.

use super::rules::{Finding, Rule};
use super::source::{SourceFile, Token};

/// Files (or folders, with a slash at the end) where unsafe code may live; docs/decisions/0004 says why each.
const ROOMS: &[&str] = &[
    "crates/device-cpu/src/arch/",
    "crates/device-cpu/src/pool.rs",
    "crates/checkpoint/src/mmap.rs",
    "crates/device-cuda/src/driver.rs",
    "crates/device-cuda/src/driver/",
];

pub(super) fn check(source: &SourceFile, findings: &mut Vec<Finding>) {
    let in_room = is_in_room(&source.path);
    for (index, token) in source.tokens.iter().enumerate().filter(|(_, token)| token.is_ident("unsafe")) {
        if !in_room {
            findings.push(Finding::new(&source.path, token.line, Rule::UnsafeRoom, "unsafe code outside its rooms"));
        }
        if needs_comment(&source.tokens[index + 1..]) && !has_safety_comment(&source.text, token.line) {
            let message = "say in a // SAFETY: comment directly above which check makes this sound";
            findings.push(Finding::new(&source.path, token.line, Rule::SafetyComment, message));
        }
    }
}

/// Roots of library and binary crates, where no room of the crate exists, forbid unsafe code.
pub(super) fn check_roots(sources: &[SourceFile], findings: &mut Vec<Finding>) {
    for source in sources {
        let Some(folder) = source.path.strip_suffix("/lib.rs").or_else(|| source.path.strip_suffix("/main.rs")) else { continue };
        let is_crate_root = folder.starts_with("crates/") && folder.ends_with("/src") && folder.matches('/').count() == 2;
        let has_room = sources.iter().any(|other| is_in_room(&other.path) && other.path.starts_with(&format!("{folder}/")));
        if is_crate_root && !has_room && !forbids_unsafe(&source.tokens) {
            findings.push(Finding::new(&source.path, 1, Rule::ForbidUnsafe, "add #![forbid(unsafe_code)]"));
        }
    }
}

fn is_in_room(path: &str) -> bool {
    ROOMS.iter().any(|room| if room.ends_with('/') { path.starts_with(room) } else { path == *room })
}

fn forbids_unsafe(tokens: &[Token]) -> bool {
    tokens.windows(3).any(|window| window[0].is_ident("forbid") && window[1].is_open('(') && window[2].is_ident("unsafe_code"))
}

/// Blocks and impls state their proof; an `unsafe fn` states its duty in its doc, which clippy checks.
fn needs_comment(after_keyword: &[Token]) -> bool {
    after_keyword.first().is_some_and(|token| token.is_open('{') || token.is_ident("impl"))
}

/// The comment stands on the line, or in the comment lines directly above the statement that the line belongs to.
fn has_safety_comment(text: &str, line: usize) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let is_comment = |line: &str| line.trim_start().starts_with("//");
    let is_safety = |line: &str| line.contains("// SAFETY:");
    if is_safety(lines[line - 1]) {
        return true;
    }
    let above = lines[..line - 1].iter().rev();
    let mut above = above.skip_while(|line| !is_comment(line) && continues_below(line)).peekable();
    let mut in_comment = std::iter::from_fn(|| above.next_if(|line| is_comment(line)));
    in_comment.any(|line| is_safety(line))
}

/// Whether a statement that starts on this line, or an attribute on it, goes on below.
fn continues_below(line: &str) -> bool {
    let code = line.split(" //").next().unwrap_or(line).trim();
    !code.is_empty() && (code.starts_with("#[") || !code.ends_with([';', '{', '}', ',']))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOM: &str = "crates/device-cpu/src/arch/x86_64/avx2.rs";

    fn parse(path: &str, text: &str) -> SourceFile {
        SourceFile::parse(path, text.into()).expect("valid Rust")
    }

    fn broken(path: &str, text: &str) -> Vec<(Rule, usize)> {
        crate::tidy::broken_by(check, path, text)
    }

    #[test]
    fn unsafe_outside_its_rooms_is_caught() {
        let block = "fn a() {\n    // SAFETY: proved.\n    unsafe { b() }\n}\n";
        assert_eq!(broken(ROOM, block), []);
        assert_eq!(broken("crates/device-cpu/src/pool.rs", block), []);
        assert_eq!(broken("crates/device-cpu/src/attention.rs", block), [(Rule::UnsafeRoom, 3)]);
        assert_eq!(broken("crates/model/src/lib.rs", "unsafe fn a() {}\n"), [(Rule::UnsafeRoom, 1)]);
        assert_eq!(broken("crates/model/src/lib.rs", "a! { unsafe fn b(); }\n"), [(Rule::UnsafeRoom, 1)], "inside a macro call");
        assert_eq!(broken("crates/model/src/lib.rs", "// unsafe\nfn a() { b(\"unsafe\") }\n"), []);
    }

    #[test]
    fn unsafe_block_without_its_comment_is_caught() {
        assert_eq!(broken(ROOM, "fn a() {\n    unsafe { b() }\n}\n"), [(Rule::SafetyComment, 2)]);
        assert_eq!(broken(ROOM, "unsafe impl Send for A {}\n"), [(Rule::SafetyComment, 1)]);
        let borrowed = "fn a() {\n    // SAFETY: proved.\n    unsafe { b() };\n    unsafe { c() }\n}\n";
        assert_eq!(broken(ROOM, borrowed), [(Rule::SafetyComment, 4)], "one comment covers one block");
        let distant = "fn a() {\n    // SAFETY: proved.\n\n    unsafe { c() }\n}\n";
        assert_eq!(broken(ROOM, distant), [(Rule::SafetyComment, 4)], "directly above means directly");
    }

    #[test]
    fn comment_above_a_long_statement_counts() {
        let long = "fn a() {\n    // SAFETY: the slice holds 32 bytes,\n    // see above.\n    let x =\n        unsafe { b() };\n}\n";
        assert_eq!(broken(ROOM, long), []);
        let attribute = "// SAFETY: no interior state.\n#[cfg(unix)]\nunsafe impl Send for A {}\n";
        assert_eq!(broken(ROOM, attribute), []);
    }

    #[test]
    fn crate_root_that_allows_unsafe_is_caught() {
        let broken = |texts: &[(&str, &str)]| {
            let sources: Vec<SourceFile> = texts.iter().map(|(path, text)| parse(path, text)).collect();
            let mut findings = Vec::new();
            check_roots(&sources, &mut findings);
            findings.into_iter().map(|finding| finding.path).collect::<Vec<_>>()
        };
        let root = "crates/model/src/lib.rs";
        assert_eq!(broken(&[(root, "//! A.\n")]), [root]);
        assert_eq!(broken(&[(root, "#![deny(unsafe_code)]\n")]), [root]);
        assert_eq!(broken(&[(root, "#![forbid(unsafe_code)]\n"), ("crates/model/src/bin/lib.rs", "")]), [""; 0]);
        assert_eq!(broken(&[("crates/device-cpu/src/lib.rs", ""), (ROOM, "")]), [""; 0]);
    }
}
