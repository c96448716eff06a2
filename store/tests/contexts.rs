//! What every store of contexts must do. Each check takes an empty store; another backend runs the same list.

use std::path::Path;
use std::time::Duration;

use schemas::Stamp;
use store::context::{Attempt, Batch, ContextError, Contexts, Epoch, Start, Version, Write};
use store::redis::{Redis, Settings};
use store::{DatabaseError, Durability};

/// Runs every check on every backend.
macro_rules! contract {
    ($($check:ident),* $(,)?) => {
        // In memory, or on the CQL server that `UNDERTONE_TEST_CASSANDRA` names; behind a Redis where `UNDERTONE_TEST_REDIS`
        // names one.
        mod chosen {
            $(#[tokio::test] async fn $check() { super::$check(tests::contexts().await).await; })*
        }
        mod in_a_file {
            $(#[tokio::test] async fn $check() {
                let dir = tempfile::tempdir().unwrap();
                super::$check(super::open(&dir.path().join("contexts.db")).await).await;
            })*
        }
    };
}
contract!(
    epochs_grow_with_every_assignment,
    chains_and_partitions_are_apart,
    slices_are_read_as_they_were_below_an_offset,
    new_conversation_is_absent_until_its_first_batch_is_below,
    slice_without_a_version_below_is_an_error,
    slice_of_another_partition_is_an_error,
    slice_of_a_partition_that_was_worked_off_before_the_conversation_moved_is_continued,
    older_epoch_has_no_effect,
    batches_of_several_partitions_are_saved_and_loaded_together_or_not_at_all,
    epoch_that_was_never_issued_has_no_effect,
    watermark_goes_back_after_an_abort,
    attempt_is_kept_until_cleared,
    only_the_asked_stages_are_loaded,
    cleared_partition_keeps_its_epoch_and_other_partitions,
    cleared_store_fences_every_owner,
    conversations_are_listed_in_pages,
);

async fn open(path: &Path) -> Contexts {
    tests::cached(Contexts::open(path).await.unwrap(), &path.display().to_string()).await
}

fn version(partition: i32, offset: i64) -> Version {
    Version { stamp: Stamp { partition, offset }, bytes: format!("{partition}/{offset}").into_bytes() }
}

fn write(conversation: &str, stage: &str, current: Version, previous: Option<Version>) -> Write {
    Write { conversation: conversation.to_owned(), stage: stage.to_owned(), current, previous }
}

fn batch(epoch: Epoch, partition: i32, watermark: i64, writes: Vec<Write>) -> Batch {
    Batch { chain: "all".to_owned(), partition, epoch, watermark, writes }
}

fn start(epoch: Epoch, partition: i32, below: i64, conversations: &[&str]) -> Start {
    let conversations = conversations.iter().map(|&conversation| conversation.to_owned()).collect();
    Start { partition, epoch, offset: below, below, conversations }
}

/// The offset of the version from which a batch at `below` would continue.
async fn loaded(contexts: &Contexts, below: i64, conversation: &str) -> Result<Option<i64>, ContextError> {
    let marks = contexts.watermarks().await?;
    let epoch =
        marks.iter().find(|mark| mark.chain == "all" && mark.partition == 0).map_or(Epoch(0), |mark| mark.epoch);
    let found = contexts.load("all", start(epoch, 0, below, &[conversation]), &["emotion"]).await?;
    Ok(found.get(&(conversation.to_owned(), "emotion".to_owned())).map(|version| version.stamp.offset))
}

async fn epochs_grow_with_every_assignment(contexts: Contexts) {
    let first = contexts.assign("all", 0).await.unwrap();
    assert_eq!((first.watermark, first.attempt), (None, None));
    let second = contexts.assign("all", 0).await.unwrap();
    assert!(second.epoch > first.epoch);
}

async fn chains_and_partitions_are_apart(contexts: Contexts) {
    let a = contexts.assign("a", 0).await.unwrap().epoch;
    contexts.assign("b", 0).await.unwrap();
    contexts.assign("b", 0).await.unwrap();
    contexts.assign("a", 1).await.unwrap();
    contexts.save(Batch { chain: "a".to_owned(), ..batch(a, 0, 7, Vec::new()) }).await.unwrap();
    let watermarks = contexts.watermarks().await.unwrap();
    let all: Vec<_> = watermarks.iter().map(|w| (w.chain.as_str(), w.partition, w.watermark)).collect();
    assert_eq!(all, [("a", 0, Some(7)), ("a", 1, None), ("b", 0, None)]);
}

