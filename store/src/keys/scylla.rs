//! Keys on a CQL server.
//!
//! - `keys`: a key by its id; of one that was destroyed the row stays, without it.
//! - `keys_of`: the keys of a conversation, for whoever seals, and for erasure; `keys_of_person`: in which conversations a
//!   person has some. They are written after the key: an id that is found here has one. Two processes may make a key for the same place at once: both seal, and both are destroyed.
//!
//! What was destroyed stays in the server's files for as long as they keep what was deleted (`gc_grace_seconds`, and until
//! a compaction).

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use schemas::seal::{Held, Key};
use scylla::statement::prepared::PreparedStatement;
use uuid::Uuid;

use super::Current;
use crate::DatabaseError;
use crate::cql::Keyspace;
use crate::cql::migrate::Tables;

static TABLES: Tables = Tables {
    name: "keys",
    migrations: &[&[
        "CREATE TABLE IF NOT EXISTS {}.keys (id uuid PRIMARY KEY, secret blob)",
        "CREATE TABLE IF NOT EXISTS {}.keys_of (
            conversation text, person text, id uuid, until bigint, PRIMARY KEY (conversation, person, id)
        )",
        "CREATE TABLE IF NOT EXISTS {}.keys_of_person (person text, conversation text, PRIMARY KEY (person, conversation))",
        "CREATE TABLE IF NOT EXISTS {}.keys_since (all_keys int PRIMARY KEY, at bigint)",
    ]],
};

/// Handle on the keys; clones share its connections.
#[derive(Debug, Clone)]
pub(super) struct Scylla(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    keyspace: Keyspace,
    find: PreparedStatement,
    put: PreparedStatement,
    clear: PreparedStatement,
    of_place: PreparedStatement,
    of_conversation: PreparedStatement,
    put_place: PreparedStatement,
    put_person: PreparedStatement,
    of_person: PreparedStatement,
    erase_person: PreparedStatement,
    lapse: PreparedStatement,
    retire: PreparedStatement,
    erase_place: PreparedStatement,
    since: PreparedStatement,
}

impl Scylla {
    pub(super) async fn open(keyspace: Keyspace) -> Result<Scylla, DatabaseError> {
        keyspace.migrate(&TABLES).await?;
        let prepare = async |statement| keyspace.prepare(statement).await;
        let begin = prepare("INSERT INTO {}.keys_since (all_keys, at) VALUES (0, ?) IF NOT EXISTS").await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        keyspace.write(&begin, (now,)).await?;
        let inner = Inner {
            find: prepare("SELECT secret FROM {}.keys WHERE id = ?").await?,
            put: prepare("INSERT INTO {}.keys (id, secret) VALUES (?, ?)").await?,
            clear: prepare("UPDATE {}.keys SET secret = null WHERE id = ?").await?,
            of_place: prepare("SELECT id, until FROM {}.keys_of WHERE conversation = ? AND person = ?").await?,
            of_conversation: prepare("SELECT person, id, until FROM {}.keys_of WHERE conversation = ?").await?,
            put_place: prepare("INSERT INTO {}.keys_of (conversation, person, id) VALUES (?, ?, ?)").await?,
            put_person: prepare("INSERT INTO {}.keys_of_person (person, conversation) VALUES (?, ?)").await?,
            of_person: prepare("SELECT conversation FROM {}.keys_of_person WHERE person = ? LIMIT ?").await?,
            erase_person: prepare("DELETE FROM {}.keys_of_person WHERE person = ? AND conversation = ?").await?,
            lapse: prepare("DELETE FROM {}.keys_since WHERE all_keys = 0 IF EXISTS").await?,
            retire: prepare("UPDATE {}.keys_of SET until = ? WHERE conversation = ? AND person = ? AND id = ?").await?,
            erase_place: prepare("DELETE FROM {}.keys_of WHERE conversation = ? AND person = ? AND id = ?").await?,
            since: prepare("SELECT at FROM {}.keys_since WHERE all_keys = 0").await?,
            keyspace,
        };
        Ok(Scylla(Arc::new(inner)))
    }

