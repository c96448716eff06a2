//! What pages promise, in front of a history in memory and beside a hub that is told by hand.

use futures_util::future::join_all;
use opentelemetry::metrics::MeterProvider as _;
use schemas::Codec;
use store::history::{History, Row};

use super::*;
use crate::sample;

const LONG: Duration = Duration::from_secs(3600);
const LIMITS: Limits = Limits { bytes_max: 1 << 24, fixed: LONG, newest: LONG, list: LONG };

/// A process, and the history that it shares with others.
struct Process {
    pages: Pages,
    history: History,
    codec: Codec,
}

impl Process {
    async fn start(limits: Limits) -> Process {
        Process::on(History::in_memory().await.unwrap(), limits)
    }

    fn on(history: History, limits: Limits) -> Process {
        let hub = Arc::new(Hub::new(100, 1 << 20, 8, [(0, 0)].into()));
        let meter = opentelemetry::metrics::noop::NoopMeterProvider::new().meter("test");
        let pages = Pages::new(reading(&history), hub, limits, None, &meter);
        Process { pages, history, codec: Codec::embedded() }
    }

    /// The writer stores turns.
    async fn store(&self, conversation: &str, positions: std::ops::RangeInclusive<i64>) {
        let row = |position| {
            let turn = sample::turn(conversation, position, "words");
            let (id, at, person) = (turn.id, turn.at, Some(format!("person {}", position % 2)));
            let value = self.codec.encode(&turn).unwrap();
            Row { conversation: turn.conversation, position, id, at, person, value }
        };
        self.history.upsert(positions.map(row).collect()).await.unwrap();
    }

    /// The log shows a turn.
    fn show(&self, conversation: &str, position: i64) {
        let turn = sample::turn(conversation, position, "words");
        self.pages.hub.publish(Live {
            conversation: conversation.into(),
            position,
            at: turn.at,
            taken_at: Instant::now(),
            partition: 0,
            offset: position,
            json: Some(view(&turn)),
            value: self.codec.encode(&turn).unwrap(),
            correlation_id: None,
            traceparent: None,
            onward: None,
        });
    }

    async fn newest(&self, conversation: &str) -> Vec<i64> {
        positions(&self.pages.newest(conversation, 5).await.unwrap().turns)
    }

    /// Questions that came to the store.
    fn read(&self) -> u64 {
        ["newest", "unknown", "fixed", "list"].iter().map(|kind| self.pages.tally.count(kind, "store")).sum()
    }

    /// The pages while the store is away.
    fn lost(&self) -> &Pages {
        self.pages.store.lose();
        &self.pages
    }
}

fn reading(history: &History) -> Reading {
    Reading::new(history.clone(), LONG, &opentelemetry::metrics::noop::NoopMeterProvider::new().meter("test"))
}

fn view(turn: &schemas::Turn) -> String {
    crate::view::json(turn, crate::view::Embeddings::Hide)
}

fn positions(turns: &Turns) -> Vec<i64> {
    turns.iter().map(|turn| turn.position).collect()
}

#[tokio::test]
async fn a_turn_that_the_log_shows_is_on_the_page_without_a_question() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=3).await;
    assert_eq!(process.newest("room").await, [3, 2, 1]);
    process.show("room", 4);
    process.show("other", 1);
    assert_eq!(process.newest("room").await, [4, 3, 2, 1]);
    process.show("room", 5);
    process.show("room", 6);
    assert_eq!(process.newest("room").await, [6, 5, 4, 3, 2], "as many as were asked for");
    assert_eq!(process.newest("room").await, [6, 5, 4, 3, 2]);
    assert_eq!(process.read(), 1);
}

#[tokio::test]
async fn a_turn_from_the_log_reads_as_the_same_turn_from_the_store() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=1).await;
    process.newest("room").await;
    process.show("room", 2);
    let joined = process.pages.newest("room", 5).await.unwrap().turns;
    process.store("room", 2..=2).await;
    let read = Process::on(process.history.clone(), LIMITS).pages.newest("room", 5).await.unwrap().turns;
    let all = |turns: &Turns| -> Vec<_> {
        let of = |turn: &Arc<Kept>| {
            let json = turn.json(&process.codec, crate::view::Embeddings::Hide).unwrap().into_owned();
            (turn.position, turn.at, turn.value.clone(), json)
        };
        turns.iter().map(of).collect()
    };
    assert_eq!(all(&joined), all(&read));
}

#[tokio::test]
async fn a_turn_that_the_writer_has_not_stored_yet_is_on_the_page() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=3).await;
    process.show("room", 4);
    process.show("new", 1);
    for _ in 0..2 {
        assert_eq!(process.newest("room").await, [4, 3, 2, 1]);
        assert_eq!(process.newest("new").await, [1]);
    }
    assert_eq!(process.read(), 2);
}