async fn slices_are_read_as_they_were_below_an_offset(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let (old, new) = (version(0, 4), version(0, 9));
    contexts.save(batch(epoch, 0, 10, vec![write("c", "emotion", new.clone(), Some(old.clone()))])).await.unwrap();
    assert_eq!(loaded(&contexts, 10, "c").await.unwrap(), Some(9), "after the commit");
    assert_eq!(loaded(&contexts, 9, "c").await.unwrap(), Some(4), "the commit was aborted");
    assert_eq!(loaded(&contexts, 5, "c").await.unwrap(), Some(4), "the commit was aborted");
    let records = contexts.show("c").await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!((&records[0].current, &records[0].previous), (&new, &Some(old)));
    let assigned = contexts.assign("all", 0).await.unwrap();
    assert_eq!(assigned.watermark, Some(10));
}

async fn new_conversation_is_absent_until_its_first_batch_is_below(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    assert_eq!(loaded(&contexts, 0, "c").await.unwrap(), None);
    contexts.save(batch(epoch, 0, 4, vec![write("c", "emotion", version(0, 3), None)])).await.unwrap();
    assert_eq!(loaded(&contexts, 2, "c").await.unwrap(), None, "the commit was aborted: the conversation is new again");
    assert_eq!(loaded(&contexts, 4, "c").await.unwrap(), Some(3));
}

async fn slice_without_a_version_below_is_an_error(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let slice = write("c", "emotion", version(0, 9), Some(version(0, 4)));
    contexts.save(batch(epoch, 0, 10, vec![slice])).await.unwrap();
    let error = loaded(&contexts, 4, "c").await.unwrap_err();
    assert!(matches!(&error, ContextError::NoVersionBelow { below: 4, current: 9, previous: Some(4), .. }), "{error}");
    assert!(error.to_string().contains("undertone contexts rebuild"), "{error}");
}

async fn slice_of_another_partition_is_an_error(contexts: Contexts) {
    let epoch = contexts.assign("all", 1).await.unwrap().epoch;
    contexts.save(batch(epoch, 1, 10, vec![write("c", "emotion", version(1, 9), None)])).await.unwrap();
    let error = loaded(&contexts, 100, "c").await.unwrap_err();
    assert!(matches!(error, ContextError::ForeignPartition { found: 1, expected: 0, .. }), "{error}");
}

async fn slice_of_a_partition_that_was_worked_off_before_the_conversation_moved_is_continued(contexts: Contexts) {
    let epoch = contexts.assign("all", 1).await.unwrap().epoch;
    contexts.save(batch(epoch, 1, 10, vec![write("c", "emotion", version(1, 9), None)])).await.unwrap();
    contexts.note_drained(&[(1, 9)].into()).await.unwrap();
    loaded(&contexts, 0, "c").await.unwrap_err();
    contexts.note_drained(&[(1, 10)].into()).await.unwrap();
    assert_eq!(loaded(&contexts, 0, "c").await.unwrap(), Some(9));
    // It moves; after an abort there it is still the older slice.
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let moved = write("c", "emotion", version(0, 4), Some(version(1, 9)));
    contexts.save(batch(epoch, 0, 5, vec![moved])).await.unwrap();
    assert_eq!(loaded(&contexts, 4, "c").await.unwrap(), Some(9));
    assert_eq!(loaded(&contexts, 5, "c").await.unwrap(), Some(4));
}

async fn older_epoch_has_no_effect(contexts: Contexts) {
    let zombie = contexts.assign("all", 0).await.unwrap().epoch;
    let owner = contexts.assign("all", 0).await.unwrap().epoch;
    contexts.save(batch(owner, 0, 5, vec![write("c", "emotion", version(0, 4), None)])).await.unwrap();
    let late = batch(zombie, 0, 9, vec![write("c", "emotion", version(0, 8), Some(version(0, 4)))]);
    let error = contexts.save(late).await.unwrap_err();
    assert!(matches!(error, ContextError::Fenced { .. }), "{error}");
    let attempt = Some(Attempt { offset: 1, count: 1 });
    let error = contexts.note_attempt("all", 0, zombie, attempt).await.unwrap_err();
    assert!(matches!(error, ContextError::Fenced { .. }), "{error}");
    let error = contexts.clear_partition("all", 0, zombie, &["emotion"]).await.unwrap_err();
    assert!(matches!(error, ContextError::Fenced { .. }), "{error}");
    assert_eq!(loaded(&contexts, 100, "c").await.unwrap(), Some(4));
    let now = &contexts.watermarks().await.unwrap()[0];
    assert_eq!((now.watermark, now.attempt), (Some(5), None));
}

