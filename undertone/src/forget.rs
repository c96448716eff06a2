//! Forgetting: a memory, a room, a conversation or a person, and the receipt that says what holds the words still.
//!
//! In this order, so that it may end anywhere and be asked for again: the erasure is written to the list that everybody
//! consults who reads turns again; the history and its memories are erased; a turn that says so is appended to each
//! conversation, through which the owner of its partition lets go of what is known of it, in both versions, and every
//! process of the read side of what it holds. A receipt is complete when nothing holds the words any more; what only time
//! takes is told with its date. Left out: words that others quote, and what left through streams and topics.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use api::memories::{Forget, Held, Receipt};
use schemas::erasure::ERASURE;
use schemas::{Codec, Envelope, Erasure, Kind, Turn, envelope, topic, turn_id};
use store::erasures::{Erasures, TURNS_MAX};
use store::history::{History, PAGE_MAX, Page, Row, writer};
use store::log::{Admin, Kafka, Place, Producer, ProducerLimits, Record, TopicState};
use store::registry::Registry;
use uuid::Uuid;

use crate::config::{Cache, Config, StoreKind};
use crate::health::Health;
use crate::rejects::Reader;
use crate::up::{Databases, eraser};

/// Source of the turns that say that something was forgotten.
const SOURCE: &str = "undertone";
/// How long to wait until these have come through.
const COME_THROUGH_WITHIN: Duration = Duration::from_secs(5);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long to wait until the broker has gone over the log.
const GONE_OVER_WITHIN: Duration = Duration::from_secs(5);
/// Time between two questions to the brokers.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Conversations of a person that are forgotten in one call.
const CONVERSATIONS_MAX: usize = 100_000;
/// Rejects that are looked at; where there are more, the receipt says when retention takes them.
const REJECTS_LOOKED_AT_MAX: u64 = 10_000;
/// Newest turns of a conversation among which the one that says so is looked for.
const NEWEST: usize = 20;
/// What brokers wait for at most until they begin another segment, where they do not tell.
const SEGMENT_MS: i64 = 7 * DAY_MS;
/// How long CQL servers keep what was deleted, by default: the grace period of tombstones.
const GRACE_MS: i64 = 10 * DAY_MS;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// What forgets, and where.
#[derive(Debug)]
pub(crate) struct Forgetting {
    kafka: Kafka,
    history: History,
    registry: Registry,
    config: Config,
}

/// What is to be forgotten, found.
struct Found {
    what: String,
    conversations: BTreeSet<String>,
    erasures: Vec<Erasure>,
    /// Of single turns, their positions.
    positions: Vec<i64>,
}

impl Forgetting {
    pub(crate) fn new(config: &Config, kafka: Kafka, history: History, registry: Registry) -> Forgetting {
        Forgetting { kafka, history, registry, config: config.clone() }
    }

    /// Forgets; `None` if there is nothing of it.
    pub(crate) async fn forget(&self, what: Forget<'_>) -> anyhow::Result<Option<Receipt>> {
        let now = now_ms();
        let Some(mut found) = self.find(what, now).await? else { return Ok(None) };
        let (now, retired) = self.retire(what, &mut found, now).await.context("retire keys")?;
        let codec = self.registry.codec();
        let producer = Producer::connect(&self.kafka, &ProducerLimits::default()).context("connect to the log")?;
        let list = || found.erasures.iter().map(|erasure| listed(codec, erasure)).collect();
        append(&producer, list()).await?;
        let turns = self.erase(what, &found).await.context("erase in the history")?;
        let id = found.erasures.first().map_or(Uuid::nil(), |erasure| erasure.id);
        let marks = found.conversations.iter().map(|conversation| mark(codec, conversation, id, now));
        let marked = append(&producer, marks.collect()).await?;
        let came_through = self.wait(last_of_each_partition(&found.conversations, &marked), id).await;
        let turns = turns + self.erase_late(what, &found).await.context("erase in the history")?;
        // Once more behind what was under way: who goes over the log for it goes over that as well.
        let again = append(&producer, list()).await?;
        let gone_over = self.gone_over(&again).await?.map(|gone_over| gone_over && came_through);
        let destroyed = self.destroy(retired.as_deref()).await.context("destroy keys: ask again")?;
        let rejects_tell = gone_over == Some(true) && self.rejects_tell(what).await.context("look at the rejects")?;
        let places = self.places(now, came_through, gone_over, rejects_tell, destroyed).await?;
        let conversations = found.conversations.into_iter().collect();
        Ok(Some(Receipt::new(id, envelope::rfc3339(now), found.what, turns, conversations, places)))
    }

