//! Records: what is produced is what is consumed, in order, once, in every codec and size, at every offset and time.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{Header, Headers as _, Message as _, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::util::Timeout;
use rdkafka::{Offset, TopicPartitionList};

use crate::support::{
    PATIENCE, Server, at, block_on, client, commit, committed, consumer, create_topic, produce, read_all, unique,
    wait_for,
};

const WITHIN: Timeout = Timeout::After(PATIENCE);

#[test]
fn keys_headers_timestamps_and_order_survive() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("basic"));
    create_topic(bootstrap, &topic, 3, &[])?;
    let begun_ms = crate::support::an_hour_ago_ms();
    let runtime = crate::support::runtime();
    runtime.block_on(async {
        let producer: FutureProducer = client(bootstrap).create()?;
        for i in 0..100 {
            let headers = OwnedHeaders::new()
                .insert(Header { key: "text", value: Some(&format!("x{i}")) })
                .insert(Header { key: "none", value: None::<&str> })
                .insert(Header { key: "bytes", value: Some(&[0_u8, 255, 1][..]) });
            let (key, value) = (format!("key{}", i % 7), format!("value{i}"));
            let record = FutureRecord::to(&topic).key(&key).payload(&value).headers(headers).timestamp(begun_ms + i);
            producer.send(record, WITHIN).await.map_err(|(error, _)| error)?;
        }
        anyhow::Ok(())
    })?;
    let reader: BaseConsumer = consumer(bootstrap, &unique("g")).create()?;
    reader.subscribe(&[&topic])?;
    let mut last: HashMap<Vec<u8>, i64> = HashMap::new();
    let mut seen = 0;
    wait_for("a hundred records", || {
        let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) else { return Ok(false) };
        let value = std::str::from_utf8(message.payload().context("a value")?)?;
        let i: i64 = value.trim_start_matches("value").parse()?;
        let key = message.key().context("a key")?.to_vec();
        ensure!(key == format!("key{}", i % 7).as_bytes());
        ensure!(message.timestamp().to_millis() == Some(begun_ms + i));
        let headers: Vec<_> = message.headers().context("headers")?.iter().collect();
        let headers: Vec<_> = headers.iter().map(|h| (h.key, h.value.map(<[u8]>::to_vec))).collect();
        let text = Some(format!("x{i}").into_bytes());
        ensure!(headers == [("text", text), ("none", None), ("bytes", Some(vec![0, 255, 1]))]);
        ensure!(last.insert(key, i).is_none_or(|before| before < i), "records of a key are in order");
        seen += 1;
        Ok(seen == 100)
    })
}

#[test]
fn absent_and_empty_keys_and_values_are_told_apart() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("absent"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let cases = [(None, None), (Some(&b"k"[..]), None), (Some(&b""[..]), Some(&b""[..]))];
    crate::support::runtime().block_on(async {
        let producer: FutureProducer = client(bootstrap).create()?;
        for (key, value) in cases {
            let mut record = FutureRecord::<[u8], [u8]>::to(&topic).partition(0);
            (record.key, record.payload) = (key, value);
            producer.send(record, WITHIN).await.map_err(|(error, _)| error)?;
        }
        anyhow::Ok(())
    })?;
    let reader: BaseConsumer = consumer(bootstrap, &unique("g")).create()?;
    reader.assign(&at(&topic, 0, 0))?;
    let mut seen = Vec::new();
    wait_for("three records", || {
        if let Some(Ok(message)) = reader.poll(Duration::from_millis(100)) {
            seen.push((message.key().map(<[u8]>::to_vec), message.payload().map(<[u8]>::to_vec)));
        }
        Ok(seen.len() == 3)
    })?;
    let expected = cases.map(|(key, value)| (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec)));
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

#[test]
fn an_idempotent_producer_writes_each_record_once() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("idempotent"));
    create_topic(bootstrap, &topic, 3, &[])?;
    produce(bootstrap, &topic, None, 0..20_000, &[("enable.idempotence", "true")])?;
    let seen = read_all(bootstrap, &topic, 3, &[])?;
    let distinct: HashSet<&str> = seen.iter().map(|record| record.key.as_str()).collect();
    ensure!((seen.len(), distinct.len()) == (20_000, 20_000));
    Ok(())
}

