//! The hub: one reader of the enriched turns a process, and everybody who listens to it.
//!
//! Promises: a subscriber gets every turn of what it follows from the moment it follows, in order, through a bounded
//! queue; together with the snapshot that following returns nothing is missing and nothing doubled in between. Whoever
//! reads more slowly than turns come is cut off and told so; it never holds up the others. The ring of recent turns is
//! bounded by count and bytes.
//!
//! Left out: what is older than the ring (`recover` joins it from history or the log), and what clients see (`session`).

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::{Codec, Turn};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::onward::Onward;
use crate::view::{self, Embeddings};

/// A turn as the hub holds it.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) conversation: Arc<str>,
    pub(crate) position: i64,
    /// When it was said, in milliseconds since the Unix epoch.
    pub(crate) at: i64,
    /// When the hub took it from the log.
    pub(crate) taken_at: Instant,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// The turn as JSON, without its embedding; `None` of one that nobody followed when it came, as most are.
    pub(crate) json: Option<String>,
    /// The turn in the wire format, for the few who ask for its embedding.
    pub(crate) value: Vec<u8>,
    /// The correlation id and the trace that came with the record.
    pub(crate) correlation_id: Option<String>,
    pub(crate) traceparent: Option<String>,
    /// Only of a turn whose trace is sampled, as the hub takes it up.
    pub(crate) onward: Option<Arc<Onward>>,
}

impl Live {
    /// The turn with its JSON; `None`, with a word in the log, if it cannot be read.
    pub(crate) fn shown(self: &Arc<Live>, codec: &Codec) -> Option<Arc<Live>> {
        if self.json.is_some() {
            return Some(Arc::clone(self));
        }
        match codec.decode::<Turn>(&self.value) {
            Ok(turn) => Some(Arc::new(Live { json: Some(view::json(&turn, Embeddings::Hide)), ..Live::clone(self) })),
            Err(error) => {
                let (partition, offset) = (self.partition, self.offset);
                tracing::error!(%error, partition, offset, "a record of the enriched turns cannot be shown");
                None
            }
        }
    }

    fn size_bytes(&self) -> usize {
        // Beside the texts: the struct, its place in two queues, and allocator overhead.
        self.json.as_ref().map_or(0, String::len) + self.value.len() + self.conversation.len() + 256
    }
}

/// What is followed.
#[derive(Debug)]
pub(crate) struct Hub {
    turns_max: usize,
    bytes_max: usize,
    queue_turns_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    ring: VecDeque<Arc<Live>>,
    bytes: usize,
    /// The ring again by conversation, each in the order of the log.
    recent: HashMap<Arc<str>, VecDeque<Arc<Live>>>,
    /// By partition, the offset from which on the ring holds every record that was there for it.
    covered_from: BTreeMap<i32, i64>,
    /// By partition, the next offset to publish.
    next: BTreeMap<i32, i64>,
    subscribers: HashMap<u64, Subscriber>,
    by_conversation: HashMap<Arc<str>, Vec<u64>>,
    by_firehose: Vec<u64>,
    last_subscriber: u64,
    /// Turns that were published, from the start on.
    published: u64,
    closed: bool,
}

#[derive(Debug)]
struct Subscriber {
    queue: mpsc::Sender<Arc<Live>>,
    lagged: Arc<AtomicBool>,
    conversations: Vec<Arc<str>>,
}

/// The receiving end of a subscriber; dropping it unsubscribes.
#[derive(Debug)]
pub(crate) struct Queue {
    hub: Arc<Hub>,
    id: u64,
    turns: mpsc::Receiver<Arc<Live>>,
    lagged: Arc<AtomicBool>,
}

/// What the ring held of the firehose at the moment of following.
#[derive(Debug)]
pub(crate) struct FirehoseStart {
    /// Turns from the asked offsets on.
    pub(crate) turns: Vec<Arc<Live>>,
    /// Where what comes through the queue begins, by partition.
    pub(crate) next: BTreeMap<i32, i64>,
}

