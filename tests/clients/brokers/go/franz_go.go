package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

var admin *kadm.Client

// franz-go: it asks for the newest version of each request that both know.
func franzGo() {
	client := franz()
	defer client.Close()
	admin = kadm.NewClient(client)
	franzRecords()
	franzGroup("range", kgo.RangeBalancer())
	franzGroup("cooperative-sticky", kgo.CooperativeStickyBalancer())
	franzTransactions()
	franzExactlyOnce()
	franzAdministration()
}

func franz(more ...kgo.Opt) *kgo.Client {
	return got(kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(broker),
		kgo.MetadataMinAge(100 * time.Millisecond)}, more...)...))
}

func franzTopic(partitions int32) string {
	topic := unique("franz-go")
	_, err := admin.CreateTopic(ctx, partitions, 1, nil, topic)
	must(err, "make a topic")
	return topic
}

func franzProduce(topic string, values []string, more ...kgo.Opt) {
	client := franz(more...)
	defer client.Close()
	var records []*kgo.Record
	for _, value := range values {
		records = append(records, &kgo.Record{Topic: topic, Key: []byte(value), Value: []byte(value)})
	}
	must(client.ProduceSync(ctx, records...).FirstErr(), "produce")
}

// franzRead reads from there to the ends, as this isolation level sees them.
func franzRead(topic string, from kgo.Offset, level kgo.IsolationLevel) (values []string) {
	client := franz(kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(from), kgo.FetchIsolationLevel(level),
		kgo.KeepControlRecords())
	defer client.Close()
	ends := got(admin.ListEndOffsets(ctx, topic))
	left := map[int32]int64{}
	ends.Each(func(end kadm.ListedOffset) {
		if end.Offset > 0 {
			left[end.Partition] = end.Offset
		}
	})
	until("the end of the topic", func() bool {
		fetches := client.PollFetches(ctx)
		must(fetches.Err(), "fetch")
		fetches.EachRecord(func(record *kgo.Record) {
			if !record.Attrs.IsControl() {
				values = append(values, string(record.Value))
			}
			if record.Offset >= left[record.Partition]-1 {
				delete(left, record.Partition)
			}
		})
		return len(left) == 0
	})
	return values
}

func franzRecords() {
	codecs := []kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(),
		kgo.Lz4Compression(), kgo.ZstdCompression()}
	topic := franzTopic(2)
	for i, codec := range codecs {
		franzProduce(topic, values(100*i, 100*(i+1)), kgo.ProducerBatchCompression(codec))
	}
	franzProduce(topic, values(500, 600), kgo.DisableIdempotentWrite(), kgo.RequiredAcks(kgo.LeaderAck()))
	sameAll(franzRead(topic, kgo.NewOffset().AtStart(), kgo.ReadUncommitted()), values(0, 600), "what was produced")
	time.Sleep(2 * time.Millisecond)
	since := time.Now()
	time.Sleep(2 * time.Millisecond)
	franzProduce(topic, values(600, 700))
	sameAll(franzRead(topic, kgo.NewOffset().AfterMilli(since.UnixMilli()), kgo.ReadCommitted()), values(600, 700),
		"what was produced since then")
	held("records come back in every compression, from the start and from a time on")
}

func franzGroup(name string, balancer kgo.GroupBalancer) {
	topic, group := franzTopic(4), unique("group")
	join := func() *kgo.Client {
		return franz(kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.Balancers(balancer), kgo.DisableAutoCommit(),
			kgo.SessionTimeout(6*time.Second), kgo.HeartbeatInterval(300*time.Millisecond),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	}
	seen := map[string]bool{}
	poll := func(members ...*kgo.Client) {
		for _, member := range members {
			within, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			member.PollFetches(within).EachRecord(func(record *kgo.Record) { seen[string(record.Value)] = true })
			cancel()
		}
	}
	shares := func() (shares []int) {
		described := got(admin.DescribeGroups(ctx, group))[group]
		for _, member := range described.Members {
			assigned, ok := member.Assigned.AsConsumer()
			if !ok || described.State != "Stable" {
				return nil
			}
			count := 0
			for _, topic := range assigned.Topics {
				count += len(topic.Partitions)
			}
			shares = append(shares, count)
		}
		return shares
	}
	first := join()
	franzProduce(topic, values(0, 100))
	until("all records", func() bool { poll(first); return len(seen) == 100 })
	second := join()
	until("two partitions each", func() bool {
		poll(first, second)
		found := shares()
		return len(found) == 2 && found[0] == 2 && found[1] == 2
	})
	franzProduce(topic, values(100, 200))
	until("all records", func() bool { poll(first, second); return len(seen) == 200 })
	must(first.CommitUncommittedOffsets(ctx), "commit")
	must(second.CommitUncommittedOffsets(ctx), "commit")
	first.Close()
	until("all partitions for the one that is left", func() bool {
		poll(second)
		found := shares()
		return len(found) == 1 && found[0] == 4
	})
	second.Close()
	franzProduce(topic, values(200, 201))
	third := join()
	clear(seen)
	until("the record behind the committed offsets", func() bool { poll(third); return len(seen) > 0 })
	same(len(seen) == 1 && seen["v200"], true, "only the late record is read")
	must(third.CommitUncommittedOffsets(ctx), "commit")
	third.Close()
	lags := got(admin.Lag(ctx, group))[group]
	must(lags.Error(), "ask for the lag")
	same(lags.Lag.Total(), 0, "the lag")
	must(got(admin.DeleteOffsets(ctx, group, kadm.TopicsSet{topic: {0: {}}})).Error(), "delete an offset")
	same(len(got(admin.FetchOffsets(ctx, group))[topic]), 3, "offsets that are left")
	_, err := admin.DeleteGroup(ctx, group)
	must(err, "delete the group")
	held("two members share a topic and a third resumes, with %s", name)
}

func franzTransactions() {
	topic, id := franzTopic(2), unique("tx")
	open := func() *kgo.Client {
		return franz(kgo.TransactionalID(id), kgo.DefaultProduceTopic(topic), kgo.TransactionTimeout(20*time.Second))
	}
	write := func(client *kgo.Client, value string, end kgo.TransactionEndTry) error {
		must(client.BeginTransaction(), "begin")
		if err := client.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr(); err != nil {
			return err
		}
		return client.EndTransaction(ctx, end)
	}
	first := open()
	must(write(first, "committed", kgo.TryCommit), "commit")
	must(write(first, "aborted", kgo.TryAbort), "abort")
	must(first.BeginTransaction(), "begin")
	must(first.ProduceSync(ctx, kgo.StringRecord("open")).FirstErr(), "produce")
	described := got(admin.DescribeTransactions(ctx, id))[id]
	same(described.State, "Ongoing", "the state of the transaction")
	same(len(got(admin.DescribeProducers(ctx, kadm.TopicsSet{topic: {0: {}, 1: {}}}))[topic].Partitions), 2, "partitions")
	listed := got(admin.ListTransactions(ctx, nil, []string{"Ongoing"}))
	same(listed[id].TxnID, id, "the listed transaction")
	second := open()
	must(write(second, "second", kgo.TryCommit), "commit of the new owner")
	err := first.EndTransaction(ctx, kgo.TryCommit)
	fenced := errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch)
	same(fenced, true, fmt.Sprint("a producer whose id has a new owner is fenced: ", err))
	first.Close()
	second.Close()
	start := kgo.NewOffset().AtStart()
	sameAll(franzRead(topic, start, kgo.ReadCommitted()), []string{"committed", "second"}, "what was committed")
	sameAll(franzRead(topic, start, kgo.ReadUncommitted()), []string{"aborted", "committed", "open", "second"}, "all")
	held("transactions commit, abort, fence and are described")
}

