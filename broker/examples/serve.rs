//! A broker as a process of its own: `serve DIR LISTEN [acknowledge] [connections=N]`. Prints the bootstrap address when
//! it is ready, and runs until it is killed. The tests kill it with signal 9, and starve it of what the system gives.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use broker::{Broker, Config, Fsync};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(listen)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: serve DIR LISTEN [acknowledge] [connections=N]");
    };
    let mut config = Config::new(dir);
    config.listen = listen.parse()?;
    config.maintenance_every = Duration::from_millis(100);
    for argument in arguments {
        match argument.split_once('=') {
            None if argument == "acknowledge" => config.fsync = Fsync::Acknowledge,
            Some(("connections", most)) => config.connections_max = most.parse().context("a number of connections")?,
            _ => anyhow::bail!("what is {argument}?"),
        }
    }
    let begun = Instant::now();
    let broker = Broker::start(config).await?;
    let mut out = std::io::stdout();
    writeln!(out, "{} {}", broker.bootstrap(), begun.elapsed().as_millis())?;
    out.flush()?;
    Err(anyhow::Error::msg(broker.failed().await.to_string()))
}