impl Hub {
    /// A hub whose reader starts at `next`, by partition.
    pub(crate) fn new(turns_max: usize, bytes_max: usize, queue_turns_max: usize, next: BTreeMap<i32, i64>) -> Hub {
        let inner = Inner { covered_from: next.clone(), next, ..Inner::default() };
        Hub { turns_max, bytes_max, queue_turns_max, inner: Mutex::new(inner) }
    }

    /// Whether anybody follows the conversation, or everything.
    pub(crate) fn is_followed(&self, conversation: &str) -> bool {
        let inner = self.lock();
        !inner.by_firehose.is_empty() || inner.by_conversation.contains_key(conversation)
    }

    /// Hands a turn to everybody who follows it. Turns of a partition come in the order of the log.
    pub(crate) fn publish(&self, live: Live) {
        let live = Arc::new(live);
        let mut inner = self.lock();
        inner.published += 1;
        inner.next.insert(live.partition, live.offset + 1);
        inner.covered_from.entry(live.partition).or_insert(live.offset);
        inner.keep(&live, self.turns_max, self.bytes_max);
        let followers = inner.by_conversation.get(&live.conversation).into_iter().flatten();
        let full: Vec<u64> = followers
            .chain(&inner.by_firehose)
            .filter(|id| inner.subscribers[*id].queue.try_send(live.clone()).is_err())
            .copied()
            .collect();
        for id in full {
            // The sender goes, so the queue ends behind what is still in it.
            if let Some(subscriber) = inner.remove(id) {
                subscriber.lagged.store(true, Ordering::Release);
            }
        }
    }

    /// A new subscriber that follows nothing yet; `None` once the hub is closed.
    pub(crate) fn subscribe(self: &Arc<Hub>) -> Option<Queue> {
        let (sender, turns) = mpsc::channel(self.queue_turns_max.max(1));
        let lagged = Arc::new(AtomicBool::new(false));
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        inner.last_subscriber += 1;
        let id = inner.last_subscriber;
        let subscriber = Subscriber { queue: sender, lagged: lagged.clone(), conversations: Vec::new() };
        inner.subscribers.insert(id, subscriber);
        drop(inner);
        Some(Queue { hub: self.clone(), id, turns, lagged })
    }

    /// What the ring holds of a conversation behind a position, in order.
    pub(crate) fn newer(&self, conversation: &str, after: i64) -> Vec<Arc<Live>> {
        let inner = self.lock();
        let Some(recent) = inner.recent.get(conversation) else { return Vec::new() };
        let mut newer: Vec<_> = recent.iter().rev().take_while(|live| live.position > after).cloned().collect();
        drop(inner);
        newer.reverse();
        newer
    }

    /// Lets go of what the ring holds of a conversation: something of it was forgotten. Queues are short, and their readers
    /// have been told before.
    pub(crate) fn let_go(&self, conversation: &str) {
        let mut inner = self.lock();
        let Some(gone) = inner.recent.remove(conversation) else { return };
        inner.bytes -= gone.iter().map(|live| live.size_bytes()).sum::<usize>();
        inner.ring.retain(|live| *live.conversation != *conversation);
    }

    /// How many turns were published: another number, and something has come.
    pub(crate) fn published(&self) -> u64 {
        self.lock().published
    }

