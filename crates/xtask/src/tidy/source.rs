//! One tracked Rust file as tidy sees it: its text, its syntax tree, its tokens with line numbers, and which lines are test code.
//! It knows no rule. Tokens are kept beside the tree because a rule must also see inside macro calls, which a tree leaves unparsed.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// A token and the line it starts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) line: usize,
}

/// What a token is; literals are kept only as places, since no rule reads their contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TokenKind {
    Ident(String),
    Punct(char),
    Open(char),
    Close(char),
    Literal,
}

impl Token {
    pub(crate) fn is_ident(&self, name: &str) -> bool {
        matches!(&self.kind, TokenKind::Ident(ident) if ident == name)
    }

    pub(crate) fn is_punct(&self, punct: char) -> bool {
        self.kind == TokenKind::Punct(punct)
    }

    pub(crate) fn is_open(&self, bracket: char) -> bool {
        self.kind == TokenKind::Open(bracket)
    }

    pub(crate) fn is_close(&self, bracket: char) -> bool {
        self.kind == TokenKind::Close(bracket)
    }
}

/// A Rust file, parsed.
pub(crate) struct SourceFile {
    /// Path from the repository root, with forward slashes.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
    pub(crate) tokens: Vec<Token>,
    /// Modules that this file declares for tests only, as `#[cfg(test)] mod name;`.
    pub(crate) test_modules: Vec<String>,
    test_lines: Vec<RangeInclusive<usize>>,
    is_test_file: bool,
}

impl SourceFile {
    pub(crate) fn parse(path: &str, text: String) -> Result<Self> {
        let stream: TokenStream = text.parse().map_err(|error| anyhow!("{path}: not Rust: {error}"))?;
        let syntax = syn::parse_file(&text).with_context(|| format!("{path}: not Rust"))?;
        let mut marks = TestMarks::default();
        marks.scan(stream.clone());
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let is_test_file = path.split('/').any(|part| part == "tests" || part == "fuzz" || part == "benches");
        Ok(Self { path: path.into(), text, syntax, tokens, test_modules: marks.modules, test_lines: marks.lines, is_test_file })
    }

    /// Whether the line belongs to test code: a `tests/`, `benches/` or `fuzz/` file, a `#[cfg(test)]` item or a `#[test]` function.
    pub(crate) fn is_test_line(&self, line: usize) -> bool {
        self.is_test_file || self.test_lines.iter().any(|lines| lines.contains(&line))
    }

    pub(crate) fn mark_as_test(&mut self) {
        self.is_test_file = true;
    }

    /// Line ranges of the test code in a file that is not a test file.
    pub(crate) fn test_lines(&self) -> &[RangeInclusive<usize>] {
        &self.test_lines
    }
}

/// Marks the files that other files declare as `#[cfg(test)] mod name;`, and everything below them.
pub(crate) fn mark_test_files(sources: &mut [SourceFile]) {
    let mut roots = Vec::new();
    for source in sources.iter() {
        let folder = module_folder(&source.path);
        roots.extend(source.test_modules.iter().map(|name| format!("{folder}/{name}")));
    }
    for source in sources {
        let below = |root: &String| source.path == format!("{root}.rs") || source.path.starts_with(&format!("{root}/"));
        if roots.iter().any(below) {
            source.mark_as_test();
        }
    }
}

/// Where the child modules of a file lie.
fn module_folder(path: &str) -> String {
    let (folder, file) = path.rsplit_once('/').unwrap_or((".", path));
    match file {
        "lib.rs" | "main.rs" | "mod.rs" => folder.to_string(),
        _ => format!("{folder}/{}", file.trim_end_matches(".rs")),
    }
}

fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    for tree in stream {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Ident(ident) => tokens.push(Token { kind: TokenKind::Ident(ident.to_string()), line }),
            TokenTree::Punct(punct) => tokens.push(Token { kind: TokenKind::Punct(punct.as_char()), line }),
            TokenTree::Literal(_) => tokens.push(Token { kind: TokenKind::Literal, line }),
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ('(', ')'),
                    Delimiter::Brace => ('{', '}'),
                    Delimiter::Bracket => ('[', ']'),
                    Delimiter::None => (' ', ' '),
                };
                tokens.push(Token { kind: TokenKind::Open(open), line });
                let close_line = group.span_close().start().line;
                flatten(group.stream(), tokens);
                tokens.push(Token { kind: TokenKind::Close(close), line: close_line });
            }
        }
    }
}

