//! A turn as pages hold it: as the log has it, and, once it was shown, as JSON.

use std::borrow::Cow;
use std::sync::OnceLock;

use schemas::{Codec, Turn};
use store::history::Row;

use crate::hub::Live;
use crate::view::{self, Embeddings};

/// A turn of a page.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) position: i64,
    /// When it was said, in milliseconds since the Unix epoch.
    pub(crate) at: i64,
    /// In the wire format.
    pub(crate) value: Vec<u8>,
    /// Without its embedding; `None` within if it cannot be decoded. Most of the time that a page takes goes here.
    json: OnceLock<Option<String>>,
}

impl Kept {
    /// As history has it.
    pub(crate) fn of(row: Row) -> Kept {
        Kept::new(row.position, row.at, row.value)
    }

    pub(crate) fn new(position: i64, at: i64, value: Vec<u8>) -> Kept {
        Kept { position, at, value, json: OnceLock::new() }
    }

    /// As the hub has it.
    pub(crate) fn live(live: &Live) -> Kept {
        let json = live.json.clone().map_or_else(OnceLock::new, |json| OnceLock::from(Some(json)));
        Kept { position: live.position, at: live.at, value: live.value.clone(), json }
    }

    /// As JSON; `None`, with a word in the log, if it cannot be decoded: a fault of ours.
    pub(crate) fn json(&self, codec: &Codec, embeddings: Embeddings) -> Option<Cow<'_, str>> {
        match embeddings {
            Embeddings::Hide => {
                self.json.get_or_init(|| self.write(codec, Embeddings::Hide)).as_deref().map(Cow::Borrowed)
            }
            Embeddings::Show => self.write(codec, Embeddings::Show).map(Cow::Owned),
        }
    }

    fn write(&self, codec: &Codec, embeddings: Embeddings) -> Option<String> {
        match codec.decode::<Turn>(&self.value) {
            Ok(turn) => Some(view::json(&turn, embeddings)),
            Err(error) => {
                tracing::error!(%error, position = self.position, "a turn in history cannot be decoded");
                None
            }
        }
    }

    /// What it takes in memory, its JSON included before there is one: as measured, that is below twice the value and the
    /// names of the fields.
    pub(crate) fn size_bytes(&self) -> usize {
        3 * self.value.len() + 2048
    }
}
