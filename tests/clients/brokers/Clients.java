// Apache Kafka's Java clients, as a program of theirs: `java -cp JARS Clients.java BROKER`. Records, groups, transactions
// and administration; each line that it prints is a thing that held, and it ends with 1 at the first that does not.

import java.time.Duration;
import java.util.ArrayList;
import java.util.Collection;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.UUID;
import java.util.concurrent.ExecutionException;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.DescribeClusterOptions;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.ElectionNotNeededException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.SecurityDisabledException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

public class Clients {
    static final Duration PATIENCE = Duration.ofSeconds(60);
    static String broker;
    static Admin admin;

    public static void main(String[] arguments) throws Exception {
        broker = arguments[0];
        Properties settings = new Properties();
        settings.put("bootstrap.servers", broker);
        try (Admin opened = Admin.create(settings)) {
            admin = opened;
            records();
            groups();
            staticMembers();
            transactions();
            administration();
            producersAndTransactionsAreDescribed();
        }
    }

    static String unique(String prefix) {
        return prefix + "-" + UUID.randomUUID().toString().substring(0, 13);
    }

    static void same(Object found, Object expected, String what) {
        if (!expected.equals(found)) {
            throw new AssertionError(what + ": found " + found + " where " + expected + " was expected");
        }
    }

    static void until(String what, BooleanSupplier so) {
        long end = System.nanoTime() + PATIENCE.toNanos();
        while (!so.getAsBoolean()) {
            if (System.nanoTime() > end) {
                throw new AssertionError("waited " + PATIENCE.toSeconds() + " s for " + what);
            }
        }
    }

    static Class<?> causeOf(ThrowingRunnable work) throws Exception {
        try {
            work.run();
            return null;
        } catch (ExecutionException error) {
            return error.getCause().getClass();
        }
    }

    interface ThrowingRunnable {
        void run() throws Exception;
    }

