//! History on a CQL server.
//!
//! - `turns`: a partition holds at most [`BUCKET_TURNS`] positions of a conversation, so that a conversation of a million
//!   turns is read like one of ten.
//! - `heads`: for each conversation its last position and the time of its last activity. Each cell is written with its own
//!   value as its write time: the highest stays, in whatever order they come, without reading before writing and without
//!   a tombstone. It is written after the turns, and readers stop at it: what they see is dense.
//! - `activity`: for each minute, in [`SHARDS`] partitions, the conversations that had a turn, one row each. The list of
//!   conversations reads it backwards and passes over those that were active again later. `minutes` and `days` say which
//!   minutes had turns at all, so that silence costs nothing.
//! - `memories`: in partitions as the turns are. A writer that passes a thousandth turn lets go of those that are too many, so
//!   that there are never more than a thousand above the bound, and readers pass over these.
//! - `erasures`: when something of a conversation was erased last.
//! - `people`: the conversations that a person spoke in, for erasure.
//! - `reached`: how far each partition of the topic is kept. It is written last: after a crash in between the same turns
//!   are read again, which changes nothing.
//!
//! With a retention, rows carry a time to live and go a whole file at a time (time-window compaction); without, they are
//! kept for ever. Heads stay: a number each.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::{Conversation, Cursor, HistoryError, Kept, Mark, Memory, PAGE_MAX, Page, Row};
use crate::DatabaseError;
use crate::cql::migrate::Tables;
use crate::cql::{Keyspace, Together, all, micros};

/// Positions in a partition of turns; with enriched turns of 900 bytes (two stages, short texts) it has 900 kB.
const BUCKET_TURNS: i64 = 1000;
/// Partitions of a minute's activity, so that no node takes all of what happens now.
const SHARDS: i32 = 16;
/// Reads of one page that are under way at a time.
const READS_MAX: usize = 32;
/// Minutes that are known to be listed.
const MINUTES_KNOWN_MAX: usize = 4096;
const MINUTE_MS: i64 = 60_000;
const MINUTES_A_DAY: i64 = 24 * 60;
/// A server refuses write times from the future (ScyllaDB: from three days on): a later time is written as this one.
const AHEAD_MAX_MICROS: i64 = 24 * 3600 * 1_000_000;

static TABLES: Tables = Tables {
    name: "history",
    migrations: &[
        &[
            "CREATE TABLE IF NOT EXISTS {}.turns (
            conversation text, bucket bigint, position bigint, id uuid, at bigint, person text, value blob,
            PRIMARY KEY ((conversation, bucket), position)
        )",
            "CREATE TABLE IF NOT EXISTS {}.heads (conversation text PRIMARY KEY, last_position bigint, last_at bigint)",
            "CREATE TABLE IF NOT EXISTS {}.activity (
            minute bigint, shard int, conversation text, at bigint, PRIMARY KEY ((minute, shard), conversation)
        )",
            "CREATE TABLE IF NOT EXISTS {}.minutes (day bigint, minute bigint, PRIMARY KEY (day, minute))
            WITH CLUSTERING ORDER BY (minute DESC)",
            "CREATE TABLE IF NOT EXISTS {}.days (all_days int, day bigint, PRIMARY KEY (all_days, day))
            WITH CLUSTERING ORDER BY (day DESC)",
            "CREATE TABLE IF NOT EXISTS {}.people (person text, conversation text, PRIMARY KEY (person, conversation))",
            "CREATE TABLE IF NOT EXISTS {}.reached (topic text, partition int, next bigint, PRIMARY KEY (topic, partition))",
        ],
        &[
            "CREATE TABLE IF NOT EXISTS {}.memories (
            conversation text, bucket bigint, position bigint, person text, room int, salience float, value blob,
            PRIMARY KEY ((conversation, bucket), position)
        )",
            "CREATE TABLE IF NOT EXISTS {}.erasures (conversation text PRIMARY KEY, at bigint)",
        ],
    ],
};
/// Those whose rows go with the retention.
const AGING: [&str; 6] = ["turns", "activity", "minutes", "days", "people", "memories"];

