//! What an acknowledgement promises when the power goes, held against copies of what was synced at that moment.
//!
//! A load of single records, transactions and committed offsets runs while copies are made; each copy is then opened by
//! a broker of its own and compared with what had been acknowledged, and read, before the copy began.
#![expect(clippy::print_stderr, reason = "the seed of a run that failed must be told")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{
    BaseProducer, BaseRecord, DefaultProducerContext, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer,
};
use rdkafka::{ClientContext, Message as _, Offset, TopicPartitionList};

use crate::power_cut::copy_survivors;
use crate::{Broker, Config, Fsync};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(30);
const TOPIC: &str = "survivors";
const PARTITIONS: i32 = 2;
/// Records of transactions are told apart from the others by their key.
const TOGETHER: &[u8] = b"together";
const ROUNDS: u64 = 60;
const RECORDS_PER_ROUND: u64 = 5;
const CUTS: usize = 6;

type Place = (i32, i64);

/// What a client was told, in the order in which it was told.
enum Told {
    Acknowledged(Place, u64),
    Seen(Place),
    /// A transaction of one record on each partition, and its number as the offset that the group committed.
    Committed(u64),
}

/// All that was told up to a moment.
#[derive(Default, Clone)]
struct Promised {
    acknowledged: BTreeMap<Place, u64>,
    seen: BTreeSet<Place>,
    committed: BTreeSet<u64>,
}

impl Promised {
    fn add(&mut self, told: Told) {
        match told {
            Told::Acknowledged(place, number) => drop(self.acknowledged.insert(place, number)),
            Told::Seen(place) => drop(self.seen.insert(place)),
            Told::Committed(number) => drop(self.committed.insert(number)),
        }
    }
}

struct Tell(mpsc::Sender<Told>);

impl ClientContext for Tell {}

impl ProducerContext for Tell {
    type DeliveryOpaque = Box<u64>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<u64>) {
        if let Ok(message) = result {
            let _ = self.0.send(Told::Acknowledged((message.partition(), message.offset()), *number));
        }
    }
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("broker.address.family", "v4").set("linger.ms", "0");
    config
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn start(runtime: &tokio::runtime::Runtime, dir: &Path, fsync: Fsync) -> Broker {
    let maintenance_every = Duration::from_millis(20);
    let config = Config { fsync, maintenance_every, checkpoint_bytes: 2_000, ..Config::new(dir) };
    runtime.block_on(Broker::start(config)).unwrap()
}

fn create_topic(runtime: &tokio::runtime::Runtime, bootstrap: &str) {
    let admin: AdminClient<DefaultClientContext> = client(bootstrap).create().unwrap();
    // Small segments: the moment between two of them is one that must not be missed.
    let new = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1)).set("segment.bytes", "3000");
    runtime.block_on(admin.create_topics(&[new], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
}

fn reader(bootstrap: &str, settings: &[(&str, &str)]) -> BaseConsumer {
    let mut config = client(bootstrap);
    config.set("group.id", "g").set("enable.auto.commit", "false").set("fetch.wait.max.ms", "20");
    config.set("enable.partition.eof", "true");
    for (name, value) in settings {
        config.set(*name, *value);
    }
    let reader: BaseConsumer = config.create().unwrap();
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(TOPIC, partition, Offset::Beginning).unwrap();
    }
    reader.assign(&assignment).unwrap();
    reader
}

/// Everything that is in the log: place, key and number.
fn read_all(bootstrap: &str, isolation: &str) -> BTreeMap<Place, (Vec<u8>, u64)> {
    let reader = reader(bootstrap, &[("isolation.level", isolation)]);
    let (mut all, mut ended) = (BTreeMap::new(), BTreeSet::new());
    let begun = Instant::now();
    while ended.len() < PARTITIONS as usize {
        assert!(begun.elapsed() < PATIENCE, "partitions {ended:?} were read to their end");
        match reader.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                let number = std::str::from_utf8(message.payload().unwrap()).unwrap().parse().unwrap();
                all.insert((message.partition(), message.offset()), (message.key().unwrap().to_vec(), number));
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => drop(ended.insert(partition)),
            _ => {}
        }
    }
    all
}

