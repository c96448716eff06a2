//! A proxy between a client and a broker that holds requests or answers of one kind back, so that a test decides what is
//! on its way when something happens. Answers that name the broker's address name the proxy's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use store::log::Kafka;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::PATIENCE;

/// What can be held: kinds of requests, by their number in Kafka's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Kind {
    /// Records on their way.
    Produce = 0,
    /// Records that a reader asks for.
    Fetch = 1,
    /// The end of a transaction.
    EndTransaction = 26,
}

/// Kinds of requests whose answers name brokers: Metadata, FindCoordinator, DescribeCluster.
const NAMING: [i16; 3] = [3, 10, 60];

/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// The request does not reach the broker.
    Request(Kind),
    /// The broker has acted, and its answer does not reach the client.
    Answer(Kind),
}

/// The proxy; it ends with this value.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    rule: watch::Sender<Option<Held>>,
    holding: watch::Sender<bool>,
}

impl Proxy {
    /// A proxy before the broker that `kafka` names.
    pub async fn start(kafka: &Kafka) -> Proxy {
        let upstream = kafka.bootstrap.parse().expect("one broker by address");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let shared = Arc::new(Shared { upstream, rule: watch::Sender::new(None), holding: watch::Sender::new(false) });
        let serving = Arc::clone(&shared);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, address, Arc::clone(&serving)));
            }
        });
        Proxy { address, shared, _task: task }
    }

    /// How to reach the broker through it.
    pub fn kafka(&self, kafka: &Kafka) -> Kafka {
        Kafka { bootstrap: self.address.to_string(), ..kafka.clone() }
    }

    /// Holds from now on.
    pub fn hold(&self, what: Held) {
        self.shared.rule.send_replace(Some(what));
    }

    /// Waits until something is held.
    pub async fn holding(&self) {
        let mut holding = self.shared.holding.subscribe();
        let held = tokio::time::timeout(PATIENCE, holding.wait_for(|holding| *holding)).await;
        held.expect("something is held in time").expect("the proxy runs");
    }

    /// Lets everything pass.
    pub fn release(&self) {
        self.shared.rule.send_replace(None);
        self.shared.holding.send_replace(false);
    }
}

impl Shared {
    /// Comes back when the frame may pass.
    async fn pass(&self, held: impl Fn(Held) -> bool) {
        let mut rule = self.rule.subscribe();
        let holds = |rule: &Option<Held>| rule.is_some_and(&held);
        if holds(&rule.borrow()) {
            self.holding.send_replace(true);
        }
        // An error means that the proxy ended, and then nothing waits any more.
        let _ = rule.wait_for(|rule| !holds(rule)).await;
    }
}

/// Numbers and kinds of the requests that are not answered yet.
type Asked = Arc<Mutex<HashMap<i32, i16>>>;

async fn serve(client: TcpStream, address: SocketAddr, shared: Arc<Shared>) {
    let Ok(broker) = TcpStream::connect(shared.upstream).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let asked = Asked::default();
    // Either side that ends, ends the connection.
    tokio::select! {
        () = requests(from_client, to_broker, &shared, &asked) => {}
        () = answers(from_broker, to_client, &shared, &asked, address) => {}
    }
}

async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, asked: &Asked) {
    while let Some(frame) = frame(&mut from).await {
        let kind = i16::from_be_bytes([frame[4], frame[5]]);
        let number = i32::from_be_bytes([frame[8], frame[9], frame[10], frame[11]]);
        asked.lock().unwrap_or_else(PoisonError::into_inner).insert(number, kind);
        shared.pass(|held| matches!(held, Held::Request(held) if held as i16 == kind)).await;
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

async fn answers(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, asked: &Asked, address: SocketAddr) {
    while let Some(mut frame) = frame(&mut from).await {
        let number = i32::from_be_bytes([frame[4], frame[5], frame[6], frame[7]]);
        let kind = asked.lock().unwrap_or_else(PoisonError::into_inner).remove(&number).unwrap_or(-1);
        if NAMING.contains(&kind) {
            rename(&mut frame, shared.upstream, address);
        }
        shared.pass(|held| matches!(held, Held::Answer(held) if held as i16 == kind)).await;
        if to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

/// A frame with its length before it; `None` at the end. Both kinds have at least eight bytes behind the length, or
/// four in an answer.
async fn frame(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.resize(4 + length as usize, 0);
    from.read_exact(&mut frame[4..]).await.ok()?;
    Some(frame)
}

/// Every version of the protocol writes the port as four bytes right behind the host.
fn rename(frame: &mut [u8], broker: SocketAddr, proxy: SocketAddr) {
    let bytes = |address: SocketAddr| {
        let mut bytes = address.ip().to_string().into_bytes();
        bytes.extend(i32::from(address.port()).to_be_bytes());
        bytes
    };
    let (from, to) = (bytes(broker), bytes(proxy));
    let mut start = 0;
    while let Some(found) = frame[start..].windows(from.len()).position(|window| window == from) {
        frame[start + found..][..to.len()].copy_from_slice(&to);
        start += found + to.len();
    }
}