func franzExactlyOnce() {
	from, to, group, id := franzTopic(2), franzTopic(2), unique("group"), unique("tx")
	franzProduce(from, values(0, 200))
	session := got(kgo.NewGroupTransactSession(kgo.SeedBrokers(broker), kgo.TransactionalID(id), kgo.ConsumerGroup(group),
		kgo.ConsumeTopics(from), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.DefaultProduceTopic(to),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.RequireStableFetchOffsets()))
	defer session.Close()
	written, tries := 0, 0
	until("all to be written", func() bool {
		fetches := session.PollRecords(ctx, 50)
		must(fetches.Err(), "fetch")
		must(session.Begin(), "begin")
		fetches.EachRecord(func(record *kgo.Record) {
			session.Produce(ctx, kgo.StringRecord(string(record.Value)), nil)
		})
		tries++
		// Every second one is given up: its records are read again.
		committed, err := session.End(ctx, kgo.TransactionEndTry(tries%2 == 0))
		must(err, "end the transaction")
		if committed {
			written += fetches.NumRecords()
		}
		return written == 200
	})
	sameAll(franzRead(to, kgo.NewOffset().AtStart(), kgo.ReadCommitted()), values(0, 200), "what was written once")
	held("what is read and written in transactions of a group is there once, in spite of those that were given up")
}

func franzAdministration() {
	topic := franzTopic(2)
	franzProduce(topic, values(0, 20))
	_, err := admin.CreateTopic(ctx, 1, 1, nil, topic)
	same(errors.Is(err, kerr.TopicAlreadyExists), true, "a topic that is there")
	same(len(got(admin.ListTopics(ctx))[topic].Partitions), 2, "partitions")
	must(got(admin.CreatePartitions(ctx, 1, topic)).Error(), "add a partition")
	set := kadm.AlterConfig{Op: kadm.SetConfig, Name: "retention.ms", Value: kadm.StringPtr("7200000")}
	_, err = admin.AlterTopicConfigs(ctx, []kadm.AlterConfig{set}, topic)
	must(err, "set the retention")
	configs := got(got(admin.DescribeTopicConfigs(ctx, topic)).On(topic, nil))
	for _, config := range configs.Configs {
		if config.Key == "retention.ms" {
			same(*config.Value, "7200000", "the retention")
		}
	}
	got(admin.DescribeBrokerConfigs(ctx, 1))
	newest := got(admin.ListMaxTimestampOffsets(ctx, topic))
	must(newest.Error(), "ask for the newest record")
	ends := got(admin.ListEndOffsets(ctx, topic))
	must(got(admin.DeleteRecords(ctx, ends.Offsets())).Error(), "delete records")
	starts := got(admin.ListStartOffsets(ctx, topic))
	ends.Each(func(end kadm.ListedOffset) {
		start, _ := starts.Lookup(topic, end.Partition)
		same(start.Offset, end.Offset, "the start of an emptied partition")
	})
	cluster := got(admin.BrokerMetadata(ctx))
	same(len(cluster.Brokers), 1, "brokers")
	got(admin.ApiVersions(ctx))
	got(admin.DescribeAllLogDirs(ctx, nil))
	got(admin.ListPartitionReassignments(ctx, nil))
	got(admin.DescribeClientQuotas(ctx, false, nil))
	got(admin.DescribeUserSCRAMs(ctx))
	elections := got(admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, kadm.TopicsSet{topic: {0: {}}}))
	same(errors.Is(elections[topic][0].Err, kerr.ElectionNotNeeded), true, "an election")
	_, err = admin.DeleteTopic(ctx, topic)
	must(err, "delete the topic")
	until("the topic to be gone", func() bool { return !got(admin.ListTopics(ctx)).Has(topic) })
	held("administration says what is there and changes it")
}