/// Items under `#[cfg(test)]` or `#[test]`, found by walking token trees.
#[derive(Default)]
struct TestMarks {
    lines: Vec<RangeInclusive<usize>>,
    modules: Vec<String>,
}

impl TestMarks {
    fn scan(&mut self, stream: TokenStream) {
        let trees: Vec<TokenTree> = stream.into_iter().collect();
        for index in 0..trees.len() {
            match &trees[index..] {
                [TokenTree::Punct(hash), TokenTree::Group(attribute), rest @ ..]
                    if hash.as_char() == '#' && is_test_attribute(attribute) =>
                {
                    self.mark(hash.span().start().line, rest);
                }
                [TokenTree::Group(group), ..] => self.scan(group.stream()),
                _ => {}
            }
        }
    }

    /// The item that follows a test attribute ends with its first brace group or semicolon.
    fn mark(&mut self, first_line: usize, item: &[TokenTree]) {
        for (index, tree) in item.iter().enumerate() {
            let last_line = match tree {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => group.span_close().end().line,
                TokenTree::Punct(punct) if punct.as_char() == ';' => {
                    self.modules.extend(declared_module(&item[..index]));
                    punct.span().start().line
                }
                _ => continue,
            };
            self.lines.push(first_line..=last_line);
            return;
        }
    }
}

/// `name` when the trees end with `mod name`.
fn declared_module(trees: &[TokenTree]) -> Option<String> {
    match trees {
        [.., TokenTree::Ident(keyword), TokenTree::Ident(name)] if keyword == "mod" => Some(name.to_string()),
        _ => None,
    }
}

/// `#[test]`, `#[cfg(test)]`, `#[cfg(all(test, …))]`; not `#[cfg(not(test))]`.
fn is_test_attribute(attribute: &Group) -> bool {
    if attribute.delimiter() != Delimiter::Bracket {
        return false;
    }
    let trees: Vec<TokenTree> = attribute.stream().into_iter().collect();
    match trees.as_slice() {
        [TokenTree::Ident(only)] => only == "test",
        [TokenTree::Ident(cfg), TokenTree::Group(predicate)] if cfg == "cfg" => requires_test(predicate.stream()),
        _ => false,
    }
}

fn requires_test(predicate: TokenStream) -> bool {
    let trees: Vec<TokenTree> = predicate.into_iter().collect();
    trees.iter().enumerate().any(|(index, tree)| match (tree, trees.get(index + 1)) {
        (TokenTree::Ident(name), Some(TokenTree::Group(inner))) => name == "all" && requires_test(inner.stream()),
        (TokenTree::Ident(name), _) => name == "test",
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(path: &str, text: &str) -> SourceFile {
        SourceFile::parse(path, text.into()).expect("valid Rust")
    }

    #[test]
    fn test_lines_are_those_of_marked_items() {
        let source = parse(
            "crates/x/src/a.rs",
            "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(not(test))]\nfn c() {}\n#[cfg(all(test, unix))]\nfn d() {\n}\n",
        );
        let marked: Vec<usize> = (1..=10).filter(|&line| source.is_test_line(line)).collect();
        assert_eq!(marked, [2, 3, 4, 5, 8, 9, 10]);
    }

    #[test]
    fn test_module_in_another_file_is_test_code() {
        let mut sources = vec![
            parse("crates/x/src/kernels/mod.rs", "#[cfg(test)]\nmod cases;\nmod plain;\n"),
            parse("crates/x/src/kernels/cases.rs", "fn a() {}\n"),
            parse("crates/x/src/kernels/cases/deep.rs", "fn a() {}\n"),
            parse("crates/x/src/kernels/plain.rs", "fn a() {}\n"),
        ];
        mark_test_files(&mut sources);
        let marked: Vec<bool> = sources.iter().map(|source| source.is_test_line(1) && source.is_test_file).collect();
        assert_eq!(marked, [false, true, true, false]);
    }

    #[test]
    fn tokens_reach_inside_macro_calls() {
        let source = parse("a.rs", "fn a() {\n    vec![\n        inner(1)];\n}\n");
        let inner = source.tokens.iter().find(|token| token.is_ident("inner")).expect("kept");
        assert_eq!(inner.line, 3);
    }
}
