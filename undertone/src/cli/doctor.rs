//! `undertone doctor`: looks at this machine, says what is missing, and how to mend it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use store::log::{Admin, LogError};
use store::registry::{Client, subjects};

use super::{Settings, runtime, say};
use crate::config::{Cache, Config, StoreKind};
use crate::telemetry::Metrics;
use crate::topics::{self, State};
use crate::{locate, up};

/// How long the brokers, or another server, may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long whoever holds the HTTP port may take with each step of telling who it is.
const WHO_WITHIN: Duration = Duration::from_secs(1);
/// Longest answer to that, in bytes.
const WHO_BYTES_MAX: u64 = 64 * 1024;
/// The families of models, by folder.
const FAMILIES: [&str; 10] =
    ["encoder", "static", "emotion", "personality", "dialogue", "memory", "coherence", "synesthesia", "vad", "dreams"];

/// What was looked at, and how it is: what is good, or what is wrong with its mend.
struct Check {
    what: &'static str,
    found: Result<String, String>,
}

pub(super) fn doctor(settings: &Settings) -> anyhow::Result<ExitCode> {
    let checks = match settings.load() {
        Err(error) => vec![Check { what: "settings", found: Err(format!("{error:#}")) }],
        Ok(config) => runtime()?.block_on(examine(&config)),
    };
    let mut text = String::new();
    for check in &checks {
        let (word, said) = match &check.found {
            Ok(said) => ("ok ", said),
            Err(said) => ("BAD", said),
        };
        text += &format!("{word} {:<14} {said}\n", check.what);
    }
    let bad = checks.iter().filter(|check| check.found.is_err()).count();
    text += &if bad == 0 { "all is well\n".to_owned() } else { format!("{bad} to mend\n") };
    say(&text)?;
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn examine(config: &Config) -> Vec<Check> {
    let running = running(config.http.listen);
    let holds_http = running.is_some();
    let holds_broker = running.is_some_and(|kafka| kafka == config.broker.listen.to_string());
    let mut checks = vec![
        Check {
            what: "settings",
            found: config.check_only_machine().map_or_else(|e| Err(e.to_string()), |()| ok("good")),
        },
        Check { what: "models", found: models(&config.models.dir) },
        Check { what: "onnxruntime", found: onnxruntime(&config.models.onnxruntime) },
        Check { what: "data folder", found: folder(&config.data.dir) },
        Check { what: "http port", found: port(config.http.listen, "[http] listen", holds_http) },
    ];
    if config.is_embedded() {
        let found = port(config.broker.listen, "[broker] listen", holds_broker);
        checks.push(Check { what: "broker port", found });
    } else {
        checks.extend(log(config).await);
    }
    if [config.history.kind, config.context.kind].contains(&StoreKind::Scylla) {
        checks.push(Check {
            what: "cql server",
            found: listens(&config.scylla.settings().nodes, "[scylla] nodes").await,
        });
    }
    if [config.history.cache, config.context.cache].contains(&Cache::Redis) {
        checks.push(Check { what: "redis", found: listens(&config.redis.settings().nodes, "[redis] nodes").await });
    }
    if let Some(settings) = config.registry.settings() {
        checks.push(Check { what: "schemas", found: schemas(&settings, config).await });
    }
    checks
}

/// Whether somebody listens at one of the addresses; a login is tried by who uses it.
async fn listens(nodes: &[String], key: &str) -> Result<String, String> {
    let mut faults = Vec::new();
    for node in nodes {
        match tokio::time::timeout(ANSWER_WITHIN, tokio::net::TcpStream::connect(node)).await {
            Ok(Ok(_)) => return Ok(format!("somebody listens at {node}")),
            Ok(Err(error)) => faults.push(format!("{node}: {error}")),
            Err(_) => faults.push(format!("{node}: no answer within {} s", ANSWER_WITHIN.as_secs())),
        }
    }
    Err(format!("nobody listens ({}); start the server, or mend {key}", faults.join("; ")))
}

async fn schemas(settings: &store::registry::Settings, config: &Config) -> Result<String, String> {
    let client = Client::new(settings, &Metrics::new().meter()).map_err(|error| error.to_string())?;
    let wanted = up::subjects(config);
    let findings = match tokio::time::timeout(ANSWER_WITHIN, subjects::compare(&client, &wanted)).await {
        Ok(findings) => findings.map_err(|error| format!("{error}; start the registry, or mend [registry] url"))?,
        Err(_) => return Err(format!("no registry answers at {}; start it, or mend [registry] url", client.address())),
    };
    match findings.iter().filter(|finding| finding.is_open()).count() {
        0 => Ok(format!("all registered at {}", client.address())),
        open => Err(format!("{open} are to be registered at {}; `undertone topics apply`", client.address())),
    }
}

fn ok(text: &str) -> Result<String, String> {
    Ok(text.to_owned())
}

fn models(configured: &Path) -> Result<String, String> {
    let dir = locate::models(configured).map_err(|e| e.to_string())?;
    let mut files = 0;
    for family in FAMILIES {
        let folder = dir.join(family);
        let card = std::fs::read_to_string(folder.join("card.json"));
        let card = card
            .map_err(|e| format!("read {}: {e}; take the folder from a release", folder.join("card.json").display()))?;
        let card: serde_json::Value = serde_json::from_str(&card).map_err(|e| format!("card of {family}: {e}"))?;
        for (name, facts) in card["files"].as_object().into_iter().flatten() {
            let path = folder.join(name);
            let found = checksum(&path).map_err(|e| format!("read {}: {e}; take it from a release", path.display()))?;
            if facts["sha256"].as_str() != Some(&found) {
                return Err(format!("{} is not the file of its card; take it from a release", path.display()));
            }
            files += 1;
        }
    }
    Ok(format!("{files} files with the right checksums in {}", dir.display()))
}

fn checksum(path: &Path) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn onnxruntime(configured: &Path) -> Result<String, String> {
    locate::onnxruntime(configured).map(|path| path.display().to_string()).map_err(|e| e.to_string())
}

fn folder(dir: &Path) -> Result<String, String> {
    let mend = "give another one with --data-dir or [data] dir";
    let fault = |e: std::io::Error| format!("{} cannot be written: {e}; {mend}", dir.display());
    let existed = dir.exists();
    std::fs::create_dir_all(dir).map_err(fault)?;
    let probe = tempfile::NamedTempFile::new_in(dir).map(drop);
    if !existed {
        // Only a folder that is still empty goes; looking leaves no trace.
        let _ = std::fs::remove_dir(dir);
    }
    probe.map_err(fault)?;
    Ok(format!("{} can be written", std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()).display()))
}

