//! SQLite behind a thread: a connection that waits for a disk must not hold up the async runtime.
//!
//! One thread writes; further threads read beside it (WAL lets them), and one carries the write-ahead log over into the
//! file, so that no writer waits for the disk unless it asked to. A call is a closure that runs on such a thread, so that
//! a batch of a thousand rows costs one hop and not a thousand. The queue before each thread is bounded; who
//! calls waits. Left out: a pool of writers, because SQLite has one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction};
use tokio::sync::{mpsc, oneshot};

/// Calls that wait before one thread; the next caller waits until one is done.
const CALLS_WAITING_MAX: usize = 256;
/// How long a statement waits for another process that holds the file.
const BUSY_WAIT: Duration = Duration::from_secs(5);
/// Prepared statements kept by a connection.
const STATEMENTS_MAX: usize = 64;
/// The write-ahead log is cut back to this size after a checkpoint, in bytes.
const WAL_BYTES_MAX: i64 = 64 * 1024 * 1024;
/// Pages of the write-ahead log from which the writer itself carries it over into the file, because the thread beside it
/// does not come to an end; with pages of 4 KiB as large as [`WAL_BYTES_MAX`].
const WAL_PAGES_MAX: i64 = WAL_BYTES_MAX / 4096;
/// Time between two checkpoints: the less there is to sync at a time, the shorter do writes wait for the file system.
const CHECKPOINT_EVERY: Duration = Duration::from_millis(100);

/// What is left after a crash of what a call said was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// All of it when the process dies (kill -9, a panic): the operating system has the bytes. When the machine loses
    /// power the last commits may be gone, up to the last checkpoint; the file stays sound. The embedded log's default
    /// loses a second at most: contexts may then be behind the committed offset, and processors refuse to start until
    /// `undertone contexts rebuild` has run. Who cannot live with that chooses [`Durability::Power`].
    #[default]
    Kill,
    /// All of it when the machine loses power too: every commit waits for the disk.
    Power,
}

/// Why a database could not serve.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DatabaseError {
    /// A newer release wrote the file.
    #[error(
        "{path} has schema version {found}, this release knows {known}: run the release that wrote it, or move the file away"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest version that this release knows.
        known: i64,
    },
    /// A newer release changed the tables.
    #[error(
        "the {tables} tables of keyspace {keyspace} have version {found}, this release knows {known}: run the release \
         that changed them, or name another keyspace"
    )]
    NewerTables {
        /// The keyspace.
        keyspace: String,
        /// Which of its tables.
        tables: &'static str,
        /// Their version.
        found: i32,
        /// The newest version that this release knows.
        known: i32,
    },
    /// The server refuses us.
    #[error("the server refuses the login, or what it may do: mend [scylla] user and password, or its grants ({0})")]
    Login(String),
    /// No connection by TLS comes about: a certificate is not trusted, or a file of ours is no good.
    #[error(
        "no trusted connection to the server: mend [scylla] ca_file, certificate_file or key_file, or tls where the \
         server has none; its certificates must name the nodes' IP addresses ({0})"
    )]
    Untrusted(String),
    /// The server cannot be reached or does not serve for now. Goes by itself once it does; a write may have happened.
    #[error("the server does not serve for now ({0})")]
    Away(String),
    /// More requests wait than may. Goes by itself: nothing was asked.
    #[error("{waiting_max} requests wait for the server already: it is too slow for what is asked of it")]
    Crowded {
        /// How many may wait.
        waiting_max: usize,
    },
    /// The file is a database, but another one.
    #[error("{path} is not a database of {expected}: point the setting at another file")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
    },
    /// The file cannot be opened.
    #[error("open {path}: {reason}; check that its folder exists and may be written")]
    Open {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        reason: String,
    },
    /// The disk is full. Goes by itself once there is room: nothing was written.
    #[error("the disk is full: make room; nothing was written ({0})")]
    Full(String),
    /// Another process held the file for too long. Goes by itself: nothing was written.
    #[error("another process holds the database: end it, or give each its own file ({0})")]
    Busy(String),
    /// The file is damaged.
    #[error("the database is damaged: restore it from a backup, or move it away and rebuild ({0})")]
    Damaged(String),
    /// Anything else that the database says; a fault of ours or of the disk.
    #[error("database: {0}")]
    Other(String),
    /// The thread behind the handle ended, because a call on it panicked.
    #[error("the database thread ended after a panic: restart the process and report the message that it left")]
    Stopped,
}

