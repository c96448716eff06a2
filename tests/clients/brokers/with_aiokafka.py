"""aiokafka: topics, groups and transactions."""

import asyncio
import logging

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from scene import BROKER, PATIENCE_S, run, same, unique


async def wait_until(what: str, so):
    """As `scene.wait_until`, for answers that are awaited."""
    async def asking():
        while not (answer := await so()):
            pass
        return answer
    try:
        return await asyncio.wait_for(asking(), PATIENCE_S)
    except TimeoutError:
        raise AssertionError(f"waited {PATIENCE_S} s for {what}") from None


async def new_topic(partitions: int) -> str:
    topic = unique("aiokafka")
    admin = AIOKafkaAdminClient(bootstrap_servers=BROKER)
    await admin.start()
    await admin.create_topics([NewTopic(topic, partitions, 1)], timeout_ms=30000)

    async def there():
        described = await admin.describe_topics([topic])
        return len(described[0]["partitions"]) == partitions

    await wait_until("the topic", there)
    await admin.close()
    return topic


async def produce(topic: str, values, **config):
    async with AIOKafkaProducer(bootstrap_servers=BROKER, **config) as producer:
        sent = [await producer.send(topic, value.encode(), key=str(i).encode()) for i, value in enumerate(values)]
        await asyncio.gather(*sent)


def consumer(*topics, group=None, **config) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(*topics, bootstrap_servers=BROKER, group_id=group, auto_offset_reset="earliest",
                            enable_auto_commit=False, session_timeout_ms=6000, heartbeat_interval_ms=300,
                            metadata_max_age_ms=2000, **config)


async def read(topic: str, partitions: int, isolation: str = "read_committed") -> list[str]:
    """All values from the beginning to the ends of all partitions, as this isolation level sees them."""
    every = [TopicPartition(topic, partition) for partition in range(partitions)]
    values = []
    async with consumer(isolation_level=isolation) as reader:
        reader.assign(every)
        await reader.seek_to_beginning()
        ends = await reader.end_offsets(every)

        async def next_ones():
            for records in (await reader.getmany(timeout_ms=200)).values():
                values.extend(record.value.decode() for record in records)
            return all([await reader.position(partition) >= ends[partition] for partition in every])

        await wait_until("the end of the topic", next_ones)
    return sorted(values)


async def records():
    topic = await new_topic(2)
    values = [f"v{i}" for i in range(500)]
    await produce(topic, values, compression_type="gzip", enable_idempotence=True)
    same(await read(topic, 2), sorted(values), "what was produced")


async def groups():
    topic, group = await new_topic(4), unique("group")
    await produce(topic, [f"a{i}" for i in range(100)])
    seen = []
    members = [consumer(topic, group=group)]
    await members[0].start()

    async def poll():
        for member in members:
            for batch in (await member.getmany(timeout_ms=50)).values():
                seen.extend(record.value.decode() for record in batch)

    async def shared(expected):
        await poll()
        return [len(member.assignment()) for member in members] == expected

    await wait_until("all partitions for one", lambda: shared([4]))
    members.append(consumer(topic, group=group))
    await members[1].start()
    await wait_until("two partitions each", lambda: shared([2, 2]))
    await produce(topic, [f"b{i}" for i in range(100)])

    async def all_seen():
        await poll()
        return len(set(seen)) == 200

    await wait_until("all records", all_seen)
    for member in members:
        await member.commit()
        await member.stop()
    await produce(topic, ["late"])
    async with consumer(topic, group=group) as third:
        message = await asyncio.wait_for(third.getone(), PATIENCE_S)
        same(message.value, b"late", "the first record behind the committed offsets")


async def transactions():
    topic, source, id, group = await new_topic(1), await new_topic(1), unique("tx"), unique("group")
    await produce(source, ["in"])
    reader = consumer(source, group=group)
    await reader.start()
    await asyncio.wait_for(reader.getone(), PATIENCE_S)
    first = AIOKafkaProducer(bootstrap_servers=BROKER, transactional_id=id)
    await first.start()
    async with first.transaction():
        await first.send_and_wait(topic, b"committed")
        await first.send_offsets_to_transaction({TopicPartition(source, 0): 1}, group)

    async def offset_is_there():
        return await reader.committed(TopicPartition(source, 0)) == 1

    # This client does not ask for stable offsets, and Apache Kafka answers the commit before it has marked the partitions.
    await wait_until("the offset of the transaction", offset_is_there)
    await first.begin_transaction()
    await first.send_and_wait(topic, b"aborted")
    await first.abort_transaction()
    same(await read(topic, 1, "read_uncommitted"), ["aborted", "committed"], "uncommitted")
    same(await read(topic, 1), ["committed"], "what was committed")
    second = AIOKafkaProducer(bootstrap_servers=BROKER, transactional_id=id)
    await second.start()
    async with second.transaction():
        await second.send_and_wait(topic, b"second")
    # It tells its log of what is expected here.
    logging.getLogger("aiokafka.producer.sender").setLevel(logging.CRITICAL)
    try:
        await first.begin_transaction()
        await asyncio.wait_for(first.send_and_wait(topic, b"zombie"), PATIENCE_S)
        await first.commit_transaction()
        raise AssertionError("a producer whose id has a new owner committed")
    except KafkaError:
        pass
    same(await read(topic, 1), ["committed", "second"], "what was committed")
    for client in [reader, second, first]:
        await client.stop()


def records_come_back_compressed():
    asyncio.run(records())


def two_members_share_a_topic_and_a_third_resumes_where_they_stood():
    asyncio.run(groups())


def transactions_commit_abort_and_fence():
    asyncio.run(transactions())


if __name__ == "__main__":
    run(records_come_back_compressed, two_members_share_a_topic_and_a_third_resumes_where_they_stood,
        transactions_commit_abort_and_fence)
