//! Size rules: file length, function length, parameters, nesting, and the `//!` paragraph at the top.
//!
//! Nesting counts control flow inside one function body: each `if`, `match`, `for`, `while` and `loop` adds one level to what
//! stands inside it. An `else` stands at the level of its `if` (so an `else if` chain is one level); closures, plain and unsafe
//! blocks, and `let … else` add nothing; a function inside a function starts again at zero. Code inside a macro call is not
//! parsed and so not counted.

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Block, Expr, FnArg, Signature};

use super::rules::{Finding, Rule};
use super::source::SourceFile;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const PARAMETERS_MAX: usize = 5;
const NESTING_MAX: usize = 3;
/// Shorter than this, an opening paragraph says nothing.
const FILE_DOC_CHARS_MIN: usize = 30;

pub(super) fn check(source: &SourceFile, findings: &mut Vec<Finding>) {
    let n_lines = source.text.lines().count();
    if n_lines > FILE_LINES_MAX {
        findings.push(Finding::new(&source.path, n_lines, Rule::FileLength, format!("{n_lines} lines, at most {FILE_LINES_MAX}")));
    }
    let doc_chars: usize = source.text.lines().map_while(|line| line.strip_prefix("//!")).map(|line| line.trim().len()).sum();
    if doc_chars < FILE_DOC_CHARS_MIN {
        let message = format!("opens with {doc_chars} characters of //! text, at least {FILE_DOC_CHARS_MIN}");
        findings.push(Finding::new(&source.path, 1, Rule::FileDoc, message));
    }
    Functions { source, findings }.visit_file(&source.syntax);
}

/// Visits every function with a body, wherever it stands.
struct Functions<'a> {
    source: &'a SourceFile,
    findings: &'a mut Vec<Finding>,
}