async fn batches_of_several_partitions_are_saved_and_loaded_together_or_not_at_all(contexts: Contexts) {
    let (first, lost) =
        (contexts.assign("all", 0).await.unwrap().epoch, contexts.assign("all", 1).await.unwrap().epoch);
    let batches = |second: Epoch| {
        vec![
            batch(first, 0, 10, vec![write("a", "emotion", version(0, 9), None)]),
            batch(second, 1, 20, vec![write("b", "emotion", version(1, 19), None)]),
        ]
    };
    let starts = |second| vec![start(first, 0, 10, &["a"]), start(second, 1, 20, &["b"])];
    let second = contexts.assign("all", 1).await.unwrap().epoch;
    let fenced = contexts.save_all(batches(lost)).await;
    assert!(matches!(fenced, Err(ContextError::Fenced { partition: 1, .. })), "{fenced:?}");
    assert!(
        contexts.load_all("all", starts(second), &["emotion"]).await.unwrap().is_empty(),
        "partition 0 has no part of it"
    );
    contexts.save_all(batches(second)).await.unwrap();
    assert_eq!(contexts.load_all("all", starts(second), &["emotion"]).await.unwrap().len(), 2);
    let marks: Vec<_> = contexts.watermarks().await.unwrap().into_iter().map(|w| w.watermark).collect();
    assert_eq!(marks, [Some(10), Some(20)]);
}

async fn epoch_that_was_never_issued_has_no_effect(contexts: Contexts) {
    let error = contexts.save(batch(Epoch(1), 0, 1, Vec::new())).await.unwrap_err();
    assert!(matches!(error, ContextError::Fenced { newest: 0, .. }), "{error}");
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let error = contexts.save(batch(Epoch(epoch.0 + 1), 0, 1, Vec::new())).await.unwrap_err();
    assert!(matches!(error, ContextError::Fenced { .. }), "{error}");
}

async fn watermark_goes_back_after_an_abort(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    contexts.save(batch(epoch, 0, 10, vec![write("c", "emotion", version(0, 9), None)])).await.unwrap();
    contexts.save(batch(epoch, 0, 1, vec![write("c", "emotion", version(0, 0), None)])).await.unwrap();
    assert_eq!(contexts.watermarks().await.unwrap()[0].watermark, Some(1));
    assert_eq!(loaded(&contexts, 1, "c").await.unwrap(), Some(0));
}

async fn attempt_is_kept_until_cleared(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let attempt = Some(Attempt { offset: 5, count: 2 });
    contexts.note_attempt("all", 0, epoch, attempt).await.unwrap();
    contexts.save(batch(epoch, 0, 5, Vec::new())).await.unwrap();
    let assigned = contexts.assign("all", 0).await.unwrap();
    assert_eq!(assigned.attempt, attempt);
    contexts.note_attempt("all", 0, assigned.epoch, None).await.unwrap();
    assert_eq!(contexts.assign("all", 0).await.unwrap().attempt, None);
}

async fn only_the_asked_stages_are_loaded(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let writes = ["encode", "emotion", "memory"].map(|stage| write("c", stage, version(0, 1), None));
    contexts.save(batch(epoch, 0, 2, writes.to_vec())).await.unwrap();
    let found = contexts.load("all", start(epoch, 0, 2, &["c", "d"]), &["emotion", "encode"]).await.unwrap();
    let mut keys: Vec<_> = found.keys().map(|(conversation, stage)| (conversation.as_str(), stage.as_str())).collect();
    keys.sort_unstable();
    assert_eq!(keys, [("c", "emotion"), ("c", "encode")]);
}

async fn cleared_partition_keeps_its_epoch_and_other_partitions(contexts: Contexts) {
    let first = contexts.assign("all", 0).await.unwrap().epoch;
    let second = contexts.assign("all", 1).await.unwrap().epoch;
    contexts.save(batch(first, 0, 5, vec![write("c", "emotion", version(0, 4), None)])).await.unwrap();
    contexts.save(batch(second, 1, 6, vec![write("d", "emotion", version(1, 5), None)])).await.unwrap();
    contexts.clear_partition("all", 0, first, &["emotion"]).await.unwrap();
    assert_eq!(loaded(&contexts, 100, "c").await.unwrap(), None);
    assert_eq!(contexts.show("d").await.unwrap().len(), 1);
    let now: Vec<_> = contexts.watermarks().await.unwrap().into_iter().map(|w| (w.epoch, w.watermark)).collect();
    assert_eq!(now, [(first, None), (second, Some(6))]);
}

async fn cleared_store_fences_every_owner(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    contexts.save(batch(epoch, 0, 5, vec![write("c", "emotion", version(0, 4), None)])).await.unwrap();
    contexts.clear().await.unwrap();
    assert!(contexts.conversations(None, 10).await.unwrap().is_empty());
    let error = contexts.save(batch(epoch, 0, 6, Vec::new())).await.unwrap_err();
    assert!(matches!(error, ContextError::Fenced { .. }), "{error}");
    assert_eq!(contexts.assign("all", 0).await.unwrap().watermark, None);
}

