//! What the log promises, through the real client: on the embedded broker, and on the Apache Kafka that
//! `UNDERTONE_TEST_KAFKA` names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use store::log::{
    Admin, AppendError, From, GroupReader, Kafka, LogError, Place, Producer, ProducerLimits, Record, Tail, TopicSpec,
};
use tests::{PATIENCE, Server};

/// Milliseconds since the Unix epoch, once: a record from long ago would fall to retention within the test.
static NOW: std::sync::LazyLock<i64> = std::sync::LazyLock::new(|| {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
});

const TOPIC: &str = "turns";

/// A server with one topic of two partitions, and how to reach it.
struct Log {
    server: Server,
    kafka: Kafka,
}

impl Log {
    async fn start() -> Log {
        let server = Server::start().await;
        let kafka = server.kafka.clone();
        let log = Log { server, kafka };
        Admin::connect(&log.kafka).unwrap().create(&[topic(TOPIC, 2, &[])]).await.unwrap();
        log
    }

    fn producer(&self) -> Producer {
        Producer::connect(&self.kafka, &ProducerLimits::default()).unwrap()
    }
}

fn topic(name: &str, partitions: i32, config: &[(&str, &str)]) -> TopicSpec {
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    TopicSpec { name: name.to_owned(), partitions, replication: 1, config }
}

fn record(partition: impl Into<Option<i32>>, key: &str, value: &str) -> Record {
    Record {
        topic: TOPIC.to_owned(),
        partition: partition.into(),
        key: Some(key.as_bytes().to_vec()),
        value: Some(value.as_bytes().to_vec()),
        headers: vec![("correlationid".to_owned(), b"c-1".to_vec()), ("empty".to_owned(), Vec::new())],
        timestamp: *NOW,
    }
}