#[tokio::test]
async fn a_page_without_what_was_shown_long_before_is_not_kept() {
    let process = Process::start(Limits { newest: Duration::ZERO, ..LIMITS }).await;
    process.store("room", 1..=3).await;
    let cache = process.pages.cache.as_ref().unwrap();
    let key = Key::Newest("room".to_owned(), 5);
    process.show("room", 4);
    assert_eq!(process.newest("room").await, [3, 2, 1], "as the store has it");
    assert!(cache.newest(&key).await.is_none());
    process.store("room", 4..=4).await;
    assert_eq!(process.newest("room").await, [4, 3, 2, 1]);
    assert!(cache.newest(&key).await.is_some());
}

#[tokio::test]
async fn turns_that_do_not_join_on_are_read() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=3).await;
    process.newest("room").await;
    process.store("room", 4..=5).await;
    process.show("room", 5);
    assert_eq!(process.newest("room").await, [5, 4, 3, 2, 1]);
    assert_eq!(process.read(), 2);
}

#[tokio::test]
async fn what_a_process_was_never_shown_is_bounded_by_time() {
    let believing = Process::start(LIMITS).await;
    let asking = Process::on(believing.history.clone(), Limits { newest: Duration::ZERO, ..LIMITS });
    for process in [&believing, &asking] {
        process.store("room", 1..=2).await;
        assert_eq!(process.newest("room").await, [2, 1]);
    }
    // Shown before both began to read the log, written after they were asked.
    believing.store("room", 3..=3).await;
    assert_eq!(believing.newest("room").await, [2, 1], "within the bound");
    assert_eq!(asking.newest("room").await, [3, 2, 1], "the bound is over");
}

#[tokio::test]
async fn an_unknown_conversation_is_remembered_until_the_log_names_it() {
    let process = Process::start(LIMITS).await;
    for _ in 0..3 {
        let unknown = process.pages.newest("room", 5).await.unwrap();
        assert_eq!((unknown.last, unknown.turns.len()), (None, 0));
    }
    assert_eq!((process.read(), process.pages.tally.count("unknown", "memory")), (1, 2));
    process.show("room", 1);
    assert_eq!(process.newest("room").await, [1]);
    assert_eq!(process.read(), 1);
}

#[tokio::test]
async fn an_erased_turn_does_not_come_back_from_the_hub() {
    let process = Process::start(Limits { newest: Duration::ZERO, ..LIMITS }).await;
    process.store("room", 1..=4).await;
    process.show("room", 4);
    process.history.erase_person("person 0").await.unwrap();
    assert_eq!(process.newest("room").await, [3, 1]);
    assert_eq!(process.newest("room").await, [3, 1]);
}

#[tokio::test]
async fn readers_of_one_page_ask_once() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=9).await;
    let older = Page::Before(Some(9));
    let newest = join_all((0..50).map(|_| process.newest("room"))).await;
    let fixed = join_all((0..50).map(|_| process.pages.turns("room", older, 5))).await;
    let lists = join_all((0..50).map(|_| process.pages.conversations(None, 5))).await;
    assert!(newest.iter().all(|page| page == &[9, 8, 7, 6, 5]));
    assert!(fixed.iter().all(|page| positions(page.as_ref().unwrap()) == [8, 7, 6, 5, 4]));
    assert!(lists.iter().all(|list| list.as_ref().unwrap().len() == 1));
    assert_eq!(process.read(), 3);
}

#[tokio::test]
async fn a_reader_who_gives_up_does_not_take_the_answer_from_the_others() {
    let process = Process::start(LIMITS).await;
    let (cache, key) = (process.pages.cache.as_ref().unwrap(), Key::Newest("room".to_owned(), 5));
    let mut first = Box::pin(cache.once(&key, std::future::pending::<(From, Result<i64, HistoryError>)>()));
    let mut second = Box::pin(cache.once(&key, async { (From::Store, Ok(7_i64)) }));
    assert!(futures_util::poll!(&mut first).is_pending());
    assert!(futures_util::poll!(&mut second).is_pending(), "the first asks already");
    drop(first);
    let asked = second.await;
    assert_eq!((asked.answer.unwrap(), asked.from), (7, From::Store));
}

#[tokio::test]
async fn a_full_page_at_a_fixed_place_is_kept_and_a_page_that_may_grow_is_not() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=7).await;
    for (page, limit, expected, reads) in [
        (Page::Before(Some(6)), 3, vec![5, 4, 3], 1),
        (Page::Before(Some(3)), 5, vec![2, 1], 1),
        (Page::After(2), 3, vec![3, 4, 5], 1),
        (Page::After(5), 3, vec![6, 7], 2),
        (Page::Before(Some(9)), 3, vec![7, 6, 5], 2),
        (Page::After(7), 3, vec![], 2),
    ] {
        let before = process.read();
        for _ in 0..2 {
            assert_eq!(positions(&process.pages.turns("room", page, limit).await.unwrap()), expected, "{page:?}");
        }
        assert_eq!(process.read() - before, reads, "{page:?}");
    }
}

