//! A keyspace on a CQL server: ScyllaDB, or Apache Cassandra from 4.1 on. Schema and statements stay inside what both
//! speak; what ScyllaDB alone has (a connection to each shard, incremental compaction) is used where the server says so.
//!
//! Promises: reads and writes go to a quorum of the nearest data centre (LOCAL_QUORUM), so that what was written is read
//! whichever node answers, with one node of three away; statements are prepared once and sent to a node that holds the
//! partition. At most [`Scylla::requests_max`] are under way and [`Scylla::requests_waiting_max`] wait; who comes after
//! them is told so at once ([`DatabaseError::Crowded`]). A request takes [`Scylla::request_timeout`] at most.
//!
//! Left out: what is in the tables.

pub(crate) mod migrate;
mod tls;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use scylla::client::PoolSize;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{DbError, ExecutionError, NewSessionError, PrepareError, RequestAttemptError};
use scylla::response::{PagingState, PagingStateResponse};
use scylla::serialize::batch::BatchValues;
use scylla::serialize::row::SerializeRow;
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::prepared::PreparedStatement;
use scylla::statement::unprepared::Statement;
use scylla::statement::{Consistency, SerialConsistency};
use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use self::tls::Tls;
use crate::DatabaseError;

/// How long a change of the schema may take.
const SCHEMA_TIMEOUT: Duration = Duration::from_secs(60);
/// A table that another process made a moment ago is not known to every node at once; after this it is missing.
const SETTLE_WITHIN: Duration = Duration::from_secs(10);
/// Pause between two looks at whether it is.
const SETTLE_LOOK: Duration = Duration::from_millis(100);
/// Requests of one call that are under way at a time.
pub(crate) const REQUESTS_MAX: usize = 64;
/// Rows that the server sends at a time.
const PAGE_ROWS: i32 = 500;

/// How to reach a keyspace.
#[derive(Clone, PartialEq, Eq)]
pub struct Scylla {
    /// `host:port` of some of the nodes; the others are learnt from them.
    pub nodes: Vec<String>,
    /// The keyspace; it is created where it is missing.
    pub keyspace: String,
    /// Name and password, where the server asks for them.
    pub login: Option<(String, String)>,
    /// `None`: in the clear.
    pub tls: Option<Tls>,
    /// The data centre whose nodes are asked; where there is one only, it need not be named.
    pub datacenter: Option<String>,
    /// The replication of a keyspace that is created, as CQL writes it.
    pub replication: String,
    /// Requests that are under way at a time.
    pub requests_max: usize,
    /// Requests that wait until one of those is done.
    pub requests_waiting_max: usize,
    /// How long a request may take, with the driver's own tries on other nodes.
    pub request_timeout: Duration,
}

impl Default for Scylla {
    fn default() -> Scylla {
        Scylla {
            nodes: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "undertone".to_owned(),
            login: None,
            tls: None,
            datacenter: None,
            replication: "{'class': 'NetworkTopologyStrategy', 'replication_factor': 3}".to_owned(),
            requests_max: 256,
            requests_waiting_max: 1024,
            request_timeout: Duration::from_secs(5),
        }
    }
}

impl std::fmt::Debug for Scylla {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scylla").field("nodes", &self.nodes).field("keyspace", &self.keyspace).finish_non_exhaustive()
    }
}