async fn conversations_are_listed_in_pages(contexts: Contexts) {
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let names = ["a", "b", "ü", "c:1"];
    let writes =
        names.iter().flat_map(|name| ["encode", "emotion"].map(|stage| write(name, stage, version(0, 0), None)));
    contexts.save(batch(epoch, 0, 1, writes.collect())).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let page = contexts.conversations(seen.last().map(String::as_str), 3).await.unwrap();
        if page.is_empty() {
            break;
        }
        seen.extend(page);
    }
    seen.sort();
    assert_eq!(seen, ["a", "b", "c:1", "ü"]);
}

#[tokio::test]
async fn redis_that_is_away_or_never_answers_is_done_without() {
    // Nobody accepts the second one's connections, so that what it is asked stays where it is.
    let [gone, silent] = ["127.0.0.1:0"; 2].map(|any| std::net::TcpListener::bind(any).unwrap());
    let nodes = [&gone, &silent].map(|listener| listener.local_addr().unwrap().to_string());
    drop(gone);
    for node in nodes {
        let settings = Settings {
            nodes: vec![node],
            call_timeout: Duration::from_millis(20),
            connect_timeout: Duration::from_millis(100),
            ..Settings::default()
        };
        let meter = opentelemetry::global::meter("test");
        let redis = Redis::connect(settings, &meter).await.unwrap();
        let contexts = Contexts::in_memory().await.unwrap().cached(redis, &meter);
        slices_are_read_as_they_were_below_an_offset(contexts).await;
    }
}

#[tokio::test]
async fn contexts_survive_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("contexts.db");
    let contexts = Contexts::open(&path).await.unwrap();
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    contexts.save(batch(epoch, 0, 4, vec![write("c", "emotion", version(0, 3), None)])).await.unwrap();
    drop(contexts);
    let contexts = Contexts::open_with(&path, Durability::Power).await.unwrap();
    assert_eq!(loaded(&contexts, 4, "c").await.unwrap(), Some(3));
    let assigned = contexts.assign("all", 0).await.unwrap();
    assert_eq!(assigned.watermark, Some(4));
    assert!(assigned.epoch > epoch);
}

#[tokio::test]
async fn two_handles_on_one_file_fence_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("contexts.db");
    let (one, two) = (Contexts::open(&path).await.unwrap(), Contexts::open(&path).await.unwrap());
    let first = one.assign("all", 0).await.unwrap().epoch;
    let second = two.assign("all", 0).await.unwrap().epoch;
    assert!(second > first);
    assert!(matches!(one.save(batch(first, 0, 1, Vec::new())).await, Err(ContextError::Fenced { .. })));
    two.save(batch(second, 0, 1, Vec::new())).await.unwrap();
}

#[tokio::test]
async fn file_of_a_newer_release_or_of_another_kind_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("contexts.db");
    drop(Contexts::open(&path).await.unwrap());
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    let error = Contexts::open(&path).await.unwrap_err();
    assert!(matches!(error, ContextError::Database(DatabaseError::Newer { found: 99, .. })), "{error}");
    raw.pragma_update(None, "user_version", 1).unwrap();
    let error = store::history::History::open(&path).await.unwrap_err().to_string();
    assert!(error.contains("is not a database of history"), "{error}");
    std::fs::write(dir.path().join("text"), "this is no database, and long enough to say so".repeat(40)).unwrap();
    let error = Contexts::open(&dir.path().join("text")).await.unwrap_err();
    assert!(matches!(error, ContextError::Database(DatabaseError::Damaged(_))), "{error}");
    let error = Contexts::open(&dir.path().join("absent/contexts.db")).await.unwrap_err();
    assert!(matches!(error, ContextError::Database(DatabaseError::Open { .. })), "{error}");
}

#[tokio::test]
async fn batch_that_fails_half_way_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("contexts.db");
    let contexts = Contexts::open(&path).await.unwrap();
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.execute_batch(
        "CREATE TRIGGER refuse BEFORE INSERT ON slices WHEN new.conversation = 'bad'
         BEGIN SELECT raise(ABORT, 'refused by the test'); END;",
    )
    .unwrap();
    let writes = ["good", "bad"].map(|name| write(name, "emotion", version(0, 0), None));
    contexts.save(batch(epoch, 0, 1, writes.to_vec())).await.unwrap_err();
    assert_eq!(loaded(&contexts, 1, "good").await.unwrap(), None);
    assert_eq!(contexts.watermarks().await.unwrap()[0].watermark, None);
}
