//! What is remembered, held ready to be searched: the memories of a conversation as the history has them, the palace that
//! they stand in, and the models that a question needs.
//!
//! Promises: a turn that the history keeps, or an erasure in it, is seen by the next question, because what is held is
//! compared with the history's mark first; what is held is bounded in bytes. With [`Scope::Person`], a private chat also
//! recalls what its person said elsewhere to the same bot: all of their other private chats, and their own words in groups.
//! A group recalls nothing but itself, and so does a chat of which it is not known that it is private. Leaves out: how
//! memories are scored (`processors::recall`).

mod held;
pub(crate) mod map;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::memories::{
    Asked, Forget, Found, Locus, MemoriesError, Palace, Pending, Place, Recalled, Receipt, Room, Show, Why,
};
use processors::recall::{self, Remembered};
use processors::{Loaded, Models};
use schemas::{Tier, Turn};
use store::DatabaseError;
use store::history::{History, HistoryError, Mark, Page};
use store::registry::Registry;
use tokio::sync::Semaphore;

use crate::config::Scope;
use crate::forget::Forgetting;
use held::Held;

/// Conversations of a person that recall looks through, those that were active last first.
const CONVERSATIONS_MAX: usize = 64;
/// Newest turns that are looked at to learn whose a chat is.
const TURNS_LOOKED_AT: usize = 20;
/// Conversations that are read at a time, and questions that are worked on.
const READS_MAX: usize = 2;
/// How long the history may take for one conversation.
const READ_WITHIN: Duration = Duration::from_secs(5);
/// What a memory takes beside its words and its vector, in bytes.
const OVERHEAD_BYTES: usize = 400;

/// Memories of all conversations; clones share what they hold.
#[derive(Debug, Clone)]
pub(crate) struct Remembering(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    history: History,
    registry: Registry,
    models: Loaded,
    scope: Scope,
    /// Absent where nothing is to be forgotten.
    forgetting: Option<Forgetting>,
    held: Mutex<Held<Ready>>,
    reads: Semaphore,
    questions: Semaphore,
}

/// The memories of a conversation, and those that are recalled with it.
#[derive(Debug)]
struct Ready {
    /// What was read, the conversation itself first, and how it stood.
    marks: Vec<(String, Mark)>,
    /// In the order of the palace's memories.
    turns: Vec<Kept>,
    palace: recall::Palace,
    rooms: HashMap<(usize, i32), Named>,
    /// Whose private chat it is.
    owner: Option<Owner>,
    /// Which models most of the memories are of.
    tier: Tier,
}

/// What is shown of a memory.
#[derive(Debug)]
struct Kept {
    /// Place of its conversation in [`Ready::marks`].
    conversation: usize,
    turn: Turn,
    locus: schemas::Locus,
}

/// A room as its newest memory calls it.
#[derive(Debug, Clone, Default)]
struct Named {
    name: String,
    /// Whether any of its memories found it so.
    sensitive: bool,
}

/// Whose a chat is.
#[derive(Debug, Clone)]
struct Owner {
    person: String,
    sender: String,
    bot: Option<String>,
}

impl Remembering {
    /// What `history` keeps, with at most so many bytes held ready; questions wait for `models`.
    pub(crate) fn new(
        history: History,
        registry: Registry,
        models: Loaded,
        scope: Scope,
        bytes_max: usize,
        forgetting: Option<Forgetting>,
    ) -> Remembering {
        Remembering(Arc::new(Inner {
            history,
            registry,
            models,
            scope,
            forgetting,
            held: Mutex::new(Held::new(bytes_max)),
            reads: Semaphore::new(READS_MAX),
            questions: Semaphore::new(READS_MAX),
        }))
    }