impl DatabaseError {
    /// Whether the same call may succeed later without anybody changing the program.
    pub fn is_transient(&self) -> bool {
        use DatabaseError::{Away, Busy, Crowded, Full};
        matches!(self, Full(_) | Busy(_) | Away(_) | Crowded { .. })
    }
}

impl From<rusqlite::Error> for DatabaseError {
    fn from(error: rusqlite::Error) -> DatabaseError {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => DatabaseError::Full(text),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DatabaseError::Busy(text),
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => DatabaseError::Damaged(text),
            _ => DatabaseError::Other(text),
        }
    }
}

/// What a kind of database is called and how its tables came about.
pub(crate) struct Layout {
    /// For errors and thread names.
    pub(crate) name: &'static str,
    /// Marks the file as one of this kind (`PRAGMA application_id`).
    pub(crate) application_id: i64,
    /// Statements that lead from version n to n + 1; never changed once released, only added to.
    pub(crate) migrations: &'static [&'static str],
}

/// Handle on a database; clones share its threads, which end with the last handle.
#[derive(Debug, Clone)]
pub(crate) struct Database {
    writer: Worker,
    readers: Vec<Worker>,
}

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

#[derive(Debug, Clone)]
struct Worker {
    jobs: mpsc::Sender<Job>,
}

impl Database {
    /// Opens or creates the file and brings it to the newest version. `readers` threads read beside the writer; with 0
    /// the writer reads as well.
    pub(crate) async fn open(
        path: &Path,
        layout: &'static Layout,
        durability: Durability,
        readers: usize,
    ) -> Result<Database, DatabaseError> {
        let path = path.to_owned();
        let synchronous = match durability {
            Durability::Kill => "NORMAL",
            Durability::Power => "FULL",
        };
        let opened = tokio::task::spawn_blocking(move || {
            let writer = connect(&path, layout, synchronous)?;
            let readers: Result<Vec<_>, _> = (0..readers).map(|_| connect(&path, layout, synchronous)).collect();
            Ok::<_, DatabaseError>((writer, readers?, connect(&path, layout, synchronous)?))
        });
        let (writer, readers, checkpoints) = opened.await.map_err(|_| DatabaseError::Stopped)??;
        Ok(Database {
            writer: Worker::start(layout.name, writer, Some(checkpoints_of(layout.name, checkpoints))),
            readers: readers.into_iter().map(|connection| Worker::start(layout.name, connection, None)).collect(),
        })
    }

    /// A database that ends with its last handle.
    pub(crate) fn in_memory(layout: &'static Layout) -> Result<Database, DatabaseError> {
        let mut connection = Connection::open_in_memory()?;
        migrate(&mut connection, Path::new(":memory:"), layout)?;
        Ok(Database { writer: Worker::start(layout.name, connection, None), readers: Vec::new() })
    }

