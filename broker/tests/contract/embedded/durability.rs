//! What survives: crashes, `kill -9`, torn ends, orderly ends; and that a folder has one broker.

use std::collections::{HashMap, HashSet};
use std::io::Write as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use broker::{Broker, Config, Fsync, StartError};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message as _, Offset};

use super::process::Process;
use super::raw;
use crate::support::{
    COMMITTED, PATIENCE, Server, at, client, committed, consumer, create_topic, keys, produce, read_all, runtime, send,
    transactional, unique, wait_for,
};

#[test]
fn everything_is_there_after_a_crash_and_after_an_orderly_end() -> Result<()> {
    let mut server = Server::with(|_| ());
    let (bootstrap, topic, group) = (server.bootstrap().to_owned(), unique("survive"), unique("g"));
    create_topic(&bootstrap, &topic, 2, &[("retention.ms", "86400000")])?;
    for round in 0..4 {
        produce(&bootstrap, &topic, None, round * 100..(round + 1) * 100, &[("enable.idempotence", "true")])?;
        let reader: BaseConsumer = consumer(&bootstrap, &group).create()?;
        reader.commit(&at(&topic, 0, round as i64), CommitMode::Sync)?;
        drop(reader);
        if round % 2 == 0 {
            server.crash()
        } else {
            server.shut_down()
        }
        server.start_again();
        let seen = read_all(&bootstrap, &topic, 2, &[])?;
        let distinct: HashSet<&str> = keys(&seen).into_iter().collect();
        ensure!((seen.len(), distinct.len()) == ((round + 1) * 100, (round + 1) * 100));
        let reader: BaseConsumer = consumer(&bootstrap, &group).create()?;
        ensure!(committed(&reader, &topic, 0)? == Offset::Offset(round as i64));
    }
    Ok(())
}

#[test]
fn a_transaction_that_a_crash_interrupts_is_aborted_and_its_producer_goes_on() -> Result<()> {
    let mut server = Server::with(|_| ());
    let (bootstrap, topic, id) = (server.bootstrap().to_owned(), unique("interrupted"), unique("tx"));
    create_topic(&bootstrap, &topic, 1, &[])?;
    let producer = transactional(&bootstrap, &id, 30_000)?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    send(&producer, &topic, 0, "interrupted")?;
    producer.flush(PATIENCE)?;
    server.crash();
    server.start_again();
    ensure!(read_all(&bootstrap, &topic, 1, COMMITTED)?.is_empty(), "it is open still");
    let successor = transactional(&bootstrap, &id, 30_000)?;
    successor.init_transactions(PATIENCE)?;
    successor.begin_transaction()?;
    send(&successor, &topic, 0, "after")?;
    successor.commit_transaction(PATIENCE)?;
    ensure!(keys(&read_all(&bootstrap, &topic, 1, COMMITTED)?) == ["after"]);
    Ok(())
}

#[test]
fn a_torn_end_is_cut_off_and_the_log_goes_on() -> Result<()> {
    let mut server = Server::with(|_| ());
    let (bootstrap, topic) = (server.bootstrap().to_owned(), unique("torn"));
    create_topic(&bootstrap, &topic, 1, &[])?;
    produce(&bootstrap, &topic, None, 0..100, &[])?;
    server.crash();
    let folder = server.dir().join("topics").join(&topic).join("0-0");
    let segment = folder.join("00000000000000000000.log");
    let whole = std::fs::read(&segment)?;
    // Half a batch, as a write leaves it that was cut short.
    std::fs::OpenOptions::new().append(true).open(&segment)?.write_all(&whole[..whole.len().min(90)])?;
    let metadata = server.dir().join("metadata.log");
    std::fs::OpenOptions::new().append(true).open(metadata)?.write_all(b"{\"Offsets\":[{\"gr")?;
    server.start_again();
    ensure!(std::fs::metadata(&segment)?.len() == whole.len() as u64);
    produce(&bootstrap, &topic, None, 100..200, &[])?;
    let seen = read_all(&bootstrap, &topic, 1, &[])?;
    let dense = seen.iter().enumerate().all(|(i, record)| record.offset == i as i64 && record.key == format!("k{i}"));
    ensure!(seen.len() == 200 && dense);
    Ok(())
}

#[test]
fn a_folder_has_one_broker_and_a_dropped_one_frees_folder_and_port() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let runtime = runtime();
    let first = runtime.block_on(Broker::start(Config::new(dir.path())))?;
    let second = runtime.block_on(Broker::start(Config::new(dir.path())));
    let error = second.err().context("the folder is in use")?;
    ensure!(matches!(error, StartError::InUse { .. }) && error.to_string().contains("another broker"), "{error}");
    let listen = first.address();
    drop(first);
    let again = Config { listen, ..Config::new(dir.path()) };
    ensure!(runtime.block_on(Broker::start(again))?.address() == listen);
    Ok(())
}

