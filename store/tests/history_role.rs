//! The history role: what it keeps, what it sets aside, and that it goes on where it was; on the embedded broker, and on
//! the Apache Kafka that `UNDERTONE_TEST_KAFKA` names.

use opentelemetry::metrics::MeterProvider as _;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use schemas::{Codec, Reject, Turn, topic, turn_id};
use store::history::verify::{Comparison, verify};
use store::history::writer::{self, WriterError};
use store::history::{History, Page, Row};
use store::log::{Admin, From, Kafka, Producer, ProducerLimits, Record, Tail, TopicSpec};
use store::registry::Registry;
use tests::{PATIENCE, Server};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Milliseconds since the Unix epoch, once: a record from long ago would fall to retention within the test.
static NOW: std::sync::LazyLock<i64> = std::sync::LazyLock::new(|| {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
});

struct House {
    _server: Server,
    kafka: Kafka,
    producer: Producer,
    codec: Codec,
    history: History,
    folder: tempfile::TempDir,
}

impl House {
    async fn start() -> House {
        let server = Server::start().await;
        let kafka = server.kafka.clone();
        let topics = [topic::TURNS_ENRICHED, topic::REJECTS].map(|name| TopicSpec {
            name: name.to_owned(),
            partitions: 2,
            replication: 1,
            config: [("max.message.bytes".to_owned(), topic::REJECT_BYTES_MAX.to_string())].into(),
        });
        Admin::connect(&kafka).unwrap().create(&topics).await.unwrap();
        let producer = Producer::connect(&kafka, &ProducerLimits::default()).unwrap();
        let history = tests::history().await;
        House {
            _server: server,
            kafka,
            producer,
            codec: Codec::embedded(),
            history,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn role(&self) -> (JoinHandle<Result<(), WriterError>>, CancellationToken) {
        self.role_of(&self.history)
    }

    fn role_of(&self, history: &History) -> (JoinHandle<Result<(), WriterError>>, CancellationToken) {
        let shutdown = CancellationToken::new();
        let meter = SdkMeterProvider::default().meter("test");
        let config = writer::Config::new(self.kafka.clone());
        let (history, rejects, token) = (history.clone(), self.producer.clone(), shutdown.clone());
        (
            tokio::spawn(async move { writer::run(config, history, rejects, &meter, Default::default(), token).await }),
            shutdown,
        )
    }

    async fn append(&self, key: &str, value: Vec<u8>) {
        let record = Record {
            topic: topic::TURNS_ENRICHED.to_owned(),
            key: Some(key.as_bytes().to_vec()),
            value: Some(value),
            headers: vec![("correlationid".to_owned(), b"c-1".to_vec())],
            timestamp: *NOW,
            ..Record::default()
        };
        self.producer.append(record).await.unwrap();
    }

    async fn kept(&self, conversation: &str, count: i64) {
        House::kept_in(&self.history, conversation, count).await;
    }

    async fn kept_in(history: &History, conversation: &str, count: i64) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while history.last_position(conversation).await.unwrap() < Some(count) {
            assert!(tokio::time::Instant::now() < until, "turn {count} of {conversation} was not kept");
            tokio::task::yield_now().await;
        }
    }
}

fn turn(conversation: &str, position: i64) -> Turn {
    Turn {
        id: turn_id("websocket", conversation, "me", &position.to_string()),
        conversation: conversation.to_owned(),
        at: 1000 + position,
        received_at: 1000 + position,
        source: "websocket".to_owned(),
        kind: "message".to_owned(),
        bot: None,
        external_id: position.to_string(),
        sender: None,
        chat_kind: None,
        message_id: None,
        reply_to: None,
        language_hint: None,
        text: format!("turn {position}"),
        consent: None,
        position: Some(position),
        stamp: None,
        tier: None,
        skipped: Vec::new(),
        encoding: None,
        emotion: None,
        personality: None,
        dialogue: None,
        coherence: None,
        synesthesia: None,
        memory: None,
        flags: Vec::new(),
        sealed: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_are_kept_as_they_stood_in_the_log_and_the_role_goes_on_where_it_was() {
    let house = House::start().await;
    let values: Vec<_> = (1..=20).map(|position| house.codec.encode(&turn("room", position)).unwrap()).collect();
    let (role, shutdown) = house.role();
    for value in &values[..10] {
        house.append("room", value.clone()).await;
    }
    house.kept("room", 10).await;
    shutdown.cancel();
    role.await.unwrap().unwrap();
    let (role, shutdown) = house.role();
    for value in &values[10..] {
        house.append("room", value.clone()).await;
    }
    house.kept("room", 20).await;
    let rows = house.history.turns("room", Page::After(0), 100).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.value.clone()).collect::<Vec<_>>(), values);
    assert_eq!((rows[4].id, rows[4].at), (turn("room", 5).id, 1005));
    shutdown.cancel();
    role.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_is_worth_it_is_remembered_with_what_recall_reads_and_mended_with_its_turn() {
    let house = House::start().await;
    let provenance =
        || schemas::Provenance { model: "m".to_owned(), version: "1".to_owned(), tier: schemas::Tier::Fast };
    let memory = |keep: bool| schemas::Memory {
        provenance: provenance(),
        salience: 0.5,
        keep,
        terms: vec!["train".to_owned()],
        locus: keep.then(|| schemas::Locus {
            room: 7,
            name: "trains".to_owned(),
            place: 1,
            x: 0,
            y: 1,
            sensitive: false,
        }),
    };
    let encoding = schemas::Encoding {
        provenance: provenance(),
        embedding: schemas::Embedding::quantise(&[1.0, 0.5]),
        language: None,
        language_confidence: None,
        feeling: None,
        grams: None,
    };
    let said = |position: i64| Turn {
        encoding: Some(encoding.clone()),
        memory: (position > 1).then(|| memory(position == 3)),
        skipped: vec![schemas::Skipped { stage: "emotion".to_owned(), reason: "x".to_owned() }],
        ..turn("room", position)
    };
    for position in 1..=3 {
        house.append("room", house.codec.encode(&said(position)).unwrap()).await;
    }
    let (role, shutdown) = house.role();
    house.kept("room", 3).await;
    shutdown.cancel();
    role.await.unwrap().unwrap();
    let kept = house.history.memories("room").await.unwrap();
    let found: Vec<_> = kept.iter().map(|memory| (memory.position, memory.room, memory.salience)).collect();
    assert_eq!(found, [(3, 7, 0.5)]);
    let read: Turn = house.codec.decode(&kept[0].value).unwrap();
    assert_eq!(read, Turn { skipped: Vec::new(), ..said(3) });

    house.history.erase_turns("room", vec![3]).await.unwrap();
    assert_eq!(house.history.memories("room").await.unwrap(), []);
    verify(&house.kafka, &house.history, &Registry::embedded(), true, |_| {}).await.unwrap();
    assert_eq!(house.history.memories("room").await.unwrap(), kept);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_that_lost_what_it_had_acknowledged_is_read_up_to_the_present_by_itself() {
    let house = House::start().await;
    let append = async |positions: std::ops::RangeInclusive<i64>| {
        for position in positions {
            house.append("room", house.codec.encode(&turn("room", position)).unwrap()).await;
        }
    };
    let write_to = async |history: &History, count: i64| {
        let (role, shutdown) = house.role_of(history);
        House::kept_in(history, "room", count).await;
        shutdown.cancel();
        role.await.unwrap().unwrap();
    };
    append(1..=5).await;
    write_to(&house.history, 5).await;
    append(6..=10).await;
    // The group commits all ten into a history that was new: the one before is now a backup of five.
    let emptied = tests::history().await;
    write_to(&emptied, 10).await;
    append(11..=11).await;
    write_to(&house.history, 11).await;
    for (history, wanted) in [(&emptied, 10), (&house.history, 11)] {
        let rows = history.turns("room", Page::After(0), 100).await.unwrap();
        let positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
        assert_eq!(positions, (1..=wanted).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn record_that_is_no_enriched_turn_is_set_aside_whole_and_the_next_is_kept() {
    let house = House::start().await;
    house.append("room", b"no avro".to_vec()).await;
    house.append("room", house.codec.encode(&Turn { position: None, ..turn("room", 1) }).unwrap()).await;
    house.append("room", house.codec.encode(&turn("another", 1)).unwrap()).await;
    house.append("room", house.codec.encode(&turn("room", 1)).unwrap()).await;
    let (role, shutdown) = house.role();
    house.kept("room", 1).await;
    let mut tail = Tail::open(&house.kafka, topic::REJECTS, From::Beginning).await.unwrap();
    let mut rejects = Vec::new();
    while rejects.len() < 3 {
        let message = tokio::time::timeout(PATIENCE, tail.next()).await.unwrap().unwrap();
        assert_eq!(message.key.as_deref(), Some(&b"room"[..]));
        rejects.push(house.codec.decode::<Reject>(&message.value.unwrap()).unwrap());
    }
    let reasons: Vec<_> = rejects.iter().map(|reject| reject.reason.as_str()).collect();
    assert_eq!(reasons, ["malformed", "invalid", "invalid"]);
    assert_eq!(rejects[0].raw, b"no avro");
    assert_eq!((rejects[0].topic.as_deref(), rejects[0].offset), (Some(topic::TURNS_ENRICHED), Some(0)));
    assert_eq!((rejects[0].headers[0].name.as_str(), &rejects[0].headers[0].value[..]), ("correlationid", &b"c-1"[..]));
    assert_eq!(house.history.last_position("another").await.unwrap(), None);
    shutdown.cancel();
    role.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_compared_with_the_log_and_mended() {
    let house = House::start().await;
    // In front of the room's turns: when these are kept, the writer has passed it.
    house.append("room", b"no avro".to_vec()).await;
    for room in ["room", "hall"] {
        for position in 1..=30 {
            house.append(room, house.codec.encode(&turn(room, position)).unwrap()).await;
        }
    }
    let (role, shutdown) = house.role();
    for room in ["room", "hall"] {
        house.kept(room, 30).await;
    }
    shutdown.cancel();
    role.await.unwrap().unwrap();
    let compare = async |history: &History, mend| {
        verify(&house.kafka, history, &Registry::embedded(), mend, |_| {}).await.unwrap()
    };
    let whole = Comparison { compared: 60, unreadable: 1, ..Comparison::default() };
    assert_eq!(compare(&house.history, false).await, whole);

    // Written over by something else, as no release does; and one that the writer has not come to.
    let row = &house.history.turns("hall", Page::After(6), 1).await.unwrap()[0];
    house.history.upsert(vec![Row { value: b"else".to_vec(), ..row.clone() }]).await.unwrap();
    house.append("room", house.codec.encode(&turn("room", 31)).unwrap()).await;
    let found = compare(&house.history, false).await;
    assert_eq!(found, Comparison { differing: 1, to_come: 1, ..whole });
    assert!(!found.is_whole());
    let mended = compare(&house.history, true).await;
    assert_eq!(mended, Comparison { differing: 1, mended: 1, to_come: 1, ..whole });
    assert!(mended.is_whole());
    assert_eq!(compare(&house.history, false).await, Comparison { to_come: 1, ..whole });
}

#[tokio::test(flavor = "multi_thread")]
async fn turns_that_a_history_lost_are_found_and_written_again() {
    let house = House::start().await;
    let path = house.folder.path().join("history.sqlite");
    let history = History::open(&path).await.unwrap();
    for position in 1..=40 {
        house.append("room", house.codec.encode(&turn("room", position)).unwrap()).await;
    }
    let (role, shutdown) = house.role_of(&history);
    House::kept_in(&history, "room", 40).await;
    shutdown.cancel();
    role.await.unwrap().unwrap();
    let file = rusqlite::Connection::open(&path).unwrap();
    assert_eq!(file.execute("DELETE FROM turns WHERE position IN (1, 17, 40)", ()).unwrap(), 3);
    let found = verify(&house.kafka, &history, &Registry::embedded(), true, |_| {}).await.unwrap();
    assert_eq!(found, Comparison { compared: 40, missing: 3, mended: 3, ..Comparison::default() });
    let rows = history.turns("room", Page::After(0), 100).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.position).collect::<Vec<_>>(), (1..=40).collect::<Vec<_>>());
}