/// The next value of a tail; transport errors go by.
async fn next(tail: &mut Tail) -> (i32, i64, String) {
    loop {
        match tokio::time::timeout(PATIENCE, tail.next()).await.expect("a record comes in time") {
            Ok(message) => {
                return (message.partition, message.offset, String::from_utf8(message.value.unwrap()).unwrap());
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
}

/// Batches of a group reader until there are so many records.
async fn read(reader: &mut GroupReader, count: usize) -> Vec<String> {
    let mut values = Vec::new();
    let until = tokio::time::Instant::now() + PATIENCE;
    while values.len() < count {
        assert!(tokio::time::Instant::now() < until, "only {values:?}");
        match reader.batch(100, Duration::from_secs(1)).await {
            Ok(batch) => {
                values.extend(batch.into_iter().map(|message| String::from_utf8(message.value.unwrap()).unwrap()));
            }
            Err(error) => assert!(error.is_transient(), "{error}"),
        }
    }
    values
}

/// A transactional producer of the plain client, to write what the project's own loop would.
fn transactional(kafka: &Kafka) -> ThreadedProducer<DefaultProducerContext> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &kafka.bootstrap).set("transactional.id", "test");
    let producer: ThreadedProducer<_> = config.create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

fn send(producer: &ThreadedProducer<DefaultProducerContext>, value: &str) {
    producer.send(BaseRecord::<str, str>::to(TOPIC).partition(0).key("k").payload(value)).map_err(|e| e.0).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn record_comes_back_as_it_was_given() {
    let log = Log::start().await;
    let place = log.producer().append(record(None, "telegram:helper:42", "hello")).await.unwrap();
    let mut tail = Tail::open(&log.kafka, TOPIC, From::Beginning).await.unwrap();
    let message = tokio::time::timeout(PATIENCE, tail.next()).await.unwrap().unwrap();
    let sent = record(None, "telegram:helper:42", "hello");
    assert_eq!((message.partition, message.offset), (place.partition, place.offset));
    assert_eq!((message.key, message.value, message.headers), (sent.key, sent.value, sent.headers));
    assert_eq!((message.timestamp, &*message.topic), (sent.timestamp, TOPIC));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_fall_on_partitions_as_java_places_them() {
    let log = Log::start().await;
    let admin = Admin::connect(&log.kafka).unwrap();
    admin.create(&[topic("wide", 50, &[])]).await.unwrap();
    let producer = log.producer();
    // From the test of murmur2 in Apache Kafka's clients (UtilsTest): the hash without its sign bit, modulo 50.
    let cases: [(&str, i32); 6] = [
        ("21", -973_932_308),
        ("foobar", -790_332_482),
        ("a-little-bit-long-string", -985_981_536),
        ("a-little-bit-longer-string", -1_486_304_829),
        ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
        ("abc", 479_470_107),
    ];
    for (key, hash) in cases {
        let place = producer.append(Record { topic: "wide".to_owned(), ..record(None, key, "x") }).await.unwrap();
        assert_eq!(place.partition, (hash & i32::MAX) % 50, "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_a_batch_keep_their_order_and_are_all_acknowledged() {
    let log = Log::start().await;
    let producer = log.producer();
    let records = (0..1000).map(|n| record(0, "k", &n.to_string())).collect();
    let places: Vec<Place> = producer.append_all(records).await.into_iter().map(Result::unwrap).collect();
    assert!(places.iter().zip(0..).all(|(place, offset)| *place == Place { partition: 0, offset }));
    // A record counts until librdkafka has put its report away, which is shortly after we saw it.
    producer.flush(PATIENCE).await.unwrap();
    assert_eq!(producer.queued(), 0);
    let mut tail = Tail::open(&log.kafka, TOPIC, From::Offsets(BTreeMap::from([(0, 990)]))).await.unwrap();
    for n in 990..1000 {
        assert_eq!(next(&mut tail).await, (0, n, n.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn batch_larger_than_the_queue_waits_for_its_own_records_only() {
    let log = Log::start().await;
    let limits = ProducerLimits { queue_records_max: 10, ..ProducerLimits::default() };
    let producer = Producer::connect(&log.kafka, &limits).unwrap();
    let results = producer.append_all((0..200).map(|n| record(0, "k", &n.to_string())).collect()).await;
    let offsets: Vec<i64> = results.into_iter().map(|result| result.unwrap().offset).collect();
    assert_eq!(offsets, (0..200).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn full_queue_is_refused_at_once_and_what_is_late_is_unavailable() {
    let log = Log::start().await;
    // No broker listens there: the port was free a moment ago, and nobody else is told of it.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let kafka = Kafka { bootstrap: closed.to_string(), ..log.kafka.clone() };
    let limits = ProducerLimits {
        queue_records_max: 2,
        delivery_timeout: Duration::from_millis(500),
        ..ProducerLimits::default()
    };
    let producer = Producer::connect(&kafka, &limits).unwrap();
    let late = producer.append_all(vec![record(0, "k", "1"), record(0, "k", "2")]);
    let refused = async {
        while producer.queued() < 2 {
            tokio::task::yield_now().await;
        }
        producer.append(record(0, "k", "3")).await
    };
    let (late, refused) = tokio::join!(late, refused);
    assert_eq!(refused, Err(AppendError::Full));
    for result in late {
        assert!(matches!(result, Err(AppendError::Unavailable(_))), "{result:?}");
    }
    let error = Admin::connect(&kafka).unwrap().reachable(Duration::from_millis(200)).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn record_at_fault_is_told_from_a_log_that_is_away() {
    let log = Log::start().await;
    let admin = Admin::connect(&log.kafka).unwrap();
    admin.create(&[topic("small", 1, &[("max.message.bytes", "1000")])]).await.unwrap();
    let producer = log.producer();
    // Random letters, because what is compressed well is small.
    let large: String = (0..200).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
    let result = producer.append(Record { topic: "small".to_owned(), ..record(0, "k", &large) }).await;
    assert!(
        matches!(&result, Err(AppendError::TooLarge { topic, bytes }) if topic == "small" && *bytes > 3000),
        "{result:?}"
    );
    let result = producer.append(Record { topic: "absent".to_owned(), ..record(None, "k", "x") }).await;
    let Err(AppendError::Refused(text)) = result else { panic!("{result:?}") };
    assert!(text.contains("absent") && text.contains("undertone topics apply"), "{text}");
    producer.append(record(0, "k", "still good")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_records_survive_a_crash_of_the_broker_and_readers_go_on() {
    let mut log = Log::start().await;
    let producer = log.producer();
    let mut tail = Tail::open(&log.kafka, TOPIC, From::End).await.unwrap();
    producer.append(record(1, "k", "before")).await.unwrap();
    assert_eq!(next(&mut tail).await, (1, 0, "before".to_owned()));
    log.server.crash().await;
    log.server.start_again().await;
    let place = producer.append(record(1, "k", "after")).await.unwrap();
    assert_eq!(place, Place { partition: 1, offset: 1 });
    assert_eq!(next(&mut tail).await, (1, 1, "after".to_owned()));
    assert_eq!(Admin::connect(&log.kafka).unwrap().offsets(TOPIC).await.unwrap()[&1], (0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_an_outage_do_not_stand_before_what_comes_after_it() {
    let Log { mut server, kafka } = Log::start().await;
    let limits = ProducerLimits { delivery_timeout: Duration::from_secs(3), ..ProducerLimits::default() };
    let producer = Producer::connect(&kafka, &limits).unwrap();
    let mut tail = Tail::open(&kafka, TOPIC, From::End).await.unwrap();
    let mut reader = GroupReader::join(&kafka, "g", TOPIC).unwrap();
    producer.append(record(1, "k", "before")).await.unwrap();
    assert_eq!(next(&mut tail).await, (1, 0, "before".to_owned()));
    assert_eq!(read(&mut reader, 1).await, ["before"]);
    reader.commit().await.unwrap();
    server.crash().await;
    // As long as this takes to be given up, the clients try to connect, and nobody reads their errors.
    let late = producer.append(record(0, "k", "late")).await.unwrap_err();
    assert!(late.is_transient(), "{late}");
    server.start_again().await;
    let until = tokio::time::Instant::now() + PATIENCE;
    while let Err(error) = producer.append(record(1, "k", "after")).await {
        assert!(error.is_transient() && tokio::time::Instant::now() < until, "{error}");
    }
    let mut errors = 0;
    loop {
        match tokio::time::timeout(PATIENCE, tail.next()).await.expect("a record comes in time") {
            Ok(message) if message.value.as_deref() == Some(b"after") => break,
            Ok(_) => {}
            Err(error) => errors += usize::from(error.is_transient()),
        }
    }
    assert!(errors <= 2, "{errors} errors stood before the record");
    while !read(&mut reader, 1).await.iter().any(|value| value == "after") {}
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_from_the_end_sees_only_what_comes_after_and_knows_where_it_is() {
    let log = Log::start().await;
    let producer = log.producer();
    producer.append(record(0, "k", "old")).await.unwrap();
    let mut tail = Tail::open(&log.kafka, TOPIC, From::End).await.unwrap();
    assert_eq!(tail.positions(), BTreeMap::from([(0, 1), (1, 0)]));
    assert_eq!(tail.positions(), tail.ends().await.unwrap());
    producer.append(record(0, "k", "new")).await.unwrap();
    assert_eq!(next(&mut tail).await, (0, 1, "new".to_owned()));
    assert_eq!(tail.positions(), tail.ends().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_of_the_last_records_shares_them_out_among_the_partitions() {
    let log = Log::start().await;
    let producer = log.producer();
    for n in 0..5 {
        producer.append(record(0, "k", &n.to_string())).await.unwrap();
    }
    producer.append(record(1, "k", "only")).await.unwrap();
    let mut tail = Tail::open(&log.kafka, TOPIC, From::Last(4)).await.unwrap();
    assert_eq!(tail.positions(), BTreeMap::from([(0, 3), (1, 0)]));
    let mut read = [next(&mut tail).await, next(&mut tail).await, next(&mut tail).await];
    read.sort();
    assert_eq!(read, [(0, 3, "3".to_owned()), (0, 4, "4".to_owned()), (1, 0, "only".to_owned())]);
    let nothing = Tail::open(&log.kafka, TOPIC, From::Last(0)).await.unwrap();
    assert_eq!(nothing.positions(), nothing.ends().await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_next_loses_nothing() {
    let log = Log::start().await;
    let producer = log.producer();
    let mut tail = Tail::open(&log.kafka, TOPIC, From::Beginning).await.unwrap();
    let writing = tokio::spawn(async move {
        for n in 0..300 {
            producer.append(record(0, "k", &n.to_string())).await.unwrap();
        }
    });
    let mut seen = Vec::new();
    let until = tokio::time::Instant::now() + PATIENCE;
    while seen.len() < 300 {
        assert!(tokio::time::Instant::now() < until, "only {} records", seen.len());
        tokio::select! {
            biased;
            message = tail.next() => seen.push(message.unwrap().offset),
            () = tokio::task::yield_now() => {}
        }
    }
    assert_eq!(seen, (0..300).collect::<Vec<_>>());
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn offset_outside_of_the_log_and_unknown_topic_are_errors() {
    let log = Log::start().await;
    let error = Tail::open(&log.kafka, TOPIC, From::Offsets(BTreeMap::from([(0, 7)]))).await.unwrap_err();
    assert!(matches!(&error, LogError::OutOfRange(text) if text.contains("7 is not within 0 to 0")), "{error}");
    let error = Tail::open(&log.kafka, "absent", From::Beginning).await.unwrap_err();
    assert!(matches!(error, LogError::UnknownTopic(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_committed_records_only_and_get_past_the_marks_of_transactions() {
    let log = Log::start().await;
    let mut tail = Tail::open(&log.kafka, TOPIC, From::Beginning).await.unwrap();
    let mut reader = GroupReader::join(&log.kafka, "g", TOPIC).unwrap();
    let kafka = log.kafka.clone();
    let write = move || {
        let producer = transactional(&kafka);
        for (value, commit) in [("lost", false), ("kept", true), ("lost too", false)] {
            producer.begin_transaction().unwrap();
            send(&producer, value);
            match commit {
                true => producer.commit_transaction(PATIENCE).unwrap(),
                false => {
                    producer.flush(PATIENCE).unwrap();
                    producer.abort_transaction(PATIENCE).unwrap();
                }
            }
        }
    };
    tokio::task::spawn_blocking(write).await.unwrap();
    assert_eq!(next(&mut tail).await.2, "kept");
    assert_eq!(read(&mut reader, 1).await, ["kept"]);
    // Offsets: lost 0, mark 1, kept 2, mark 3, lost too 4, mark 5. At rest nothing may look unread.
    let admin = Admin::connect(&log.kafka).unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        reader.batch(1, Duration::from_millis(100)).await.unwrap();
        reader.commit().await.unwrap();
        if admin.committed("g", TOPIC).await.unwrap().get(&0) == Some(&6) {
            break;
        }
        assert!(tokio::time::Instant::now() < until, "{:?}", admin.committed("g", TOPIC).await);
    }
    assert_eq!(reader.lag().await.unwrap()[&0], 0);
    while tail.positions() != tail.ends().await.unwrap() {
        assert!(tokio::time::Instant::now() < until, "{:?}", tail.positions());
        // Marks are passed while the next record is awaited.
        drop(tokio::time::timeout(Duration::from_millis(50), tail.next()).await);
    }
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_transaction_stands_between_the_last_stable_offset_and_the_newest_record() {
    let log = Log::start().await;
    let admin = Admin::connect(&log.kafka).unwrap();
    let kafka = log.kafka.clone();
    let begin = move || {
        let producer = transactional(&kafka);
        producer.begin_transaction().unwrap();
        send(&producer, "undecided");
        producer.flush(PATIENCE).unwrap();
        producer
    };
    let producer = tokio::task::spawn_blocking(begin).await.unwrap();
    let ends = async || (admin.offsets(TOPIC).await.unwrap()[&0].1, admin.newest(TOPIC).await.unwrap()[&0]);
    assert_eq!(ends().await, (0, 1));
    tokio::task::spawn_blocking(move || producer.commit_transaction(PATIENCE)).await.unwrap().unwrap();
    // A broker may write the mark a moment later.
    let until = tokio::time::Instant::now() + PATIENCE;
    while ends().await != (2, 2) {
        assert!(tokio::time::Instant::now() < until, "{:?}: the record and the mark", ends().await);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_committed_is_read_again_and_what_was_is_not() {
    let log = Log::start().await;
    let producer = log.producer();
    let records = (0..4).map(|n| record(n % 2, "k", &n.to_string())).collect();
    assert!(producer.append_all(records).await.iter().all(Result::is_ok));
    let mut first = GroupReader::join(&log.kafka, "g", TOPIC).unwrap();
    let all: BTreeSet<String> = ["0", "1", "2", "3"].map(str::to_owned).into();
    assert_eq!(read(&mut first, 4).await.into_iter().collect::<BTreeSet<_>>(), all, "a new group starts at the oldest");
    first.close().await;
    let mut second = GroupReader::join(&log.kafka, "g", TOPIC).unwrap();
    assert_eq!(read(&mut second, 4).await.into_iter().collect::<BTreeSet<_>>(), all);
    second.commit().await.unwrap();
    assert_eq!(second.lag().await.unwrap(), BTreeMap::from([(0, 0), (1, 0)]));
    second.close().await;
    producer.append(record(0, "k", "new")).await.unwrap();
    let mut third = GroupReader::join(&log.kafka, "g", TOPIC).unwrap();
    assert_eq!(read(&mut third, 1).await, ["new"]);
    assert_eq!(third.lag().await.unwrap(), BTreeMap::from([(0, 1), (1, 0)]));
    third.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_offset_outside_of_the_log_is_an_error_and_no_jump() {
    let log = Log::start().await;
    let mut reader = GroupReader::join(&log.kafka, "g", TOPIC).unwrap();
    log.producer().append(record(0, "k", "x")).await.unwrap();
    read(&mut reader, 1).await;
    reader.commit().await.unwrap();
    reader.close().await;
    // As if the topic had been made anew under the same name.
    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &log.kafka.bootstrap).set("group.id", "g").create().unwrap();
    let ahead = move || {
        let mut offsets = TopicPartitionList::new();
        offsets.add_partition_offset(TOPIC, 0, Offset::Offset(50)).unwrap();
        consumer.commit(&offsets, CommitMode::Sync).unwrap();
    };
    tokio::task::spawn_blocking(ahead).await.unwrap();
    let mut reader = GroupReader::join(&log.kafka, "g", TOPIC).unwrap();
    let until = tokio::time::Instant::now() + PATIENCE;
    let error = loop {
        assert!(tokio::time::Instant::now() < until, "no error came");
        match reader.batch(10, Duration::from_secs(1)).await {
            Ok(batch) => assert!(batch.is_empty(), "{batch:?}"),
            Err(error) if error.is_transient() => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::OutOfRange(_)), "{error}");
    reader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_two_create_at_once_are_there_for_both() {
    let log = Log::start().await;
    let wanted = [topic("at-once", 20, &[])];
    let both = [Admin::connect(&log.kafka).unwrap(), Admin::connect(&log.kafka).unwrap()];
    let create = async |admin: &Admin| {
        let created = admin.create(&wanted).await.unwrap();
        (created.len(), admin.offsets("at-once").await.unwrap().len())
    };
    let (first, second) = tokio::join!(create(&both[0]), create(&both[1]));
    assert_eq!((first.0 + second.0, first.1, second.1), (1, 20, 20), "created by one, read by both");
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_created_once_and_described() {
    let log = Log::start().await;
    let admin = Admin::connect(&log.kafka).unwrap();
    let wanted = [topic(TOPIC, 2, &[]), topic("rejects", 3, &[("retention.ms", "86400000")])];
    assert_eq!(admin.create(&wanted).await.unwrap(), ["rejects"]);
    assert_eq!(admin.create(&wanted).await.unwrap(), [""; 0]);
    let topics = admin.topics().await.unwrap();
    let rejects = topics.iter().find(|topic| topic.name == "rejects").unwrap();
    assert_eq!((rejects.partitions, rejects.config["retention.ms"].as_str()), (3, "86400000"));
    let error = admin.create(&[topic("bad", 1, &[("no.such.setting", "1")])]).await.unwrap_err();
    assert!(matches!(error, LogError::Settings(_)), "{error}");
    admin.reachable(PATIENCE).await.unwrap();
    assert_eq!(admin.committed("nobody", TOPIC).await.unwrap(), BTreeMap::new());
}

#[test]
fn debug_shows_no_secret() {
    let properties = BTreeMap::from([("sasl.password".to_owned(), "hunter2".to_owned())]);
    let shown = format!("{:?}", Kafka { properties, ..Kafka::default() });
    assert!(shown.contains("sasl.password") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn wrong_setting_is_told_as_such() {
    let properties = BTreeMap::from([("no.such.setting".to_owned(), "1".to_owned())]);
    let error = Producer::connect(&Kafka { properties, ..Kafka::default() }, &ProducerLimits::default()).unwrap_err();
    assert!(matches!(&error, LogError::Settings(text) if text.contains("no.such.setting")), "{error}");
}
