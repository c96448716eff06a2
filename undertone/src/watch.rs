//! `undertone watch`: the live stream, drawn in a terminal, or as plain lines elsewhere.
//!
//! It is a client like any other: it follows `/v1/stream` over a WebSocket, keeps the resume token, and comes back by
//! itself after a lost connection; a gap that could not be filled is shown.

pub mod draw;
pub mod feed;
pub mod lines;
pub mod view;

use std::io::{IsTerminal as _, Write as _};

use anyhow::Context as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use feed::{Follow, News};
use view::View;

use crate::keyboard::{Key, Keyboard};

/// News that may wait for the screen; then the socket is read no further.
const NEWS_MAX: usize = 256;

/// When watching ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Only when told to.
    Stopped,
    /// In a terminal when told to; elsewhere after this many turns.
    Turns(usize),
}

/// Watches until `q`, the end of `until`, or `stop`.
///
/// # Errors
/// The terminal cannot be drawn on, or the first connection is refused in a way that no retry mends.
pub async fn run(url: &str, follow: Follow, until: Until, stop: CancellationToken) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(NEWS_MAX);
    let over = stop.child_token();
    let feed = tokio::spawn(feed::run(url.to_owned(), follow.clone(), sender, over.clone()));
    let shown = if std::io::stdout().is_terminal() {
        screen(View::new(follow.title()), receiver, over.clone()).await
    } else {
        plain(receiver, until, over.clone()).await
    };
    over.cancel();
    let fed = feed.await.context("the stream's task ended abnormally")?;
    shown.and(fed)
}

async fn plain(mut news: mpsc::Receiver<News>, until: Until, stop: CancellationToken) -> anyhow::Result<()> {
    let mut turns = 0;
    let mut told = lines::Told::default();
    loop {
        let item = tokio::select! {
            item = news.recv() => item,
            () = stop.cancelled() => None,
        };
        let Some(item) = item else { return Ok(()) };
        if !told.is_new(&item) {
            continue;
        }
        turns += usize::from(matches!(item, News::Turn(_)));
        let written = writeln!(std::io::stdout().lock(), "{}", lines::line(&item));
        // Whoever read the lines has gone: that is an end, not a fault.
        if written.is_err() || until == Until::Turns(turns) {
            return Ok(());
        }
    }
}

async fn screen(mut view: View, mut news: mpsc::Receiver<News>, stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("draw on the terminal; `undertone watch | cat` prints lines")?;
    let mut keyboard = Keyboard::open();
    let result = loop {
        if let Err(e) = terminal.draw(|frame| draw::draw(frame, &view)) {
            break Err(e).context("draw on the terminal");
        }
        tokio::select! {
            item = news.recv() => match item {
                Some(item) => view.apply(item),
                None => break Ok(()),
            },
            key = keyboard.next() => match key {
                Key::Quit => break Ok(()),
                Key::Redraw => {}
            },
            () = stop.cancelled() => break Ok(()),
        }
        // Draw once for all that has come meanwhile.
        while let Ok(item) = news.try_recv() {
            view.apply(item);
        }
    };
    ratatui::restore();
    result
}
