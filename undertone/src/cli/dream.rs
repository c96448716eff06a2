//! `undertone dream`: verse from the decoder, in a feeling, or of a conversation.

use std::process::ExitCode;

use anyhow::Context as _;
use api::Dreamt;
use processors::dreams::sampler::Wishes;
use processors::dreams::wishes::{self, TURNS_MAX};
use schemas::{Codec, Turn};
use store::history::Page;

use super::{runtime, say};
use crate::config::Config;
use crate::dreaming::Dreaming;
use crate::health::Health;
use crate::up::Databases;

pub(super) fn dream(config: &Config, args: &super::Dream) -> anyhow::Result<ExitCode> {
    let dreaming = Dreaming::new(config.clone());
    let dreams = runtime()?.block_on(async {
        let turns = match &args.conversation {
            Some(conversation) => Some(turns(config, conversation).await?),
            None => None,
        };
        let mut dreams = Vec::new();
        for number in 0..args.count {
            let dreamt = match &turns {
                Some(turns) => dreaming.of_turns(turns, args.seed, number).await?,
                None => {
                    let steering = args.emotion.iter().map(|name| format!("emotion {name}")).collect();
                    dreaming.of(Wishes { steering, about: Vec::new() }, args.seed, number).await?
                }
            };
            dreams.extend(dreamt);
        }
        anyhow::Ok(dreams)
    })?;
    anyhow::ensure!(!dreams.is_empty(), "nothing was dreamt that [dreams] blocked_words admits; shorten that list");
    let shown: anyhow::Result<Vec<String>> = dreams.iter().map(|dreamt| shown(dreamt, args.json)).collect();
    say(&shown?.join(if args.json { "\n" } else { "\n\n" }))
}

fn shown(dreamt: &Dreamt, as_json: bool) -> anyhow::Result<String> {
    if as_json { serde_json::to_string(dreamt).context("write the dream") } else { Ok(dreamt.text.clone()) }
}

/// The last turns of a conversation, the oldest first.
async fn turns(config: &Config, conversation: &str) -> anyhow::Result<Vec<Turn>> {
    let history = Databases::new(Health::default()).history(config).await?;
    let rows = history.turns(conversation, Page::Before(None), TURNS_MAX).await.context("read the history")?;
    anyhow::ensure!(
        !rows.is_empty(),
        "there is no conversation \"{conversation}\" in the history; is --data-dir right?"
    );
    let codec = Codec::embedded();
    let turns = rows.iter().map(|row| codec.decode::<Turn>(&row.value)).collect::<Result<Vec<_>, _>>();
    let mut turns = turns.context("read the turns of the history")?;
    turns.sort_by_key(|turn| turn.position);
    anyhow::ensure!(
        !wishes::is_refused(&turns),
        "nothing is dreamt of this conversation: words of self-harm were found in its last turns. The list knows words, not \
         people, and says nothing of anybody's state: a person should look at the conversation"
    );
    Ok(turns)
}
