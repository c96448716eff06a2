//! A single-node broker that speaks Kafka's protocol, embedded in a process, on local files.
//!
//! It is **one node**: nothing is replicated, and when its machine is gone, so is its data. It makes one process whole
//! without any server beside it, for development, tests and small installations. **A cluster runs Apache Kafka**; clients
//! see the same protocol there, and nothing but the bootstrap address changes.
//!
//! # What it does
//!
//! Produce and fetch with long polls; idempotent producers; transactions with fencing, time-outs and `read_committed`;
//! consumer groups of the classic protocol with static members; retention, compaction, deletion of records; topic ids;
//! topic administration, and what Apache Kafka's tools ask of groups, producers, transactions and the cluster. Batches
//! are kept as clients compressed them. Newer protocols (the consumer protocol of KIP-848, share groups, the second
//! transaction protocol of KIP-890, fetch sessions) are not offered, so that clients do not use them. There is no
//! TLS, no authentication and no quota: it listens on loopback, unless [`Config::allow_remote`] says otherwise.
//!
//! # What an acknowledgement promises
//!
//! With [`Fsync::Interval`], the default: what was acknowledged survives the end of the process in any way, `kill -9`
//! included, because it has been given to the operating system. A power cut or a crash of the system may take what was
//! acknowledged within the last interval, and a transaction of that time may be cut in two.
//! With [`Fsync::Acknowledge`]: it survives a power cut as well, because it was synced before the answer, and no reader
//! sees a record before that. Writers that wait share a sync. (An offset that a group commits is seen by its members at
//! once; if the power goes before its commit is acknowledged, the one before counts again.)
//!
//! # How
//!
//! The broker has a runtime and threads of its own, all within [`Broker`]: dropping it ends them, closes the files and
//! frees the port, like a crash; [`Broker::shutdown`] ends it in order. Connections are served on few asynchronous
//! threads, which also append to the page cache and read from its end: to hand that to another thread would take longer
//! than to do it. What may have to wait for the disk happens on a bounded number of I/O threads. Memory is bounded by the limits in
//! [`Config`] and a sparse index of each partition's last segment. A start reads checkpoints and only what was appended
//! behind them. The system's clock is read at the start alone: who sets it meanwhile changes nothing.

#![warn(clippy::unwrap_used)]

mod batch;
mod clock;
mod connection;
mod frame;
mod groups;
mod log;
mod maintenance;
mod metadata;
mod node;
#[cfg(test)]
mod power_cut;
#[cfg(test)]
mod power_cut_tests;
mod requests;
mod settings;
mod sync;
mod transactions;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use log::{Replace, Rewriter};
pub use metadata::MetadataError;
use node::Node;
use sync::Syncer;

/// How the broker runs. [`Config::new`] gives the defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes a free one. An address that is not loopback needs [`Config::allow_remote`].
    pub listen: SocketAddr,
    /// The host that clients are told to connect to; needed if `listen` is an unspecified address such as 0.0.0.0.
    pub advertised_host: Option<String>,
    /// Listen beyond loopback. There is no authentication: everyone who reaches the port may read and write everything.
    pub allow_remote: bool,
    /// Where everything is kept. One broker at a time.
    pub dir: PathBuf,
    /// What an acknowledgement promises.
    pub fsync: Fsync,
    /// Make a topic of one partition when a client asks for one that is not there.
    pub auto_create_topics: bool,
    /// Threads that serve connections, and append to files and read what was just appended meanwhile.
    pub worker_threads: usize,
    /// Threads for what may have to wait for the disk.
    pub io_threads: usize,
    /// Connections beyond these are closed at once, or take the place of a silent one.
    pub connections_max: usize,
    /// When all connections are taken, one without a request for this long makes room, the longest silent first.
    pub connection_makes_room_after: Duration,
    /// A connection without a request for this long is closed.
    pub connection_idle: Duration,
    /// A connection that takes longer than this from the first byte of a request to the last is closed.
    pub request_within: Duration,
    /// Largest request in bytes.
    pub request_bytes_max: usize,
    /// Memory in bytes for all requests that are being read or served; who finds it used up waits.
    pub request_memory_bytes: usize,
    /// Largest answer to a fetch in bytes, but always at least one batch.
    pub fetch_bytes_max: usize,
    /// Memory in bytes for all fetched records that are being read or sent; who finds it used up waits.
    pub fetch_memory_bytes: usize,
    /// Partitions of all topics together.
    pub partitions_max: usize,
    /// Longest transaction that a producer may ask for.
    pub transaction_timeout_max: Duration,
    /// Transactional ids known at a time.
    pub transactional_ids_max: usize,
    /// A transactional id that was not used for this long is forgotten.
    pub transactional_id_expiry: Duration,
    /// A producer that was silent on a partition for this long is forgotten there.
    pub producer_expiry: Duration,
    /// Producers remembered by a partition; beyond them the longest silent ones are forgotten.
    pub producers_max: usize,
    /// Consumer groups with members.
    pub groups_max: usize,
    /// Members of one group.
    pub group_members_max: usize,
    /// Committed offsets of all groups together.
    pub group_offsets_max: usize,
    /// The offsets of a group that had no members and committed nothing for this long, while the broker ran, are
    /// forgotten.
    pub group_offsets_expiry: Duration,
    /// Shortest session time-out that a group member may ask for.
    pub session_timeout_min: Duration,
    /// Longest session time-out that a group member may ask for.
    pub session_timeout_max: Duration,
    /// How long the first generation of a group waits for more members.
    pub initial_rebalance_delay: Duration,
    /// How often retention, compaction and checkpoints are looked after.
    pub maintenance_every: Duration,
    /// A partition writes a checkpoint after this many appended bytes; a start scans at most about as many.
    pub checkpoint_bytes: u64,
    /// Keys that one round of compaction holds in memory, at about 40 bytes each.
    pub compaction_keys_max: usize,
    /// How long [`Broker::shutdown`] waits for requests that are being served.
    pub shutdown_grace: Duration,
}

