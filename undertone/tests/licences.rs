//! Licences of everything that is linked into the program, from `cargo metadata` alone: no network, no database.
//!
//! Advisories are left out: their database changes daily and lives on the network, so a check that works offline would
//! tell the truth of the day on which it was pinned.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::process::Command;

use serde_json::Value;

/// Licences that may be linked into a program under Apache-2.0, each with its attribution kept.
const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    // The one of frankenstein, the Telegram types: permission for anything, without conditions.
    "WTFPL",
    "Zlib",
];

/// Whether an SPDX expression can be met with allowed licences: of `OR` one side, of `AND` both.
fn is_met(expression: &str) -> bool {
    let text = expression.replace('/', " OR ").replace(['(', ')'], " ");
    // Expressions of dependencies nest at most `A AND (B OR C)`: with AND binding the alternatives apart, every one of
    // the joined groups must have an allowed member.
    text.split(" AND ").all(|group| group.split(" OR ").any(|licence| ALLOWED.contains(&licence.trim())))
}

#[test]
fn every_linked_dependency_has_an_allowed_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs: it runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages: HashMap<&str, &Value> =
        metadata["packages"].as_array().unwrap().iter().map(|p| (p["id"].as_str().unwrap(), p)).collect();
    let nodes: HashMap<&str, &Value> =
        metadata["resolve"]["nodes"].as_array().unwrap().iter().map(|n| (n["id"].as_str().unwrap(), n)).collect();
    let root = packages.iter().find(|(_, p)| p["name"] == "undertone").unwrap().0;
    let mut linked = HashSet::from([*root]);
    let mut open = vec![*root];
    while let Some(id) = open.pop() {
        for dependency in nodes[id]["deps"].as_array().unwrap() {
            let normal = dependency["dep_kinds"].as_array().unwrap().iter().any(|kind| kind["kind"].is_null());
            let next = dependency["pkg"].as_str().unwrap();
            if normal && linked.insert(next) {
                open.push(next);
            }
        }
    }
    assert!(linked.len() > 100, "only {} packages: the walk is broken", linked.len());
    let refused: BTreeSet<String> = linked
        .iter()
        .map(|id| packages[id])
        .filter(|p| !p["license"].as_str().is_some_and(is_met))
        .map(|p| format!("{} {}: {}", p["name"], p["version"], p["license"]))
        .collect();
    assert!(refused.is_empty(), "licences to look at: {refused:#?}");
}

#[test]
fn expressions_are_read_as_spdx_means_them() {
    for (expression, met) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0-only", false),
        ("GPL-3.0-only OR MIT", true),
        ("MIT AND GPL-3.0-only", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND OpenSSL", false),
    ] {
        assert_eq!(is_met(expression), met, "{expression}");
    }
}
