//! The state that all connections share, and what is done to topics.
//!
//! Locks, in the order in which they may be taken: a transaction's, the metadata's, the groups'. The first two are held
//! across appends to files, and across syncs where an acknowledgement waits for the disk: see [`Node::brief`] and
//! [`Node::io`] for where that is done. Topics and groups are locked for moments.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use kafka_protocol::error::ResponseError;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(crate) use crate::clock::now_ms;
use crate::groups::{self, Groups};
use crate::log::Partition;
use crate::metadata::{self, Entry, Metadata};
use crate::settings::{Given, TopicSettings};
use crate::sync::{self, Syncer};
use crate::transactions::Transactions;
use crate::{Config, StartError};

/// The permits of the memory budgets are of this size.
pub(crate) const PERMIT_BYTES: usize = 1024;
/// Longest name of a topic, as in Apache Kafka: it must fit into a file name with a partition's number.
const TOPIC_NAME_BYTES_MAX: usize = 249;

pub(crate) struct Node {
    pub(crate) config: Config,
    /// What clients are told to connect to.
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) cluster_id: String,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) transactions: Transactions,
    /// Told when the broker shuts down.
    pub(crate) closing: CancellationToken,
    /// Memory for requests and for fetched records, in permits.
    pub(crate) request_memory: Arc<Semaphore>,
    pub(crate) fetch_memory: Arc<Semaphore>,
    topics: RwLock<Catalog>,
    metadata: Mutex<Metadata>,
    groups: Mutex<Groups>,
    /// When each group with committed offsets was last seen at work, since the start.
    groups_used: Mutex<BTreeMap<String, i64>>,
}

/// Topics by name and by id.
#[derive(Default)]
struct Catalog {
    by_name: BTreeMap<String, Arc<Topic>>,
    by_id: BTreeMap<Uuid, Arc<Topic>>,
}

impl Catalog {
    fn put(&mut self, topic: Topic) {
        let topic = Arc::new(topic);
        self.by_id.insert(topic.id, topic.clone());
        self.by_name.insert(topic.name.clone(), topic);
    }

    fn remove(&mut self, name: &str) {
        if let Some(topic) = self.by_name.remove(name) {
            self.by_id.remove(&topic.id);
        }
    }
}

/// A topic as it is at a moment; a change makes another.
pub(crate) struct Topic {
    pub(crate) name: String,
    /// Stays while the topic is there, and is another one when it is made again.
    pub(crate) id: Uuid,
    pub(crate) number: u64,
    pub(crate) given: Given,
    pub(crate) partitions: Vec<Arc<Partition>>,
}

impl Topic {
    pub(crate) fn partition(&self, partition: i32) -> Option<Arc<Partition>> {
        self.partitions.get(usize::try_from(partition).ok()?).cloned()
    }
}

/// Why a topic was not made or changed: what the client is told, with words for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicError {
    pub(crate) error: ResponseError,
    pub(crate) message: String,
}

fn refused<T>(error: ResponseError, message: impl Into<String>) -> Result<T, TopicError> {
    Err(TopicError { error, message: message.into() })
}

impl From<io::Error> for TopicError {
    fn from(error: io::Error) -> TopicError {
        tracing::warn!(%error, "change topics");
        TopicError { error: ResponseError::KafkaStorageError, message: format!("the broker's disk: {error}") }
    }
}

impl Node {
    /// Opens everything in the data directory. Blocks.
    pub(crate) fn open(
        config: Config,
        host: String,
        port: u16,
        syncer: Arc<Syncer>,
        closing: CancellationToken,
    ) -> Result<Node, StartError> {
        let cluster_id = uuid::Uuid::new_v4().simple().to_string();
        let metadata = Metadata::open(config.dir.join("metadata.log"), syncer.clone(), &cluster_id, now_ms())?;
        let cluster_id = metadata.state().cluster_id.clone();
        let mut topics = Catalog::default();
        for (name, known) in &metadata.state().topics {
            let folder = topic_folder(&config, name);
            let open = || open_topic(&config, &syncer, (&cluster_id, name), known, 0);
            topics.put(open().map_err(|source| StartError::Log { path: folder, source })?);
        }
        let limits = groups::Limits {
            groups_max: config.groups_max,
            members_max: config.group_members_max,
            session_timeout_min: config.session_timeout_min,
            session_timeout_max: config.session_timeout_max,
            initial_rebalance_delay: config.initial_rebalance_delay,
        };
        let permits = |bytes: usize| Arc::new(Semaphore::new(bytes / PERMIT_BYTES));
        let node = Node {
            host,
            port,
            cluster_id,
            syncer,
            transactions: Transactions::default(),
            closing,
            request_memory: permits(config.request_memory_bytes),
            fetch_memory: permits(config.fetch_memory_bytes),
            topics: RwLock::new(topics),
            metadata: Mutex::new(metadata),
            groups: Mutex::new(Groups::new(limits)),
            groups_used: Mutex::default(),
            config,
        };
        node.remove_strays().map_err(|source| StartError::Directory { path: node.config.dir.clone(), source })?;
        node.finish_decided();
        Ok(node)
    }

