//! The journey of a turn from the webhook to the socket, through every role in this process, with the real models; on
//! the embedded broker, and on the Apache Kafka that `UNDERTONE_TEST_KAFKA` names.

use futures_util::{SinkExt as _, StreamExt as _};
use schemas::topic::{FEEDBACK, REJECTS, TURNS_ENRICHED, TURNS_RECEIVED};
use schemas::{Codec, Feedback, Payload, Reject, TraceParent, Turn};
use serde_json::{Value, json};
use store::log::{From, Kafka, Message, Producer, ProducerLimits, Record, Tail};
use tests::{PATIENCE, Server};
use tokio_tungstenite::tungstenite::Message as Frame;
use undertone::config::Config;
use undertone::up::{self, Running};

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

const SECRET: &str = "0123456789";
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Everything in this process but, where the test runs on an Apache Kafka, the broker.
async fn started(server: &Server) -> Running {
    let mut config = Config::at(server.folder());
    if let Some(bootstrap) = server.apache() {
        config.kafka.bootstrap = bootstrap.to_owned();
        config.context.only_machine = true;
        config.kafka.partitions = tests::APACHE_PARTITIONS;
    }
    let bot = undertone::config::Bot { webhook_secret: SECRET.into() };
    config.telegram.bots.insert("helper".to_owned(), bot);
    up::start(config, &[]).await.unwrap_or_else(|error| panic!("start: {error:#}"))
}

fn update(update_id: u32, chat: i64, text: &str) -> Value {
    json!({
        "update_id": update_id,
        "message": {
            "message_id": update_id,
            "from": { "id": 42, "is_bot": false, "first_name": "Ann", "language_code": "en" },
            "chat": { "id": chat, "type": "private", "first_name": "Ann" },
            "date": 1_700_000_000,
            "text": text,
        },
    })
}

async fn call(running: &Running, body: String) -> reqwest::StatusCode {
    let request = reqwest::Client::new()
        .post(format!("{}/telegram/helper/webhook", running.url()))
        .header("x-telegram-bot-api-secret-token", SECRET)
        .header("content-type", "application/json")
        .header("traceparent", TRACE)
        .header("x-correlation-id", "journey-1")
        .body(body);
    request.send().await.expect("the webhook answers").status()
}

async fn follow(running: &Running, conversation: &str, resume: Option<&str>) -> Socket {
    let url = format!("ws://{}/v1/stream", running.http());
    let (mut socket, _) = tokio_tungstenite::connect_async(url).await.expect("the stream takes sockets");
    let mut command = json!({ "type": "follow", "conversations": [conversation] });
    if let Some(token) = resume {
        command["resume"] = json!(token);
    }
    socket.send(Frame::text(command.to_string())).await.expect("the socket is open");
    socket
}

/// The next event of this type.
async fn event(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let frame = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an event comes in time");
        let Frame::Text(text) = frame.expect("the socket is open").expect("a good frame") else { continue };
        let event: Value = serde_json::from_str(&text).expect("events are JSON");
        if event["type"] == kind {
            return event;
        }
    }
}

fn kafka(running: &Running) -> Kafka {
    Kafka { bootstrap: running.kafka().to_owned(), client_id: "test".to_owned(), ..Kafka::default() }
}

async fn first<T: Payload>(running: &Running, topic: &str) -> (Message, T) {
    let mut tail = Tail::open(&kafka(running), topic, From::Beginning).await.expect("open a tail");
    let message = tokio::time::timeout(PATIENCE, tail.next()).await.expect("a record in time").expect("a record");
    let value = Codec::embedded().decode(message.value.as_deref().expect("a value")).expect("a known schema");
    (message, value)
}

