//! Which crate may depend on which, where `anyhow` may be used, and that every external dependency has its line in
//! `docs/decisions`. Reads what `cargo metadata --no-deps` prints; needs no network.

use anyhow::{Context, Result};
use serde_json::Value;

use super::rules::{Finding, Rule};

const LEFT_OF_DEVICES: &[&str] = &["bitnet-ternary", "bitnet-checkpoint", "bitnet-model"];

/// Each crate and the crates it may use. A new crate gets a row here and a decision in `docs/decisions`.
const ARROWS: &[(&str, &[&str])] = &[
    ("bitnet-ternary", &[]),
    ("bitnet-checkpoint", &["bitnet-ternary"]),
    ("bitnet-model", &["bitnet-ternary", "bitnet-checkpoint"]),
    ("bitnet-device-cpu", LEFT_OF_DEVICES),
    ("bitnet-device-cuda", LEFT_OF_DEVICES),
    ("bitnet-device-wgpu", LEFT_OF_DEVICES),
    ("bitnet-engine", LEFT_OF_DEVICES),
    ("bitnet-train", LEFT_OF_DEVICES),
    ("bitnet-server", &["bitnet-ternary", "bitnet-checkpoint", "bitnet-model", "bitnet-engine"]),
    ("bitnet-platform", &["bitnet-ternary", "bitnet-checkpoint", "bitnet-model", "bitnet-engine", "bitnet-server"]),
    (
        "bitnet-cli",
        &[
            "bitnet-ternary",
            "bitnet-checkpoint",
            "bitnet-model",
            "bitnet-device-cpu",
            "bitnet-device-cuda",
            "bitnet-device-wgpu",
            "bitnet-engine",
            "bitnet-train",
            "bitnet-server",
            "bitnet-platform",
        ],
    ),
    ("xtask", &[]),
];

/// Crates whose errors a person reads and no program matches on.
const ANYHOW_ROOMS: &[&str] = &["bitnet-cli", "xtask"];

/// One dependency of one package.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dependency {
    package: String,
    /// The package's `Cargo.toml`, from the repository root.
    manifest: String,
    name: String,
    is_internal: bool,
    is_dev: bool,
}

/// Reads the workspace's direct dependencies out of `cargo metadata --no-deps --format-version 1`.
pub(super) fn dependencies(metadata: &Value) -> Result<Vec<Dependency>> {
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_string).with_context(|| format!("metadata without `{key}`"));
    let root = text(metadata, "workspace_root")?;
    let mut all = Vec::new();
    for package in metadata["packages"].as_array().context("metadata without `packages`")? {
        let manifest = text(package, "manifest_path")?;
        let manifest = manifest.strip_prefix(&root).unwrap_or(&manifest).trim_start_matches(['/', '\\']).replace('\\', "/");
        for dependency in package["dependencies"].as_array().context("package without `dependencies`")? {
            all.push(Dependency {
                package: text(package, "name")?,
                manifest: manifest.clone(),
                name: text(dependency, "name")?,
                is_internal: dependency["path"].is_string(),
                is_dev: dependency["kind"] == "dev",
            });
        }
    }
    Ok(all)
}

/// `decisions` is the text of every file in `docs/decisions`, joined.
pub(super) fn check(dependencies: &[Dependency], decisions: &str, findings: &mut Vec<Finding>) {
    for dependency in dependencies {
        let mut push = |rule: Rule, message: String| findings.push(Finding::new(&dependency.manifest, 1, rule, message));
        let name = &dependency.name;
        if dependency.is_internal {
            if let Some(message) = wrong_arrow(&dependency.package, name) {
                push(Rule::CrateArrow, message);
            }
            continue;
        }
        if name == "anyhow" && !dependency.is_dev && !ANYHOW_ROOMS.contains(&dependency.package.as_str()) {
            push(Rule::AnyhowRoom, format!("`{}` is a library: give it typed errors", dependency.package));
        }
        if !decisions.contains(&format!("`{name}`")) {
            push(Rule::DependencyDecision, format!("`{name}` has no line in docs/decisions"));
        }
    }
}

fn wrong_arrow(package: &str, dependency: &str) -> Option<String> {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package) else {
        return Some(format!("crate `{package}` has no row in the table of arrows"));
    };
    (!allowed.contains(&dependency)).then(|| format!("`{package}` may not depend on `{dependency}`: arrows point left"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn broken(package: &str, dependency: Value) -> Vec<Rule> {
        let metadata = json!({
            "workspace_root": "/somewhere",
            "packages": [{ "name": package, "manifest_path": "/somewhere/crates/x/Cargo.toml", "dependencies": [dependency] }],
        });
        let all = dependencies(&metadata).expect("complete");
        assert_eq!(all[0].manifest, "crates/x/Cargo.toml");
        let mut findings = Vec::new();
        check(&all, "| `anyhow` | `known` |", &mut findings);
        findings.into_iter().map(|finding| finding.rule).collect()
    }

    #[test]
    fn arrow_to_the_right_is_caught() {
        let on = |name: &str| json!({ "name": name, "path": "/somewhere/crates/y", "kind": null });
        assert_eq!(broken("bitnet-model", on("bitnet-checkpoint")), []);
        assert_eq!(broken("bitnet-checkpoint", on("bitnet-model")), [Rule::CrateArrow]);
        assert_eq!(broken("bitnet-engine", on("bitnet-device-cpu")), [Rule::CrateArrow]);
        assert_eq!(broken("bitnet-unheard-of", on("bitnet-ternary")), [Rule::CrateArrow]);
        let for_tests = json!({ "name": "bitnet-device-cpu", "path": "/somewhere/crates/y", "kind": "dev" });
        assert_eq!(broken("bitnet-model", for_tests), [Rule::CrateArrow], "tests too");
    }

    #[test]
    fn every_workspace_arrow_in_the_table_points_left() {
        let place = |name: &str| ARROWS.iter().position(|(package, _)| *package == name);
        for (package, allowed) in ARROWS {
            for dependency in *allowed {
                assert!(place(dependency) < place(package), "{package} → {dependency}");
            }
        }
    }

    #[test]
    fn anyhow_in_a_library_is_caught() {
        let anyhow = |kind: Value| json!({ "name": "anyhow", "path": null, "kind": kind });
        assert_eq!(broken("bitnet-model", anyhow(Value::Null)), [Rule::AnyhowRoom]);
        assert_eq!(broken("bitnet-model", anyhow("dev".into())), []);
        assert_eq!(broken("bitnet-cli", anyhow(Value::Null)), []);
    }

    #[test]
    fn dependency_without_decision_is_caught() {
        let external = |name: &str| json!({ "name": name, "kind": null });
        assert_eq!(broken("bitnet-model", external("known")), []);
        assert_eq!(broken("bitnet-model", external("unknown")), [Rule::DependencyDecision]);
    }
}
