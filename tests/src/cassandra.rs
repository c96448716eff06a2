//! The CQL server under a test: the Apache Cassandra that `UNDERTONE_TEST_CASSANDRA` names, where it names one. Each test
//! gets a keyspace of its own, which stays until the server is removed: `deploy/servers/cassandra with COMMAND` gives a
//! command a fresh one and sets the variable.

use std::time::Duration;

use store::context::Contexts;
use store::cql::{Keyspace, Scylla};
use store::history::History;
use uuid::Uuid;

/// The address of the Apache Cassandra that tests run on; not set, they keep history and contexts in memory.
const ADDRESS: &str = "UNDERTONE_TEST_CASSANDRA";

/// How to reach a keyspace that nobody has; `None` where there is no server.
pub fn cassandra() -> Option<Scylla> {
    let address = std::env::var(ADDRESS).ok().filter(|address| !address.is_empty())?;
    Some(Scylla {
        nodes: vec![address],
        keyspace: format!("test_{}", Uuid::new_v4().simple()),
        replication: "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
        // Two cores for the tests and the server, which changes a schema all the time.
        request_timeout: Duration::from_secs(20),
        ..Scylla::default()
    })
}

/// An empty history for one test.
pub async fn history() -> History {
    match cassandra() {
        Some(settings) => {
            let keyspace = Keyspace::connect(&settings).await.expect("connect to the Cassandra");
            History::on_scylla(keyspace, None).await.expect("make the tables")
        }
        None => History::in_memory().await.expect("SQLite has memory"),
    }
}

/// Empty contexts for one test, behind a Redis where there is one.
pub async fn contexts() -> Contexts {
    let contexts = match cassandra() {
        Some(settings) => {
            let keyspace = Keyspace::connect(&settings).await.expect("connect to the Cassandra");
            Contexts::on_scylla(keyspace).await.expect("make the tables")
        }
        None => Contexts::in_memory().await.expect("SQLite has memory"),
    };
    crate::cached(contexts, &Uuid::new_v4().to_string()).await
}
