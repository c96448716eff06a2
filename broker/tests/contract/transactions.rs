//! The broker's contract: transactions, as the unmodified client sees them.

use crate::support::{
    COMMITTED, PATIENCE, Server, UNCOMMITTED, at, committed, consumer, create_topic, keys, produce, read_all, send,
    transactional, unique, wait_for,
};
use anyhow::{Result, ensure};
use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::Producer as _;

#[test]
fn committed_records_are_seen_and_aborted_ones_are_not() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("commit"));
    create_topic(bootstrap, &topic, 2, &[])?;
    let producer = transactional(bootstrap, &unique("tx"), 30_000)?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    for i in 0..10 {
        send(&producer, &topic, i % 2, &format!("first{i}"))?;
    }
    producer.commit_transaction(PATIENCE)?;
    ensure!(read_all(bootstrap, &topic, 2, COMMITTED)?.len() == 10);

    producer.begin_transaction()?;
    for i in 0..10 {
        send(&producer, &topic, i % 2, &format!("aborted{i}"))?;
    }
    producer.flush(PATIENCE)?;
    ensure!(read_all(bootstrap, &topic, 2, COMMITTED)?.len() == 10, "an open transaction is not seen");
    ensure!(read_all(bootstrap, &topic, 2, UNCOMMITTED)?.len() == 20);
    produce(bootstrap, &topic, Some(0), 900..902, &[])?;
    let held_back = read_all(bootstrap, &topic, 2, COMMITTED)?;
    ensure!(held_back.len() == 10, "what stands behind an open transaction waits for it");
    producer.abort_transaction(PATIENCE)?;

    producer.begin_transaction()?;
    for i in 0..10 {
        send(&producer, &topic, i % 2, &format!("second{i}"))?;
    }
    producer.commit_transaction(PATIENCE)?;
    let seen = read_all(bootstrap, &topic, 2, COMMITTED)?;
    ensure!(seen.len() == 22 && !keys(&seen).iter().any(|key| key.starts_with("aborted")), "{:?}", keys(&seen));
    ensure!(read_all(bootstrap, &topic, 2, UNCOMMITTED)?.len() == 32);
    Ok(())
}

#[test]
fn offsets_move_with_the_transaction_and_stay_with_an_abort() -> Result<()> {
    let server = Server::start();
    let bootstrap = server.bootstrap();
    let (input, output, group) = (unique("in"), unique("out"), unique("g"));
    create_topic(bootstrap, &input, 1, &[])?;
    create_topic(bootstrap, &output, 1, &[])?;
    produce(bootstrap, &input, None, 0..20, &[])?;
    let reader: BaseConsumer = consumer(bootstrap, &group).set("isolation.level", "read_committed").create()?;
    reader.subscribe(&[&input])?;
    let producer = transactional(bootstrap, &unique("tx"), 30_000)?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    let mut read = 0;
    wait_for("ten records", || {
        if let Some(Ok(message)) = reader.poll(std::time::Duration::from_millis(100)) {
            send(&producer, &output, 0, std::str::from_utf8(message.key().unwrap_or_default())?)?;
            read += 1;
        }
        Ok(read == 10)
    })?;
    let member = reader.group_metadata().expect("a subscribed consumer has group metadata");
    producer.send_offsets_to_transaction(&at(&input, 0, 10), &member, PATIENCE)?;
    producer.commit_transaction(PATIENCE)?;
    ensure!(committed(&reader, &input, 0)? == Offset::Offset(10));

    producer.begin_transaction()?;
    send(&producer, &output, 0, "aborted")?;
    producer.send_offsets_to_transaction(&at(&input, 0, 17), &member, PATIENCE)?;
    producer.abort_transaction(PATIENCE)?;
    ensure!(committed(&reader, &input, 0)? == Offset::Offset(10), "an abort moves no offset");
    ensure!(read_all(bootstrap, &output, 1, COMMITTED)?.len() == 10);
    Ok(())
}

#[test]
fn a_successor_fences_its_predecessor_and_aborts_its_transaction() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic, id) = (server.bootstrap(), unique("fence"), unique("tx"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let zombie = transactional(bootstrap, &id, 60_000)?;
    zombie.init_transactions(PATIENCE)?;
    zombie.begin_transaction()?;
    send(&zombie, &topic, 0, "zombie")?;
    zombie.flush(PATIENCE)?;

    let successor = transactional(bootstrap, &id, 60_000)?;
    successor.init_transactions(PATIENCE)?;
    successor.begin_transaction()?;
    send(&successor, &topic, 0, "successor")?;
    successor.commit_transaction(PATIENCE)?;

    let _ = send(&zombie, &topic, 0, "zombie again");
    ensure!(zombie.commit_transaction(PATIENCE).is_err(), "the predecessor cannot commit");
    ensure!(keys(&read_all(bootstrap, &topic, 1, COMMITTED)?) == ["successor"]);
    Ok(())
}

#[test]
fn a_transaction_without_its_producer_is_aborted_after_its_timeout() -> Result<()> {
    let server = Server::start();
    let (bootstrap, topic) = (server.bootstrap(), unique("timeout"));
    create_topic(bootstrap, &topic, 1, &[])?;
    let silent = transactional(bootstrap, &unique("tx"), 1_000)?;
    silent.init_transactions(PATIENCE)?;
    silent.begin_transaction()?;
    send(&silent, &topic, 0, "silent")?;
    silent.flush(PATIENCE)?;
    produce(bootstrap, &topic, Some(0), 0..1, &[])?;
    wait_for("the record behind the transaction", || {
        let seen = read_all(bootstrap, &topic, 1, COMMITTED)?;
        ensure!(!keys(&seen).contains(&"silent"));
        Ok(keys(&seen) == ["k0"])
    })
}

#[test]
fn a_timeout_above_the_maximum_is_refused() -> Result<()> {
    let server = Server::start();
    let producer = transactional(server.bootstrap(), &unique("tx"), 3_600_000)?;
    let error = producer.init_transactions(PATIENCE).expect_err("an hour is above the maximum");
    let code = rdkafka::error::RDKafkaErrorCode::InvalidTransactionTimeout;
    ensure!(error.rdkafka_error_code() == Some(code), "{error:?}");
    Ok(())
}