#[test]
fn every_codec_is_kept_and_read() -> Result<()> {
    let server = Server::start();
    let bootstrap = server.bootstrap();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let topic = unique(codec);
        create_topic(bootstrap, &topic, 1, &[])?;
        // A build of the client may lack a codec; then there is nothing to check.
        match produce(bootstrap, &topic, None, 0..2_000, &[("compression.type", codec)]) {
            Err(error) if error.is::<rdkafka::error::KafkaError>() && error.to_string().contains("config") => continue,
            produced => produced.context(codec)?,
        }
        let seen = read_all(bootstrap, &topic, 1, &[])?;
        let expected = |i: usize| (i as i64, format!("v{i}").into_bytes());
        let all = seen.iter().enumerate().all(|(i, record)| (record.offset, record.value.clone()) == expected(i));
        ensure!(seen.len() == 2_000 && all, "{codec}: {} records", seen.len());
    }
    Ok(())
}

#[test]
fn a_record_above_the_limit_is_refused_and_a_large_one_is_read_by_a_small_fetch() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("large"));
    create_topic(bootstrap, &topic, 1, &[("max.message.bytes", "2000000")])?;
    let runtime = crate::support::runtime();
    let producer: FutureProducer =
        runtime.block_on(async { client(bootstrap).set("message.max.bytes", "8000000").create() })?;
    let send = |size: usize| {
        let value = vec![7_u8; size];
        let record = FutureRecord::<(), _>::to(&topic).payload(&value);
        runtime.block_on(producer.send(record, WITHIN)).map_err(|(error, _)| error.rdkafka_error_code())
    };
    ensure!(send(1_900_000).is_ok());
    ensure!(send(5_000_000).err() == Some(Some(rdkafka::error::RDKafkaErrorCode::MessageSizeTooLarge)));
    let seen = read_all(bootstrap, &topic, 1, &[("fetch.message.max.bytes", "1000")])?;
    ensure!(seen.iter().map(|record| record.value.len()).collect::<Vec<_>>() == [1_900_000]);
    Ok(())
}

#[test]
fn offsets_are_found_by_time_committed_reset_and_sought() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, group) = (server.bootstrap(), unique("offsets"), unique("g"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let begun_ms = crate::support::an_hour_ago_ms();
    crate::support::runtime().block_on(async {
        let producer: FutureProducer = client(bootstrap).create()?;
        for i in 0..100_i64 {
            let value = i.to_string();
            let record = FutureRecord::<(), _>::to(&topic).payload(&value).timestamp(begun_ms + i * 1000);
            producer.send(record, WITHIN).await.map_err(|(error, _)| error)?;
        }
        anyhow::Ok(())
    })?;
    let reader: BaseConsumer = consumer(bootstrap, &group).create()?;
    ensure!(reader.fetch_watermarks(&topic, 0, PATIENCE)? == (0, 100));
    for (time_ms, expected) in [(50_500, Offset::Offset(51)), (0, Offset::Offset(0)), (200_000, Offset::End)] {
        let found = reader.offsets_for_times(at(&topic, 0, begun_ms + time_ms), PATIENCE)?;
        ensure!(found.elements()[0].offset() == expected, "{time_ms}: {found:?}");
    }
    commit(&reader, &at(&topic, 0, 40))?;
    let other: BaseConsumer = consumer(bootstrap, &group).create()?;
    ensure!(committed(&other, &topic, 0)? == Offset::Offset(40));

    let next = |what: &str| {
        let mut offset = None;
        wait_for(what, || {
            offset = other.poll(Duration::from_millis(100)).and_then(Result::ok).map(|message| message.offset());
            Ok(offset.is_some())
        })?;
        anyhow::Ok(offset)
    };
    other.assign(&at(&topic, 0, 100_000))?;
    ensure!(next("a reset to the beginning")? == Some(0), "an offset beyond the end is reset as configured");
    other.seek(&topic, 0, Offset::Offset(77), PATIENCE)?;
    ensure!(next("the sought record")? == Some(77));
    Ok(())
}

#[test]
fn a_waiting_fetch_is_answered_by_the_record_it_waits_for() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("longpoll"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let mut config = consumer(bootstrap, &unique("g"));
    config.set("fetch.wait.max.ms", "20000").set("enable.partition.eof", "false").set("session.timeout.ms", "45000");
    let reader: BaseConsumer = config.set("socket.timeout.ms", "60000").create()?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(&topic, 0, Offset::Beginning)?;
    reader.assign(&assignment)?;
    ensure!(reader.poll(Duration::from_millis(500)).is_none());
    let begun = Instant::now();
    produce(bootstrap, &topic, None, 0..1, &[("linger.ms", "0")])?;
    wait_for("the record", || Ok(matches!(reader.poll(Duration::from_millis(100)), Some(Ok(_)))))?;
    ensure!(begun.elapsed() < Duration::from_secs(10), "it came after {:?}", begun.elapsed());
    Ok(())
}

#[test]
fn retention_removes_old_records_and_keeps_offsets() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("retention"));
    create_topic(bootstrap, &topic, 1, &[("retention.ms", "500"), ("segment.ms", "200")])?;
    produce(bootstrap, &topic, Some(0), 0..1000, &[])?;
    wait_for("the end of the records", || Ok(read_all(bootstrap, &topic, 1, &[])?.is_empty()))?;
    let reader: BaseConsumer = consumer(bootstrap, &unique("g")).create()?;
    ensure!(reader.fetch_watermarks(&topic, 0, PATIENCE)? == (1000, 1000));
    let mut later = Vec::new();
    wait_for("the next record", || {
        produce(bootstrap, &topic, Some(0), 2000..2001, &[])?;
        later = read_all(bootstrap, &topic, 1, &[])?;
        Ok(!later.is_empty())
    })?;
    ensure!(later[0].offset >= 1000, "{later:?}");
    Ok(())
}

