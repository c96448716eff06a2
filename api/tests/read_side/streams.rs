//! Streams without a resumption: what is sent, what is refused, and how they end.

use std::time::Duration;

use api::Config;
use futures_util::StreamExt as _;
use serde_json::json;

use crate::sample;
use crate::site::{Site, turns};

#[tokio::test]
async fn a_turn_reaches_its_followers_with_correlation_and_trace_and_nobody_else() {
    let site = Site::start(Config::default()).await;
    let (mut one, mut other, mut all) =
        (site.connect("?conversation=room:7").await, site.connect("").await, site.connect("?all=1").await);
    assert_eq!(one.next().await["type"], "following");
    assert_eq!(all.next().await["all"], true);
    other.follow(&["room-8"], None).await;
    assert_eq!(other.next().await["conversation"], "room-8");
    site.say(&turns("room:7", 1..=1)).await;
    site.say(&turns("room-8", 1..=1)).await;
    let message = one.next().await;
    assert_eq!(message["turn"]["text"], "turn 1");
    assert_eq!(message["turn"]["emotion"]["probabilities"]["joy"], 0.5);
    assert!(message["turn"]["encoding"].get("embedding").is_none());
    assert_eq!(message["correlation_id"], "said \"1\"");
    assert_eq!(message["traceparent"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(other.turn().await.0, "room-8");
    let mut seen = [all.turn().await.0, all.turn().await.0];
    seen.sort();
    assert_eq!(seen, ["room-8", "room:7"]);
}

#[tokio::test]
async fn bad_frames_are_answered_by_name_and_the_socket_lives_on() {
    let config = Config { conversations_per_socket_max: 1, ..Config::default() };
    let site = Site::start(config).await;
    let mut client = site.connect("?embedding=1").await;
    client.send(json!({ "type": "follow", "conversations": 7 })).await;
    let error = client.next().await;
    assert_eq!((error["type"].as_str(), error["field"].as_str()), (Some("error"), Some("conversations")));
    client.follow(&["a", "b"], None).await;
    assert_eq!(client.next().await["type"], "following");
    assert_eq!(client.next().await["code"], "too_many");
    client.send(json!({ "type": "unfollow", "conversations": ["a"] })).await;
    assert_eq!(client.next().await["type"], "unfollowed");
    client.follow(&["b"], None).await;
    assert_eq!(client.next().await["conversation"], "b");
    site.say(&turns("b", 1..=1)).await;
    assert_eq!(client.next().await["turn"]["encoding"]["embedding"]["values"], "AQID");
}

#[tokio::test]
async fn slow_socket_is_closed_with_a_token_that_loses_nothing() {
    let config = Config { socket_queue_turns_max: 4, replay_bytes_max: 1 << 30, ..Config::default() };
    let site = Site::start(config).await;
    let (mut slow, mut quick) = (site.connect("?conversation=a").await, site.connect("?conversation=b").await);
    slow.next().await;
    quick.next().await;
    // More than the sockets' buffers take, so that the server has to wait for its reader.
    let long = "x".repeat(40_000);
    let many: Vec<_> = (1..=600).map(|position| sample::turn("a", position, &long)).collect();
    site.keep(&many).await;
    site.say(&many).await;
    // What the other conversation is told proves that the hub has gone past all of them.
    site.say(&turns("b", 1..=1)).await;
    assert_eq!(quick.turn().await, ("b".to_owned(), 1));
    let mut last = 0;
    let error = loop {
        let message = slow.next().await;
        match message["turn"]["position"].as_i64() {
            Some(position) => assert_eq!(position, last + 1),
            None => break message,
        }
        last += 1;
    };
    assert!(last < 600);
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("error"), Some("slow")));
    assert_eq!(slow.next().await["close"], 1013);
    let mut back = site.connect(&format!("?conversation=a&resume={}", slow.resume.unwrap())).await;
    assert_eq!(back.next().await["recovered"], true);
    for position in last + 1..=600 {
        assert_eq!(back.turn().await.1, position);
    }
}

#[tokio::test]
async fn silent_client_is_closed() {
    let site = Site::start(Config { heartbeat: Duration::from_millis(20), ..Config::default() }).await;
    // A raw connection that never answers a ping.
    let mut socket = tokio::net::TcpStream::connect(site.http).await.unwrap();
    let hello = format!(
        "GET /v1/stream HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        site.http
    );
    tokio::io::AsyncWriteExt::write_all(&mut socket, hello.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut socket, &mut answer).await.unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("pings were not answered"));
}

#[tokio::test]
async fn shutdown_tells_every_stream_when_to_come_back_and_with_what() {
    let retry = Duration::from_secs(3);
    let site = Site::start(Config { retry, reconnect_spread: Duration::from_secs(4), ..Config::default() }).await;
    let mut client = site.connect("?all=1").await;
    client.next().await;
    let events = reqwest::get(format!("http://{}/v1/conversations/a/events", site.http)).await.unwrap();
    site.shutdown.cancel();
    let farewell = client.next().await;
    assert_eq!((farewell["type"].as_str(), farewell["reason"].as_str()), (Some("reconnect"), Some("going_down")));
    assert!((3000..=7000).contains(&farewell["retry_ms"].as_u64().unwrap()), "{farewell}");
    assert!(farewell["resume"].is_string());
    assert_eq!(client.next().await["close"], 1001);
    let rest: Vec<_> = events.bytes_stream().map(|chunk| chunk.expect("the events end in order")).collect().await;
    let rest = String::from_utf8(rest.concat()).unwrap();
    let (_, last) = rest.split_once("event: reconnect").expect("the events end with the word to come back");
    let retry: u64 = last.split_once("retry: ").unwrap().1.lines().next().unwrap().parse().unwrap();
    assert!((3000..=7000).contains(&retry) && last.contains("id: "), "{last}");
}

#[tokio::test]
async fn streams_are_bounded_in_number() {
    let site = Site::start(Config { sockets_max: 1, ..Config::default() }).await;
    let mut first = site.connect("?all=1").await;
    first.next().await;
    let (status, problem) = site.get("/v1/conversations/a/events").await;
    assert_eq!((status, problem["code"].as_str()), (503, Some("too_many_streams")));
}
