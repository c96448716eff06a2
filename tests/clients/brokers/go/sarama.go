package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/IBM/sarama"
)

// IBM's sarama, with the requests of its default version of Kafka, and with the newest that it knows.
func saramaClient() {
	for _, version := range []sarama.KafkaVersion{sarama.DefaultVersion, sarama.MaxVersion} {
		saramaVersion = version
		saramaAdmin = got(sarama.NewClusterAdmin([]string{broker}, saramaConfig()))
		saramaRecords()
		saramaGroup(sarama.NewBalanceStrategyRange())
		saramaGroup(sarama.NewBalanceStrategyCooperativeSticky())
		saramaTransactions()
		saramaAdministration()
		must(saramaAdmin.Close(), "close")
	}
}

var (
	saramaVersion sarama.KafkaVersion
	saramaAdmin   sarama.ClusterAdmin
)

func saramaConfig() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = saramaVersion
	config.Producer.Return.Successes = true
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	config.Consumer.Offsets.AutoCommit.Enable = false
	config.Consumer.Group.Session.Timeout = 6 * time.Second
	config.Consumer.Group.Heartbeat.Interval = 300 * time.Millisecond
	config.Consumer.Group.Rebalance.Retry.Backoff = 200 * time.Millisecond
	config.Consumer.Return.Errors = true
	return config
}

func saramaTopic(partitions int32) string {
	topic := unique("sarama")
	must(saramaAdmin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1}, false), "make a topic")
	return topic
}

func idempotent(config *sarama.Config) *sarama.Config {
	config.Producer.Idempotent = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Net.MaxOpenRequests = 1
	return config
}

func saramaProduce(topic string, values []string, config *sarama.Config) {
	producer := got(sarama.NewSyncProducer([]string{broker}, config))
	must(producer.SendMessages(saramaMessages(topic, values)), "produce")
	must(producer.Close(), "close")
}

func saramaMessages(topic string, values []string) (messages []*sarama.ProducerMessage) {
	for _, value := range values {
		messages = append(messages, &sarama.ProducerMessage{Topic: topic, Key: sarama.StringEncoder(value),
			Value: sarama.StringEncoder(value)})
	}
	return messages
}

// saramaRead reads from there to the ends; a marker that ends a partition shows as nothing more within half a second.
func saramaRead(topic string, from int64, level sarama.IsolationLevel, expected []string, what string) {
	config := saramaConfig()
	config.Consumer.IsolationLevel = level
	config.Consumer.MaxWaitTime = 100 * time.Millisecond
	client := got(sarama.NewClient([]string{broker}, config))
	defer client.Close()
	consumer := got(sarama.NewConsumerFromClient(client))
	defer consumer.Close()
	var found []string
	for _, partition := range got(client.Partitions(topic)) {
		start, end := got(client.GetOffset(topic, partition, from)), got(client.GetOffset(topic, partition, sarama.OffsetNewest))
		if start < 0 || start == end {
			continue
		}
		reader := got(consumer.ConsumePartition(topic, partition, start))
		for next := start; next < end; {
			select {
			case message := <-reader.Messages():
				found = append(found, string(message.Value))
				next = message.Offset + 1
			case err := <-reader.Errors():
				must(err, "read")
			case <-time.After(500 * time.Millisecond):
				if next < end-3 {
					fail("%s: nothing behind offset %d of %d", what, next, end)
				}
				next = end
			}
		}
		must(reader.Close(), "close")
	}
	sameAll(found, expected, what)
}

func saramaRecords() {
	topic := saramaTopic(2)
	codecs := []sarama.CompressionCodec{sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy,
		sarama.CompressionLZ4, sarama.CompressionZSTD}
	count := 0
	for _, codec := range codecs {
		config := saramaConfig()
		config.Producer.Compression = codec
		saramaProduce(topic, values(count, count+50), config)
		count += 50
	}
	saramaProduce(topic, values(count, count+50), idempotent(saramaConfig()))
	count += 50
	saramaRead(topic, sarama.OffsetOldest, sarama.ReadUncommitted, values(0, count), "what was produced")
	time.Sleep(2 * time.Millisecond)
	since := time.Now().UnixMilli()
	saramaProduce(topic, values(count, count+50), saramaConfig())
	saramaRead(topic, since, sarama.ReadCommitted, values(count, count+50), "what was produced since then")
	held("%v: records come back in every compression, from the start and from a time on", saramaVersion)
}

