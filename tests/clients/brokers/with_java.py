"""Apache Kafka's Java clients: a program on them (Clients.java), the console tools, the verifiable producer and consumer.

The jars are those of deploy/servers/kafka, which installs them where they are missing.
"""

import json
import pathlib
import re
import subprocess

from scene import BROKER, PATIENCE_S, run, same, unique, wait_until

HERE = pathlib.Path(__file__).parent
KAFKA = HERE.parents[2] / "deploy/servers/kafka"
TOOLS = "org.apache.kafka.tools."
CLASSPATH = subprocess.run([KAFKA, "classpath"], check=True, capture_output=True, text=True).stdout.strip()
# A tool lives for a second: quick to start, and no word of its log but errors.
JAVA = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m",
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=error", "-cp", CLASSPATH]


def tool(name: str, *arguments: str, given: str = "", fails: bool = False) -> str:
    """What a tool prints; it must succeed, or fail where that is expected."""
    command = [*JAVA, name, "--bootstrap-server", BROKER, *arguments]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=4 * PATIENCE_S)
    assert (done.returncode != 0) == fails, f"{name} {arguments} ended with {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout + (done.stderr if fails else "")


def topics(*arguments: str, **more) -> str:
    return tool(TOOLS + "TopicCommand", *arguments, **more)


def new_topic(partitions: int) -> str:
    topic = unique("tools")
    topics("--create", "--topic", topic, "--partitions", str(partitions), "--replication-factor", "1")
    return topic


def produce(topic: str, *lines: str, **more):
    tool(TOOLS + "ConsoleProducer", "--topic", topic, given="".join(line + "\n" for line in lines), **more)


def consume(topic: str, count: int, *arguments: str) -> list[str]:
    out = tool(TOOLS + "consumer.ConsoleConsumer", "--topic", topic, "--max-messages", str(count),
               "--timeout-ms", str(PATIENCE_S * 1000), *arguments)
    return sorted(out.splitlines())


def ends(topic: str, time: str = "latest") -> list[str]:
    return sorted(tool(TOOLS + "GetOffsetShell", "--topic", topic, "--time", time).split())


def a_program_on_the_java_clients_holds():
    done = subprocess.run([*JAVA, str(HERE / "Clients.java"), BROKER], capture_output=True, text=True,
                          timeout=6 * PATIENCE_S)
    print("".join(f"    {line}\n" for line in done.stdout.splitlines()), end="")
    same((done.returncode, len(done.stdout.splitlines())), (0, 7), f"the end, and what held; {done.stderr}")


def console_tools_make_fill_read_and_empty_topics():
    topic = new_topic(2)
    assert topic in topics("--list").split()
    described = topics("--describe", "--topic", topic)
    assert "PartitionCount: 2" in described and "TopicId: " in described, described
    topics("--alter", "--topic", topic, "--partitions", "3")
    assert "PartitionCount: 3" in topics("--describe", "--topic", topic)
    assert "exists" in topics("--create", "--topic", topic, fails=True)
    produce(topic, "one", "two", "three")
    same(consume(topic, 3, "--from-beginning"), ["one", "three", "two"], "what was produced")
    same(sum(int(line.split(":")[2]) for line in ends(topic)), 3, "records by their offsets")
    offsets = [line.split(":") for line in ends(topic)]
    request = {"version": 1, "partitions": [{"topic": topic, "partition": int(p), "offset": int(o)} for _, p, o in offsets]}
    path = pathlib.Path(HERE.parents[2] / ".cache" / f"{topic}.json")
    path.write_text(json.dumps(request))
    try:
        tool(TOOLS + "DeleteRecordsCommand", "--offset-json-file", str(path))
    finally:
        path.unlink()
    same(ends(topic, "earliest"), ends(topic), "starts and ends of an emptied topic")
    topics("--delete", "--topic", topic)
    wait_until("the topic to be gone", lambda: topic not in topics("--list").split())


def console_tools_change_settings():
    topic = new_topic(1)
    configs = lambda *arguments, **more: tool("kafka.admin.ConfigCommand", *arguments, **more)  # noqa: E731
    entity = ["--entity-type", "topics", "--entity-name", topic]
    configs("--alter", *entity, "--add-config", "retention.ms=7200000,cleanup.policy=[compact,delete]")
    described = configs("--describe", *entity)
    assert "retention.ms=7200000" in described and "compact,delete" in described, described
    configs("--alter", *entity, "--delete-config", "retention.ms")
    assert "retention.ms=7200000" not in configs("--describe", *entity)
    refused = configs("--alter", *entity, "--add-config", "retention.hours=1", fails=True)
    assert "retention.hours" in refused, refused
    assert "log.dirs" in configs("--describe", "--all", "--entity-type", "brokers", "--entity-name", "1")


