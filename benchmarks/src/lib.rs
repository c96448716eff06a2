//! What `undertone bench` runs: measurements of the whole program and of its parts beside a peer or a limit in the same
//! run, and faults, counted. The inner loops are measured by criterion under `benches/`.
//!
//! Every measurement is a ratio, or stands beside what it is to be compared with; a report says how noisy it was.

pub mod broker;
pub mod contexts;
pub mod fanout;
pub mod faults;
mod figures;
pub mod history;
mod latency;
pub mod pages;
pub mod pipeline;
mod spent;
pub mod texts;

/// A keyspace of the run's own, on a CQL server of one node.
pub(crate) fn keyspace_on(address: &str) -> store::cql::Scylla {
    store::cql::Scylla {
        nodes: vec![address.to_owned()],
        keyspace: format!("bench_{}", uuid::Uuid::new_v4().simple()),
        replication: "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
        ..store::cql::Scylla::default()
    }
}

/// What a run of a benchmark came to.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The report for people.
    pub text: String,
    /// The report for machines: one object.
    pub json: serde_json::Value,
    /// Whether what must hold held; the program ends with status 1 otherwise.
    pub passed: bool,
}

/// The program that is measured or put to the test.
#[derive(Debug, Clone)]
pub struct Undertone {
    /// The executable.
    pub path: std::path::PathBuf,
    /// The folder of the models.
    pub models: std::path::PathBuf,
    /// The ONNX Runtime library.
    pub onnxruntime: std::path::PathBuf,
}
