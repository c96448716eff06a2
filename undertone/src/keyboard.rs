//! The keyboard of a drawn terminal: its keys, as far as a screen that is only looked at needs them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::sync::mpsc;

/// Longest time between two looks at the keyboard.
const POLL: Duration = Duration::from_millis(50);
/// Keys that may wait for the screen.
const KEYS_MAX: usize = 16;

/// What was pressed, or what happened to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    Quit,
    Redraw,
}

/// A thread that reads the keys until it is dropped.
#[derive(Debug)]
pub(crate) struct Keyboard {
    reading: Arc<AtomicBool>,
    pressed: mpsc::Receiver<Key>,
    thread: Option<JoinHandle<()>>,
}

impl Keyboard {
    /// Begins to read.
    pub(crate) fn open() -> Keyboard {
        let (keys, pressed) = mpsc::channel(KEYS_MAX);
        let reading = Arc::new(AtomicBool::new(true));
        let thread = std::thread::spawn({
            let reading = Arc::clone(&reading);
            move || read(&reading, &keys)
        });
        Keyboard { reading, pressed, thread: Some(thread) }
    }

    /// The next key; the last one when the keyboard has gone. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Key {
        self.pressed.recv().await.unwrap_or(Key::Quit)
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.reading.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read(reading: &AtomicBool, keys: &mpsc::Sender<Key>) {
    while reading.load(Ordering::Relaxed) {
        if !matches!(event::poll(POLL), Ok(true)) {
            continue;
        }
        let key = match event::read() {
            Ok(Event::Key(key)) if key.kind == KeyEventKind::Press => match key.code {
                KeyCode::Char('q') | KeyCode::Esc => Key::Quit,
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Key::Quit,
                _ => continue,
            },
            Ok(Event::Resize(..)) => Key::Redraw,
            Ok(_) => continue,
            Err(_) => return,
        };
        // A screen that does not take its keys has enough of them.
        if let Err(mpsc::error::TrySendError::Closed(_)) = keys.try_send(key) {
            return;
        }
    }
}
