//! Migrations: each set of tables has a version, and one process at a time changes them.
//!
//! The lock is a light-weight transaction with a time to live: a process that dies in the middle leaves it for a minute
//! and a half, and the next goes on from the last version that was noted. So every statement must be one that may run
//! twice (`IF NOT EXISTS`).

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use super::{Keyspace, SCHEMA_TIMEOUT, SETTLE_LOOK, SETTLE_WITHIN, rows_of};
use crate::DatabaseError;

/// The lock is let go when its holder has not been seen for so long; longer than one statement may take.
const LOCK_TTL: Duration = Duration::from_secs(90);
/// Patience with another process that holds the lock.
const LOCK_WAIT: Duration = Duration::from_secs(180);
/// Pause between two looks at the lock.
const LOCK_LOOK: Duration = Duration::from_millis(250);

/// A set of tables and how they came about.
pub(crate) struct Tables {
    /// For errors, and the row that holds their version.
    pub(crate) name: &'static str,
    /// Statements that lead from version n to n + 1; never changed once released, only added to. `{}` is the keyspace.
    pub(crate) migrations: &'static [&'static [&'static str]],
}

impl Keyspace {
    /// Brings a set of tables to the version of this release.
    ///
    /// # Errors
    /// A newer release changed them, another process holds the lock for too long, or the server could not serve.
    pub(crate) async fn migrate(&self, tables: &Tables) -> Result<(), DatabaseError> {
        let (owner, begun) = (Uuid::new_v4(), Instant::now());
        loop {
            match self.migrate_as(tables, owner).await {
                // A node shows a table before it can serve it, and fails ("Unknown CF") whoever comes in between: those
                // who start at the same moment on an empty server.
                Err(error) if error.is_transient() && begun.elapsed() < SETTLE_WITHIN => {
                    tracing::warn!(%error, tables = tables.name, "look at the tables again");
                    tokio::time::sleep(SETTLE_LOOK).await;
                }
                done => return done,
            }
        }
    }

    async fn migrate_as(&self, tables: &Tables, owner: Uuid) -> Result<(), DatabaseError> {
        let known = tables.migrations.len() as i32;
        if self.has_versions().await? && self.version(tables).await? == known {
            return Ok(());
        }
        for create in [
            "CREATE TABLE IF NOT EXISTS {}.versions (name text PRIMARY KEY, version int)",
            "CREATE TABLE IF NOT EXISTS {}.locks (name text PRIMARY KEY, owner uuid)",
        ] {
            self.change_schema(&self.spell(create)).await?;
        }
        self.lock(tables, owner).await?;
        let done = self.migrate_alone(tables, owner).await;
        let unlock = self.prepare("DELETE FROM {}.locks WHERE name = ? IF owner = ?").await?;
        if let Err(error) = self.write(&unlock, (tables.name, owner)).await {
            tracing::warn!(%error, "the lock of a migration is let go by its time to live");
        }
        done
    }

    async fn migrate_alone(&self, tables: &Tables, owner: Uuid) -> Result<(), DatabaseError> {
        let renew =
            format!("UPDATE {{}}.locks USING TTL {} SET owner = ? WHERE name = ? IF owner = ?", LOCK_TTL.as_secs());
        let renew = self.prepare(&renew).await?;
        let note = self.prepare("INSERT INTO {}.versions (name, version) VALUES (?, ?)").await?;
        let version = self.version(tables).await?;
        let missing = tables.migrations.iter().enumerate().skip(usize::try_from(version).unwrap_or(0));
        for (before, migration) in missing {
            for statement in *migration {
                self.write(&renew, (owner, tables.name, owner)).await?;
                self.change_schema(&self.spell(statement)).await?;
            }
            self.write(&note, (tables.name, before as i32 + 1)).await?;
            tracing::info!(tables = tables.name, version = before + 1, "tables were brought to a version");
        }
        Ok(())
    }

    async fn has_versions(&self) -> Result<bool, DatabaseError> {
        let known = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = 'versions'";
        Ok(rows_of(self.0.session().query_unpaged(known, (&self.0.name,)).await?)?.rows_num() > 0)
    }

    /// The version that was reached; 0 before the first.
    async fn version(&self, tables: &Tables) -> Result<i32, DatabaseError> {
        let read = self.prepare("SELECT version FROM {}.versions WHERE name = ?").await?;
        let found = self.read::<(i32,)>(&read, (tables.name,)).await?.first().map_or(0, |row| row.0);
        let known = tables.migrations.len() as i32;
        if found > known {
            return Err(DatabaseError::NewerTables {
                keyspace: self.0.name.clone(),
                tables: tables.name,
                found,
                known,
            });
        }
        Ok(found)
    }

    async fn lock(&self, tables: &Tables, owner: Uuid) -> Result<(), DatabaseError> {
        let take = format!(
            "INSERT INTO {{}}.locks (name, owner) VALUES (?, ?) IF NOT EXISTS USING TTL {}",
            LOCK_TTL.as_secs()
        );
        let (mut take, holder) =
            (self.prepare(&take).await?, self.prepare("SELECT owner FROM {}.locks WHERE name = ?").await?);
        take.set_request_timeout(Some(SCHEMA_TIMEOUT));
        let begun = Instant::now();
        loop {
            self.write(&take, (tables.name, owner)).await?;
            // Whether it was taken is asked: the answers of the two servers to the taking differ.
            let found = self.read::<(Uuid,)>(&holder, (tables.name,)).await?;
            if found.first().is_some_and(|row| row.0 == owner) {
                return Ok(());
            }
            if begun.elapsed() > LOCK_WAIT {
                return Err(DatabaseError::Busy(format!("another process migrates the {} tables", tables.name)));
            }
            tokio::time::sleep(LOCK_LOOK).await;
        }
    }
}
