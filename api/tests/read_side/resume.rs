//! Coming back with a token: nothing missing, nothing twice, or `recovered: false`.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use api::Config;
use futures_util::StreamExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use schemas::{Turn, topic};
use serde_json::{Value, json};
use store::log::transact::{Event, Settings, Transactor};
use store::log::{Kafka, Record};

use crate::sample;
use crate::site::{Client, Site, place, turns};

/// A ring and a queue so small that every source is needed.
fn tight() -> Config {
    Config { hub_turns_max: 5, socket_queue_turns_max: 8, ..Config::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_that_comes_and_goes_sees_every_turn_once() {
    for seed in seeds() {
        let mut site = Site::start(tight()).await;
        let conversations = ["room-7", "telegram:helper:42", "größer/kleiner?"];
        let mut random = StdRng::seed_from_u64(seed);
        let mut client = site.connect("").await;
        client.follow(&conversations, None).await;
        for _ in conversations {
            assert_eq!(client.next().await["type"], "following");
        }
        let mut positions = [0i64; 3];
        // What the log has and history has not yet.
        let mut unwritten = VecDeque::new();
        let mut seen: BTreeMap<String, i64> = BTreeMap::new();
        for round in 0..30 {
            let batch: Vec<_> = (0..random.random_range(0..12))
                .map(|_| {
                    let which = random.random_range(0..3);
                    positions[which] += 1;
                    sample::turn(conversations[which], positions[which], "words")
                })
                .collect();
            unwritten.extend(batch.iter().cloned());
            let written: Vec<_> = unwritten.drain(..random.random_range(0..=unwritten.len())).collect();
            let token = client.resume.clone().unwrap();
            let (come_back, restart) = (random.random_bool(0.5), random.random_bool(0.1));
            let ((), ()) = tokio::join!(site.say(&batch), site.keep(&written));
            if come_back {
                if restart {
                    site.restart(tight()).await;
                }
                client = come_back_with(token, &site, &conversations, &mut unwritten).await;
            }
            for _ in 0..random.random_range(0..20) {
                if seen.values().sum::<i64>() == positions.iter().sum::<i64>() {
                    break;
                }
                note(&mut client, &site, &conversations, &mut unwritten, &mut seen, (seed, round)).await;
            }
        }
        let rest: Vec<_> = unwritten.drain(..).collect();
        site.keep(&rest).await;
        while seen.values().sum::<i64>() < positions.iter().sum::<i64>() {
            note(&mut client, &site, &conversations, &mut unwritten, &mut seen, (seed, 30)).await;
        }
    }
}

/// Connects with a token; history catches up while the server waits for it.
async fn come_back_with(token: String, site: &Site, conversations: &[&str], unwritten: &mut VecDeque<Turn>) -> Client {
    let mut client = site.connect("").await;
    client.follow(conversations, Some(&token)).await;
    client.resume = Some(token);
    let rest: Vec<_> = unwritten.drain(..).collect();
    site.keep(&rest).await;
    client
}

/// Reads a message and checks that it goes on exactly where its conversation stands; comes back if it was cut off.
async fn note(
    client: &mut Client,
    site: &Site,
    conversations: &[&str],
    unwritten: &mut VecDeque<Turn>,
    seen: &mut BTreeMap<String, i64>,
    (seed, round): (u64, usize),
) {
    // The history role writes whatever the reader does: when nothing comes, the server may be waiting for it.
    let message = match tokio::time::timeout(Duration::from_millis(50), client.next()).await {
        Ok(message) => message,
        Err(_) => {
            let rest: Vec<_> = unwritten.drain(..).collect();
            site.keep(&rest).await;
            let message = tokio::time::timeout(Duration::from_secs(20), client.next()).await;
            message.unwrap_or_else(|_| panic!("seed {seed}, round {round}: nothing comes after {seen:?}"))
        }
    };
    if message.get("close").is_some() {
        let token = client.resume.clone().unwrap();
        *client = come_back_with(token, site, conversations, unwritten).await;
        return;
    }
    match message["type"].as_str().unwrap() {
        "turn" => {
            let (conversation, position) = place(&message);
            let last = seen.entry(conversation).or_default();
            assert_eq!(position, *last + 1, "seed {seed}, round {round}: {message}");
            *last = position;
        }
        "following" => assert_ne!(message["recovered"], false, "seed {seed}, round {round}: {message}"),
        "error" => assert_eq!(message["code"], "slow", "seed {seed}, round {round}: {message}"),
        other => panic!("seed {seed}, round {round}: {other}: {message}"),
    }
}

/// Seeds, printed; `UNDERTONE_TEST_SEED` repeats one.
#[expect(clippy::print_stdout, reason = "a failure must be repeatable")]
fn seeds() -> Vec<u64> {
    let seeds = match std::env::var("UNDERTONE_TEST_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => vec![1, rand::rng().random(), rand::rng().random()],
    };
    println!("seeds {seeds:?}");
    seeds
}

#[tokio::test]
async fn what_history_lacks_is_waited_for() {
    let mut site = Site::start(tight()).await;
    let mut client = site.connect("?conversation=a").await;
    client.next().await;
    site.say(&turns("a", 1..=2)).await;
    assert_eq!((client.turn().await.1, client.turn().await.1), (1, 2));
    let token = client.resume.take().unwrap();
    site.say(&turns("a", 3..=20)).await;
    site.restart(tight()).await;
    let mut client = site.connect(&format!("?conversation=a&resume={token}")).await;
    // The hub of the new process holds the last few; its history is written only now, and then the stream goes on.
    let written = async {
        site.keep(&turns("a", 1..=20)).await;
        site.say(&turns("a", 21..=21)).await;
    };
    let (first, ()) = tokio::join!(client.next(), written);
    assert_eq!(first["recovered"], true);
    for position in 3..=21 {
        assert_eq!(client.turn().await.1, position);
    }
}

#[tokio::test]
async fn turn_that_neither_hub_nor_history_had_comes_when_history_has_it() {
    // A hub without memory, as one whose memory does not reach back so far.
    let config = || Config { hub_turns_max: 0, settle_every: Duration::from_millis(300), ..Config::default() };
    let mut site = Site::start(config()).await;
    let mut client = site.connect("?conversation=a").await;
    client.next().await;
    site.say(&turns("a", 1..=4)).await;
    client.turn().await;
    let token = client.resume.take().unwrap();
    site.keep(&turns("a", 1..=2)).await;
    site.restart(config()).await;
    let mut client = site.connect(&format!("?conversation=a&resume={token}")).await;
    assert_eq!(client.next().await["recovered"], true);
    assert_eq!(client.turn().await.1, 2);
    // Nobody says anything more; history comes to have what was said before.
    site.keep(&turns("a", 3..=4)).await;
    assert_eq!((client.turn().await.1, client.turn().await.1), (3, 4));
}

#[tokio::test]
async fn position_that_is_out_of_reach_is_not_recovered() {
    let site = Site::start(Config { history_wait: Duration::from_millis(50), ..tight() }).await;
    let mut client = site.connect("?conversation=a").await;
    client.next().await;
    site.say(&turns("a", 1..=1)).await;
    client.turn().await;
    let token = client.resume.take().unwrap();
    // History begins at 10, the ring at 16: 2 to 9 are gone.
    site.keep(&turns("a", 10..=20)).await;
    let mut witness = site.connect("?all=1").await;
    witness.next().await;
    for batch in [turns("a", 2..=8), turns("a", 9..=15), turns("a", 16..=20)] {
        site.say(&batch).await;
        for turn in batch {
            assert_eq!(witness.turn().await.1, turn.position.unwrap());
        }
    }
    let mut back = site.connect(&format!("?conversation=a&resume={token}")).await;
    let answer = back.next().await;
    assert_eq!((answer["recovered"].as_bool(), answer["position"].as_i64()), (Some(false), Some(20)));
    site.say(&turns("a", 21..=21)).await;
    assert_eq!(back.turn().await.1, 21);
}

#[tokio::test]
async fn position_of_another_life_is_not_recovered() {
    let config = || Config { history_wait: Duration::from_millis(50), ..Config::default() };
    let old = Site::start(config()).await;
    let mut client = old.connect("?conversation=a").await;
    client.next().await;
    old.say(&turns("a", 1..=9)).await;
    for _ in 0..9 {
        client.turn().await;
    }
    let token = client.resume.take().unwrap();
    let new = Site::start(config()).await;
    let mut client = new.connect(&format!("?conversation=a&resume={token}")).await;
    assert_eq!(client.next().await["recovered"], false);
    new.say(&turns("a", 1..=1)).await;
    assert_eq!(client.turn().await.1, 1);
}

#[tokio::test]
async fn firehose_goes_on_from_the_ring_and_from_the_log() {
    let config = || Config { hub_turns_max: 5, ..Config::default() };
    let mut site = Site::start(config()).await;
    let mut client = site.connect("?all=1").await;
    client.next().await;
    let mut said = BTreeMap::new();
    for (round, restart) in [(0, false), (1, false), (2, true), (3, false)] {
        let token = client.resume.clone().unwrap();
        drop(client);
        // A few fit in the ring, many do not.
        let many = if round == 1 { 40 } else { 2 };
        for conversation in ["a", "b", "c", "d"] {
            let last = said.entry(conversation).or_insert(0i64);
            site.say(&turns(conversation, *last + 1..=*last + many)).await;
            *last += many;
        }
        if restart {
            site.restart(config()).await;
        }
        client = site.connect(&format!("?all=1&resume={token}")).await;
        assert_eq!(client.next().await["recovered"], true, "round {round}");
        let mut next: BTreeMap<String, i64> = said.iter().map(|(c, last)| ((*c).to_owned(), last - many + 1)).collect();
        for _ in 0..4 * many {
            let (conversation, position) = client.turn().await;
            let expected = next.get_mut(&conversation).unwrap();
            assert_eq!(position, *expected, "round {round}, {conversation}");
            *expected += 1;
        }
    }
}

#[tokio::test]
async fn firehose_passes_the_marks_of_transactions() {
    let mut site = Site::start(Config::default()).await;
    let mut client = site.connect("?all=1").await;
    client.next().await;
    let kafka = site.kafka.clone();
    let records: Vec<_> = turns("a", 1..=3).iter().map(|turn| site.record(turn)).collect();
    // Three transactions: a mark stands behind each turn, the last one at the very end of the log.
    tokio::task::spawn_blocking(move || transactions(&kafka, &records)).await.unwrap();
    assert_eq!(client.turn().await.1, 1);
    let token = client.resume.take().unwrap();
    assert_eq!((client.turn().await.1, client.turn().await.1), (2, 3));
    let newest = client.resume.take().unwrap();
    site.restart(Config::default()).await;
    // The new hub starts behind the last mark: what is before it comes from the log, which must be read to its end.
    let mut behind = site.connect(&format!("?all=1&resume={token}")).await;
    assert_eq!(behind.next().await["recovered"], true);
    assert_eq!((behind.turn().await.1, behind.turn().await.1), (2, 3));
    let mut level = site.connect(&format!("?all=1&resume={newest}")).await;
    assert_eq!(level.next().await["recovered"], true);
    site.say(&turns("a", 4..=4)).await;
    assert_eq!((behind.turn().await.1, level.turn().await.1), (4, 4));
}

/// Writes each record in a transaction of its own.
fn transactions(kafka: &Kafka, records: &[Record]) {
    let settings = Settings {
        group: "marks".to_owned(),
        topic: topic::TURNS_ENRICHED.to_owned(),
        transactional_id: "marks".to_owned(),
        transaction_timeout: Duration::from_secs(10),
        commit_attempts_max: 5,
        session_timeout: Duration::from_secs(10),
        work_time_max: Duration::from_secs(10),
        fetch_ahead_bytes_max: 1 << 20,
    };
    let mut transactor = Transactor::connect(kafka, &settings).unwrap();
    while !matches!(transactor.poll(Duration::from_millis(100)).unwrap(), Some(Event::Assigned(_))) {}
    for record in records {
        transactor.commit(std::slice::from_ref(record), &[(0, 0)].into()).unwrap();
    }
}

#[tokio::test]
async fn firehose_of_another_log_is_not_recovered() {
    let old = Site::start(Config::default()).await;
    let mut client = old.connect("?all=1").await;
    client.next().await;
    old.say(&turns("a", 1..=3)).await;
    for _ in 0..3 {
        client.turn().await;
    }
    let new = Site::start(Config::default()).await;
    let mut client = new.connect(&format!("?all=1&resume={}", client.resume.unwrap())).await;
    assert_eq!(client.next().await["recovered"], false);
    new.say(&turns("a", 1..=1)).await;
    assert_eq!(client.turn().await.1, 1);
}

#[tokio::test]
async fn page_of_history_hands_over_to_the_stream() {
    let site = Site::start(Config::default()).await;
    site.keep(&turns("room:7", 1..=4)).await;
    let (_, page) = site.get("/v1/conversations/room%3A7/turns?limit=2").await;
    let token = page["resume"].as_str().unwrap();
    site.keep(&turns("room:7", 5..=5)).await;
    let mut client = site.connect(&format!("?conversation=room:7&resume={token}")).await;
    assert_eq!(client.next().await["recovered"], true);
    assert_eq!(client.turn().await.1, 5);
}

#[tokio::test]
async fn event_source_comes_back_by_its_last_event_id() {
    let site = Site::start(Config::default()).await;
    let mut first = events(&site, None).await;
    let hello = next_event(&mut first).await;
    assert_eq!(hello["event"], "following");
    assert_eq!(hello["retry"], "1000");
    site.say(&turns("a b/c", 1..=1)).await;
    let event = next_event(&mut first).await;
    assert_eq!((event["event"].as_str(), event["data"]["turn"]["position"].as_i64()), (Some("turn"), Some(1)));
    drop(first);
    site.say(&turns("a b/c", 2..=3)).await;
    let mut again = events(&site, event["id"].as_str()).await;
    let hello = next_event(&mut again).await;
    assert_eq!((hello["event"].as_str(), hello["data"]["recovered"].as_bool()), (Some("recovered"), Some(true)));
    for position in 2..=3 {
        assert_eq!(next_event(&mut again).await["data"]["turn"]["position"], position);
    }
}

type Lines = futures_util::stream::BoxStream<'static, String>;

async fn events(site: &Site, last: Option<&str>) -> Lines {
    let url = format!("http://{}/v1/conversations/a%20b%2Fc/events", site.http);
    let mut request = reqwest::Client::new().get(url);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let response = request.send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut rest = String::new();
    let chunks = response.bytes_stream().flat_map(move |chunk| {
        rest.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        let end = rest.rfind('\n').map_or(0, |end| end + 1);
        let lines: Vec<String> = rest.drain(..end).collect::<String>().lines().map(str::to_owned).collect();
        futures_util::stream::iter(lines)
    });
    chunks.boxed()
}

/// The next event that has data, as an object of its fields; a `retry` in front of it is added.
async fn next_event(lines: &mut Lines) -> Value {
    let mut event = json!({});
    loop {
        let line = lines.next().await.unwrap();
        if line.is_empty() && event.get("data").is_some() {
            return event;
        }
        let Some((name, value)) = line.split_once(':') else { continue };
        let value = value.trim_start();
        event[name] = if name == "data" { serde_json::from_str(value).unwrap() } else { json!(value) };
    }
}