    /// What is remembered of a conversation, as the history has it now.
    async fn ready(&self, conversation: &str) -> Result<Arc<Ready>, MemoriesError> {
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner).get(conversation);
        if let Some(ready) = held
            && ready.marks == self.marks(conversation, Some(&ready)).await?.0
        {
            return Ok(ready);
        }
        let _read = self.0.reads.acquire().await;
        // Before the memories: what comes meanwhile makes the next question read again.
        let (marks, owner) = self.marks(conversation, None).await?;
        let held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner).get(conversation);
        if let Some(ready) = held.filter(|ready| ready.marks == marks) {
            return Ok(ready);
        }
        let (ready, bytes) = self.read(marks, owner).await?;
        let ready = Arc::new(ready);
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.put(conversation, Arc::clone(&ready), bytes);
        Ok(ready)
    }

    /// How what a question about this conversation looks through stands now, and whose it is.
    async fn marks(
        &self,
        conversation: &str,
        known: Option<&Ready>,
    ) -> Result<(Vec<(String, Mark)>, Option<Owner>), MemoriesError> {
        let history = &self.0.history;
        let own = within(history.mark(conversation)).await?.ok_or(MemoriesError::UnknownConversation)?;
        let mut marks = vec![(conversation.to_owned(), own)];
        let owner = match known.filter(|known| known.marks.first() == marks.first()) {
            Some(known) => known.owner.clone(),
            None => self.owner(conversation).await?,
        };
        if let Some(owner) = owner.as_ref().filter(|_| self.0.scope == Scope::Person) {
            let others = within(history.conversations_of(&owner.person, CONVERSATIONS_MAX + 1)).await?;
            for other in others.into_iter().filter(|other| other != conversation).take(CONVERSATIONS_MAX) {
                if let Some(mark) = within(history.mark(&other)).await? {
                    marks.push((other, mark));
                }
            }
        }
        Ok((marks, owner))
    }

    /// Whose private chat a conversation is; nobody's where it is none, or where it is not known.
    async fn owner(&self, conversation: &str) -> Result<Option<Owner>, MemoriesError> {
        let rows = within(self.0.history.turns(conversation, Page::Before(None), TURNS_LOOKED_AT)).await?;
        let turns = self.decoded(rows.iter().map(|row| row.value.as_slice())).await;
        let mut owner: Option<Owner> = None;
        for turn in turns.into_iter().flatten() {
            let Some(sender) = turn.sender.as_ref().filter(|sender| !sender.bot) else { continue };
            let person = turn.person().unwrap_or_default();
            if !is_private(&turn) || owner.as_ref().is_some_and(|owner| owner.person != person) {
                return Ok(None);
            }
            owner = Some(Owner { person, sender: sender.id.clone(), bot: turn.bot.clone() });
        }
        Ok(owner)
    }

    async fn read(&self, marks: Vec<(String, Mark)>, owner: Option<Owner>) -> Result<(Ready, usize), MemoriesError> {
        let (mut found, mut rooms) = (Vec::new(), HashMap::<(usize, i32), Named>::new());
        let (mut bytes, mut full) = (0, 0usize);
        for (place, (conversation, _)) in marks.iter().enumerate() {
            let memories = within(self.0.history.memories(conversation)).await?;
            let turns = self.decoded(memories.iter().map(|memory| memory.value.as_slice())).await;
            for turn in turns.into_iter().flatten() {
                let belongs = place == 0 || owner.as_ref().is_some_and(|owner| is_shared(&turn, owner));
                let locus = turn.memory.as_ref().and_then(|part| part.locus.clone());
                let (Some(locus), true) = (locus, belongs) else { continue };
                let Some(mut remembered) = Remembered::of(&turn) else { continue };
                remembered.position |= (place as i64) << recall::POSITION_BITS;
                bytes += OVERHEAD_BYTES + turn.text.len() * 2 + 2 * remembered.vector.values.len();
                full += usize::from(turn.encoding.as_ref().is_some_and(|made| made.provenance.tier == Tier::Full));
                let room = rooms.entry((place, locus.room)).or_default();
                room.name.clone_from(&locus.name);
                room.sensitive |= locus.sensitive;
                found.push((remembered, Kept { conversation: place, turn: bare(turn), locus }));
            }
        }
        found.sort_by_key(|(remembered, _)| remembered.position);
        let tier = if full * 2 >= found.len() { Tier::Full } else { Tier::Fast };
        let (remembered, turns): (Vec<Remembered>, Vec<Kept>) = found.into_iter().unzip();
        let palace = tokio::task::spawn_blocking(move || recall::Palace::new(remembered)).await;
        let palace = palace.map_err(|error| MemoriesError::Model(error.to_string()))?;
        Ok((Ready { marks, turns, palace, rooms, owner, tier }, bytes))
    }

    /// Turns in the wire format, read; one that cannot be read is none.
    async fn decoded(&self, values: impl Iterator<Item = &[u8]> + Clone) -> Vec<Option<Turn>> {
        if let Err(error) = self.0.registry.know_now::<Turn>(values.clone()).await {
            tracing::warn!(%error, "a memory has a schema that is not known");
        }
        values.map(|value| self.0.registry.codec().decode::<Turn>(value).ok()).collect()
    }

    async fn recalled(&self, conversation: &str, asked: Asked<'_>) -> Result<Recalled, MemoriesError> {
        let models = self.0.models.get().cloned();
        let models = models.ok_or(MemoriesError::NoModels("no models are loaded in this process, or not yet"))?;
        let ready = self.ready(conversation).await?;
        let _question = self.0.questions.acquire().await;
        let (question, asker) = (asked.question.to_owned(), asked.asker.map(str::to_owned));
        let (limit, show, searched) = (asked.limit, asked.show, ready.turns.len());
        let work = move || ready.recall(&models, &question, asker.as_deref(), limit, show);
        let memories = tokio::task::spawn_blocking(work).await.map_err(|e| MemoriesError::Model(e.to_string()))??;
        let scope = match self.0.scope {
            Scope::Conversation => "conversation",
            Scope::Person => "person",
        };
        Ok(Recalled { conversation: conversation.to_owned(), scope, searched, memories })
    }
}

