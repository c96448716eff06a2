//! A shelf in Redis, as pages of history use it. Run by `deploy/servers/redis with tests/redis`, and not by `make test`: it
//! needs `UNDERTONE_TEST_REDIS`.

use std::time::{Duration, Instant};

use opentelemetry::metrics::MeterProvider as _;
use store::redis::{Found, Redis, Settings, Shelf};
use tokio::net::TcpListener;
use uuid::Uuid;

const LONG: Duration = Duration::from_secs(3600);

async fn shelf(change: impl FnOnce(Settings) -> Settings) -> Shelf {
    let settings = tests::redis(&format!("shelf-{}", Uuid::new_v4()));
    let settings = settings.expect("UNDERTONE_TEST_REDIS is set: run this with deploy/servers/redis");
    let meter = opentelemetry::metrics::noop::NoopMeterProvider::new().meter("test");
    Shelf::on(Redis::connect(change(settings), &meter).await.unwrap())
}

/// What is found once it is as it should be: values are put there in the background.
async fn found(shelf: &Shelf, name: &str, is_so: impl Fn(&Found) -> bool) -> Found {
    let begun = Instant::now();
    loop {
        let found = shelf.get(name).await;
        if is_so(&found) {
            return found;
        }
        assert!(begun.elapsed() < tests::PATIENCE, "{name}: {found:?}");
    }
}

#[tokio::test]
async fn a_value_is_there_with_the_time_that_it_has_left_and_then_gone() {
    let shelf = shelf(|settings| Settings { call_timeout: tests::PATIENCE, ..settings }).await;
    assert_eq!(shelf.get("a").await, Found::Nothing);
    let value = vec![0, 255, b'\n', b'{'];
    shelf.put("a", value.clone(), LONG);
    shelf.put("{b}", Vec::new(), LONG);
    let Found::Value(there, left) = found(&shelf, "a", |found| *found != Found::Nothing).await else { panic!("away") };
    assert_eq!(there, value);
    assert!(left <= LONG && left > LONG / 2, "{left:?}");
    found(&shelf, "{b}", |found| matches!(found, Found::Value(value, _) if value.is_empty())).await;
    shelf.put("a", vec![1], Duration::from_millis(20));
    found(&shelf, "a", |found| *found == Found::Nothing).await;
    shelf.put("never", vec![1], Duration::ZERO);
    assert_eq!(shelf.get("never").await, Found::Nothing);
}

#[tokio::test]
async fn installations_with_other_prefixes_do_not_meet() {
    let (one, other) = (shelf(|settings| settings).await, shelf(|settings| settings).await);
    one.put("a", vec![1], LONG);
    found(&one, "a", |found| matches!(found, Found::Value(..))).await;
    assert_eq!(other.get("a").await, Found::Nothing);
}

#[tokio::test]
async fn a_redis_that_is_silent_costs_a_call_its_bound_and_the_next_ones_nothing() {
    // It takes connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nodes = vec![silent.local_addr().unwrap().to_string()];
    let bound = Duration::from_millis(100);
    let change = |settings| Settings { nodes, call_timeout: bound, connect_timeout: bound, rest: LONG, ..settings };
    let begun = Instant::now();
    let shelf = shelf(change).await;
    for _ in 0..1000 {
        assert_eq!(shelf.get("a").await, Found::Away);
        shelf.put("a", vec![1], LONG);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
