package main

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/segmentio/kafka-go"
)

var segment *kafka.Client

// segmentio's kafka-go: it has no transactions of its own; its client has their requests, one by one.
func kafkaGo() {
	address := got(net.ResolveTCPAddr("tcp", broker))
	segment = &kafka.Client{Addr: address, Timeout: patience,
		Transport: &kafka.Transport{MetadataTTL: 100 * time.Millisecond}}
	kafkaGoRecords()
	kafkaGoGroup()
	kafkaGoAdministration()
}

func kafkaGoTopic(partitions int) string {
	topic := unique("kafka-go")
	connection := got(kafka.Dial("tcp", broker))
	defer connection.Close()
	must(connection.CreateTopics(kafka.TopicConfig{Topic: topic, NumPartitions: partitions, ReplicationFactor: 1}), "make a topic")
	return topic
}

func kafkaGoProduce(topic string, values []string, codec kafka.Compression) {
	// A transport of its own: one that is shared knows a topic that was made meanwhile only after some seconds.
	transport := &kafka.Transport{}
	defer transport.CloseIdleConnections()
	writer := &kafka.Writer{Addr: kafka.TCP(broker), Topic: topic, Compression: codec, RequiredAcks: kafka.RequireAll,
		BatchTimeout: time.Millisecond, Transport: transport}
	var messages []kafka.Message
	for _, value := range values {
		messages = append(messages, kafka.Message{Key: []byte(value), Value: []byte(value)})
	}
	must(writer.WriteMessages(ctx, messages...), "produce")
	must(writer.Close(), "close")
}

func kafkaGoRecords() {
	topic := kafkaGoTopic(1)
	codecs := []kafka.Compression{0, kafka.Gzip, kafka.Snappy, kafka.Lz4, kafka.Zstd}
	for i, codec := range codecs {
		kafkaGoProduce(topic, values(50*i, 50*(i+1)), codec)
	}
	reader := kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, Topic: topic, MaxWait: 100 * time.Millisecond,
		IsolationLevel: kafka.ReadCommitted})
	defer reader.Close()
	read := func(count int) (found []string) {
		for range count {
			found = append(found, string(got(reader.ReadMessage(ctx)).Value))
		}
		return found
	}
	sameAll(read(250), values(0, 250), "what was produced")
	time.Sleep(2 * time.Millisecond)
	since := time.Now()
	kafkaGoProduce(topic, values(250, 260), 0)
	must(reader.SetOffset(kafka.FirstOffset), "seek")
	sameAll(read(1), values(0, 1), "the first record")
	must(reader.SetOffsetAt(ctx, since), "seek by time")
	sameAll(read(10), values(250, 260), "what was produced since then")
	held("records come back in every compression, from the start and from a time on")
}

func kafkaGoGroup() {
	topic, group := kafkaGoTopic(4), unique("group")
	join := func() *kafka.Reader {
		return kafka.NewReader(kafka.ReaderConfig{Brokers: []string{broker}, GroupID: group, GroupTopics: []string{topic},
			MaxWait: 100 * time.Millisecond, HeartbeatInterval: 300 * time.Millisecond, SessionTimeout: 6 * time.Second,
			StartOffset: kafka.FirstOffset, RebalanceTimeout: 6 * time.Second})
	}
	seen := map[string]bool{}
	poll := func(members ...*kafka.Reader) {
		for _, member := range members {
			within, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			message, err := member.FetchMessage(within)
			if err == nil {
				seen[string(message.Value)] = true
				must(member.CommitMessages(ctx, message), "commit")
			} else if !errors.Is(err, context.DeadlineExceeded) {
				must(err, "fetch")
			}
			cancel()
		}
	}
	first := join()
	kafkaGoProduce(topic, values(0, 100), kafka.Lz4)
	until("all records", func() bool { poll(first); return len(seen) == 100 })
	second := join()
	until("two partitions each", func() bool {
		poll(first, second)
		answer, err := segment.DescribeGroups(ctx, &kafka.DescribeGroupsRequest{GroupIDs: []string{group}})
		if errors.Is(err, kafka.BrokerNotAvailable) {
			// The client does not know the cluster yet.
			return false
		}
		described := got(answer, err).Groups[0]
		shared := len(described.Members) == 2
		for _, member := range described.Members {
			shared = shared && len(member.MemberAssignments.Topics) == 1 && len(member.MemberAssignments.Topics[0].Partitions) == 2
		}
		return shared && described.GroupState == "Stable"
	})
	kafkaGoProduce(topic, values(100, 200), kafka.Lz4)
	until("all records", func() bool { poll(first, second); return len(seen) == 200 })
	must(first.Close(), "close")
	must(second.Close(), "close")
	kafkaGoProduce(topic, values(200, 201), 0)
	third := join()
	clear(seen)
	until("the record behind the committed offsets", func() bool { poll(third); return len(seen) > 0 })
	same(len(seen) == 1 && seen["v200"], true, "only the late record is read")
	must(third.Close(), "close")
	offsets := got(segment.OffsetFetch(ctx, &kafka.OffsetFetchRequest{GroupID: group, Topics: map[string][]int{topic: {0, 1, 2, 3}}}))
	sum := int64(0)
	for _, partition := range offsets.Topics[topic] {
		if partition.CommittedOffset > 0 {
			sum += partition.CommittedOffset
		}
	}
	same(sum, 201, "committed offsets")
	must(got(segment.DeleteGroups(ctx, &kafka.DeleteGroupsRequest{GroupIDs: []string{group}})).Errors[group], "delete the group")
	held("two members share a topic and a third resumes")
}

func kafkaGoAdministration() {
	topic := kafkaGoTopic(2)
	until("the topic in what the client knows of the cluster", func() bool {
		metadata := got(segment.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}}))
		return len(metadata.Topics[0].Partitions) == 2
	})
	got(segment.ApiVersions(ctx, &kafka.ApiVersionsRequest{}))
	got(segment.ListGroups(ctx, &kafka.ListGroupsRequest{}))
	grown := got(segment.CreatePartitions(ctx, &kafka.CreatePartitionsRequest{Topics: []kafka.TopicPartitionsConfig{{Name: topic, Count: 3}}}))
	must(grown.Errors[topic], "add a partition")
	set := got(segment.IncrementalAlterConfigs(ctx, &kafka.IncrementalAlterConfigsRequest{Resources: []kafka.IncrementalAlterConfigsRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic,
		Configs: []kafka.IncrementalAlterConfigsRequestConfig{{Name: "retention.ms", Value: "7200000"}}}}}))
	must(set.Resources[0].Error, "set the retention")
	described := got(segment.DescribeConfigs(ctx, &kafka.DescribeConfigsRequest{Resources: []kafka.DescribeConfigRequestResource{{
		ResourceType: kafka.ResourceTypeTopic, ResourceName: topic, ConfigNames: []string{"retention.ms"}}}}))
	same(described.Resources[0].ConfigEntries[0].ConfigValue, "7200000", "the retention")
	got(segment.InitProducerID(ctx, &kafka.InitProducerIDRequest{TransactionalID: unique("tx"), TransactionTimeoutMs: 10000}))
	gone := got(segment.DeleteTopics(ctx, &kafka.DeleteTopicsRequest{Topics: []string{topic}}))
	must(gone.Errors[topic], "delete the topic")
	until("the topic to be gone", func() bool {
		metadata := got(segment.Metadata(ctx, &kafka.MetadataRequest{Topics: []string{topic}}))
		return errors.Is(metadata.Topics[0].Error, kafka.UnknownTopicOrPartition)
	})
	held("administration says what is there and changes it")
}
