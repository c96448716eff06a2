//! What the fuzzer calls: one function for each parser of foreign bytes. Each takes any bytes, and panics if the parser
//! does, or if what it made of them breaks one of its promises.
//!
//! `tests/fuzz` wraps them for libFuzzer; `tests/tests/corpus.rs` runs the committed corpus, and changes of it, through
//! them without one.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use broker::{Broker, Config};
use ingest::redrive::{RedriveError, redrive};
use ingest::telegram::{self, Outcome};
use ingest::websocket::frame::{self, Bounds};
use processors::batch::{admit, rejection};
use processors::{Chain, Models, Options, stages};
use schemas::reject::ATTEMPT_HEADER;
use schemas::slice::{
    CoherenceSlice, DialogueSlice, EmotionSlice, EncodeSlice, MemorySlice, PersonalitySlice, Sequence, SynesthesiaSlice,
};
use schemas::{
    Codec, Delivery, Erasure, Feedback, Payload, Redrive, Reject, Reply, Stamp, Tier, TraceParent, Turn, time, topic,
};
use store::context::Version;
use store::log::Message;

/// A target: any bytes in.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 9] = [
    ("telegram", telegram),
    ("frame", frame),
    ("command", command),
    ("avro", avro),
    ("turn", turn),
    ("context", context),
    ("reject", reject),
    ("kafka_request", kafka_request),
    ("record_batch", record_batch),
];

/// When what is read was received.
const RECEIVED_AT: i64 = 1_700_000_000_000;
/// Lower than the real bound, so that it is met.
const TEXT_BYTES_MAX: usize = 512;

fn codec() -> &'static Codec {
    static CODEC: OnceLock<Codec> = OnceLock::new();
    CODEC.get_or_init(Codec::embedded)
}

/// The body of a call of Telegram's webhook.
pub fn telegram(bytes: &[u8]) {
    let parsed = telegram::parse("helper", bytes, RECEIVED_AT, TEXT_BYTES_MAX);
    assert_eq!(parsed, telegram::parse("helper", bytes, RECEIVED_AT, TEXT_BYTES_MAX), "the parser is pure");
    let kinds = telegram::KINDS.iter().copied().chain(["unknown", "malformed"]);
    assert!(kinds.into_iter().any(|kind| kind == parsed.kind), "a label out of the closed set: {}", parsed.kind);
    match parsed.outcome {
        Outcome::Turn(turn) => good(&turn),
        Outcome::Feedback(feedback) => travels(&*feedback),
        Outcome::Reject(reject) => {
            assert_eq!(reject.raw, bytes, "a reject keeps its bytes");
            travels(&*reject);
        }
        Outcome::Counted => {}
    }
}

/// A text frame of a socket that brings turns.
pub fn frame(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let bounds = Bounds { text_bytes_max: TEXT_BYTES_MAX, batch_frames_max: 16 };
    let said = frame::parse(text, RECEIVED_AT, bounds);
    assert!((1..=16).contains(&said.len()), "{} answers", said.len());
    for said in said {
        match said {
            Ok(said) => {
                assert!(!said.turn.conversation.starts_with("telegram:"), "a bot's conversation");
                good(&said.turn);
            }
            Err(error) => assert!(!error.message.is_empty(), "an error without a mend"),
        }
    }
}

/// A frame or a query string of the stream, a resume token, a cursor of a page, a schema that is looked up, a trace context,
/// a time.
pub fn command(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    api::reads_command(text);
    if let Some(trace) = TraceParent::parse(text) {
        assert_eq!(TraceParent::parse(&trace.to_string()), Some(trace));
    }
    if let Some(at) = time::milliseconds(text) {
        let written = schemas::envelope::rfc3339(at);
        // A year before 0 or after 9999 is not written so that it could be read.
        let usual = written.len() == 24 && !written.starts_with('-');
        assert!(!usual || time::milliseconds(&written) == Some(at), "{text:?} is {written}");
    }
}

