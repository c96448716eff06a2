//! Intake as its callers meet it: over HTTP and WebSocket, in front of a real log in the same process.

mod house;

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use house::{House, update};
use reqwest::StatusCode;
use schemas::{Feedback, Reject, TraceParent, Turn, topic, turn_id};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio_tungstenite::tungstenite::Message;

#[tokio::test]
async fn an_update_is_in_the_log_with_its_headers_when_it_is_answered() {
    let house = House::open().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let call = house.call("helper", update("message_private")).header("traceparent", trace);
    assert_eq!(call.header("x-correlation-id", "walk-7").send().await.unwrap().status(), StatusCode::OK);

    let record = house.records(topic::TURNS_RECEIVED).await.remove(0);
    let turn: Turn = house.codec.decode(record.value.as_deref().unwrap()).unwrap();
    assert_eq!(record.key.as_deref(), Some(b"telegram:helper:6187542031".as_slice()));
    assert_eq!(turn.id, turn_id("telegram", "telegram:helper:6187542031", "helper", "731846201"));
    assert_eq!(record.timestamp, turn.received_at);
    let header = |name: &str| {
        let (_, value) = record.headers.iter().find(|(header, _)| header == name).expect(name);
        String::from_utf8(value.clone()).unwrap()
    };
    assert_eq!(header("ce_id"), turn.id.to_string());
    assert_eq!(header("ce_source"), "/ingest/telegram");
    assert_eq!(header("ce_type"), "dev.undertone.turn.received.v1");
    assert_eq!(header("correlationid"), "walk-7");
    let (sent, kept) = (TraceParent::parse(trace).unwrap(), TraceParent::parse(&header("traceparent")).unwrap());
    assert_eq!(sent.trace_id, kept.trace_id, "the record stays in the caller's trace");
    assert_ne!(sent.parent_id, kept.parent_id, "under a span of its own");
}

#[tokio::test]
async fn reactions_rejects_and_the_rest_each_go_where_they_belong() {
    let house = House::open().await;
    for case in ["message_reaction", "future_kind", "truncated", "message_sticker", "poll"] {
        let answer = house.call("helper", update(case)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{case}");
    }
    let feedback = house.records(topic::FEEDBACK).await;
    let feedback: Vec<Feedback> =
        feedback.iter().map(|r| house.codec.decode(r.value.as_deref().unwrap()).unwrap()).collect();
    assert_eq!(feedback[0].kind, "reaction");
    assert_eq!(feedback.len(), 1);
    let rejects = house.records(topic::REJECTS).await;
    let mut rejects: Vec<Reject> =
        rejects.iter().map(|r| house.codec.decode(r.value.as_deref().unwrap()).unwrap()).collect();
    rejects.sort_by(|a, b| b.reason.cmp(&a.reason));
    assert_eq!(rejects.iter().map(|r| r.reason.as_str()).collect::<Vec<_>>(), ["unknown_kind", "malformed"]);
    assert_eq!(rejects[0].raw, update("future_kind"));
    assert_eq!(rejects[1].raw, update("truncated"));
    assert!(house.records(topic::TURNS_RECEIVED).await.is_empty());
}

#[tokio::test]
async fn calls_that_may_not_be_served_leave_nothing_in_the_log() {
    let house = House::open().await;
    let url = |bot: &str| format!("{}/telegram/{bot}/webhook", house.http());
    let wrong = house.client.post(url("helper")).header("x-telegram-bot-api-secret-token", "wrong");
    let missing = house.client.post(url("helper"));
    let unknown = house.call("stranger", update("message_private"));
    let large = house.call("helper", vec![b' '; 70_000]);
    for (call, status) in [
        (wrong.body(update("message_private")), StatusCode::UNAUTHORIZED),
        (missing.body(update("message_private")), StatusCode::UNAUTHORIZED),
        (unknown, StatusCode::NOT_FOUND),
        (large, StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let answer = call.send().await.unwrap();
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()["content-type"], "application/problem+json");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["status"], status.as_u16());
        assert!(!problem["mend"].as_str().unwrap().is_empty(), "{problem}");
        assert_eq!(problem["type"], format!("urn:undertone:problem:{}", problem["code"].as_str().unwrap()));
        assert!(!problem.to_string().contains(house::SECRET));
    }
    let got = house.client.get(url("helper")).send().await.unwrap();
    assert_eq!(got.status(), StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(got.headers()["allow"], "POST");
    assert_eq!(got.json::<Value>().await.unwrap()["code"], "wrong_method");
    let no_name = house.call("%FF", update("message_private")).send().await.unwrap();
    assert_eq!(no_name.status(), StatusCode::NOT_FOUND);
    assert_eq!(no_name.json::<Value>().await.unwrap()["code"], "unknown_bot");
    for name in [topic::TURNS_RECEIVED, topic::FEEDBACK, topic::REJECTS] {
        assert!(house.records(name).await.is_empty(), "{name}");
    }
}

#[tokio::test]
async fn an_update_sent_twice_is_two_records_with_one_id() {
    let house = House::open().await;
    for _ in 0..2 {
        assert!(house.call("helper", update("edited_message")).send().await.unwrap().status().is_success());
    }
    let ids: Vec<_> = house.turns().await.into_iter().map(|turn| turn.id).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0], ids[1]);
}

