//! Limits: who may reach the broker, and what one client can take from the others.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use broker::{Broker, Config, StartError};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use crate::support::{
    Deliveries, PATIENCE, Server, at, client, committed, consumer, create_topic, produce, read_all, runtime,
    transactional, unique, wait_for,
};

#[test]
fn other_machines_are_let_in_only_if_told() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let start = |change: &dyn Fn(&mut Config)| {
        let mut config = Config::new(dir.path());
        config.listen = "0.0.0.0:0".parse().expect("it is an address");
        change(&mut config);
        runtime().block_on(Broker::start(config))
    };
    ensure!(matches!(start(&|_| ()), Err(StartError::NotLoopback { .. })));
    let nameless = start(&|config| config.allow_remote = true);
    ensure!(matches!(nameless, Err(StartError::NoAdvertisedHost { .. })));
    let told = start(&|config| {
        config.allow_remote = true;
        config.advertised_host = Some("127.0.0.1".to_owned());
    });
    ensure!(told?.bootstrap().starts_with("127.0.0.1:"));
    Ok(())
}

/// Whether the broker closes the connection after these bytes.
fn is_closed_after(bootstrap: &str, bytes: &[u8]) -> Result<bool> {
    let mut stream = TcpStream::connect(bootstrap)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = [0_u8; 1];
    match stream.read(&mut answer) {
        Ok(read) => Ok(read == 0),
        Err(error) => Ok(error.kind() == std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn requests_that_are_too_large_or_no_requests_close_only_their_connection() -> Result<()> {
    let server = Server::with(|config| config.request_bytes_max = 1 << 20);
    let bootstrap = server.bootstrap();
    let (key, version) = (0_i16.to_be_bytes(), 9_i16.to_be_bytes());
    let garbage = [&100_i32.to_be_bytes()[..], &key, &version, &[0xff; 96]].concat();
    let unknown = [&8_i32.to_be_bytes()[..], &999_i16.to_be_bytes(), &[0; 6]].concat();
    for bytes in [&i32::MAX.to_be_bytes()[..], &(-1_i32).to_be_bytes(), &0_i32.to_be_bytes(), &garbage, &unknown] {
        ensure!(is_closed_after(bootstrap, bytes)?, "{bytes:?}");
    }
    let reader: BaseConsumer = client(bootstrap).create()?;
    ensure!(reader.fetch_metadata(None, PATIENCE)?.brokers().len() == 1, "others are served");
    Ok(())
}

#[test]
fn connections_beyond_the_limit_and_silent_ones_are_closed() -> Result<()> {
    let server = Server::with(|config| {
        config.connections_max = 2;
        config.connection_idle = Duration::from_millis(300);
    });
    let held: Vec<TcpStream> = (0..2).map(|_| TcpStream::connect(server.bootstrap())).collect::<Result<_, _>>()?;
    ensure!(is_closed_after(server.bootstrap(), &[])?, "the third is closed");
    for mut silent in held {
        silent.set_read_timeout(Some(PATIENCE))?;
        ensure!(silent.read(&mut [0; 1])? == 0, "a silent one is closed in the end");
    }
    Ok(())
}

#[test]
fn connections_that_are_only_held_make_room_and_those_at_work_do_not() -> Result<()> {
    let server = Server::with(|config| {
        config.connections_max = 3;
        config.connection_makes_room_after = Duration::from_millis(50);
    });
    let (bootstrap, topic) = (server.bootstrap(), unique("held"));
    let produced = |value| produce(bootstrap, &topic, None, value..value + 1, &[]);
    let mut held: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(bootstrap)).collect::<Result<_, _>>()?;
    create_topic(bootstrap, &topic, 1, &[])?;
    for value in 0..3 {
        produced(value)?;
    }
    ensure!(read_all(bootstrap, &topic, 1, &[])?.len() == 3, "others are served");
    for silent in &held {
        silent.set_read_timeout(Some(Duration::from_millis(10)))?;
    }
    let begun = Instant::now();
    while !held.iter_mut().any(|silent| matches!(silent.read(&mut [0; 1]), Ok(0))) {
        ensure!(begun.elapsed() < PATIENCE, "a silent one has made room");
    }
    Ok(())
}

#[test]
fn a_disk_that_takes_no_more_refuses_producers_until_there_is_room() -> Result<()> {
    let server = Server::with(|_| ());
    let (bootstrap, topic) = (server.bootstrap(), unique("full"));
    create_topic(bootstrap, &topic, 1, &[("segment.bytes", "10000")])?;
    produce(bootstrap, &topic, None, 0..10, &[])?;
    // A segment that cannot be made stands for a disk without room: a folder has the next one's name.
    let folder = server.dir().join("topics").join(&topic).join("0-0");
    let obstacle = folder.join(format!("{:020}.log", 10));
    std::fs::create_dir(&obstacle)?;
    let mut config = client(bootstrap);
    config.set("message.timeout.ms", "1500").set("linger.ms", "0");
    let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries::default())?;
    let large = vec![b'x'; 9_900];
    producer.send(BaseRecord::<str, _>::to(&topic).payload(&large)).map_err(|(error, _)| error)?;
    producer.flush(PATIENCE)?;
    ensure!(producer.context().last_error().is_some(), "the record is not acknowledged");
    ensure!(read_all(bootstrap, &topic, 1, &[])?.len() == 10, "what is there can be read");

    std::fs::remove_dir(&obstacle)?;
    producer.send(BaseRecord::<str, _>::to(&topic).payload(&large)).map_err(|(error, _)| error)?;
    producer.flush(PATIENCE)?;
    let seen = read_all(bootstrap, &topic, 1, &[])?;
    let last = seen.last().context("the record")?;
    ensure!((seen.len(), last.offset, last.value.len()) == (11, 10, 9_900), "{}", seen.len());
    Ok(())
}

#[test]
fn groups_that_are_not_used_are_forgotten_and_those_at_work_are_not() -> Result<()> {
    let server = Server::with(|config| config.group_offsets_expiry = Duration::from_millis(700));
    let (bootstrap, topic) = (server.bootstrap(), unique("unused"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let (idle, busy) = (unique("idle"), unique("busy"));
    let member: BaseConsumer = consumer(bootstrap, &busy).create()?;
    member.subscribe(&[&topic])?;
    wait_for("an assignment", || {
        member.poll(Duration::from_millis(50));
        Ok(member.assignment()?.count() == 1)
    })?;
    member.commit(&at(&topic, 0, 5), CommitMode::Sync)?;
    let other: BaseConsumer = consumer(bootstrap, &idle).create()?;
    other.commit(&at(&topic, 0, 6), CommitMode::Sync)?;
    ensure!(committed(&other, &topic, 0)? == Offset::Offset(6));
    wait_for("the idle group to be forgotten", || {
        member.poll(Duration::from_millis(20));
        Ok(committed(&other, &topic, 0)? == Offset::Invalid)
    })?;
    ensure!(committed(&member, &topic, 0)? == Offset::Offset(5), "a group with members keeps its offsets");
    Ok(())
}

#[test]
fn transactional_ids_are_bounded_and_forgotten_when_they_are_not_used() -> Result<()> {
    let server = Server::with(|config| {
        config.transactional_ids_max = 2;
        config.transactional_id_expiry = Duration::from_millis(500);
    });
    let bootstrap = server.bootstrap();
    for _ in 0..2 {
        transactional(bootstrap, &unique("tx"), 10_000)?.init_transactions(PATIENCE)?;
    }
    let third = transactional(bootstrap, &unique("tx"), 10_000)?;
    wait_for("room for a third", || Ok(third.init_transactions(Duration::from_millis(500)).is_ok()))
}
