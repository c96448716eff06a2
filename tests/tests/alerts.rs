//! The alerting rules in `deploy/alerts`: each file is what Prometheus reads, and asks for metrics that the program has.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_yaml_ng::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ stands in the workspace").to_owned()
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let (mut folders, mut files) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(&folder).expect("a folder can be read").flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                files.push(path);
            }
        }
    }
    files
}

/// The rules of a file, each with its place.
fn rules(path: &Path) -> Vec<(String, Value)> {
    let text = std::fs::read_to_string(path).unwrap();
    let file: Value = serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let groups = file["groups"].as_sequence().unwrap_or_else(|| panic!("{} has no groups", path.display()));
    let rules = groups.iter().flat_map(|group| {
        assert!(group["name"].is_string(), "a group without a name in {}", path.display());
        group["rules"].as_sequence().expect("a group has rules").clone()
    });
    rules.map(|rule| (format!("{}: {:?}", path.display(), rule["alert"]), rule)).collect()
}

/// The words of an expression that name a metric of ours.
fn metrics(expression: &str) -> BTreeSet<&str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("undertone_")).collect()
}

/// The names of all instruments in the source, as Prometheus shows them without their units.
fn instruments() -> BTreeSet<String> {
    let crates = ["api", "broker", "ingest", "processors", "store", "undertone"];
    let sources = crates.iter().flat_map(|name| files(&root().join(name).join("src"), "rs"));
    let texts: Vec<String> = sources.map(|path| std::fs::read_to_string(path).unwrap()).collect();
    let literals = texts.iter().flat_map(|text| text.split('"').filter(|part| part.starts_with("undertone.")));
    literals.map(|name| name.replace('.', "_")).collect()
}

#[test]
fn every_alert_says_what_to_do_and_asks_for_metrics_that_there_are() {
    let instruments = instruments();
    assert!(instruments.len() > 30, "only {} instruments were found: the search is broken", instruments.len());
    let mut names = BTreeSet::new();
    for path in files(&root().join("deploy/alerts"), "yml") {
        for (place, rule) in rules(&path) {
            let text = |value: &Value| value.as_str().unwrap_or_else(|| panic!("{place} misses a text")).to_owned();
            assert!(names.insert(text(&rule["alert"])), "{place} is there twice");
            assert!(["page", "ticket"].contains(&text(&rule["labels"]["severity"]).as_str()), "{place}");
            assert!(!text(&rule["annotations"]["summary"]).is_empty(), "{place}");
            assert!(text(&rule["annotations"]["description"]).len() > 60, "{place} does not say what to do");
            let expression = text(&rule["expr"]);
            let asked = metrics(&expression);
            assert!(!asked.is_empty(), "{place} asks for nothing: {expression}");
            for metric in asked {
                let bare = ["_total", "_seconds", "_ratio"].iter().fold(metric, |name, end| name.trim_end_matches(end));
                assert!(instruments.contains(bare), "{place} asks for {metric}, which nothing reports");
            }
        }
    }
    assert!(names.contains("UndertoneReadersHeldBack") && names.len() >= 7, "{names:?}");
}
