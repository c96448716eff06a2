//! Connections: accepting, reading requests within limits, sending answers in order.
//!
//! One task reads and serves a connection's requests one after another, as Apache Kafka does, and sends the answers.
//! Where an answer must not leave before a sync, a second task sends it, so that a producer's next batch is appended
//! while the sync of the last one is under way. Memory for requests is taken from a common budget, in proportion to what
//! has really arrived: a length that was only announced holds nothing.

mod places;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use self::places::{Place, Places};
use crate::node::{Node, PERMIT_BYTES};
use crate::requests;
use crate::sync::Ticket;

/// Smallest request: key, version and correlation id.
pub(crate) const REQUEST_BYTES_MIN: usize = 8;
/// What every connection may read without asking for memory.
const READ_FREE_BYTES: usize = 4 * 1024;
/// Beyond that a request's memory doubles as its bytes arrive, in steps of at most this size.
const READ_STEP_BYTES: usize = 1024 * 1024;
/// Decoded, a request may take this many times its bytes. One to produce does not: it is records for the most part, and
/// they stay as they are.
const DECODED_FACTOR: usize = 16;
/// Buffer of a connection: a small request is read at once, with its length.
const BUFFER_BYTES: usize = 2 * 1024;
/// The key of a request to produce, with which it begins.
const PRODUCE: [u8; 2] = [0, 0];
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
    #[error("others need the connection, and this one asked for nothing")]
    MadeRoom,
    #[error("a request that took too long to arrive")]
    Slow,
    #[error("no memory for requests for too long")]
    Memory,
    #[error(transparent)]
    Request(#[from] requests::Unreadable),
}

