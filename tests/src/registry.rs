//! The schema registry under a test: the Apicurio Registry that `UNDERTONE_TEST_APICURIO` names, or one in this process
//! that speaks as much of Confluent's protocol as is asked of one. And a gate before either, so that a test decides when
//! the registry is away.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use store::registry::Settings;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::PATIENCE;

/// The address of the Apicurio Registry that tests run on; not set, they run on one in this process.
const ADDRESS: &str = "UNDERTONE_TEST_APICURIO";
/// The first id of the one in this process: none that the embedded registry has.
const FIRST_ID: u64 = 100;

/// A registry, behind a gate that is open. Ends with this value.
#[derive(Debug)]
pub struct Registry {
    gate: SocketAddr,
    path: &'static str,
    open: watch::Sender<bool>,
    refused: watch::Sender<u64>,
    _tasks: JoinSet<()>,
}

impl Registry {
    /// One for a test; an Apicurio Registry is shared with all others.
    pub async fn start() -> Registry {
        match std::env::var(ADDRESS).ok().filter(|address| !address.is_empty()) {
            Some(address) => Registry::behind_a_gate(Backend::At(address), "/apis/ccompat/v7").await,
            None => Registry::in_process().await,
        }
    }

    /// An empty one in this process, whatever the environment says.
    pub async fn in_process() -> Registry {
        Registry::behind_a_gate(Backend::Here(Arc::default()), "").await
    }

    async fn behind_a_gate(backend: Backend, path: &'static str) -> Registry {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let gate = listener.local_addr().expect("it has an address");
        let (mut tasks, open, refused) = (JoinSet::new(), watch::Sender::new(true), watch::Sender::new(0));
        tasks.spawn(stand(listener, open.subscribe(), refused.clone(), backend));
        Registry { gate, path, open, refused, _tasks: tasks }
    }

    /// Its address, for the settings.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.gate, self.path)
    }

    /// Settings of a client of it that has little patience.
    pub fn settings(&self) -> Settings {
        Settings { urls: vec![self.url()], tries_max: 2, ..Settings::default() }
    }

    /// Takes it away: connections break, and new ones end at once.
    pub fn close(&self) {
        self.open.send_replace(false);
    }

    /// Brings it back.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    /// Waits until somebody was turned away who came after this call.
    pub async fn turned_away(&self) {
        let mut refused = self.refused.subscribe();
        let before = *refused.borrow();
        let turned = tokio::time::timeout(PATIENCE, refused.wait_for(|refused| *refused > before)).await;
        turned.expect("somebody comes in time").expect("the gate stands");
    }
}

/// A topic of turns that nobody has, so that its subject is fresh on a shared registry too.
pub fn topic() -> String {
    schemas::topic::turns_after(&format!("test-{}", Uuid::new_v4().simple()))
}

#[derive(Debug, Clone)]
enum Backend {
    At(String),
    Here(Arc<Mutex<Held>>),
}

/// Lets everybody in while it is open.
async fn stand(listener: TcpListener, open: watch::Receiver<bool>, refused: watch::Sender<u64>, backend: Backend) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if !*open.borrow() {
            drop(client);
            refused.send_modify(|refused| *refused += 1);
            continue;
        }
        let (mut open, backend) = (open.clone(), backend.clone());
        connections.spawn(async move {
            tokio::select! {
                biased;
                _ = open.wait_for(|open| !open) => {}
                () = serve(client, backend) => {}
            }
        });
    }
}

async fn serve(mut client: TcpStream, backend: Backend) {
    match backend {
        Backend::At(address) => {
            let Ok(mut server) = TcpStream::connect(address).await else { return };
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
        Backend::Here(held) => while answer(&mut client, &held).await.is_some() {},
    }
}

/// Answers one request; `None` when the client has gone.
async fn answer(client: &mut TcpStream, held: &Mutex<Held>) -> Option<()> {
    let mut reader = BufReader::new(&mut *client);
    let (mut first, mut length) = (String::new(), 0);
    if reader.read_line(&mut first).await.ok()? == 0 {
        return None;
    }
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).await.ok()?;
        match header.trim_end().split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.parse().ok()?,
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await.ok()?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    let path = target.split('?').next()?;
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let (status, answer) = held.lock().unwrap_or_else(PoisonError::into_inner).answer(method, &parts, &body);
    let (answer, length) = (answer.to_string(), answer.to_string().len());
    let head = format!(
        "HTTP/1.1 {status} S\r\nContent-Type: application/vnd.schemaregistry.v1+json\r\nContent-Length: {length}\r\n\r\n"
    );
    client.write_all((head + &answer).as_bytes()).await.ok()
}

/// What the registry in this process holds.
#[derive(Debug, Default)]
struct Held {
    /// Every schema that was registered; its id is its place.
    schemas: Vec<Value>,
    /// By subject, the ids of its versions.
    subjects: BTreeMap<String, Vec<u64>>,
    levels: BTreeMap<String, String>,
}