/// Handle on the history; clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Scylla(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keyspace: Keyspace,
    statements: Statements,
    listed: Mutex<BTreeSet<i64>>,
}

#[derive(Debug)]
struct Statements {
    put_turn: PreparedStatement,
    put_head: Together,
    put_activity: PreparedStatement,
    put_minute: PreparedStatement,
    put_day: PreparedStatement,
    put_person: PreparedStatement,
    put_reached: PreparedStatement,
    reached: PreparedStatement,
    head: PreparedStatement,
    before: PreparedStatement,
    after: PreparedStatement,
    is_there: PreparedStatement,
    activity: PreparedStatement,
    minutes: PreparedStatement,
    days: PreparedStatement,
    said: PreparedStatement,
    conversations_of: PreparedStatement,
    some_conversations_of: PreparedStatement,
    erase_bucket: PreparedStatement,
    erase_turn: PreparedStatement,
    erase_position: PreparedStatement,
    erase_last_at: PreparedStatement,
    erase_activity: PreparedStatement,
    erase_person: PreparedStatement,
    erase_person_here: PreparedStatement,
    put_memory: PreparedStatement,
    memories: PreparedStatement,
    saliences: PreparedStatement,
    erase_memory: PreparedStatement,
    erase_memories: PreparedStatement,
    put_erasure: PreparedStatement,
    erasure: PreparedStatement,
}

