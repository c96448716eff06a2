//! Measures a running broker with rdkafka: `measure BOOTSTRAP`. Prints latency to the consumer and to the
//! acknowledgement at 100 records a second, then throughput of 300-byte records. The figures depend on what else the machine does: run it on an idle one.

use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Message as _, Offset, TopicPartitionList};

const PARTITIONS: i32 = 4;
const LATENCY_RECORDS: usize = 1000;
const THROUGHPUT_RECORDS: usize = 500_000;

fn main() -> Result<()> {
    let bootstrap = std::env::args().nth(1).context("usage: measure BOOTSTRAP")?;
    let mut out = std::io::stdout();
    let topic = format!("measure-{}", now_us()?);
    let admin: AdminClient<DefaultClientContext> = client(&bootstrap).create()?;
    let new = [NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1))];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(admin.create_topics(&new, &AdminOptions::new()))?;
    let reader: BaseConsumer = client(&bootstrap)
        .set("group.id", "measure")
        .set("enable.auto.commit", "false")
        .set("fetch.wait.max.ms", "500")
        .create()?;
    let mut assignment = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        assignment.add_partition_offset(&topic, partition, Offset::Beginning)?;
    }
    reader.assign(&assignment)?;
    let (consumed_us, acknowledged_us) = latency(&bootstrap, &topic, &reader)?;
    for (what, mut latencies_us) in [("consume", consumed_us), ("acknowledgement", acknowledged_us)] {
        latencies_us.sort_unstable();
        let at = |share: f64| latencies_us[((latencies_us.len() - 1) as f64 * share) as usize];
        writeln!(out, "produce to {what}, 100/s: p50 {} us, p99 {} us, max {} us", at(0.5), at(0.99), at(1.0))?;
    }

    let begun = Instant::now();
    produce(&bootstrap, &topic)?;
    let produced = THROUGHPUT_RECORDS as f64 / begun.elapsed().as_secs_f64();
    let mut consumed = 0;
    let begun = Instant::now();
    while consumed < THROUGHPUT_RECORDS {
        match reader.poll(Duration::from_secs(30)).context("a record in time")? {
            Ok(_) => consumed += 1,
            Err(error) => return Err(error.into()),
        }
    }
    let consumed = THROUGHPUT_RECORDS as f64 / begun.elapsed().as_secs_f64();
    writeln!(out, "300-byte records: {produced:.0} produced a second, then {consumed:.0} consumed a second")?;
    Ok(())
}

fn client(bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap).set("broker.address.family", "v4");
    config
}

fn now_us() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros() as u64)
}

fn latency(bootstrap: &str, topic: &str, reader: &BaseConsumer) -> Result<(Vec<u64>, Vec<u64>)> {
    let producer: BaseProducer = client(bootstrap).set("acks", "all").set("linger.ms", "0").create()?;
    let (mut consumed, mut acknowledged) = (Vec::new(), Vec::new());
    let begun = Instant::now();
    for i in 0..LATENCY_RECORDS {
        let due = begun + Duration::from_millis(10) * i as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let mut value = vec![b'x'; 300];
        value[..8].copy_from_slice(&now_us()?.to_le_bytes());
        let key = i.to_string();
        producer.send(BaseRecord::to(topic).key(&key).payload(&value)).map_err(|(error, _)| error)?;
        let message = reader.poll(Duration::from_secs(10)).context("a record in time")??;
        let sent = message.payload().and_then(|value| value.first_chunk()).context("a time in the record")?;
        consumed.push(now_us()? - u64::from_le_bytes(*sent));
        // Another record, alone, until its acknowledgement.
        let alone = Instant::now();
        producer.send(BaseRecord::to(topic).key(&key).payload(&value)).map_err(|(error, _)| error)?;
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        acknowledged.push(alone.elapsed().as_micros() as u64);
        reader.poll(Duration::from_secs(10)).context("a record in time")??;
    }
    // The first ones open connections.
    Ok((consumed.split_off(50), acknowledged.split_off(50)))
}

fn produce(bootstrap: &str, topic: &str) -> Result<()> {
    let mut config = client(bootstrap);
    config.set("acks", "all").set("linger.ms", "10").set("batch.size", "500000");
    let producer: BaseProducer = config.set("queue.buffering.max.messages", "200000").create()?;
    let value = vec![b'x'; 300];
    for i in 0..THROUGHPUT_RECORDS {
        let key = i.to_string();
        while let Err((error, _)) = producer.send(BaseRecord::to(topic).key(&key).payload(&value)) {
            match error {
                KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => producer.poll(Duration::from_millis(5)),
                error => return Err(error.into()),
            };
        }
        if i % 64 == 0 {
            producer.poll(Duration::ZERO);
        }
    }
    producer.flush(Duration::from_secs(120))?;
    Ok(())
}