fn offset(number: u64) -> TopicPartitionList {
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(TOPIC, 0, Offset::Offset(number as i64)).unwrap();
    offsets
}

/// The transactional producer, started: a transaction that an earlier one left open is over.
fn transactional(bootstrap: &str) -> ThreadedProducer<DefaultProducerContext> {
    let producer: ThreadedProducer<_> = client(bootstrap).set("transactional.id", "t").create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    producer
}

/// Single records, transactions, and a reader, until all is acknowledged.
fn load(bootstrap: &str, told: &mpsc::Sender<Told>) {
    let single: BaseProducer<Tell> =
        client(bootstrap).set("enable.idempotence", "true").create_with_context(Tell(told.clone())).unwrap();
    let together = transactional(bootstrap);
    let reader = reader(bootstrap, &[("isolation.level", "read_uncommitted")]);
    for round in 0..ROUNDS {
        for number in round * RECORDS_PER_ROUND..(round + 1) * RECORDS_PER_ROUND {
            let value = number.to_string();
            let record = BaseRecord::with_opaque_to(TOPIC, Box::new(number)).partition((number % 2) as i32);
            single.send(record.key("single").payload(&value)).map_err(|(error, _)| error).unwrap();
        }
        together.begin_transaction().unwrap();
        for partition in 0..PARTITIONS {
            let value = round.to_string();
            let record = BaseRecord::to(TOPIC).partition(partition).key(TOGETHER).payload(&value);
            together.send(record).map_err(|(error, _)| error).unwrap();
        }
        let group = reader.group_metadata().unwrap();
        together.send_offsets_to_transaction(&offset(round), &group, PATIENCE).unwrap();
        together.commit_transaction(PATIENCE).unwrap();
        told.send(Told::Committed(round)).unwrap();
        single.poll(Duration::ZERO);
        while let Some(polled) = reader.poll(Duration::ZERO) {
            if let Ok(message) = polled {
                told.send(Told::Seen((message.partition(), message.offset()))).unwrap();
            }
        }
    }
    single.flush(PATIENCE).unwrap();
}

/// Runs the load on a broker in `dir`, and makes a copy of what is synced whenever one of `moments` is the number of
/// things told so far. Returns each copy with what had been promised before it was begun.
fn cut_under_load(dir: &Path, fsync: Fsync, moments: &[usize]) -> Vec<(tempfile::TempDir, Promised)> {
    let runtime = runtime();
    let broker = start(&runtime, dir, fsync);
    let bootstrap = broker.bootstrap();
    create_topic(&runtime, &bootstrap);
    let (sender, told) = mpsc::channel();
    std::thread::scope(|scope| {
        let loading = scope.spawn(move || load(&bootstrap, &sender));
        let (mut promised, mut cuts, mut count) = (Promised::default(), Vec::new(), 0);
        for told in told {
            promised.add(told);
            count += 1;
            if moments.contains(&count) {
                let before = promised.clone();
                let copy = tempfile::tempdir().unwrap();
                copy_survivors(dir, copy.path()).unwrap();
                cuts.push((copy, before));
            }
        }
        loading.join().unwrap();
        let copy = tempfile::tempdir().unwrap();
        copy_survivors(dir, copy.path()).unwrap();
        cuts.push((copy, promised));
        cuts
    })
}