impl Scylla {
    /// Opens the tables, and makes them where they are missing. Turns are kept for `retention_days`; for ever without.
    ///
    /// # Errors
    /// A newer release changed the tables, or the server could not serve.
    pub(super) async fn open(keyspace: Keyspace, retention_days: Option<NonZeroU32>) -> Result<Scylla, HistoryError> {
        keyspace.migrate(&TABLES).await?;
        for table in AGING {
            keyspace.retain(table, retention_days).await?;
        }
        let prepare = async |statement| keyspace.prepare(statement).await;
        let statements = Statements {
            put_turn: prepare(
                "INSERT INTO {}.turns (conversation, bucket, position, id, at, person, value)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .await?,
            put_head: keyspace
                .prepare_together(&[
                    "UPDATE {}.heads USING TIMESTAMP ? SET last_at = ? WHERE conversation = ?",
                    "UPDATE {}.heads USING TIMESTAMP ? SET last_position = ? WHERE conversation = ?",
                ])
                .await?,
            put_activity: prepare(
                "UPDATE {}.activity USING TIMESTAMP ? SET at = ? WHERE minute = ? AND shard = ? AND conversation = ?",
            )
            .await?,
            put_minute: prepare("INSERT INTO {}.minutes (day, minute) VALUES (?, ?)").await?,
            put_day: prepare("INSERT INTO {}.days (all_days, day) VALUES (0, ?)").await?,
            put_person: prepare("INSERT INTO {}.people (person, conversation) VALUES (?, ?)").await?,
            put_reached: prepare("INSERT INTO {}.reached (topic, partition, next) VALUES (?, ?, ?)").await?,
            reached: prepare("SELECT partition, next FROM {}.reached WHERE topic = ?").await?,
            head: prepare("SELECT last_position, last_at FROM {}.heads WHERE conversation = ?").await?,
            before: prepare(
                "SELECT position, id, at, person, value FROM {}.turns WHERE conversation = ? AND bucket = ? AND position <= ?
                 ORDER BY position DESC LIMIT ?",
            )
            .await?,
            after: prepare(
                "SELECT position, id, at, person, value FROM {}.turns WHERE conversation = ? AND bucket = ? AND position > ?
                 AND position <= ? LIMIT ?",
            )
            .await?,
            is_there: prepare("SELECT position FROM {}.turns WHERE conversation = ? AND bucket = ? LIMIT 1").await?,
            activity: prepare("SELECT conversation, at FROM {}.activity WHERE minute = ? AND shard = ?").await?,
            minutes: prepare("SELECT minute FROM {}.minutes WHERE day = ? AND minute <= ?").await?,
            days: prepare("SELECT day FROM {}.days WHERE all_days = 0 AND day <= ?").await?,
            said: prepare("SELECT position, at, person FROM {}.turns WHERE conversation = ? AND bucket = ?").await?,
            conversations_of: prepare("SELECT conversation FROM {}.people WHERE person = ?").await?,
            some_conversations_of: prepare("SELECT conversation FROM {}.people WHERE person = ? LIMIT ?").await?,
            erase_bucket: prepare("DELETE FROM {}.turns WHERE conversation = ? AND bucket = ?").await?,
            erase_turn: prepare("DELETE FROM {}.turns WHERE conversation = ? AND bucket = ? AND position = ?").await?,
            erase_position: prepare("DELETE last_position FROM {}.heads USING TIMESTAMP ? WHERE conversation = ?").await?,
            erase_last_at: prepare("DELETE last_at FROM {}.heads USING TIMESTAMP ? WHERE conversation = ?").await?,
            erase_activity: prepare(
                "DELETE at FROM {}.activity USING TIMESTAMP ? WHERE minute = ? AND shard = ? AND conversation = ?",
            )
            .await?,
            erase_person: prepare("DELETE FROM {}.people WHERE person = ?").await?,
            erase_person_here: prepare("DELETE FROM {}.people WHERE person = ? AND conversation = ?").await?,
            put_memory: prepare(
                "INSERT INTO {}.memories (conversation, bucket, position, person, room, salience, value)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .await?,
            memories: prepare(
                "SELECT position, person, room, salience, value FROM {}.memories WHERE conversation = ? AND bucket = ?",
            )
            .await?,
            saliences: prepare("SELECT position, salience FROM {}.memories WHERE conversation = ? AND bucket = ?").await?,
            erase_memory: prepare("DELETE FROM {}.memories WHERE conversation = ? AND bucket = ? AND position = ?").await?,
            erase_memories: prepare("DELETE FROM {}.memories WHERE conversation = ? AND bucket = ?").await?,
            put_erasure: prepare("INSERT INTO {}.erasures (conversation, at) VALUES (?, ?)").await?,
            erasure: prepare("SELECT at FROM {}.erasures WHERE conversation = ?").await?,
        };
        Ok(Scylla(Arc::new(Inner { keyspace, statements, listed: Mutex::default() })))
    }

    /// See [`super::History::upsert`].
    pub(super) async fn keep(&self, kept: &Kept, memories_max: usize) -> Result<(), HistoryError> {
        let Kept { rows, memories, topic, reached } = kept;
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let put_turn = |row: &Row| {
            let Row { conversation, position, id, at, person, value } = row.clone();
            let values = (conversation, bucket(position), position, id, at, person, value);
            keyspace.write(&statements.put_turn, values)
        };
        all(rows.iter().map(put_turn).collect()).await?;
        let put_memory = |memory: &Memory| {
            let Memory { conversation, position, person, room, salience, value } = memory.clone();
            let values = (conversation, bucket(position), position, person, room, salience, value);
            keyspace.write(&statements.put_memory, values)
        };
        all(memories.iter().map(put_memory).collect()).await?;
        let max = i64::try_from(memories_max).unwrap_or(i64::MAX);
        for row in rows.iter().filter(|row| row.position % BUCKET_TURNS == 0 && row.position > max) {
            self.fade(&row.conversation, row.position, memories_max).await?;
        }

        let summary = Summary::of(rows);
        self.list(&summary).await?;
        let now = micros();
        let put_activity = |((minute, conversation), at): (&(i64, &str), &i64)| {
            let values = (write_time(*at, now), *at, *minute, shard(conversation), (*conversation).to_owned());
            keyspace.write(&statements.put_activity, values)
        };
        all(summary.activity.iter().map(put_activity).collect()).await?;
        let put_person = |(person, conversation): &(&str, &str)| {
            keyspace.write(&statements.put_person, ((*person).to_owned(), (*conversation).to_owned()))
        };
        all(summary.people.iter().map(put_person).collect()).await?;
        // From here on the turns are seen.
        let put_head = |(conversation, head): (&&str, &Head)| {
            let Head { last_position, last_at } = *head;
            let conversation = (*conversation).to_owned();
            let last_at = (write_time(last_at, now), last_at, conversation.clone());
            keyspace.write_together(&statements.put_head, (last_at, (last_position, last_position, conversation)))
        };
        all(summary.heads.iter().map(put_head).collect()).await?;
        let put_reached =
            |(partition, next): (&i32, &i64)| keyspace.write(&statements.put_reached, (*topic, *partition, *next));
        all(reached.iter().map(put_reached).collect()).await?;
        Ok(())
    }

    /// Lists the minutes, unless this process has done so before.
    async fn list(&self, summary: &Summary<'_>) -> Result<(), HistoryError> {
        let new: BTreeSet<i64> = {
            let listed = self.0.listed.lock().unwrap_or_else(PoisonError::into_inner);
            summary.activity.keys().map(|(minute, _)| *minute).filter(|minute| !listed.contains(minute)).collect()
        };
        for minute in &new {
            let day = minute.div_euclid(MINUTES_A_DAY);
            self.0.keyspace.write(&self.0.statements.put_day, (day,)).await?;
            self.0.keyspace.write(&self.0.statements.put_minute, (day, *minute)).await?;
        }
        let mut listed = self.0.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.len() + new.len() > MINUTES_KNOWN_MAX {
            listed.clear();
        }
        listed.extend(new);
        Ok(())
    }

    /// See [`super::History::reached`].
    pub(super) async fn reached(&self, topic: &str) -> Result<BTreeMap<i32, i64>, HistoryError> {
        let rows = self.0.keyspace.read::<(i32, i64)>(&self.0.statements.reached, (topic,)).await?;
        Ok(rows.into_iter().collect())
    }

    /// See [`super::History::turns`].
    pub(super) async fn turns(&self, conversation: &str, page: Page, limit: usize) -> Result<Vec<Row>, HistoryError> {
        let Some(last) = self.last_position(conversation).await? else { return Ok(Vec::new()) };
        let limit = limit.min(PAGE_MAX);
        let mut rows = Vec::new();
        match page {
            Page::Before(below) => {
                let mut at = below.map_or(last, |below| last.min(below.saturating_sub(1)));
                while at > 0 && rows.len() < limit {
                    let found = self.before(conversation, at, limit - rows.len()).await?;
                    at = bucket(at) * BUCKET_TURNS;
                    if found.is_empty() {
                        let Some(filled) = self.first_filled(conversation, (0..=bucket(at)).rev()).await? else {
                            break;
                        };
                        at = (filled + 1) * BUCKET_TURNS;
                    }
                    rows.extend(found);
                }
            }
            Page::After(above) => {
                let mut above = above.max(0);
                while above < last && rows.len() < limit {
                    let found = self.after(conversation, above, last, limit - rows.len()).await?;
                    above = (bucket(above + 1) + 1) * BUCKET_TURNS;
                    if found.is_empty() {
                        let rest = bucket(above + 1)..=bucket(last);
                        let Some(filled) = self.first_filled(conversation, rest).await? else { break };
                        above = filled * BUCKET_TURNS;
                    }
                    rows.extend(found);
                }
            }
        }
        Ok(rows)
    }

    /// Turns of the bucket of `at`, from there downwards.
    async fn before(&self, conversation: &str, at: i64, limit: usize) -> Result<Vec<Row>, HistoryError> {
        let values = (conversation, bucket(at), at, limit as i32);
        let rows = self.0.keyspace.read(&self.0.statements.before, values).await?;
        Ok(rows.into_iter().map(|turn| row(conversation, turn)).collect())
    }

    /// Turns of the bucket behind `above`, from there up to `last`.
    async fn after(&self, conversation: &str, above: i64, last: i64, limit: usize) -> Result<Vec<Row>, HistoryError> {
        let values = (conversation, bucket(above + 1), above, last, limit as i32);
        let rows = self.0.keyspace.read(&self.0.statements.after, values).await?;
        Ok(rows.into_iter().map(|turn| row(conversation, turn)).collect())
    }

    /// The first of some buckets that holds a turn: others went with the retention, or were erased.
    async fn first_filled(
        &self,
        conversation: &str,
        buckets: impl Iterator<Item = i64>,
    ) -> Result<Option<i64>, HistoryError> {
        let buckets: Vec<i64> = buckets.collect();
        for some in buckets.chunks(READS_MAX) {
            let look = |bucket: &i64| {
                self.0.keyspace.read::<(i64,)>(&self.0.statements.is_there, (conversation.to_owned(), *bucket))
            };
            let looks: Vec<_> = some.iter().map(look).collect();
            let found: Vec<_> = stream::iter(looks).buffered(READS_MAX).try_collect().await?;
            if let Some(filled) = found.iter().position(|turns| !turns.is_empty()) {
                return Ok(Some(some[filled]));
            }
        }
        Ok(None)
    }

    /// See [`super::History::conversations`].
    pub(super) async fn conversations(
        &self,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Vec<Conversation>, HistoryError> {
        let limit = limit.min(PAGE_MAX);
        let from = after.as_ref().map_or(i64::MAX, |cursor| cursor.last_at).div_euclid(MINUTE_MS);
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let mut page: Vec<Conversation> = Vec::new();
        for (day,) in keyspace.read::<(i64,)>(&statements.days, (from.div_euclid(MINUTES_A_DAY),)).await? {
            for (minute,) in keyspace.read::<(i64,)>(&statements.minutes, (day, from)).await? {
                let mut found = self.minute(minute).await?;
                found.retain(|(conversation, at)| {
                    after.as_ref().is_none_or(|cursor| (*at, conversation) < (cursor.last_at, &cursor.conversation))
                });
                found.sort_by(|(one, one_at), (other, other_at)| (other_at, other).cmp(&(one_at, one)));
                for part in found.chunks(READS_MAX) {
                    page.extend(self.still_last(part).await?);
                    if page.len() >= limit {
                        page.truncate(limit);
                        return Ok(page);
                    }
                }
            }
        }
        Ok(page)
    }

    /// The conversations that had a turn in a minute, with the last in it.
    async fn minute(&self, minute: i64) -> Result<Vec<(String, i64)>, HistoryError> {
        let read = |shard| self.0.keyspace.read::<(String, i64)>(&self.0.statements.activity, (minute, shard));
        let reads: Vec<_> = (0..SHARDS).map(read).collect();
        let shards: Vec<_> = stream::iter(reads).buffered(READS_MAX).try_collect().await?;
        Ok(shards.into_iter().flatten().collect())
    }

    /// Those that were not active again later.
    async fn still_last(&self, found: &[(String, i64)]) -> Result<Vec<Conversation>, HistoryError> {
        let look = |(conversation, at): &(String, i64)| {
            let (conversation, at) = (conversation.clone(), *at);
            async move {
                let (last_position, last_at) = self.head(&conversation).await?;
                let last_position = last_position.filter(|_| last_at == Some(at));
                Ok::<_, HistoryError>(last_position.map(|last_position| Conversation {
                    conversation,
                    last_at: at,
                    last_position,
                }))
            }
        };
        let looks: Vec<_> = found.iter().map(look).collect();
        let known: Vec<_> = stream::iter(looks).buffered(READS_MAX).try_collect().await?;
        Ok(known.into_iter().flatten().collect())
    }

    /// See [`super::History::last_position`].
    pub(super) async fn last_position(&self, conversation: &str) -> Result<Option<i64>, HistoryError> {
        Ok(self.head(conversation).await?.0)
    }

    /// The last position, and the time of the last activity.
    async fn head(&self, conversation: &str) -> Result<(Option<i64>, Option<i64>), HistoryError> {
        let rows = self.0.keyspace.read(&self.0.statements.head, (conversation,)).await?;
        Ok(rows.into_iter().next().unwrap_or_default())
    }

    /// See [`super::History::erase_conversation`]. The head is removed as it stands: a turn that comes meanwhile, or later,
    /// writes it anew.
    pub(super) async fn erase_conversation(&self, conversation: &str) -> Result<u64, HistoryError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let (Some(last), last_at) = self.head(conversation).await? else { return Ok(0) };
        keyspace.write(&statements.erase_position, (last, conversation)).await?;
        let now = micros();
        if let Some(last_at) = last_at {
            keyspace.write(&statements.erase_last_at, (write_time(last_at, now), conversation)).await?;
        }
        let (mut erased, mut minutes, mut people) = (0, BTreeMap::new(), HashSet::new());
        // What a batch in work has written of the next bucket goes too.
        for bucket in 0..=bucket(last) + 1 {
            let said = self.said(conversation, bucket).await?;
            if said.is_empty() {
                continue;
            }
            for (_, at, person) in said {
                let last = minutes.entry(at.div_euclid(MINUTE_MS)).or_insert(at);
                *last = at.max(*last);
                people.extend(person);
                erased += 1;
            }
            keyspace.write(&statements.erase_memories, (conversation, bucket)).await?;
            keyspace.write(&statements.erase_bucket, (conversation, bucket)).await?;
        }
        let erase_activity = |(minute, at): (i64, i64)| {
            let values = (write_time(at, now), minute, shard(conversation), conversation.to_owned());
            keyspace.write(&statements.erase_activity, values)
        };
        all(minutes.into_iter().map(erase_activity).collect()).await?;
        let erase_here =
            |person: String| keyspace.write(&statements.erase_person_here, (person, conversation.to_owned()));
        all(people.into_iter().map(erase_here).collect()).await?;
        self.note_erasure(conversation).await?;
        Ok(erased)
    }

    /// See [`super::History::erase_person`].
    pub(super) async fn erase_person(&self, person: &str) -> Result<u64, HistoryError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let mut erased = 0;
        for (conversation,) in keyspace.read::<(String,)>(&statements.conversations_of, (person,)).await? {
            let Some(last) = self.last_position(&conversation).await? else { continue };
            for bucket in 0..=bucket(last) + 1 {
                let mut said = self.said(&conversation, bucket).await?;
                said.retain(|(_, _, speaker)| speaker.as_deref() == Some(person));
                erased += said.len() as u64;
                self.erase_positions(&conversation, said.iter().map(|(position, ..)| *position)).await?;
            }
            self.note_erasure(&conversation).await?;
        }
        keyspace.write(&statements.erase_person, (person,)).await?;
        Ok(erased)
    }

    /// Removes the turns at some positions, and the memories of them first.
    async fn erase_positions(
        &self,
        conversation: &str,
        positions: impl Iterator<Item = i64> + Clone,
    ) -> Result<(), HistoryError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let erase_memory = |position: i64| {
            keyspace.write(&statements.erase_memory, (conversation.to_owned(), bucket(position), position))
        };
        all(positions.clone().map(erase_memory).collect()).await?;
        let erase_turn = |position: i64| {
            keyspace.write(&statements.erase_turn, (conversation.to_owned(), bucket(position), position))
        };
        all(positions.map(erase_turn).collect()).await?;
        Ok(())
    }

