//! What every history must do. Each check takes an empty one; another backend runs the same list.

use store::history::{Conversation, Cursor, History, Memory, PAGE_MAX, Page, Row};
use uuid::Uuid;

/// Runs every check on every backend.
macro_rules! contract {
    ($($check:ident),* $(,)?) => {
        // In memory, or on the CQL server that `UNDERTONE_TEST_CASSANDRA` names.
        mod chosen {
            $(#[tokio::test] async fn $check() { super::$check(tests::history().await).await; })*
        }
        mod in_a_file {
            $(#[tokio::test] async fn $check() {
                let dir = tempfile::tempdir().unwrap();
                super::$check(super::History::open(&dir.path().join("history.db")).await.unwrap()).await;
            })*
        }
    };
}
contract!(
    writing_twice_changes_nothing,
    turns_are_paged_from_either_end,
    conversations_are_apart,
    conversations_are_listed_by_last_activity,
    conversation_of_the_latest_time_there_is_stands_first,
    conversation_that_becomes_active_while_listed_is_not_missed,
    unknown_conversation_is_empty,
    page_is_bounded,
    long_conversation_is_paged_through_from_either_end,
    list_goes_on_over_minutes_and_days,
    turns_are_dense_while_they_are_written,
    erased_conversation_is_gone_and_goes_on,
    what_a_person_said_is_erased_and_the_rest_stays,
    memories_are_kept_beside_their_turns,
    the_least_salient_memories_fade_however_they_come,
    memories_go_with_what_they_are_of,
    some_turns_are_erased_and_the_rest_stays,
);

fn row(conversation: &str, position: i64, at: i64) -> Row {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{conversation}/{position}").as_bytes());
    Row {
        conversation: conversation.to_owned(),
        position,
        id,
        at,
        person: Some(format!("test:{}", if position % 3 == 0 { "ben" } else { "ann" })),
        value: format!("turn {position}").into_bytes(),
    }
}

async fn positions(history: &History, conversation: &str, page: Page, limit: usize) -> Vec<i64> {
    history.turns(conversation, page, limit).await.unwrap().iter().map(|row| row.position).collect()
}

async fn writing_twice_changes_nothing(history: History) {
    let rows: Vec<_> = (1..=3).map(|position| row("c", position, 100 + position)).collect();
    history.upsert(rows.clone()).await.unwrap();
    history.upsert(rows[..2].to_vec()).await.unwrap();
    assert_eq!(history.turns("c", Page::After(0), 10).await.unwrap(), rows);
    let listed = history.conversations(None, 10).await.unwrap();
    assert_eq!(listed, [Conversation { conversation: "c".to_owned(), last_at: 103, last_position: 3 }]);
}

async fn turns_are_paged_from_either_end(history: History) {
    history.upsert((1..=7).map(|position| row("c", position, position)).collect()).await.unwrap();
    assert_eq!(positions(&history, "c", Page::Before(None), 3).await, [7, 6, 5]);
    assert_eq!(positions(&history, "c", Page::Before(Some(5)), 3).await, [4, 3, 2]);
    assert_eq!(positions(&history, "c", Page::Before(Some(2)), 3).await, [1]);
    assert_eq!(positions(&history, "c", Page::After(0), 3).await, [1, 2, 3]);
    assert_eq!(positions(&history, "c", Page::After(6), 3).await, [7]);
    assert_eq!(positions(&history, "c", Page::After(7), 3).await, [0; 0]);
}

async fn conversations_are_apart(history: History) {
    history.upsert(vec![row("a", 1, 1), row("b", 1, 2), row("a", 2, 3)]).await.unwrap();
    assert_eq!(positions(&history, "a", Page::After(0), 9).await, [1, 2]);
    assert_eq!(positions(&history, "b", Page::After(0), 9).await, [1]);
    assert_eq!(history.last_position("a").await.unwrap(), Some(2));
}