fn port(listen: SocketAddr, key: &str, ours: bool) -> Result<String, String> {
    match TcpListener::bind(listen) {
        Ok(_) => Ok(format!("{listen} is free")),
        Err(_) if ours => Ok(format!("{listen} is in use by a running undertone")),
        Err(e) => Err(format!("{listen}: {e}; end what holds it, or set {key} (port 0: any free one)")),
    }
}

/// Asks whoever listens at the HTTP address: if it is this program, the brokers that it uses.
fn running(http: SocketAddr) -> Option<String> {
    let mut socket = TcpStream::connect_timeout(&http, WHO_WITHIN).ok()?;
    socket.set_read_timeout(Some(WHO_WITHIN)).ok()?;
    socket.set_write_timeout(Some(WHO_WITHIN)).ok()?;
    write!(socket, "GET /status HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.take(WHO_BYTES_MAX).read_to_string(&mut answer).ok()?;
    status_of(answer.split_once("\r\n\r\n")?.1)
}

/// The brokers that a status of this program names; `None`: it is another's.
fn status_of(body: &str) -> Option<String> {
    let status: serde_json::Value = serde_json::from_str(body).ok()?;
    let ours = status["broker_embedded"].is_boolean() && status["roles"].is_array();
    ours.then(|| status["kafka"].as_str().unwrap_or_default().to_owned())
}

async fn log(config: &Config) -> Vec<Check> {
    let kafka = up::kafka_of(config);
    let what = "kafka";
    let admin = match Admin::connect(&kafka) {
        Ok(admin) => admin,
        Err(error) => return vec![Check { what, found: Err(error.to_string()) }],
    };
    if let Err(error) = admin.reachable(ANSWER_WITHIN).await {
        let found = match error {
            LogError::Unauthorized(_) => format!("the brokers at {}: {error}", kafka.bootstrap),
            _ => format!("no broker answers at {}: {error}; mend [kafka] bootstrap", kafka.bootstrap),
        };
        return vec![Check { what, found: Err(found) }];
    }
    let topics = match admin.topics().await {
        Err(error) => Err(error.to_string()),
        Ok(existing) => {
            let findings = topics::compare(&up::topics_wanted(config), &existing, &kafka.bootstrap);
            let missing = findings.iter().filter(|f| matches!(f.state, State::Missing(_))).count();
            match topics::refuse(&findings) {
                Err(error) => Err(error.to_string()),
                Ok(()) if missing == 0 => ok("all exist"),
                Ok(()) => Err(format!("{missing} are missing; `undertone topics apply`")),
            }
        }
    };
    vec![Check { what, found: Ok(format!("answers at {}", kafka.bootstrap)) }, Check { what: "topics", found: topics }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_that_a_running_undertone_holds_is_well_and_another_holder_is_told() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = holder.local_addr().unwrap();
        assert!(port(address, "[http] listen", true).unwrap().contains("running undertone"));
        assert!(port(address, "[http] listen", false).unwrap_err().contains("[http] listen"));
    }

    #[tokio::test]
    async fn a_server_that_is_away_is_named_with_its_setting() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let (there, gone) = (held.local_addr().unwrap().to_string(), "127.0.0.1:1".to_owned());
        assert!(listens(&[gone.clone(), there], "[scylla] nodes").await.is_ok(), "one is enough");
        assert!(listens(&[gone], "[scylla] nodes").await.unwrap_err().contains("[scylla] nodes"));
    }

    #[test]
    fn another_programs_status_is_not_taken_for_ours() {
        let facts =
            serde_json::to_string(&crate::admin::Facts { kafka: "127.0.0.1:9092".into(), ..Default::default() });
        assert_eq!(status_of(&facts.unwrap()).as_deref(), Some("127.0.0.1:9092"));
        assert_eq!(status_of(r#"{"status":"live"}"#), None);
        assert_eq!(status_of("<html>"), None);
    }
}
