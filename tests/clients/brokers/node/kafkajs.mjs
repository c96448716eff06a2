// KafkaJS: `node kafkajs.mjs BROKER`. Each line that it prints is a thing that held; it ends with 1 at the first that does
// not. Its pure codecs are gzip and snappy.
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import kafkajs from "kafkajs";
import snappy from "kafkajs-snappy";

const { CompressionTypes, CompressionCodecs, Kafka, logLevel, ConfigResourceTypes } = kafkajs;
CompressionCodecs[CompressionTypes.Snappy] = snappy;

// Longest wait for anything that must happen.
const PATIENCE_MS = 60_000;
const ASK_AGAIN_MS = 20;
const kafka = new Kafka({ brokers: [process.argv[2]], logLevel: logLevel.NOTHING });
const admin = kafka.admin();
const group = { sessionTimeout: 6000, heartbeatInterval: 300, rebalanceTimeout: 6000, maxWaitTimeInMs: 100 };

const unique = (prefix) => `${prefix}-${randomUUID().slice(0, 13)}`;
const values = (from, to) => Array.from({ length: to - from }, (_, i) => `v${from + i}`);
const messages = (values) => values.map((value) => ({ key: value, value }));
const sorted = (values) => [...values].sort();
const held = (what) => console.log(what);

async function until(what, so) {
  for (const end = Date.now() + PATIENCE_MS; !(await so()); await new Promise((resolve) => setTimeout(resolve, ASK_AGAIN_MS))) {
    if (Date.now() > end) throw new Error(`waited ${PATIENCE_MS} ms for ${what}`);
  }
}

async function newTopic(partitions) {
  const topic = unique("kafkajs");
  await admin.createTopics({ topics: [{ topic, numPartitions: partitions }] });
  return topic;
}

async function withProducer(settings, work) {
  const producer = kafka.producer(settings);
  await producer.connect();
  try {
    return await work(producer);
  } finally {
    await producer.disconnect();
  }
}

const produce = (topic, values, settings = {}) =>
  withProducer({}, (producer) => producer.send({ topic, messages: messages(values), ...settings }));

/** Starts a member of the group, which puts what it reads into `seen`. */
async function join(groupId, topic, seen, settings = {}) {
  const member = kafka.consumer({ groupId, ...group, ...settings });
  member.share = 0;
  member.on(member.events.GROUP_JOIN, ({ payload }) => (member.share = payload.memberAssignment[topic]?.length ?? 0));
  await member.connect();
  await member.subscribe({ topic, fromBeginning: true });
  await member.run({ eachMessage: async ({ message }) => void seen.push(message.value.toString()) });
  return member;
}

/** What a reader of this isolation level sees before it sees the last value. */
async function read(topic, last, readUncommitted) {
  const seen = [];
  const reader = await join(unique("reader"), topic, seen, { readUncommitted });
  await until("the last value", () => seen.includes(last));
  await reader.disconnect();
  return sorted(seen);
}

async function records() {
  const topic = await newTopic(1);
  const codecs = [CompressionTypes.None, CompressionTypes.GZIP, CompressionTypes.Snappy];
  for (const [i, compression] of codecs.entries()) await produce(topic, values(100 * i, 100 * (i + 1)), { compression });
  await withProducer({ idempotent: true }, (producer) => producer.send({ topic, messages: messages(values(300, 400)) }));
  assert.deepEqual(await read(topic, "v399", false), sorted(values(0, 400)));
  const [{ offset }] = await admin.fetchTopicOffsetsByTimestamp(topic, 1);
  assert.equal(offset, "0");
  held("records come back in its compressions");
}

