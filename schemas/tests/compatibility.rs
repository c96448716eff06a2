//! Every change from the committed history of schemas is FULL_TRANSITIVE: each version reads each other one.

use apache_avro::Schema;
use apache_avro::schema_compatibility::SchemaCompatibility;
use schemas::{Kind, REGISTERED, latest};

fn parse(text: &str) -> Schema {
    Schema::parse_str(text).expect("a committed schema parses")
}

#[test]
fn every_version_reads_every_other_version() {
    for kind in Kind::ALL {
        let versions: Vec<_> = REGISTERED.iter().filter(|r| r.kind == kind).collect();
        for (i, one) in versions.iter().enumerate() {
            assert_eq!(one.version as usize, i + 1, "versions of {} are dense and in order", kind.name());
            for other in &versions {
                SchemaCompatibility::can_read(&parse(other.text), &parse(one.text))
                    .unwrap_or_else(|e| panic!("{} {} cannot read {}: {e}", kind.name(), one.version, other.version));
            }
        }
    }
}

#[test]
fn ids_are_unique() {
    let mut ids: Vec<_> = REGISTERED.iter().map(|r| r.id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), REGISTERED.len());
}

#[test]
fn todays_schema_is_the_last_of_its_history() {
    for kind in Kind::ALL {
        let path = format!("{}/avro/{}.avsc", env!("CARGO_MANIFEST_DIR"), kind.name());
        let today = std::fs::read_to_string(&path).unwrap();
        assert_eq!(today, latest(kind).text, "{path} changed: add it to avro/history as the next version");
    }
}

#[test]
fn every_history_file_is_registered() {
    let folder = format!("{}/avro/history", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).unwrap().count();
    assert_eq!(files, REGISTERED.len());
}

#[test]
fn a_change_that_breaks_a_reader_is_caught() {
    let turn = latest(Kind::Turn).text;
    let required = turn.replacen(r#""fields": ["#, r#""fields": [{"name":"colour","type":"string"},"#, 1);
    assert_ne!(required, turn);
    assert!(SchemaCompatibility::mutual_read(&parse(turn), &parse(&required)).is_err());
    let optional =
        turn.replacen(r#""fields": ["#, r#""fields": [{"name":"colour","type":["null","string"],"default":null},"#, 1);
    SchemaCompatibility::mutual_read(&parse(turn), &parse(&optional)).expect("an optional field is compatible");
}
