"""confluent-kafka (librdkafka): topics, groups and transactions."""

from confluent_kafka import Consumer, IsolationLevel, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec, ResourceType
from scene import BROKER, run, same, unique, wait_until

COMMON = {"bootstrap.servers": BROKER, "broker.address.family": "v4"}
ADMIN = AdminClient(COMMON)


def new_topic(partitions: int, **config) -> str:
    topic = unique("confluent")
    settings = {name.replace("_", "."): value for name, value in config.items()}
    ADMIN.create_topics([NewTopic(topic, partitions, 1, config=settings)])[topic].result()
    wait_until("the topic", lambda: topic in ADMIN.list_topics(timeout=10).topics)
    return topic


def produce(topic: str, values, **config):
    failed = []
    producer = Producer({**COMMON, **config})
    for i, value in enumerate(values):
        producer.produce(topic, value, key=str(i), on_delivery=lambda error, _: error and failed.append(error))
    same(producer.flush(60), 0, "records that were not delivered")
    same(failed, [], "failed deliveries")


def consumer(group: str, **config) -> Consumer:
    settings = {"group.id": group, "auto.offset.reset": "earliest", "enable.auto.commit": False,
                "session.timeout.ms": 6000, "heartbeat.interval.ms": 300, **COMMON}
    return Consumer({**settings, **{name.replace("_", "."): value for name, value in config.items()}})


def read(topic: str, partitions: int, isolation: str = "read_committed") -> list[str]:
    """All values from the beginning to the ends of all partitions."""
    reader = consumer(unique("reader"), enable_partition_eof=True, isolation_level=isolation)
    reader.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
    values, ended = [], set()

    def next_one():
        message = reader.poll(0.2)
        if message is None:
            return False
        if message.error():
            ended.add(message.partition())
        else:
            values.append(message.value().decode())
        return len(ended) == partitions

    wait_until("the end of the topic", next_one)
    reader.close()
    return sorted(values)


def records_come_back_in_every_compression():
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"]:
        topic = new_topic(2)
        values = [f"{codec} {i}" for i in range(500)]
        produce(topic, values, **{"compression.type": codec, "enable.idempotence": True})
        same(read(topic, 2), sorted(values), codec)


def two_members_share_a_topic_and_a_third_resumes_where_they_stood():
    topic, group = new_topic(4), unique("group")
    produce(topic, [f"a{i}" for i in range(200)])
    seen = []
    members = [consumer(group, partition_assignment_strategy="cooperative-sticky") for _ in range(2)]

    def poll():
        for member in members:
            message = member.poll(0.05)
            if message is not None and not message.error():
                seen.append(message.value().decode())

    members[0].subscribe([topic])
    wait_until("all partitions for one", lambda: poll() or len(members[0].assignment()) == 4)
    members[1].subscribe([topic])
    wait_until("two partitions each", lambda: poll() or [len(m.assignment()) for m in members] == [2, 2])
    produce(topic, [f"b{i}" for i in range(200)])
    wait_until("all records", lambda: poll() or len(set(seen)) == 400)
    for member in members:
        member.commit(asynchronous=False)
        member.close()
    produce(topic, ["late"])
    third = consumer(group)
    third.subscribe([topic])
    message = wait_until("the first record behind the committed offsets", lambda: third.poll(0.5))
    same(message.value(), b"late", "the first record of the resumed group")
    third.close()
    groups = {listed.group_id for listed in ADMIN.list_consumer_groups().result().valid}
    assert group in groups, groups
    wait_until("the group to be empty", lambda: ADMIN.describe_consumer_groups([group])[group].result().state.name == "EMPTY")
    ADMIN.delete_consumer_groups([group])[group].result()


def transactions_commit_abort_and_fence():
    topic, source, id, group = new_topic(2), new_topic(1), unique("tx"), unique("group")
    produce(source, ["in"])
    reader = consumer(group)
    reader.subscribe([source])
    wait_until("the input", lambda: reader.poll(0.5))
    first = Producer({**COMMON, "transactional.id": id, "transaction.timeout.ms": 30000})
    first.init_transactions(60)
    first.begin_transaction()
    first.produce(topic, "committed")
    first.send_offsets_to_transaction([TopicPartition(source, 0, 1)], reader.consumer_group_metadata(), 60)
    first.commit_transaction(60)
    same(reader.committed([TopicPartition(source, 0)], 60)[0].offset, 1, "the offset of the transaction")
    first.begin_transaction()
    first.produce(topic, "aborted")
    first.flush(60)
    same(read(topic, 2, "read_uncommitted"), ["aborted", "committed"], "uncommitted")
    same(read(topic, 2), ["committed"], "what is decided")
    first.abort_transaction(60)
    second = Producer({**COMMON, "transactional.id": id})
    second.init_transactions(60)
    second.begin_transaction()
    second.produce(topic, "second")
    second.commit_transaction(60)
    try:
        first.begin_transaction()
        first.produce(topic, "zombie")
        first.commit_transaction(60)
        raise AssertionError("a producer whose id has a new owner committed")
    except KafkaException as error:
        assert error.args[0].fatal(), error
    same(read(topic, 2), ["committed", "second"], "what was committed")
    reader.close()


def administration_says_what_is_there():
    topic = new_topic(3, retention_ms="7200000")
    produce(topic, ["one", "two", "three"])
    described = ADMIN.describe_topics(TopicCollection([topic]))[topic].result()
    same(len(described.partitions), 3, "partitions")
    resource = ConfigResource(ResourceType.TOPIC, topic)
    same(ADMIN.describe_configs([resource])[resource].result()["retention.ms"].value, "7200000", "retention")
    cluster = ADMIN.describe_cluster().result()
    assert cluster.cluster_id and len(cluster.nodes) == 1, cluster
    asked = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in range(3)}
    ends = ADMIN.list_offsets(asked, isolation_level=IsolationLevel.READ_COMMITTED)
    same(sum(future.result().offset for future in ends.values()), 3, "records by their offsets")
    deleted = ADMIN.delete_records([TopicPartition(topic, partition, -1) for partition in range(3)])
    same(sum(future.result().low_watermark for future in deleted.values()), 3, "deleted records")
    same(read(topic, 3), [], "what is left")
    ADMIN.delete_topics([topic])[topic].result()
    wait_until("the topic to be gone", lambda: topic not in ADMIN.list_topics(timeout=10).topics)


if __name__ == "__main__":
    run(records_come_back_in_every_compression, two_members_share_a_topic_and_a_third_resumes_where_they_stood,
        transactions_commit_abort_and_fence, administration_says_what_is_there)
