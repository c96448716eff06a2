//! Questions to the brokers that are not about single records: topics, offsets, whether they are there.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{self, ANSWER_WITHIN, LOOK_EVERY, Logged, waiting, with_properties};
use super::error::{classify, classify_code};
use super::security::{Heard, ask, asking};
use super::{Kafka, LogError};

/// How long topics that were created may take until they answer: an Apache Kafka on a busy machine makes tens of
/// partitions in as many seconds.
const LED_WITHIN: Duration = Duration::from_secs(60);

/// A topic that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Copies of each record; 1 on the embedded broker.
    pub replication: i32,
    /// Settings such as `retention.ms`.
    pub config: BTreeMap<String, String>,
}

/// A topic that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicState {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Copies of each record, of the partition that has the fewest.
    pub replication: i32,
    /// All its settings, defaults included.
    pub config: BTreeMap<String, String>,
}

/// A client that asks and creates.
pub struct Admin {
    kafka: Kafka,
    /// `Some` until it is dropped.
    clients: Option<Arc<Clients>>,
}

struct Clients {
    admin: AdminClient<Logged>,
    /// Without a group: it only asks. Unlike other clients, a consumer never creates the topic that it asks for.
    consumer: BaseConsumer<Heard>,
    /// As the consumer, but sees records of open transactions. Made when it is first asked.
    uncommitted: OnceLock<BaseConsumer<Heard>>,
}

impl std::fmt::Debug for Admin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admin").field("kafka", &self.kafka).finish_non_exhaustive()
    }
}

impl Admin {
    /// A client that connects in the background.
    ///
    /// # Errors
    /// A setting is wrong.
    pub fn connect(kafka: &Kafka) -> Result<Admin, LogError> {
        let config = with_properties(client::base(kafka), kafka);
        let admin = config.create_with_context(Logged).map_err(|error| classify(&error))?;
        let consumer = asking(&config)?;
        Ok(Admin {
            kafka: kafka.clone(),
            clients: Some(Arc::new(Clients { admin, consumer, uncommitted: OnceLock::new() })),
        })
    }