impl Config {
    /// Defaults: a free port on loopback, data in `dir`.
    pub fn new(dir: impl Into<PathBuf>) -> Config {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Config {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertised_host: None,
            allow_remote: false,
            dir: dir.into(),
            fsync: Fsync::Interval { every: Duration::from_secs(1) },
            auto_create_topics: false,
            worker_threads: 4,
            io_threads: 4,
            connections_max: 1000,
            connection_makes_room_after: Duration::from_secs(10),
            connection_idle: Duration::from_secs(600),
            request_within: Duration::from_secs(60),
            request_bytes_max: 32 << 20,
            request_memory_bytes: 128 << 20,
            fetch_bytes_max: 8 << 20,
            fetch_memory_bytes: 64 << 20,
            partitions_max: 2000,
            transaction_timeout_max: Duration::from_secs(900),
            transactional_ids_max: 10_000,
            transactional_id_expiry: 7 * DAY,
            producer_expiry: DAY,
            producers_max: 10_000,
            groups_max: 1000,
            group_members_max: 500,
            group_offsets_max: 100_000,
            group_offsets_expiry: 30 * DAY,
            session_timeout_min: Duration::from_secs(6),
            session_timeout_max: Duration::from_secs(1800),
            initial_rebalance_delay: Duration::ZERO,
            maintenance_every: Duration::from_secs(1),
            checkpoint_bytes: 4 << 20,
            compaction_keys_max: 1_000_000,
            shutdown_grace: Duration::from_secs(5),
        }
    }
}

/// When file contents are synced to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// In the background: an acknowledgement survives `kill -9`, but not a power cut within the interval.
    Interval {
        /// Time between two syncs.
        every: Duration,
    },
    /// Before the acknowledgement, in groups: it survives a power cut.
    Acknowledge,
}

