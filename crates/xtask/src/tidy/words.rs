//! Words that mean unfinished or silenced code, `unwrap` outside tests, and sleeping tests. Code is read as tokens, so that a
//! word in a string is no finding and a word inside a macro call is one; comments are read as text.

use super::rules::{Finding, Rule};
use super::source::{SourceFile, Token, TokenKind};

/// Spelled in halves, so that this file does not find itself.
const COMMENT_WORDS: &[&str] = &[concat!("TO", "DO"), concat!("FIX", "ME")];
const MACROS: &[&str] = &["todo", "unimplemented", "dbg"];

pub(super) fn check(source: &SourceFile, findings: &mut Vec<Finding>) {
    let mut push = |line: usize, rule: Rule, message: String| findings.push(Finding::new(&source.path, line, rule, message));
    for (index, line) in source.text.lines().enumerate() {
        let words = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        for word in words.filter(|word| COMMENT_WORDS.contains(word)) {
            push(index + 1, Rule::BannedWord, format!("{word}: finish it, or write an issue"));
        }
    }
    for (index, token) in source.tokens.iter().enumerate() {
        let rest = &source.tokens[index..];
        if let Some(message) = banned_here(rest) {
            push(token.line, Rule::BannedWord, message);
        }
        if is_unwrap_call(rest) && !source.is_test_line(token.line) {
            push(token.line, Rule::Unwrap, "return an error, or .expect() with the proof that it cannot fail".into());
        }
        if token.is_ident("sleep") && source.is_test_line(token.line) {
            push(token.line, Rule::SleepInTest, "wait for an event, or pass the time in".into());
        }
    }
}

/// What is wrong with the code that starts at the first of these tokens.
fn banned_here(tokens: &[Token]) -> Option<String> {
    match tokens {
        [Token { kind: TokenKind::Ident(name), .. }, bang, open, ..]
            if MACROS.contains(&name.as_str()) && bang.is_punct('!') && matches!(open.kind, TokenKind::Open(_)) =>
        {
            Some(format!("{name}! is left behind"))
        }
        [hash, open, name, ..] if hash.is_punct('#') && open.is_open('[') && name.is_ident("ignore") => {
            Some("an ignored test proves nothing: mend it or remove it".into())
        }
        [level, open, lints @ ..] if (level.is_ident("allow") || level.is_ident("expect")) && open.is_open('(') => {
            let mut lints = lints.iter().take_while(|token| !token.is_close(')'));
            lints.any(|token| token.is_ident("dead_code")).then(|| "dead code is removed, not allowed".into())
        }
        _ => None,
    }
}

fn is_unwrap_call(tokens: &[Token]) -> bool {
    matches!(tokens, [dot, name, open, close, ..]
        if dot.is_punct('.') && name.is_ident("unwrap") && open.is_open('(') && close.is_close(')'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<(Rule, usize)> {
        crate::tidy::broken_by(check, path, text)
    }

    #[test]
    fn macro_left_behind_is_caught() {
        for name in MACROS {
            let text = format!("fn a() {{\n    {name}!();\n}}\n");
            assert_eq!(broken("a.rs", &text), [(Rule::BannedWord, 2)], "{name}");
            let inside = format!("fn a() {{\n    vec![{name}!(1)];\n}}\n");
            assert_eq!(broken("a.rs", &inside), [(Rule::BannedWord, 2)], "{name} inside a macro call");
        }
        assert_eq!(broken("a.rs", "fn a() { b(\"dbg!(1)\"); todo(); }\n"), [], "strings and other names are no findings");
    }

    #[test]
    fn comment_word_is_caught() {
        for word in COMMENT_WORDS {
            assert_eq!(broken("a.rs", &format!("// {word}: later\nfn a() {{}}\n")), [(Rule::BannedWord, 1)]);
        }
        assert_eq!(broken("a.rs", "// a mastodon\n"), []);
    }

    #[test]
    fn ignored_test_is_caught() {
        assert_eq!(broken("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn a() {}\n"), [(Rule::BannedWord, 2)]);
    }

    #[test]
    fn allowed_dead_code_is_caught() {
        assert_eq!(broken("a.rs", "#[allow(unused, dead_code)]\nfn a() {}\n"), [(Rule::BannedWord, 1)]);
        assert_eq!(broken("a.rs", "#![expect(dead_code)]\n"), [(Rule::BannedWord, 1)]);
        assert_eq!(broken("a.rs", "#[allow(unused)]\nfn a() {}\n#[warn(dead_code)]\nfn b() {}"), []);
    }

    #[test]
    fn unwrap_outside_tests_is_caught() {
        let text = "fn a() {\n    b().unwrap();\n}\n";
        assert_eq!(broken("a.rs", text), [(Rule::Unwrap, 2)]);
        assert_eq!(broken("crates/x/tests/it/a.rs", text), []);
        assert_eq!(broken("a.rs", "#[cfg(test)]\nmod tests {\n    fn a() { b().unwrap() }\n}\n"), []);
        assert_eq!(broken("a.rs", "fn a() { b().unwrap_or(1); }\n"), []);
    }

    #[test]
    fn sleeping_test_is_caught() {
        let text = "fn a() {\n    std::thread::sleep(b);\n}\n";
        assert_eq!(broken("crates/x/tests/it/a.rs", text), [(Rule::SleepInTest, 2)]);
        assert_eq!(broken("a.rs", &format!("#[test]\n{text}")), [(Rule::SleepInTest, 3)]);
        assert_eq!(broken("a.rs", text), []);
    }
}
