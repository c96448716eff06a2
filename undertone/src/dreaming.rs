//! Dreams, made by whom the settings name: the decoder that ships, or an OpenAI-compatible endpoint. What either says
//! passes the same list.
//!
//! Promises: models are opened with the first dream; at most `AT_ONCE` dreams are made at a time, who comes then is told so.
//! An endpoint is told wishes alone (a feeling, a colour, three words), never what was said. Leaves out: whether a
//! conversation may be dreamt of (the read side, and [`processors::dreams::wishes::is_refused`]).

mod endpoint;

use std::sync::Arc;

use anyhow::Context as _;
use api::{Dreams, Dreamt, NoDream};
use futures_util::future::BoxFuture;
use processors::dreams::blocked::BlockList;
use processors::dreams::dreamer::Dreamer;
use processors::dreams::sampler::Wishes;
use processors::dreams::wishes;
use processors::model::card::Family;
use processors::model::embed::WordVectors;
use schemas::{Provenance, Tier, Turn};
use tokio::sync::{OnceCell, Semaphore};

use crate::config::{Config, DreamsBy};
use crate::locate;
use endpoint::Endpoint;

/// Dreams that are made at a time.
const AT_ONCE: usize = 2;
/// Largest list of words, in bytes.
const LIST_BYTES_MAX: u64 = 1024 * 1024;

/// Makes dreams.
#[derive(Debug)]
pub struct Dreaming {
    config: Config,
    open: OnceCell<Arc<Opened>>,
    places: Semaphore,
}

#[derive(Debug)]
struct Opened {
    by: By,
    words: WordVectors,
}

#[derive(Debug)]
enum By {
    Decoder(Box<Dreamer>),
    Endpoint(Box<Endpoint>, BlockList),
}

impl Dreaming {
    /// By these settings; nothing is opened yet.
    pub fn new(config: Config) -> Dreaming {
        Dreaming { config, open: OnceCell::new(), places: Semaphore::new(AT_ONCE) }
    }

    async fn opened(&self) -> anyhow::Result<Arc<Opened>> {
        let open = || async {
            let config = self.config.clone();
            let opened = tokio::task::spawn_blocking(move || Opened::by(&config)).await;
            opened.context("open the models of dreams")?.map(Arc::new)
        };
        self.open.get_or_try_init(open).await.cloned()
    }

    /// The `number`-th dream of a seed. `None`: nothing was said that the list admits.
    ///
    /// # Errors
    /// Models are missing or damaged, or the endpoint does not answer.
    pub async fn of(&self, wishes: Wishes, seed: u64, number: u64) -> anyhow::Result<Option<Dreamt>> {
        self.opened().await?.dream(wishes, seed, number).await
    }

    /// The `number`-th dream of a conversation, its turns the oldest first.
    ///
    /// # Errors
    /// As [`Dreaming::of`].
    pub async fn of_turns(&self, turns: &[Turn], seed: u64, number: u64) -> anyhow::Result<Option<Dreamt>> {
        let opened = self.opened().await?;
        let wishes = wishes::of(turns, &opened.words);
        let dreamt = opened.dream(wishes, seed, number).await?;
        let palette = turns.iter().rev().find_map(|turn| turn.synesthesia.as_ref()).map(|part| part.palette.clone());
        Ok(dreamt.map(|dreamt| Dreamt { palette: palette.unwrap_or_default(), ..dreamt }))
    }
}

impl Opened {
    fn by(config: &Config) -> anyhow::Result<Opened> {
        let (models, library) = (locate::models(&config.models.dir)?, locate::onnxruntime(&config.models.onnxruntime)?);
        let list = list(config)?;
        let by = match config.dreams.generator {
            DreamsBy::Builtin => By::Decoder(Box::new(Dreamer::open(&models, &library, AT_ONCE, list)?)),
            DreamsBy::Openai => By::Endpoint(Box::new(Endpoint::new(&config.generator)?), list),
        };
        Ok(Opened { by, words: WordVectors::open(&Family::open(&models, "static")?)? })
    }

    async fn dream(self: &Arc<Self>, wishes: Wishes, seed: u64, number: u64) -> anyhow::Result<Option<Dreamt>> {
        let told = wishes.clone();
        let (text, provenance) = match &self.by {
            By::Decoder(dreamer) => {
                let (this, provenance) = (Arc::clone(self), dreamer.provenance());
                let made = tokio::task::spawn_blocking(move || match &this.by {
                    By::Decoder(dreamer) => dreamer.dream(&wishes, seed, number),
                    By::Endpoint(..) => Ok(None),
                });
                (made.await.context("make a dream")??, provenance)
            }
            By::Endpoint(endpoint, list) => {
                let provenance =
                    Provenance { model: endpoint.model().to_owned(), version: "openai".to_owned(), tier: Tier::Full };
                (endpoint.dream(&wishes, list, seed, number).await?, provenance)
            }
        };
        let dreamt = |text: String| Dreamt {
            text,
            seed,
            number,
            steering: told.steering,
            about: told.about,
            palette: Vec::new(),
            provenance,
        };
        Ok(text.map(|text| dreamt(text.as_str().to_owned())))
    }
}

/// The words that never come out.
fn list(config: &Config) -> anyhow::Result<BlockList> {
    let path = &config.dreams.blocked_words;
    if path.as_os_str().is_empty() {
        return Ok(BlockList::default());
    }
    let mend = || format!("read [dreams] blocked_words {}", path.display());
    let size = std::fs::metadata(path).with_context(mend)?.len();
    anyhow::ensure!(size <= LIST_BYTES_MAX, "{}: {size} bytes are more than {LIST_BYTES_MAX}; shorten it", mend());
    BlockList::parse(&std::fs::read_to_string(path).with_context(mend)?).with_context(mend)
}

impl Dreams for Dreaming {
    fn dream(&self, turns: Vec<Turn>, seed: u64) -> BoxFuture<'_, Result<Dreamt, NoDream>> {
        Box::pin(async move {
            let _place = self.places.try_acquire().map_err(|_| NoDream::Busy)?;
            match self.of_turns(&turns, seed, 0).await {
                Ok(dreamt) => dreamt.ok_or(NoDream::Nothing),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), "make a dream");
                    Err(NoDream::Unavailable)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests;
