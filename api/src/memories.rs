//! What is remembered: memories that answer a question, and the palace that they stand in.
//!
//! Both are of one conversation, and whoever may read its history may ask. How memories are found, and how far recall looks,
//! is behind [`Memories`], which the program wires with the models; the names of rooms that speak of health, sex, religion
//! or politics are left out unless `sensitive=1` asks for them. Lengths and numbers are bounded here.

use std::pin::Pin;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::response::Response;
use serde::Serialize;
use store::history::HistoryError;

use crate::Shared;
use crate::command::flag;
use crate::history::{answer, get, unavailable};
use crate::problem::Problem;

/// Longest question, in bytes.
const QUESTION_BYTES_MAX: usize = 2048;
/// Longest name of who asks, in bytes.
const ASKER_BYTES_MAX: usize = 256;
/// Memories that an answer has, where no limit is asked for, and at most.
const MEMORIES: (usize, usize) = (10, 100);
/// Places of each room that a palace shows, likewise.
const LOCI: (usize, usize) = (20, 1000);

type Pairs = Query<Vec<(String, String)>>;

/// What is on its way.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, MemoriesError>> + Send + 'a>>;

/// Finds memories, and shows where they stand.
pub trait Memories: std::fmt::Debug + Send + Sync {
    /// The memories that answer a question best, the best first.
    fn recall<'a>(&'a self, conversation: &'a str, asked: Asked<'a>) -> Pending<'a, Recalled>;

    /// Forgets; `None` if there is nothing of it.
    fn forget<'a>(&'a self, what: Forget<'a>) -> Pending<'a, Option<Receipt>>;

    /// Lets go of what is held of conversations in which something was forgotten.
    fn let_go(&self, conversations: &[String]);

    /// The rooms of a conversation, with the newest `loci_max` places of each.
    fn palace<'a>(&'a self, conversation: &'a str, loci_max: usize, show: Show) -> Pending<'a, Palace>;
}

/// What is to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forget<'a> {
    /// One memory, with its turn.
    Memory {
        /// Its conversation.
        conversation: &'a str,
        /// The position of its turn.
        position: i64,
    },
    /// The memories of a room, with their turns.
    Room {
        /// Its conversation.
        conversation: &'a str,
        /// Its number.
        room: i32,
    },
    /// All that was said in a conversation.
    Conversation(&'a str),
    /// All that a person said, as `SOURCE:SENDER`.
    Person(&'a str),
}

/// What was forgotten, and every place that held the words.
#[derive(Debug, Clone, Serialize)]
pub struct Receipt {
    /// The erasure's id.
    pub id: String,
    /// When it was asked for.
    pub at: String,
    /// What it was.
    pub what: String,
    /// Turns that were erased in the history.
    pub turns: u64,
    /// Whether no place holds the words any more.
    pub complete: bool,
    /// The places.
    pub places: Vec<Held>,
    /// Conversations that it touched.
    #[serde(skip)]
    pub conversations: Vec<String>,
}

impl Receipt {
    /// A receipt; it is complete where every place is erased, or its key destroyed.
    pub fn new(
        id: impl ToString,
        at: String,
        what: String,
        turns: u64,
        conversations: Vec<String>,
        places: Vec<Held>,
    ) -> Receipt {
        let complete = places.iter().all(|held| ["erased", "key_destroyed"].contains(&held.state));
        Receipt { id: id.to_string(), at, what, turns, complete, places, conversations }
    }
}

/// A place that held the words.
#[derive(Debug, Clone, Serialize)]
pub struct Held {
    /// What it is.
    pub place: String,
    /// `erased`, `key_destroyed`, `expires`, or `pending`.
    pub state: &'static str,
    /// When it expires.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Why it is pending.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl Held {
    /// The words are gone.
    pub fn erased(place: &str) -> Held {
        Held { place: place.to_owned(), state: "erased", until: None, why: None }
    }

    /// They are there, encrypted by a key that is not there any more.
    pub fn key_destroyed(place: &str) -> Held {
        Held { place: place.to_owned(), state: "key_destroyed", until: None, why: None }
    }

    /// Time takes them, at the latest then.
    pub fn expires(place: &str, until: String) -> Held {
        Held { place: place.to_owned(), state: "expires", until: Some(until), why: None }
    }

    /// They are there still.
    pub fn pending(place: &str, why: &str) -> Held {
        Held { place: place.to_owned(), state: "pending", until: None, why: Some(why.to_owned()) }
    }
}

/// A question.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// In words.
    pub question: &'a str,
    /// Who asks, as the source names them: they are meant by "I" and "my".
    pub asker: Option<&'a str>,
    /// Most memories to find.
    pub limit: usize,
    /// Which names are told.
    pub show: Show,
}