type saramaMember struct {
	group sarama.ConsumerGroup
	seen  chan string
	done  chan error
}

func (m *saramaMember) Setup(sarama.ConsumerGroupSession) error { return nil }

func (m *saramaMember) Cleanup(session sarama.ConsumerGroupSession) error {
	session.Commit()
	return nil
}

func (m *saramaMember) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for {
		select {
		case message, open := <-claim.Messages():
			if !open {
				return nil
			}
			m.seen <- string(message.Value)
			session.MarkMessage(message, "")
		case <-session.Context().Done():
			return nil
		}
	}
}

func saramaGroup(strategy sarama.BalanceStrategy) {
	topic, group := saramaTopic(4), unique("group")
	join := func() *saramaMember {
		config := saramaConfig()
		config.Consumer.Group.Rebalance.GroupStrategies = []sarama.BalanceStrategy{strategy}
		m := &saramaMember{got(sarama.NewConsumerGroup([]string{broker}, group, config)), make(chan string, 1000),
			make(chan error, 1)}
		go func() {
			for {
				if err := m.group.Consume(ctx, []string{topic}, m); err != nil {
					m.done <- err
					return
				}
			}
		}()
		return m
	}
	leave := func(m *saramaMember) {
		must(m.group.Close(), "leave")
		if err := <-m.done; !errors.Is(err, sarama.ErrClosedConsumerGroup) {
			must(err, "consume")
		}
	}
	var seen map[string]bool
	count := func(goal int, members ...*saramaMember) {
		until("all records", func() bool {
			for _, m := range members {
				select {
				case value := <-m.seen:
					seen[value] = true
				case <-time.After(5 * time.Millisecond):
				}
			}
			return len(seen) >= goal
		})
	}
	shares := func(members, goal int) {
		until(fmt.Sprint(goal, " partitions for each of ", members), func() bool {
			described := got(saramaAdmin.DescribeConsumerGroups([]string{group}))[0]
			shared := described.State == "Stable" && len(described.Members) == members
			for _, member := range described.Members {
				assigned, err := member.GetMemberAssignment()
				shared = shared && err == nil && assigned != nil && len(assigned.Topics[topic]) == goal
			}
			return shared
		})
	}
	seen = map[string]bool{}
	first := join()
	shares(1, 4)
	saramaProduce(topic, values(0, 100), saramaConfig())
	count(100, first)
	second := join()
	shares(2, 2)
	saramaProduce(topic, values(100, 200), saramaConfig())
	count(200, first, second)
	leave(first)
	shares(1, 4)
	leave(second)
	saramaProduce(topic, values(200, 201), saramaConfig())
	seen = map[string]bool{}
	third := join()
	count(1, third)
	same(len(seen) == 1 && seen["v200"], true, "only the late record is read")
	described := got(saramaAdmin.DescribeConsumerGroups([]string{group}))
	same(described[0].State, "Stable", "the state of the group")
	leave(third)
	offsets := got(saramaAdmin.ListConsumerGroupOffsets(group, nil))
	sum := int64(0)
	for _, block := range offsets.Blocks[topic] {
		sum += block.Offset
	}
	same(sum, 201, "committed offsets")
	must(saramaAdmin.DeleteConsumerGroupOffset(group, topic, 0), "delete an offset")
	must(saramaAdmin.DeleteConsumerGroup(group), "delete the group")
	held("%v: two members share a topic and a third resumes, with %s", saramaVersion, strategy.Name())
}

