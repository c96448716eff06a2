//! `undertone rejects` as operators type it: the real command line beside a running pipeline. On the embedded broker, and
//! on the Apache Kafka that `UNDERTONE_TEST_KAFKA` names, but for what is in `embedded`.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tests::Server;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use undertone::config::{Bot, Config};
use undertone::up::{self, Running};

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A kind of update that no release knows.
const UNKNOWN: &str = r#"{"update_id":7,"levitation":{"height":2}}"#;

/// Runs `undertone rejects ARGUMENTS…`; its exit code and what it printed.
fn rejects(running: &Running, arguments: &str) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_undertone"));
    command.arg("rejects").args(arguments.split(' ')).env("UNDERTONE__KAFKA__BOOTSTRAP", running.kafka());
    let output = command.output().expect("run the program");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).expect("it prints text"))
}

fn json(running: &Running, arguments: &str) -> Value {
    let (code, said) = rejects(running, arguments);
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

async fn post(running: &Running, body: &str) -> u16 {
    let mut socket = tokio::net::TcpStream::connect(running.http()).await.unwrap();
    let request = format!(
        "POST /telegram/helper/webhook HTTP/1.1\r\nHost: {}\r\nX-Telegram-Bot-Api-Secret-Token: s3cret\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        running.http(),
        body.len()
    );
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_at_fault_is_listed_shown_and_driven_in_again_until_the_bound() {
    let server = Server::for_program().await;
    let mut config = Config::at(server.folder());
    if let Some(bootstrap) = server.apache() {
        config.kafka.bootstrap = bootstrap.to_owned();
        config.context.only_machine = true;
        config.kafka.partitions = tests::APACHE_PARTITIONS;
    }
    config.telegram.bots.insert("helper".to_owned(), Bot { webhook_secret: "s3cret".to_owned().into() });
    let running = up::start(config, &[]).await.unwrap_or_else(|error| panic!("start: {error:#}"));
    assert_eq!(rejects(&running, "list").0, Some(0));
    assert_eq!(post(&running, UNKNOWN).await, 200);

    let listed = json(&running, "list --json --reason unknown_kind --stage ingest --since 1h");
    assert_eq!(
        (&listed["attempt"], &listed["source"], &listed["bot"]),
        (&1.into(), &"telegram".into(), &"helper".into())
    );
    let place = format!("{}:{}", listed["partition"], listed["offset"]);
    let (_, table) = rejects(&running, "list");
    assert!(table.contains(&place) && table.contains("unknown_kind") && table.contains("1 match"), "{table}");
    assert!(!rejects(&running, "list --reason oversized").1.contains(&place));

    let (code, shown) = rejects(&running, &format!("show {place}"));
    assert!(code == Some(0) && shown.contains(UNKNOWN), "{shown}");
    assert_eq!(rejects(&running, &format!("show {place} --raw")).1, UNKNOWN);
    assert_eq!(json(&running, &format!("show {place} --json"))["raw"], UNKNOWN);

    let dry = json(&running, "redrive --dry-run --json");
    assert_eq!((&dry["redriven"], &dry["items"][0]["outcome"]), (&1.into(), &"rejected".into()));
    for attempt in 2..=3 {
        assert_eq!(json(&running, "redrive --json")["rejected_again"], 1);
        assert_eq!(json(&running, "list --json")["attempt"], attempt);
    }
    let (code, said) = rejects(&running, "redrive");
    assert!(code == Some(1) && said.contains("1 refused") && said.contains("attempts_max"), "{said}");
    let all = rejects(&running, "list --redriven --json").1;
    assert_eq!(all.lines().count(), 3, "{all}");
    assert!(running.stop().await.drained);
}

/// What concerns the embedded broker alone.
mod embedded {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn what_cannot_be_done_is_said_with_the_mend() {
        let dir = tempfile::tempdir().unwrap();
        let running = up::start(Config::at(dir.path()), &[up::Role::Broker]).await.unwrap();
        for (arguments, mend) in [
            ("show 9:9", "undertone rejects list"),
            ("show nothing", "PARTITION:OFFSET"),
            ("list --since soon", "RFC 3339"),
        ] {
            let (code, said) = rejects(&running, arguments);
            assert!(code != Some(0) && said.contains(mend), "{arguments}: {said}");
        }
        assert!(running.stop().await.drained);
    }
}
