//! What is kept of pages: in memory, bounded by bytes (moka: what is asked for seldom goes first), and on the shelf in
//! Redis; and who asks for the same at the same time. What may be believed is decided elsewhere.

use std::sync::Arc;
use std::time::Duration;

use store::history::{Conversation, HistoryError, Page};
use store::redis::{Found, Shelf};
use tokio::time::Instant;

use super::tally::From;
use super::{Kept, Limits, Newest, Turns};

/// Beside the texts: the entry's place in the cache, as moka keeps it.
const ENTRY_BYTES: usize = 256;
/// In front of every value on the shelf; another layout is a miss.
const LAYOUT: u8 = 1;

/// What a page is known by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Newest(String, usize),
    Fixed(String, Page, usize),
    List(Option<(i64, String)>, usize),
}

/// A page.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Newest(Newest),
    Fixed(Turns),
    List {
        list: Arc<[Conversation]>,
        read_at: Instant,
        /// What the hub had shown by then.
        shown: u64,
    },
}

/// An answer, and who gave it.
pub(super) struct Asked<T> {
    pub(super) from: From,
    pub(super) answer: Result<T, HistoryError>,
}

#[derive(Debug)]
pub(super) struct Cache {
    kept: moka::future::Cache<Key, Entry>,
    /// Holds nothing: it knows who asks for what just now.
    flights: moka::future::Cache<Key, ()>,
    shelf: Option<Shelf>,
}

impl Cache {
    pub(super) fn new(limits: &Limits, shelf: Option<Shelf>) -> Cache {
        let weigh = |key: &Key, entry: &Entry| u32::try_from(size_bytes(key, entry)).unwrap_or(u32::MAX);
        let kept = moka::future::Cache::builder()
            .max_capacity(limits.bytes_max as u64)
            .weigher(weigh)
            .time_to_live(limits.fixed.max(limits.newest))
            .build();
        Cache { kept, flights: moka::future::Cache::new(0), shelf }
    }

    /// Tells how much is kept, in bytes.
    pub(super) fn size(&self) -> impl Fn() -> u64 + Send + Sync + 'static {
        let kept = self.kept.clone();
        move || kept.weighted_size()
    }

    pub(super) fn let_go(&self) {
        self.kept.invalidate_all();
    }

    pub(super) async fn get(&self, key: &Key) -> Option<Entry> {
        self.kept.get(key).await
    }

    pub(super) async fn newest(&self, key: &Key) -> Option<Newest> {
        match self.get(key).await {
            Some(Entry::Newest(newest)) => Some(newest),
            _ => None,
        }
    }

    pub(super) async fn fixed(&self, key: &Key) -> Option<Turns> {
        match self.get(key).await {
            Some(Entry::Fixed(turns)) => Some(turns),
            _ => None,
        }
    }

    pub(super) async fn keep(&self, key: Key, entry: Entry) {
        self.kept.insert(key, entry).await;
    }

    /// Asks, unless somebody asks for the same already: then the answer is his.
    pub(super) async fn once<T: Clone + Send + Sync + 'static>(
        &self,
        key: &Key,
        ask: impl Future<Output = (From, Result<T, HistoryError>)> + Send,
    ) -> Asked<T> {
        let mut mine = None;
        // An answer is handed on as the error of a value that is never made: so nothing is kept here.
        let flight = self.flights.try_get_with_by_ref(key, async {
            let (from, answer) = ask.await;
            mine = Some(from);
            Err::<(), _>(answer)
        });
        let Err(answer) = flight.await else { unreachable!("no flight makes a value") };
        Asked { from: mine.unwrap_or(From::Shared), answer: (*answer).clone() }
    }

    /// The turns that lie on the shelf, with the conversation's last position and the time that they have left.
    pub(super) async fn shelved(&self, key: &Key) -> Option<(Turns, Option<i64>, Duration)> {
        let Found::Value(bytes, left) = self.shelf.as_ref()?.get(&name(key)?).await else { return None };
        let (turns, last) = read(&bytes)?;
        Some((turns, last, left))
    }

    /// Puts turns onto the shelf.
    pub(super) fn shelve(&self, key: &Key, turns: &Turns, last: Option<i64>, lives: Duration) {
        if let (Some(shelf), Some(name)) = (&self.shelf, name(key)) {
            shelf.put(&name, write(turns, last), lives);
        }
    }

    /// Does now what moka does by the way: drops what is too much.
    #[cfg(test)]
    pub(super) async fn settle(&self) {
        self.kept.run_pending_tasks().await;
    }
}