fn header<'m>(message: &'m Message, name: &str) -> &'m str {
    let found = message.headers.iter().find(|(n, _)| n == name);
    let (_, value) = found.unwrap_or_else(|| panic!("no header {name} in {:?}", message.headers));
    std::str::from_utf8(value).expect("headers are text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_goes_from_the_webhook_to_the_socket_under_one_trace() {
    let server = Server::for_program().await;
    let running = started(&server).await;
    let mut socket = follow(&running, "telegram:helper:7", None).await;
    event(&mut socket, "following").await;

    assert_eq!(call(&running, update(1, 7, "Thank you so much, I love this!").to_string()).await, 200);
    let event = event(&mut socket, "turn").await;
    let turn = &event["turn"];
    assert_eq!(turn["text"], "Thank you so much, I love this!");
    assert_eq!(turn["position"], 1);
    assert_eq!(turn["encoding"]["language"], "eng");
    let probabilities = &turn["emotion"]["probabilities"];
    assert!(probabilities["gratitude"].as_f64().unwrap() > 0.5, "{probabilities}");
    assert!(turn["emotion"]["mood"]["valence"].as_f64().unwrap() > 0.0);

    // The correlation id and the trace stand in every topic that the turn passed, and at the socket.
    let trace = TraceParent::parse(TRACE).unwrap();
    let (received, _) = first::<Turn>(&running, TURNS_RECEIVED).await;
    let (enriched, _) = first::<Turn>(&running, TURNS_ENRICHED).await;
    let mut spans = vec![trace.parent_id];
    for message in [&received, &enriched] {
        assert_eq!(header(message, "correlationid"), "journey-1");
        let here = TraceParent::parse(header(message, "traceparent")).unwrap();
        assert_eq!(here.trace_id, trace.trace_id);
        assert!(!spans.contains(&here.parent_id), "every step has a span of its own");
        spans.push(here.parent_id);
    }
    assert_eq!(event["correlation_id"], "journey-1");
    assert_eq!(TraceParent::parse(event["traceparent"].as_str().unwrap()).unwrap().trace_id, trace.trace_id);
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_sent_twice_is_one_turn_and_what_is_no_turn_is_not_lost() {
    let server = Server::for_program().await;
    let running = started(&server).await;
    let mut socket = follow(&running, "telegram:helper:7", None).await;
    event(&mut socket, "following").await;

    let once = update(1, 7, "hello").to_string();
    let unknown = json!({ "update_id": 2, "levitation": { "height_m": 3 } }).to_string();
    let reaction = json!({
        "update_id": 3,
        "message_reaction": {
            "chat": { "id": 7, "type": "private", "first_name": "Ann" },
            "message_id": 1,
            "user": { "id": 42, "is_bot": false, "first_name": "Ann" },
            "date": 1_700_000_001,
            "old_reaction": [],
            "new_reaction": [{ "type": "emoji", "emoji": "👍" }],
        },
    });
    let last = update(4, 7, "bye").to_string();
    for body in [once.clone(), once, unknown.clone(), reaction.to_string(), last] {
        assert_eq!(call(&running, body).await, 200);
    }
    let turns = [event(&mut socket, "turn").await, event(&mut socket, "turn").await];
    let texts: Vec<_> = turns.iter().map(|event| event["turn"]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["hello", "bye"]);
    assert_eq!(turns[1]["turn"]["position"], 2);
    let (_, reject) = first::<Reject>(&running, REJECTS).await;
    assert_eq!((reject.raw.as_slice(), reject.reason.as_str()), (unknown.as_bytes(), "unknown_kind"));
    let (_, feedback) = first::<Feedback>(&running, FEEDBACK).await;
    assert_eq!(feedback.reactions[0].emoji, "👍");
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_in_the_log_is_passed_by_and_kept() {
    let server = Server::for_program().await;
    let running = started(&server).await;
    let mut socket = follow(&running, "room", None).await;
    event(&mut socket, "following").await;
    let producer = Producer::connect(&kafka(&running), &ProducerLimits::default()).unwrap();
    let record = |value: Vec<u8>| Record {
        topic: TURNS_RECEIVED.to_owned(),
        key: Some(b"room".to_vec()),
        value: Some(value),
        ..Record::default()
    };
    let good = Codec::embedded().encode(&tests::turn("room", "1", "good morning")).unwrap();
    for value in [b"poison".to_vec(), vec![0, 0, 0, 0, 1, 9], good] {
        producer.append(record(value)).await.unwrap();
    }
    assert_eq!(event(&mut socket, "turn").await["turn"]["text"], "good morning");
    let (_, reject) = first::<Reject>(&running, REJECTS).await;
    assert_eq!(reject.topic.as_deref(), Some(TURNS_RECEIVED));
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_comes_back_after_a_crash_misses_nothing_and_sees_nothing_twice() {
    let server = Server::for_program().await;
    let running = started(&server).await;
    let mut socket = follow(&running, "telegram:helper:7", None).await;
    event(&mut socket, "following").await;
    for n in 1..=3 {
        assert_eq!(call(&running, update(n, 7, &format!("number {n}")).to_string()).await, 200);
    }
    let mut token = String::new();
    for n in 1..=3 {
        let event = event(&mut socket, "turn").await;
        assert_eq!(event["turn"]["position"], n);
        token = event["resume"].as_str().unwrap().to_owned();
    }
    // Said while nobody listens, and cut off by a crash right after the acknowledgement.
    assert_eq!(call(&running, update(4, 7, "number 4").to_string()).await, 200);
    running.kill();

    let running = started(&server).await;
    assert_eq!(call(&running, update(4, 7, "number 4").to_string()).await, 200, "Telegram sends it again");
    assert_eq!(call(&running, update(5, 7, "number 5").to_string()).await, 200);
    let mut socket = follow(&running, "telegram:helper:7", Some(&token)).await;
    for n in 4..=5 {
        let event = event(&mut socket, "turn").await;
        assert_eq!((&event["turn"]["position"], &event["turn"]["text"]), (&json!(n), &json!(format!("number {n}"))));
        assert_eq!(event["turn"]["emotion"]["mood"]["turns"], n, "each turn was folded once");
    }
    assert!(running.stop().await.drained);
}