    /// See [`super::History::erase_turns`].
    pub(super) async fn erase_turns(&self, conversation: &str, positions: Vec<i64>) -> Result<u64, HistoryError> {
        let (wanted, mut erased) = (positions.iter().copied().collect::<BTreeSet<i64>>(), 0);
        for bucket in positions.iter().map(|position| bucket(*position)).collect::<BTreeSet<i64>>() {
            let said = self.said(conversation, bucket).await?;
            erased += said.iter().filter(|(position, ..)| wanted.contains(position)).count() as u64;
        }
        self.erase_positions(conversation, wanted.iter().copied()).await?;
        self.note_erasure(conversation).await?;
        Ok(erased)
    }

    async fn note_erasure(&self, conversation: &str) -> Result<(), HistoryError> {
        Ok(self.0.keyspace.write(&self.0.statements.put_erasure, (conversation, micros())).await?)
    }

    /// See [`super::History::mark`].
    pub(super) async fn mark(&self, conversation: &str) -> Result<Option<Mark>, HistoryError> {
        let erased = async {
            let found = self.0.keyspace.read::<(i64,)>(&self.0.statements.erasure, (conversation,)).await?;
            Ok::<_, HistoryError>(found.first().map_or(0, |(at,)| *at))
        };
        let (last, erasures) = tokio::try_join!(Box::pin(self.last_position(conversation)), Box::pin(erased))?;
        Ok(last.map(|last_position| Mark { last_position, erasures }))
    }