    /// Ends every queue behind what is in it; nobody can subscribe any more.
    pub(crate) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.subscribers.clear();
        inner.by_conversation.clear();
        inner.by_firehose.clear();
    }

    /// Turns in the ring, and their size in bytes.
    #[cfg(test)]
    fn held(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.ring.len(), inner.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change below is complete before anything in it can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    /// Follows a conversation from now on; returns what the ring holds of it, in order.
    pub(crate) fn follow(&self, conversation: &Arc<str>) -> Vec<Arc<Live>> {
        let mut inner = self.hub.lock();
        let id = self.id;
        // A subscriber that was cut off follows nothing: its queue ends, and its owner learns why from there.
        if let Some(subscriber) = inner.subscribers.get_mut(&id)
            && !subscriber.conversations.contains(conversation)
        {
            subscriber.conversations.push(conversation.clone());
            inner.by_conversation.entry(conversation.clone()).or_default().push(id);
        }
        inner.recent.get(conversation).map(|recent| recent.iter().cloned().collect()).unwrap_or_default()
    }

    /// Stops following; turns that are in the queue already still come.
    pub(crate) fn unfollow(&self, conversation: &str) {
        let mut inner = self.hub.lock();
        if let Some(subscriber) = inner.subscribers.get_mut(&self.id) {
            subscriber.conversations.retain(|followed| **followed != *conversation);
        }
        inner.unlist(self.id, conversation);
    }

    /// Follows everything from now on, if the ring reaches back to `from`; without offsets, from this moment.
    pub(crate) fn follow_all(&self, from: Option<&BTreeMap<i32, i64>>) -> Option<FirehoseStart> {
        let mut inner = self.hub.lock();
        let from = from.unwrap_or(&inner.next);
        let start = |partition: &i32| from.get(partition).copied().unwrap_or(0);
        let covered = inner.covered_from.iter().all(|(partition, covered)| *covered <= start(partition));
        // An offset ahead of the hub's would be skipped over in silence.
        let known = from.iter().all(|(partition, from)| inner.next.get(partition).is_some_and(|next| from <= next));
        if !covered || !known {
            return None;
        }
        let turns = inner.ring.iter().filter(|live| live.offset >= start(&live.partition)).cloned().collect();
        let next = inner.next.clone();
        if inner.subscribers.contains_key(&self.id) && !inner.by_firehose.contains(&self.id) {
            inner.by_firehose.push(self.id);
        }
        Some(FirehoseStart { turns, next })
    }

    /// By partition, where the hub stands.
    pub(crate) fn next_offsets(&self) -> BTreeMap<i32, i64> {
        self.hub.lock().next.clone()
    }

    /// The next turn of what is followed; `None` when the subscriber was cut off or the hub closed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Arc<Live>> {
        self.turns.recv().await
    }

    /// Whether the subscriber was cut off because its queue was full.
    pub(crate) fn lagged(&self) -> bool {
        self.lagged.load(Ordering::Acquire)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.hub.lock().remove(self.id);
    }
}

impl Inner {
    fn keep(&mut self, live: &Arc<Live>, turns_max: usize, bytes_max: usize) {
        self.bytes += live.size_bytes();
        self.ring.push_back(live.clone());
        self.recent.entry(live.conversation.clone()).or_default().push_back(live.clone());
        while self.ring.len() > turns_max || self.bytes > bytes_max {
            let Some(oldest) = self.ring.pop_front() else { break };
            self.bytes -= oldest.size_bytes();
            self.covered_from.insert(oldest.partition, oldest.offset + 1);
            let recent = self.recent.get_mut(&oldest.conversation);
            let recent = recent.expect("a turn in the ring is also kept by its conversation");
            let first = recent.pop_front();
            debug_assert!(first.is_some_and(|first| Arc::ptr_eq(&first, &oldest)), "both queues are in log order");
            if recent.is_empty() {
                self.recent.remove(&oldest.conversation);
            }
        }
    }

    fn remove(&mut self, id: u64) -> Option<Subscriber> {
        let subscriber = self.subscribers.remove(&id)?;
        for conversation in &subscriber.conversations {
            self.unlist(id, conversation);
        }
        self.by_firehose.retain(|other| *other != id);
        Some(subscriber)
    }

