//! What only a CQL server shows: migrations, retention, bounds, and a server that is away. Run by
//! `deploy/servers/cassandra with tests/cassandra`, and not by `make test`: it needs `UNDERTONE_TEST_CASSANDRA`.

use std::num::NonZeroU32;
use std::time::Duration;

use futures_util::future::join_all;
use schemas::Stamp;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use store::DatabaseError;
use store::context::{Batch, ContextError, Contexts, Epoch, Version, Write};
use store::cql::{Keyspace, Scylla, Tls};
use store::history::{History, HistoryError, Page, Row};
use tests::certificates::Authority;
use uuid::Uuid;

fn settings() -> Scylla {
    tests::cassandra().expect("UNDERTONE_TEST_CASSANDRA is set: run this with deploy/servers/cassandra")
}

async fn open(settings: &Scylla, retention_days: u32) -> Result<History, HistoryError> {
    let keyspace = Keyspace::connect(settings).await?;
    History::on_scylla(keyspace, NonZeroU32::new(retention_days)).await
}

/// Another client of the server.
async fn session(settings: &Scylla) -> Session {
    SessionBuilder::new().known_nodes(&settings.nodes).use_keyspace(&settings.keyspace, false).build().await.unwrap()
}

fn row(position: i64) -> Row {
    Row {
        conversation: "c".to_owned(),
        position,
        id: Uuid::nil(),
        at: 1_700_000_000_000 + position,
        person: None,
        value: vec![7; 100],
    }
}

#[tokio::test]
async fn processes_that_start_at_once_make_the_tables_once() {
    let settings = settings();
    let opened = join_all((0..4).map(|_| open(&settings, 0))).await;
    for (number, history) in opened.into_iter().enumerate() {
        history.unwrap().upsert(vec![row(number as i64 + 1)]).await.unwrap();
    }
    let session = session(&settings).await;
    let versions = session.query_unpaged("SELECT name, version FROM versions", ()).await.unwrap();
    let versions = versions.into_rows_result().unwrap();
    let versions: Vec<(String, i32)> = versions.rows().unwrap().map(Result::unwrap).collect();
    assert_eq!(versions, [("history".to_owned(), 2)]);
    let locks = session.query_unpaged("SELECT name FROM locks", ()).await.unwrap().into_rows_result().unwrap();
    assert_eq!(locks.rows_num(), 0, "the lock is let go");
}

#[tokio::test]
async fn tables_of_a_newer_release_are_left_alone() {
    let settings = settings();
    open(&settings, 0).await.unwrap();
    session(&settings)
        .await
        .query_unpaged("UPDATE versions SET version = 99 WHERE name = 'history'", ())
        .await
        .unwrap();
    let HistoryError::Database(error) = open(&settings, 0).await.unwrap_err();
    assert!(matches!(error, DatabaseError::NewerTables { found: 99, known: 2, .. }), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn turns_live_as_long_as_the_setting_says_and_it_can_be_changed() {
    let settings = settings();
    let time_to_live = async |session: &Session| {
        let query = "SELECT TTL(value) FROM turns WHERE conversation = 'c' AND bucket = 0 AND position = 1";
        let rows = session.query_unpaged(query, ()).await.unwrap().into_rows_result().unwrap();
        rows.single_row::<(Option<i32>,)>().unwrap().0
    };
    let session_of = async || session(&settings).await;
    open(&settings, 7).await.unwrap().upsert(vec![row(1)]).await.unwrap();
    let week = 7 * 24 * 3600;
    assert!(time_to_live(&session_of().await).await.is_some_and(|left| left > week - 3600 && left <= week));
    let history = open(&settings, 0).await.unwrap();
    history.upsert(vec![row(1)]).await.unwrap();
    assert_eq!(time_to_live(&session_of().await).await, None);
}

#[tokio::test]
async fn what_retention_took_is_passed_over_from_either_end() {
    let settings = settings();
    let history = open(&settings, 0).await.unwrap();
    for part in (1..=6500).collect::<Vec<i64>>().chunks(500) {
        history.upsert(part.iter().copied().map(row).collect()).await.unwrap();
    }
    let session = session(&settings).await;
    for bucket in 0..4i64 {
        session.query_unpaged("DELETE FROM turns WHERE conversation = 'c' AND bucket = ?", (bucket,)).await.unwrap();
    }
    let positions = async |page, limit| {
        let rows = history.turns("c", page, limit).await.unwrap();
        rows.iter().map(|row| row.position).collect::<Vec<_>>()
    };
    assert_eq!(positions(Page::After(0), 3).await, [4001, 4002, 4003]);
    assert_eq!(positions(Page::After(4998), 4).await, [4999, 5000, 5001, 5002]);
    assert_eq!(positions(Page::Before(Some(4003)), 9).await, [4002, 4001]);
    assert_eq!(positions(Page::Before(Some(2000)), 9).await, [0; 0]);
}

#[tokio::test]
async fn what_is_too_much_is_said_at_once_and_the_rest_is_served() {
    let settings = Scylla { requests_max: 1, requests_waiting_max: 2, ..settings() };
    let history = open(&settings, 0).await.unwrap();
    let answers = join_all((0..20).map(|_| history.last_position("c"))).await;
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert_eq!((served.len(), refused.len()), (3, 17), "one under way and two that wait");
    for error in refused.into_iter().map(Result::unwrap_err) {
        assert!(error.is_transient() && error.to_string().contains("2 requests wait"), "{error}");
    }
    history.last_position("c").await.unwrap();
}

#[tokio::test]
async fn server_that_is_away_is_said_to_be_away() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let settings = Scylla { nodes: vec![nobody.to_string()], request_timeout: Duration::from_secs(2), ..settings() };
    let error = Keyspace::connect(&settings).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Away(_)) && error.is_transient(), "{error}");
}

