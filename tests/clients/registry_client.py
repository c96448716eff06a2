"""Decodes the topics with Confluent's own Avro deserialiser, unmodified, through the registry's read API.

    python registry_client.py REGISTRY_URL BOOTSTRAP [TOPIC]

REGISTRY_URL is http://HOST:PORT/registry, BOOTSTRAP the Kafka address, TOPIC the enriched turns by default; at least
one turn must be in it. Needs confluent-kafka[avro,schemaregistry]. Prints what it decoded; ends with 1 if it could not.
"""

import sys
import time
import uuid

from confluent_kafka import Consumer
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

WAIT_S = 30


def main(registry_url: str, bootstrap: str, topic: str = "undertone.turns.enriched.v1") -> int:
    registry = SchemaRegistryClient({"url": registry_url})
    subjects = registry.get_subjects()
    assert f"{topic}-value" in subjects, subjects
    newest = registry.get_latest_version(f"{topic}-value")
    assert registry.lookup_schema(f"{topic}-value", newest.schema).schema_id == newest.schema_id
    # By topic name, as Undertone's subjects are. Left to its default, the client first asks for associations, which are
    # Confluent's own, and Apicurio may leave that question without an answer.
    by_topic = {"subject.name.strategy": topic_subject_name_strategy}
    decode = AvroDeserializer(registry, conf=by_topic)
    settings = {"auto.register.schemas": False, "use.latest.version": True, **by_topic}
    encode = AvroSerializer(registry, newest.schema, conf=settings)
    place = SerializationContext(topic, MessageField.VALUE)

    consumer = Consumer({
        "bootstrap.servers": bootstrap,
        "group.id": f"registry-client-{uuid.uuid4()}",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
    })
    consumer.subscribe([topic])
    until = time.monotonic() + WAIT_S
    try:
        while time.monotonic() < until:
            message = consumer.poll(1.0)
            if message is None or message.error():
                continue
            turn = decode(message.value(), place)
            assert turn["conversation"].encode() == message.key(), turn
            # Written again by the unmodified serialiser, it is a value that Undertone reads.
            assert decode(encode(turn, place), place) == turn
            print(f"{turn['conversation']} {turn['position']}: {turn['text']!r}, schema id {newest.schema_id}")
            return 0
    finally:
        consumer.close()
    print(f"no turn came from {topic} within {WAIT_S} s: send one first", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
