"""kafka-python: topics, groups and transactions."""

import threading

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata
from scene import BROKER, run, same, unique, wait_until

ADMIN = KafkaAdminClient(bootstrap_servers=BROKER)


def new_topic(partitions: int) -> str:
    topic = unique("kafka-python")
    ADMIN.create_topics([NewTopic(topic, partitions, 1)], timeout_ms=30000)
    wait_until("the topic", lambda: topic in ADMIN.list_topics())
    return topic


def produce(topic: str, values, **config):
    producer = KafkaProducer(bootstrap_servers=BROKER, **config)
    sent = [producer.send(topic, value.encode(), key=str(i).encode()) for i, value in enumerate(values)]
    producer.flush(60)
    for record in sent:
        record.get(timeout=60)
    producer.close()


def consumer(group=None, **config) -> KafkaConsumer:
    return KafkaConsumer(bootstrap_servers=BROKER, group_id=group, auto_offset_reset="earliest",
                         enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=300, **config)


def read(topic: str, partitions: int, isolation: str = "read_committed") -> list[str]:
    """All values from the beginning to the ends of all partitions, as this isolation level sees them."""
    reader = consumer(isolation_level=isolation)
    every = [TopicPartition(topic, partition) for partition in range(partitions)]
    reader.assign(every)
    reader.seek_to_beginning()
    ends = reader.end_offsets(every)
    values = []

    def next_ones():
        for records in reader.poll(200).values():
            values.extend(record.value.decode() for record in records)
        return all(reader.position(partition) >= ends[partition] for partition in every)

    wait_until("the end of the topic", next_ones)
    reader.close()
    return sorted(values)


def records_come_back_compressed_and_found_by_their_time():
    topic = new_topic(2)
    values = [f"v{i}" for i in range(500)]
    produce(topic, values, compression_type="gzip", acks="all", enable_idempotence=True)
    same(read(topic, 2), sorted(values), "what was produced")
    reader = consumer()
    found = reader.offsets_for_times({TopicPartition(topic, 0): 0})[TopicPartition(topic, 0)]
    same(found.offset, 0, "the first record since the epoch")
    reader.close()


class Member:
    """A member that polls in a thread of its own, for long at a time: this client (3.0.12) forgets a join that is answered
    between two polls."""

    def __init__(self, group: str, topic: str, seen: list[str]):
        self.consumer, self.seen, self.leaving = consumer(group), seen, False
        self.consumer.subscribe([topic])
        self.thread = threading.Thread(target=self.poll, daemon=True)
        self.thread.start()

    def poll(self):
        while not self.leaving:
            for records in self.consumer.poll(3000).values():
                self.seen.extend(record.value.decode() for record in records)

    def partitions(self) -> int:
        return len(self.consumer.assignment())

    def stop(self):
        self.leaving = True
        self.thread.join()


def two_members_share_a_topic_and_a_third_resumes_where_they_stood():
    topic, group = new_topic(4), unique("group")
    produce(topic, [f"a{i}" for i in range(100)])
    seen = []
    members = [Member(group, topic, seen)]
    wait_until("all partitions for one", lambda: members[0].partitions() == 4)
    members.append(Member(group, topic, seen))
    wait_until("two partitions each", lambda: [member.partitions() for member in members] == [2, 2])
    produce(topic, [f"b{i}" for i in range(100)])
    wait_until("all records", lambda: len(set(seen)) == 200)
    for member in members:
        member.stop()
        member.consumer.commit()
    same(ADMIN.describe_groups([group])[group]["group_state"], "Stable", "the state of the group")
    for member in members:
        member.consumer.close()
    produce(topic, ["late"])
    third = consumer(group)
    third.subscribe([topic])
    records = wait_until("the first record behind the committed offsets", lambda: third.poll(500))
    same([record.value for batch in records.values() for record in batch], [b"late"], "what the resumed group reads")
    third.close()


def transactions_commit_abort_and_fence():
    topic, source, id, group = new_topic(1), new_topic(1), unique("tx"), unique("group")
    produce(source, ["in"])
    reader = consumer(group)
    reader.subscribe([source])
    wait_until("the input", lambda: reader.poll(500))
    first = KafkaProducer(bootstrap_servers=BROKER, transactional_id=id)
    first.init_transactions()
    first.begin_transaction()
    first.send(topic, b"committed")
    first.send_offsets_to_transaction({TopicPartition(source, 0): OffsetAndMetadata(1, "", -1)}, reader.group_metadata())
    first.commit_transaction()
    same(reader.committed(TopicPartition(source, 0)), 1, "the offset of the transaction")
    first.begin_transaction()
    first.send(topic, b"aborted").get(timeout=60)
    first.abort_transaction()
    same(read(topic, 1, "read_uncommitted"), ["aborted", "committed"], "uncommitted")
    same(read(topic, 1), ["committed"], "what was committed")
    second = KafkaProducer(bootstrap_servers=BROKER, transactional_id=id)
    second.init_transactions()
    second.begin_transaction()
    second.send(topic, b"second")
    second.commit_transaction()
    try:
        first.begin_transaction()
        first.send(topic, b"zombie").get(timeout=60)
        first.commit_transaction()
        raise AssertionError("a producer whose id has a new owner committed")
    except KafkaError:
        pass
    same(read(topic, 1), ["committed", "second"], "what was committed")
    for client in [reader, second]:
        client.close()
    first.close(timeout=1)


if __name__ == "__main__":
    run(records_come_back_compressed_and_found_by_their_time,
        two_members_share_a_topic_and_a_third_resumes_where_they_stood, transactions_commit_abort_and_fence)
