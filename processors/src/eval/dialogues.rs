//! Whole dialogues for the tasks of stage coherence: their turns inferred once, and folded in any order.

use std::sync::Arc;

use schemas::slice::CoherenceSlice;
use schemas::{Sender, Tier, Turn};

use super::turn;
use crate::model::Models;
use crate::stage::{Failure, Stage};
use crate::stages::{Coherences, Encode, Followed};

/// Who speaks where the data names nobody: two people in turn.
const SPEAKERS: [&str; 2] = ["A", "B"];

/// The turns of dialogues, with what stages infer of each by itself.
pub(super) fn inferred<'t>(
    models: &Arc<Models>,
    tier: Tier,
    dialogues: impl Iterator<Item = &'t [String]>,
) -> Result<Vec<Vec<Turn>>, Failure> {
    let dialogues: Vec<&[String]> = dialogues.collect();
    let mut turns: Vec<Turn> = dialogues.iter().flat_map(|texts| texts.iter()).map(|text| turn(text, tier)).collect();
    Encode::new(Arc::clone(models)).infer(&mut turns)?;
    Coherences::new(Arc::clone(models)).infer(&mut turns)?;
    let mut turns = turns.into_iter();
    Ok(dialogues.iter().map(|texts| turns.by_ref().take(texts.len()).collect()).collect())
}

/// Turns through the stage in this order, spoken in turn: what it found of each, where it served it.
pub(super) fn followed(stage: &Coherences, turns: &[&Turn]) -> Result<Vec<(Turn, Option<Followed>)>, Failure> {
    let mut slice = CoherenceSlice::default();
    let place = |(place, turn): (usize, &&Turn)| {
        let id = SPEAKERS[place % SPEAKERS.len()].to_owned();
        let mut turn = Turn::clone(turn);
        (turn.position, turn.sender) = (Some(place as i64 + 1), Some(Sender { id, name: None, bot: false }));
        let followed = stage.follow(&mut slice, &mut turn)?;
        Ok((turn, followed))
    };
    turns.iter().enumerate().map(place).collect()
}

/// The cosine of a turn with the one before it; 0 where one of them has no vector.
pub(super) fn cosine(one: &Turn, other: &Turn) -> f32 {
    let vectors = one.encoding.as_ref().zip(other.encoding.as_ref());
    vectors.map_or(0.0, |(a, b)| crate::model::coherence::cosine(&a.embedding, &b.embedding))
}