#[test]
fn compaction_keeps_the_newest_record_of_each_key_and_its_offset() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("compact"));
    let settings = [
        ("cleanup.policy", "compact"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("segment.ms", "200"),
        ("max.compaction.lag.ms", "500"),
        ("delete.retention.ms", "100"),
    ];
    create_topic(bootstrap, &topic, 1, &settings)?;
    let append = |records: Vec<(String, String)>| {
        crate::support::runtime().block_on(async {
            let producer: FutureProducer = client(bootstrap).set("linger.ms", "5").create()?;
            let mut sent = Vec::new();
            for (key, value) in &records {
                let record = FutureRecord::to(&topic).key(key).payload(value);
                sent.push(producer.send_result(record).map_err(|(error, _)| error)?);
            }
            for sent in sent {
                sent.await?.map_err(|(error, _)| error)?;
            }
            anyhow::Ok(())
        })
    };
    for round in 0..10 {
        append((0..50).map(|i| (format!("k{}", i % 5), format!("v{round}.{i}"))).collect())?;
    }
    let mut seen = Vec::new();
    wait_for("compaction", || {
        // A segment is closed by the first record that finds it too old, and only closed ones are compacted.
        append(vec![("closes".to_owned(), "segments".to_owned())])?;
        seen = read_all(bootstrap, &topic, 1, &[])?;
        Ok(seen.iter().filter(|record| record.key != "closes").count() <= 60)
    })?;
    let end = seen.last().context("a record")?.offset;
    let mut newest: HashMap<&str, (&[u8], i64)> = HashMap::new();
    for record in &seen {
        newest.insert(&record.key, (&record.value, record.offset));
    }
    for key in 0..5 {
        let expected = format!("v9.{}", 45 + key);
        let (value, offset) = newest[format!("k{key}").as_str()];
        ensure!(value == expected.as_bytes() && offset == 495 + key, "{newest:?}");
    }
    produce(bootstrap, &topic, Some(0), 0..10, &[])?;
    let last = read_all(bootstrap, &topic, 1, &[])?.pop().context("the last record")?;
    ensure!(last.offset == end + 10, "offsets go on: {last:?}");
    Ok(())
}

#[test]
fn a_record_without_key_is_refused_in_a_compacted_topic() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("keyless"));
    create_topic(bootstrap, &topic, 1, &[("cleanup.policy", "compact")])?;
    let sent = block_on(async {
        let producer: FutureProducer = client(bootstrap).create()?;
        anyhow::Ok(producer.send(FutureRecord::<(), _>::to(&topic).payload("v"), WITHIN).await)
    })?;
    let code = sent.err().and_then(|(error, _)| error.rdkafka_error_code());
    ensure!(code == Some(rdkafka::error::RDKafkaErrorCode::InvalidRecord), "{code:?}");
    Ok(())
}