/// Which rooms are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Those that do not speak of health, sex, religion or politics.
    Usual,
    /// All of them.
    All,
}

/// The answer to a question.
#[derive(Debug, Clone, Serialize)]
pub struct Recalled {
    /// The conversation that was asked about.
    pub conversation: String,
    /// What was looked through: `conversation`, or `person`.
    pub scope: &'static str,
    /// Memories that were looked through.
    pub searched: usize,
    /// The best, the best first.
    pub memories: Vec<Found>,
}

/// A memory that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// Where it was said.
    pub conversation: String,
    /// The position of its turn.
    pub position: i64,
    /// The id of its turn.
    pub id: String,
    /// When it was said, in milliseconds since the Unix epoch.
    pub at: i64,
    /// Who said it, as the source names them.
    pub sender: Option<String>,
    /// How they are called.
    pub name: Option<String>,
    /// The words.
    pub text: String,
    /// How much it tells, 0 to 1.
    pub salience: f32,
    /// Where it stands.
    pub locus: Place,
    /// How well it answers.
    pub score: f32,
    /// The shares of which the score is the sum.
    pub why: Why,
    /// Stems that it has in common with the question.
    pub terms: Vec<String>,
}

/// What each kind of evidence adds to a score.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Why {
    /// Its words and those of the turns around it.
    pub words: f32,
    /// Its vector.
    pub vector: f32,
    /// The vectors of the turns before and after.
    pub around: f32,
    /// Words and vectors of its session.
    pub session: f32,
    /// That its speaker is meant.
    pub speaker: f32,
    /// How much it says.
    pub length: f32,
    /// That its time is named.
    pub time: f32,
}

/// A place in a room; it never changes.
#[derive(Debug, Clone, Serialize)]
pub struct Place {
    /// Number of the room.
    pub room: i32,
    /// What the room is called; nothing where it is not shown.
    pub name: Option<String>,
    /// Whether the room is shown.
    pub shown: bool,
    /// Number of the place in the room.
    pub place: i32,
}

/// The rooms of a conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Palace {
    /// Whose it is.
    pub conversation: String,
    /// Memories that stand in it.
    pub memories: usize,
    /// The rooms, in the order in which they were built.
    pub rooms: Vec<Room>,
}

/// A room: a subject of the conversation.
#[derive(Debug, Clone, Serialize)]
pub struct Room {
    /// 1, 2, 3 … in the order in which they were built.
    pub room: i32,
    /// Its words; nothing where it is not shown.
    pub name: Option<String>,
    /// Whether it is shown.
    pub shown: bool,
    /// Where it stands on the map, eastwards.
    pub x: i32,
    /// Where it stands on the map, northwards.
    pub y: i32,
    /// Memories that stand in it.
    pub memories: usize,
    /// When the first of them was said, in milliseconds since the Unix epoch.
    pub first_at: i64,
    /// When the last of them was said.
    pub last_at: i64,
    /// Their mean salience.
    pub salience: f32,
    /// The newest of its places, the newest first.
    pub loci: Vec<Locus>,
}

