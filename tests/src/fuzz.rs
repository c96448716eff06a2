//! What the fuzzer calls: one function for each parser of foreign bytes. Each takes any bytes, and panics if the parser
//! does, or if what it made of them breaks one of its promises.
//!
//! `tests/fuzz` wraps them for libFuzzer; `tests/tests/corpus.rs` runs the committed corpus, and changes of it, through
//! them without one.

use std::sync::OnceLock;
use std::time::Duration;

use broker::{Broker, Config};
use ingest::telegram::{self, Outcome};
use ingest::websocket::frame::{self, Bounds};
use schemas::slice::{EmotionSlice, EncodeSlice, Sequence};
use schemas::{Codec, Delivery, Feedback, Payload, Redrive, Reject, Reply, TraceParent, Turn, time, topic};

/// A target: any bytes in.
pub type Target = fn(&[u8]);

/// All targets by name.
pub const TARGETS: [(&str, Target); 6] = [
    ("telegram", telegram),
    ("frame", frame),
    ("command", command),
    ("avro", avro),
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

/// A frame or a query string of the stream, a resume token, a trace context, a time.
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