#[test]
fn synced_acknowledgements_work_for_producers_and_transactions() -> Result<()> {
    let mut server = Server::with(|config| config.fsync = Fsync::Acknowledge);
    let (bootstrap, topic) = (server.bootstrap().to_owned(), unique("synced"));
    create_topic(&bootstrap, &topic, 2, &[])?;
    produce(&bootstrap, &topic, None, 0..500, &[("enable.idempotence", "true")])?;
    let producer = transactional(&bootstrap, &unique("tx"), 30_000)?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    send(&producer, &topic, 0, "committed")?;
    producer.commit_transaction(PATIENCE)?;
    server.crash();
    server.start_again();
    ensure!(read_all(&bootstrap, &topic, 2, COMMITTED)?.len() == 501);
    Ok(())
}

/// Where each acknowledged record is said to be.
#[derive(Clone, Default)]
struct Acknowledged(Arc<Mutex<HashMap<usize, (i32, i64)>>>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = Box<usize>;

    fn delivery(&self, result: &DeliveryResult<'_>, number: Box<usize>) {
        if let Ok(message) = result {
            self.0.lock().unwrap().insert(*number, (message.partition(), message.offset()));
        }
    }
}

#[test]
fn no_acknowledged_record_is_lost_or_doubled_by_kill_9() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut process = Process::start(dir.path(), "127.0.0.1:0")?;
    let (bootstrap, topic) = (process.bootstrap.clone(), unique("killed"));
    create_topic(&bootstrap, &topic, 3, &[("segment.bytes", "65536")])?;
    let acknowledged = Acknowledged::default();
    let mut config = client(&bootstrap);
    config.set("enable.idempotence", "true").set("linger.ms", "1").set("message.timeout.ms", "60000");
    let producer: BaseProducer<Acknowledged> = config.create_with_context(acknowledged.clone())?;
    let count = |acknowledged: &Acknowledged| acknowledged.0.lock().unwrap().len();
    let mut sent = 0;
    for _ in 0..3 {
        let before = count(&acknowledged);
        wait_for("a thousand acknowledgements", || {
            for _ in 0..50 {
                let (key, value) = (format!("k{}", sent % 16), format!("{sent}"));
                let record = BaseRecord::with_opaque_to(&topic, Box::new(sent)).key(&key).payload(&value);
                producer.send(record).map_err(|(error, _)| error)?;
                sent += 1;
            }
            producer.poll(Duration::from_millis(5));
            Ok(count(&acknowledged) >= before + 1000)
        })?;
        // Requests are under way now.
        process.kill()?;
        process = Process::start(dir.path(), &bootstrap)?;
    }
    producer.flush(PATIENCE)?;
    ensure!(count(&acknowledged) == sent, "every record is acknowledged in the end");
    let seen = read_all(&bootstrap, &topic, 3, &[])?;
    ensure!(seen.len() == sent, "{} records where {sent} were sent", seen.len());
    for record in seen {
        let number: usize = std::str::from_utf8(&record.value)?.parse()?;
        let said = acknowledged.0.lock().unwrap().get(&number).copied();
        ensure!(said == Some((record.partition, record.offset)), "{number} is not where its producer was told");
    }
    Ok(())
}

#[test]
fn a_disk_that_fills_up_in_the_middle_of_a_write_refuses_and_goes_on_when_there_is_room() -> Result<()> {
    let dir = tempfile::tempdir()?;
    // The system takes no more than 64 KiB of a file: a write that crosses that is cut short, as on a full disk. The
    // signal that comes with it would end the process.
    let limits = "trap '' XFSZ; ulimit -S -f 128";
    let mut process = Process::start_under(limits, dir.path(), "127.0.0.1:0", &[])?;
    let (bootstrap, topic, group) = (process.bootstrap.clone(), unique("full"), unique("g"));
    create_topic(&bootstrap, &topic, 1, &[])?;
    let acknowledged = Acknowledged::default();
    let mut config = client(&bootstrap);
    config.set("linger.ms", "0").set("message.timeout.ms", "1000").set("batch.num.messages", "1");
    let producer: BaseProducer<Acknowledged> = config.create_with_context(acknowledged.clone())?;
    let value = vec![b'x'; 9_000];
    let send = |number: usize| {
        let key = number.to_string();
        let record = BaseRecord::with_opaque_to(&topic, Box::new(number)).key(&key).payload(&value);
        producer.send(record).map_err(|(error, _)| anyhow::Error::from(error))?;
        producer.flush(PATIENCE).context("flush")
    };
    for number in 0..10 {
        send(number)?;
    }
    let before = acknowledged.0.lock().unwrap().len();
    ensure!((5..10).contains(&before), "{before} fitted");
    ensure!(read_all(&bootstrap, &topic, 1, &[])?.len() == before, "what was acknowledged is there, and nothing else");
    // The broker's own log fills up as well, and says so to who commits.
    let reader: BaseConsumer = consumer(&bootstrap, &group).create()?;
    let mut last = None;
    wait_for("a commit that is refused", || {
        for offset in 0..200 {
            if reader.commit(&at(&topic, 0, offset), CommitMode::Sync).is_err() {
                return Ok(true);
            }
            last = Some(offset);
        }
        Ok(false)
    })?;
    let told = Command::new("prlimit").arg(format!("--pid={}", process.id())).arg("--fsize=unlimited").status()?;
    ensure!(told.success(), "the limit is lifted");
    let count = || acknowledged.0.lock().unwrap().len();
    wait_for("producers to be let in again", || send(100).map(|()| count() > before))?;
    reader.commit(&at(&topic, 0, 7_000), CommitMode::Sync)?;
    process.kill()?;
    let _process = Process::start(dir.path(), &bootstrap)?;
    let reader: BaseConsumer = consumer(&bootstrap, &group).create()?;
    ensure!(committed(&reader, &topic, 0)? == Offset::Offset(7_000), "the last that was refused came after {last:?}");
    let seen = read_all(&bootstrap, &topic, 1, &[])?;
    let dense = seen.iter().enumerate().all(|(i, record)| record.offset == i as i64 && record.value == value);
    ensure!(seen.len() == count() && dense, "{} records, {} acknowledged", seen.len(), count());
    Ok(())
}