async fn conversations_are_listed_by_last_activity(history: History) {
    // Two have the same time: the list must not lose one at a border between pages.
    history.upsert(vec![row("a", 1, 10), row("b", 1, 30), row("c", 1, 20), row("d", 1, 20)]).await.unwrap();
    history.upsert(vec![row("a", 2, 5)]).await.unwrap();
    let mut seen = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let page = history.conversations(cursor, 1).await.unwrap();
        let Some(last) = page.last() else { break };
        cursor = Some(last.cursor());
        seen.extend(page.into_iter().map(|conversation| conversation.conversation));
    }
    assert_eq!(seen, ["b", "d", "c", "a"]);
}

async fn conversation_of_the_latest_time_there_is_stands_first(history: History) {
    history.upsert(vec![row("a", 1, 10), row("b", 1, i64::MAX), row("c", 1, i64::MAX)]).await.unwrap();
    let first = history.conversations(None, 1).await.unwrap();
    assert_eq!(first[0].conversation, "c");
    let second = history.conversations(Some(first[0].cursor()), 9).await.unwrap();
    assert_eq!(second.iter().map(|known| known.conversation.as_str()).collect::<Vec<_>>(), ["b", "a"]);
}

async fn conversation_that_becomes_active_while_listed_is_not_missed(history: History) {
    history.upsert(vec![row("a", 1, 1), row("b", 1, 2), row("c", 1, 3)]).await.unwrap();
    let first = history.conversations(None, 2).await.unwrap();
    history.upsert(vec![row("a", 2, 9)]).await.unwrap();
    let rest = history.conversations(first.last().map(Conversation::cursor), 2).await.unwrap();
    assert!(rest.is_empty(), "it moved to the front");
    assert_eq!(history.conversations(None, 1).await.unwrap()[0].conversation, "a");
}

async fn unknown_conversation_is_empty(history: History) {
    assert_eq!(positions(&history, "nobody", Page::Before(None), 9).await, [0; 0]);
    assert_eq!(history.last_position("nobody").await.unwrap(), None);
    assert!(history.conversations(None, 9).await.unwrap().is_empty());
}

async fn page_is_bounded(history: History) {
    let many = PAGE_MAX as i64 + 5;
    history.upsert((1..=many).map(|position| row("c", position, position)).collect()).await.unwrap();
    assert_eq!(positions(&history, "c", Page::After(0), usize::MAX).await.len(), PAGE_MAX);
}

async fn long_conversation_is_paged_through_from_either_end(history: History) {
    const TURNS: i64 = 2503;
    for part in (1..=TURNS).collect::<Vec<_>>().chunks(400) {
        history.upsert(part.iter().map(|position| row("c", *position, *position)).collect()).await.unwrap();
    }
    for limit in [7, 700, PAGE_MAX] {
        let (mut up, mut down): (Vec<i64>, Vec<i64>) = (Vec::new(), Vec::new());
        // A page over a border of what is stored together is as long as any other.
        while (up.len() as i64) < TURNS {
            let page = positions(&history, "c", Page::After(up.last().copied().unwrap_or(0)), limit).await;
            assert_eq!(page.len(), limit.min(TURNS as usize - up.len()), "above {:?}", up.last());
            up.extend(page);
        }
        while (down.len() as i64) < TURNS {
            let page = positions(&history, "c", Page::Before(down.last().copied()), limit).await;
            assert_eq!(page.len(), limit.min(TURNS as usize - down.len()), "below {:?}", down.last());
            down.extend(page);
        }
        assert_eq!(up, (1..=TURNS).collect::<Vec<_>>());
        assert_eq!(down, (1..=TURNS).rev().collect::<Vec<_>>());
    }
}

