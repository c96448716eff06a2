//! The HTTP listener: accepts connections and hands their requests to one router.
//!
//! Promises: at most so many connections are served at a time, further ones wait to be accepted; a connection on which
//! no head of a request arrives in time is closed, so that waiting ones get their turn; at the end requests under way
//! are answered, and a head that is half there holds nothing up. Upgraded connections, that is WebSockets, no longer count: intake and the read side bound theirs.
//! Leaves out TLS and HTTP/2, which a proxy in front speaks.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Pause after an accept that failed for want of something, such as file descriptors, which others must give back.
const ACCEPT_RETRY: Duration = Duration::from_millis(200);

/// How long a connection on which nothing is under way lives on at the end, for what is already on its way.
const HALF_HEAD_GRACE: Duration = Duration::from_millis(250);

/// Bounds of the listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most connections that are served at a time.
    pub(super) connections_max: usize,
    /// Longest time that a connection may take to bring the head of a request; the idle time between two is included.
    pub(super) header_read_within: Duration,
}

/// Serves until `stop`, then answers what is under way.
pub(super) async fn serve(listener: TcpListener, router: Router, limits: Limits, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(limits.connections_max.min(Semaphore::MAX_PERMITS)));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.header_read_within);
    let mut open = JoinSet::new();
    let accept = async {
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("nobody closes the semaphore");
            let socket = accept(&listener).await;
            // A turn is one small frame: waiting for more to send would only delay it.
            let _ = socket.set_nodelay(true);
            let requests = Arc::new(AtomicUsize::new(0));
            let service = TowerToHyperService::new(counted(router.clone(), Arc::clone(&requests)));
            let connection = builder.serve_connection(TokioIo::new(socket), service).with_upgrades();
            let stop = stop.clone();
            while open.try_join_next().is_some() {}
            open.spawn(async move {
                let mut connection = pin!(connection);
                let ended = tokio::select! {
                    ended = connection.as_mut() => ended,
                    () = stop.cancelled() => {
                        connection.as_mut().graceful_shutdown();
                        tokio::select! {
                            ended = connection.as_mut() => ended,
                            () = nothing_under_way(&requests) => Ok(()),
                        }
                    }
                };
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                drop(place);
            });
        }
    };
    stop.run_until_cancelled(accept).await;
    drop(listener);
    while open.join_next().await.is_some() {}
}

/// The router, with its requests counted from their head to the end of their answer.
fn counted(router: Router, requests: Arc<AtomicUsize>) -> Router {
    router.layer(axum::middleware::from_fn(move |request: Request, next: Next| {
        let under_way = UnderWay::new(&requests);
        async move { next.run(request).await.map(|body| Body::new(Answer { body, _under_way: under_way })) }
    }))
}

/// Returns once no request is under way, and none was a moment before, when its answer may still have been on its way
/// into the socket. What is left then is at most half a head.
async fn nothing_under_way(requests: &AtomicUsize) {
    loop {
        let before = requests.load(Ordering::Relaxed);
        tokio::time::sleep(HALF_HEAD_GRACE).await;
        if before == 0 && requests.load(Ordering::Relaxed) == 0 {
            return;
        }
    }
}

/// One request more, until it is dropped.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(requests: &Arc<AtomicUsize>) -> UnderWay {
        requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(Arc::clone(requests))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The body of an answer, which counts as under way until it has been read to its end.
struct Answer {
    body: Body,
    _under_way: UnderWay,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    use std::io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => {}
            Err(error) => {
                tracing::warn!(%error, "accept a connection; raise the limit of open files, or lower connections_max");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn started(limits: Limits) -> (std::net::SocketAddr, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let router = Router::new().route("/", get(|| async { "here" }));
        (address, stop.clone(), tokio::spawn(serve(listener, router, limits, stop)))
    }

    async fn rest(socket: &mut TcpStream) -> String {
        let mut text = String::new();
        tokio::time::timeout(PATIENCE, socket.read_to_string(&mut text)).await.expect("it ends in time").unwrap();
        text
    }

    #[tokio::test]
    async fn slow_head_is_closed_and_makes_room_for_the_next() {
        let limits = Limits { connections_max: 1, header_read_within: Duration::from_millis(100) };
        let (address, stop, serving) = started(limits).await;
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n").await.unwrap();
        let mut next = TcpStream::connect(address).await.unwrap();
        next.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(!rest(&mut slow).await.contains("200 OK"));
        assert!(rest(&mut next).await.ends_with("here"));
        stop.cancel();
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn half_a_head_does_not_hold_up_the_end() {
        let limits = Limits { connections_max: 8, header_read_within: Duration::from_secs(3600) };
        let (address, stop, serving) = started(limits).await;
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\nGET / HTTP/1.1\r\nHo").await.unwrap();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut fresh = TcpStream::connect(address).await.unwrap();
        fresh.write_all(b"GET / HT").await.unwrap();
        // Accepted in order: when the last is answered, the others are being served.
        let mut last = TcpStream::connect(address).await.unwrap();
        last.write_all(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await.unwrap();
        assert!(rest(&mut last).await.ends_with("here"));
        stop.cancel();
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
        assert!(rest(&mut half).await.ends_with("here"));
        assert_eq!(rest(&mut silent).await, "");
    }

    #[tokio::test]
    async fn answer_under_way_is_given_to_its_end() {
        let (begun, may_end) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let (began, ends) = (Arc::clone(&begun), Arc::clone(&may_end));
        let slow = get(|| async move {
            began.notify_one();
            ends.notified().await;
            "here"
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let limits = Limits { connections_max: 8, header_read_within: Duration::from_secs(3600) };
        let serving = tokio::spawn(serve(listener, Router::new().route("/", slow), limits, stop.clone()));
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        begun.notified().await;
        stop.cancel();
        assert!(tokio::time::timeout(3 * HALF_HEAD_GRACE, socket.readable()).await.is_err(), "it is not cut off");
        may_end.notify_one();
        assert!(rest(&mut socket).await.ends_with("here"));
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn idle_connection_does_not_hold_up_the_end() {
        let limits = Limits { connections_max: 8, header_read_within: Duration::from_secs(3600) };
        let (address, stop, serving) = started(limits).await;
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200");
        stop.cancel();
        tokio::time::timeout(PATIENCE, serving).await.unwrap().unwrap();
        assert!(rest(&mut idle).await.ends_with("here"));
    }
}