/// Accepts until the broker closes, then waits for requests that are being served.
pub(crate) async fn serve(listener: TcpListener, node: Arc<Node>) {
    let mut connections = JoinSet::new();
    let mut places = Places::default();
    let mut refusing = false;
    loop {
        let accepted = tokio::select! {
            () = node.closing.cancelled() => break,
            Some(ended) = connections.join_next_with_id(), if !connections.is_empty() => {
                places.free(ended.as_ref().map_or_else(|error| error.id(), |(task, ())| *task));
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "serving a connection panicked");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer))
                if places.len() >= node.config.connections_max
                    && !places.make_room(node.config.connection_makes_room_after) =>
            {
                if !std::mem::replace(&mut refusing, true) {
                    tracing::warn!(%peer, connections = places.len(), "too many connections, closing the newest");
                }
                drop(stream);
            }
            Ok((stream, peer)) => {
                refusing = false;
                let (node, place) = (node.clone(), Place::new());
                let held = place.clone();
                let serving = connections.spawn(async move {
                    if let Err(closed) = connection(stream, node, &held).await {
                        tracing::debug!(%peer, reason = %closed, "connection closed");
                    }
                });
                places.take(serving.id(), place);
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

async fn connection(stream: TcpStream, node: Arc<Node>, place: &Place) -> Result<(), Closed> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    if !node.syncer.acknowledges() {
        return serve_requests(&mut reader, &node, place, Answers::Now(writer)).await;
    }
    let (answers, queue) = mpsc::channel(ANSWERS_MAX);
    let mut sender = tokio::spawn(send(writer, queue));
    let served = tokio::select! {
        served = serve_requests(&mut reader, &node, place, Answers::Queued(answers)) => served,
        // The client is gone, or takes nothing; what is being served has no one to go to.
        _ = &mut sender => return Ok(()),
    };
    // What was answered is still sent.
    let _ = sender.await;
    served
}

/// Where a connection's answers go.
enum Answers {
    Now(OwnedWriteHalf),
    /// To the task that waits for the disk.
    Queued(mpsc::Sender<Answer>),
}

impl Answers {
    /// Whether there is still someone who takes it.
    async fn send(&mut self, answer: Answer) -> bool {
        match self {
            Answers::Now(writer) => write(writer, answer).await,
            Answers::Queued(queue) => queue.send(answer).await.is_ok(),
        }
    }
}

async fn serve_requests(
    reader: &mut BufReader<OwnedReadHalf>,
    node: &Arc<Node>,
    place: &Place,
    mut answers: Answers,
) -> Result<(), Closed> {
    loop {
        place.silent();
        let (request, _memory) = tokio::select! {
            () = node.closing.cancelled() => return Ok(()),
            () = place.left() => return Err(Closed::MadeRoom),
            request = read_request(reader, node) => match request? {
                Some(request) => request,
                None => return Ok(()),
            },
        };
        place.serving();
        // Boxed, because the largest of the handlers would make every connection's task as large.
        let answer = Box::pin(requests::serve(node, request)).await?;
        if let Some(answer) = answer
            && !answers.send(answer).await
        {
            return Ok(());
        }
    }
}

/// The next request without its length; `None` if the client closed the connection.
async fn read_request(
    reader: &mut BufReader<OwnedReadHalf>,
    node: &Node,
) -> Result<Option<(Bytes, Option<OwnedSemaphorePermit>)>, Closed> {
    let mut length = [0_u8; 4];
    match timeout(node.config.connection_idle, reader.read_exact(&mut length)).await {
        Err(_) => return Err(Closed::Silent),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Ok(read) => read?,
    };
    let length = i32::from_be_bytes(length);
    let size = usize::try_from(length).unwrap_or(0);
    if !(REQUEST_BYTES_MIN..=node.config.request_bytes_max).contains(&size) {
        return Err(Closed::Size(i64::from(length)));
    }
    match timeout(node.config.request_within, read_body(reader, node, size)).await {
        Err(_) => Err(Closed::Slow),
        Ok(request) => request.map(Some),
    }
}

async fn read_body(
    reader: &mut BufReader<OwnedReadHalf>,
    node: &Node,
    size: usize,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Closed> {
    let mut memory: Option<OwnedSemaphorePermit> = None;
    let mut request = BytesMut::new();
    while request.len() < size {
        let have = request.len();
        let step = if have == 0 { READ_FREE_BYTES } else { have.min(READ_STEP_BYTES) }.min(size - have);
        if have > 0 {
            let factor = if request[..2] == PRODUCE { 1 } else { DECODED_FACTOR };
            // More than there is at all would never be free.
            let most = node.config.request_memory_bytes / 2 / size * step;
            let bytes = (step * factor).min(most.max(step));
            // Requests that hold a part of the memory each must not wait for one another for ever.
            let more = timeout(MEMORY_WAIT, take(&node.request_memory, bytes)).await.map_err(|_| Closed::Memory)?;
            match (&mut memory, more) {
                (Some(memory), Some(more)) => memory.merge(more),
                (none, more) => *none = more,
            }
        }
        request.reserve(step);
        let mut part = (&mut *reader).take(step as u64);
        while request.len() < have + step {
            if part.read_buf(&mut request).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
    Ok((request.freeze(), memory))
}

/// Takes memory from a budget; `None` if the budget is closed.
pub(crate) async fn take(budget: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let permits = u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    budget.clone().acquire_many_owned(permits).await.ok()
}

async fn send(mut writer: OwnedWriteHalf, mut queue: mpsc::Receiver<Answer>) {
    while let Some(mut answer) = queue.recv().await {
        if let Some(ticket) = answer.after.take()
            && ticket.wait().await.is_err()
        {
            return;
        }
        if !write(&mut writer, answer).await {
            return;
        }
    }
}

/// Whether the client took it in time.
async fn write(writer: &mut OwnedWriteHalf, answer: Answer) -> bool {
    // Most answers fit into the socket's buffer, and need no timer.
    let sent = match writer.try_write(&answer.bytes) {
        Ok(sent) => sent,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
        Err(_) => return false,
    };
    let rest = &answer.bytes[sent..];
    rest.is_empty() || matches!(timeout(SEND_WAIT, writer.write_all(rest)).await, Ok(Ok(())))
}