async fn list_goes_on_over_minutes_and_days(history: History) {
    const HOUR: i64 = 3_600_000;
    let start = 1_700_000_000_000;
    let at = |n: i64| start + (n % 7) * 5 * HOUR + (n % 11) * 20_000;
    history.upsert((0..60).map(|n| row(&format!("c{n}"), 1, at(n))).collect()).await.unwrap();
    // Half of them are active again, and stand further up for it.
    history.upsert((0..30).map(|n| row(&format!("c{n}"), 2, at(n) + 40 * HOUR)).collect()).await.unwrap();
    let mut wanted: Vec<(i64, String)> =
        (0..60).map(|n| (at(n) + if n < 30 { 40 * HOUR } else { 0 }, format!("c{n}"))).collect();
    wanted.sort_by(|one, other| other.cmp(one));
    for limit in [1, 7, 100] {
        let (mut seen, mut cursor) = (Vec::new(), None);
        loop {
            let page = history.conversations(cursor, limit).await.unwrap();
            let Some(last) = page.last() else { break };
            cursor = Some(last.cursor());
            seen.extend(page.into_iter().map(|known| (known.last_at, known.conversation)));
        }
        assert_eq!(seen, wanted, "in pages of {limit}");
    }
}

async fn erased_conversation_is_gone_and_goes_on(history: History) {
    const TURNS: i64 = 1500;
    history.upsert((1..=TURNS).map(|position| row("a", position, position * 1000)).collect()).await.unwrap();
    history.upsert(vec![row("b", 1, 7)]).await.unwrap();
    assert_eq!(history.erase_conversation("nobody").await.unwrap(), 0);
    assert_eq!(history.erase_conversation("a").await.unwrap(), TURNS as u64);
    assert_eq!(history.last_position("a").await.unwrap(), None);
    assert!(positions(&history, "a", Page::After(0), 10).await.is_empty());
    let listed = async || {
        let page = history.conversations(None, 10).await.unwrap();
        page.into_iter().map(|known| (known.conversation, known.last_position)).collect::<Vec<_>>()
    };
    assert_eq!(listed().await, [("b".to_owned(), 1)]);
    assert_eq!(history.erase_conversation("a").await.unwrap(), 0, "a second time changes nothing");
    // In the same minute and bucket as the last that went.
    history.upsert(vec![row("a", TURNS + 1, TURNS * 1000 + 1)]).await.unwrap();
    assert_eq!(positions(&history, "a", Page::After(0), 10).await, [TURNS + 1]);
    assert_eq!(positions(&history, "a", Page::Before(None), 10).await, [TURNS + 1]);
    assert_eq!(listed().await, [("a".to_owned(), TURNS + 1), ("b".to_owned(), 1)]);
}

async fn what_a_person_said_is_erased_and_the_rest_stays(history: History) {
    // For 2,500 turns in the middle nobody else speaks: whole partitions become empty.
    let said = |position: i64| {
        let person = if (1000..3500).contains(&position) { "cat" } else { "dan" };
        Row { person: Some(format!("test:{person}")), ..row("d", position, position) }
    };
    for part in (1..=4000).collect::<Vec<i64>>().chunks(500) {
        history.upsert(part.iter().copied().map(said).collect()).await.unwrap();
    }
    assert_eq!(history.erase_person("test:cat").await.unwrap(), 2500);
    assert_eq!(positions(&history, "d", Page::After(997), 4).await, [998, 999, 3500, 3501]);
    assert_eq!(positions(&history, "d", Page::Before(Some(3502)), 4).await, [3501, 3500, 999, 998]);
    assert_eq!(positions(&history, "d", Page::Before(Some(2200)), 2).await, [999, 998]);
    assert_eq!(positions(&history, "d", Page::After(2200), 2).await, [3500, 3501]);

    history.upsert((1..=1004).map(|position| row("a", position, position)).collect()).await.unwrap();
    history.upsert((1..=6).map(|position| row("b", position, position)).collect()).await.unwrap();
    history.upsert((1..=2).map(|position| row("c", position, position)).collect()).await.unwrap();
    assert_eq!(history.erase_person("test:nobody").await.unwrap(), 0);
    assert_eq!(history.erase_person("test:ben").await.unwrap(), 334 + 2);
    assert_eq!(positions(&history, "a", Page::Before(None), 4).await, [1004, 1003, 1001, 1000]);
    assert_eq!(positions(&history, "b", Page::After(0), 9).await, [1, 2, 4, 5]);
    assert_eq!(positions(&history, "c", Page::After(0), 9).await, [1, 2]);
    assert_eq!(history.last_position("b").await.unwrap(), Some(6), "a number says nothing of anybody");
    assert_eq!(history.erase_person("test:ben").await.unwrap(), 0);
    history.upsert(vec![row("b", 9, 9)]).await.unwrap();
    assert_eq!(history.erase_person("test:ben").await.unwrap(), 1);
}

