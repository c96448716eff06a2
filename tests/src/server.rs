//! The log under a test: the embedded broker, in this process on a folder of its own, or the Apache Kafka that
//! `UNDERTONE_TEST_KAFKA` names.
//!
//! Promises: whichever it is, the test finds it without topics and without groups, and has it to itself. There is one
//! Apache Kafka for all tests, and names are fixed, so a test empties it and keeps the others waiting until it ends;
//! everything in it is lost. `deploy/servers/kafka with COMMAND` gives a command a fresh one and sets the variables.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use broker::{Broker, Config};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use store::cql::Scylla;
use store::log::Kafka;
use tempfile::TempDir;

use crate::{PATIENCE, cassandra};

/// The address of the Apache Kafka that tests run on; not set, each has an embedded broker.
const ADDRESS: &str = "UNDERTONE_TEST_KAFKA";
/// Its name for `deploy/servers/kafka`, by which tests kill it and start it again.
const NAME: &str = "UNDERTONE_TEST_KAFKA_NAME";

/// How long one question to the server may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A log for one test.
pub struct Server {
    /// How to reach it.
    pub kafka: Kafka,
    /// How to reach a keyspace of the test's own, where it runs on an Apache Cassandra.
    pub cassandra: Option<Scylla>,
    /// The broker in this process, while it runs.
    broker: Option<Broker>,
    /// The right to use the Apache Kafka, which one test has at a time.
    turn: Option<File>,
    folder: TempDir,
}

impl Server {
    /// One without topics.
    pub async fn start() -> Server {
        let mut server = Server::for_program().await;
        if server.apache().is_none() {
            // A test that lets a member time out does not wait as long as a user would want it to.
            let config = Config {
                session_timeout_min: Duration::from_millis(500),
                ..Config::new(server.folder.path().join("broker"))
            };
            let broker = Broker::start(config).await.expect("start the broker");
            server.kafka = reached_at(broker.bootstrap());
            server.broker = Some(broker);
        }
        server
    }

    /// For a test of the program, which brings the embedded broker itself: a server only where it is an Apache Kafka,
    /// whose address then is the program's `[kafka] bootstrap`.
    pub async fn for_program() -> Server {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        match std::env::var(ADDRESS) {
            Ok(address) if !address.is_empty() => {
                let turn = tokio::task::spawn_blocking(move || {
                    let turn = take_turn(&address);
                    empty(&address);
                    (turn, address)
                });
                let (turn, address) = turn.await.expect("empty the Kafka that UNDERTONE_TEST_KAFKA names");
                Server { kafka: reached_at(address), cassandra: cassandra(), broker: None, turn: Some(turn), folder }
            }
            _ => Server { kafka: Kafka::default(), cassandra: cassandra(), broker: None, turn: None, folder },
        }
    }

    /// The address of the Apache Kafka, where that is what the test runs on.
    pub fn apache(&self) -> Option<&str> {
        self.turn.is_some().then_some(self.kafka.bootstrap.as_str())
    }

    /// A folder for the test's other files.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Ends the server as a crash would.
    pub async fn crash(&mut self) {
        if self.turn.is_some() {
            script("kill").await;
        }
        drop(self.broker.take());
    }

    /// Starts it again after a crash, at the same address.
    pub async fn start_again(&mut self) {
        if self.turn.is_some() {
            return script("start").await;
        }
        let listen = self.kafka.bootstrap.parse().expect("the embedded broker listens at an address");
        let config = Config { listen, ..Config::new(self.folder.path().join("broker")) };
        self.broker = Some(Broker::start(config).await.expect("start the broker again"));
    }
}

fn reached_at(bootstrap: String) -> Kafka {
    Kafka { bootstrap, client_id: "test".to_owned(), ..Kafka::default() }
}

/// Waits for this test's turn, among threads and processes alike; it lasts until the file is closed.
fn take_turn(address: &str) -> File {
    let path = std::env::temp_dir().join(format!("undertone-test-{}.lock", address.replace([':', ','], "-")));
    let file = File::create(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.lock().expect("wait for the other tests");
    file
}

/// Removes all topics and groups. A group whose members were killed waits for their sessions to end.
fn empty(address: &str) {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address);
    let consumer: BaseConsumer = config.create().expect("make a client");
    let admin: AdminClient<DefaultClientContext> = config.create().expect("make a client");
    let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    let begun = std::time::Instant::now();
    loop {
        let asked = (consumer.fetch_metadata(None, ANSWER_WITHIN), consumer.fetch_group_list(None, ANSWER_WITHIN));
        let (metadata, listed) = match asked {
            (Ok(metadata), Ok(listed)) => (metadata, listed),
            // A server that was started a moment ago still loads its groups.
            (metadata, listed) => {
                let errors = (metadata.err(), listed.err());
                assert!(begun.elapsed() < PATIENCE, "Kafka does not say what it holds: {errors:?}");
                continue;
            }
        };
        // The others are Kafka's own.
        let topics = metadata.topics().iter().map(|topic| topic.name()).filter(|name| !name.starts_with("__"));
        let topics: Vec<&str> = topics.collect();
        let groups: Vec<&str> = listed.groups().iter().map(|group| group.name()).collect();
        if topics.is_empty() && groups.is_empty() {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "Kafka keeps the topics {topics:?} and the groups {groups:?}");
        // What is refused, such as a group with members, is there at the next look.
        if !topics.is_empty() {
            drop(runtime.block_on(admin.delete_topics(&topics, &options)));
        }
        if !groups.is_empty() {
            drop(runtime.block_on(admin.delete_groups(&groups, &options)));
        }
    }
}

/// Has the script that started the Apache Kafka act on it.
async fn script(action: &'static str) {
    let run = move || {
        let name = std::env::var(NAME).unwrap_or_else(|_| {
            panic!("{NAME} is not set, so nobody knows how to {action} this Kafka: use `deploy/servers/kafka with`")
        });
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/servers/kafka");
        let output = Command::new(script).args([action, "--name", &name]).output().expect("run deploy/servers/kafka");
        assert!(output.status.success(), "{action}: {}", String::from_utf8_lossy(&output.stderr));
    };
    tokio::task::spawn_blocking(run).await.expect("act on Kafka");
}
