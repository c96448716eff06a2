//! What it costs to append to the embedded broker: 10,000 records of 300 bytes through one rdkafka producer on loopback
//! until all are acknowledged, and one record at a time.
//!
//! Shows records a second with the default durability; the client has its part, and half of a lone record's time is the
//! way through the loopback. Runs differ by 10 % on a quiet machine.

use std::time::Duration;

use broker::{Broker, Config};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{FutureProducer, FutureRecord};

const RECORDS: usize = 10_000;
const TOPIC: &str = "bench";
/// Longest wait for room in the producer's queue.
const QUEUE_WAIT: Duration = Duration::from_secs(10);

async fn append(producer: &FutureProducer, records: usize) {
    let payload = [7u8; 300];
    let sent =
        (0..records).map(|_| producer.send(FutureRecord::<(), [u8; 300]>::to(TOPIC).payload(&payload), QUEUE_WAIT));
    for result in join_all(sent).await {
        result.expect("the broker acknowledges");
    }
}

fn bench(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let dir = tempfile::tempdir().expect("there is a temporary folder");
    let broker = runtime.block_on(Broker::start(Config::new(dir.path()))).expect("the broker starts");
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", broker.bootstrap()).set("acks", "all").set("linger.ms", "0");
    let admin: AdminClient<DefaultClientContext> = client.create().expect("the client starts");
    let topic = [NewTopic::new(TOPIC, 1, TopicReplication::Fixed(1))];
    runtime.block_on(admin.create_topics(&topic, &AdminOptions::new())).expect("the topic is made");
    let producer: FutureProducer = client.create().expect("the client starts");
    runtime.block_on(append(&producer, 1));

    let mut group = criterion.benchmark_group("broker append");
    group.sample_size(20);
    for records in [1, RECORDS] {
        group.throughput(Throughput::Elements(records as u64));
        group.bench_function(format!("{records} records"), |b| b.iter(|| runtime.block_on(append(&producer, records))));
    }
    group.finish();
    drop((producer, admin));
    runtime.block_on(broker.shutdown()).expect("the broker stops");
}

criterion_group!(benches, bench);
criterion_main!(benches);
