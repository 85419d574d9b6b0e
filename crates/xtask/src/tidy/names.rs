//! Names that say nothing (modules, types), the shape of test names, one test binary a crate, and the style of error messages.
//! Only declarations are read; what a name refers to is not.

use proc_macro2::TokenTree;
use syn::visit::{self, Visit};
use syn::{Attribute, Ident, ItemMod, LitStr, Meta};

use super::rules::{Finding, Rule};
use super::source::SourceFile;

const MODULE_NAMES: &[&str] = &["common", "util", "utils", "helper", "helpers", "misc", "prelude", "traits"];
/// Fine for a file deep in a crate (`gguf/types.rs`), empty words at its root.
const ROOT_MODULE_NAMES: &[&str] = &["core", "types"];
const TYPE_SUFFIXES: &[&str] = &["Manager", "Helper", "Helpers", "Util", "Utils", "Impl", "Base", "V2", "V3"];
/// subject, condition, expectation.
const TEST_NAME_WORDS_MIN: usize = 3;

pub(super) fn check(source: &SourceFile, findings: &mut Vec<Finding>) {
    let is_crate_root = source.path.ends_with("src/lib.rs") || source.path.ends_with("src/main.rs");
    Names { source, findings, is_crate_root, module_depth: 0 }.visit_file(&source.syntax);
    check_place(&source.path, findings);
}

/// Crate folders and the layout of integration tests, which no syntax tree shows.
fn check_place(path: &str, findings: &mut Vec<Finding>) {
    let parts: Vec<&str> = path.split('/').collect();
    if let ["crates", name, "src", "lib.rs" | "main.rs"] = parts[..]
        && (MODULE_NAMES.contains(&name) || ROOT_MODULE_NAMES.contains(&name))
    {
        findings.push(Finding::new(path, 1, Rule::ModuleName, format!("crate `{name}`: name what it is about")));
    }
    if let ["crates", _, "tests", other, ..] = parts[..]
        && other != "it"
    {
        findings.push(Finding::new(path, 1, Rule::TestBinary, "move it below tests/it/ and declare it in tests/it/main.rs"));
    }
}

struct Names<'a> {
    source: &'a SourceFile,
    findings: &'a mut Vec<Finding>,
    is_crate_root: bool,
    module_depth: usize,
}

impl Names<'_> {
    fn push(&mut self, ident: &Ident, rule: Rule, message: String) {
        self.findings.push(Finding::new(&self.source.path, ident.span().start().line, rule, message));
    }

    fn check_type(&mut self, ident: &Ident) {
        let name = ident.to_string();
        if let Some(suffix) = TYPE_SUFFIXES.iter().find(|suffix| name.ends_with(*suffix)) {
            self.push(ident, Rule::TypeName, format!("`{name}`: `{suffix}` says nothing; name what it is"));
        }
    }
}

impl<'ast> Visit<'ast> for Names<'_> {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        let name = module.ident.to_string();
        let at_root = self.is_crate_root && self.module_depth == 0;
        if MODULE_NAMES.contains(&name.as_str()) || (at_root && ROOT_MODULE_NAMES.contains(&name.as_str())) {
            self.push(&module.ident, Rule::ModuleName, format!("module `{name}`: name what it is about"));
        }
        self.module_depth += 1;
        visit::visit_item_mod(self, module);
        self.module_depth -= 1;
    }

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        self.check_type(&item.ident);
        visit::visit_item_struct(self, item);
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        self.check_type(&item.ident);
        visit::visit_item_enum(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.check_type(&item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.check_type(&item.ident);
        visit::visit_item_type(self, item);
    }

    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        let name = function.sig.ident.to_string();
        let is_test = function.attrs.iter().any(|attribute| attribute.path().is_ident("test"));
        if is_test && name.split('_').filter(|word| !word.is_empty()).count() < TEST_NAME_WORDS_MIN {
            self.push(&function.sig.ident, Rule::TestName, format!("`{name}`: say subject, condition and expectation"));
        }
        visit::visit_item_fn(self, function);
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        if let Some(message) = error_message(attribute)
            && let Some(problem) = message_problem(&message.value())
        {
            let finding = Finding::new(&self.source.path, message.span().start().line, Rule::ErrorMessage, problem);
            self.findings.push(finding);
        }
    }
}