fn size_bytes(key: &Key, entry: &Entry) -> usize {
    let of = |turns: &Turns| turns.iter().map(|turn| turn.size_bytes()).sum::<usize>();
    let key = match key {
        Key::Newest(conversation, _) | Key::Fixed(conversation, ..) => conversation.len(),
        Key::List(after, _) => after.as_ref().map_or(0, |(_, conversation)| conversation.len()),
    };
    let entry = match entry {
        Entry::Newest(newest) => of(&newest.turns),
        Entry::Fixed(turns) => of(turns),
        Entry::List { list, .. } => list.iter().map(|c| c.conversation.len() + size_of::<Conversation>()).sum(),
    };
    ENTRY_BYTES + key + entry
}

/// What a page is called on the shelf. Lists are not there: they are old before another process asks.
fn name(key: &Key) -> Option<String> {
    match key {
        Key::Newest(conversation, limit) => Some(format!("newest:{limit}:{conversation}")),
        Key::Fixed(conversation, Page::Before(Some(below)), limit) => {
            Some(format!("before:{below}:{limit}:{conversation}"))
        }
        Key::Fixed(conversation, Page::After(above), limit) => Some(format!("after:{above}:{limit}:{conversation}")),
        Key::Fixed(..) | Key::List(..) => None,
    }
}

/// A byte for the layout, the last position (0: none), and for each turn its position, its time (8 bytes each), the length
/// of its value (4) and the value; numbers are big-endian.
fn write(turns: &Turns, last: Option<i64>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(9 + turns.iter().map(|turn| 20 + turn.value.len()).sum::<usize>());
    bytes.push(LAYOUT);
    bytes.extend(last.unwrap_or(0).to_be_bytes());
    for turn in turns.iter() {
        bytes.extend(turn.position.to_be_bytes());
        bytes.extend(turn.at.to_be_bytes());
        bytes.extend((turn.value.len() as u32).to_be_bytes());
        bytes.extend(&turn.value);
    }
    bytes
}

/// What [`write()`] wrote; `None` if it is anything else.
fn read(bytes: &[u8]) -> Option<(Turns, Option<i64>)> {
    let mut rest = bytes.strip_prefix(&[LAYOUT])?;
    let last = i64::from_be_bytes(take(&mut rest)?);
    let mut turns = Vec::new();
    while !rest.is_empty() {
        let (position, at) = (i64::from_be_bytes(take(&mut rest)?), i64::from_be_bytes(take(&mut rest)?));
        let length = u32::from_be_bytes(take(&mut rest)?);
        let (value, behind) = rest.split_at_checked(length as usize)?;
        rest = behind;
        turns.push(Arc::new(Kept::new(position, at, value.to_vec())));
    }
    Some((turns.into(), (last > 0).then_some(last)))
}

fn take<const COUNT: usize>(rest: &mut &[u8]) -> Option<[u8; COUNT]> {
    let (taken, behind) = rest.split_first_chunk()?;
    *rest = behind;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_on_the_shelf_comes_back_as_it_went_or_not_at_all() {
        let turns: Turns = [(8, vec![1, 2, 3]), (7, Vec::new())]
            .into_iter()
            .map(|(position, value)| Arc::new(Kept::new(position, -position, value)))
            .collect();
        let bytes = write(&turns, Some(8));
        let (back, last) = read(&bytes).unwrap();
        let plain = |turns: &Turns| turns.iter().map(|t| (t.position, t.at, t.value.clone())).collect::<Vec<_>>();
        assert_eq!((plain(&back), last), (plain(&turns), Some(8)));
        assert_eq!(read(&write(&[].into(), None)).map(|(turns, last)| (turns.len(), last)), Some((0, None)));
        for length in [0, 1, 8, 10, 16, 24, 28, 31, 40, bytes.len() - 1] {
            assert!(read(&bytes[..length]).is_none(), "{length}");
        }
        assert!(read(&[&[LAYOUT + 1], &bytes[1..]].concat()).is_none());
    }
}
