//! What survives: crashes, `kill -9`, torn ends, orderly ends; and that a folder has one broker.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use broker::{Broker, Config, Fsync, StartError};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message as _, Offset};

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

/// A broker in a process of its own, which ends with this value.
struct Process {
    child: Child,
    bootstrap: String,
}

impl Process {
    fn start(dir: &std::path::Path, listen: &str) -> Result<Process> {
        let deps = std::env::current_exe()?;
        let program = deps.ancestors().nth(2).context("the build folder")?.join("examples").join("serve");
        let mut child =
            Command::new(program).arg(dir).arg(listen).stdout(Stdio::piped()).spawn().context("start serve")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("its output")?).read_line(&mut line)?;
        let bootstrap = line.split(' ').next().context("its address")?.to_owned();
        ensure!(!bootstrap.is_empty(), "the broker did not start");
        Ok(Process { child, bootstrap })
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
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
