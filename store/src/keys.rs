//! Keys of sealed turns: one for each person in each conversation, until it is destroyed.
//!
//! Promises: a key is in the store before anything is sealed by it; one that was destroyed is gone from the store, and that
//! there was one stays known, so that a store which lost keys is told from one that destroyed them. Whoever seals looks the
//! key up again after [`FRESH_FOR`], so that a key which is [retired](Keys::retire) seals nothing that intake took after the
//! time that is told then.
//!
//! Left out: what a backup of the store holds. Keep it no longer than words may live, and apart from those of the log.

mod scylla;
mod sqlite;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use schemas::seal::{Held, Key, Ring};
use uuid::Uuid;

use crate::cql::Keyspace;
use crate::{DatabaseError, Durability};

/// How long whoever seals goes by what was looked up.
pub const FRESH_FOR: Duration = Duration::from_millis(300);
/// By how much the clocks of two machines may differ.
pub const CLOCKS_DIFFER_MAX: Duration = Duration::from_millis(200);
/// Places whose key is known without looking.
const PLACES_MAX: u64 = 100_000;
/// What opens values is asked for again after this time, or twice this time.
const HELD_FOR: Duration = Duration::from_secs(30);

/// A key that seals, and until when.
#[derive(Debug, Clone)]
struct Current {
    key: Key,
    /// It seals what intake took before, in milliseconds since the Unix epoch.
    until: Option<i64>,
}

/// Keys that nothing will be sealed by any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retired {
    /// Which.
    pub ids: Vec<Uuid>,
    /// They sealed what intake took before, in milliseconds since the Unix epoch. It is a moment ahead: wait for it.
    pub until: i64,
}

/// Handle on the keys; clones share what is behind it.
#[derive(Debug, Clone)]
pub struct Keys {
    backend: Backend,
    places: Cache<(String, String), Current>,
    ring: Arc<Lately>,
}

#[derive(Debug, Clone)]
enum Backend {
    Sqlite(sqlite::Sqlite),
    Scylla(scylla::Scylla),
}

impl Keys {
    /// Opens or creates a file.
    ///
    /// # Errors
    /// The file cannot be opened, is something else, or a newer release wrote it.
    pub async fn open(path: &Path, durability: Durability) -> Result<Keys, DatabaseError> {
        Ok(Keys::on(Backend::Sqlite(sqlite::Sqlite::open(path, durability).await?)))
    }

    /// Opens the tables of a keyspace, and makes them where they are missing.
    ///
    /// # Errors
    /// A newer release changed the tables, or the server could not serve.
    pub async fn on_scylla(keyspace: Keyspace) -> Result<Keys, DatabaseError> {
        Ok(Keys::on(Backend::Scylla(scylla::Scylla::open(keyspace).await?)))
    }

    fn on(backend: Backend) -> Keys {
        let places = Cache::builder().max_capacity(PLACES_MAX).time_to_live(FRESH_FOR).build();
        Keys { backend, places, ring: Arc::default() }
    }

    /// What opens values: as far as keys were [learnt](Keys::learn).
    pub fn ring(&self) -> Arc<dyn Ring> {
        Arc::clone(&self.ring) as Arc<dyn Ring>
    }

    /// The key of a person (nothing: of whoever has no name) in a conversation, for a turn that intake took at `taken_at`,
    /// in milliseconds since the Unix epoch. It is made where there is none.
    ///
    /// # Errors
    /// The store could not serve.
    pub async fn current(&self, conversation: &str, person: &str, taken_at: i64) -> Result<Key, DatabaseError> {
        let place = (conversation.to_owned(), person.to_owned());
        let seals = |current: &Current| current.until.is_none_or(|until| taken_at < until);
        if let Some(current) = self.places.get(&place).filter(seals) {
            return Ok(current.key);
        }
        let found = match &self.backend {
            Backend::Sqlite(keys) => keys.current(conversation, person).await?,
            Backend::Scylla(keys) => keys.current(conversation, person).await?,
        };
        let current = match found.into_iter().find(seals) {
            Some(current) => current,
            None => {
                let key = Key::random();
                match &self.backend {
                    Backend::Sqlite(keys) => keys.put(conversation, person, &key).await?,
                    Backend::Scylla(keys) => keys.put(conversation, person, &key).await?,
                }
                Current { key, until: None }
            }
        };
        self.places.insert(place, current.clone());
        Ok(current.key)
    }

    /// Sees to it that what opens values has been told of these keys.
    ///
    /// # Errors
    /// The store could not serve.
    pub async fn learn(&self, ids: impl IntoIterator<Item = Uuid>) -> Result<(), DatabaseError> {
        for id in ids {
            if self.ring.find(id) != Held::Unknown {
                continue;
            }
            let held = match &self.backend {
                Backend::Sqlite(keys) => keys.find(id).await?,
                Backend::Scylla(keys) => keys.find(id).await?,
            };
            self.ring.put(id, held);
        }
        Ok(())
    }

