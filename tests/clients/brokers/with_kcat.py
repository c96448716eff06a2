"""kcat: producing and consuming from a shell, also as a member of a group and as a producer in a transaction."""

import json
import subprocess

from confluent_kafka.admin import AdminClient, NewTopic
from scene import BROKER, PATIENCE_S, run, same, unique, wait_until


def kcat(*arguments: str, given: str = "") -> str:
    command = ["kcat", "-b", BROKER, "-X", "broker.address.family=v4", *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, f"{command} ended with {done.returncode}: {done.stderr}"
    return done.stdout


def new_topic(partitions: int) -> str:
    topic = unique("kcat")
    admin = AdminClient({"bootstrap.servers": BROKER, "broker.address.family": "v4"})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()
    wait_until("the topic", lambda: len(listed(topic)) == partitions)
    return topic


def listed(topic: str) -> list:
    found = [known for known in json.loads(kcat("-L", "-J", "-t", topic))["topics"] if known["topic"] == topic]
    return found[0]["partitions"] if found else []


def keys_values_and_headers_come_back():
    topic = new_topic(2)
    kcat("-P", "-t", topic, "-K", ":", "-H", "colour=green", "-z", "lz4", given="a:one\nb:two\nc:three\n")
    out = kcat("-C", "-t", topic, "-e", "-q", "-f", "%k=%s %h\n")
    same(sorted(out.split("\n")[:-1]), ["a=one colour=green", "b=two colour=green", "c=three colour=green"], "records")
    one = new_topic(1)
    kcat("-P", "-t", one, given="first\nlast\n")
    same(kcat("-C", "-t", one, "-o", "-1", "-e", "-q"), "last\n", "the last record")
    same(kcat("-C", "-t", one, "-o", "s@0", "-o", "e@1000", "-e", "-q"), "", "records of 1970")


def a_group_goes_on_where_it_stood():
    topic, group = new_topic(2), unique("group")
    settings = ["-X", "auto.offset.reset=earliest", "-X", "session.timeout.ms=6000"]
    kcat("-P", "-t", topic, given="one\ntwo\n")
    same(sorted(kcat("-G", group, *settings, "-e", "-q", topic).split()), ["one", "two"], "the first reading")
    kcat("-P", "-t", topic, given="three\n")
    same(kcat("-G", group, *settings, "-e", "-q", topic).split(), ["three"], "the second reading")


def two_members_share_a_topic():
    topic, group = new_topic(2), unique("group")
    command = ["kcat", "-b", BROKER, "-X", "broker.address.family=v4", "-X", "session.timeout.ms=6000", "-G", group, topic]
    members = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for member in members:
            # Each tells of every rebalance; with two members each is left with one partition.
            wait_until("one partition each", lambda: f"assigned: {topic} [" in (line := member.stderr.readline())
                       and line.count(topic) == 1)
    finally:
        for member in members:
            member.terminate()
            member.wait(PATIENCE_S)


def a_transaction_is_seen_as_a_whole():
    topic = new_topic(1)
    kcat("-P", "-t", topic, "-X", f"transactional.id={unique('tx')}", given="one\ntwo\n")
    committed = kcat("-C", "-t", topic, "-e", "-q", "-X", "isolation.level=read_committed")
    same(committed.split(), ["one", "two"], "what was committed")


if __name__ == "__main__":
    run(keys_values_and_headers_come_back, a_group_goes_on_where_it_stood, two_members_share_a_topic,
        a_transaction_is_seen_as_a_whole)
