//! An Apache Kafka that asks for TLS, for a certificate, for a login: each protocol with each mechanism carries a whole
//! cycle, exactly once, and whoever is not let in, or does not trust the brokers, is told which setting is at fault.
//!
//! Brings its own server, with certificates of its own: run by tests/kafka, by name.
#![expect(clippy::print_stdout, reason = "what is said to whoever is refused is to be read")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{SinkExt as _, StreamExt as _};
use schemas::topic::{TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Codec, Turn};
use serde_json::{Value, json};
use store::context::Contexts;
use store::log::{
    Admin, From, GroupReader, Identity, Kafka, LogError, Mechanism, Producer, ProducerLimits, Record, Sasl, Security,
    Tail, Tls, TopicSpec,
};
use tempfile::TempDir;
use tests::certificates::{Authority, Issued};
use tests::role::{Role, Setup};
use tests::{PATIENCE, turn};
use tokio_tungstenite::tungstenite::Message;
use undertone::config::{Config, Protocol};
use undertone::up::{self, Running};

const TURNS: usize = 20;
/// How long brokers may take to answer or refuse.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
const MECHANISMS: [Mechanism; 3] = [Mechanism::Plain, Mechanism::ScramSha256, Mechanism::ScramSha512];
const PASSWORD: &str = "ann's secret";

/// An Apache Kafka with a listener for each protocol.
struct Secured {
    name: String,
    folder: TempDir,
    authority: Authority,
    client: Issued,
    plaintext: String,
    ssl: String,
    sasl_ssl: String,
    sasl_plaintext: String,
}

impl Secured {
    fn start() -> Secured {
        let folder = tempfile::tempdir().expect("make a temporary folder");
        let authority = Authority::new(folder.path(), "authority");
        let server = authority.issue("server", &["127.0.0.1"]);
        let client = authority.issue("client", &[]);
        let name = format!("secured.{}", std::process::id());
        let mut set = vec![
            "ssl.keystore.type=PEM".to_owned(),
            format!("ssl.keystore.location={}", server.both.display()),
            "ssl.truststore.type=PEM".to_owned(),
            format!("ssl.truststore.location={}", authority.file.display()),
            "listener.name.ssl.ssl.client.auth=required".to_owned(),
            "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned(),
        ];
        for listener in ["sasl_ssl", "sasl_plaintext"] {
            let module = "org.apache.kafka.common.security";
            let of = format!("listener.name.{listener}");
            set.push(format!(
                "{of}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required user_ann=\"{PASSWORD}\";"
            ));
            for scram in ["scram-sha-256", "scram-sha-512"] {
                set.push(format!("{of}.{scram}.sasl.jaas.config={module}.scram.ScramLoginModule required;"));
            }
        }
        let mut start = vec!["start", "--name", &name];
        start.extend(["SSL", "SASL_SSL", "SASL_PLAINTEXT"].iter().flat_map(|listener| ["--listen", listener]));
        start.extend(set.iter().flat_map(|setting| ["--set", setting]));
        // From here on the server is removed, whatever happens.
        let mut secured = Secured {
            name: name.clone(),
            folder,
            authority,
            client,
            plaintext: String::new(),
            ssl: String::new(),
            sasl_ssl: String::new(),
            sasl_plaintext: String::new(),
        };
        secured.plaintext = script(&start);
        let of = |listener: &str| script(&["address", "--name", &name, "--of", listener]);
        (secured.ssl, secured.sasl_ssl, secured.sasl_plaintext) = (of("SSL"), of("SASL_SSL"), of("SASL_PLAINTEXT"));
        // One credential a request is the most that the brokers take for a user.
        for scram in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            script(&[
                "tool",
                "kafka.admin.ConfigCommand",
                "--bootstrap-server",
                &secured.plaintext,
                "--alter",
                "--entity-type",
                "users",
                "--entity-name",
                "ann",
                "--add-config",
                &format!("{scram}=[password={PASSWORD}]"),
            ]);
        }
        secured
    }

    fn tls(&self) -> Tls {
        Tls { ca: Some(self.authority.file.clone()), identity: None }
    }

    fn mutual(&self) -> Tls {
        let Issued { certificate, key, .. } = self.client.clone();
        Tls { identity: Some(Identity { certificate, key, key_password: None }), ..self.tls() }
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        script(&["wipe", "--name", &self.name]);
    }
}