    pub(super) async fn current(&self, conversation: &str, person: &str) -> Result<Vec<Current>, DatabaseError> {
        let inner = &self.0;
        let mut found = Vec::new();
        for (id, until) in inner.keyspace.read::<(Uuid, Option<i64>)>(&inner.of_place, (conversation, person)).await? {
            if let Held::Key(key) = self.find(id).await? {
                found.push(Current { key, until });
            }
        }
        Ok(found)
    }

    pub(super) async fn put(&self, conversation: &str, person: &str, key: &Key) -> Result<(), DatabaseError> {
        let inner = &self.0;
        inner.keyspace.write(&inner.put, (key.id, &key.secret[..])).await?;
        // Nobody is no key of a partition, and is not forgotten as a person either.
        if !person.is_empty() {
            inner.keyspace.write(&inner.put_person, (person, conversation)).await?;
        }
        inner.keyspace.write(&inner.put_place, (conversation, person, key.id)).await
    }

    pub(super) async fn find(&self, id: Uuid) -> Result<Held, DatabaseError> {
        let found = self.0.keyspace.read::<(Option<Vec<u8>>,)>(&self.0.find, (id,)).await?;
        let Some((secret,)) = found.into_iter().next() else { return Ok(Held::Absent) };
        let Some(secret) = secret else { return Ok(Held::Destroyed) };
        let secret = secret.try_into().map_err(|_| DatabaseError::Other(format!("key {id} has not 32 bytes")))?;
        Ok(Held::Key(Key { id, secret }))
    }

    pub(super) async fn retire(
        &self,
        conversation: &str,
        person: Option<&str>,
        until: i64,
    ) -> Result<Vec<Uuid>, DatabaseError> {
        let mut ids = Vec::new();
        for (whose, id, retired) in self.of(conversation).await? {
            if person.is_some_and(|person| person != whose) {
                continue;
            }
            if retired.is_none() {
                self.0.keyspace.write(&self.0.retire, (until, conversation, &whose, id)).await?;
            }
            ids.push(id);
        }
        Ok(ids)
    }

    pub(super) async fn destroy(&self, conversation: &str, ids: &[Uuid]) -> Result<(), DatabaseError> {
        let mut left: Vec<String> = Vec::new();
        let mut gone: Vec<String> = Vec::new();
        for (person, id, _) in self.of(conversation).await? {
            if !ids.contains(&id) {
                left.push(person);
                continue;
            }
            self.0.keyspace.write(&self.0.clear, (id,)).await?;
            self.0.keyspace.write(&self.0.erase_place, (conversation, &person, id)).await?;
            gone.push(person);
        }
        // Whoever has spoken again since has another key here.
        for person in gone.iter().filter(|person| !person.is_empty() && !left.contains(person)) {
            self.0.keyspace.write(&self.0.erase_person, (person, conversation)).await?;
        }
        Ok(())
    }

    pub(super) async fn conversations_of(&self, person: &str, limit: usize) -> Result<Vec<String>, DatabaseError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let found = self.0.keyspace.read::<(String,)>(&self.0.of_person, (person, limit)).await?;
        Ok(found.into_iter().map(|(conversation,)| conversation).collect())
    }

    pub(super) async fn lapse(&self) -> Result<(), DatabaseError> {
        self.0.keyspace.write(&self.0.lapse, ()).await
    }

    pub(super) async fn since(&self) -> Result<i64, DatabaseError> {
        let found = self.0.keyspace.read::<(i64,)>(&self.0.since, ()).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        Ok(found.first().map_or(now, |(at,)| *at))
    }

    async fn of(&self, conversation: &str) -> Result<Vec<(String, Uuid, Option<i64>)>, DatabaseError> {
        self.0.keyspace.read(&self.0.of_conversation, (conversation,)).await
    }
}