#[tokio::test]
async fn without_a_log_telegram_is_told_to_come_again_and_a_socket_to_send_again() {
    let house = House::without_log(Duration::from_millis(200), |_| {}).await;
    let answer = house.call("helper", update("message_private")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["retry-after"], "7");

    let mut socket = house.socket().await;
    for id in ["c1", "c2"] {
        socket.send(Message::text(house::frame(id, "room-7", "hello").to_string())).await.unwrap();
        let answer = house::next(&mut socket).await;
        assert_eq!(
            (&answer["type"], &answer["id"], &answer["code"]),
            (&json!("error"), &json!(id), &json!("unavailable"))
        );
    }
}

#[tokio::test]
async fn without_room_a_webhook_is_told_at_once_and_served_when_there_is_room() {
    let house = House::without_log(Duration::from_millis(200), |_| {}).await;
    // A call whose body does not come holds the room that its body may take: here, all of it.
    let mut slow = tokio::net::TcpStream::connect(house.address()).await.unwrap();
    let head = format!(
        "POST /telegram/helper/webhook HTTP/1.1\r\nHost: {}\r\nTransfer-Encoding: chunked\r\n\
         X-Telegram-Bot-Api-Secret-Token: {}\r\n\r\n",
        house.address(),
        house::SECRET
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    house::held(&house, 2048).await;
    let answer = house.call("helper", update("message_private")).send().await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["retry-after"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"7".parse().unwrap())
    );
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "queue_full");
    drop(slow);
    house::held(&house, 0).await;
    let answer = house.call("helper", update("message_private")).send().await.unwrap();
    assert_eq!(answer.json::<Value>().await.unwrap()["code"], "log_late", "it got as far as the log");
    house::held(&house, 0).await;
}