/// A memory in its place.
#[derive(Debug, Clone, Serialize)]
pub struct Locus {
    /// Number of the place in the room.
    pub place: i32,
    /// The position of its turn.
    pub position: i64,
    /// The id of its turn.
    pub id: String,
    /// When it was said, in milliseconds since the Unix epoch.
    pub at: i64,
    /// How much it tells, 0 to 1.
    pub salience: f32,
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MemoriesError {
    /// Nothing is known of the conversation.
    #[error("nothing is known of this conversation")]
    UnknownConversation,
    /// The question has no words that can be asked.
    #[error("the question has nothing in it that can be asked")]
    EmptyQuestion,
    /// This process has no models, or none yet.
    #[error("{0}")]
    NoModels(&'static str),
    /// Memories could not be read.
    #[error("read the memories: {0}")]
    History(#[from] HistoryError),
    /// It could not be forgotten, or not wholly: ask again.
    #[error("forget: {0}")]
    Forget(String),
    /// A model failed; a fault of ours.
    #[error("ask the models: {0}")]
    Model(String),
}

/// `GET /v1/conversations/{id}/memories`.
pub(crate) async fn recall(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Pairs,
) -> Result<Response, Problem> {
    let memories = memories(&shared, &id)?;
    let question = get(&query, "q").filter(|question| !question.trim().is_empty());
    let question =
        question.ok_or_else(|| Problem::parameter("q", "is missing", "ask something: q=where did we meet"))?;
    bounded("q", question, QUESTION_BYTES_MAX)?;
    let asker = get(&query, "asker");
    asker.map_or(Ok(()), |asker| bounded("asker", asker, ASKER_BYTES_MAX))?;
    let asked = Asked { question, asker, limit: limit(&query, MEMORIES)?, show: show(&query)? };
    let recalled = memories.recall(&id, asked).await.map_err(|error| problem(error, &id))?;
    Ok(answer(serde_json::to_string(&recalled).unwrap_or_default()))
}

/// `GET /v1/conversations/{id}/palace`.
pub(crate) async fn palace(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Pairs,
) -> Result<Response, Problem> {
    let memories = memories(&shared, &id)?;
    let palace = memories.palace(&id, limit(&query, LOCI)?, show(&query)?).await;
    let palace = palace.map_err(|error| problem(error, &id))?;
    Ok(answer(serde_json::to_string(&palace).unwrap_or_default()))
}

/// `DELETE /v1/conversations/{id}`.
pub(crate) async fn forget_conversation(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    forget(&shared, Forget::Conversation(&id), &id).await
}

/// `DELETE /v1/conversations/{id}/memories/{position}`.
pub(crate) async fn forget_memory(
    State(shared): State<Arc<Shared>>,
    Path((id, position)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let position = position.parse().ok().filter(|position| *position > 0);
    let position = position.ok_or_else(|| Problem::parameter("position", "is no position", "send 1 or more"))?;
    forget(&shared, Forget::Memory { conversation: &id, position }, &id).await
}

/// `DELETE /v1/conversations/{id}/rooms/{room}`.
pub(crate) async fn forget_room(
    State(shared): State<Arc<Shared>>,
    Path((id, room)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let room = room.parse().ok().filter(|room| *room > 0);
    let room = room.ok_or_else(|| Problem::parameter("room", "is no room", "send 1 or more"))?;
    forget(&shared, Forget::Room { conversation: &id, room }, &id).await
}

/// `DELETE /v1/people/{person}`.
pub(crate) async fn forget_person(
    State(shared): State<Arc<Shared>>,
    Path(person): Path<String>,
) -> Result<Response, Problem> {
    forget(&shared, Forget::Person(&person), &person).await
}

async fn forget(shared: &Shared, what: Forget<'_>, name: &str) -> Result<Response, Problem> {
    let memories = memories(shared, name)?;
    let receipt = memories.forget(what).await.map_err(|error| problem(error, name))?;
    let receipt = receipt.ok_or_else(|| Problem::nothing_to_forget(name))?;
    let_go(shared, &receipt.conversations);
    Ok(answer(serde_json::to_string(&receipt).unwrap_or_default()))
}

/// Lets go of what this process holds of conversations in which something was forgotten.
pub(crate) fn let_go(shared: &Shared, conversations: &[String]) {
    conversations.iter().for_each(|conversation| shared.hub.let_go(conversation));
    shared.history.let_go();
    if let Some(memories) = &shared.memories {
        memories.let_go(conversations);
    }
}

fn memories<'s>(shared: &'s Shared, id: &str) -> Result<&'s Arc<dyn Memories>, Problem> {
    if id.len() > shared.config.conversation_bytes_max {
        return Err(Problem::unknown_conversation(id));
    }
    shared.memories.as_ref().ok_or_else(|| problem(MemoriesError::NoModels("nothing here remembers"), id))
}

fn bounded(name: &str, text: &str, bytes_max: usize) -> Result<(), Problem> {
    if text.len() <= bytes_max {
        return Ok(());
    }
    Err(Problem::parameter(name, format!("has more than {bytes_max} bytes"), "send a shorter one"))
}

fn limit(query: &[(String, String)], (usual, max): (usize, usize)) -> Result<usize, Problem> {
    let Some(text) = get(query, "limit") else { return Ok(usual) };
    let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| Problem::parameter("limit", format!("must be 1 to {max}"), "send a number in this range"))
}

fn show(query: &[(String, String)]) -> Result<Show, Problem> {
    let Some(value) = get(query, "sensitive") else { return Ok(Show::Usual) };
    match flag("sensitive", value) {
        Ok(all) => Ok(if all { Show::All } else { Show::Usual }),
        Err(fault) => Err(Problem::parameter("sensitive", fault.message, "send sensitive=1 for all rooms")),
    }
}

fn problem(error: MemoriesError, conversation: &str) -> Problem {
    match error {
        MemoriesError::UnknownConversation => Problem::unknown_conversation(conversation),
        MemoriesError::EmptyQuestion => Problem::parameter("q", "has no words", "ask in words"),
        MemoriesError::NoModels(why) => Problem::recall_unavailable(why),
        MemoriesError::History(error) => unavailable(error),
        MemoriesError::Forget(error) => {
            tracing::error!(%error, "could not forget");
            Problem::not_forgotten()
        }
        MemoriesError::Model(error) => {
            tracing::error!(%error, "recall failed");
            Problem::recall_unavailable("the models failed; the log says why")
        }
    }
}