/// What is missing in a copy of what was promised, in words; transactions that were cut in two as well.
fn broken(copy: &Path, promised: &Promised) -> Vec<String> {
    let runtime = runtime();
    let broker = start(&runtime, copy, Fsync::Acknowledge);
    let bootstrap = broker.bootstrap();
    if runtime.block_on(async { broker.node.topic(TOPIC).is_none() }) {
        return vec!["the topic is gone".to_owned()];
    }
    let mut broken = Vec::new();
    // The cut may have left a transaction open, which holds back readers and offsets until its producer is back.
    drop(transactional(&bootstrap));
    let all = read_all(&bootstrap, "read_uncommitted");
    for (place, number) in &promised.acknowledged {
        if all.get(place).map(|(_, number)| number) != Some(number) {
            broken.push(format!("record {number} was acknowledged at {place:?}"));
        }
    }
    let gone = promised.seen.iter().filter(|place| !all.contains_key(place));
    broken.extend(gone.map(|place| format!("the record at {place:?} was seen by a reader")));
    let mut halves: BTreeMap<u64, i32> = BTreeMap::new();
    for (key, number) in read_all(&bootstrap, "read_committed").into_values() {
        if key == TOGETHER {
            *halves.entry(number).or_default() += 1;
        }
    }
    let split = halves.iter().filter(|(_, halves)| **halves != PARTITIONS);
    broken.extend(split.map(|(number, halves)| format!("{halves} record of transaction {number} is there")));
    let gone = promised.committed.iter().filter(|number| !halves.contains_key(number));
    broken.extend(gone.map(|number| format!("transaction {number} was committed")));
    if let Some(last) = promised.committed.last() {
        let reader = reader(&bootstrap, &[]);
        let committed = reader.committed_offsets(offset(0), PATIENCE).map(|list| list.elements()[0].offset());
        if !matches!(committed, Ok(Offset::Offset(at)) if at >= *last as i64) {
            broken.push(format!("offset {last} was committed, not {committed:?}"));
            return broken;
        }
        // It goes on as well.
        reader.commit(&offset(last + 1), CommitMode::Sync).unwrap();
    }
    broken
}

#[test]
fn synced_acknowledgements_survive_a_power_cut_at_any_moment() {
    let seed = std::env::var("UNDERTONE_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| rand::rng().random());
    eprintln!("seed {seed}; UNDERTONE_TEST_SEED repeats the moments");
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let told = (ROUNDS * (RECORDS_PER_ROUND + 1)) as usize;
    let moments: Vec<usize> = (0..CUTS).map(|_| random.random_range(1..told)).collect();
    let dir = tempfile::tempdir().unwrap();
    let cuts = cut_under_load(dir.path(), Fsync::Acknowledge, &moments);
    assert!(cuts.last().is_some_and(|(_, promised)| promised.committed.len() as u64 == ROUNDS));
    for (copy, promised) in &cuts {
        assert_eq!(broken(copy.path(), promised), Vec::<String>::new(), "{moments:?}");
    }
}

#[test]
fn an_interval_loses_what_was_not_synced_and_keeps_what_was() {
    let never = Fsync::Interval { every: Duration::from_secs(3600) };
    let dir = tempfile::tempdir().unwrap();
    let cuts = cut_under_load(dir.path(), never, &[]);
    let (copy, promised) = &cuts[0];
    assert!(!broken(copy.path(), promised).is_empty(), "nothing but a sync keeps what was acknowledged");

    let often = Fsync::Interval { every: Duration::from_millis(50) };
    let dir = tempfile::tempdir().unwrap();
    let runtime = runtime();
    let broker = start(&runtime, dir.path(), often);
    create_topic(&runtime, &broker.bootstrap());
    let (sender, told) = mpsc::channel();
    load(&broker.bootstrap(), &sender);
    drop(sender);
    let mut promised = Promised::default();
    told.into_iter().for_each(|told| promised.add(told));
    // Nothing more is written: the interval alone must bring all of it to the disk.
    let begun = Instant::now();
    loop {
        let copy = tempfile::tempdir().unwrap();
        copy_survivors(dir.path(), copy.path()).unwrap();
        let broken = broken(copy.path(), &promised);
        if broken.is_empty() {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "{broken:?}");
    }
}