/// A value of the log.
pub fn avro(bytes: &[u8]) {
    round::<Turn>(bytes);
    round::<Reject>(bytes);
    round::<Redrive>(bytes);
    round::<Reply>(bytes);
    round::<Delivery>(bytes);
    round::<Feedback>(bytes);
    round::<Sequence>(bytes);
    round::<EncodeSlice>(bytes);
    round::<EmotionSlice>(bytes);
    round::<DialogueSlice>(bytes);
    round::<PersonalitySlice>(bytes);
    round::<CoherenceSlice>(bytes);
    round::<SynesthesiaSlice>(bytes);
    round::<MemorySlice>(bytes);
    round::<Erasure>(bytes);
}

/// A record of `turns.received`, or of a topic between two chains: it goes through all that a chain does with it, and comes
/// out enriched, or as a reject. Only the fast tier runs: the transformer is the same code behind the same text.
pub fn turn(bytes: &[u8]) {
    let known: Option<Turn> = codec().decode(bytes).ok();
    let tail = &bytes[bytes.len().saturating_sub(55)..];
    let header = |name: &str| (name.to_owned(), tail.to_vec());
    let message = Message {
        topic: topic::TURNS_RECEIVED.into(),
        partition: 0,
        offset: 7,
        timestamp: RECEIVED_AT,
        key: known.map(|turn| turn.conversation.into_bytes()),
        value: Some(bytes.to_vec()),
        headers: vec![header("correlationid"), header("traceparent"), header(ATTEMPT_HEADER)],
    };
    let chains = chains();
    for chain in [&chains.whole, &chains.second] {
        let (turn, place) = match admit(codec(), chain.is_first(), &message) {
            Ok(admitted) => admitted,
            Err(refused) => {
                let record =
                    rejection(codec(), &refused, message.clone(), RECEIVED_AT).expect("a reject fits its schema");
                let reject: Reject = codec().decode(&record.value.unwrap_or_default()).expect("and is read");
                assert_eq!(reject.raw, bytes, "a reject keeps its bytes");
                continue;
            }
        };
        let mut turns = [Turn { tier: Some(Tier::Fast), ..turn }];
        chain.infer(&mut turns).expect("no text is a fault of ours");
        let [turn] = &mut turns;
        let mut conversation =
            chain.open(&turn.conversation, HashMap::new()).expect("a conversation without slices is new");
        chain.fold(&mut conversation, turn, place.stamp).expect("nor is what it says");
        let record = place.record(codec(), turn, topic::TURNS_ENRICHED, chain.name(), RECEIVED_AT);
        let value = record.expect("an enriched turn fits its schema").value.unwrap_or_default();
        assert_eq!(codec().encode(&codec().decode::<Turn>(&value).expect("and is read")).expect("and written"), value);
        chain.close(conversation).expect("so do the slices");
    }
}

/// A slice of a context, as a store gives it back: of each stage, and turns folded on top. What cannot be folded into is a
/// failure, never another conversation's beginning.
pub fn context(bytes: &[u8]) {
    let Chains { whole, said, .. } = chains();
    let opened = |slice: &'static str, bytes: &[u8]| {
        let version = Version { stamp: Stamp { partition: 0, offset: 1 }, bytes: bytes.to_vec() };
        whole.open("room", HashMap::from([(slice, version)]))
    };
    for slice in whole.slices() {
        let Ok(mut conversation) = opened(slice, bytes) else { continue };
        let mut said = said.iter().cloned().zip(2..);
        if said
            .try_for_each(|(mut turn, offset)| {
                whole.fold(&mut conversation, &mut turn, Stamp { partition: 0, offset }).map(drop)
            })
            .is_err()
        {
            continue;
        }
        let written = whole.close(conversation).expect("what was folded fits its schema");
        let write = written.iter().find(|write| write.stage == slice).expect("every slice is written");
        assert!(opened(slice, &write.current.bytes).is_ok(), "what was written is read again");
    }
}

/// A record of the rejects, read again by the parsers of today as a redrive does.
pub fn reject(bytes: &[u8]) {
    let Ok(reject) = codec().decode::<Reject>(bytes) else { return };
    let headers: Vec<_> = reject.headers.iter().map(|header| (header.name.clone(), header.value.clone())).collect();
    let bounds = Bounds { text_bytes_max: TEXT_BYTES_MAX, batch_frames_max: 16 };
    match redrive(codec(), &reject, &headers, bounds, RECEIVED_AT) {
        Ok(redriven) => assert_eq!(redriven.detail.is_some(), redriven.outcome == "rejected", "{redriven:?}"),
        Err(RedriveError::UnknownSource(_)) => {}
        Err(error) => panic!("{error}"),
    }
}