    /// Retires the keys of a conversation, or of a person in it, that are not destroyed yet. `now` in milliseconds since the
    /// Unix epoch.
    ///
    /// # Errors
    /// The store could not serve; the same call may be made again.
    pub async fn retire(&self, conversation: &str, person: Option<&str>, now: i64) -> Result<Retired, DatabaseError> {
        let until = now + (FRESH_FOR + CLOCKS_DIFFER_MAX).as_millis() as i64;
        let ids = match &self.backend {
            Backend::Sqlite(keys) => keys.retire(conversation, person, until).await?,
            Backend::Scylla(keys) => keys.retire(conversation, person, until).await?,
        };
        Ok(Retired { ids, until })
    }

    /// Conversations in which a person has a key that is not destroyed; at most `limit`.
    ///
    /// # Errors
    /// The store could not serve.
    pub async fn conversations_of(&self, person: &str, limit: usize) -> Result<Vec<String>, DatabaseError> {
        match &self.backend {
            Backend::Sqlite(keys) => keys.conversations_of(person, limit).await,
            Backend::Scylla(keys) => keys.conversations_of(person, limit).await,
        }
    }

    /// Notes that turns are not sealed any more: should they be again, there are keys since then.
    ///
    /// # Errors
    /// The store could not serve.
    pub async fn lapse(&self) -> Result<(), DatabaseError> {
        match &self.backend {
            Backend::Sqlite(keys) => keys.lapse().await,
            Backend::Scylla(keys) => keys.lapse().await,
        }
    }

    /// Destroys keys of a conversation. What they sealed cannot be read any more, wherever it is; a process that has a key
    /// in its memory lets go of it within a minute.
    ///
    /// # Errors
    /// The store could not serve; the same call may be made again.
    pub async fn destroy(&self, conversation: &str, ids: &[Uuid]) -> Result<(), DatabaseError> {
        match &self.backend {
            Backend::Sqlite(keys) => keys.destroy(conversation, ids).await?,
            Backend::Scylla(keys) => keys.destroy(conversation, ids).await?,
        }
        ids.iter().for_each(|id| self.ring.put(*id, Held::Destroyed));
        Ok(())
    }

    /// Since when there are keys, in milliseconds since the Unix epoch: what was written before is not sealed. Now, where turns
    /// are not sealed any more.
    ///
    /// # Errors
    /// The store could not serve.
    pub async fn since(&self) -> Result<i64, DatabaseError> {
        match &self.backend {
            Backend::Sqlite(keys) => keys.since().await,
            Backend::Scylla(keys) => keys.since().await,
        }
    }

    /// Sees to it that what was destroyed is nowhere in the files, and says whether it is so by now; `None` where the files
    /// are a server's.
    ///
    /// # Errors
    /// The store could not serve.
    pub async fn settle(&self) -> Result<Option<bool>, DatabaseError> {
        match &self.backend {
            Backend::Sqlite(keys) => keys.settle().await.map(Some),
            Backend::Scylla(_) => Ok(None),
        }
    }
}

/// Keys that were learnt lately: in two halves, of which the older goes whole, so that none is older than two times
/// [`HELD_FOR`] and none goes before it was there for that time. So they are as many as were asked for within a minute.
#[derive(Debug)]
struct Lately(RwLock<Halves>);

#[derive(Debug)]
struct Halves {
    young: HashMap<Uuid, Held>,
    old: HashMap<Uuid, Held>,
    begun: Instant,
}

impl Default for Lately {
    fn default() -> Lately {
        Lately(RwLock::new(Halves { young: HashMap::new(), old: HashMap::new(), begun: Instant::now() }))
    }
}

impl Lately {
    fn put(&self, id: Uuid, held: Held) {
        let mut halves = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if halves.begun.elapsed() >= HELD_FOR {
            let empty = HashMap::new();
            halves.old = std::mem::replace(&mut halves.young, empty);
            halves.begun = Instant::now();
        }
        halves.young.insert(id, held);
    }
}

impl Ring for Lately {
    fn find(&self, id: Uuid) -> Held {
        let halves = self.0.read().unwrap_or_else(PoisonError::into_inner);
        // Where nothing new is learnt the halves stay, and are not believed for longer all the same.
        let age = halves.begun.elapsed();
        let young = halves.young.get(&id).filter(|_| age < 2 * HELD_FOR);
        young.or_else(|| halves.old.get(&id).filter(|_| age < HELD_FOR)).cloned().unwrap_or(Held::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learnt_is_believed_for_a_minute_at_most_and_half_of_that_at_least() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let lately = Lately::default();
        let age = |by: Duration| {
            let mut halves = lately.0.write().unwrap();
            halves.begun = halves.begun.checked_sub(by).unwrap();
        };
        lately.put(one, Held::Destroyed);
        age(HELD_FOR);
        assert_eq!(lately.find(one), Held::Destroyed);
        lately.put(other, Held::Absent);
        assert_eq!((lately.find(one), lately.find(other)), (Held::Destroyed, Held::Absent));
        age(HELD_FOR);
        assert_eq!((lately.find(one), lately.find(other)), (Held::Unknown, Held::Absent));
        // Nothing else is learnt.
        age(HELD_FOR);
        assert_eq!(lately.find(other), Held::Unknown);
    }
}
