//! The house rules that a machine can check, read from the manifests: imports run downwards only, siblings never import
//! each other, and one crate names each outside system.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each room of the house may import. `tests` may name anything, and so may dev-dependencies.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("schemas", &[]),
    ("broker", &[]),
    ("store", &["schemas"]),
    ("ingest", &["store", "schemas"]),
    ("processors", &["store", "schemas"]),
    ("api", &["store", "schemas"]),
    ("benchmarks", &["ingest", "processors", "api", "broker", "store", "schemas"]),
    ("undertone", &["benchmarks", "ingest", "processors", "api", "broker", "store", "schemas"]),
];

/// The crates that speak to an outside system, and who alone may name them. `tests` may, and `benchmarks`, whose bare
/// peers are written against them.
const NAMED_BY: &[(&str, &[&str])] = &[
    ("rdkafka", &["store"]),
    ("rusqlite", &["store"]),
    ("sqlx", &["store"]),
    ("scylla", &["store"]),
    ("redis", &["store"]),
    ("openssl", &["store"]),
    ("ort", &["processors"]),
    ("apache-avro", &["schemas"]),
    ("kafka-protocol", &["broker"]),
    ("axum", &["ingest", "api", "undertone"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the workspace").to_owned()
}

fn manifest(folder: &str) -> toml::Table {
    let path = root().join(folder).join("Cargo.toml");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn members() -> Vec<String> {
    let members = manifest("")["workspace"]["members"].as_array().expect("a workspace has members").clone();
    members.iter().map(|member| member.as_str().expect("a member is a path").to_owned()).collect()
}

/// The package behind a dependency, also where it was given another name here or in the workspace.
fn package(name: &str, value: &toml::Value) -> String {
    let renamed = |value: &toml::Value| value.get("package").and_then(toml::Value::as_str).map(str::to_owned);
    let shared = &manifest("")["workspace"]["dependencies"];
    renamed(value).or_else(|| shared.get(name).and_then(renamed)).unwrap_or_else(|| name.to_owned())
}

/// Packages of a manifest's normal and build dependencies, also those of targets.
fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    let of = |table: &toml::Table| -> Vec<String> {
        let tables = ["dependencies", "build-dependencies"].iter().filter_map(|key| table.get(*key)?.as_table());
        tables.flatten().map(|(name, value)| package(name, value)).collect()
    };
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    let nested = targets.into_iter().flat_map(|t| t.values()).filter_map(toml::Value::as_table).flat_map(of);
    of(manifest).into_iter().chain(nested).collect()
}

fn rooms() -> BTreeMap<String, BTreeSet<String>> {
    members().into_iter().map(|member| (member.clone(), dependencies(&manifest(&member)))).collect()
}

#[test]
fn imports_run_downwards_only() {
    let may: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    for (room, dependencies) in rooms() {
        if room == "tests" {
            continue;
        }
        let allowed = may.get(room.as_str()).unwrap_or_else(|| panic!("{room} is new: give it a place in MAY_IMPORT"));
        for import in dependencies.iter().filter(|d| may.contains_key(d.as_str())) {
            assert!(allowed.contains(&import.as_str()), "{room} imports {import}; it may import only {allowed:?}");
        }
    }
}

#[test]
fn one_crate_names_each_outside_system() {
    for (room, dependencies) in rooms() {
        if room == "tests" || room == "benchmarks" {
            continue;
        }
        for (system, named_by) in NAMED_BY {
            let named = dependencies.contains(*system);
            assert!(!named || named_by.contains(&room.as_str()), "{room} names {system}; only {named_by:?} may");
        }
    }
}

#[test]
fn another_name_does_not_hide_a_dependency() {
    let table: toml::Table = r#"dependencies.kafka = { package = "rdkafka", version = "0" }"#.parse().unwrap();
    assert_eq!(dependencies(&table), BTreeSet::from(["rdkafka".to_owned()]));
}

#[test]
fn a_crate_is_named_like_its_folder() {
    for member in members() {
        assert_eq!(manifest(&member)["package"]["name"].as_str(), Some(member.as_str()));
    }
}

#[test]
fn there_is_no_room_without_a_purpose() {
    for member in members() {
        assert!(!["common", "core", "utils", "util", "helpers", "misc", "types"].contains(&member.as_str()));
        let description = manifest(&member)["package"]["description"].as_str().map(str::len).unwrap_or_default();
        assert!(description > 20, "{member} does not say what it is for");
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let mut folders: Vec<PathBuf> = members().iter().map(|member| root().join(member)).collect();
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a member's folder can be read").flatten() {
            let path = entry.path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).expect("a source file is text");
                assert!(text.starts_with("//!"), "{} does not open with //!", path.display());
                files += 1;
            }
        }
    }
    assert!(files > 50, "only {files} source files were found: the search is broken");
}

#[test]
fn the_notice_holds_that_of_the_models() {
    let read = |path: &str| std::fs::read_to_string(root().join(path)).unwrap();
    assert!(read("NOTICE").contains(read("models/NOTICE").trim_end()), "put what models/NOTICE says into NOTICE");
}