/// The chains that what is read goes through.
struct Chains {
    /// All stages.
    whole: Chain,
    /// All but the first: it reads what another process wrote.
    second: Chain,
    /// Turns that were inferred, to be folded.
    said: Vec<Turn>,
}

fn chains() -> &'static Chains {
    static CHAINS: OnceLock<Chains> = OnceLock::new();
    CHAINS.get_or_init(|| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let library = root.join(".cache/onnxruntime/libonnxruntime.so");
        let models = Models::open(&root.join("models"), &library, &Options { cores: 1, ..Options::default() });
        let models = models.unwrap_or_else(|error| panic!("{error}"));
        let codec = Arc::new(Codec::embedded());
        let whole = Chain::new(stages::all(&models), true, codec.clone());
        let second = Chain::new(stages::all(&models).drain(1..).collect(), false, codec);
        let mut said: Vec<Turn> = ["what a lovely day", "", "no it is not"]
            .iter()
            .zip(["1", "2", "3"])
            .map(|(text, id)| Turn::message("websocket", "room", "ann", id, text, RECEIVED_AT))
            .map(|turn| Turn { tier: Some(Tier::Fast), ..turn })
            .collect();
        whole.infer(&mut said).expect("the models run");
        Chains { whole, second, said }
    })
}

/// A request to the embedded broker, from its key on, served by a real one. Requests that make topics and files, or wait
/// for long, are only half of interest here: the broker's own tests have them.
pub fn kafka_request(bytes: &[u8]) {
    const CREATE_TOPICS: i16 = 19;
    const CREATE_PARTITIONS: i16 = 37;
    const METADATA: i16 = 3;
    let Some(key) = bytes.first_chunk().map(|key| i16::from_be_bytes(*key)) else { return };
    if [CREATE_TOPICS, CREATE_PARTITIONS, METADATA].contains(&key) {
        broker::reads_request(bytes);
        return;
    }
    let (runtime, broker) = served();
    runtime.block_on(broker.serve_bytes(bytes.to_vec(), Duration::from_millis(2)));
}

fn served() -> &'static (tokio::runtime::Runtime, Broker) {
    static SERVED: OnceLock<(tokio::runtime::Runtime, Broker)> = OnceLock::new();
    SERVED.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        // It lives as long as the process; the system clears its temporary folder.
        let folder = tempfile::tempdir().expect("a temporary folder").keep();
        let broker = runtime.block_on(Broker::start(Config::new(folder))).expect("start the broker");
        (runtime, broker)
    })
}

/// A record batch as a producer sends it, and as it stands in a segment.
pub fn record_batch(bytes: &[u8]) {
    broker::reads_batch(bytes);
}

/// What holds of every turn that intake makes.
fn good(turn: &Turn) {
    assert!(!turn.text.trim().is_empty() && turn.text.len() <= TEXT_BYTES_MAX && !turn.text.contains('\0'));
    assert!(!turn.conversation.is_empty() && turn.conversation.len() <= 512);
    assert!((turn.position, turn.stamp, turn.tier) == (None, None, None), "the first processor's to give");
    travels(turn);
}

/// It fits its schema and its topic, and comes back as it went.
fn travels<T: Payload + PartialEq + std::fmt::Debug>(value: &T) {
    let encoded = codec().encode(value).expect("it fits its schema");
    assert!(encoded.len() <= topic::REJECT_BYTES_MAX);
    assert_eq!(&codec().decode::<T>(&encoded).expect("it is read again"), value);
}

/// What can be read can be written, and then stays as it is.
fn round<T: Payload>(bytes: &[u8]) {
    let Ok(value) = codec().decode::<T>(bytes) else { return };
    let once = codec().encode(&value).expect("what was read fits its schema");
    let again: T = codec().decode(&once).expect("what was written is read");
    // As bytes: not every number equals itself.
    assert_eq!(codec().encode(&again).expect("it fits its schema"), once);
}
