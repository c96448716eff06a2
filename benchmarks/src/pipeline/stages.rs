//! The stages of the fast tier on one core: infer and fold in a chain, without the log and the contexts' store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use processors::{Chain, Models, Options, stages};
use schemas::{Codec, Stamp, Tier, Turn};

use super::Given;
use super::load::{texts, turn};
use crate::figures::{Aim, Report};

/// Distinct texts: nothing that remembers short texts helps.
const TEXTS: usize = 20_000;
/// Turns that are inferred at once, as a backlog is.
const AT_ONCE: usize = 1000;
const ROOMS: usize = 64;

/// Turns a second and core.
pub(super) fn fast(given: &Given<'_>, report: &mut Report) -> anyhow::Result<()> {
    let texts = texts(&given.undertone.models, TEXTS)?;
    let mut rates = Vec::new();
    for _ in 0..given.runs {
        let models = Models::open(
            &given.undertone.models,
            &given.undertone.onnxruntime,
            &Options { cores: 1, ..Options::default() },
        )?;
        let chain = Chain::new(stages::all(&models), true, Arc::new(Codec::embedded()));
        let said = |(n, text): (usize, &String)| Turn {
            tier: Some(Tier::Fast),
            ..turn(&format!("room-{}", n % ROOMS), n, text)
        };
        let mut turns: Vec<Turn> = texts.iter().enumerate().map(said).collect();
        let mut open = HashMap::new();
        for turn in &turns[..ROOMS] {
            open.insert(turn.conversation.clone(), chain.open(&turn.conversation, HashMap::new())?);
        }
        // One thread and one core's worth of helpers: the rate is that of a core.
        let begun = Instant::now();
        for (batch, some) in turns.chunks_mut(AT_ONCE).enumerate() {
            chain.infer(some)?;
            for (n, turn) in some.iter_mut().enumerate() {
                let conversation = open.get_mut(&turn.conversation).context("every room is open")?;
                chain.fold(conversation, turn, Stamp { partition: 0, offset: (batch * AT_ONCE + n) as i64 })?;
            }
        }
        rates.push(texts.len() as f64 / begun.elapsed().as_secs_f64());
    }
    report.add("fast_turns_per_s_core", Aim::AtLeast(50_000.0), &rates, "distinct texts as long as people's, one core");
    Ok(())
}
