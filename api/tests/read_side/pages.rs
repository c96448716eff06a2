//! History in pages.

use api::Config;
use serde_json::Value;

use crate::site::{Site, turns};

fn positions(page: &Value) -> Vec<i64> {
    page["turns"].as_array().unwrap().iter().map(|turn| turn["position"].as_i64().unwrap()).collect()
}

#[tokio::test]
async fn turns_are_paged_to_either_end_and_back() {
    let site = Site::start(Config::default()).await;
    site.keep(&turns("telegram:helper:42", 1..=25)).await;
    let base = "/v1/conversations/telegram%3Ahelper%3A42/turns?limit=10";
    for (order, expected) in [
        ("desc", [(16..=25).rev().collect::<Vec<_>>(), (6..=15).rev().collect(), (1..=5).rev().collect()]),
        ("asc", [(1..=10).collect(), (11..=20).collect(), (21..=25).collect()]),
    ] {
        let (mut page, mut pages) = (site.get(&format!("{base}&order={order}")).await.1, Vec::new());
        assert!(page["previous"].is_null(), "{order}");
        loop {
            pages.push(positions(&page));
            let Some(next) = page["next"].as_str() else { break };
            page = site.get(&format!("{base}&cursor={next}")).await.1;
        }
        assert_eq!(pages, expected, "{order}");
        let previous = page["previous"].as_str().unwrap().to_owned();
        let back = site.get(&format!("{base}&cursor={previous}")).await.1;
        assert_eq!(positions(&back), expected[1], "{order}");
        let first = site.get(&format!("{base}&cursor={}", back["previous"].as_str().unwrap())).await.1;
        assert_eq!(positions(&first), expected[0], "{order}");
    }
}

#[tokio::test]
async fn what_a_stream_has_shown_is_on_the_page() {
    let site = Site::start(Config::default()).await;
    site.keep(&turns("a", 1..=3)).await;
    let newest = "/v1/conversations/a/turns?limit=3";
    assert_eq!(positions(&site.get(newest).await.1), [3, 2, 1]);
    assert_eq!(site.get("/v1/conversations/b/turns").await.0, 404);
    let mut client = site.connect("").await;
    client.follow(&["a", "b"], None).await;
    for _ in 0..2 {
        assert_eq!(client.next().await["type"], "following");
    }
    for (conversation, position, path, expected) in
        [("a", 4, newest, vec![4, 3, 2]), ("b", 1, "/v1/conversations/b/turns", vec![1])]
    {
        // Into the log alone: the writer is behind.
        site.say(&turns(conversation, position..=position)).await;
        assert_eq!(client.turn().await, (conversation.to_owned(), position));
        let (status, page) = site.get(path).await;
        assert_eq!((status, positions(&page), &page["degraded"]), (200, expected, &Value::Null), "{conversation}");
    }
    let (_, one) = site.get("/v1/conversations/b").await;
    assert_eq!((one["last_position"].as_i64(), one["last_turn"]["text"].as_str()), (Some(1), Some("turn 1")));
}

#[tokio::test]
async fn a_process_that_is_started_anew_answers_what_the_one_before_did() {
    let mut site = Site::start(Config::default()).await;
    site.keep(&turns("a", 1..=30)).await;
    let (_, newest) = site.get("/v1/conversations/a/turns?limit=10").await;
    let older = format!("/v1/conversations/a/turns?limit=10&cursor={}", newest["next"].as_str().unwrap());
    let (_, page) = site.get(&older).await;
    assert_eq!(positions(&page), (11..=20).rev().collect::<Vec<_>>());
    let patience = std::time::Instant::now();
    loop {
        site.restart(Config::default()).await;
        assert_eq!(site.get(&older).await.1, page);
        // What the one before has read comes from Redis, where there is one, once it was put there.
        if site.shelf.is_none() || site.api.pages().count("fixed", "redis") == 1 {
            break;
        }
        assert!(patience.elapsed() < tests::PATIENCE);
    }
}

#[tokio::test]
async fn conversations_are_listed_by_last_activity() {
    let site = Site::start(Config::default()).await;
    for (conversation, last) in [("a", 3), ("größer", 9), ("c", 5)] {
        site.keep(&turns(conversation, 1..=last)).await;
    }
    let (_, first) = site.get("/v1/conversations?limit=2").await;
    let names = |page: &Value| -> Vec<String> {
        let list = page["conversations"].as_array().unwrap();
        list.iter().map(|c| c["conversation"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&first), ["größer", "c"]);
    let (_, second) = site.get(&format!("/v1/conversations?limit=2&cursor={}", first["next"].as_str().unwrap())).await;
    assert_eq!(names(&second), ["a"]);
    assert!(second["next"].is_null());
    let (_, one) = site.get("/v1/conversations/gr%C3%B6%C3%9Fer").await;
    assert_eq!((one["last_position"].as_i64(), one["last_turn"]["text"].as_str()), (Some(9), Some("turn 9")));
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_problem_with_a_mend() {
    let site = Site::start(Config::default()).await;
    site.keep(&turns("a", 1..=3)).await;
    for (path, status, code) in [
        ("/v1/conversations/nobody", 404, "unknown_conversation"),
        ("/v1/conversations/nobody/turns", 404, "unknown_conversation"),
        ("/v1/conversations/a/turns?limit=0", 400, "bad_parameter"),
        ("/v1/conversations/a/turns?limit=ten", 400, "bad_parameter"),
        ("/v1/conversations/a/turns?order=up", 400, "bad_parameter"),
        ("/v1/conversations/a/turns?cursor=x", 400, "bad_parameter"),
        ("/v1/conversations/a/events?resume=x", 400, "bad_parameter"),
        ("/v1/conversations/%FF/turns", 400, "illegible_path"),
        ("/v1/conversations/%FF/events", 400, "illegible_path"),
        ("/v1/stream", 426, "not_a_websocket"),
        ("/v2", 404, "unknown_path"),
    ] {
        let (got, problem) = site.get(path).await;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path}");
        assert!(!problem["mend"].as_str().unwrap().is_empty(), "{path}");
    }
    let response = reqwest::Client::new().post(format!("http://{}/v1/conversations", site.http)).send().await.unwrap();
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
}
