//! One trace from the webhook to the socket, exported by OTLP to a collector in this process, and a log that names it
//! without a word of what was said.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::HeaderMap;
use futures_util::{SinkExt as _, StreamExt as _};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message as _;
use schemas::TraceParent;
use schemas::topic::{REJECTS, TURNS_RECEIVED};
use serde_json::{Value, json};
use store::log::{From, Kafka, Producer, ProducerLimits, Record, Tail};
use tests::{PATIENCE, Server};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Frame;
use undertone::config::{Config, Log, LogFormat};
use undertone::telemetry;
use undertone::up::{self, Running};

const SECRET: &str = "0123456789";
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// An endpoint that takes OTLP over HTTP as a collector does.
struct Collector {
    url: String,
    taken: mpsc::UnboundedReceiver<ExportTraceServiceRequest>,
    spans: Vec<Span>,
}

impl Collector {
    async fn start() -> Collector {
        let (sender, taken) = mpsc::unbounded_channel();
        let take = async |State(sender): State<Arc<mpsc::UnboundedSender<_>>>, headers: HeaderMap, body: Bytes| {
            assert_eq!(headers["content-type"], "application/x-protobuf");
            sender.send(ExportTraceServiceRequest::decode(body).expect("a request of OTLP")).unwrap();
        };
        let router = axum::Router::new().route("/v1/traces", axum::routing::post(take)).with_state(Arc::new(sender));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Collector { url, taken, spans: Vec::new() }
    }

    /// The spans of a trace by name, once `count` of them have come.
    async fn spans(&mut self, trace_id: [u8; 16], count: usize) -> BTreeMap<String, Span> {
        loop {
            let ours = self.spans.iter().filter(|span| span.trace_id == trace_id);
            let ours: BTreeMap<String, Span> = ours.map(|span| (span.name.clone(), span.clone())).collect();
            if ours.len() >= count {
                return ours;
            }
            let names: Vec<&String> = ours.keys().collect();
            let request = tokio::time::timeout(PATIENCE, self.taken.recv()).await;
            let request = request.unwrap_or_else(|_| panic!("{count} spans come in time, not {names:?}"));
            for resource in request.expect("the collector runs").resource_spans {
                let attributes = &resource.resource.as_ref().expect("spans have a resource").attributes;
                let name = attributes.iter().find(|pair| pair.key == "service.name").expect("a service's name");
                assert_eq!(name.value.clone().unwrap().value, Some(Any::StringValue("undertone".to_owned())));
                self.spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
    }
}

async fn started(server: &Server, change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::at(server.folder());
    if let Some(bootstrap) = server.apache() {
        config.kafka.bootstrap = bootstrap.to_owned();
        config.context.only_machine = true;
        config.kafka.partitions = tests::APACHE_PARTITIONS;
    }
    let bot = undertone::config::Bot { webhook_secret: SECRET.into() };
    config.telegram.bots.insert("helper".to_owned(), bot);
    change(&mut config);
    up::start(config, &[]).await.unwrap_or_else(|error| panic!("start: {error:#}"))
}

/// Follows the chat, says something in it by the webhook, and returns the events of the socket.
async fn said(running: &Running, calls: &[(&str, Option<&str>)]) -> Vec<Value> {
    let (mut socket, _) = tokio_tungstenite::connect_async(format!("ws://{}/v1/stream", running.http())).await.unwrap();
    let follow = json!({ "type": "follow", "conversations": ["telegram:helper:7"] });
    socket.send(Frame::text(follow.to_string())).await.unwrap();
    socket.next().await.unwrap().unwrap();
    for (number, (text, trace)) in calls.iter().enumerate() {
        let update = json!({
            "update_id": number,
            "message": {
                "message_id": number,
                "from": { "id": 42, "is_bot": false, "first_name": "Ann" },
                "chat": { "id": 7, "type": "private", "first_name": "Ann" },
                "date": 1_700_000_000,
                "text": text,
            },
        });
        let mut call = reqwest::Client::new()
            .post(format!("{}/telegram/helper/webhook", running.url()))
            .header("x-telegram-bot-api-secret-token", SECRET)
            .body(update.to_string());
        if let Some(trace) = trace {
            call = call.header("traceparent", *trace).header("x-correlation-id", "call-1");
        }
        assert_eq!(call.send().await.unwrap().status(), 200);
    }
    let mut events = Vec::new();
    while events.len() < calls.len() {
        let frame = tokio::time::timeout(PATIENCE, socket.next()).await.expect("an event comes in time");
        let Frame::Text(text) = frame.unwrap().unwrap() else { continue };
        let event: Value = serde_json::from_str(&text).unwrap();
        if event["type"] == "turn" {
            events.push(event);
        }
    }
    events
}

fn trace_of(event: &Value) -> TraceParent {
    TraceParent::parse(event["traceparent"].as_str().expect("an event names its trace")).unwrap()
}

fn text_of<'s>(span: &'s Span, name: &str) -> &'s str {
    let pair = span.attributes.iter().find(|pair| pair.key == name);
    match pair.and_then(|pair| pair.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text,
        other => panic!("{} has no text {name}: {other:?}", span.name),
    }
}

