//! The small checked-in models, and what the tests need of their goldens.

use std::path::PathBuf;

use serde_json::Value;

/// Folder of a checked-in model.
pub(crate) fn model(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(name)
}

/// The same as text for a command line.
pub(crate) fn model_argument(name: &str) -> String {
    model(name).to_str().expect("the repository's path is UTF-8").to_string()
}

/// `golden.json` of a checked-in model.
pub(crate) fn golden(name: &str) -> Value {
    let bytes = std::fs::read(model(name).join("golden.json")).expect("every fixture has goldens");
    serde_json::from_slice(&bytes).expect("goldens are JSON")
}

/// A list of ids as `1,2,3`.
pub(crate) fn ids(list: &Value) -> String {
    let ids: Vec<String> = list.as_array().expect("a list").iter().map(ToString::to_string).collect();
    ids.join(",")
}