    async fn find(&self, what: Forget<'_>, now: i64) -> anyhow::Result<Option<Found>> {
        let history = &self.history;
        let erasure = |conversation: Option<&str>, person: Option<&str>, turns: Vec<String>| Erasure {
            id: Uuid::new_v4(),
            at: now,
            conversation: conversation.map(str::to_owned),
            person: person.map(str::to_owned),
            turns,
        };
        let of_turns = |what: String, conversation: &str, turns: Vec<(i64, Uuid)>| {
            let ids: Vec<String> = turns.iter().map(|(_, id)| id.to_string()).collect();
            let erasures = ids.chunks(TURNS_MAX).map(|ids| erasure(Some(conversation), None, ids.to_vec())).collect();
            let positions: Vec<i64> = turns.iter().map(|(position, _)| *position).collect();
            let found = Found { what, conversations: [conversation.to_owned()].into(), erasures, positions };
            (!found.positions.is_empty()).then_some(found)
        };
        Ok(match what {
            Forget::Memory { conversation, position } => {
                let page = history.turns(conversation, Page::After(position.saturating_sub(1)), 1).await?;
                let turns = page.iter().filter(|row| row.position == position).map(|row| (row.position, row.id));
                of_turns(format!("turn {position} of {conversation}"), conversation, turns.collect())
            }
            Forget::Room { conversation, room } => {
                let memories = history.memories(conversation).await?;
                let of_room = memories.iter().filter(|memory| memory.room == room);
                let turn = |value: &[u8]| self.registry.codec().decode::<Turn>(value);
                let turns: Result<Vec<_>, _> =
                    of_room.map(|memory| turn(&memory.value).map(|turn| (memory.position, turn.id))).collect();
                of_turns(format!("room {room} of {conversation}"), conversation, turns.context("read a memory")?)
            }
            Forget::Conversation(conversation) => history.last_position(conversation).await?.map(|_| Found {
                what: format!("conversation {conversation}"),
                conversations: [conversation.to_owned()].into(),
                erasures: vec![erasure(Some(conversation), None, Vec::new())],
                positions: Vec::new(),
            }),
            Forget::Person(person) => {
                let mut conversations = history.conversations_of(person, CONVERSATIONS_MAX + 1).await?;
                if let Some(keys) = self.registry.keys() {
                    // Those too that the history has not written yet.
                    conversations.extend(keys.conversations_of(person, CONVERSATIONS_MAX + 1).await?);
                }
                let conversations: BTreeSet<String> = conversations.into_iter().collect();
                anyhow::ensure!(
                    conversations.len() <= CONVERSATIONS_MAX,
                    "{person} spoke in more than {CONVERSATIONS_MAX} conversations: forget some of these whole, then ask again"
                );
                // Who was forgotten before may be asked for again, for another receipt.
                let is_known = !conversations.is_empty()
                    || Erasures::read(&self.kafka, self.registry.codec()).await?.knows_person(person);
                is_known.then(|| Found {
                    what: format!("person {person}"),
                    conversations,
                    erasures: vec![erasure(None, Some(person), Vec::new())],
                    positions: Vec::new(),
                })
            }
        })
    }

    /// Retires the keys of what is forgotten whole, and waits until nothing is sealed by them any more: the erasure covers
    /// what they sealed, and no more. Returns the time of the erasure, and the keys by conversation: none are left of who was
    /// forgotten before; `None` where keys have no part in it.
    async fn retire(
        &self,
        what: Forget<'_>,
        found: &mut Found,
        now: i64,
    ) -> anyhow::Result<(i64, Option<Vec<(String, Vec<Uuid>)>>)> {
        let person = match what {
            Forget::Memory { .. } | Forget::Room { .. } => return Ok((now, None)),
            Forget::Conversation(_) => None,
            Forget::Person(person) => Some(person),
        };
        let Some(keys) = self.registry.keys() else { return Ok((now, None)) };
        let (mut at, mut all) = (now, Vec::new());
        for conversation in &found.conversations {
            let retired = keys.retire(conversation, person, now_ms()).await?;
            at = at.max(retired.until - 1);
            all.push((conversation.clone(), retired.ids));
        }
        found.erasures.iter_mut().for_each(|erasure| erasure.at = at);
        let ahead = u64::try_from(at + 1 - now_ms()).unwrap_or(0);
        tokio::time::sleep(Duration::from_millis(ahead)).await;
        Ok((at, Some(all)))
    }