func saramaTransactions() {
	from, to, group, id := saramaTopic(1), saramaTopic(1), unique("group"), unique("tx")
	saramaProduce(from, values(0, 1), saramaConfig())
	open := func() sarama.SyncProducer {
		config := idempotent(saramaConfig())
		config.Producer.Transaction.ID = id
		return got(sarama.NewSyncProducer([]string{broker}, config))
	}
	first := open()
	must(first.BeginTxn(), "begin")
	must(first.SendMessages(saramaMessages(to, []string{"committed"})), "produce")
	offsets := map[string][]*sarama.PartitionOffsetMetadata{from: {{Partition: 0, Offset: 1, LeaderEpoch: -1}}}
	must(first.AddOffsetsToTxn(offsets, group), "add offsets")
	must(first.CommitTxn(), "commit")
	must(first.BeginTxn(), "begin")
	must(first.SendMessages(saramaMessages(to, []string{"aborted"})), "produce")
	must(first.AbortTxn(), "abort")
	saramaRead(to, sarama.OffsetOldest, sarama.ReadCommitted, []string{"committed"}, "what was committed")
	saramaRead(to, sarama.OffsetOldest, sarama.ReadUncommitted, []string{"committed", "aborted"}, "all")
	until("the offset of the transaction", func() bool {
		offsets := got(saramaAdmin.ListConsumerGroupOffsets(group, map[string][]int32{from: {0}}))
		return offsets.GetBlock(from, 0).Offset == 1
	})
	second := open()
	must(first.BeginTxn(), "begin")
	err := first.SendMessages(saramaMessages(to, []string{"zombie"}))
	if err == nil {
		err = first.CommitTxn()
	}
	same(err != nil, true, "a producer whose id has a new owner fails")
	must(second.BeginTxn(), "begin")
	must(second.SendMessages(saramaMessages(to, []string{"second"})), "produce")
	must(second.CommitTxn(), "commit")
	must(second.Close(), "close")
	_ = first.Close()
	saramaRead(to, sarama.OffsetOldest, sarama.ReadCommitted, []string{"committed", "second"}, "what was committed")
	held("%v: transactions commit, abort and fence", saramaVersion)
}

func saramaAdministration() {
	topic := saramaTopic(2)
	saramaProduce(topic, values(0, 20), saramaConfig())
	err := saramaAdmin.CreateTopic(topic, &sarama.TopicDetail{NumPartitions: 1, ReplicationFactor: 1}, false)
	same(errors.Is(err, sarama.ErrTopicAlreadyExists), true, "a topic that is there")
	same(got(saramaAdmin.ListTopics())[topic].NumPartitions, 2, "partitions")
	must(saramaAdmin.CreatePartitions(topic, 3, nil, false), "add a partition")
	same(len(got(saramaAdmin.DescribeTopics([]string{topic}))[0].Partitions), 3, "partitions")
	hours := "7200000"
	must(saramaAdmin.AlterConfig(sarama.TopicResource, topic, map[string]*string{"retention.ms": &hours}, false), "set the retention")
	for _, entry := range got(saramaAdmin.DescribeConfig(sarama.ConfigResource{Type: sarama.TopicResource, Name: topic})) {
		if entry.Name == "retention.ms" {
			same(entry.Value, hours, "the retention")
		}
	}
	got(saramaAdmin.DescribeConfig(sarama.ConfigResource{Type: sarama.BrokerResource, Name: "1"}))
	must(saramaAdmin.DeleteRecords(topic, map[int32]int64{0: 1}), "delete records")
	brokers, _, err := saramaAdmin.DescribeCluster()
	must(err, "describe the cluster")
	same(len(brokers), 1, "brokers")
	got(saramaAdmin.DescribeLogDirs([]int32{1}))
	got(saramaAdmin.ListConsumerGroups())
	got(saramaAdmin.ListPartitionReassignments(topic, []int32{0}))
	got(saramaAdmin.DescribeUserScramCredentials(nil))
	got(saramaAdmin.DescribeClientQuotas(nil, false))
	set := sarama.IncrementalAlterConfigsEntry{Operation: sarama.IncrementalAlterConfigsOperationSet, Value: &hours}
	must(saramaAdmin.IncrementalAlterConfig(sarama.TopicResource, topic, map[string]sarama.IncrementalAlterConfigsEntry{"retention.ms": set}, false), "set")
	results, err := saramaAdmin.ElectLeaders(sarama.PreferredElection, map[string][]int32{topic: {0}})
	must(err, "elect")
	same(results[topic][0].ErrorCode, sarama.ErrElectionNotNeeded, "an election")
	must(saramaAdmin.DeleteTopic(topic), "delete the topic")
	until("the topic to be gone", func() bool { _, there := got(saramaAdmin.ListTopics())[topic]; return !there })
	held("%v: administration says what is there and changes it", saramaVersion)
}