impl Held {
    fn answer(&mut self, method: &str, parts: &[&str], body: &Value) -> (u16, Value) {
        let missing = |code: u32| (404, json!({ "error_code": code, "message": "not found" }));
        let schema = || serde_json::from_str::<Value>(body["schema"].as_str().unwrap_or_default()).unwrap_or_default();
        match (method, parts) {
            ("GET", ["subjects"]) => (200, json!(self.subjects.keys().collect::<Vec<_>>())),
            ("POST", ["subjects", subject]) => {
                let Some(versions) = self.subjects.get(*subject) else { return missing(40401) };
                match versions.iter().position(|id| self.of(*id) == Some(&schema())) {
                    Some(place) => (200, self.described(subject, place)),
                    None => missing(40403),
                }
            }
            ("POST", ["subjects", subject, "versions"]) => match self.objection(subject, &schema()) {
                Some(message) => (409, json!({ "error_code": 409, "message": message })),
                None => (200, json!({ "id": self.register(subject, schema()) })),
            },
            ("GET", ["subjects", subject, "versions"]) => match self.subjects.get(*subject) {
                Some(versions) => (200, json!((1..=versions.len()).collect::<Vec<_>>())),
                None => missing(40401),
            },
            ("GET", ["subjects", subject, "versions", version]) => {
                let versions = self.subjects.get(*subject).map_or(0, Vec::len);
                match version.parse::<usize>().ok().or((*version == "latest").then_some(versions)) {
                    Some(version @ 1..) if version <= versions => (200, self.described(subject, version - 1)),
                    _ => missing(40402),
                }
            }
            ("POST", ["compatibility", "subjects", subject, "versions"]) => {
                let objection = self.objection(subject, &schema());
                (
                    200,
                    json!({ "is_compatible": objection.is_none(), "messages": objection.into_iter().collect::<Vec<_>>() }),
                )
            }
            ("PUT", ["config", subject]) => {
                self.levels
                    .insert((*subject).to_owned(), body["compatibility"].as_str().unwrap_or_default().to_owned());
                (200, body.clone())
            }
            ("GET", ["config", subject]) => match self.levels.get(*subject) {
                Some(level) => (200, json!({ "compatibilityLevel": level })),
                None => (200, json!({ "compatibilityLevel": "NONE" })),
            },
            ("GET", ["schemas", "ids", id, rest @ ..]) => {
                let id = id.parse().unwrap_or_default();
                let Some(schema) = self.of(id) else { return missing(40403) };
                match rest {
                    [] => (200, json!({ "schema": schema.to_string() })),
                    _ => (200, json!(self.places(id))),
                }
            }
            _ => (405, json!({ "error_code": 405, "message": "HTTP 405 Method Not Allowed" })),
        }
    }

    fn of(&self, id: u64) -> Option<&Value> {
        self.schemas.get(usize::try_from(id.checked_sub(FIRST_ID)?).ok()?)
    }

    fn described(&self, subject: &str, place: usize) -> Value {
        let id = self.subjects[subject][place];
        let schema = self.of(id).map(Value::to_string);
        json!({ "subject": subject, "version": place + 1, "id": id, "schema": schema })
    }

    fn places(&self, id: u64) -> Vec<Value> {
        let versions =
            self.subjects.iter().flat_map(|(subject, ids)| ids.iter().enumerate().map(move |v| (subject, v)));
        let places = versions.filter(|(_, (_, found))| **found == id);
        places.map(|(subject, (place, _))| json!({ "subject": subject, "version": place + 1 })).collect()
    }

    fn register(&mut self, subject: &str, schema: Value) -> u64 {
        let place = self.schemas.iter().position(|known| *known == schema).unwrap_or_else(|| {
            self.schemas.push(schema);
            self.schemas.len() - 1
        });
        let id = FIRST_ID + place as u64;
        let versions = self.subjects.entry(subject.to_owned()).or_default();
        if !versions.contains(&id) {
            versions.push(id);
        }
        id
    }

    /// As FULL_TRANSITIVE has it, for records: what only one of two has needs a default.
    fn objection(&self, subject: &str, schema: &Value) -> Option<String> {
        if self.levels.get(subject).map(String::as_str) != Some("FULL_TRANSITIVE") {
            return None;
        }
        let versions = self.subjects.get(subject)?.iter().filter_map(|id| self.of(*id));
        versions.into_iter().find_map(|version| {
            (alone(version, schema).or_else(|| alone(schema, version)))
                .map(|field| format!("field {field} has no default, and stands in one of two versions"))
        })
    }
}

/// A field without a default that only the first of two records has.
fn alone(one: &Value, other: &Value) -> Option<String> {
    let fields = |schema: &Value| schema["fields"].as_array().cloned().unwrap_or_default();
    let has = |name: &Value| fields(other).iter().any(|field| &field["name"] == name);
    let field = fields(one).into_iter().find(|field| field.get("default").is_none() && !has(&field["name"]))?;
    Some(field["name"].as_str().unwrap_or_default().to_owned())
}