#[test]
fn what_cannot_be_opened_is_named_with_the_mend() -> Result<()> {
    let mut server = Server::with(|_| ());
    create_topic(server.bootstrap(), "named", 1, &[])?;
    server.shut_down();
    let dir = server.dir().to_owned();
    let refused = |what: &str, path: &std::path::Path, mend: &str| {
        let config = Config::new(&dir);
        let error = runtime().block_on(Broker::start(config)).err().with_context(|| format!("{what} is noticed"))?;
        let told = error.to_string();
        ensure!(told.contains(&path.display().to_string()) && told.contains(mend), "{what}: {told}");
        Ok(())
    };
    // A file where a folder must be cannot be read by anyone, whatever rights the test runs with.
    let swap = |path: &std::path::Path, check: &dyn Fn() -> Result<()>| {
        let aside = path.with_extension("aside");
        std::fs::rename(path, &aside)?;
        if aside.is_dir() {
            std::fs::write(path, b"no folder")?
        } else {
            std::fs::create_dir(path)?
        }
        check()?;
        if path.is_dir() {
            std::fs::remove_dir(path)?
        } else {
            std::fs::remove_file(path)?
        }
        anyhow::Ok(std::fs::rename(&aside, path)?)
    };
    let topic = dir.join("topics").join("named");
    swap(&topic.join("0-0"), &|| refused("the folder of a partition", &topic, "restore it from a backup"))?;
    let segment = topic.join("0-0").join(format!("{:020}.log", 0));
    swap(&segment, &|| refused("a segment", &topic, "restore it from a backup"))?;
    swap(&dir.join("metadata.log"), &|| refused("the metadata", &dir.join("metadata.log"), "metadata log"))?;
    swap(&dir.join("lock"), &|| refused("the lock", &dir, "check that it can be written"))?;
    let nowhere = dir.join("metadata.log").join("inside");
    let error = runtime().block_on(Broker::start(Config::new(&nowhere))).err().context("no folder there")?;
    ensure!(matches!(error, StartError::Directory { .. }), "{error}");
    server.start_again();
    Ok(())
}

#[test]
fn damage_that_a_start_does_not_look_for_is_told_to_readers_and_never_handed_out() -> Result<()> {
    let mut server = Server::with(|_| ());
    let (bootstrap, topic) = (server.bootstrap().to_owned(), unique("damaged"));
    create_topic(&bootstrap, &topic, 1, &[])?;
    for number in 0..9 {
        produce(&bootstrap, &topic, Some(0), number..number + 1, &[])?;
    }
    server.shut_down();
    let segment = server.dir().join("topics").join(&topic).join("0-0").join(format!("{:020}.log", 0));
    let mut bytes = std::fs::read(&segment)?;
    let middle = bytes.windows(2).position(|pair| pair == b"v4").context("the fifth record")?;
    bytes[middle] ^= 1;
    std::fs::write(&segment, &bytes)?;
    server.start_again();
    let mut stream = raw::connect(&bootstrap)?;
    let (code, records) = raw::fetch(&mut stream, &topic, 0)?;
    ensure!(code == 0 && records.windows(2).any(|pair| pair == b"v3"), "what is in front of it is read");
    ensure!(!records.windows(2).any(|pair| pair == b"v5"), "nothing behind it is passed off as the next");
    let (code, records) = raw::fetch(&mut stream, &topic, 4)?;
    ensure!((code, records.len()) == (kafka_protocol::ResponseError::CorruptMessage.code(), 0));
    let (code, records) = raw::fetch(&mut stream, &topic, 5)?;
    ensure!(code == 0 && records.windows(2).any(|pair| pair == b"v8"), "what is behind it is read");
    produce(&bootstrap, &topic, Some(0), 9..10, &[])?;
    Ok(())
}