fn batch(epoch: Epoch, watermark: i64, writes: Vec<Write>) -> Batch {
    Batch { chain: "all".to_owned(), partition: 0, epoch, watermark, writes }
}

fn slice(offset: i64) -> Write {
    let version = Version { stamp: Stamp { partition: 0, offset }, bytes: offset.to_be_bytes().to_vec() };
    Write { conversation: "c".to_owned(), stage: "emotion".to_owned(), current: version, previous: None }
}

#[tokio::test]
async fn write_of_an_older_owner_that_arrives_late_has_no_effect() {
    let settings = settings();
    let open = async || Contexts::on_scylla(Keyspace::connect(&settings).await.unwrap()).await.unwrap();
    let (zombie, owner) = (open().await, open().await);
    let old = zombie.assign("all", 0).await.unwrap().epoch;
    zombie.save(batch(old, 4, vec![slice(3)])).await.unwrap();
    let new = owner.assign("all", 0).await.unwrap().epoch;
    owner.save(batch(new, 6, vec![slice(5)])).await.unwrap();
    // The last of the write times that the older epoch has, for a write that was asked for before and arrives now.
    let session = session(&settings).await;
    let late = old.0 as i64 + 9_999_999;
    assert!(late < new.0 as i64, "{old:?} {new:?}");
    for write in [
        "UPDATE slices USING TIMESTAMP ? SET current = 0xff WHERE conversation = 'c' AND stage = 'emotion'",
        "UPDATE marks USING TIMESTAMP ? SET watermark = 99 WHERE chain = 'all' AND partition = 0",
    ] {
        session.query_unpaged(write, (late,)).await.unwrap();
    }
    assert_eq!(owner.show("c").await.unwrap()[0].current, slice(5).current);
    assert_eq!(owner.watermarks().await.unwrap()[0].watermark, Some(6));
    assert!(matches!(zombie.save(batch(old, 9, vec![slice(8)])).await, Err(ContextError::Fenced { .. })));
}

#[tokio::test]
async fn epoch_is_larger_than_one_from_a_clock_that_is_ahead() {
    let settings = settings();
    let contexts = Contexts::on_scylla(Keyspace::connect(&settings).await.unwrap()).await.unwrap();
    let ahead = contexts.assign("all", 0).await.unwrap().epoch.0 as i64 + 3_600_000_000;
    let session = session(&settings).await;
    let jump = "UPDATE epochs SET epoch = ? WHERE chain = 'all' AND partition = 0 IF EXISTS";
    session.query_unpaged(jump, (ahead,)).await.unwrap();
    let epoch = contexts.assign("all", 0).await.unwrap().epoch;
    assert!(epoch.0 as i64 >= ahead + 10_000_000, "{epoch:?} after {ahead}");
    contexts.save(batch(epoch, 1, vec![slice(0)])).await.unwrap();
    assert_eq!(contexts.watermarks().await.unwrap()[0].watermark, Some(1));
}

