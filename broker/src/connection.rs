//! Connections: accepting, reading requests within limits, sending answers in order.
//!
//! One task reads and serves a connection's requests one after another, as Apache Kafka does; a second sends the
//! answers, waiting where an answer must not leave before a sync. So a producer's next batch is appended while the sync
//! of the last one is under way. Memory is taken from a common budget before a request is read, in proportion to what
//! has really arrived.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::node::{Node, PERMIT_BYTES};
use crate::requests;
use crate::sync::Ticket;

/// Smallest request: key, version and correlation id.
const REQUEST_BYTES_MIN: usize = 8;
/// A request's memory is taken in steps of this size as its bytes arrive.
const READ_STEP_BYTES: usize = 256 * 1024;
/// Longest wait for memory for a request.
const MEMORY_WAIT: Duration = Duration::from_secs(30);
/// Longest time that a client may take to take an answer, which holds memory.
const SEND_WAIT: Duration = Duration::from_secs(30);
/// Answers of one connection that may wait to be sent.
const ANSWERS_MAX: usize = 8;
/// Pause after the system refused a connection, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What goes back for a request.
pub(crate) struct Answer {
    pub(crate) bytes: BytesMut,
    /// What must be on the disk before.
    pub(crate) after: Option<Ticket>,
    /// Memory that is free again when the answer is sent.
    pub(crate) memory: Option<OwnedSemaphorePermit>,
}

/// Why a connection was closed by the broker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Closed {
    #[error("connection: {0}")]
    Io(#[from] io::Error),
    #[error("request of {0} bytes is outside the limits")]
    Size(i64),
    #[error("no bytes for too long")]
    Silent,
    #[error("no memory for requests for too long")]
    Memory,
    #[error(transparent)]
    Request(#[from] requests::Unreadable),
}

/// Accepts until the broker closes, then waits for requests that are being served.
pub(crate) async fn serve(listener: TcpListener, node: Arc<Node>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = node.closing.cancelled() => break,
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "serving a connection panicked");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) if connections.len() >= node.config.connections_max => {
                tracing::warn!(%peer, connections = connections.len(), "too many connections, closing the newest");
                drop(stream);
            }
            Ok((stream, peer)) => {
                let node = node.clone();
                connections.spawn(async move {
                    if let Err(closed) = connection(stream, node).await {
                        tracing::debug!(%peer, reason = %closed, "connection closed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    if timeout(node.config.shutdown_grace, drained).await.is_err() {
        tracing::warn!("requests were still being served at the end of the grace time");
    }
}

async fn connection(stream: TcpStream, node: Arc<Node>) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let (mut reader, writer) = stream.into_split();
    let (answers, queue) = mpsc::channel(ANSWERS_MAX);
    let mut sender = tokio::spawn(send(writer, queue));
    let served = tokio::select! {
        served = serve_requests(&mut reader, &node, answers) => served,
        // The client is gone, or takes nothing; what is being served has no one to go to.
        _ = &mut sender => return Ok(()),
    };
    // What was answered is still sent.
    let _ = sender.await;
    served
}

async fn serve_requests(
    reader: &mut OwnedReadHalf,
    node: &Arc<Node>,
    answers: mpsc::Sender<Answer>,
) -> Result<(), Closed> {
    loop {
        let (request, _memory) = tokio::select! {
            () = node.closing.cancelled() => return Ok(()),
            request = read_request(reader, node) => match request? {
                Some(request) => request,
                None => return Ok(()),
            },
        };
        // Boxed, because the largest of the handlers would make every connection's task as large.
        let answer = Box::pin(requests::serve(node, request)).await?;
        if let Some(answer) = answer
            && answers.send(answer).await.is_err()
        {
            return Ok(());
        }
    }
}

/// The next request without its length; `None` if the client closed the connection.
async fn read_request(
    reader: &mut OwnedReadHalf,
    node: &Node,
) -> Result<Option<(Bytes, Option<OwnedSemaphorePermit>)>, Closed> {
    let idle = node.config.connection_idle;
    let mut length = [0_u8; 4];
    match timeout(idle, reader.read_exact(&mut length)).await {
        Err(_) => return Err(Closed::Silent),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(read) => read?,
    };
    let length = i32::from_be_bytes(length);
    let size = usize::try_from(length).unwrap_or(0);
    if !(REQUEST_BYTES_MIN..=node.config.request_bytes_max).contains(&size) {
        return Err(Closed::Size(i64::from(length)));
    }
    let mut memory: Option<OwnedSemaphorePermit> = None;
    let mut request = BytesMut::new();
    while request.len() < size {
        let step = (size - request.len()).min(READ_STEP_BYTES);
        // Requests that hold a part of the memory each must not wait for one another for ever.
        let more = timeout(MEMORY_WAIT, take(&node.request_memory, step)).await.map_err(|_| Closed::Memory)?;
        match (&mut memory, more) {
            (Some(memory), Some(more)) => memory.merge(more),
            (none, more) => *none = more,
        }
        let from = request.len();
        request.resize(from + step, 0);
        timeout(idle, reader.read_exact(&mut request[from..])).await.map_err(|_| Closed::Silent)??;
    }
    Ok(Some((request.freeze(), memory)))
}

/// Takes memory from a budget; `None` if the budget is closed.
pub(crate) async fn take(budget: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    budget.clone().acquire_many_owned(permits).await.ok()
}

async fn send(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Answer>) {
    while let Some(answer) = queue.recv().await {
        if let Some(ticket) = answer.after
            && ticket.wait().await.is_err()
        {
            return;
        }
        match timeout(SEND_WAIT, writer.write_all(&answer.bytes)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
        drop(answer.memory);
    }
}