fn memory(conversation: &str, position: i64, salience: f32) -> Memory {
    let person = row(conversation, position, position).person;
    let value = format!("memory {position}").into_bytes();
    Memory { conversation: conversation.to_owned(), position, person, room: (position % 4) as i32, salience, value }
}

async fn remembered(history: &History, conversation: &str) -> Vec<i64> {
    history.memories(conversation).await.unwrap().iter().map(|memory| memory.position).collect()
}

/// Keeps turns, each with a memory.
async fn remember(history: &History, conversation: &str, positions: impl IntoIterator<Item = i64>, salience: f32) {
    let positions: Vec<i64> = positions.into_iter().collect();
    for part in positions.chunks(400) {
        let rows = part.iter().map(|position| row(conversation, *position, *position)).collect();
        let memories = part.iter().map(|position| memory(conversation, *position, salience)).collect();
        history.remember(rows, memories).await.unwrap();
    }
}

async fn memories_are_kept_beside_their_turns(history: History) {
    remember(&history, "c", [3, 1], 0.25).await;
    remember(&history, "c", [1, 1002], 0.25).await;
    history.upsert(vec![row("c", 4, 4)]).await.unwrap();
    let mark = history.mark("c").await.unwrap();
    remember(&history, "c", [1], 0.25).await;
    assert!(mark.is_some() && history.mark("c").await.unwrap() == mark, "nothing has changed");
    assert_eq!(history.mark("d").await.unwrap(), None);
    let expected: Vec<Memory> = [1, 3, 1002].map(|position| memory("c", position, 0.25)).into();
    assert_eq!(history.memories("c").await.unwrap(), expected);
    assert_eq!(remembered(&history, "d").await, [0; 0]);
    assert_eq!(positions(&history, "c", Page::After(0), 10).await, [1, 3, 4, 1002]);
}

async fn the_least_salient_memories_fade_however_they_come(history: History) {
    // Every fourth says much, and of those that say little the newer stay.
    const TURNS: i64 = 2000;
    let history = history.remembering(700);
    let salience = |position: i64| if position % 4 == 0 { 0.75 } else { 0.125 };
    for (times, size) in [(1, 300), (2, 1000)] {
        for _ in 0..times {
            for part in (1..=TURNS).collect::<Vec<_>>().chunks(size) {
                let rows = part.iter().map(|position| row("c", *position, *position)).collect();
                let memories = part.iter().map(|position| memory("c", *position, salience(*position))).collect();
                history.remember(rows, memories).await.unwrap();
            }
        }
        let mut expected: Vec<i64> = (1..=TURNS).filter(|position| position % 4 == 0).collect();
        expected.extend((1..=TURNS).rev().filter(|position| position % 4 != 0).take(200));
        expected.sort_unstable();
        assert_eq!(remembered(&history, "c").await, expected);
    }
    assert_eq!(remembered(&history.remembering(3), "c").await, [1992, 1996, 2000]);
}

