//! Whole pipelines with a schema registry outside: one in this process, or the Apicurio Registry that
//! `UNDERTONE_TEST_APICURIO` names, behind a gate that takes it away.

use std::process::Command;
use std::time::Duration;

use opentelemetry::metrics::MeterProvider as _;
use schemas::{Codec, Kind, Turn, latest, topic};
use serde_json::{Value, json};
use store::log::{From, Kafka, Message, Producer, ProducerLimits, Record, Tail};
use store::registry::subjects::{self, LEVEL};
use store::registry::{Client, Subject};
use tests::registry::Registry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use undertone::config::{Config, RegistryKind};
use undertone::up::{self, Running};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

fn configured(registry: &Registry) -> (Config, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::at(dir.path());
    config.registry.kind = RegistryKind::Confluent;
    config.registry.url = vec![registry.url()];
    config.registry.tries_max = 2;
    (config, dir)
}

fn client(registry: &Registry) -> Client {
    let meter = opentelemetry_sdk::metrics::SdkMeterProvider::default().meter("test");
    Client::new(&registry.settings(), &meter).unwrap()
}

/// Registers all schemas, as a deployment does; returns the id of a turn.
async fn apply(client: &Client) -> u32 {
    let wanted: Vec<Subject> = topic::wanted(&[]).iter().filter_map(|topic| Subject::of(&topic.name)).collect();
    let mut turn = 0;
    for finding in subjects::compare(client, &wanted).await.unwrap() {
        let place = subjects::apply(client, &finding).await.unwrap();
        if finding.subject.kind == Kind::Turn {
            turn = place.id;
        }
    }
    turn
}

/// A release to come: one field more in front, with a name that no earlier test has registered.
fn newer() -> String {
    let mut schema: Value = serde_json::from_str(latest(Kind::Turn).text).unwrap();
    let name = format!("of_{}", uuid::Uuid::new_v4().simple());
    let field = json!({ "name": name, "type": ["null", "string"], "default": null });
    schema["fields"].as_array_mut().unwrap().insert(0, field);
    schema.to_string()
}

fn kafka(running: &Running) -> Kafka {
    Kafka { bootstrap: running.kafka().to_owned(), client_id: "test".to_owned(), ..Kafka::default() }
}

/// Appends a turn as a producer of another team does, with these bytes.
async fn append(running: &Running, turn: &Turn, value: Vec<u8>) {
    let producer = Producer::connect(&kafka(running), &ProducerLimits::default()).unwrap();
    let record = Record {
        topic: topic::TURNS_RECEIVED.to_owned(),
        partition: None,
        key: Some(turn.conversation.clone().into_bytes()),
        value: Some(value),
        headers: Vec::new(),
        timestamp: tests::now(),
    };
    producer.append(record).await.unwrap();
}

async fn next(tail: &mut Tail) -> Message {
    tokio::time::timeout(PATIENCE, tail.next()).await.expect("a turn comes in time").unwrap()
}

fn id(message: &Message) -> u32 {
    u32::from_be_bytes(message.value.as_ref().unwrap()[1..5].try_into().unwrap())
}

