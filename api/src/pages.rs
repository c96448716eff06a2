//! Pages of history as requests read them: from memory, then from Redis where there is one, then from the store.
//!
//! What may be believed follows from what a page is:
//! - *fixed*: the turns at a fixed place, all of them there. Positions are dense and a turn never changes, so only erasure
//!   and `history verify --mend`, which the log does not tell, make it another one: [`Limits::fixed`] bounds that.
//! - *newest*: the last turns of a conversation, or that it is not known. The log tells what makes it another one: turns
//!   that the hub has and the page has not are put in front of it, by position, so that a writer that is behind is not
//!   noticed; where they do not join on, it is read anew. Where the store has not what the hub took longer ago than
//!   [`Limits::newest`], it is right (the turn was erased): its page is answered and not kept. What this hub may not have
//!   been shown (it stands still) is bounded by the same time.
//! - *list*: conversations by last activity. Each turn makes it another one, so that on a busy site nothing would ever be
//!   kept: it is as late as [`Limits::list`] although turns came, and as [`Limits::newest`] where none did.
//!
//! Readers who miss the same page together ask once. Errors are never kept. While the store is away, a newest page that is
//! no longer believed is answered all the same, marked as degraded, and so is what the hub holds.
//!
//! Left out: reading on behind a place in a conversation ([`Page::After`]) is kept where the page is full, and never
//! shared: who comes back waits for what history does not have yet, and must not be given an answer from before he asked.

mod cache;
mod kept;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::metrics::Meter;
use store::history::{Conversation, Cursor, HistoryError, Page};
use store::redis::Shelf;
use tokio::time::Instant;

use crate::hub::{Hub, Live};
use crate::reading::Reading;
use cache::{Cache, Entry, Key};
pub(crate) use kept::Kept;
pub use tally::Tally;
use tally::{From, Kind};

/// Turns of a page, in its order.
pub(crate) type Turns = Arc<[Arc<Kept>]>;

/// Bounds of what is kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes in memory; 0: nothing is kept.
    pub(crate) bytes_max: usize,
    /// How long a page at a fixed place is believed.
    pub(crate) fixed: Duration,
    /// How long the newest page, an unknown conversation or a list is believed while the log says nothing of it.
    pub(crate) newest: Duration,
    /// How long a list is believed although turns came.
    pub(crate) list: Duration,
}

/// The newest turns of a conversation, the newest first.
#[derive(Debug, Clone)]
pub(crate) struct Newest {
    pub(crate) turns: Turns,
    /// The highest position; `None`: the conversation is not known.
    pub(crate) last: Option<i64>,
    /// Before it was read.
    read_at: Instant,
    /// Whether it was given without history, or may be older than it should.
    pub(crate) degraded: bool,
}

/// The history behind what is kept of it.
#[derive(Debug)]
pub(crate) struct Pages {
    store: Reading,
    hub: Arc<Hub>,
    cache: Option<Cache>,
    limits: Limits,
    tally: Arc<Tally>,
}

impl Pages {
    pub(crate) fn new(store: Reading, hub: Arc<Hub>, limits: Limits, shelf: Option<Shelf>, meter: &Meter) -> Pages {
        let tally = Arc::<Tally>::default();
        let cache = (limits.bytes_max > 0).then(|| Cache::new(&limits, shelf));
        if let Some(cache) = &cache {
            tally.tell(meter, cache.size());
        }
        Pages { store, hub, cache, limits, tally }
    }

    /// Lets go of every page: something was forgotten, which is rare.
    pub(crate) fn let_go(&self) {
        if let Some(cache) = &self.cache {
            cache.let_go();
        }
    }

    /// What was asked, and who answered.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// The newest turns of a conversation; none of one that is not known. While history is away, and only then, the
    /// answer may be degraded.
    pub(crate) async fn newest(&self, conversation: &str, limit: usize) -> Result<Newest, HistoryError> {
        let Some(cache) = &self.cache else {
            self.tally.add(Kind::Newest, From::Store);
            let read = self.read_newest(conversation, limit).await;
            return read.or_else(|error| self.without_history(conversation, limit, None, error));
        };
        let key = Key::Newest(conversation.to_owned(), limit);
        let kept = cache.newest(&key).await;
        if let Some(newest) = kept.as_ref().and_then(|kept| self.believed(kept, conversation, limit)) {
            let kind = if newest.last.is_some() { Kind::Newest } else { Kind::Unknown };
            self.tally.add(kind, From::Memory);
            return Ok(self.keep_joined(cache, key, newest, kept.as_ref()).await);
        }
        let asked = cache.once(&key, Box::pin(self.find_newest(cache, &key, conversation, limit))).await;
        self.tally.add(Kind::Newest, asked.from);
        match asked.answer {
            // Turns that came while it was read are in front of it, where they join on.
            Ok(newest) => Ok(self.joined(&newest, conversation, limit).unwrap_or(newest)),
            Err(error) => self.without_history(conversation, limit, kept.as_ref(), error),
        }
    }

