//! What a network does between a client and a server: a proxy that passes everything on, or cuts, silences, delays,
//! throttles or resets it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes that are passed on at a time.
const CHUNK: usize = 16 * 1024;

/// How traffic passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passing {
    Freely,
    /// Nothing goes through, and no connection notices.
    Silent,
    /// Every chunk waits this long, each way.
    Delayed(Duration),
    /// So many bytes a second on each connection, each way.
    Throttled(u32),
    /// Connections are reset at this age.
    Reset(Duration),
    /// Connections are reset, and new ones as soon as they are made.
    Cut,
}

/// The proxy; it ends with this value.
#[derive(Debug)]
pub(super) struct Gate {
    passing: watch::Sender<Passing>,
    address: SocketAddr,
    _task: JoinSet<()>,
}

impl Gate {
    /// Listens at `listen` for what is to go to `upstream`.
    pub(super) async fn start(listen: &str, upstream: &str) -> anyhow::Result<Gate> {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listen on {listen}"))?;
        let address = listener.local_addr().context("ask for the address of the proxy")?;
        let passing = watch::Sender::new(Passing::Freely);
        let (rule, upstream) = (passing.subscribe(), upstream.to_owned());
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(serve(client, upstream.clone(), rule.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Gate { passing, address, _task: task })
    }

    /// Where clients find it.
    pub(super) fn address(&self) -> String {
        self.address.to_string()
    }

    /// From now on traffic passes like this.
    pub(super) fn set(&self, passing: Passing) {
        self.passing.send_replace(passing);
    }
}

async fn serve(mut client: TcpStream, upstream: String, rule: watch::Receiver<Passing>) {
    // Dropped whole, a socket is reset rather than closed in order.
    let _ = client.set_zero_linger();
    if *rule.borrow() == Passing::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    // Either side that ends, ends the connection.
    tokio::select! {
        () = pass(from_client, to_server, rule.clone()) => {}
        () = pass(from_server, to_client, rule.clone()) => {}
        () = reset(rule) => {}
    }
}

async fn pass(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, mut rule: watch::Receiver<Passing>) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(bytes @ 1..) = from.read(&mut chunk).await else { return };
        let passing = *rule.borrow_and_update();
        match passing {
            Passing::Silent => {
                if rule.wait_for(|passing| *passing != Passing::Silent).await.is_err() {
                    return;
                }
            }
            Passing::Delayed(delay) => tokio::time::sleep(delay).await,
            Passing::Throttled(rate) => {
                tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / f64::from(rate.max(1)))).await;
            }
            Passing::Freely | Passing::Reset(_) | Passing::Cut => {}
        }
        if to.write_all(&chunk[..bytes]).await.is_err() {
            return;
        }
    }
}

/// Comes back when the connection is to be reset.
async fn reset(mut rule: watch::Receiver<Passing>) {
    let is_reset = |passing: &Passing| matches!(passing, Passing::Reset(_) | Passing::Cut);
    let Ok(passing) = rule.wait_for(is_reset).await.map(|passing| *passing) else { return };
    if let Passing::Reset(age) = passing {
        tokio::time::sleep(age).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends a word through the proxy to a server that says it back; what came, if it came in time.
    async fn said_back(client: &mut TcpStream) -> Option<String> {
        client.write_all(b"word").await.ok()?;
        let mut word = [0; 4];
        let read = tokio::time::timeout(Duration::from_millis(500), client.read_exact(&mut word)).await;
        read.ok()?.ok()?;
        String::from_utf8(word.to_vec()).ok()
    }

    #[tokio::test]
    async fn traffic_passes_is_silenced_goes_on_and_is_cut() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = echo.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = echo.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = socket.split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let gate = Gate::start("127.0.0.1:0", &upstream).await.unwrap();
        let mut client = TcpStream::connect(gate.address()).await.unwrap();
        assert_eq!(said_back(&mut client).await.as_deref(), Some("word"));
        gate.set(Passing::Silent);
        assert_eq!(said_back(&mut client).await, None);
        gate.set(Passing::Delayed(Duration::from_millis(1)));
        assert_eq!(said_back(&mut client).await.as_deref(), Some("word"), "what was held comes first");
        gate.set(Passing::Cut);
        let mut rest = Vec::new();
        assert!(client.read_to_end(&mut rest).await.is_err(), "it is reset");
        let mut other = TcpStream::connect(gate.address()).await.unwrap();
        assert_eq!(said_back(&mut other).await, None);
    }
}