def console_tools_look_after_groups():
    topic, group = new_topic(2), unique("group")
    produce(topic, "one", "two", "three")
    consume(topic, 3, "--group", group, "--from-beginning")
    groups = lambda *arguments, **more: tool(TOOLS + "consumer.group.ConsumerGroupCommand", *arguments, **more)  # noqa: E731
    assert group in groups("--list").split()
    assert "Empty" in groups("--describe", "--group", group, "--state")

    def lags() -> list[str]:
        lines = groups("--describe", "--group", group).splitlines()
        return [line.split()[5] for line in lines if line.startswith(group)]

    same(set(lags()), {"0"}, "lags of a group that has read all")
    groups("--group", group, "--topic", topic, "--reset-offsets", "--to-earliest", "--execute")
    same(sum(map(int, lags())), 3, "lags of a group that was set back")
    same(consume(topic, 3, "--group", group), ["one", "three", "two"], "what it reads again")
    groups("--delete-offsets", "--group", group, "--topic", topic)
    groups("--delete", "--group", group, fails=False)
    assert group not in groups("--list").split()


def transactional_tools_are_seen_as_a_whole():
    topic, id = new_topic(1), unique("tx")
    tool(TOOLS + "ProducerPerformance", "--topic", topic, "--num-records", "500", "--record-size", "100", "--throughput",
         "-1", "--transactional-id", id, "--transaction-duration-ms", "100")
    values = consume(topic, 500, "--from-beginning", "--isolation-level", "read_committed")
    same(len(values), 500, "committed records")
    transactions = lambda *arguments: tool(TOOLS + "TransactionsCommand", *arguments)  # noqa: E731
    assert re.search(rf"{id}\s+\d+\s+\d+\s+CompleteCommit", transactions("list")), transactions("list")
    assert "CompleteCommit" in transactions("describe", "--transactional-id", id)
    assert "LastSequence" in transactions("describe-producers", "--topic", topic, "--partition", "0")


def the_cluster_is_described():
    assert "Cluster ID: " in subprocess.run([*JAVA, TOOLS + "ClusterTool", "cluster-id", "--bootstrap-server", BROKER],
                                            capture_output=True, text=True, timeout=PATIENCE_S).stdout
    versions = tool(TOOLS + "BrokerApiVersionsCommand")
    assert "Produce(0): " in versions and "(id: 1 " in versions, versions
    assert '"logDirs"' in tool(TOOLS + "LogDirsCommand", "--describe")


def the_verifiable_producer_and_consumer_agree():
    topic, group = new_topic(2), unique("verifiable")
    members = [subprocess.Popen([*JAVA, TOOLS + "VerifiableConsumer", "--bootstrap-server", BROKER, "--topic", topic,
                                 "--group-id", group, "--session-timeout", "6000", "--reset-policy", "earliest"],
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    try:
        out = tool(TOOLS + "VerifiableProducer", "--topic", topic, "--max-messages", "1000", "--throughput", "-1")
        told = [json.loads(line) for line in out.splitlines()]
        sent = [event for event in told if event["name"] == "producer_send_success"]
        same(len(sent), 1000, "acknowledged records")
        assert any(event["name"] == "tool_data" and event["acked"] == 1000 for event in told), told[-3:]
        # Both have the group's partitions between them, so each may see any part of the records.
        tool_committed = lambda: committed(group)  # noqa: E731
        wait_until("all records to be read and committed", lambda: tool_committed() == 1000)
    finally:
        for member in members:
            member.terminate()
    events = [json.loads(line) for member in members for line in member.communicate(timeout=PATIENCE_S)[0].splitlines()]
    read = sum(event["count"] for event in events if event["name"] == "records_consumed")
    assert read >= 1000, f"{read} records were read"
    assert all(event["success"] for event in events if event["name"] == "offsets_committed")


def committed(group: str) -> int:
    out = tool(TOOLS + "consumer.group.ConsumerGroupCommand", "--describe", "--group", group)
    offsets = [line.split()[3] for line in out.splitlines() if line.startswith(group)]
    return sum(int(offset) for offset in offsets if offset.isdigit())


if __name__ == "__main__":
    run(a_program_on_the_java_clients_holds, console_tools_make_fill_read_and_empty_topics, console_tools_change_settings,
        console_tools_look_after_groups, transactional_tools_are_seen_as_a_whole, the_cluster_is_described,
        the_verifiable_producer_and_consumer_agree)