async function groups() {
  const [topic, groupId, seen] = [await newTopic(4), unique("group"), []];
  const first = await join(groupId, topic, seen);
  await produce(topic, values(0, 100));
  await until("all partitions and records", () => first.share === 4 && seen.length === 100);
  const second = await join(groupId, topic, seen);
  await until("two partitions each", () => first.share === 2 && second.share === 2);
  await produce(topic, values(100, 200));
  await until("all records", () => new Set(seen).size === 200);
  const [described] = (await admin.describeGroups([groupId])).groups;
  assert.deepEqual([described.state, described.members.length], ["Stable", 2]);
  await first.disconnect();
  await until("all partitions for the one that is left", () => second.share === 4);
  await second.disconnect();
  await produce(topic, ["late"]);
  const late = [];
  const third = await join(groupId, topic, late);
  await until("the late record", () => late.length > 0);
  assert.deepEqual(late, ["late"]);
  await third.disconnect();
  const [{ partitions }] = await admin.fetchOffsets({ groupId, topics: [topic] });
  assert.equal(partitions.reduce((sum, { offset }) => sum + Math.max(0, Number(offset)), 0), 201);
  await admin.resetOffsets({ groupId, topic, earliest: true });
  await admin.deleteGroups([groupId]);
  held("two members share a topic and a third resumes");
}

async function transactions() {
  const [from, to, groupId, transactionalId] = [await newTopic(1), await newTopic(1), unique("group"), unique("tx")];
  const settings = { transactionalId, maxInFlightRequests: 1, idempotent: true };
  await withProducer(settings, async (first) => {
    const committed = await first.transaction();
    await committed.send({ topic: to, messages: messages(["committed"]) });
    await committed.sendOffsets({ consumerGroupId: groupId, topics: [{ topic: from, partitions: [{ partition: 0, offset: "7" }] }] });
    await committed.commit();
    const aborted = await first.transaction();
    await aborted.send({ topic: to, messages: messages(["aborted"]) });
    await aborted.abort();
    await until("the offset of the transaction", async () =>
      (await admin.fetchOffsets({ groupId, topics: [from] }))[0].partitions[0].offset === "7");
    const zombie = await first.transaction();
    await withProducer(settings, async (second) => {
      const last = await second.transaction();
      await assert.rejects(zombie.send({ topic: to, messages: messages(["zombie"]) }));
      await last.send({ topic: to, messages: messages(["last"]) });
      await last.commit();
    });
  });
  assert.deepEqual(await read(to, "last", false), ["committed", "last"]);
  assert.deepEqual(await read(to, "last", true), ["aborted", "committed", "last"]);
  held("transactions commit, abort and fence");
}

async function administration() {
  const topic = await newTopic(2);
  assert.equal(await admin.createTopics({ topics: [{ topic }] }), false);
  await produce(topic, values(0, 20));
  await admin.createPartitions({ topicPartitions: [{ topic, count: 3 }] });
  const described = await admin.fetchTopicMetadata({ topics: [topic] });
  assert.equal(described.topics[0].partitions.length, 3);
  const resource = { type: ConfigResourceTypes.TOPIC, name: topic };
  const configEntries = [{ name: "retention.ms", value: "7200000" }];
  await admin.alterConfigs({ resources: [{ ...resource, configEntries }] });
  const configs = await admin.describeConfigs({ resources: [{ ...resource, configNames: ["retention.ms"] }] });
  assert.equal(configs.resources[0].configEntries[0].configValue, "7200000");
  // The client knows where the partitions are once it has asked for offsets.
  await admin.fetchTopicOffsets(topic);
  await admin.deleteTopicRecords({ topic, partitions: [{ partition: 0, offset: "-1" }] });
  const [zero] = (await admin.fetchTopicOffsets(topic)).filter(({ partition }) => partition === 0);
  assert.equal(zero.low, zero.high);
  assert.equal((await admin.describeCluster()).brokers.length, 1);
  assert.ok(Array.isArray((await admin.listGroups()).groups));
  await admin.deleteTopics({ topics: [topic] });
  await until("the topic to be gone", async () => !(await admin.listTopics()).includes(topic));
  held("administration says what is there and changes it");
}

await admin.connect();
await records();
await groups();
await transactions();
await administration();
await admin.disconnect();