#[tokio::test]
async fn a_page_with_a_hole_is_not_kept() {
    let process = Process::start(LIMITS).await;
    process.store("room", 1..=7).await;
    process.history.erase_person("person 0").await.unwrap();
    for page in [Page::Before(Some(7)), Page::After(0)] {
        let before = process.read();
        for _ in 0..2 {
            process.pages.turns("room", page, 2).await.unwrap();
        }
        assert_eq!(process.read() - before, 2, "{page:?}");
    }
}

#[tokio::test]
async fn a_list_is_as_late_as_its_bound_and_current_where_nothing_comes() {
    let busy = Process::start(Limits { newest: Duration::ZERO, ..LIMITS }).await;
    let quiet = Process::on(busy.history.clone(), Limits { list: Duration::ZERO, ..LIMITS });
    busy.store("a", 1..=1).await;
    let list = async |process: &Process| process.pages.conversations(None, 5).await.unwrap().len();
    for process in [&busy, &quiet] {
        assert_eq!((list(process).await, list(process).await, process.read()), (1, 1, 1));
    }
    busy.store("b", 1..=1).await;
    for process in [&busy, &quiet] {
        process.show("b", 1);
    }
    assert_eq!((list(&busy).await, busy.read()), (1, 1), "a turn came, and the bound is not over");
    assert_eq!((list(&quiet).await, quiet.read()), (2, 2), "a turn came, and the bound is over");
}

#[tokio::test]
async fn errors_are_not_kept() {
    let mut process = Process::start(LIMITS).await;
    process.store("room", 1..=3).await;
    let older = Page::Before(Some(3));
    process.lost().newest("room", 5).await.expect_err("nobody knows");
    process.lost().conversations(None, 5).await.expect_err("nobody knows");
    process.lost().turns("room", older, 2).await.expect_err("nobody knows");
    process.pages.store = reading(&process.history);
    assert_eq!(process.newest("room").await, [3, 2, 1]);
    assert_eq!(process.pages.conversations(None, 5).await.unwrap().len(), 1);
    assert_eq!(process.pages.turns("room", older, 2).await.unwrap().len(), 2);
}

#[tokio::test]
async fn without_the_store_a_page_is_marked_once_it_is_no_longer_believed() {
    let mut process = Process::start(LIMITS).await;
    process.store("room", 1..=3).await;
    process.newest("room").await;
    process.pages.turns("room", Page::Before(Some(3)), 2).await.unwrap();
    process.show("room", 4);
    let page = process.lost().newest("room", 5).await.unwrap();
    assert_eq!((positions(&page.turns), page.degraded), (vec![4, 3, 2, 1], false), "the log vouches for it");
    let older = process.lost().turns("room", Page::Before(Some(3)), 2).await.unwrap();
    assert_eq!(positions(&older), [2, 1]);
    process.pages.limits.newest = Duration::ZERO;
    process.show("room", 5);
    let page = process.lost().newest("room", 5).await.unwrap();
    assert_eq!((positions(&page.turns), page.degraded), (vec![5, 4, 3, 2, 1], true));
    process.show("other", 9);
    let page = process.lost().newest("other", 5).await.unwrap();
    assert_eq!((positions(&page.turns), page.last, page.degraded), (vec![9], Some(9), true), "what the hub holds");
}

#[tokio::test]
async fn what_is_kept_is_bounded_by_bytes_json_included() {
    let limits = Limits { bytes_max: 200_000, ..LIMITS };
    let process = Process::start(limits).await;
    for number in 0..60 {
        let name = format!("room {number}");
        process.store(&name, 1..=5).await;
        // Asked for twice: more than once is worth keeping.
        for _ in 0..2 {
            for turn in process.pages.newest(&name, 5).await.unwrap().turns.iter() {
                let json = turn.json(&process.codec, crate::view::Embeddings::Hide).unwrap().len();
                assert!(json + turn.value.len() <= turn.size_bytes(), "{json} bytes of JSON");
            }
        }
    }
    let cache = process.pages.cache.as_ref().unwrap();
    cache.settle().await;
    let size = cache.size()();
    assert!((100_000..=200_000).contains(&size), "{size} bytes");
    for number in 0..60 {
        assert_eq!(process.newest(&format!("room {number}")).await, [5, 4, 3, 2, 1]);
    }
}

#[tokio::test]
async fn without_room_everything_is_read() {
    let process = Process::start(Limits { bytes_max: 0, ..LIMITS }).await;
    process.store("room", 1..=3).await;
    for _ in 0..2 {
        assert_eq!(process.newest("room").await, [3, 2, 1]);
        assert_eq!(process.pages.turns("room", Page::Before(Some(3)), 2).await.unwrap().len(), 2);
        assert_eq!(process.pages.conversations(None, 5).await.unwrap().len(), 1);
    }
    assert_eq!(process.read(), 6);
}