    /// See [`super::History::conversations_of`].
    pub(super) async fn conversations_of(&self, person: &str, limit: usize) -> Result<Vec<String>, HistoryError> {
        let statement = &self.0.statements.some_conversations_of;
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let found = self.0.keyspace.read::<(String,)>(statement, (person, limit)).await?;
        Ok(found.into_iter().map(|(conversation,)| conversation).collect())
    }

    /// See [`super::History::memories`].
    pub(super) async fn memories(&self, conversation: &str, memories_max: usize) -> Result<Vec<Memory>, HistoryError> {
        type Found = (i64, Option<String>, i32, f32, Vec<u8>);
        let Some(last) = self.last_position(conversation).await? else { return Ok(Vec::new()) };
        let read =
            |bucket: i64| self.0.keyspace.read::<Found>(&self.0.statements.memories, (conversation.to_owned(), bucket));
        let mut reads = stream::iter((0..=bucket(last)).map(read)).buffered(READS_MAX);
        let mut memories: Vec<Memory> = Vec::new();
        while let Some(found) = reads.next().await {
            let memory = |(position, person, room, salience, value)| Memory {
                conversation: conversation.to_owned(),
                position,
                person,
                room,
                salience,
                value,
            };
            memories.extend(found?.into_iter().map(memory).filter(|memory| memory.position <= last));
        }
        if memories.len() > memories_max {
            memories.sort_unstable_by(|one, other| other.fades_before(one));
            memories.truncate(memories_max);
        }
        memories.sort_unstable_by_key(|memory| memory.position);
        Ok(memories)
    }