#[tokio::test]
async fn owners_that_come_at_once_get_epochs_of_their_own() {
    let settings = settings();
    let contexts = Contexts::on_scylla(Keyspace::connect(&settings).await.unwrap()).await.unwrap();
    let assigned = join_all((0..6).map(|_| contexts.assign("all", 0))).await;
    let mut epochs: Vec<u64> = assigned.into_iter().map(|assigned| assigned.unwrap().epoch.0).collect();
    epochs.sort_unstable();
    assert!(epochs.windows(2).all(|pair| pair[1] - pair[0] >= 10_000_000), "{epochs:?}");
}

/// A server of the test's own, which goes away with it.
struct Secured(String);

impl Secured {
    fn start(settings: &[String]) -> (Secured, String) {
        let secured = Secured(format!("secured.{}", std::process::id()));
        let mut arguments = vec!["start", "--name", &secured.0];
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let address = script(&arguments);
        (secured, address)
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        script(&["wipe", "--name", &self.0]);
    }
}

/// Runs deploy/servers/cassandra, and returns what it prints.
fn script(arguments: &[&str]) -> String {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/servers/cassandra");
    let output = std::process::Command::new(script).args(arguments).output().expect("run deploy/servers/cassandra");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || std::thread::panicking(), "{arguments:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[tokio::test]
async fn a_server_with_certificates_and_passwords_is_used_and_refusals_name_the_setting() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path(), "authority");
    let (server, client) = (authority.issue("server", &["127.0.0.1"]), authority.issue("client", &[]));
    let pem = format!(
        "{{enabled: true, optional: false, require_client_auth: true, ssl_context_factory: {{class_name: \
         org.apache.cassandra.security.PEMBasedSslContextFactory}}, keystore: {}, truststore: {}}}",
        server.both.display(),
        authority.file.display()
    );
    let set = [format!("client_encryption_options={pem}"), "authenticator=PasswordAuthenticator".to_owned()];
    let (secured, address) = tokio::task::spawn_blocking(move || Secured::start(&set)).await.unwrap();

    let user = |password: &str| Some(("cassandra".to_owned(), password.to_owned()));
    let tls = Tls { ca: Some(authority.file.clone()), identity: Some((client.certificate, client.key)) };
    let good = Scylla {
        nodes: vec![address.clone()],
        login: user("cassandra"),
        tls: Some(tls.clone()),
        replication: "{'class': 'SimpleStrategy', 'replication_factor': 1}".to_owned(),
        request_timeout: Duration::from_secs(20),
        ..Scylla::default()
    };
    let history = open(&good, 0).await.unwrap();
    history.upsert(vec![row(1)]).await.unwrap();
    assert_eq!(history.turns("c", Page::After(0), 10).await.unwrap().len(), 1);

    let stranger = Authority::new(folder.path(), "stranger");
    let refused = [
        ("wrong password", Scylla { login: user("wrong"), ..good.clone() }, "user and password"),
        ("no password", Scylla { login: None, ..good.clone() }, "user and password"),
        (
            "wrong authority",
            Scylla { tls: Some(Tls { ca: Some(stranger.file), ..tls.clone() }), ..good.clone() },
            "ca_file",
        ),
    ];
    for (case, settings, said) in refused {
        let error = Keyspace::connect(&settings).await.unwrap_err();
        assert!(!error.is_transient() && error.to_string().contains(said), "{case}: {error}");
    }
    // A server that cuts the connection is not always heard: it may look as if it were away, and the wait for it is bounded.
    let cut_off = [
        ("no certificate", Some(Tls { identity: None, ..tls }), "certificate_file"),
        ("in the clear", None, "[scylla] tls"),
    ];
    for (case, tls, said) in cut_off {
        let error = Keyspace::connect(&Scylla { tls, ..good.clone() }).await.unwrap_err();
        assert!(error.to_string().contains(said), "{case}: {error}");
    }
    tokio::task::spawn_blocking(|| drop(secured)).await.unwrap();
}
