//! The inputs at fault: which there are, and driving them in again.
//!
//! Promises: what is read is as far as the topic went when the reading began, committed records only, in order of each
//! key; whether a reject was driven in again is known by its place *and* its identity, so that a recreated topic does not
//! inherit it. [`redrive::Run`] says what it promises.

pub mod redrive;
mod select;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use anyhow::Context as _;
use schemas::topic::{REDRIVES, REJECTS};
use schemas::{Codec, Payload, Redrive, Reject};
use store::log::{Admin, From, Kafka, Message, Place, Tail};

pub use select::{Seen, Selection, Which, moment};

/// Longest silence of the brokers before the reading is given up.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Time between two looks at whether only the marks of transactions are left to read.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A reject where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Its place in the topic of rejects.
    pub place: Place,
    /// The headers of its record.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What it says.
    pub reject: Reject,
    /// The note that it was driven in again.
    pub redriven: Option<Redrive>,
}

/// The rejects, one after the other.
pub struct Reader<'a> {
    codec: &'a Codec,
    notes: HashMap<Place, Redrive>,
    records: Records,
    /// Records in the topic that are no rejects, so far.
    pub unreadable: u64,
    /// What the rejects so far say of themselves.
    pub seen: Seen,
}

impl<'a> Reader<'a> {
    /// Reads the notes of what was driven in again, and opens the topic of rejects.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub async fn open(kafka: &Kafka, codec: &'a Codec) -> anyhow::Result<Reader<'a>> {
        let mut notes = HashMap::new();
        let mut written = Records::open(kafka, REDRIVES).await.context("open the notes of what was driven in again")?;
        while let Some(message) = written.next().await? {
            // A record that is no note says nothing of any reject.
            if let Some(note) = decoded::<Redrive>(codec, &message) {
                notes.insert(Place { partition: note.partition, offset: note.offset }, note);
            }
        }
        let records = Records::open(kafka, REJECTS).await.context("open the rejects")?;
        Ok(Reader { codec, notes, records, unreadable: 0, seen: Seen::default() })
    }

    /// The next reject; `None` at the end that the topic had when it was opened.
    ///
    /// # Errors
    /// The brokers do not answer.
    pub async fn next(&mut self) -> anyhow::Result<Option<Found>> {
        while let Some(message) = self.records.next().await? {
            let place = Place { partition: message.partition, offset: message.offset };
            let Some(reject) = decoded::<Reject>(self.codec, &message) else {
                self.unreadable += 1;
                continue;
            };
            let speaks_of_it = |note: &&Redrive| note.id == reject.id && note.rejected_at == reject.at;
            let redriven = self.notes.get(&place).filter(speaks_of_it).cloned();
            let found = Found { place, headers: message.headers, reject, redriven };
            self.seen.note(&found);
            return Ok(Some(found));
        }
        Ok(None)
    }
}

fn decoded<T: Payload>(codec: &Codec, message: &Message) -> Option<T> {
    codec.decode(message.value.as_deref().unwrap_or_default()).ok()
}

/// The records of a topic up to the end that it had when it was opened; none of a topic that does not exist.
struct Records {
    tail: Option<Tail>,
    ends: BTreeMap<i32, i64>,
}

impl Records {
    async fn open(kafka: &Kafka, topic: &str) -> anyhow::Result<Records> {
        // A tail would wait for a topic that does not exist.
        let topics = Admin::connect(kafka)?.topics().await?;
        if !topics.iter().any(|known| known.name == topic) {
            return Ok(Records { tail: None, ends: BTreeMap::new() });
        }
        let tail = Tail::open(kafka, topic, From::Beginning).await?;
        let ends = tail.ends_when_opened().clone();
        Ok(Records { tail: Some(tail), ends })
    }

    async fn next(&mut self) -> anyhow::Result<Option<Message>> {
        let Some(tail) = &mut self.tail else { return Ok(None) };
        let mut silent = Duration::ZERO;
        loop {
            let positions = tail.positions();
            if self.ends.iter().all(|(partition, end)| positions.get(partition) >= Some(end)) {
                return Ok(None);
            }
            match tokio::time::timeout(LOOK_EVERY, tail.next()).await {
                // What was written after the beginning is not meant.
                Ok(Ok(message)) if self.ends.get(&message.partition) <= Some(&message.offset) => {
                    silent = Duration::ZERO
                }
                Ok(Ok(message)) => return Ok(Some(message)),
                Ok(Err(error)) if !error.is_transient() => return Err(error.into()),
                Ok(Err(_)) | Err(_) => {
                    silent += LOOK_EVERY;
                    anyhow::ensure!(silent < SILENCE_MAX, "the brokers were silent for {} s", SILENCE_MAX.as_secs());
                }
            }
        }
    }
}