    /// Lets go of the memories up to a position that are too many.
    async fn fade(&self, conversation: &str, last: i64, memories_max: usize) -> Result<(), HistoryError> {
        let (keyspace, statements) = (&self.0.keyspace, &self.0.statements);
        let read = |bucket: i64| keyspace.read::<(i64, f32)>(&statements.saliences, (conversation.to_owned(), bucket));
        let mut reads = stream::iter((0..=bucket(last)).map(read)).buffered(READS_MAX);
        let mut known: Vec<(i64, f32)> = Vec::new();
        while let Some(found) = reads.next().await {
            known.extend(found?);
        }
        let beyond = known.len().saturating_sub(memories_max);
        known.sort_unstable_by(|(at, one), (other_at, other)| one.total_cmp(other).then(at.cmp(other_at)));
        let erase = |(position, _): &(i64, f32)| {
            keyspace.write(&statements.erase_memory, (conversation.to_owned(), bucket(*position), *position))
        };
        all(known[..beyond].iter().map(erase).collect()).await?;
        Ok(())
    }

    /// Position, time and speaker of the turns of a bucket.
    async fn said(&self, conversation: &str, bucket: i64) -> Result<Vec<(i64, i64, Option<String>)>, HistoryError> {
        Ok(self.0.keyspace.read(&self.0.statements.said, (conversation, bucket)).await?)
    }
}

