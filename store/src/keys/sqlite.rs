//! Keys in a file.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension as _, Row, params};
use schemas::seal::{Held, Key};
use uuid::Uuid;

use super::Current;
use crate::sqlite::{Database, Layout};
use crate::{DatabaseError, Durability};

static LAYOUT: Layout = Layout {
    name: "keys",
    application_id: 0x756e_646b,
    migrations: &["
        CREATE TABLE keys (
            id BLOB PRIMARY KEY,
            conversation TEXT,
            person TEXT,
            secret BLOB,
            until INTEGER
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX keys_by_place ON keys (conversation, person);
        CREATE INDEX keys_by_person ON keys (person);
        CREATE TABLE since (at INTEGER NOT NULL) STRICT;"],
};

/// Threads that read beside the writer.
const READERS: usize = 1;

#[derive(Debug, Clone)]
pub(super) struct Sqlite {
    database: Database,
}

impl Sqlite {
    pub(super) async fn open(path: &Path, durability: Durability) -> Result<Sqlite, DatabaseError> {
        let database = Database::open(path, &LAYOUT, durability, READERS).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        let begin = "INSERT INTO since SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM since)";
        database.write(move |transaction| Ok::<_, DatabaseError>(transaction.execute(begin, [now]).map(drop)?)).await?;
        Ok(Sqlite { database })
    }

    pub(super) async fn current(&self, conversation: &str, person: &str) -> Result<Vec<Current>, DatabaseError> {
        let place = (conversation.to_owned(), person.to_owned());
        let found = self.database.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT id, secret, until FROM keys WHERE conversation = ?1 AND person = ?2 AND secret IS NOT NULL",
            )?;
            let current = |row: &Row<'_>| Ok(Current { key: key(row)?, until: row.get(2)? });
            let found: Result<Vec<_>, _> = statement.query_map(place, current)?.collect();
            Ok::<_, DatabaseError>(found?)
        });
        found.await
    }

    pub(super) async fn put(&self, conversation: &str, person: &str, key: &Key) -> Result<(), DatabaseError> {
        let row = (key.id.into_bytes(), conversation.to_owned(), person.to_owned(), key.secret);
        let put = "INSERT INTO keys (id, conversation, person, secret) VALUES (?1, ?2, ?3, ?4)";
        self.database.write(move |transaction| Ok(transaction.prepare_cached(put)?.execute(row).map(drop)?)).await
    }

    pub(super) async fn find(&self, id: Uuid) -> Result<Held, DatabaseError> {
        let found = self.database.read(move |transaction| {
            let mut statement = transaction.prepare_cached("SELECT secret FROM keys WHERE id = ?1")?;
            let secret = statement.query_row([id.into_bytes()], |row| row.get::<_, Option<[u8; 32]>>(0)).optional()?;
            Ok(match secret {
                Some(Some(secret)) => Held::Key(Key { id, secret }),
                Some(None) => Held::Destroyed,
                None => Held::Absent,
            })
        });
        found.await
    }

    pub(super) async fn retire(
        &self,
        conversation: &str,
        person: Option<&str>,
        until: i64,
    ) -> Result<Vec<Uuid>, DatabaseError> {
        let place = (conversation.to_owned(), person.map(str::to_owned), until);
        let retired = self.database.write(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "UPDATE keys SET until = coalesce(until, ?3)
                 WHERE conversation = ?1 AND person = coalesce(?2, person) AND secret IS NOT NULL RETURNING id",
            )?;
            let ids: Result<Vec<_>, _> = statement.query_map(place, id)?.collect();
            Ok::<_, DatabaseError>(ids?)
        });
        retired.await
    }

    pub(super) async fn conversations_of(&self, person: &str, limit: usize) -> Result<Vec<String>, DatabaseError> {
        let person = person.to_owned();
        let found = self.database.read(move |transaction| {
            let mut statement = transaction.prepare_cached(
                "SELECT DISTINCT conversation FROM keys WHERE person = ?1 AND secret IS NOT NULL LIMIT ?2",
            )?;
            let found: Result<Vec<_>, _> = statement.query_map(params![person, limit], |row| row.get(0))?.collect();
            Ok::<_, DatabaseError>(found?)
        });
        found.await
    }

    pub(super) async fn lapse(&self) -> Result<(), DatabaseError> {
        self.database
            .write(|transaction| Ok::<_, DatabaseError>(transaction.execute("DELETE FROM since", []).map(drop)?))
            .await
    }

    pub(super) async fn destroy(&self, conversation: &str, ids: &[Uuid]) -> Result<(), DatabaseError> {
        let (conversation, ids) = (conversation.to_owned(), ids.to_vec());
        let destroyed = self.database.write(move |transaction| {
            // Whose it was goes too.
            let mut statement = transaction.prepare_cached(
                "UPDATE keys SET secret = NULL, conversation = NULL, person = NULL WHERE id = ?1 AND conversation = ?2",
            )?;
            for id in ids {
                statement.execute(params![id.into_bytes(), conversation])?;
            }
            Ok(())
        });
        destroyed.await
    }

    pub(super) async fn since(&self) -> Result<i64, DatabaseError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as i64;
        let since = move |transaction: &rusqlite::Transaction<'_>| {
            Ok(transaction.query_row("SELECT coalesce(min(at), ?1) FROM since", [now], |row| row.get(0))?)
        };
        self.database.read(since).await
    }

    pub(super) async fn settle(&self) -> Result<bool, DatabaseError> {
        self.database.settle().await
    }
}

fn id(row: &Row<'_>) -> rusqlite::Result<Uuid> {
    Ok(Uuid::from_bytes(row.get(0)?))
}

fn key(row: &Row<'_>) -> rusqlite::Result<Key> {
    Ok(Key { id: id(row)?, secret: row.get(1)? })
}
