//! The contract of the keys of sealed turns, on a file and on the Apache Cassandra that `UNDERTONE_TEST_CASSANDRA` names.

use std::path::Path;

use schemas::seal::{Held, Key};
use store::Durability;
use store::cql::{Keyspace, Scylla};
use store::keys::{Keys, Retired};
use uuid::Uuid;

/// What a test opens its keys on, as several processes would.
struct Place {
    folder: tempfile::TempDir,
    scylla: Option<Scylla>,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), scylla: tests::cassandra() }
    }

    async fn open(&self) -> Keys {
        match &self.scylla {
            Some(settings) => Keys::on_scylla(Keyspace::connect(settings).await.unwrap()).await.unwrap(),
            None => Keys::open(&self.folder.path().join("keys.sqlite"), Durability::Power).await.unwrap(),
        }
    }
}

async fn held(keys: &Keys, id: Uuid) -> Held {
    keys.learn([id]).await.unwrap();
    keys.ring().find(id)
}

#[tokio::test]
async fn each_person_in_each_conversation_has_a_key_that_every_process_finds() {
    let place = Place::new();
    let (one, other) = (place.open().await, place.open().await);
    let ann = one.current("room", "ann", 1000).await.unwrap();
    assert_eq!(one.current("room", "ann", 2000).await.unwrap(), ann);
    assert_eq!(other.current("room", "ann", 2000).await.unwrap(), ann);
    let mut ids = vec![ann.id];
    for (conversation, person) in [("room", "bob"), ("hall", "ann"), ("room", "")] {
        ids.push(one.current(conversation, person, 1000).await.unwrap().id);
    }
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 4);

    assert_eq!(other.ring().find(ann.id), Held::Unknown, "nobody has asked yet");
    assert_eq!(held(&other, ann.id).await, Held::Key(ann));
    assert_eq!(held(&other, Uuid::new_v4()).await, Held::Absent);
    assert!(one.since().await.unwrap() <= other.since().await.unwrap() && one.since().await.unwrap() > 0);
}

#[tokio::test]
async fn a_person_s_conversations_are_those_with_a_key_and_a_gap_is_remembered() {
    let place = Place::new();
    let keys = place.open().await;
    for conversation in ["room", "hall"] {
        keys.current(conversation, "ann", 1000).await.unwrap();
    }
    keys.current("loft", "bob", 1000).await.unwrap();
    let of_ann = async || {
        let mut of = keys.conversations_of("ann", 10).await.unwrap();
        of.sort();
        of
    };
    assert_eq!(of_ann().await, ["hall", "room"]);
    let Retired { ids, until } = keys.retire("room", Some("ann"), 5000).await.unwrap();
    let again = place.open().await.current("room", "ann", until).await.unwrap();
    keys.destroy("room", &ids).await.unwrap();
    assert_eq!(of_ann().await, ["hall", "room"], "there is another key by now");
    keys.destroy("room", &[again.id]).await.unwrap();
    assert_eq!(of_ann().await, ["hall"]);

    let first = keys.since().await.unwrap();
    keys.lapse().await.unwrap();
    let later = place.open().await.since().await.unwrap();
    assert!(later >= first && place.open().await.since().await.unwrap() == later, "it counts from the next time on");
}

#[tokio::test]
async fn a_retired_key_seals_what_was_taken_before_and_nothing_else() {
    let place = Place::new();
    let (one, other) = (place.open().await, place.open().await);
    let (before, bob) =
        (one.current("room", "ann", 1000).await.unwrap(), one.current("room", "bob", 1000).await.unwrap());
    let Retired { ids, until } = other.retire("room", Some("ann"), 5000).await.unwrap();
    assert_eq!((ids.as_slice(), until > 5000), (&[before.id][..], true));
    // Retired again it stays so from the first time on.
    assert_eq!(other.retire("room", Some("ann"), 9000).await.unwrap().ids, ids);
    // Whoever looked before the retirement goes by that for a moment, and the time that was told is behind that moment.
    assert_eq!(one.current("room", "ann", 5001).await.unwrap(), before);
    let third = place.open().await;
    assert_eq!(third.current("room", "ann", until - 1).await.unwrap(), before);
    let after = third.current("room", "ann", until).await.unwrap();
    assert_ne!(after, before);
    assert_eq!(third.current("room", "ann", until + 1).await.unwrap(), after);
    assert_eq!(third.current("room", "bob", until).await.unwrap(), bob, "who was not asked for keeps theirs");
    let mut all = third.retire("room", None, 20_000).await.unwrap().ids;
    let mut expected = vec![before.id, after.id, bob.id];
    all.sort_unstable();
    expected.sort_unstable();
    assert_eq!(all, expected);
}

#[tokio::test]
async fn a_destroyed_key_is_gone_and_known_to_have_been_there() {
    let place = Place::new();
    let (one, other) = (place.open().await, place.open().await);
    let (key, stays) =
        (one.current("room", "ann", 1000).await.unwrap(), one.current("hall", "ann", 1000).await.unwrap());
    let ids = one.retire("room", None, 5000).await.unwrap().ids;
    // Of another conversation it destroys nothing.
    one.destroy("hall", &ids).await.unwrap();
    assert_eq!(held(&other, key.id).await, Held::Key(key.clone()));
    one.destroy("room", &ids).await.unwrap();
    one.destroy("room", &ids).await.unwrap();
    assert_eq!(held(&one, key.id).await, Held::Destroyed, "whoever destroys it lets go of it at once");
    assert_eq!(held(&place.open().await, key.id).await, Held::Destroyed);
    assert!(one.retire("room", None, 6000).await.unwrap().ids.is_empty(), "there is nothing left to destroy");
    assert_ne!(place.open().await.current("room", "ann", 9000).await.unwrap(), key);
    assert_eq!(held(&one, stays.id).await, Held::Key(stays.clone()));
    if place.scylla.is_none() {
        assert_eq!(one.settle().await.unwrap(), Some(true));
        assert!(has(place.folder.path(), &stays), "the search finds what is there");
        assert!(!has(place.folder.path(), &key), "no file has the key");
    }
}

/// Whether a file of a folder holds a key.
fn has(folder: &Path, key: &Key) -> bool {
    let mut files = std::fs::read_dir(folder).unwrap().map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
    files.any(|bytes| bytes.windows(32).any(|part| part == key.secret))
}