/// Why the broker did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address is open to other machines and nobody said that it may be.
    #[error(
        "{listen} can be reached from other machines and the broker has no authentication; listen on 127.0.0.1, or set allow_remote if the network is trusted"
    )]
    NotLoopback {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// Clients must be told a host.
    #[error(
        "{listen} is no address to connect to; set advertised_host to the name or address by which clients reach this machine"
    )]
    NoAdvertisedHost {
        /// The address asked for.
        listen: SocketAddr,
    },
    /// Another process has the data directory.
    #[error("{path} is in use by another broker; stop that one or choose another data directory")]
    InUse {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory cannot be used.
    #[error("use data directory {path}: {source}; check that it can be written and that the disk is not full")]
    Directory {
        /// The data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metadata cannot be read.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A topic's log cannot be opened.
    #[error("open the log in {path}: {source}; check permissions and the disk, or restore it from a backup")]
    Log {
        /// The topic's folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address cannot be listened on.
    #[error("listen on {listen}: {source}; is another program using the port?")]
    Listen {
        /// The address asked for.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No threads could be started.
    #[error("start the broker's threads: {0}")]
    Threads(#[source] io::Error),
}

/// Why a running broker cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The disk did not take what was written.
    #[error(
        "sync the broker's files: {source}; what was acknowledged before may be lost, check the disk before a restart"
    )]
    Sync {
        /// What the system said.
        source: io::Error,
    },
    /// A part of the broker ended by itself.
    #[error("the broker's {part} ended unexpectedly; restart it, and report the log")]
    Ended {
        /// Which part.
        part: &'static str,
    },
}

/// Why the end was not in order. Nothing acknowledged is lost by it, short of a power cut.
#[derive(Debug, thiserror::Error)]
pub enum ShutdownError {
    /// The last sync or checkpoint failed.
    #[error("write the broker's last state: {0}; the next start reads more of the log")]
    Storage(#[from] io::Error),
}

/// Reads the bytes of a request, from its key on, without serving it: for fuzzing.
#[doc(hidden)]
pub fn reads_request(request: &[u8]) -> bool {
    requests::reads(request)
}

/// Reads the bytes of a record batch, and writes it again as compaction does: for fuzzing.
///
/// # Panics
/// What was written is not read as it was: a fault of ours.
#[doc(hidden)]
pub fn reads_batch(bytes: &[u8]) {
    let Some(header) = batch::Header::parse(bytes) else { return };
    let _ = batch::checksum_holds(bytes, &header);
    if bytes.len() < header.bytes {
        return;
    }
    let whole = &bytes[..header.bytes];
    let _ = batch::marker_of(whole, &header);
    let Ok(records) = batch::records(whole, &header) else { return };
    let written = batch::with_records(&header, &records);
    let again = batch::Header::parse(&written).expect("what compaction writes has a header");
    assert!(batch::checksum_holds(&written, &again), "and the right checksum");
    assert_eq!(batch::records(&written, &again).expect("and is read"), records);
}

/// A running broker. Dropped, it ends as in a crash.
pub struct Broker {
    address: SocketAddr,
    host: String,
    node: Arc<Node>,
    failed: watch::Receiver<Option<Arc<Failure>>>,
    runtime: Option<Runtime>,
    sync_thread: Option<std::thread::JoinHandle<()>>,
    serving: Option<tokio::task::JoinHandle<()>>,
    lock: Option<File>,
}

impl Broker {
    /// Opens the data directory, recovers what a crash left, and listens.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running.
    pub async fn start(config: Config) -> Result<Broker, StartError> {
        let listen = config.listen;
        if !listen.ip().is_loopback() && !config.allow_remote {
            return Err(StartError::NotLoopback { listen });
        }
        if listen.ip().is_unspecified() && config.advertised_host.is_none() {
            return Err(StartError::NoAdvertisedHost { listen });
        }
        let lock = lock(&config)?;
        let (failed_sender, failed) = watch::channel(None);
        let failed_sender = Arc::new(failed_sender);
        let tell = failed_sender.clone();
        let (syncer, sync_thread) =
            Syncer::start(config.fsync, move |failure| drop(tell.send_replace(Some(Arc::new(failure)))))
                .map_err(StartError::Threads)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(config.worker_threads.max(1))
            .max_blocking_threads(config.io_threads.max(1))
            .thread_name("broker")
            .enable_io()
            .enable_time()
            .build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                syncer.close();
                return Err(StartError::Threads(error));
            }
        };
        let opening = runtime.spawn(open(config, syncer.clone(), failed_sender));
        let mut starting =
            Starting { runtime: Some(runtime), sync_thread: Some(sync_thread), syncer, keep: false, lock: Some(lock) };
        let (node, address, serving) = match opening.await {
            Ok(opened) => opened?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        starting.keep = true;
        Ok(Broker {
            address,
            host: node.host.clone(),
            node,
            failed,
            runtime: starting.runtime.take(),
            sync_thread: starting.sync_thread.take(),
            serving: Some(serving),
            lock: starting.lock.take(),
        })
    }

    /// Where it listens; the port is the real one.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes values out of the log that must not be in it any more, which no client can. `None` while it ends.
    pub fn rewriter(&self) -> Option<Rewriter> {
        let runtime = self.runtime.as_ref()?.handle().clone();
        Some(Rewriter { node: Arc::downgrade(&self.node), runtime })
    }

    /// What clients put into `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        let colons = self.host.contains(':');
        let port = self.address.port();
        if colons { format!("[{}]:{port}", self.host) } else { format!("{}:{port}", self.host) }
    }

    /// Serves the bytes of one request, from its key on, as if a client had sent them, for at most so long: for fuzzing,
    /// which must reach what only a socket reaches. Whether it was answered.
    #[doc(hidden)]
    pub async fn serve_bytes(&self, request: Vec<u8>, within: Duration) -> bool {
        if request.len() < connection::REQUEST_BYTES_MIN {
            return false;
        }
        let Some(runtime) = &self.runtime else { return false };
        let node = self.node.clone();
        let serving = runtime.spawn(async move {
            let serving = Box::pin(requests::serve(&node, request.into()));
            tokio::time::timeout(within, serving).await.is_ok_and(|served| served.is_ok())
        });
        match serving.await {
            Ok(answered) => answered,
            Err(ended) if ended.is_panic() => std::panic::resume_unwind(ended.into_panic()),
            Err(_) => false,
        }
    }

    /// Waits until the broker cannot go on; for ever if all is well.
    pub async fn failed(&self) -> Arc<Failure> {
        let mut failed = self.failed.clone();
        loop {
            if let Some(failure) = failed.borrow_and_update().clone() {
                return failure;
            }
            if failed.changed().await.is_err() {
                return Arc::new(Failure::Ended { part: "sync thread" });
            }
        }
    }

    /// Ends in order: takes no more requests, answers those that are being served, syncs everything and writes
    /// checkpoints, so that the next start has nothing to scan.
    ///
    /// # Errors
    /// [`ShutdownError`] if the last writes failed.
    pub async fn shutdown(mut self) -> Result<(), ShutdownError> {
        self.node.closing.cancel();
        if let Some(serving) = self.serving.take() {
            let _ = serving.await;
        }
        let node = self.node.clone();
        let last = self.runtime.as_ref().map(|runtime| runtime.spawn_blocking(move || maintenance::last(&node)));
        match last {
            Some(last) => last.await.unwrap_or(Ok(())).map_err(ShutdownError::Storage),
            None => Ok(()),
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.node.closing.cancel();
        end(self.runtime.take(), &self.node.syncer, self.sync_thread.take());
        drop(self.lock.take());
    }
}

/// What to end if the start fails or is given up.
struct Starting {
    runtime: Option<Runtime>,
    sync_thread: Option<std::thread::JoinHandle<()>>,
    syncer: Arc<Syncer>,
    keep: bool,
    lock: Option<File>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.keep {
            end(self.runtime.take(), &self.syncer, self.sync_thread.take());
        }
    }
}