    /// Turns in front of or behind a place, and `Before(None)`, which is not kept here: ask [`Pages::newest`].
    pub(crate) async fn turns(&self, conversation: &str, page: Page, limit: usize) -> Result<Turns, HistoryError> {
        let Some(cache) = &self.cache else {
            self.tally.add(Kind::Fixed, From::Store);
            return self.read(conversation, page, limit).await;
        };
        let key = Key::Fixed(conversation.to_owned(), page, limit);
        if let Some(turns) = cache.fixed(&key).await {
            self.tally.add(Kind::Fixed, From::Memory);
            return Ok(turns);
        }
        if let Page::After(_) = page {
            self.tally.add(Kind::Fixed, From::Store);
            let turns = self.read(conversation, page, limit).await?;
            self.keep_fixed(cache, &key, page, limit, &turns).await;
            return Ok(turns);
        }
        let asked = cache.once(&key, Box::pin(self.find_fixed(cache, &key, conversation, page, limit))).await;
        self.tally.add(Kind::Fixed, asked.from);
        asked.answer
    }

    /// As [`store::history::History::conversations`].
    pub(crate) async fn conversations(
        &self,
        after: Option<Cursor>,
        limit: usize,
    ) -> Result<Arc<[Conversation]>, HistoryError> {
        let Some(cache) = &self.cache else {
            self.tally.add(Kind::List, From::Store);
            return Ok(self.store.conversations(after, limit).await?.into());
        };
        let key = Key::List(after.as_ref().map(|cursor| (cursor.last_at, cursor.conversation.clone())), limit);
        if let Some(list) = self.listed(cache, &key).await {
            self.tally.add(Kind::List, From::Memory);
            return Ok(list);
        }
        let find = async {
            if let Some(list) = self.listed(cache, &key).await {
                return (From::Shared, Ok(list));
            }
            let (read_at, shown) = (Instant::now(), self.hub.published());
            match self.store.conversations(after, limit).await {
                Ok(list) => {
                    let list: Arc<[Conversation]> = list.into();
                    cache.keep(key.clone(), Entry::List { list: Arc::clone(&list), read_at, shown }).await;
                    (From::Store, Ok(list))
                }
                Err(error) => (From::Store, Err(error)),
            }
        };
        let asked = cache.once(&key, Box::pin(find)).await;
        self.tally.add(Kind::List, asked.from);
        asked.answer
    }

    /// The highest position as the store has it now: whoever asks waits for it to grow.
    pub(crate) async fn last_position(&self, conversation: &str) -> Result<Option<i64>, HistoryError> {
        self.store.last_position(conversation).await
    }

    async fn listed(&self, cache: &Cache, key: &Key) -> Option<Arc<[Conversation]>> {
        let Some(Entry::List { list, read_at, shown }) = cache.get(key).await else { return None };
        let (age, quiet) = (read_at.elapsed(), shown == self.hub.published());
        (age < self.limits.list || quiet && age < self.limits.newest).then_some(list)
    }

    async fn find_newest(
        &self,
        cache: &Cache,
        key: &Key,
        conversation: &str,
        limit: usize,
    ) -> (From, Result<Newest, HistoryError>) {
        if let Some(kept) = cache.newest(key).await
            && let Some(newest) = self.believed(&kept, conversation, limit)
        {
            return (From::Shared, Ok(newest));
        }
        if let Some((turns, last, left)) = cache.shelved(key).await {
            // Its age by the clock of Redis; of its readers' clocks nothing is known.
            let age = self.limits.newest.saturating_sub(left);
            let read_at = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
            let newest = Newest { turns, last, read_at, degraded: false };
            if let Some(newest) = self.believed(&newest, conversation, limit) {
                cache.keep(key.clone(), Entry::Newest(newest.clone())).await;
                return (From::Redis, Ok(newest));
            }
        }
        let read = self.read_newest(conversation, limit).await;
        if let Ok(newest) = &read
            && self.joined(newest, conversation, limit).is_some()
        {
            cache.keep(key.clone(), Entry::Newest(newest.clone())).await;
            let lives = self.limits.newest.saturating_sub(newest.read_at.elapsed());
            cache.shelve(key, &newest.turns, newest.last, lives);
        }
        (From::Store, read)
    }