    fn unlist(&mut self, id: u64, conversation: &str) {
        if let Some(followers) = self.by_conversation.get_mut(conversation) {
            followers.retain(|other| *other != id);
            if followers.is_empty() {
                self.by_conversation.remove(conversation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(turns_max: usize, queue_turns_max: usize) -> Arc<Hub> {
        Arc::new(Hub::new(turns_max, 1 << 20, queue_turns_max, [(0, 10)].into()))
    }

    fn live(conversation: &str, position: i64, offset: i64) -> Live {
        Live {
            conversation: conversation.into(),
            position,
            at: 0,
            taken_at: Instant::now(),
            partition: 0,
            offset,
            json: Some("{}".to_owned()),
            value: Vec::new(),
            correlation_id: None,
            traceparent: None,
            onward: None,
        }
    }

    fn positions(turns: &[Arc<Live>]) -> Vec<i64> {
        turns.iter().map(|live| live.position).collect()
    }

    #[tokio::test]
    async fn snapshot_and_queue_meet_without_gap_or_overlap() {
        let hub = hub(100, 8);
        hub.publish(live("a", 1, 10));
        hub.publish(live("b", 1, 11));
        let mut queue = hub.subscribe().unwrap();
        assert_eq!(positions(&queue.follow(&"a".into())), [1]);
        hub.publish(live("b", 2, 12));
        hub.publish(live("a", 2, 13));
        assert_eq!(queue.next().await.unwrap().position, 2);
        queue.unfollow("a");
        hub.publish(live("a", 3, 14));
        assert!(queue.turns.try_recv().is_err());
    }

    #[test]
    fn ring_is_bounded_and_knows_what_it_covers() {
        let hub = hub(3, 8);
        for i in 0..5 {
            hub.publish(live(if i % 2 == 0 { "a" } else { "b" }, i / 2 + 1, 10 + i));
        }
        assert_eq!(hub.held().0, 3);
        let queue = hub.subscribe().unwrap();
        assert_eq!(positions(&queue.follow(&"a".into())), [2, 3]);
        assert!(queue.follow_all(Some(&[(0, 11)].into())).is_none(), "offset 11 was evicted");
        let start = queue.follow_all(Some(&[(0, 12)].into())).unwrap();
        assert_eq!((positions(&start.turns), start.next), (vec![2, 2, 3], [(0, 15)].into()));
        assert!(queue.follow_all(Some(&[(0, 16)].into())).is_none(), "the hub has not come there");
        assert!(queue.follow_all(None).unwrap().turns.is_empty());
    }

    #[test]
    fn a_reader_that_is_not_scheduled_while_several_transactions_are_published_is_not_slow() {
        let hub = hub(100, crate::Config::default().socket_queue_turns_max);
        let queue = hub.subscribe().unwrap();
        queue.follow_all(None).unwrap();
        for i in 0..4 * 512 {
            hub.publish(live("a", 1 + i, 10 + i));
        }
        assert!(!queue.lagged());
        assert_eq!(queue.turns.len(), 4 * 512);
    }

    #[tokio::test]
    async fn slow_subscriber_is_cut_off_and_does_not_hold_up_another() {
        let hub = hub(100, 2);
        let (mut slow, mut quick) = (hub.subscribe().unwrap(), hub.subscribe().unwrap());
        slow.follow(&"a".into());
        quick.follow(&"a".into());
        for i in 1..=4 {
            hub.publish(live("a", i, 9 + i));
            assert_eq!(quick.next().await.unwrap().position, i);
        }
        assert_eq!(slow.next().await.unwrap().position, 1);
        assert_eq!(slow.next().await.unwrap().position, 2);
        assert!(slow.next().await.is_none() && slow.lagged() && !quick.lagged());
    }

    #[test]
    fn dropping_a_queue_leaves_nothing_behind() {
        let hub = hub(100, 2);
        let queue = hub.subscribe().unwrap();
        queue.follow(&"a".into());
        queue.follow_all(None).unwrap();
        drop(queue);
        let inner = hub.lock();
        assert!(inner.subscribers.is_empty() && inner.by_conversation.is_empty() && inner.by_firehose.is_empty());
    }
}