    /// All topics, by name.
    ///
    /// # Errors
    /// The brokers did not answer.
    pub async fn topics(&self) -> Result<Vec<TopicState>, LogError> {
        let topics = self.ask(|consumer| {
            let metadata = consumer.fetch_metadata(None, ANSWER_WITHIN)?;
            let state = |topic: &rdkafka::metadata::MetadataTopic| TopicState {
                name: topic.name().to_owned(),
                partitions: i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX),
                replication: topic.partitions().iter().map(|one| one.replicas().len() as i32).min().unwrap_or(0),
                config: BTreeMap::new(),
            };
            Ok(metadata.topics().iter().map(state).collect::<Vec<_>>())
        });
        let mut topics = topics.await?;
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        let specifiers: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(&topic.name)).collect();
        if specifiers.is_empty() {
            return Ok(topics);
        }
        let described = self.clients().admin.describe_configs(&specifiers, &options()).await;
        let described = described.map_err(|error| classify(&error))?;
        // The answers stand in the order of the questions.
        for (topic, answer) in topics.iter_mut().zip(described) {
            let answer = answer.map_err(|code| classify_code(code, topic.name.clone()))?;
            let entries = answer.entries.into_iter();
            topic.config = entries.filter_map(|entry| Some((entry.name, entry.value?))).collect();
        }
        Ok(topics)
    }

    /// Creates the topics that are missing; those that exist stay as they are. Returns the names of the created, when all
    /// of the wanted can be written and read: another process may have created one at the same time.
    ///
    /// # Errors
    /// The brokers did not answer, or refuse a topic; others may have been created by then.
    pub async fn create(&self, wanted: &[TopicSpec]) -> Result<Vec<String>, LogError> {
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let topics: Vec<_> = wanted
            .iter()
            .map(|spec| {
                let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
                spec.config.iter().fold(topic, |topic, (key, value)| topic.set(key, value))
            })
            .collect();
        let answers = self.clients().admin.create_topics(&topics, &options()).await;
        let mut created = Vec::new();
        for answer in answers.map_err(|error| classify(&error))? {
            match answer {
                Ok(name) => created.push(name),
                Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) => return Err(refused(&name, code)),
            }
        }
        let names: Vec<String> = wanted.iter().map(|spec| spec.name.clone()).collect();
        self.ask(move |consumer| await_leaders(consumer, &names, 1)).await?;
        Ok(created)
    }

    /// Gives topics more partitions, up to so many each, and returns when all of them can be written and read.
    ///
    /// # Errors
    /// The brokers did not answer, or refuse; some topics may have been grown by then.
    pub async fn grow(&self, topics: &[String], partitions: i32) -> Result<(), LogError> {
        let count = usize::try_from(partitions).unwrap_or(0);
        for topic in topics {
            let more = [NewPartitions::new(topic, count)];
            let answers = self.clients().admin.create_partitions(&more, &options()).await;
            for answer in answers.map_err(|error| classify(&error))? {
                answer.map_err(|(name, code)| refused(&name, code))?;
            }
        }
        let names = topics.to_vec();
        self.ask(move |consumer| await_leaders(consumer, &names, partitions)).await
    }

    /// How many members a group has.
    ///
    /// # Errors
    /// The brokers did not answer.
    pub async fn members(&self, group: &str) -> Result<usize, LogError> {
        let group = group.to_owned();
        self.ask(move |consumer| {
            let listed = consumer.fetch_group_list(Some(&group), ANSWER_WITHIN)?;
            Ok(listed.groups().iter().filter(|found| found.name() == group).map(|found| found.members().len()).sum())
        })
        .await
    }

    /// Oldest offset and last stable offset, by partition: records behind the first open transaction do not count.
    ///
    /// # Errors
    /// The topic does not exist, or the brokers did not answer.
    pub async fn offsets(&self, topic: &str) -> Result<BTreeMap<i32, (i64, i64)>, LogError> {
        let topic = topic.to_owned();
        self.ask(move |consumer| {
            let edge = |partition| {
                let edges = consumer.fetch_watermarks(&topic, partition, ANSWER_WITHIN)?;
                Ok::<_, KafkaError>((partition, edges))
            };
            client::partitions(consumer.client(), &topic)?.into_iter().map(edge).collect()
        })
        .await
    }

    /// The offset behind the newest record, by partition. Records of open transactions count.
    ///
    /// # Errors
    /// The topic does not exist, or the brokers did not answer.
    pub async fn newest(&self, topic: &str) -> Result<BTreeMap<i32, i64>, LogError> {
        let (clients, topic, mut config) = (self.clients(), topic.to_owned(), client::base(&self.kafka));
        config.set("isolation.level", "read_uncommitted");
        let config = with_properties(config, &self.kafka);
        waiting(move || {
            let consumer = match clients.uncommitted.get() {
                Some(consumer) => consumer,
                None => {
                    let made = asking(&config)?;
                    clients.uncommitted.get_or_init(|| made)
                }
            };
            ask(consumer, |consumer| {
                let mut ends = TopicPartitionList::new();
                for partition in client::partitions(consumer.client(), &topic)? {
                    ends.add_partition_offset(&topic, partition, Offset::End)?;
                }
                let found = consumer.offsets_for_times(ends, ANSWER_WITHIN)?;
                let known = found.elements().into_iter().filter_map(|element| match element.offset() {
                    Offset::Offset(offset) => Some((element.partition(), offset)),
                    _ => None,
                });
                Ok(known.collect())
            })
        })
        .await
    }

    /// The offset of the first record at or after a time (milliseconds since the Unix epoch), by partition; partitions
    /// without such a record are left out.
    ///
    /// # Errors
    /// The topic does not exist, or the brokers did not answer.
    pub async fn offsets_since(&self, topic: &str, time: i64) -> Result<BTreeMap<i32, i64>, LogError> {
        let topic = topic.to_owned();
        self.ask(move |consumer| {
            let mut times = TopicPartitionList::new();
            for partition in client::partitions(consumer.client(), &topic)? {
                times.add_partition_offset(&topic, partition, Offset::Offset(time))?;
            }
            let found = consumer.offsets_for_times(times, ANSWER_WITHIN)?;
            let known = found.elements().into_iter().filter_map(|element| match element.offset() {
                Offset::Offset(offset) => Some((element.partition(), offset)),
                _ => None,
            });
            Ok(known.collect())
        })
        .await
    }

    /// The offsets that a group has committed, by partition; partitions without one are left out. Waits while an open
    /// transaction holds offsets of the group.
    ///
    /// # Errors
    /// The topic does not exist, or the brokers did not answer.
    pub async fn committed(&self, group: &str, topic: &str) -> Result<BTreeMap<i32, i64>, LogError> {
        let config = with_properties(client::consumer(&self.kafka, group), &self.kafka);
        let topic = topic.to_owned();
        waiting(move || {
            let member = asking(&config)?;
            ask(&member, |member| {
                let mut wanted = TopicPartitionList::new();
                for partition in client::partitions(member.client(), &topic)? {
                    wanted.add_partition(&topic, partition);
                }
                let committed = member.committed_offsets(wanted, ANSWER_WITHIN)?;
                let known = committed.elements().into_iter().filter_map(|element| {
                    let offset = element.offset().to_raw().filter(|&offset| offset >= 0)?;
                    Some((element.partition(), offset))
                });
                Ok(known.collect())
            })
        })
        .await
    }

    /// Whether the brokers answer `within` a time.
    ///
    /// # Errors
    /// They did not: [`LogError::Unauthorized`] where they, or we, refuse the connection.
    pub async fn reachable(&self, within: Duration) -> Result<(), LogError> {
        // A metadata request that names a topic is the cheapest question; that there is none of that name is an answer.
        self.ask(move |consumer| consumer.fetch_metadata(Some(schemas::topic::TURNS_RECEIVED), within).map(drop)).await
    }

    /// Asks the brokers where waiting is allowed.
    async fn ask<T, F>(&self, question: F) -> Result<T, LogError>
    where
        T: Send + 'static,
        F: FnOnce(&BaseConsumer<Heard>) -> Result<T, KafkaError> + Send + 'static,
    {
        let clients = self.clients();
        waiting(move || ask(&clients.consumer, question)).await
    }

    fn clients(&self) -> Arc<Clients> {
        Arc::clone(self.clients.as_ref().expect("only drop takes the clients"))
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        client::drop_aside(self.clients.take());
    }
}