    pub(crate) fn topic(&self, name: &str) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).by_name.get(name).cloned()
    }

    pub(crate) fn topic_of_id(&self, id: Uuid) -> Option<Arc<Topic>> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner).by_id.get(&id).cloned()
    }

    /// The topic that a request means: by id where the request has one, otherwise by name.
    pub(crate) fn topic_meant(&self, name: &str, id: Uuid) -> Result<Arc<Topic>, ResponseError> {
        if id.is_nil() {
            self.topic(name).ok_or(ResponseError::UnknownTopicOrPartition)
        } else {
            self.topic_of_id(id).ok_or(ResponseError::UnknownTopicId)
        }
    }

    pub(crate) fn topics(&self) -> Vec<(String, Arc<Topic>)> {
        let topics = self.topics.read().unwrap_or_else(PoisonError::into_inner);
        topics.by_name.iter().map(|(name, topic)| (name.clone(), topic.clone())).collect()
    }

    pub(crate) fn partition(&self, topic: &str, partition: i32) -> Option<Arc<Partition>> {
        self.topic(topic)?.partition(partition)
    }

    /// Held across appends to its log: for work that is [`Node::brief`], and for I/O threads.
    pub(crate) fn metadata(&self) -> MutexGuard<'_, Metadata> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For moments only.
    pub(crate) fn groups(&self) -> MutexGuard<'_, Groups> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs work that touches only what the system holds in memory: an append to the page cache, a look at the state.
    /// It is done on this very thread, because to hand it to another and back takes longer than the work; only where
    /// an acknowledgement waits for the disk does it go to an I/O thread.
    pub(crate) async fn brief<T: Send + 'static>(
        self: &Arc<Node>,
        work: impl FnOnce(&Arc<Node>) -> T + Send + 'static,
    ) -> T {
        if self.syncer.acknowledges() { self.io(work).await } else { work(self) }
    }

    /// Runs `work` on an I/O thread. A panic there is passed on.
    pub(crate) async fn io<T: Send + 'static>(
        self: &Arc<Node>,
        work: impl FnOnce(&Arc<Node>) -> T + Send + 'static,
    ) -> T {
        let node = self.clone();
        match tokio::task::spawn_blocking(move || work(&node)).await {
            Ok(done) => done,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The broker was dropped; nobody waits for the answer.
                Err(_) => std::future::pending().await,
            },
        }
    }

    /// Checks what [`Node::create_topic`] would refuse. Returns the number of partitions.
    pub(crate) fn check_topic(&self, name: &str, partitions: i32, given: &Given) -> Result<i32, TopicError> {
        if !is_topic_name(name) {
            let message = "a topic name has 1 to 249 ASCII letters, digits, dots, underscores and hyphens";
            return refused(ResponseError::InvalidTopicException, message);
        }
        if self.topic(name).is_some() {
            return refused(ResponseError::TopicAlreadyExists, format!("topic {name} already exists"));
        }
        let partitions = if partitions == -1 { 1 } else { partitions };
        if partitions < 1 {
            return refused(ResponseError::InvalidPartitions, "a topic has at least one partition");
        }
        self.check_partitions(partitions as usize)?;
        match TopicSettings::new(given) {
            Ok(_) => Ok(partitions),
            Err(error) => refused(ResponseError::InvalidConfig, error.to_string()),
        }
    }

    fn check_partitions(&self, more: usize) -> Result<(), TopicError> {
        let have: usize = self.topics().iter().map(|(_, topic)| topic.partitions.len()).sum();
        let most = self.config.partitions_max;
        if have.saturating_add(more) > most {
            let message = format!("this broker holds at most {most} partitions and has {have}; raise partitions_max");
            return refused(ResponseError::PolicyViolation, message);
        }
        Ok(())
    }

    /// Makes a topic; returns its id. For I/O threads.
    pub(crate) fn create_topic(&self, name: &str, partitions: i32, given: Given) -> Result<Uuid, TopicError> {
        let mut metadata = self.metadata();
        let partitions = self.check_topic(name, partitions, &given)?;
        let number = metadata.state().next_topic_number;
        let known = metadata::Topic { number, partitions, settings: given, starts: BTreeMap::new() };
        let topic = open_topic(&self.config, &self.syncer, (&self.cluster_id, name), &known, 0)?;
        metadata.append(Entry::Topic { name: name.to_owned(), topic: known })?;
        let id = topic.id;
        self.put_topic(topic);
        Ok(id)
    }

    fn put_topic(&self, topic: Topic) {
        self.topics.write().unwrap_or_else(PoisonError::into_inner).put(topic);
    }

    /// For I/O threads.
    pub(crate) fn delete_topic(&self, name: &str) -> Result<(), TopicError> {
        let mut metadata = self.metadata();
        let Some(topic) = self.topic(name) else {
            return refused(ResponseError::UnknownTopicOrPartition, format!("there is no topic {name}"));
        };
        metadata.append(Entry::TopicDeleted { name: name.to_owned() })?;
        self.topics.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        for partition in 0..topic.partitions.len() {
            let _ = std::fs::remove_dir_all(partition_folder(&self.config, name, topic.number, partition));
        }
        // It stays if a later topic of the same name has folders in it.
        let _ = std::fs::remove_dir(topic_folder(&self.config, name));
        Ok(())
    }

    /// Makes partitions until there are `count`. For I/O threads.
    pub(crate) fn add_partitions(&self, name: &str, count: i32, only_check: bool) -> Result<(), TopicError> {
        let mut metadata = self.metadata();
        let (Some(topic), Some(known)) = (self.topic(name), metadata.state().topics.get(name)) else {
            return refused(ResponseError::UnknownTopicOrPartition, format!("there is no topic {name}"));
        };
        let have = topic.partitions.len();
        let count = usize::try_from(count).unwrap_or(0);
        if count <= have {
            return refused(ResponseError::InvalidPartitions, format!("topic {name} has {have} partitions already"));
        }
        self.check_partitions(count - have)?;
        if only_check {
            return Ok(());
        }
        let known = metadata::Topic { partitions: count as i32, ..known.clone() };
        let more = open_topic(&self.config, &self.syncer, (&self.cluster_id, name), &known, have)?;
        metadata.append(Entry::Topic { name: name.to_owned(), topic: known })?;
        let partitions = topic.partitions.iter().cloned().chain(more.partitions).collect();
        self.put_topic(Topic {
            name: name.to_owned(),
            id: topic.id,
            number: topic.number,
            given: topic.given.clone(),
            partitions,
        });
        Ok(())
    }

    /// Changes a topic's settings. For I/O threads.
    pub(crate) fn alter_topic(
        &self,
        name: &str,
        change: impl FnOnce(&mut Given) -> Result<(), TopicError>,
        only_check: bool,
    ) -> Result<(), TopicError> {
        let mut metadata = self.metadata();
        let (Some(topic), Some(known)) = (self.topic(name), metadata.state().topics.get(name)) else {
            return refused(ResponseError::UnknownTopicOrPartition, format!("there is no topic {name}"));
        };
        let mut given = topic.given.clone();
        change(&mut given)?;
        let settings = match TopicSettings::new(&given) {
            Ok(settings) => settings,
            Err(error) => return refused(ResponseError::InvalidConfig, error.to_string()),
        };
        if only_check {
            return Ok(());
        }
        let known = metadata::Topic { settings: given.clone(), ..known.clone() };
        metadata.append(Entry::Topic { name: name.to_owned(), topic: known })?;
        for partition in &topic.partitions {
            partition.set_settings(&settings);
        }
        let partitions = topic.partitions.clone();
        self.put_topic(Topic { name: name.to_owned(), id: topic.id, number: topic.number, given, partitions });
        Ok(())
    }

    /// Deletes the records below `offset`, durably, and says where the partition begins now. For I/O threads.
    pub(crate) fn delete_records(&self, topic: &str, partition: i32, offset: i64) -> Result<i64, ResponseError> {
        let Some(log) = self.partition(topic, partition) else { return Err(ResponseError::UnknownTopicOrPartition) };
        if !log.deletes() {
            // Of a topic that is only compacted the newest record of every key stays.
            return Err(ResponseError::PolicyViolation);
        }
        let end = log.offsets().end;
        let offset = if offset == -1 { end } else { offset };
        if !(0..=end).contains(&offset) {
            return Err(ResponseError::OffsetOutOfRange);
        }
        let storage = |error: io::Error| {
            tracing::warn!(topic, partition, %error, "delete records");
            ResponseError::KafkaStorageError
        };
        if offset <= log.offsets().start {
            return Ok(log.offsets().start);
        }
        let entry = Entry::LogStart { topic: topic.to_owned(), partition, offset };
        self.metadata().append(entry).map_err(storage)?;
        log.delete_before(offset).map_err(storage)
    }

    /// Forgets the offsets of groups that had no members and committed nothing for long. For I/O threads.
    pub(crate) fn expire_groups(&self, now_ms: i64) -> io::Result<()> {
        let expiry_ms = self.config.group_offsets_expiry.as_millis() as i64;
        let mut metadata = self.metadata();
        let committed = metadata.take_committed();
        let mut used = self.groups_used.lock().unwrap_or_else(PoisonError::into_inner);
        let expired: Vec<String> = {
            let (state, groups) = (metadata.state(), self.groups());
            used.retain(|group, _| state.offsets.contains_key(group));
            let open: BTreeSet<&str> = state
                .transactions
                .values()
                .flat_map(|t| t.offsets.iter().map(|offset| offset.group.as_str()))
                .collect();
            let at_work = |group: &String| {
                let has_members = groups.get(group).is_some_and(|group| !group.is_empty());
                has_members || committed.contains(group) || open.contains(group.as_str())
            };
            for group in state.offsets.keys() {
                let last_ms = used.entry(group.clone()).or_insert(now_ms);
                if at_work(group) {
                    *last_ms = now_ms;
                }
            }
            used.iter().filter(|(_, last_ms)| now_ms - **last_ms > expiry_ms).map(|(group, _)| group.clone()).collect()
        };
        for group in expired {
            tracing::info!(group, "forget the committed offsets of a group that is not used any more");
            metadata.append(Entry::GroupDeleted { group })?;
        }
        Ok(())
    }

    /// Removes the folders of topics that were deleted while the process ended.
    fn remove_strays(&self) -> io::Result<()> {
        let folder = self.config.dir.join("topics");
        std::fs::create_dir_all(&folder)?;
        sync::to_disk(&File::open(&self.config.dir)?)?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let topic = self.topic(&name);
            for inner in std::fs::read_dir(entry.path())? {
                let inner = inner?;
                let inner_name = inner.file_name().to_string_lossy().into_owned();
                let number = inner_name.split_once('-').map(|(number, _)| number.to_owned());
                if number != topic.as_ref().map(|topic| topic.number.to_string()) {
                    tracing::info!(path = %inner.path().display(), "remove what is left of a deleted topic");
                    std::fs::remove_dir_all(inner.path())?;
                }
            }
            if topic.is_none() {
                std::fs::remove_dir(entry.path())?;
            }
        }
        Ok(())
    }
}

