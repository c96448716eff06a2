//! What recall looks through, and what is shown of a palace; without models.

use api::memories::Memories as _;
use schemas::{Embedding, Encoding, Memory, Provenance, Sender};
use store::history::{Memory as Stored, Row};

use super::*;

const EVERYTHING: usize = 1 << 30;

/// A turn that is worth remembering.
fn said(conversation: &str, position: i64, who: &str, kind: &str, text: &str) -> Turn {
    let provenance = Provenance { model: "m".to_owned(), version: "1".to_owned(), tier: Tier::Fast };
    let locus = schemas::Locus {
        room: 1 + (position % 2) as i32,
        name: format!("room of {position}"),
        place: position as i32,
        x: (position % 2) as i32,
        y: 0,
        sensitive: false,
    };
    let bot = who == "bot";
    Turn {
        position: Some(position),
        bot: Some("helper".to_owned()),
        chat_kind: Some(kind.to_owned()),
        sender: Some(Sender { id: who.to_owned(), name: Some(who.to_owned()), bot }),
        encoding: Some(Encoding {
            provenance: provenance.clone(),
            embedding: Embedding::quantise(&[1.0, 0.5]),
            language: None,
            language_confidence: None,
            feeling: None,
            grams: None,
        }),
        memory: Some(Memory {
            provenance,
            salience: 0.5,
            keep: true,
            terms: text.split(' ').map(str::to_owned).collect(),
            locus: Some(locus),
        }),
        ..Turn::message("telegram", conversation, "helper", &position.to_string(), text, 1000 * position)
    }
}

async fn keep(history: &History, turns: &[Turn]) {
    let codec = schemas::Codec::embedded();
    let row = |turn: &Turn| Row {
        conversation: turn.conversation.clone(),
        position: turn.position.unwrap(),
        id: turn.id,
        at: turn.at,
        person: turn.person(),
        value: codec.encode(turn).unwrap(),
    };
    let memory = |turn: &Turn| Stored {
        conversation: turn.conversation.clone(),
        position: turn.position.unwrap(),
        person: turn.person(),
        room: turn.memory.as_ref().unwrap().locus.as_ref().unwrap().room,
        salience: turn.memory.as_ref().unwrap().salience,
        value: codec.encode(turn).unwrap(),
    };
    history.remember(turns.iter().map(row).collect(), turns.iter().map(memory).collect()).await.unwrap();
}

fn remembering(history: &History, scope: Scope) -> Remembering {
    Remembering::new(history.clone(), Registry::embedded(), Loaded::default(), scope, EVERYTHING, None)
}

/// What a question about a conversation looks through.
async fn searched(remembering: &Remembering, conversation: &str) -> Vec<String> {
    let ready = remembering.ready(conversation).await.unwrap();
    let mut texts: Vec<String> = ready.turns.iter().map(|kept| kept.turn.text.clone()).collect();
    texts.sort();
    texts
}

async fn of_ann_and_ben() -> History {
    let history = History::in_memory().await.unwrap();
    let mut other_bot = said("private:other", 1, "ann", "private", "to another bot");
    other_bot.bot = Some("other".to_owned());
    keep(
        &history,
        &[
            said("private:ann", 1, "ann", "private", "a secret"),
            said("private:ann", 2, "bot", "private", "an answer"),
            said("second:ann", 1, "ann", "private", "a second chat"),
            said("second:ann", 2, "bot", "private", "a second answer"),
            said("private:ben", 1, "ben", "private", "of ben"),
            said("group", 1, "ann", "group", "ann to all"),
            said("group", 2, "ben", "group", "ben to all"),
            said("group", 3, "bot", "group", "bot to all"),
            said("hall", 1, "ann", "room", "of a hall"),
            other_bot,
        ],
    )
    .await;
    history
}

#[tokio::test]
async fn a_private_chat_recalls_what_its_person_said_elsewhere_where_it_is_wanted() {
    let history = Box::pin(of_ann_and_ben()).await;
    let alone = remembering(&history, Scope::Conversation);
    assert_eq!(searched(&alone, "private:ann").await, ["a secret", "an answer"]);
    let person = remembering(&history, Scope::Person);
    let expected = ["a second answer", "a second chat", "a secret", "an answer", "ann to all", "of a hall"];
    assert_eq!(searched(&person, "private:ann").await, expected);
    let palace = person.palace("private:ann", 9, Show::Usual).await.unwrap();
    assert_eq!(palace.memories, 2, "the palace is the conversation's own");
}