/// A connected keyspace; clones share its connections.
#[derive(Debug, Clone)]
pub struct Keyspace(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Scylla,
    /// Replaced where its connections are lost; see [`Keyspace::look`].
    session: RwLock<Arc<Session>>,
    name: String,
    is_scylla: bool,
    request_timeout: Duration,
    under_way: Semaphore,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Keyspace {
    /// Connects, and creates the keyspace where it is missing.
    ///
    /// # Errors
    /// No node answers, the login is refused, or the keyspace cannot be created.
    pub async fn connect(settings: &Scylla) -> Result<Keyspace, DatabaseError> {
        check_name(&settings.keyspace)?;
        let session = connect(settings, settings.request_timeout).await?;
        let mut inner = Inner {
            settings: settings.clone(),
            session: RwLock::new(Arc::new(session)),
            name: settings.keyspace.clone(),
            is_scylla: false,
            request_timeout: settings.request_timeout,
            under_way: Semaphore::new(settings.requests_max.max(1)),
            waiting: AtomicUsize::new(0),
            waiting_max: settings.requests_waiting_max,
        };
        inner.is_scylla = inner.has("SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'system' AND table_name = 'versions'").await?;
        let keyspace = Keyspace(Arc::new(inner));
        // A user that may not create keyspaces works in one that is there.
        if !keyspace.exists().await? {
            let create = format!(
                "CREATE KEYSPACE IF NOT EXISTS {} WITH replication = {}",
                settings.keyspace, settings.replication
            );
            keyspace.change_schema(&create).await?;
        }
        Ok(keyspace)
    }

    /// Asks the server whether it serves. Where its connections are lost, connects anew: the driver's own tries are up to
    /// ten seconds apart. To be called again and again, by one caller at a time.
    ///
    /// # Errors
    /// It does not answer `within` the time.
    pub async fn look(&self, within: Duration) -> Result<(), DatabaseError> {
        let session = self.0.session();
        let ask = session.query_unpaged("SELECT key FROM system.local", ());
        let lost = match tokio::time::timeout(within, ask).await {
            Ok(Ok(_)) => return Ok(()),
            // One that is slow, or stands still, keeps its connections.
            Err(_) => return Err(DatabaseError::Away(format!("no answer within {} ms", within.as_millis()))),
            Ok(Err(error)) => DatabaseError::from(error),
        };
        match tokio::time::timeout(within, connect(&self.0.settings, within)).await {
            Ok(Ok(session)) => {
                *self.0.session.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(session);
                Ok(())
            }
            // What it says says more than the connections that are lost, unless it is gone altogether.
            Ok(Err(error)) if !error.is_transient() => Err(error),
            _ => Err(lost),
        }
    }

    /// Removes the keyspace with all that is in it.
    ///
    /// # Errors
    /// The server could not serve, or the login may not.
    pub async fn remove(self) -> Result<(), DatabaseError> {
        self.change_schema(&format!("DROP KEYSPACE IF EXISTS {}", self.0.name)).await
    }

    /// Whether the server is ScyllaDB.
    pub(crate) fn is_scylla(&self) -> bool {
        self.0.is_scylla
    }

    async fn exists(&self) -> Result<bool, DatabaseError> {
        let keyspaces = "SELECT keyspace_name FROM system_schema.keyspaces WHERE keyspace_name = ?";
        let found = self.0.session().query_unpaged(keyspaces, (&self.0.name,)).await?;
        Ok(rows_of(found)?.rows_num() > 0)
    }

    /// Changes tables or the keyspace, and waits until every node knows; `{}` has been replaced already.
    pub(crate) async fn change_schema(&self, statement: &str) -> Result<(), DatabaseError> {
        let mut statement = Statement::new(statement);
        statement.set_request_timeout(Some(SCHEMA_TIMEOUT));
        self.0.session().query_unpaged(statement, ()).await?;
        Ok(())
    }

    /// Prepares a statement about tables of this keyspace: `{}` stands for it.
    pub(crate) async fn prepare(&self, statement: &str) -> Result<PreparedStatement, DatabaseError> {
        let (statement, begun) = (self.spell(statement), Instant::now());
        let mut prepared = loop {
            match self.0.session().prepare(statement.as_str()).await {
                Ok(prepared) => break prepared,
                Err(error) if is_invalid(&error) && begun.elapsed() < SETTLE_WITHIN => {
                    tokio::time::sleep(SETTLE_LOOK).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        // Every statement says what is to be, so that the driver may try it again on another node.
        prepared.set_is_idempotent(true);
        prepared.set_page_size(PAGE_ROWS);
        Ok(prepared)
    }

    /// The statement with the name of the keyspace for `{}`.
    pub(crate) fn spell(&self, statement: &str) -> String {
        statement.replace("{}", &self.0.name)
    }

    /// Writes.
    pub(crate) async fn write(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<(), DatabaseError> {
        let _under_way = self.admit().await?;
        self.0.session().execute_unpaged(statement, values).await?;
        Ok(())
    }

    /// Prepares several statements that write to one partition, as one request.
    pub(crate) async fn prepare_together(&self, statements: &[&str]) -> Result<Together, DatabaseError> {
        let mut batch = Batch::new(BatchType::Unlogged);
        for statement in statements {
            batch.append_statement(self.prepare(statement).await?);
        }
        batch.set_is_idempotent(true);
        Ok(Together(batch))
    }

    /// Writes to one partition.
    pub(crate) async fn write_together(
        &self,
        statements: &Together,
        values: impl BatchValues,
    ) -> Result<(), DatabaseError> {
        let _under_way = self.admit().await?;
        self.0.session().batch(&statements.0, values).await?;
        Ok(())
    }

    /// Reads all rows, in the server's pages.
    pub(crate) async fn read<R>(
        &self,
        statement: &PreparedStatement,
        values: impl SerializeRow,
    ) -> Result<Vec<R>, DatabaseError>
    where
        R: for<'frame> scylla::deserialize::row::DeserializeRow<'frame, 'frame>,
    {
        let _under_way = self.admit().await?;
        let mut state = PagingState::start();
        let mut rows = Vec::new();
        loop {
            let (page, next) = self.0.session().execute_single_page(statement, &values, state).await?;
            let page = rows_of(page)?;
            for row in page.rows::<R>().map_err(misread)? {
                rows.push(row.map_err(misread)?);
            }
            match next {
                PagingStateResponse::HasMorePages { state: next } => state = next,
                PagingStateResponse::NoMorePages => return Ok(rows),
            }
        }
    }

    /// A place among the requests under way, or in the bounded queue before them.
    async fn admit(&self) -> Result<tokio::sync::SemaphorePermit<'_>, DatabaseError> {
        if let Ok(permit) = self.0.under_way.try_acquire() {
            return Ok(permit);
        }
        let place = Place::take(&self.0.waiting, self.0.waiting_max)
            .ok_or(DatabaseError::Crowded { waiting_max: self.0.waiting_max })?;
        let permit = tokio::time::timeout(self.0.request_timeout, self.0.under_way.acquire()).await;
        drop(place);
        match permit {
            Ok(permit) => Ok(permit.expect("it is never closed")),
            Err(_) => Err(DatabaseError::Away("no request was done in time".to_owned())),
        }
    }
}

impl Inner {
    fn session(&self) -> Arc<Session> {
        Arc::clone(&self.session.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn has(&self, query: &str) -> Result<bool, DatabaseError> {
        Ok(rows_of(self.session().query_unpaged(query, ()).await?)?.rows_num() > 0)
    }
}

async fn connect(settings: &Scylla, within: Duration) -> Result<Session, DatabaseError> {
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(settings.request_timeout))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&settings.nodes)
        .default_execution_profile_handle(profile.into_handle())
        // One for each shard of a ScyllaDB node; two for a node of Apache Cassandra, which multiplexes.
        .pool_size(PoolSize::PerHost(std::num::NonZeroUsize::new(2).expect("two")))
        .schema_agreement_timeout(SCHEMA_TIMEOUT)
        .connection_timeout(within)
        .tcp_nodelay(true);
    if let Some(tls) = &settings.tls {
        builder = builder.tls_context(Some(tls.context()?));
    }
    if let Some((user, password)) = &settings.login {
        builder = builder.user(user, password);
    }
    if let Some(datacenter) = &settings.datacenter {
        builder = builder.prefer_datacenter(datacenter.clone());
    }
    builder.build().await.map_err(|error| match error.into() {
        // A server that wants otherwise than we do cuts the connection, and the driver does not hear why.
        DatabaseError::Away(text) if text.contains("broken") => {
            let wants = match &settings.tls {
                None => "if it speaks TLS, set [scylla] tls",
                Some(_) => "if it asks for a certificate, set [scylla] certificate_file and key_file",
            };
            DatabaseError::Away(format!("{text}; {wants}"))
        }
        error => error,
    })
}

/// Makes the writes of one call, so many at a time.
pub(crate) async fn all<F>(writes: Vec<F>) -> Result<(), DatabaseError>
where
    F: Future<Output = Result<(), DatabaseError>>,
{
    stream::iter(writes).buffer_unordered(REQUESTS_MAX).try_collect().await
}

/// Now, as servers count write times: in microseconds since the Unix epoch.
pub(crate) fn micros() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Prepared statements that write to one partition, as one request.
pub(crate) struct Together(Batch);

impl std::fmt::Debug for Together {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Together").field(&self.0.statements.len()).finish()
    }
}

/// A place in the queue.
struct Place<'a>(&'a AtomicUsize);

impl Place<'_> {
    fn take(waiting: &AtomicUsize, max: usize) -> Option<Place<'_>> {
        let more = |waiting: usize| (waiting < max).then_some(waiting + 1);
        waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Place(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether this is a name for a keyspace; names stand in statements as they are.
///
/// # Errors
/// It is none, with what would be.
pub fn check_name(name: &str) -> Result<(), DatabaseError> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if (1..=48).contains(&name.len()) && name.as_bytes()[0].is_ascii_lowercase() && name.bytes().all(fits) {
        return Ok(());
    }
    Err(DatabaseError::Other(format!(
        "'{name}' is no name for a keyspace: a letter and up to 47 more of a to z, 0 to 9 and _"
    )))
}

fn rows_of(
    result: scylla::response::query_result::QueryResult,
) -> Result<scylla::response::query_result::QueryRowsResult, DatabaseError> {
    result.into_rows_result().map_err(misread)
}

/// The server answered something else than the tables of this release hold.
pub(crate) fn misread(error: impl std::fmt::Display) -> DatabaseError {
    DatabaseError::Other(format!("the server's answer cannot be read: {error}"))
}

impl From<ExecutionError> for DatabaseError {
    fn from(error: ExecutionError) -> DatabaseError {
        let text = error.to_string();
        match error {
            ExecutionError::EmptyPlan
            | ExecutionError::ConnectionPoolError(_)
            | ExecutionError::RequestTimeout(_)
            | ExecutionError::SchemaAgreementError(_)
            | ExecutionError::MetadataError(_) => DatabaseError::Away(text),
            ExecutionError::LastAttemptError(error) => attempted(&error, text),
            ExecutionError::PrepareError(error) => error.into(),
            _ => DatabaseError::Other(text),
        }
    }
}

impl From<PrepareError> for DatabaseError {
    fn from(error: PrepareError) -> DatabaseError {
        let text = error.to_string();
        match error {
            PrepareError::ConnectionPoolError(_) => DatabaseError::Away(text),
            PrepareError::AllAttemptsFailed { first_attempt } => attempted(&first_attempt, text),
            _ => DatabaseError::Other(text),
        }
    }
}

impl From<NewSessionError> for DatabaseError {
    fn from(error: NewSessionError) -> DatabaseError {
        let text = error.to_string();
        let said = text.to_lowercase();
        match error {
            NewSessionError::IllegalConfig(_) | NewSessionError::EmptyKnownNodesList => DatabaseError::Other(text),
            // A refused login is one of the reasons for which no connection comes about.
            _ if said.contains("authentication") => DatabaseError::Login(text),
            // So is a certificate, ours or theirs.
            _ if ["ssl", "certificate"].iter().any(|word| said.contains(word)) => DatabaseError::Untrusted(text),
            _ => DatabaseError::Away(text),
        }
    }
}

/// Whether the server understands the statement, but not what it is about.
fn is_invalid(error: &PrepareError) -> bool {
    let PrepareError::AllAttemptsFailed { first_attempt } = error else { return false };
    matches!(first_attempt, RequestAttemptError::DbError(DbError::Invalid, _))
}

/// What the last of the nodes that were asked said.
fn attempted(error: &RequestAttemptError, text: String) -> DatabaseError {
    match error {
        RequestAttemptError::UnableToAllocStreamId | RequestAttemptError::BrokenConnectionError(_) => {
            DatabaseError::Away(text)
        }
        RequestAttemptError::DbError(error, _) => match error {
            DbError::Unavailable { required, .. } if *required > 1 => DatabaseError::Away(format!(
                "{text}; if it stays so, its keyspace has more copies than there are nodes: set [scylla] replication before it \
                 is made, or ALTER KEYSPACE"
            )),
            DbError::Unavailable { .. }
            | DbError::Overloaded
            | DbError::IsBootstrapping
            | DbError::ReadTimeout { .. }
            | DbError::WriteTimeout { .. }
            | DbError::ReadFailure { .. }
            | DbError::WriteFailure { .. }
            | DbError::RateLimitReached { .. }
            | DbError::ServerError => DatabaseError::Away(text),
            DbError::AuthenticationError | DbError::Unauthorized => DatabaseError::Login(text),
            _ => DatabaseError::Other(text),
        },
        _ => DatabaseError::Other(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_keyspaces_cannot_carry_statements() {
        for name in ["undertone", "u", "undertone_2", &"a".repeat(48)] {
            check_name(name).unwrap();
        }
        for name in ["", "Undertone", "2u", "_u", "a b", "a;DROP", "ä", &"a".repeat(49)] {
            check_name(name).unwrap_err();
        }
    }

    #[test]
    fn the_queue_is_bounded_and_gives_places_back() {
        let waiting = AtomicUsize::new(0);
        let first = Place::take(&waiting, 2).unwrap();
        let _second = Place::take(&waiting, 2).unwrap();
        assert!(Place::take(&waiting, 2).is_none());
        drop(first);
        assert!(Place::take(&waiting, 2).is_some());
    }
}