/// Whether a topic may have this name.
pub(crate) fn is_topic_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty() && name.len() <= TOPIC_NAME_BYTES_MAX && name != "." && name != ".." && name.bytes().all(legal)
}

fn topic_folder(config: &Config, name: &str) -> PathBuf {
    config.dir.join("topics").join(name)
}

fn partition_folder(config: &Config, name: &str, number: u64, partition: usize) -> PathBuf {
    topic_folder(config, name).join(format!("{number}-{partition}"))
}

/// Opens the partitions from `first` on. The topic is named with its cluster.
fn open_topic(
    config: &Config,
    syncer: &Arc<Syncer>,
    (cluster, name): (&str, &str),
    known: &metadata::Topic,
    first: usize,
) -> io::Result<Topic> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let settings = TopicSettings::new(&known.settings).map_err(invalid)?;
    let mut partitions = Vec::new();
    for partition in first..known.partitions.max(0) as usize {
        let dir = partition_folder(config, name, known.number, partition);
        let start = known.starts.get(&(partition as i32)).copied().unwrap_or(0);
        let (opened, done) = Partition::open(dir, settings.clone(), syncer.clone(), start, now_ms())?;
        if done.scanned_bytes > 0 {
            tracing::debug!(topic = name, partition, scanned_bytes = done.scanned_bytes, "read the end of a log");
        }
        partitions.push(Arc::new(opened));
    }
    // A file is only as safe as the names on the way to it.
    let folder = topic_folder(config, name);
    for folder in [folder.parent().unwrap_or(&folder), &folder] {
        syncer.mark(&Arc::new(File::open(folder)?));
    }
    // Numbers are never used again, so the id needs no place in the metadata.
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{cluster}/{}/{name}", known.number).as_bytes());
    Ok(Topic { name: name.to_owned(), id, number: known.number, given: known.settings.clone(), partitions })
}