#[tokio::test]
async fn without_room_a_socket_is_not_read_and_nothing_of_it_is_refused() {
    const ROOM_BYTES: usize = 64 * 1024;
    const FRAMES: usize = 1_600;
    let mut house = House::without_log(house::PATIENCE, |config| {
        config.acknowledge_within = house::PATIENCE;
        config.in_flight_bytes_max = ROOM_BYTES;
    })
    .await;
    let (mut sink, mut answers) = house.socket().await.split();
    // Far more than the room and the buffers of both sockets hold: it cannot all be sent while nobody reads.
    let text = "x".repeat(12 * 1024);
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counting = std::sync::Arc::clone(&sent);
    let sending = tokio::spawn(async move {
        for n in 0..FRAMES {
            let frame = house::frame(&format!("c{n}"), "room-7", &text).to_string();
            sink.send(Message::text(frame)).await.unwrap();
            counting.store(n + 1, std::sync::atomic::Ordering::SeqCst);
        }
        sink
    });
    // While the log is away the sending stands still: the same number twice, well apart, and not all of them.
    let mut last = usize::MAX;
    let mut looks = tokio::time::interval(Duration::from_millis(300));
    loop {
        looks.tick().await;
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    assert!(last < FRAMES, "the client was not held back");
    assert!(house.ingest.in_flight_bytes() <= ROOM_BYTES, "{}", house.ingest.in_flight_bytes());
    house.log_comes().await;
    for n in 0..FRAMES {
        let answer = loop {
            match answers.next().await.unwrap().unwrap() {
                Message::Text(text) => break serde_json::from_str::<Value>(&text).unwrap(),
                _ => continue,
            }
        };
        assert_eq!((&answer["type"], &answer["id"]), (&json!("ack"), &json!(format!("c{n}"))), "{answer}");
    }
    drop(sending.await.unwrap());
    assert_eq!(house.ingest.in_flight_bytes(), 0, "all the room is given back");
}

#[tokio::test]
async fn a_disk_nearly_full_stops_intake() {
    let house = House::open_with(|config| config.disk_free_bytes_min = u64::MAX).await;
    let answer = house.call("helper", update("message_private")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().await.unwrap().contains("disk is nearly full"));
    assert!(house.turns().await.is_empty());
}

#[tokio::test]
async fn every_frame_of_a_batch_is_answered_in_its_order_through_a_small_window() {
    let house = House::open_with(|config| config.websocket.in_flight_max = 3).await;
    let mut socket = house.socket().await;
    let mut batch: Vec<Value> =
        (0..50).map(|n| house::frame(&format!("c{n}"), "room-7", &format!("turn {n}"))).collect();
    batch[20]["text"] = json!("");
    socket.send(Message::text(json!({"batch": batch}).to_string())).await.unwrap();
    let mut last_offset = -1;
    for n in 0..50 {
        let answer = house::next(&mut socket).await;
        assert_eq!(answer["id"], format!("c{n}"));
        if n == 20 {
            assert_eq!(
                (&answer["type"], &answer["code"], &answer["field"]),
                (&json!("error"), &json!("invalid"), &json!("text"))
            );
            continue;
        }
        assert_eq!(answer["type"], "ack", "{answer}");
        assert_eq!(answer["turn"], turn_id("websocket", "room-7", "ann", &format!("c{n}")).to_string());
        let offset = answer["offset"].as_i64().unwrap();
        assert!(offset > last_offset, "turns of a conversation stand in the order sent");
        last_offset = offset;
    }
    let texts: Vec<_> = house.turns().await.into_iter().map(|turn| turn.text).collect();
    let expected: Vec<_> = (0..50).filter(|n| *n != 20).map(|n| format!("turn {n}")).collect();
    assert_eq!(texts, expected);
}

#[tokio::test]
async fn a_socket_outlives_what_is_wrong_with_its_frames() {
    let house = House::open().await;
    let mut socket = house.socket().await;
    let large = format!("{{\"pad\":\"{}\"}}", "x".repeat(20_000));
    for (bad, code) in [
        (Message::text("{"), "invalid"),
        (Message::binary(vec![1, 2, 3]), "invalid"),
        (Message::text(large), "too_large"),
        (Message::text(house::frame("c0", "telegram:helper:42", "hello").to_string()), "invalid"),
    ] {
        socket.send(bad).await.unwrap();
        let answer = house::next(&mut socket).await;
        assert_eq!((&answer["type"], &answer["code"]), (&json!("error"), &json!(code)), "{answer}");
    }
    socket.send(Message::text(house::frame("c1", "room-7", "still here").to_string())).await.unwrap();
    assert_eq!(house::next(&mut socket).await["type"], "ack");
    assert_eq!(house.turns().await.len(), 1);

    // Far over the bound nothing is read any more: the socket is closed with a reason.
    socket.send(Message::text("x".repeat(100_000))).await.unwrap();
    let mut ended = false;
    while let Some(message) = socket.next().await {
        ended |= matches!(message, Ok(Message::Close(_)) | Err(_));
        if ended {
            break;
        }
    }
    assert!(ended);
}

#[tokio::test]
async fn a_page_of_another_origin_opens_no_socket() {
    let house = House::open_with(|config| config.origins_allowed = vec!["https://app.example".to_owned()]).await;
    let own = house.http();
    for (origin, status) in [
        ("https://evil.example", StatusCode::FORBIDDEN),
        ("null", StatusCode::FORBIDDEN),
        ("https://app.example", StatusCode::SWITCHING_PROTOCOLS),
        (own.as_str(), StatusCode::SWITCHING_PROTOCOLS),
    ] {
        let opened = house
            .client
            .get(format!("{}/ingest/ws", house.http()))
            .header("origin", origin)
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(opened.send().await.unwrap().status(), status, "{origin}");
    }
    let plain = house.client.get(format!("{}/ingest/ws", house.http())).send().await.unwrap();
    assert_eq!(plain.headers()["content-type"], "application/problem+json");
}

#[tokio::test]
async fn sockets_beyond_the_bound_are_told_to_come_again() {
    let house = House::open_with(|config| config.websocket.sockets_max = 1).await;
    let first = house.socket().await;
    let error = tokio_tungstenite::connect_async(house.ws()).await.unwrap_err();
    assert!(error.to_string().contains("503"), "{error}");
    drop(first);
}

#[tokio::test]
async fn a_drain_answers_what_was_read_and_says_goodbye() {
    let house = House::open().await;
    let mut socket = house.socket().await;
    let batch: Vec<Value> = (0..100).map(|n| house::frame(&format!("c{n}"), "room-7", "hello")).collect();
    socket.send(Message::text(Value::Array(batch).to_string())).await.unwrap();
    assert_eq!(house::next(&mut socket).await["type"], "ack");

    let drained = tokio::spawn({
        let ingest = house.ingest.clone();
        async move { ingest.drain(Duration::from_secs(20)).await }
    });
    let (mut acks, mut retry_ms) = (1, None);
    let code = loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) if text.contains("\"ack\"") => acks += 1,
            Message::Text(text) => {
                let farewell: Value = serde_json::from_str(&text).unwrap();
                assert_eq!((&farewell["type"], &farewell["reason"]), (&json!("reconnect"), &json!("going_down")));
                retry_ms = farewell["retry_ms"].as_u64();
            }
            Message::Close(Some(close)) => break u16::from(close.code),
            _ => {}
        }
    };
    assert_eq!((acks, code), (100, 1001));
    assert!((7_000..=12_000).contains(&retry_ms.unwrap()), "the usual wait and up to the spread: {retry_ms:?}");
    assert!(drained.await.unwrap());
    let answer = house.call("helper", update("message_private")).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(house.turns().await.len(), 100);
}