/// Returns when each partition of these topics answers, and there are as many at least: Apache Kafka's controller acknowledges a topic before the broker
/// knows of it, and the broker names itself as the leader before it acts as one.
fn await_leaders(consumer: &BaseConsumer<Heard>, topics: &[String], partitions: i32) -> Result<(), KafkaError> {
    let begun = Instant::now();
    loop {
        match is_led(consumer, topics, partitions) {
            Ok(true) => return Ok(()),
            Err(error) if !classify(&error).is_transient() => return Err(error),
            Ok(false) | Err(_) if begun.elapsed() < LED_WITHIN => std::thread::sleep(LOOK_EVERY),
            Ok(false) => return Err(KafkaError::MetadataFetch(Code::LeaderNotAvailable)),
            Err(error) => return Err(error),
        }
    }
}

/// Whether every partition of these topics answers.
fn is_led(consumer: &BaseConsumer<Heard>, topics: &[String], at_least: i32) -> Result<bool, KafkaError> {
    let mut asked = TopicPartitionList::new();
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), ANSWER_WITHIN)?;
        let partitions = metadata.topics().first().map_or(&[][..], |topic| topic.partitions());
        if partitions.len() < at_least.max(1) as usize || partitions.iter().any(|partition| partition.leader() < 0) {
            return Ok(false);
        }
        for partition in partitions {
            // Any time would do: one request asks all partitions, and only a leader answers.
            asked.add_partition_offset(topic, partition.id(), Offset::Offset(0))?;
        }
    }
    let answered = consumer.offsets_for_times(asked, ANSWER_WITHIN)?;
    Ok(answered.elements().iter().all(|element| element.error().is_ok()))
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER_WITHIN)).operation_timeout(Some(ANSWER_WITHIN))
}

fn refused(topic: &str, code: Code) -> LogError {
    match classify_code(code, format!("create {topic}: {code}")) {
        // What is left is a setting that the brokers do not take: replication, a limit, a name.
        LogError::Fatal(text) => LogError::Settings(text),
        other => other,
    }
}