    /// Destroys them. Since when there are keys at all, if so; in milliseconds since the Unix epoch.
    async fn destroy(&self, retired: Option<&[(String, Vec<Uuid>)]>) -> anyhow::Result<Option<i64>> {
        let (Some(keys), Some(retired)) = (self.registry.keys(), retired) else { return Ok(None) };
        for (conversation, ids) in retired {
            keys.destroy(conversation, ids).await?;
        }
        Ok(Some(keys.since().await?))
    }

    async fn erase(&self, what: Forget<'_>, found: &Found) -> anyhow::Result<u64> {
        Ok(match what {
            Forget::Memory { conversation, .. } | Forget::Room { conversation, .. } => {
                self.history.erase_turns(conversation, found.positions.clone()).await?
            }
            Forget::Conversation(conversation) => self.history.erase_conversation(conversation).await?,
            Forget::Person(person) => self.history.erase_person(person).await?,
        })
    }

    /// Erases what of a person was kept since, in conversations that nothing was known of, as far as the erasure covers it.
    async fn erase_late(&self, what: Forget<'_>, found: &Found) -> anyhow::Result<u64> {
        let Forget::Person(person) = what else { return Ok(0) };
        // By then the writer of the history has seen the list.
        tokio::time::sleep(writer::LOOK_FOR_ERASURES_EVERY).await;
        let mut erasures = Erasures::default();
        found.erasures.iter().for_each(|erasure| erasures.add(erasure.clone()));
        let is_covered = |row: &Row| {
            let turn = self.registry.codec().decode::<Turn>(&row.value);
            turn.is_ok_and(|turn| erasures.covers(&turn))
        };
        let mut erased = 0;
        for conversation in self.history.conversations_of(person, CONVERSATIONS_MAX).await? {
            let newest = self.history.turns(&conversation, Page::Before(None), PAGE_MAX).await?;
            let positions: Vec<i64> = newest.iter().filter(|row| is_covered(row)).map(|row| row.position).collect();
            if !positions.is_empty() {
                erased += self.history.erase_turns(&conversation, positions).await?;
            }
        }
        Ok(erased)
    }

