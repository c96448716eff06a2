//! Who holds a connection, and since when it has asked for nothing: when all are taken, the one that has been silent the
//! longest makes room, so that clients that only hold connections keep nobody out.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::Id;

use crate::clock::now_ms;

/// In place of a time: a request is being served.
const SERVING: i64 = i64::MAX;

/// One connection's place.
#[derive(Debug)]
pub(super) struct Place {
    /// Milliseconds since the epoch, or [`SERVING`].
    silent_since: AtomicI64,
    leave: Notify,
}

impl Place {
    pub(super) fn new() -> Arc<Place> {
        Arc::new(Place { silent_since: AtomicI64::new(now_ms()), leave: Notify::new() })
    }

    /// A request is being served.
    pub(super) fn serving(&self) {
        self.silent_since.store(SERVING, Ordering::Relaxed);
    }

    /// Waits for a request from now on.
    pub(super) fn silent(&self) {
        self.silent_since.store(now_ms(), Ordering::Relaxed);
    }

    /// Waits until it has to make room.
    pub(super) async fn left(&self) {
        self.leave.notified().await;
    }
}

/// All of them, by the task that serves each.
#[derive(Debug, Default)]
pub(super) struct Places(HashMap<Id, Arc<Place>>);

impl Places {
    pub(super) fn take(&mut self, task: Id, place: Arc<Place>) {
        self.0.insert(task, place);
    }

    pub(super) fn free(&mut self, task: Id) {
        self.0.remove(&task);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Tells the one that has been silent the longest, and for at least this long, to leave; whether there was one.
    pub(super) fn make_room(&mut self, silent_for: Duration) -> bool {
        let longest = self.0.iter().map(|(task, place)| (place.silent_since.load(Ordering::Relaxed), *task));
        let Some((since, task)) = longest.min_by_key(|(since, _)| *since) else { return false };
        let silent_ms = i64::try_from(silent_for.as_millis()).unwrap_or(i64::MAX);
        if since == SERVING || now_ms() - since < silent_ms {
            return false;
        }
        if let Some(place) = self.0.remove(&task) {
            place.leave.notify_one();
        }
        true
    }
}