    /// Runs `work` in one transaction on the writing thread; it takes effect whole, or not at all if `work` fails.
    pub(crate) async fn write<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DatabaseError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        self.writer
            .call(move |connection| {
                let transaction = connection
                    .transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)
                    .map_err(DatabaseError::from)?;
                let value = work(&transaction)?;
                transaction.commit().map_err(DatabaseError::from)?;
                Ok(value)
            })
            .await
    }

    /// Carries the whole write-ahead log over into the file and empties it; whether nothing held that up.
    pub(crate) async fn settle(&self) -> Result<bool, DatabaseError> {
        let checkpoint = |connection: &mut Connection| {
            let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
            Ok(busy == 0)
        };
        self.writer.call(checkpoint).await
    }

    /// Runs `work` on a snapshot, on the thread with the shortest queue.
    pub(crate) async fn read<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DatabaseError> + Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, E> + Send + 'static,
    {
        let freest = self.readers.iter().max_by_key(|worker| worker.jobs.capacity()).unwrap_or(&self.writer);
        freest
            .call(move |connection| {
                let transaction = connection.transaction().map_err(DatabaseError::from)?;
                work(&transaction)
            })
            .await
    }
}

impl Worker {
    /// `written` is told after every call.
    fn start(name: &str, mut connection: Connection, written: Option<mpsc::Sender<()>>) -> Worker {
        let (jobs, mut waiting) = mpsc::channel::<Job>(CALLS_WAITING_MAX);
        std::thread::Builder::new()
            .name(format!("sqlite-{name}"))
            .spawn(move || {
                while let Some(job) = waiting.blocking_recv() {
                    job(&mut connection);
                    if let Some(written) = &written {
                        // Whether it was told already does not matter.
                        let _ = written.try_send(());
                    }
                }
            })
            .expect("the system has a thread left: a process without one cannot serve anyway");
        Worker { jobs }
    }

    async fn call<T, E, F>(&self, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<DatabaseError> + Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |connection| {
            // Nobody may be waiting any more; the work is done all the same.
            drop(answer.send(work(connection)));
        });
        self.jobs.send(job).await.map_err(|_| DatabaseError::Stopped)?;
        answered.await.map_err(|_| DatabaseError::Stopped)?
    }
}

/// Carries the write-ahead log over into the file whenever something was written, on a thread of its own, which ends with
/// the writer. It takes what it can get without holding anybody up.
fn checkpoints_of(name: &str, connection: Connection) -> mpsc::Sender<()> {
    let (written, mut waiting) = mpsc::channel(1);
    let thread = std::thread::Builder::new().name(format!("sqlite-{name}-wal")).spawn(move || {
        while waiting.blocking_recv().is_some() {
            if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
                // The writer comes to it by itself, and then tells what is wrong.
                tracing::debug!(error = %error, "checkpoint beside the writer");
            }
            std::thread::sleep(CHECKPOINT_EVERY);
        }
    });
    // Without it the writer does the work.
    drop(thread);
    written
}

fn connect(path: &Path, layout: &Layout, synchronous: &str) -> Result<Connection, DatabaseError> {
    let open = |e: rusqlite::Error| DatabaseError::Open { path: path.to_owned(), reason: e.to_string() };
    let mut connection = Connection::open(path).map_err(open)?;
    connection.busy_timeout(BUSY_WAIT)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "journal_size_limit", WAL_BYTES_MAX)?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_PAGES_MAX)?;
    // What is deleted is overwritten: what was forgotten must not lie in free pages.
    connection.pragma_update(None, "secure_delete", "ON")?;
    migrate(&mut connection, path, layout)?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path, layout: &Layout) -> Result<(), DatabaseError> {
    let transaction = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application_id: i64 = transaction.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let empty = version == 0 && application_id == 0 && tables == 0;
    if !empty && application_id != layout.application_id {
        return Err(DatabaseError::Foreign { path: path.to_owned(), expected: layout.name });
    }
    let known = layout.migrations.len() as i64;
    if version > known {
        return Err(DatabaseError::Newer { path: path.to_owned(), found: version, known });
    }
    for migration in layout.migrations.iter().skip(usize::try_from(version).unwrap_or(0)) {
        transaction.execute_batch(migration)?;
    }
    transaction.pragma_update(None, "application_id", layout.application_id)?;
    transaction.pragma_update(None, "user_version", known)?;
    transaction.commit()?;
    Ok(())
}