/// Runs deploy/servers/kafka, and returns what it prints.
fn script(arguments: &[&str]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/servers/kafka");
    let output = Command::new(script).args(arguments).output().expect("run deploy/servers/kafka");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || std::thread::panicking(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn login(mechanism: Mechanism) -> Sasl {
    Sasl { mechanism, user: "ann".to_owned(), password: PASSWORD.to_owned() }
}

fn reached(bootstrap: &str, security: Security) -> Kafka {
    Kafka { bootstrap: bootstrap.to_owned(), security, ..Kafka::default() }
}

/// A topic made, turns appended, processed in transactions, read as committed, and by a group that goes on where it was.
async fn whole_cycle(kafka: &Kafka, contexts: &Contexts, case: &str) {
    let codec = Arc::new(Codec::embedded());
    let admin = Admin::connect(kafka).unwrap();
    let own = TopicSpec { name: case.replace(' ', "."), partitions: 1, replication: 1, config: Default::default() };
    assert_eq!(admin.create(&[own.clone()]).await.unwrap(), [own.name], "{case}");
    admin.create(&tests::topics(2, &[])).await.unwrap();

    let mut tail = Tail::open(kafka, TURNS_ENRICHED, From::End).await.unwrap();
    let producer = Producer::connect(kafka, &ProducerLimits::default()).unwrap();
    for n in 0..TURNS {
        let turn = turn(&format!("room-{}", n % 3), &format!("{case} {n}"), "a word");
        let record = Record {
            topic: TURNS_RECEIVED.to_owned(),
            key: Some(turn.conversation.clone().into_bytes()),
            value: Some(codec.encode(&turn).unwrap()),
            ..Record::default()
        };
        producer.append(record).await.unwrap_or_else(|error| panic!("{case}: {error}"));
    }

    let role = Role::start_on(kafka, contexts, &Setup::named("a"));
    let mut ids = BTreeSet::new();
    while ids.len() < TURNS {
        let message = tokio::time::timeout(PATIENCE, tail.next()).await;
        let message = message.unwrap_or_else(|_| panic!("{case}: {} of {TURNS} turns came", ids.len())).unwrap();
        let turn: Turn = codec.decode(message.value.as_deref().unwrap()).unwrap();
        assert!(ids.insert(turn.id), "{case}: {turn:?} came twice");
    }
    role.stop().await.unwrap();

    let mut reader = GroupReader::join(kafka, "readers", TURNS_ENRICHED).unwrap();
    let mut read = 0;
    let begun = Instant::now();
    while read < TURNS {
        assert!(begun.elapsed() < PATIENCE, "{case}: the group read {read} of {TURNS}");
        read += reader.batch(TURNS, Duration::from_millis(100)).await.unwrap().len();
    }
    assert_eq!(read, TURNS, "{case}");
    reader.commit().await.unwrap();
    let committed = admin.committed("readers", TURNS_ENRICHED).await.unwrap();
    assert!(!committed.is_empty(), "{case}");
    reader.close().await;
}

/// Who is refused, and what is said to it.
async fn refused(case: &str, kafka: Kafka, said: &[&str]) {
    let begun = Instant::now();
    let error = Admin::connect(&kafka).unwrap().reachable(ANSWER_WITHIN).await.unwrap_err();
    assert!(begun.elapsed() < 2 * ANSWER_WITHIN, "{case} took {:?}", begun.elapsed());
    let text = error.to_string();
    println!("{case}: {text}");
    assert!(said.iter().all(|said| text.contains(said)), "{case}: {text}");
    let refusal = matches!(error, LogError::Unauthorized(_));
    assert_eq!(refusal, !said.contains(&"security_protocol"), "{case}: {error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_protocol_with_every_mechanism_works_and_refusals_name_the_setting() {
    let server = tokio::task::spawn_blocking(Secured::start).await.unwrap();

    let mut cases = vec![("ssl".to_owned(), reached(&server.ssl, Security { tls: Some(server.mutual()), sasl: None }))];
    for mechanism in MECHANISMS {
        let sasl = Some(login(mechanism));
        let both = Security { tls: Some(server.tls()), sasl: sasl.clone() };
        cases.push((format!("sasl_ssl {mechanism:?}"), reached(&server.sasl_ssl, both)));
        let clear = Security { tls: None, sasl };
        cases.push((format!("sasl_plaintext {mechanism:?}"), reached(&server.sasl_plaintext, clear)));
    }
    let contexts = Contexts::in_memory().await.unwrap();
    for (case, kafka) in &cases {
        assert!(case.starts_with(kafka.security.protocol()), "{case}");
        whole_cycle(kafka, &contexts, case).await;
    }

    for mechanism in MECHANISMS {
        let sasl = Some(Sasl { password: "wrong".to_owned(), ..login(mechanism) });
        let security = Security { tls: Some(server.tls()), sasl };
        let case = format!("wrong password, {mechanism:?}");
        refused(&case, reached(&server.sasl_ssl, security), &["[kafka] user, password"]).await;
    }
    let sasl = Some(login(Mechanism::Plain));
    let stranger = Authority::new(server.folder.path(), "stranger");
    let tls = |ca: &Authority| Some(Tls { ca: Some(ca.file.clone()), identity: None });
    let untrusted = Security { tls: tls(&stranger), sasl: sasl.clone() };
    refused("wrong authority", reached(&server.sasl_ssl, untrusted), &["certificate", "[kafka] ca_file"]).await;
    let trusted = Security { tls: tls(&server.authority), sasl: sasl.clone() };
    let other_name = server.sasl_ssl.replace("127.0.0.1", "localhost");
    refused("wrong host name", reached(&other_name, trusted.clone()), &["[kafka] bootstrap the host"]).await;
    let unknown = Security { tls: Some(server.tls()), sasl: None };
    refused("no certificate", reached(&server.ssl, unknown), &["[kafka]", "certificate_file"]).await;
    // What cannot be told from brokers that are going away is told as what it may be.
    let clear = reached(&server.sasl_ssl, Security::default());
    refused("in the clear, where TLS is spoken", clear, &["Disconnected", "security_protocol"]).await;
    let encrypted = reached(&server.sasl_plaintext, trusted.clone());
    refused("TLS, where nobody speaks it", encrypted, &["SSL handshake failed", "security_protocol"]).await;
    let nameless = reached(&server.sasl_ssl, Security { tls: tls(&server.authority), sasl: None });
    refused("no login, where one is asked for", nameless, &["security_protocol"]).await;

    program(&server).await;
    tokio::task::spawn_blocking(|| drop(server)).await.unwrap();
}

/// The whole program, by configuration alone; and with a wrong password it ends at once and says why.
async fn program(server: &Secured) {
    let mut config = Config::at(&server.folder.path().join("program"));
    config.context.only_machine = true;
    config.kafka.partitions = tests::APACHE_PARTITIONS;
    config.kafka.bootstrap.clone_from(&server.sasl_ssl);
    config.kafka.security_protocol = Protocol::SaslSsl;
    config.kafka.ca_file.clone_from(&server.authority.file);
    config.kafka.sasl_mechanism = "SCRAM-SHA-512".to_owned();
    config.kafka.user = "ann".to_owned();
    config.kafka.password = PASSWORD.into();
    config.check().unwrap();
    let running = up::start(config.clone(), &[]).await.unwrap_or_else(|error| panic!("start: {error:#}"));
    assert_eq!(echo(&running, "my words").await["text"], "my words");
    assert!(running.stop().await.drained);

    config.kafka.password = "wrong".into();
    let begun = Instant::now();
    let error = format!("{:#}", up::start(config, &[]).await.map(drop).unwrap_err());
    assert!(error.contains("[kafka] user, password"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
}

/// Says something, and returns the enriched turn that comes of it.
async fn echo(running: &Running, text: &str) -> Value {
    let address = running.http();
    let (mut stream, _) = tokio_tungstenite::connect_async(format!("ws://{address}/v1/stream")).await.unwrap();
    let (mut door, _) = tokio_tungstenite::connect_async(format!("ws://{address}/ingest/ws")).await.unwrap();
    let follow = json!({ "type": "follow", "conversations": ["secured"] });
    stream.send(Message::text(follow.to_string())).await.unwrap();
    let said = json!({ "id": "1", "conversation": "secured", "sender": { "id": "ann" }, "text": text });
    loop {
        let frame = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a turn comes in time");
        let Message::Text(frame) = frame.unwrap().unwrap() else { continue };
        let mut frame: Value = serde_json::from_str(&frame).unwrap();
        match frame["type"].as_str() {
            Some("following") => door.send(Message::text(said.to_string())).await.unwrap(),
            Some("turn") => return frame["turn"].take(),
            _ => {}
        }
    }
}