impl Keyspace {
    /// Gives the rows of a table so long to live, and the compaction that fits.
    async fn retain(&self, table: &str, days: Option<NonZeroU32>) -> Result<(), DatabaseError> {
        let seconds = days.map_or(0, |days| i64::from(days.get()) * 24 * 3600);
        if self.time_to_live(table).await? == Some(seconds) {
            return Ok(());
        }
        // About thirty windows, as both servers advise.
        let window = days.map_or(1, |days| (days.get() / 30).max(1));
        let compaction = match days {
            Some(_) => format!(
                "{{'class': 'TimeWindowCompactionStrategy', 'compaction_window_unit': 'DAYS', 'compaction_window_size': {window}}}"
            ),
            None if self.is_scylla() => "{'class': 'IncrementalCompactionStrategy'}".to_owned(),
            None => "{'class': 'SizeTieredCompactionStrategy'}".to_owned(),
        };
        let alter =
            format!("ALTER TABLE {{}}.{table} WITH default_time_to_live = {seconds} AND compaction = {compaction}");
        self.change_schema(&self.spell(&alter)).await
    }

    /// Seconds that rows of a table live by default.
    async fn time_to_live(&self, table: &str) -> Result<Option<i64>, DatabaseError> {
        let known =
            "SELECT default_time_to_live FROM system_schema.tables WHERE keyspace_name = '{}' AND table_name = ?";
        let found = self.read::<(i32,)>(&self.prepare(known).await?, (table,)).await?;
        Ok(found.first().map(|row| i64::from(row.0)))
    }
}

