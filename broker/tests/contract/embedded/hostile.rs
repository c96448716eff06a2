//! Clients that are slow, broken or mean: each costs no more than its own connection.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{ApiKey, FetchResponse, ListOffsetsRequest, ListOffsetsResponse, TopicName};
use kafka_protocol::protocol::StrBytes;
use kafka_protocol::records::Compression;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::process::Process;
use super::raw::{self, answer, connect, framed, is_closed};
use crate::support::{PATIENCE, Server, an_hour_ago_ms, client, create_topic, produce, read_all, unique, wait_for};

#[test]
fn lengths_that_are_only_announced_hold_no_memory() -> Result<()> {
    let server = Server::with(|config| {
        config.request_bytes_max = 1 << 20;
        config.request_memory_bytes = 2 << 20;
    });
    let (bootstrap, topic) = (server.bootstrap(), unique("announced"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let mut held = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(bootstrap)?;
        stream.write_all(&(1_i32 << 20).to_be_bytes())?;
        stream.write_all(&[0; 10])?;
        held.push(stream);
    }
    let mut honest = connect(bootstrap)?;
    let large = Bytes::from(vec![b'x'; 900_000]);
    ensure!(raw::produce(&mut honest, &topic, raw::batch(&[large], an_hour_ago_ms(), Compression::None)?)? == 0);
    ensure!(read_all(bootstrap, &topic, 1, &[])?.len() == 1);
    drop(held);
    Ok(())
}

#[test]
fn half_a_request_is_waited_for_so_long_and_no_longer() -> Result<()> {
    let server = Server::with(|config| config.request_within = Duration::from_millis(200));
    for bytes in [&100_i32.to_be_bytes()[..], &[0, 0, 0, 100, 0, 3, 0, 9]] {
        let mut stream = connect(server.bootstrap())?;
        stream.write_all(bytes)?;
        ensure!(is_closed(&mut stream)?);
    }
    Ok(())
}

#[test]
fn a_batch_with_a_wrong_checksum_is_refused_and_the_next_one_taken() -> Result<()> {
    let server = Server::with(|_| ());
    let (bootstrap, topic) = (server.bootstrap(), unique("checksum"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let batch = raw::batch(&[Bytes::from_static(b"whole")], an_hour_ago_ms(), Compression::None)?;
    let mut stream = connect(bootstrap)?;
    for at in [17, 30, batch.len() - 1] {
        let mut damaged = batch.to_vec();
        damaged[at] ^= 0x10;
        let code = raw::produce(&mut stream, &topic, damaged.into())?;
        ensure!(code == ResponseError::CorruptMessage.code(), "byte {at}: {code}");
    }
    ensure!(raw::produce(&mut stream, &topic, batch)? == 0);
    let seen = read_all(bootstrap, &topic, 1, &[])?;
    ensure!(seen.len() == 1 && seen[0].value == b"whole");
    Ok(())
}

#[test]
fn a_count_beyond_its_request_closes_only_its_connection() -> Result<()> {
    let server = Server::with(|_| ());
    let mut honest = connect(server.bootstrap())?;
    // Metadata version 1 with two thousand million topics, in 14 bytes.
    let mut lie = vec![0, 0, 0, 14, 0, 3, 0, 1, 0, 0, 0, 0, 0xff, 0xff];
    lie.extend(i32::MAX.to_be_bytes());
    let mut stream = connect(server.bootstrap())?;
    stream.write_all(&lie)?;
    ensure!(is_closed(&mut stream)?);
    let topic = unique("after-a-lie");
    create_topic(server.bootstrap(), &topic, 1, &[])?;
    ensure!(raw::fetch(&mut honest, &topic, 0)?.0 == 0, "others are served");
    Ok(())
}

#[test]
fn readers_that_do_not_take_their_answers_leave_memory_for_the_others() -> Result<()> {
    let server = Server::with(|config| config.fetch_memory_bytes = 2 << 20);
    let (bootstrap, topic) = (server.bootstrap(), unique("slow"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let mut producer = connect(bootstrap)?;
    for _ in 0..8 {
        let batch = raw::batch(&[Bytes::from(vec![b'x'; 500_000])], an_hour_ago_ms(), Compression::None)?;
        ensure!(raw::produce(&mut producer, &topic, batch)? == 0);
    }
    let request = framed(raw::FETCH, &raw::fetch_request(&topic, 0, 1 << 20, 0))?;
    let mut held = Vec::new();
    for _ in 0..6 {
        let mut stream = connect(bootstrap)?;
        // More answers than the sockets' buffers take.
        stream.write_all(&request.repeat(40))?;
        held.push(stream);
    }
    ensure!(read_all(bootstrap, &topic, 1, &[])?.len() == 8);
    Ok(())
}

#[test]
fn few_bytes_that_unpack_to_very_many_are_not_unpacked() -> Result<()> {
    let server = Server::with(|_| ());
    let bootstrap = server.bootstrap();
    let (compacted, plain) = (unique("bomb-compacted"), unique("bomb"));
    create_topic(bootstrap, &compacted, 1, &[("cleanup.policy", "compact")])?;
    create_topic(bootstrap, &plain, 1, &[])?;
    let time_ms = an_hour_ago_ms();
    let bomb = raw::batch(&[Bytes::from(vec![0; 40 << 20])], time_ms, Compression::Zstd)?;
    ensure!(bomb.len() < 1 << 20, "{} bytes", bomb.len());
    let mut stream = connect(bootstrap)?;
    // Keys are looked at in a compacted topic alone.
    let refused = raw::produce(&mut stream, &compacted, bomb.clone())?;
    ensure!(refused == ResponseError::MessageTooLarge.code(), "{refused}");
    ensure!(raw::produce(&mut stream, &plain, bomb)? == 0);
    let partition = ListOffsetsPartition::default().with_timestamp(time_ms - 1);
    let topic = TopicName(StrBytes::from_string(plain.clone()));
    let topic = ListOffsetsTopic::default().with_name(topic).with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_topics(vec![topic]);
    stream.write_all(&framed((ApiKey::ListOffsets, 5), &request)?)?;
    let response: ListOffsetsResponse = answer(&mut stream, 5)?;
    let found = &response.topics[0].partitions[0];
    ensure!((found.error_code, found.offset) == (0, 0), "{found:?}");
    Ok(())
}

#[test]
fn ten_thousand_connections_take_no_more_than_the_limit_and_leave_the_others_alone() -> Result<()> {
    const HELD: usize = 100;
    let dir = tempfile::tempdir()?;
    let process = Process::start_under("", dir.path(), "127.0.0.1:0", &["connections=100"])?;
    let topic = unique("crowd");
    let mut first = connect(&process.bootstrap)?;
    {
        let reader: BaseConsumer = client(&process.bootstrap).create()?;
        reader.fetch_metadata(None, PATIENCE)?;
        create_topic(&process.bootstrap, &topic, 1, &[])?;
    }
    let threads = process.status("Threads")?;
    let mut held: Vec<TcpStream> = Vec::new();
    let mut turned_away = 0;
    for _ in 0..10_000 {
        let mut stream = connect(&process.bootstrap)?;
        if held.len() < HELD {
            held.push(stream);
        } else if is_closed(&mut stream)? {
            turned_away += 1;
        }
    }
    // The clients of before may still have counted for the first of these.
    ensure!(turned_away == 10_000 - HELD, "{turned_away} were turned away");
    ensure!(process.status("Threads")? == threads, "no thread for a connection");
    let resident_mib = process.status("VmRSS")? / 1024;
    ensure!(resident_mib < 64, "{resident_mib} MiB");
    ensure!(raw::fetch(&mut first, &topic, 0)?.0 == 0, "who was there before is served");
    drop(held);
    wait_for("room for another", || {
        let reader: BaseConsumer = client(&process.bootstrap).create()?;
        Ok(reader.fetch_metadata(Some(&topic), Duration::from_millis(500)).is_ok())
    })
}

#[test]
fn without_file_descriptors_connections_wait_until_there_are_some() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let process = Process::start_under("ulimit -n 64", dir.path(), "127.0.0.1:0", &[])?;
    let topic = unique("descriptors");
    create_topic(&process.bootstrap, &topic, 1, &[])?;
    let mut first = connect(&process.bootstrap)?;
    ensure!(raw::fetch(&mut first, &topic, 0)?.0 == 0);
    let held: Vec<TcpStream> = (0..100).map(|_| connect(&process.bootstrap)).collect::<Result<_>>()?;
    let batch = raw::batch(&[Bytes::from_static(b"in need")], an_hour_ago_ms(), Compression::None)?;
    ensure!(raw::produce(&mut first, &topic, batch)? == 0, "who is connected is served");
    drop(held);
    produce(&process.bootstrap, &topic, None, 0..10, &[])?;
    ensure!(read_all(&process.bootstrap, &topic, 1, &[])?.len() == 11);
    Ok(())
}

#[test]
fn an_orderly_end_answers_who_waits_and_is_not_held_up_by_who_does_not_ask() -> Result<()> {
    let mut server = Server::with(|config| config.shutdown_grace = Duration::from_secs(20));
    let (bootstrap, topic) = (server.bootstrap().to_owned(), unique("end"));
    create_topic(&bootstrap, &topic, 1, &[])?;
    let mut waiting = connect(&bootstrap)?;
    waiting.write_all(&framed(raw::FETCH, &raw::fetch_request(&topic, 0, 1 << 20, 30_000))?)?;
    wait_for("the broker reads what waits", || raw::was_read(&waiting))?;
    let mut half = connect(&bootstrap)?;
    half.write_all(&[0, 0, 0, 100, 0])?;
    let _silent = connect(&bootstrap)?;
    let mut asking = connect(&bootstrap)?;
    ensure!(raw::fetch(&mut asking, &topic, 0)?.0 == 0);
    let begun = Instant::now();
    server.shut_down();
    ensure!(begun.elapsed() < Duration::from_secs(10), "it took {:?}", begun.elapsed());
    let answered: FetchResponse = answer(&mut waiting, raw::FETCH.1).context("the answer of who waited")?;
    ensure!(answered.error_code == 0);
    let mut rest = Vec::new();
    ensure!(half.read_to_end(&mut rest).map_or(true, |read| read == 0));
    server.start_again();
    ensure!(read_all(&bootstrap, &topic, 1, &[])?.is_empty());
    Ok(())
}
