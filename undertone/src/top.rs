//! `undertone top`: the running pipeline at a glance, of one process or of several; drawn in a terminal, as lines or
//! JSON elsewhere.
//!
//! It asks `/status` and `/metrics` as anybody may. A process that is dead, or that comes back, is shown as such; it
//! ends nothing.

pub mod draw;
pub mod lines;
pub mod scrape;
pub mod view;

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::keyboard::{Key, Keyboard};
use view::View;

/// How to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Time between two looks.
    pub every: Duration,
    /// Look twice, for the rates, and end.
    pub once: bool,
    /// One JSON object a look, rather than lines.
    pub json: bool,
}

/// Looks until `q` or `stop`, or once. Returns whether any process answered at the last look.
///
/// # Errors
/// An address is none, or the terminal cannot be drawn on.
pub async fn run(urls: &[String], options: Options, stop: CancellationToken) -> anyhow::Result<bool> {
    let asked: Vec<String> =
        urls.iter().map(|url| scrape::authority(url)).collect::<Result<_, _>>().map_err(anyhow::Error::msg)?;
    let mut view = View::new(urls);
    if std::io::stdout().is_terminal() && !options.once && !options.json {
        screen(&mut view, &asked, options, stop).await?;
    } else {
        plain(&mut view, &asked, options, stop).await?;
    }
    Ok(view.any_answers())
}

async fn look(view: &mut View, asked: &[String]) {
    view.apply(join_all(asked.iter().map(|authority| scrape::scrape(authority))).await);
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn plain(view: &mut View, asked: &[String], options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let mut ticks = ticks(options.every);
    let mut looks = 0;
    loop {
        tokio::select! {
            _ = ticks.tick() => look(view, asked).await,
            () = stop.cancelled() => return Ok(()),
        }
        looks += 1;
        // The first look knows no rates yet.
        if looks < 2 {
            continue;
        }
        let text = match options.json {
            true => serde_json::to_string(view).context("write the view as JSON")? + "\n",
            false => lines::text(view) + if options.once { "" } else { "\n" },
        };
        // Whoever read the lines has gone: that is an end, not a fault.
        let mut out = std::io::stdout().lock();
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() || options.once {
            return Ok(());
        }
    }
}

async fn screen(view: &mut View, asked: &[String], options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("draw on the terminal; `undertone top --once` prints lines")?;
    let mut keyboard = Keyboard::open();
    let mut ticks = ticks(options.every);
    let result = loop {
        if let Err(e) = terminal.draw(|frame| draw::draw(frame, view)) {
            break Err(e).context("draw on the terminal");
        }
        tokio::select! {
            // Within the branch nothing else is heard, for as long as an answer may take.
            _ = ticks.tick() => look(view, asked).await,
            key = keyboard.next() => match key {
                Key::Quit => break Ok(()),
                Key::Redraw => {}
            },
            () = stop.cancelled() => break Ok(()),
        }
    };
    ratatui::restore();
    result
}