/// Every span of a turn, with the one that it stands below.
const TREE: [(&str, &str, SpanKind); 22] = [
    ("append", "intake", SpanKind::Producer),
    ("process", "append", SpanKind::Consumer),
    ("load contexts", "process", SpanKind::Internal),
    ("infer encode", "process", SpanKind::Internal),
    ("infer emotion", "process", SpanKind::Internal),
    ("infer personality", "process", SpanKind::Internal),
    ("infer dialogue", "process", SpanKind::Internal),
    ("infer coherence", "process", SpanKind::Internal),
    ("infer memory", "process", SpanKind::Internal),
    ("infer synesthesia", "process", SpanKind::Internal),
    ("fold encode", "process", SpanKind::Internal),
    ("fold emotion", "process", SpanKind::Internal),
    ("fold personality", "process", SpanKind::Internal),
    ("fold dialogue", "process", SpanKind::Internal),
    ("fold coherence", "process", SpanKind::Internal),
    ("fold memory", "process", SpanKind::Internal),
    ("fold synesthesia", "process", SpanKind::Internal),
    ("save contexts", "process", SpanKind::Internal),
    ("commit", "process", SpanKind::Internal),
    ("keep", "process", SpanKind::Consumer),
    ("deliver", "process", SpanKind::Consumer),
    ("send", "deliver", SpanKind::Internal),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_webhook_to_the_socket_with_every_step_under_its_parent() {
    let (server, mut collector) = (Server::for_program().await, Collector::start().await);
    let running = started(&server, |config| {
        config.telemetry.otlp_endpoint = collector.url.clone();
        config.telemetry.sampling_ratio = 1.0;
    })
    .await;
    let events = said(&running, &[("Thank you so much!", Some(CALLER)), ("And again.", None)]).await;
    let caller = TraceParent::parse(CALLER).unwrap();
    for (event, parent) in events.iter().zip([&caller.parent_id[..], &[]]) {
        let trace = trace_of(event);
        let spans = collector.spans(trace.trace_id, TREE.len() + 1).await;
        let intake = &spans["intake"];
        assert_eq!((intake.parent_span_id.as_slice(), intake.kind()), (parent, SpanKind::Server));
        for (name, parent, kind) in TREE {
            let span = spans.get(name).unwrap_or_else(|| panic!("no {name} among {:?}", spans.keys()));
            assert_eq!(span.parent_span_id, spans[parent].span_id, "{name} stands below {parent}");
            assert_eq!(span.kind(), kind, "{name}");
            assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{name}");
            assert!(span.start_time_unix_nano >= intake.start_time_unix_nano, "{name}");
        }
        assert_eq!(spans.len(), TREE.len() + 1, "{:?}", spans.keys());
        assert_eq!(spans["deliver"].span_id, trace.parent_id, "a client's own spans go on below the delivery");
        let process = &spans["process"];
        for step in TREE.iter().filter(|(_, parent, kind)| *parent == "process" && *kind == SpanKind::Internal) {
            assert!(spans[step.0].end_time_unix_nano <= process.end_time_unix_nano, "{}", step.0);
        }
        assert_eq!(text_of(process, "undertone.id"), event["turn"]["id"].as_str().unwrap());
        assert_eq!(text_of(process, "undertone.correlation_id"), event["correlation_id"].as_str().unwrap());
        let ids: std::collections::BTreeSet<_> = spans.values().map(|span| span.span_id.clone()).collect();
        assert_eq!(ids.len(), spans.len(), "every span has an id of its own");
    }
    assert_eq!(trace_of(&events[0]).trace_id, caller.trace_id);
    for span in &collector.spans {
        assert!(!format!("{span:?}").contains("Thank you"), "no span holds what was said: {span:?}");
    }
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_spans_and_nothing_else() {
    let server = Server::for_program().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = format!("http://{}", taken.local_addr().unwrap());
    drop(taken);
    let running = started(&server, |config| {
        config.telemetry.otlp_endpoint = gone;
        config.telemetry.sampling_ratio = 1.0;
    })
    .await;
    said(&running, &[("hello", None)]).await;
    let dropped = async {
        loop {
            let metrics = reqwest::get(format!("{}/metrics", running.url())).await.unwrap().text().await.unwrap();
            if metrics.contains("undertone_telemetry_spans_dropped_total{reason=\"export_failed\"}") {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("what was dropped is counted");
    assert!(running.stop().await.drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_names_trace_and_correlation_and_never_a_word_of_what_was_said() {
    let server = Server::for_program().await;
    let log = server.folder().join("undertone.log");
    let settings = Log { format: LogFormat::Json, level: "info,ingest=debug,processors=debug,store=debug".to_owned() };
    telemetry::start_log(&settings, Some(log.as_path())).unwrap();
    let running = started(&server, |_| {}).await;
    said(&running, &[("marzipan", Some(CALLER))]).await;
    let kafka = Kafka { bootstrap: running.kafka().to_owned(), ..Kafka::default() };
    let header = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let record = Record {
        topic: TURNS_RECEIVED.to_owned(),
        key: Some(b"room".to_vec()),
        value: Some(b"marzipan".to_vec()),
        headers: vec![header("traceparent", CALLER), header("correlationid", "poison-1")],
        ..Record::default()
    };
    Producer::connect(&kafka, &ProducerLimits::default()).unwrap().append(record).await.unwrap();
    let mut rejects = Tail::open(&kafka, REJECTS, From::Beginning).await.unwrap();
    tokio::time::timeout(PATIENCE, rejects.next()).await.expect("the reject comes in time").unwrap();
    assert!(running.stop().await.drained);

    let text = std::fs::read_to_string(&log).unwrap();
    assert!(!text.contains("marzipan"), "{text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let trace_id = TraceParent::parse(CALLER).unwrap().trace_hex();
    for (message, correlation_id) in [("input appended", "call-1"), ("message rejected", "poison-1")] {
        let named = |line: &&Value| line["message"] == message && line["correlation_id"] == correlation_id;
        let line = lines.iter().find(named).unwrap_or_else(|| panic!("{message} with {correlation_id}:\n{text}"));
        assert_eq!(line["trace_id"], trace_id.as_str(), "{line}");
    }
}