/// The text of a `#[error("…")]` attribute.
fn error_message(attribute: &Attribute) -> Option<LitStr> {
    let Meta::List(list) = &attribute.meta else { return None };
    if !list.path.is_ident("error") {
        return None;
    }
    match list.tokens.clone().into_iter().next() {
        Some(TokenTree::Literal(literal)) => syn::parse_str::<LitStr>(&literal.to_string()).ok().map(|mut text| {
            text.set_span(literal.span());
            text
        }),
        _ => None,
    }
}

fn message_problem(message: &str) -> Option<&'static str> {
    let mut first_word = message.chars().take_while(|c| c.is_alphabetic());
    let starts_capitalised = first_word.next().is_some_and(char::is_uppercase) && first_word.next().is_some_and(char::is_lowercase);
    if starts_capitalised {
        return Some("an error message starts in lower case: it is often the tail of a sentence");
    }
    (message.ends_with('.') && !message.ends_with("..")).then_some("an error message has no full stop")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(path: &str, text: &str) -> Vec<(Rule, usize)> {
        crate::tidy::broken_by(check, path, text)
    }

    #[test]
    fn module_name_that_says_nothing_is_caught() {
        for name in MODULE_NAMES {
            assert_eq!(broken("crates/x/src/a.rs", &format!("mod {name};\n")), [(Rule::ModuleName, 1)], "{name}");
        }
        for name in ROOT_MODULE_NAMES {
            assert_eq!(broken("crates/x/src/lib.rs", &format!("\npub mod {name};\n")), [(Rule::ModuleName, 2)], "{name}");
            assert_eq!(broken("crates/x/src/gguf/mod.rs", &format!("pub mod {name};\n")), [], "{name}");
        }
        assert_eq!(broken("crates/utils/src/lib.rs", ""), [(Rule::ModuleName, 1)]);
    }

    #[test]
    fn type_name_that_says_nothing_is_caught() {
        for suffix in TYPE_SUFFIXES {
            for keyword in ["struct A{};", "enum A{} {}", "trait A{} {}", "type A{} = u8;"] {
                let text = keyword.replacen("A{}", &format!("Cache{suffix}"), 1);
                assert_eq!(broken("a.rs", &text), [(Rule::TypeName, 1)], "{text}");
            }
        }
        assert_eq!(broken("a.rs", "struct ManagerOfNothing; struct Baseline;\n"), []);
    }

    #[test]
    fn test_name_of_two_words_is_caught() {
        assert_eq!(broken("a.rs", "#[test]\nfn it_works() {}\n"), [(Rule::TestName, 2)]);
        assert_eq!(broken("a.rs", "#[test]\nfn sum_of_nothing_is_zero() {}\nfn it_works() {}\n"), []);
    }

    #[test]
    fn second_test_binary_is_caught() {
        assert_eq!(broken("crates/x/tests/other.rs", ""), [(Rule::TestBinary, 1)]);
        assert_eq!(broken("crates/x/tests/it/other.rs", ""), []);
    }

    #[test]
    fn error_message_with_capital_or_full_stop_is_caught() {
        let message = |text: &str| format!("#[derive(Error)]\nenum A {{\n    #[error(\"{text}\")]\n    B,\n}}\n");
        assert_eq!(broken("a.rs", &message("File is short")), [(Rule::ErrorMessage, 3)]);
        assert_eq!(broken("a.rs", &message("file is short.")), [(Rule::ErrorMessage, 3)]);
        assert_eq!(broken("a.rs", &message("GGUF file is short")), []);
        assert_eq!(broken("a.rs", &message("`Key` is absent")), []);
    }
}