/// What a batch says of conversations.
struct Summary<'a> {
    heads: HashMap<&'a str, Head>,
    /// By minute and conversation, the last turn in it.
    activity: BTreeMap<(i64, &'a str), i64>,
    /// Who spoke in which conversation.
    people: HashSet<(&'a str, &'a str)>,
}

struct Head {
    last_position: i64,
    last_at: i64,
}

impl Summary<'_> {
    fn of(rows: &[Row]) -> Summary<'_> {
        let mut summary = Summary { heads: HashMap::new(), activity: BTreeMap::new(), people: HashSet::new() };
        for row in rows {
            let conversation = row.conversation.as_str();
            let head = Head { last_position: row.position, last_at: row.at };
            let head = summary.heads.entry(conversation).or_insert(head);
            head.last_position = head.last_position.max(row.position);
            head.last_at = head.last_at.max(row.at);
            let last = summary.activity.entry((row.at.div_euclid(MINUTE_MS), conversation)).or_insert(row.at);
            *last = row.at.max(*last);
            summary.people.extend(row.person.as_deref().map(|person| (person, conversation)));
        }
        summary
    }
}

fn row(conversation: &str, (position, id, at, person, value): (i64, Uuid, i64, Option<String>, Vec<u8>)) -> Row {
    Row { conversation: conversation.to_owned(), position, id, at, person, value }
}

/// The partition of a position; they begin at 1.
fn bucket(position: i64) -> i64 {
    (position - 1).div_euclid(BUCKET_TURNS)
}

/// Where the activity of a conversation stands within its minute.
fn shard(conversation: &str) -> i32 {
    let id = Uuid::new_v5(&Uuid::nil(), conversation.as_bytes());
    i32::from(id.as_bytes()[0]) % SHARDS
}

/// The write time of a cell that holds a time in milliseconds: the latest stays.
fn write_time(at: i64, now_micros: i64) -> i64 {
    at.saturating_mul(1000).clamp(-AHEAD_MAX_MICROS, now_micros.saturating_add(AHEAD_MAX_MICROS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_a_thousand_positions() {
        assert_eq!([1, 1000, 1001, 2000, 2001].map(bucket), [0, 0, 1, 1, 2]);
    }

    #[test]
    fn the_later_time_has_the_later_write_time() {
        let now = 1_800_000_000_000_000;
        assert_eq!(write_time(1_700_000_000_000, now), 1_700_000_000_000_000);
        assert!(write_time(5, now) < write_time(10, now));
        assert_eq!(write_time(i64::MAX, now), now + AHEAD_MAX_MICROS);
        assert_eq!(write_time(i64::MIN, now), -AHEAD_MAX_MICROS);
    }

    #[test]
    fn conversations_spread_over_the_shards() {
        let mut shards: Vec<i32> = (0..1000).map(|n| shard(&format!("telegram:bot:{n}"))).collect();
        shards.sort_unstable();
        shards.dedup();
        assert_eq!(shards, (0..SHARDS).collect::<Vec<_>>());
    }
}
