//! A broker as a process of its own: `serve DIR LISTEN [acknowledge]`. Prints the bootstrap address when it is ready,
//! and runs until it is killed. The tests kill it with signal 9; benchmarks measure it.

use std::io::Write as _;
use std::time::Instant;

use broker::{Broker, Config, Fsync};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(listen)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: serve DIR LISTEN [acknowledge]");
    };
    let mut config = Config::new(dir);
    config.listen = listen.parse()?;
    if arguments.next().as_deref() == Some("acknowledge") {
        config.fsync = Fsync::Acknowledge;
    }
    let begun = Instant::now();
    let broker = Broker::start(config).await?;
    let mut out = std::io::stdout();
    writeln!(out, "{} {}", broker.bootstrap(), begun.elapsed().as_millis())?;
    out.flush()?;
    Err(anyhow::Error::msg(broker.failed().await.to_string()))
}