impl api::memories::Memories for Remembering {
    fn recall<'a>(&'a self, conversation: &'a str, asked: Asked<'a>) -> Pending<'a, Recalled> {
        Box::pin(self.recalled(conversation, asked))
    }

    fn forget<'a>(&'a self, what: Forget<'a>) -> Pending<'a, Option<Receipt>> {
        Box::pin(async move {
            let forgetting = self.0.forgetting.as_ref();
            let forgetting = forgetting.ok_or_else(|| MemoriesError::Forget("not wired here".to_owned()))?;
            forgetting.forget(what).await.map_err(|error| MemoriesError::Forget(format!("{error:#}")))
        })
    }

    fn let_go(&self, conversations: &[String]) {
        let mut held = self.0.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|ready| !ready.marks.iter().any(|(conversation, _)| conversations.contains(conversation)));
    }

    fn palace<'a>(&'a self, conversation: &'a str, loci_max: usize, show: Show) -> Pending<'a, Palace> {
        Box::pin(async move { Ok(self.ready(conversation).await?.drawn(loci_max, show)) })
    }
}

impl Ready {
    fn recall(
        &self,
        models: &Arc<Models>,
        question: &str,
        asker: Option<&str>,
        limit: usize,
        show: Show,
    ) -> Result<Vec<Found>, MemoriesError> {
        let question = recall::Question::of(models, self.tier, question);
        let question = question.map_err(|error| MemoriesError::Model(error.to_string()))?;
        let mut question = question.ok_or(MemoriesError::EmptyQuestion)?;
        let owner = self.owner.as_ref().map(|owner| owner.sender.as_str());
        question.asker = asker.or(owner).map(str::to_owned);
        let found = self.palace.recall(&question, models.memory().weights(self.tier), limit);
        Ok(found.into_iter().map(|(place, why)| self.found(place, &question, why, show)).collect())
    }