    /// Waits until the turns that say so are in the history: then the processors have let go, and the writer has passed
    /// what was under way. A partition is kept in its order, so the last one of each is looked for. Whether they all are.
    async fn wait(&self, conversations: Vec<&str>, id: Uuid) -> bool {
        let begun = Instant::now();
        for conversation in conversations {
            let wanted = mark_id(conversation, id);
            loop {
                let newest = self.history.turns(conversation, Page::Before(None), NEWEST).await.unwrap_or_default();
                if newest.iter().any(|row| row.id == wanted) {
                    break;
                }
                if begun.elapsed() > COME_THROUGH_WITHIN {
                    return false;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        true
    }

    /// Whether the log was gone over for what stands in the list here; `None` where nobody does that.
    async fn gone_over(&self, listed: &[Place]) -> anyhow::Result<Option<bool>> {
        let (admin, begun) = (Admin::connect(&self.kafka)?, Instant::now());
        loop {
            let committed = admin.committed(eraser::GROUP, topic::ERASURES).await.context("ask how far the log is")?;
            let passed = |place: &Place| committed.get(&place.partition).is_some_and(|next| *next > place.offset);
            match () {
                () if committed.is_empty() && !self.config.is_embedded() => return Ok(None),
                () if listed.iter().all(passed) => return Ok(Some(true)),
                () if begun.elapsed() > GONE_OVER_WITHIN => return Ok(Some(false)),
                () => tokio::time::sleep(ASK_EVERY).await,
            }
        }
    }

    /// Replays whose contexts are on this machine.
    fn replays(&self) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let folder = self.config.data.dir.join("replays");
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let entries = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        let entries =
            entries.map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())));
        Ok(entries.collect::<Result<_, _>>()?)
    }

    /// Whether every reject tells whose it is: then those that were forgotten are out of their topic as well. A turn does; other
    /// inputs name their conversation, if any, and nobody else.
    async fn rejects_tell(&self, what: Forget<'_>) -> anyhow::Result<bool> {
        let codec = self.registry.codec();
        let mut rejects = Reader::open(&self.kafka, codec).await?;
        let mut looked_at = 0;
        while let Some(found) = rejects.next().await? {
            let reject = &found.reject;
            let named = matches!(what, Forget::Conversation(_)) && reject.key.is_some();
            looked_at += 1;
            if looked_at > REJECTS_LOOKED_AT_MAX
                || !(reject.raw.is_empty() || named || codec.read::<Turn>(&reject.raw).is_ok())
            {
                return Ok(false);
            }
        }
        Ok(rejects.unreadable == 0)
    }

    /// Every place that held the words, and how it stands.
    async fn places(
        &self,
        now: i64,
        came_through: bool,
        gone_over: Option<bool>,
        rejects_tell: bool,
        destroyed: Option<i64>,
    ) -> anyhow::Result<Vec<Held>> {
        let mut places = Vec::new();
        let settled = |place: &str, emptied: Option<bool>| match emptied {
            Some(true) => Held::erased(place),
            Some(false) => Held::pending(place, "a reader holds it up: ask again"),
            None => Held::pending(place, "it is on another machine: there it is emptied within a second"),
        };
        match self.config.history.kind {
            StoreKind::Sqlite => {
                places.push(Held::erased("history: turns"));
                places.push(Held::erased("history: memories and their index"));
                let emptied = self.history.settle().await.context("empty the history's write-ahead log")?;
                places.push(settled("history: write-ahead log", emptied));
            }
            StoreKind::Scylla => {
                let until = envelope::rfc3339(now + GRACE_MS);
                places.push(Held::expires("history and memories: files of the CQL server", until));
            }
        }
        let under_way = "the turn that says so has not come through the processors and the history writer yet";
        places.push(match came_through {
            true => Held::erased("contexts, both versions"),
            false => Held::pending("contexts, both versions", under_way),
        });
        match self.config.context.kind {
            StoreKind::Sqlite => {
                // Open for this moment alone: who holds the file would keep its owners from a backup put in its place.
                let emptied = match Databases::new(Health::default()).contexts_here(&self.config).await? {
                    Some(contexts) => contexts.settle().await.context("empty the contexts' write-ahead log")?,
                    None => None,
                };
                places.push(settled("contexts: write-ahead log", emptied.map(|emptied| emptied && came_through)));
            }
            StoreKind::Scylla => {
                places.push(Held::expires("contexts: files of the CQL server", envelope::rfc3339(now + GRACE_MS)));
            }
        }
        for (name, folder) in self.replays()? {
            let why =
                format!("a replay has contexts of its own: remove {} when it is not needed any more", folder.display());
            places.push(Held::pending(&format!("contexts of the replay {name}"), &why));
        }
        if self.config.context.cache == Cache::Redis {
            let until = now + self.config.redis.time_to_live_seconds as i64 * 1000;
            places.push(Held::expires("contexts: Redis", envelope::rfc3339(until)));
        }
        if self.config.history.cache == Cache::Redis {
            let until = now + self.config.api.pages_fixed_ms_max as i64;
            places.push(Held::expires("pages: Redis", envelope::rfc3339(until)));
        }
        if let (Some(keys), true) = (self.registry.keys(), destroyed.is_some()) {
            match self.config.history.kind {
                StoreKind::Sqlite => {
                    let emptied = keys.settle().await.context("empty the write-ahead log of the keys")?;
                    places.push(settled("keys: file and write-ahead log", emptied));
                }
                StoreKind::Scylla => {
                    places.push(Held::expires("keys: files of the CQL server", envelope::rfc3339(now + GRACE_MS)));
                }
            }
        }
        places.extend(self.topics(now, gone_over, rejects_tell, destroyed).await?);
        let days = i64::from(self.config.privacy.backups_days);
        places.push(match days {
            0 => Held::erased("backups: none are kept"),
            days => Held::expires("backups", envelope::rfc3339(now + days * DAY_MS)),
        });
        Ok(places)
    }

    /// The topics that hold words. Where nobody goes over them, a record goes with its segment, when that is as old as the
    /// retention.
    async fn topics(
        &self,
        now: i64,
        gone_over: Option<bool>,
        rejects_tell: bool,
        destroyed: Option<i64>,
    ) -> anyhow::Result<Vec<Held>> {
        let admin = Admin::connect(&self.kafka)?;
        let known = admin.topics().await.context("ask for the topics")?;
        let has_words = |state: &&TopicState| eraser::goes_over(&state.name);
        let (mut empty, mut sealed) = (BTreeSet::new(), BTreeSet::new());
        for state in known.iter().filter(has_words) {
            let extent = admin.offsets(&state.name).await.context("ask how far topics reach")?;
            if extent.values().all(|(low, high)| low == high) {
                empty.insert(state.name.as_str());
            } else if let (Some(since), Some(Kind::Turn)) = (destroyed, topic::kind(&state.name)) {
                let begins = admin.offsets_since(&state.name, since).await.context("ask for the oldest turns")?;
                if extent.iter().all(|(partition, (low, high))| low == high || begins.get(partition) == Some(low)) {
                    sealed.insert(state.name.as_str());
                }
            }
        }
        let number = |state: &TopicState, key: &str| state.config.get(key)?.parse::<i64>().ok();
        let mut places: Vec<Held> = known
            .iter()
            .filter(has_words)
            .map(|state| {
                let place = format!("log segments of {}", state.name);
                match gone_over {
                    Some(true) if state.name != topic::REJECTS || rejects_tell => return Held::erased(&place),
                    Some(false) => {
                        return Held::pending(&place, "the broker has not gone over it yet; it goes on by itself");
                    }
                    _ if empty.contains(state.name.as_str()) => return Held::erased(&place),
                    _ => {}
                }
                let retention = number(state, "retention.ms").filter(|retention| *retention >= 0);
                let segment = number(state, "segment.ms").unwrap_or(SEGMENT_MS);
                let gone_from = |at: i64| retention.map(|retention| at.saturating_add(retention + segment));
                // What was there before there were keys is not sealed.
                let (place, from) = match destroyed.filter(|_| topic::kind(&state.name) == Some(Kind::Turn)) {
                    None => (place, now),
                    Some(_) if sealed.contains(state.name.as_str()) => return Held::key_destroyed(&place),
                    Some(since) => (format!("{place}, from before {}", envelope::rfc3339(since)), since),
                };
                match gone_from(from) {
                    Some(gone) => Held::expires(&place, envelope::rfc3339(gone)),
                    None => Held::pending(&place, "its retention has no end: give it one (retention.ms)"),
                }
            })
            .collect();
        places.sort_by(|one, other| one.place.cmp(&other.place));
        Ok(places)
    }
}