    static String newTopic(int partitions) throws Exception {
        String topic = unique("java");
        admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1))).all().get();
        return topic;
    }

    static KafkaProducer<String, String> producer(Map<String, Object> more) {
        Map<String, Object> settings = new HashMap<>(more);
        settings.put("bootstrap.servers", broker);
        return new KafkaProducer<>(settings, new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(String group, Map<String, Object> more) {
        Map<String, Object> settings = new HashMap<>(Map.of("bootstrap.servers", broker, "group.id", group,
            "auto.offset.reset", "earliest", "enable.auto.commit", false, "session.timeout.ms", 6000,
            "heartbeat.interval.ms", 300));
        settings.putAll(more);
        return new KafkaConsumer<>(settings, new StringDeserializer(), new StringDeserializer());
    }

    static void produce(String topic, int from, int to, Map<String, Object> more) throws Exception {
        try (KafkaProducer<String, String> producer = producer(more)) {
            for (int i = from; i < to; i++) {
                producer.send(new ProducerRecord<>(topic, "k" + i, "v" + i));
            }
            producer.flush();
        }
    }

    /** All values, from the beginning to the ends that this isolation level shows. */
    static List<String> read(String topic, String isolation) {
        List<String> values = new ArrayList<>();
        try (KafkaConsumer<String, String> reader = consumer(unique("reader"), Map.of("isolation.level", isolation))) {
            List<TopicPartition> all = new ArrayList<>();
            reader.partitionsFor(topic).forEach(info -> all.add(new TopicPartition(topic, info.partition())));
            reader.assign(all);
            reader.seekToBeginning(all);
            Map<TopicPartition, Long> ends = reader.endOffsets(all);
            until("the end of the topic", () -> {
                reader.poll(Duration.ofMillis(100)).forEach(record -> values.add(record.value()));
                return all.stream().allMatch(partition -> reader.position(partition) >= ends.get(partition));
            });
        }
        values.sort(null);
        return values;
    }

    static void records() throws Exception {
        for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
            String topic = newTopic(2);
            produce(topic, 0, 300, Map.of("compression.type", codec, "acks", "all"));
            same(new HashSet<>(read(topic, "read_committed")).size(), 300, "records with " + codec);
        }
        System.out.println("records come back in every compression");
    }

    static void poll(List<KafkaConsumer<String, String>> members, Set<String> seen) {
        for (KafkaConsumer<String, String> member : members) {
            for (ConsumerRecord<String, String> record : member.poll(Duration.ofMillis(50))) {
                seen.add(record.value());
            }
        }
    }

    static void groups() throws Exception {
        for (String strategy : List.of("RangeAssignor", "CooperativeStickyAssignor")) {
            String topic = newTopic(4), group = unique("group");
            Map<String, Object> more = Map.of("partition.assignment.strategy", "org.apache.kafka.clients.consumer." + strategy);
            List<KafkaConsumer<String, String>> members = new ArrayList<>();
            Set<String> seen = new HashSet<>();
            members.add(consumer(group, more));
            members.get(0).subscribe(List.of(topic));
            until("all partitions", () -> { poll(members, seen); return members.get(0).assignment().size() == 4; });
            members.add(consumer(group, more));
            members.get(1).subscribe(List.of(topic));
            until("two partitions each", () -> {
                poll(members, seen);
                return members.stream().allMatch(member -> member.assignment().size() == 2);
            });
            produce(topic, 0, 200, Map.of());
            until("all records", () -> { poll(members, seen); return seen.size() == 200; });
            members.forEach(KafkaConsumer::commitSync);
            var described = admin.describeConsumerGroups(List.of(group)).all().get().get(group);
            same(described.members().size(), 2, "members");
            members.forEach(KafkaConsumer::close);
            produce(topic, 200, 201, Map.of());
            try (KafkaConsumer<String, String> third = consumer(group, more)) {
                third.subscribe(List.of(topic));
                Set<String> late = new HashSet<>();
                until("the record behind the committed offsets", () -> { poll(List.of(third), late); return !late.isEmpty(); });
                same(late, Set.of("v200"), "what the resumed group reads");
            }
            var offsets = admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get();
            same(offsets.values().stream().mapToLong(OffsetAndMetadata::offset).sum(), 200L, "committed offsets");
            admin.deleteConsumerGroupOffsets(group, Set.of(new TopicPartition(topic, 0))).all().get();
            same(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().size(), 3, "offsets that are left");
            admin.deleteConsumerGroups(List.of(group)).all().get();
            System.out.println("two members share a topic and a third resumes, with " + strategy);
        }
    }

    static void staticMembers() throws Exception {
        String topic = newTopic(2), group = unique("static");
        Set<String> seen = new HashSet<>();
        var one = consumer(group, Map.of("group.instance.id", "one", "session.timeout.ms", 30000));
        var two = consumer(group, Map.of("group.instance.id", "two", "session.timeout.ms", 30000));
        one.subscribe(List.of(topic));
        two.subscribe(List.of(topic));
        List<KafkaConsumer<String, String>> both = List.of(one, two);
        until("a partition each", () -> { poll(both, seen); return both.stream().allMatch(m -> m.assignment().size() == 1); });
        for (KafkaConsumer<String, String> leaving : both) {
            KafkaConsumer<String, String> staying = leaving == one ? two : one;
            Set<TopicPartition> before = leaving.assignment(), others = staying.assignment();
            int generation = staying.groupMetadata().generationId();
            String instance = leaving.groupMetadata().groupInstanceId().get();
            leaving.close();
            var back = consumer(group, Map.of("group.instance.id", instance, "session.timeout.ms", 30000));
            back.subscribe(List.of(topic));
            until("its partition", () -> { poll(List.of(back, staying), seen); return !back.assignment().isEmpty(); });
            same(back.assignment(), before, "the partition of the one that came back");
            same(staying.assignment(), others, "the partition of the one that stayed");
            same(back.groupMetadata().generationId(), generation, "the generation");
            if (leaving == one) {
                back.close();
                one = consumer(group, Map.of("group.instance.id", "one", "session.timeout.ms", 30000));
                one.subscribe(List.of(topic));
                KafkaConsumer<String, String> again = one;
                until("its partition", () -> { poll(List.of(again, staying), seen); return !again.assignment().isEmpty(); });
                again.close();
                break;
            }
        }
        two.close();
        System.out.println("a static member, also the leader, comes back to its partition without a rebalance");
    }

    static void transactions() throws Exception {
        String topic = newTopic(2), source = newTopic(1), id = unique("tx"), group = unique("group");
        produce(source, 0, 1, Map.of());
        var reader = consumer(group, Map.of());
        reader.subscribe(List.of(source));
        Set<String> seen = new HashSet<>();
        until("the input", () -> { poll(List.of(reader), seen); return !seen.isEmpty(); });
        var first = producer(Map.of("transactional.id", id));
        first.initTransactions();
        first.beginTransaction();
        first.send(new ProducerRecord<>(topic, "committed"));
        first.sendOffsetsToTransaction(Map.of(new TopicPartition(source, 0), new OffsetAndMetadata(1)), reader.groupMetadata());
        first.commitTransaction();
        var committed = reader.committed(Set.of(new TopicPartition(source, 0))).values().iterator().next();
        same(committed.offset(), 1L, "the offset of the transaction");
        first.beginTransaction();
        first.send(new ProducerRecord<>(topic, "aborted"));
        first.flush();
        same(read(topic, "read_committed"), List.of("committed"), "what is decided");
        first.abortTransaction();
        same(read(topic, "read_uncommitted"), List.of("aborted", "committed"), "uncommitted");
        var second = producer(Map.of("transactional.id", id));
        second.initTransactions();
        first.beginTransaction();
        try {
            first.send(new ProducerRecord<>(topic, "zombie"));
            first.commitTransaction();
            throw new AssertionError("a producer whose id has a new owner committed");
        } catch (ProducerFencedException | InvalidProducerEpochException expected) {
            first.close(Duration.ZERO);
        }
        second.beginTransaction();
        second.send(new ProducerRecord<>(topic, "second"));
        second.commitTransaction();
        same(read(topic, "read_committed"), List.of("committed", "second"), "what was committed");
        second.close();
        reader.close();
        System.out.println("transactions commit, abort and fence");
    }

    static void administration() throws Exception {
        var cluster = admin.describeCluster(new DescribeClusterOptions().includeAuthorizedOperations(true));
        same(cluster.nodes().get().size(), 1, "nodes");
        same(cluster.authorizedOperations().get().isEmpty(), false, "no authorized operations");
        String topic = newTopic(2);
        var described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
        var byId = admin.describeTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).allTopicIds().get();
        same(byId.get(described.topicId()).name(), topic, "the topic by its id");
        produce(topic, 0, 20, Map.of());
        ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
        var set = new AlterConfigOp(new ConfigEntry("retention.ms", "7200000"), AlterConfigOp.OpType.SET);
        admin.incrementalAlterConfigs(Map.of(resource, List.of(set))).all().get();
        var config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
        same(config.get("retention.ms").value(), "7200000", "retention");
        same(config.get("retention.ms").type(), ConfigEntry.ConfigType.LONG, "the type of a setting");
        ConfigResource node = new ConfigResource(ConfigResource.Type.BROKER, "1");
        same(admin.describeConfigs(List.of(node)).all().get().get(node).entries().isEmpty(), false, "no settings of the broker");
        admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all().get();
        TopicPartition zero = new TopicPartition(topic, 0), two = new TopicPartition(topic, 2);
        long end = admin.listOffsets(Map.of(zero, OffsetSpec.latest())).all().get().get(zero).offset();
        var newest = admin.listOffsets(Map.of(zero, OffsetSpec.maxTimestamp())).all().get().get(zero);
        same(newest.offset() < end && newest.offset() >= 0, true, "an offset of the newest record within the log");
        same(admin.listOffsets(Map.of(two, OffsetSpec.maxTimestamp())).all().get().get(two).offset(), -1L, "none");
        same(admin.deleteRecords(Map.of(zero, RecordsToDelete.beforeOffset(end))).all().isCompletedExceptionally(), false, "-");
        until("the new start", () -> {
            try {
                return admin.listOffsets(Map.of(zero, OffsetSpec.earliest())).all().get().get(zero).offset() == end;
            } catch (Exception error) {
                throw new AssertionError(error);
            }
        });
        var elections = admin.electLeaders(ElectionType.PREFERRED, Set.of(zero)).partitions().get();
        same(elections.get(zero).get().getClass(), ElectionNotNeededException.class, "an election");
        same(admin.listPartitionReassignments().reassignments().get().size(), 0, "reassignments");
        same(admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1).values().iterator().next()
            .replicaInfos().containsKey(zero), true, "the partition in the log's folder");
        same(causeOf(() -> admin.describeAcls(AclBindingFilter.ANY).values().get()), SecurityDisabledException.class, "access rules");
        same(admin.describeClientQuotas(org.apache.kafka.common.quota.ClientQuotaFilter.all()).entities().get().size(), 0, "quotas");
        admin.deleteTopics(TopicCollection.ofTopicIds(List.of(described.topicId()))).all().get();
        until("the topic to be gone", () -> {
            try {
                return causeOf(() -> admin.describeTopics(List.of(topic)).allTopicNames().get()) == UnknownTopicOrPartitionException.class;
            } catch (Exception error) {
                throw new AssertionError(error);
            }
        });
        System.out.println("administration says what is there and changes it");
    }

    static void producersAndTransactionsAreDescribed() throws Exception {
        String topic = newTopic(1), id = unique("tx");
        TopicPartition zero = new TopicPartition(topic, 0);
        try (var open = producer(Map.of("transactional.id", id))) {
            open.initTransactions();
            open.beginTransaction();
            open.send(new ProducerRecord<>(topic, "open"));
            open.flush();
            var producers = admin.describeProducers(List.of(zero)).all().get().get(zero).activeProducers();
            same(producers.get(0).currentTransactionStartOffset().getAsLong(), 0L, "the start of the open transaction");
            var described = admin.describeTransactions(List.of(id)).all().get().get(id);
            same(described.state().toString(), "Ongoing", "the transaction's state");
            same(described.topicPartitions(), Set.of(zero), "the transaction's partitions");
            same(admin.listTransactions().all().get().stream().anyMatch(t -> t.transactionalId().equals(id)), true, "listed");
            admin.fenceProducers(List.of(id)).all().get();
            try {
                open.commitTransaction();
                throw new AssertionError("a fenced producer committed");
            } catch (ProducerFencedException | InvalidProducerEpochException expected) {
            }
        }
        same(read(topic, "read_committed"), List.of(), "what a fenced producer wrote");
        System.out.println("producers and transactions are described, and fenced on demand");
    }
}