    fn found(&self, place: usize, question: &recall::Question, why: recall::Why, show: Show) -> Found {
        let (Kept { conversation, turn, locus }, memory) = (&self.turns[place], &self.palace.memories()[place]);
        let mut terms: Vec<String> =
            memory.terms.iter().filter(|term| question.terms.contains(term)).cloned().collect();
        terms.sort();
        terms.dedup();
        let room = &self.rooms[&(*conversation, locus.room)];
        let recall::Why { words, vector, around, session, speaker, length, time } = why;
        Found {
            conversation: turn.conversation.clone(),
            position: turn.position.unwrap_or_default(),
            id: turn.id.to_string(),
            at: turn.at,
            sender: turn.sender.as_ref().map(|sender| sender.id.clone()),
            name: turn.sender.as_ref().and_then(|sender| sender.name.clone()),
            text: turn.text.clone(),
            salience: memory.salience,
            locus: Place {
                room: locus.room,
                name: room.shown(show).then(|| room.name.clone()),
                shown: room.shown(show),
                place: locus.place,
            },
            score: why.score(),
            why: Why { words, vector, around, session, speaker, length, time },
            terms,
        }
    }

    /// The conversation's own rooms.
    fn drawn(&self, loci_max: usize, show: Show) -> Palace {
        let own = self.turns.iter().zip(self.palace.memories()).filter(|(kept, _)| kept.conversation == 0);
        let mut rooms: BTreeMap<i32, Room> = BTreeMap::new();
        let mut memories = 0;
        for (Kept { turn, locus, .. }, memory) in own {
            memories += 1;
            let named = &self.rooms[&(0, locus.room)];
            let room = rooms.entry(locus.room).or_insert_with(|| Room {
                room: locus.room,
                name: named.shown(show).then(|| named.name.clone()),
                shown: named.shown(show),
                x: locus.x,
                y: locus.y,
                memories: 0,
                first_at: turn.at,
                last_at: turn.at,
                salience: 0.0,
                loci: Vec::new(),
            });
            room.memories += 1;
            room.first_at = room.first_at.min(turn.at);
            room.last_at = room.last_at.max(turn.at);
            room.salience += (memory.salience - room.salience) / room.memories as f32;
            room.loci.push(Locus {
                place: locus.place,
                position: turn.position.unwrap_or_default(),
                id: turn.id.to_string(),
                at: turn.at,
                salience: memory.salience,
            });
        }
        for room in rooms.values_mut() {
            room.loci.reverse();
            room.loci.truncate(loci_max);
        }
        let conversation = self.marks.first().map(|(conversation, _)| conversation.clone()).unwrap_or_default();
        Palace { conversation, memories, rooms: rooms.into_values().collect() }
    }
}

impl Named {
    fn shown(&self, show: Show) -> bool {
        show == Show::All || !self.sensitive
    }
}

/// Whether a turn of another conversation is recalled in its owner's private chat.
fn is_shared(turn: &Turn, owner: &Owner) -> bool {
    let theirs = turn.person().is_some_and(|person| person == owner.person);
    // What the bot said in another private chat of theirs was said to them.
    let told = is_private(turn) && turn.sender.as_ref().is_some_and(|sender| sender.bot);
    turn.bot == owner.bot && (theirs || told)
}

fn is_private(turn: &Turn) -> bool {
    turn.chat_kind.as_deref() == Some("private")
}

/// A turn without what the palace holds of it already.
fn bare(turn: Turn) -> Turn {
    Turn { encoding: None, memory: None, ..turn }
}

async fn within<T>(work: impl Future<Output = Result<T, HistoryError>>) -> Result<T, MemoriesError> {
    let late = || DatabaseError::Away(format!("no answer within {} s", READ_WITHIN.as_secs()));
    let answer = tokio::time::timeout(READ_WITHIN, work).await;
    Ok(answer.unwrap_or_else(|_| Err(HistoryError::Database(late())))?)
}

#[cfg(test)]
mod tests;