/// Of conversations whose turns were written to these places, those that were written last to each partition.
fn last_of_each_partition<'c>(conversations: &'c BTreeSet<String>, places: &[Place]) -> Vec<&'c str> {
    let mut last: BTreeMap<i32, (i64, &str)> = BTreeMap::new();
    for (conversation, place) in conversations.iter().zip(places) {
        let of = last.entry(place.partition).or_insert((place.offset, conversation));
        if place.offset >= of.0 {
            *of = (place.offset, conversation);
        }
    }
    last.into_values().map(|(_, conversation)| conversation).collect()
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64
}

async fn append(producer: &Producer, records: Vec<Record>) -> anyhow::Result<Vec<Place>> {
    let appended = producer.append_all(records).await.into_iter().collect::<Result<_, _>>();
    appended.context("write to the log; what was written is done: ask again")
}

/// The record of an erasure in the list.
fn listed(codec: &Codec, erasure: &Erasure) -> Record {
    let value = codec.encode(erasure).expect("an erasure fits its schema: it is made of texts");
    record(topic::ERASURES, erasure.id.to_string(), erasure.id, "dev.undertone.erasure.v1", erasure.at, value)
}

/// The record of the turn that says that something in front of it was forgotten.
fn mark(codec: &Codec, conversation: &str, id: Uuid, now: i64) -> Record {
    let turn =
        Turn { kind: ERASURE.to_owned(), ..Turn::message(SOURCE, conversation, SOURCE, &id.to_string(), "", now) };
    let value = codec.encode(&turn).expect("a turn without words fits its schema");
    record(topic::TURNS_RECEIVED, conversation.to_owned(), turn.id, "dev.undertone.turn.received.v1", now, value)
}

fn mark_id(conversation: &str, id: Uuid) -> Uuid {
    turn_id(SOURCE, conversation, SOURCE, &id.to_string())
}

fn record(topic: &str, key: String, id: Uuid, kind: &str, now: i64, value: Vec<u8>) -> Record {
    let envelope = Envelope {
        id: id.to_string(),
        source: "/forget".to_owned(),
        kind: kind.to_owned(),
        time: now,
        correlation_id: id.to_string(),
        trace: None,
    };
    let headers = envelope.headers().into_iter();
    Record {
        topic: topic.to_owned(),
        partition: None,
        key: Some(key.into_bytes()),
        value: Some(value),
        headers: headers.map(|(name, value)| (name.to_owned(), value.into_bytes())).collect(),
        timestamp: now,
    }
}
