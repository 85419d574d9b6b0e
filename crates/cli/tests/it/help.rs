//! Help texts, as they are printed: a change to any of them is a change for users.

use crate::command::run;

fn help(verb: &str) -> String {
    let finished = run(&[verb, "-h"]);
    assert_eq!(finished.status, Some(0), "{finished:?}");
    finished.stdout
}

#[test]
fn help_of_the_command_is_as_printed() {
    insta::assert_snapshot!(run(&["--help"]).stdout);
}

#[test]
fn help_of_each_verb_is_as_printed() {
    for verb in [
        "run",
        "chat",
        "serve",
        "batch",
        "accounts",
        "keys",
        "db",
        "billing",
        "invoices",
        "audit",
        "licence",
        "inspect",
        "convert",
        "bench",
        "bench-server",
        "perplexity",
        "logits",
        "embed",
        "pull",
        "devices",
        "completions",
    ] {
        insta::assert_snapshot!(format!("help_{verb}"), help(verb));
    }
}