#[tokio::test]
async fn nothing_of_a_private_chat_is_recalled_in_a_group() {
    let history = Box::pin(of_ann_and_ben()).await;
    let person = remembering(&history, Scope::Person);
    assert_eq!(searched(&person, "group").await, ["ann to all", "ben to all", "bot to all"]);
    assert_eq!(searched(&person, "hall").await, ["of a hall"]);
    // Somebody else speaks in it: it is nobody's own.
    keep(&history, &[said("second:ann", 3, "ben", "private", "who is this")]).await;
    assert_eq!(searched(&person, "second:ann").await, ["a second answer", "a second chat", "who is this"]);
    // And that it was private once does not make it so.
    keep(&history, &[said("private:ben", 2, "ben", "group", "opened")]).await;
    assert_eq!(searched(&person, "private:ben").await, ["of ben", "opened"]);
}

#[tokio::test]
async fn new_turns_and_erasures_are_seen_at_once() {
    let history = Box::pin(of_ann_and_ben()).await;
    let person = remembering(&history, Scope::Person);
    assert_eq!(searched(&person, "private:ann").await.len(), 6);
    keep(&history, &[said("second:ann", 3, "ann", "private", "one more")]).await;
    assert_eq!(searched(&person, "private:ann").await.len(), 7);
    history.erase_turns("group", vec![1]).await.unwrap();
    assert!(!searched(&person, "private:ann").await.contains(&"ann to all".to_owned()));
    history.erase_conversation("second:ann").await.unwrap();
    assert_eq!(searched(&person, "private:ann").await, ["a secret", "an answer", "of a hall"]);
    history.erase_person("telegram:ann").await.unwrap();
    assert_eq!(searched(&person, "private:ann").await, ["an answer"]);

    let held = || person.0.held.lock().unwrap().get("private:ann").is_some();
    person.let_go(&["group".to_owned()]);
    assert!(held());
    person.let_go(&["private:ann".to_owned()]);
    assert!(!held());
}

#[tokio::test]
async fn a_room_is_called_by_its_newest_memory_and_hidden_if_any_was_sensitive() {
    let history = History::in_memory().await.unwrap();
    let mut turns: Vec<Turn> = (1..=5).map(|position| said("c", position, "ann", "room", "words")).collect();
    let sensitive = |turn: &mut Turn| turn.memory.as_mut().unwrap().locus.as_mut().unwrap().sensitive = true;
    sensitive(&mut turns[1]);
    keep(&history, &turns).await;
    let remembering = remembering(&history, Scope::Conversation);
    let palace = remembering.palace("c", 2, Show::Usual).await.unwrap();
    let rooms: Vec<_> = palace.rooms.iter().map(|room| (room.room, room.name.as_deref(), room.memories)).collect();
    assert_eq!(rooms, [(1, None, 2), (2, Some("room of 5"), 3)]);
    assert_eq!(palace.rooms[1].loci.iter().map(|locus| locus.place).collect::<Vec<_>>(), [5, 3]);
    assert_eq!((palace.rooms[1].first_at, palace.rooms[1].last_at), (1000, 5000));
    let all = remembering.palace("c", 2, Show::All).await.unwrap();
    assert_eq!(all.rooms[0].name.as_deref(), Some("room of 4"));

    let picture = map::picture(&palace);
    assert!(picture.contains("room of 5") && !picture.contains("room of 4") && picture.contains("not shown"));
    assert_eq!(picture.matches("<circle").count(), 4);
    assert!(map::picture(&all).contains("room of 4"));
}

#[tokio::test]
async fn who_has_no_models_is_told_and_so_is_who_asks_about_nothing() {
    let history = Box::pin(of_ann_and_ben()).await;
    let remembering = remembering(&history, Scope::Conversation);
    let asked = Asked { question: "where?", asker: None, limit: 5, show: Show::Usual };
    let error = remembering.recall("group", asked).await.unwrap_err();
    assert!(matches!(error, MemoriesError::NoModels(_)), "{error}");
    let error = remembering.palace("nowhere", 5, Show::Usual).await.unwrap_err();
    assert!(matches!(error, MemoriesError::UnknownConversation), "{error}");
}

#[test]
fn names_cannot_break_a_picture() {
    let room = Room {
        room: 1,
        name: Some("<b>\"&\u{7}".to_owned()),
        shown: true,
        x: 0,
        y: 0,
        memories: 1,
        first_at: 0,
        last_at: 0,
        salience: 0.5,
        loci: Vec::new(),
    };
    let picture = map::picture(&Palace { conversation: "a<b".to_owned(), memories: 1, rooms: vec![room] });
    assert!(picture.contains("a&lt;b") && picture.contains("&lt;b&gt;&quot;&amp;<"), "{picture}");
    assert!(map::picture(&Palace { conversation: "c".to_owned(), memories: 0, rooms: Vec::new() }).contains("</svg>"));
}