/// Ends all threads before it returns, so that files are closed and the port is free.
fn end(runtime: Option<Runtime>, syncer: &Syncer, sync_thread: Option<std::thread::JoinHandle<()>>) {
    syncer.close();
    if let Some(runtime) = runtime {
        // A runtime must not be dropped on a thread that runs one; tasks end at their next await, file access when the
        // system call returns.
        let ended = std::thread::spawn(move || runtime.shutdown_timeout(Duration::from_secs(10)));
        let _ = ended.join();
    }
    if let Some(thread) = sync_thread {
        let _ = thread.join();
    }
}

/// The lock goes with the process, however it ends.
fn lock(config: &Config) -> Result<File, StartError> {
    let path = config.dir.clone();
    let directory = |source| StartError::Directory { path: path.clone(), source };
    std::fs::create_dir_all(&config.dir).map_err(directory)?;
    let file = File::options().create(true).truncate(false).write(true).open(config.dir.join("lock"));
    let file = file.map_err(directory)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse { path: config.dir.clone() }),
        Err(std::fs::TryLockError::Error(source)) => Err(directory(source)),
    }
}

async fn open(
    config: Config,
    syncer: Arc<Syncer>,
    failed: Arc<watch::Sender<Option<Arc<Failure>>>>,
) -> Result<(Arc<Node>, SocketAddr, tokio::task::JoinHandle<()>), StartError> {
    let listen = config.listen;
    let failing = |source| StartError::Listen { listen, source };
    let listener = TcpListener::bind(listen).await.map_err(failing)?;
    let address = listener.local_addr().map_err(failing)?;
    let host = config.advertised_host.clone().unwrap_or_else(|| address.ip().to_string());
    let closing = CancellationToken::new();
    let opening = move || Node::open(config, host, address.port(), syncer, closing);
    let node = match tokio::task::spawn_blocking(opening).await {
        Ok(node) => Arc::new(node?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    };
    let serving = tokio::spawn(connection::serve(listener, node.clone()));
    let maintenance = tokio::spawn(maintenance::run(node.clone()));
    let closing = node.closing.clone();
    tokio::spawn(async move {
        let ended = maintenance.await;
        if ended.is_err() || !closing.is_cancelled() {
            failed.send_replace(Some(Arc::new(Failure::Ended { part: "maintenance" })));
        }
    });
    Ok((node, address, serving))
}