    async fn find_fixed(
        &self,
        cache: &Cache,
        key: &Key,
        conversation: &str,
        page: Page,
        limit: usize,
    ) -> (From, Result<Turns, HistoryError>) {
        if let Some(turns) = cache.fixed(key).await {
            return (From::Shared, Ok(turns));
        }
        if let Some((turns, ..)) = cache.shelved(key).await {
            cache.keep(key.clone(), Entry::Fixed(Arc::clone(&turns))).await;
            return (From::Redis, Ok(turns));
        }
        let read = self.read(conversation, page, limit).await;
        if let Ok(turns) = &read {
            self.keep_fixed(cache, key, page, limit, turns).await;
        }
        (From::Store, read)
    }

    /// Keeps a page at a fixed place, if it is whole.
    async fn keep_fixed(&self, cache: &Cache, key: &Key, page: Page, limit: usize, turns: &Turns) {
        if is_whole(page, limit, turns) {
            cache.keep(key.clone(), Entry::Fixed(Arc::clone(turns))).await;
            cache.shelve(key, turns, None, self.limits.fixed);
        }
    }

    async fn read(&self, conversation: &str, page: Page, limit: usize) -> Result<Turns, HistoryError> {
        let rows = self.store.turns(conversation, page, limit).await?;
        Ok(rows.into_iter().map(|row| Arc::new(Kept::of(row))).collect())
    }

    async fn read_newest(&self, conversation: &str, limit: usize) -> Result<Newest, HistoryError> {
        let read_at = Instant::now();
        let turns = self.read(conversation, Page::Before(None), limit).await?;
        let last = match turns.first() {
            Some(newest) => Some(newest.position),
            // Where all turns were erased the number goes on.
            None => self.store.last_position(conversation).await?,
        };
        Ok(Newest { turns, last, read_at, degraded: false })
    }

    /// What is kept, as it is now; `None` if it must be read anew.
    fn believed(&self, kept: &Newest, conversation: &str, limit: usize) -> Option<Newest> {
        (kept.read_at.elapsed() < self.limits.newest).then(|| self.joined(kept, conversation, limit)).flatten()
    }

    /// The page with the turns in front that the hub has and the store did not have when it was read. `None` where they do
    /// not join on, or where the hub took one too long before for the writer to be behind: it may have been erased.
    fn joined(&self, newest: &Newest, conversation: &str, limit: usize) -> Option<Newest> {
        let newer = self.hub.newer(conversation, newest.last.unwrap_or(0));
        if newer.is_empty() {
            return Some(newest.clone());
        }
        let first = newest.last.unwrap_or(0) + 1;
        let joins_on = (first..).zip(&newer).all(|(position, live)| live.position == position);
        let is_new = newer.iter().all(|live| live.taken_at + self.limits.newest >= newest.read_at);
        if !joins_on || !is_new {
            return None;
        }
        let in_front = newer.iter().rev().map(|live| Arc::new(Kept::live(live)));
        let turns = in_front.chain(newest.turns.iter().cloned()).take(limit).collect();
        Some(Newest { turns, last: newer.last().map(|live| live.position), ..newest.clone() })
    }

    /// Keeps a page that has grown, so that it is put together once for each turn.
    async fn keep_joined(&self, cache: &Cache, key: Key, newest: Newest, kept: Option<&Newest>) -> Newest {
        if kept.is_some_and(|kept| kept.last != newest.last) {
            cache.keep(key, Entry::Newest(newest.clone())).await;
        }
        newest
    }

    /// What there is without history: the page that was kept, with what the hub took since; or what the hub holds.
    fn without_history(
        &self,
        conversation: &str,
        limit: usize,
        kept: Option<&Newest>,
        error: HistoryError,
    ) -> Result<Newest, HistoryError> {
        if !error.is_transient() {
            return Err(error);
        }
        let known = kept.filter(|kept| kept.last.is_some());
        if let Some(newest) = known.and_then(|kept| self.joined(kept, conversation, limit)) {
            return Ok(Newest { degraded: true, ..newest });
        }
        let held = self.hub.newer(conversation, 0);
        let Some(newest) = held.last() else { return Err(error) };
        let kept = |live: &Arc<Live>| Arc::new(Kept::live(live));
        let turns = held.iter().rev().take(limit).map(kept).collect();
        Ok(Newest { turns, last: Some(newest.position), read_at: Instant::now(), degraded: true })
    }
}

/// Whether everything is there that will ever stand at that place.
fn is_whole(page: Page, limit: usize, turns: &[Arc<Kept>]) -> bool {
    let Some(last) = turns.last() else { return false };
    let mut positions = turns.iter().map(|turn| turn.position);
    match page {
        Page::Before(Some(below)) => {
            let dense = positions.zip(1..).all(|(position, back)| position == below - back);
            dense && (turns.len() == limit || last.position == 1)
        }
        Page::After(above) => turns.len() == limit && positions.by_ref().eq(above + 1..=above + limit as i64),
        Page::Before(None) => false,
    }
}

#[cfg(test)]
mod tests;