async fn memories_go_with_what_they_are_of(history: History) {
    remember(&history, "a", 1..=1005, 0.5).await;
    remember(&history, "b", 1..=6, 0.5).await;
    let mut of = history.conversations_of("test:ben", 10).await.unwrap();
    of.sort();
    assert_eq!(of, ["a", "b"]);
    assert_eq!(history.conversations_of("test:ben", 1).await.unwrap().len(), 1);
    let before = history.mark("a").await.unwrap();
    assert_eq!(history.erase_person("test:ben").await.unwrap(), 335 + 2);
    assert_ne!(history.mark("a").await.unwrap(), before);
    assert_eq!(remembered(&history, "b").await, [1, 2, 4, 5]);
    assert_eq!(remembered(&history, "a").await.len(), 670);
    assert_eq!(history.conversations_of("test:ben", 10).await.unwrap(), [""; 0]);
    assert_eq!(history.erase_conversation("a").await.unwrap(), 670);
    assert_eq!(remembered(&history, "a").await, [0; 0]);
    history.upsert(vec![row("a", 1006, 1006)]).await.unwrap();
    assert_eq!(remembered(&history, "a").await, [0; 0], "they do not come back with the conversation");
    assert_eq!(remembered(&history, "b").await, [1, 2, 4, 5]);
}

async fn some_turns_are_erased_and_the_rest_stays(history: History) {
    remember(&history, "c", 1..=1003, 0.5).await;
    remember(&history, "d", [1, 2], 0.5).await;
    let marks = async || (history.mark("c").await.unwrap(), history.mark("d").await.unwrap());
    let before = marks().await;
    assert_eq!(history.erase_turns("c", vec![2, 1001, 1001, 5000]).await.unwrap(), 2);
    let after = marks().await;
    assert!(after.0 != before.0 && after.1 == before.1);
    history.upsert(vec![row("c", 1004, 1004)]).await.unwrap();
    assert!(marks().await.0 != after.0);
    assert_eq!(history.erase_turns("c", vec![1004]).await.unwrap(), 1);
    assert_eq!(positions(&history, "c", Page::After(0), 3).await, [1, 3, 4]);
    assert_eq!(positions(&history, "c", Page::Before(None), 3).await, [1003, 1002, 1000]);
    assert!(!remembered(&history, "c").await.iter().any(|position| [2, 1001].contains(position)));
    assert_eq!((history.erase_turns("c", vec![2]).await.unwrap(), remembered(&history, "d").await), (0, vec![1, 2]));
    assert_eq!(history.erase_turns("nobody", vec![1]).await.unwrap(), 0);
}

async fn turns_are_dense_while_they_are_written(history: History) {
    let writer = tokio::spawn({
        let history = history.clone();
        async move {
            for part in (1..=200).collect::<Vec<_>>().chunks(20) {
                history
                    .upsert(part.iter().rev().map(|position| row("c", *position, *position)).collect())
                    .await
                    .unwrap();
            }
        }
    });
    let mut last = 0;
    while last < 200 {
        let now = history.last_position("c").await.unwrap().unwrap_or(0);
        assert!(now >= last, "{now} after {last}");
        let page = positions(&history, "c", Page::Before(None), 50).await;
        assert!(page.windows(2).all(|pair| pair[0] == pair[1] + 1), "dense: {page:?}");
        assert!(page.first().is_none_or(|first| *first >= now));
        last = now;
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn history_survives_a_reopening_and_is_read_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.db");
    let history = History::open(&path).await.unwrap();
    let writer = tokio::spawn({
        let history = history.clone();
        async move {
            for position in 1..=200 {
                history.upsert(vec![row("c", position, position)]).await.unwrap();
            }
        }
    });
    let mut last = 0;
    while last < 200 {
        let now = history.last_position("c").await.unwrap().unwrap_or(0);
        assert!(now >= last, "{now} after {last}");
        let page = positions(&history, "c", Page::Before(None), 5).await;
        assert!(page.windows(2).all(|pair| pair[0] == pair[1] + 1), "dense: {page:?}");
        last = now;
    }
    writer.await.unwrap();
    drop(history);
    assert_eq!(History::open(&path).await.unwrap().last_position("c").await.unwrap(), Some(200));
}