impl Functions<'_> {
    fn check_parameters(&mut self, signature: &Signature) {
        let n_parameters = signature.inputs.iter().filter(|input| matches!(input, FnArg::Typed(_))).count();
        if n_parameters > PARAMETERS_MAX {
            let message = format!("`{}` has {n_parameters} parameters, at most {PARAMETERS_MAX}", signature.ident);
            self.push(signature.ident.span().start().line, Rule::Parameters, message);
        }
    }

    fn check_body(&mut self, signature: &Signature, body: &Block) {
        let line = signature.ident.span().start().line;
        let braces = body.brace_token.span;
        let n_lines = (braces.close().start().line - braces.open().start().line).saturating_sub(1);
        if n_lines > FUNCTION_LINES_MAX && !self.source.is_test_line(line) {
            let message = format!("`{}` has a body of {n_lines} lines, at most {FUNCTION_LINES_MAX}", signature.ident);
            self.push(line, Rule::FunctionLength, message);
        }
        let mut nesting = Nesting { depth: 0, deepest: 0, deepest_line: line };
        nesting.visit_block(body);
        if nesting.deepest > NESTING_MAX {
            let message = format!("`{}` nests {} deep, at most {NESTING_MAX}", signature.ident, nesting.deepest);
            self.push(nesting.deepest_line, Rule::Nesting, message);
        }
    }

    fn push(&mut self, line: usize, rule: Rule, message: String) {
        self.findings.push(Finding::new(&self.source.path, line, rule, message));
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.check_body(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.check_body(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(body) = &function.default {
            self.check_body(&function.sig, body);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_signature(&mut self, signature: &'ast Signature) {
        self.check_parameters(signature);
        visit::visit_signature(self, signature);
    }
}

/// Depth of control flow in one body.
struct Nesting {
    depth: usize,
    deepest: usize,
    deepest_line: usize,
}

impl Nesting {
    fn inside(&mut self, line: usize, walk: impl FnOnce(&mut Self)) {
        self.depth += 1;
        if self.depth > self.deepest {
            (self.deepest, self.deepest_line) = (self.depth, line);
        }
        walk(self);
        self.depth -= 1;
    }
}

impl<'ast> Visit<'ast> for Nesting {
    fn visit_item(&mut self, _: &'ast syn::Item) {}

    fn visit_expr(&mut self, expr: &'ast Expr) {
        let line = expr.span().start().line;
        match expr {
            Expr::If(branch) => {
                self.visit_expr(&branch.cond);
                self.inside(line, |nesting| nesting.visit_block(&branch.then_branch));
                match branch.else_branch.as_ref().map(|(_, other)| other.as_ref()) {
                    Some(chained @ Expr::If(_)) => self.visit_expr(chained),
                    Some(other) => self.inside(line, |nesting| nesting.visit_expr(other)),
                    None => {}
                }
            }
            Expr::Match(_) | Expr::ForLoop(_) | Expr::While(_) | Expr::Loop(_) => {
                self.inside(line, |nesting| visit::visit_expr(nesting, expr));
            }
            _ => visit::visit_expr(self, expr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOC: &str = "//! A file made for a test of tidy, with a paragraph that is long enough.\n";

    fn broken(path: &str, text: &str) -> Vec<(Rule, usize)> {
        crate::tidy::broken_by(check, path, text)
    }

    #[test]
    fn file_of_601_lines_is_caught() {
        let longest = format!("{DOC}{}", "\n".repeat(599));
        assert_eq!(broken("a.rs", &longest), []);
        assert_eq!(broken("a.rs", &format!("{longest}\n")), [(Rule::FileLength, 601)]);
        assert_eq!(broken("crates/x/tests/it/a.rs", &format!("{longest}\n")), [(Rule::FileLength, 601)], "tests too");
    }

    #[test]
    fn file_without_paragraph_is_caught() {
        assert_eq!(broken("a.rs", "fn a() {}\n"), [(Rule::FileDoc, 1)]);
        assert_eq!(broken("a.rs", "//! Things.\nfn a() {}\n"), [(Rule::FileDoc, 1)]);
        assert_eq!(broken("a.rs", &format!("\n{DOC}")), [(Rule::FileDoc, 1)], "not on the first line");
    }

    #[test]
    fn body_of_71_lines_is_caught_outside_tests() {
        let function = |n_lines: usize| format!("{DOC}impl A {{\n    fn a() {{\n{}    }}\n}}\n", "let b = 1;\n".repeat(n_lines));
        assert_eq!(broken("a.rs", &function(70)), []);
        assert_eq!(broken("a.rs", &function(71)), [(Rule::FunctionLength, 3)]);
        assert_eq!(broken("crates/x/tests/it/a.rs", &function(71)), []);
        let inner = function(71).replace("impl A {", "#[cfg(test)] impl A {");
        assert_eq!(broken("a.rs", &inner), []);
    }

    #[test]
    fn sixth_parameter_is_caught() {
        let five = format!("{DOC}impl A {{ fn a(&self, b: u8, c: u8, d: u8, e: u8, f: u8) {{}} }}\n");
        assert_eq!(broken("a.rs", &five), []);
        assert_eq!(broken("a.rs", &five.replace("&self", "a: u8")), [(Rule::Parameters, 2)]);
        let declared = format!("{DOC}trait A {{ fn a(&self, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8); }}\n");
        assert_eq!(broken("a.rs", &declared), [(Rule::Parameters, 2)]);
    }

    #[test]
    fn fourth_level_of_control_flow_is_caught() {
        let three = format!("{DOC}fn a() {{\n for b in c {{\n if b {{\n match d {{\n _ => e(),\n }} }} }} }}\n");
        assert_eq!(broken("a.rs", &three), []);
        assert_eq!(broken("a.rs", &three.replace("e()", "if e { f() }")), [(Rule::Nesting, 6)]);
        assert_eq!(broken("a.rs", &three.replace("e()", "loop {}")), [(Rule::Nesting, 6)]);
        assert_eq!(broken("a.rs", &three.replace("e()", "while e {}")), [(Rule::Nesting, 6)]);
    }

    #[test]
    fn else_if_chains_and_inner_functions_add_no_level() {
        let chain = "if a {} else if b {} else if c {} else if d {} else if e {} else { if f { loop {} } }";
        assert_eq!(broken("a.rs", &format!("{DOC}fn a() {{ {chain} }}\n")), []);
        let inner = "if a { if b { fn c() { if d { if e {} } } } }";
        assert_eq!(broken("a.rs", &format!("{DOC}fn a() {{ {inner} }}\n")), []);
    }
}