async fn get(running: &Running, path: &str) -> (u16, String) {
    let mut socket = tokio::net::TcpStream::connect(running.http()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", running.http());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_goes_on_while_the_registry_is_away() {
    let registry = Registry::start().await;
    let turn_id = apply(&client(&registry)).await;
    let (config, _dir) = configured(&registry);
    let running = up::start(config, &[]).await.unwrap();
    let mut enriched = Tail::open(&kafka(&running), topic::TURNS_ENRICHED, From::Beginning).await.unwrap();
    let codec = Codec::embedded();
    let say = async |number: usize| {
        let turn = tests::turn("room", &format!("c{number}"), "what a lovely day");
        // Under the ids that are compiled in: from before there was this registry.
        append(&running, &turn, codec.encode(&turn).unwrap()).await;
    };
    say(0).await;
    assert_eq!(id(&next(&mut enriched).await), turn_id, "the processors write under the registry's ids");
    registry.close();
    for number in 1..=20 {
        say(number).await;
        assert_eq!(id(&next(&mut enriched).await), turn_id);
    }
    assert_eq!(running.health().reasons(), [], "what goes on is ready");
    let (status, body) = get(&running, "/v1/conversations/room/turns").await;
    assert_eq!((status, body.contains("what a lovely day")), (200, true), "{body}");
    let (status, body) = get(&running, "/registry/subjects").await;
    assert!(status == 404 && body.contains(&registry.url()), "{status} {body}");
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_a_newer_release_waits_for_the_registry_and_is_not_rejected() {
    let registry = Registry::start().await;
    let client = client(&registry);
    apply(&client).await;
    let (config, _dir) = configured(&registry);
    let running = up::start(config, &[]).await.unwrap();
    // Registered after the start, so that no process here knows it.
    let newer_id = client.register(&topic::subject(topic::TURNS_RECEIVED), &newer()).await.unwrap();
    registry.close();
    let turn = tests::turn("room", "c0", "what a lovely day");
    let mut value = Codec::embedded().encode(&turn).unwrap();
    value[1..5].copy_from_slice(&newer_id.to_be_bytes());
    value.insert(5, 0);
    append(&running, &turn, value).await;
    let waits = tokio::time::timeout(PATIENCE, async {
        loop {
            let reasons = running.health().reasons();
            if let Some(reason) = reasons.into_iter().find(|reason| reason.part == "registry") {
                return reason;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    });
    let reason = waits.await.expect("the process says what it waits for");
    assert!(reason.reason.contains("[registry] url") && reason.since > 0, "{reason:?}");
    registry.open();
    let mut enriched = Tail::open(&kafka(&running), topic::TURNS_ENRICHED, From::Beginning).await.unwrap();
    let message = next(&mut enriched).await;
    assert_eq!(message.key.as_deref(), Some(&b"room"[..]));
    assert_eq!(running.health().reasons(), []);
    let admin = store::log::Admin::connect(&kafka(&running)).unwrap();
    let rejects = admin.offsets(topic::REJECTS).await.unwrap();
    assert!(rejects.values().all(|(_, end)| *end == 0), "{rejects:?}");
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_waits_for_the_registry() {
    let registry = Registry::start().await;
    apply(&client(&registry)).await;
    registry.close();
    let (config, _dir) = configured(&registry);
    let starting = tokio::spawn(up::start(config, &[]));
    registry.turned_away().await;
    assert!(!starting.is_finished());
    registry.open();
    let running = tokio::time::timeout(PATIENCE, starting).await.expect("it starts in time").unwrap().unwrap();
    assert_eq!(running.health().reasons(), []);
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_gives_up_with_the_mend() {
    let registry = Registry::in_process().await;
    let (mut config, _dir) = configured(&registry);
    let missing = format!("{:#}", up::start(config.clone(), &[]).await.unwrap_err());
    assert!(missing.contains("undertone topics apply"), "{missing}");
    registry.close();
    config.registry.away_seconds_max = 0;
    let away = format!("{:#}", up::start(config, &[]).await.unwrap_err());
    assert!(away.contains(&registry.url()) && away.contains("[registry] url"), "{away}");
}

/// Runs `undertone topics ARGUMENTS`; returns the exit status and all that it printed.
fn topics(registry: &Registry, arguments: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.arg("topics").args(arguments.split(' ').filter(|argument| !argument.is_empty()));
    command.env("UNDERTONE__REGISTRY__KIND", "confluent").env("UNDERTONE__REGISTRY__URL", registry.url());
    let output = command.output().expect("run the program");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("it prints text"))
}

#[tokio::test(flavor = "multi_thread")]
async fn schemas_are_registered_by_a_step_of_the_deployment() {
    let registry = Registry::in_process().await;
    let subject = topic::subject(topic::TURNS_ENRICHED);
    let (code, said) = topics(&registry, "--schemas");
    assert!(code == Some(0) && said.contains("missing") && said.contains("topics apply"), "{said}");
    let (code, said) = topics(&registry, "apply --schemas --dry-run");
    assert!(code == Some(0) && said.contains("8 would be registered"), "{said}");
    assert_eq!(client(&registry).versions(&subject).await.unwrap(), [0; 0], "a dry run registers nothing");
    let (code, said) = topics(&registry, "apply --schemas");
    assert!(code == Some(0) && said.contains("8 registered") && said.contains("version 1"), "{said}");
    let (code, said) = topics(&registry, "apply --schemas");
    assert!(code == Some(0) && said.contains("0 registered"), "{said}");
    let (code, said) = topics(&registry, "--schemas");
    assert!(code == Some(0) && said.contains("all registered") && said.contains(LEVEL), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_the_registry_refuses_is_told_with_the_mend() {
    let registry = Registry::in_process().await;
    let client = client(&registry);
    let subject = topic::subject(topic::TURNS_ENRICHED);
    client.register(&subject, r#"{"type":"record","name":"Turn","fields":[{"name":"a","type":"int"}]}"#).await.unwrap();
    client.set_level(&subject, LEVEL).await.unwrap();
    for arguments in ["apply --schemas --dry-run", "apply --schemas"] {
        let (code, said) = topics(&registry, arguments);
        assert!(code == Some(1) && said.contains("incompatible") && said.contains("a default"), "{said}");
    }
    assert_eq!(client.versions(&subject).await.unwrap(), [1]);
    // The others are none the worse for it.
    assert_eq!(client.versions(&topic::subject(topic::REJECTS)).await.unwrap(), [1]);
}

#[test]
fn a_registry_that_does_not_answer_is_told_with_the_mend() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = runtime.block_on(Registry::in_process());
    registry.close();
    let (code, said) = topics(&registry, "apply --schemas");
    assert!(code == Some(1) && said.contains(&registry.url()) && said.contains("[registry] url"), "{said}");
}
