//! Stage `coherence`: how a turn hangs together with what went before, and where one topic ends and another begins.
//!
//! Promises: everything is decided when the turn comes and never changes later. Of a conversation at most [`RECENT_MAX`]
//! turns are kept, as vectors and hashes of words. Vectors of different models are never held against each other: with
//! another model (a turn of the other tier, a new release) the talk starts anew, and that turn begins no segment. A turn
//! that cannot be served (`skipped` says why) leaves everything as it was. Measures of the density matrix
//! ([`density`]) come only where the configuration asks for them: they add next to nothing to what the model tells
//! (`models/coherence`). Leaves out: segments with the whole dialogue in view ([`offline`]), which no turn can wait for.

pub mod density;
pub mod offline;

use std::num::NonZeroUsize;
use std::sync::Arc;

use schemas::slice::{CoherenceSlice, Said};
use schemas::{Coherence, Density, Embedding, Segment, Turn};

use super::{is_foreign, note, reason};
use crate::model::Models;
use crate::model::coherence::{Against, ROLE, Roles, SCALARS, cosine, overlap};
use crate::stage::{Failure, Stage};
use density::Matrix;

/// Turns that are kept: what weighs less than 0.06 of the newest is forgotten.
pub const RECENT_MAX: usize = 8;
/// What a turn weighs beside the next one.
pub const DECAY: f32 = 0.7;

const NAME: &str = "coherence";
/// Texts that a core looks at together, so that starting a thread is worth it.
const GRAIN: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");
/// Earlier turns whose words are looked at, beside the last one.
const EARLIER: usize = 3;
/// Places from which on a conversation is simply long: ln(1 + place) is at most this.
const LONG: f32 = 3.0;

/// The stage.
#[derive(Debug)]
pub struct Coherences {
    models: Arc<Models>,
}

impl Coherences {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Coherences {
        Coherences { models }
    }

    /// The part before the fold fills it, or why there is none.
    fn part(&self, turn: &Turn) -> Result<Coherence, &'static str> {
        let Some(encoding) = &turn.encoding else {
            let empty = turn.skipped.iter().any(|skipped| skipped.reason == reason::EMPTY_TEXT);
            return Err(if empty { reason::EMPTY_TEXT } else { reason::NO_ENCODING });
        };
        if is_foreign(encoding) {
            return Err(reason::UNSUPPORTED_LANGUAGE);
        }
        let tier = encoding.provenance.tier;
        if encoding.provenance != self.models.embedder(tier) {
            return Err(reason::OTHER_ENCODER);
        }
        let provenance = self.models.coherence().provenance(tier);
        Ok(Coherence { provenance, score: 0.0, shift_probability: 0.0, shift: false, segment: None, density: None })
    }

    /// Folds a turn, and what it says in log-odds, which the off-line segmenter reads.
    ///
    /// # Errors
    /// A slice that is damaged.
    pub fn follow(&self, slice: &mut CoherenceSlice, turn: &mut Turn) -> Result<Option<Followed>, Failure> {
        let (Some(encoding), Some(part)) = (&turn.encoding, &mut turn.coherence) else { return Ok(None) };
        let (model, tier) = (self.models.coherence(), encoding.provenance.tier);
        let vector = &encoding.embedding;
        let Some(roles) = model.roles(tier, &turn.text, vector) else { return Ok(None) };
        let (made, said) = (&encoding.provenance, &part.provenance);
        let name = format!("{}@{}/{}@{}", made.model, made.version, said.model, said.version);
        if slice.model != name {
            let kept = (slice.segment, slice.first, slice.turns);
            *slice = CoherenceSlice { model: name, ..CoherenceSlice::default() };
            (slice.segment, slice.first, slice.turns) = kept;
        }
        let sender = turn.sender.as_ref().map_or("", |sender| sender.id.as_str());
        let terms = model.terms(&turn.text);
        let pair = slice.recent.last().map_or(0.0, |last| model.pair(tier, vector, &last.vector));
        let against = against(slice, vector, &terms, sender, pair).ok_or_else(|| Failure::Slice {
            stage: NAME,
            conversation: turn.conversation.clone(),
            problem: "a projection of another length is damage: run `undertone contexts rebuild`".to_owned(),
        })?;
        let odds = model.says(tier, &roles, &against);
        part.score = probability(odds.next);
        let begins = model.begins(tier, odds, pair);
        part.shift_probability = if slice.spoken == 0 { 0.0 } else { probability(begins) };
        part.shift = slice.spoken > 0 && begins >= model.threshold(tier, slice.turns);
        if part.shift || slice.segment == 0 {
            slice.segment += 1;
            slice.turns = 0;
            slice.first = turn.position.unwrap_or(slice.spoken + 1);
        }
        slice.turns += 1;
        part.segment = Some(Segment { number: slice.segment, first: slice.first, turns: slice.turns });
        let followed = Followed { next: odds.next, shift: odds.shift, begins, terms: terms.clone() };
        remember(slice, &roles, Said { vector: vector.clone(), terms }, sender);
        part.density = if self.models.density() { measured(slice) } else { None };
        Ok(Some(followed))
    }
}

/// What was found of a turn, in log-odds.
#[derive(Debug, Clone, PartialEq)]
pub struct Followed {
    /// That it is what comes next here.
    pub next: f32,
    /// That it begins another topic, as the network says it: what the off-line segmenter reads.
    pub shift: f32,
    /// The same, as it is decided on line.
    pub begins: f32,
    /// Its content words.
    pub terms: Vec<i32>,
}

impl Stage for Coherences {
    type Slice = CoherenceSlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        let parts = self.models.cores().map(&*turns, GRAIN, |turn| self.part(turn));
        for (turn, part) in turns.iter_mut().zip(parts) {
            note(turn, NAME, part.as_ref().err().copied());
            turn.coherence = part.ok();
        }
        Ok(())
    }

    fn fold(&self, slice: &mut CoherenceSlice, turn: &mut Turn) -> Result<(), Failure> {
        self.follow(slice, turn).map(|_| ())
    }
}

fn probability(odds: f32) -> f32 {
    1.0 / (1.0 + (-odds).exp())
}

/// What a turn is held against, or nothing where the slice is damaged.
fn against(slice: &CoherenceSlice, vector: &Embedding, terms: &[i32], sender: &str, pair: f32) -> Option<Against> {
    let mut found = Against { last: [0.0; ROLE], before: [0.0; ROLE], context: [0.0; ROLE], scalars: [0.0; SCALARS] };
    if slice.spoken > 0 {
        found.last = slice.last.as_slice().try_into().ok()?;
        found.context = slice.context.as_slice().try_into().ok()?;
        found.context.iter_mut().for_each(|x| *x /= slice.weight);
    }
    if slice.spoken > 1 {
        found.before = slice.before.get(..ROLE)?.try_into().ok()?;
    }
    let cosines: Vec<f32> = slice.recent.iter().rev().map(|said| cosine(vector, &said.vector)).collect();
    let (mut weight, mut total, mut mean, mut expected) = (1.0, 0.0, 0.0, 0.0);
    for x in &cosines {
        total += weight;
        mean += weight * x;
        // ⟨v|ρ|v⟩: how probably a measurement of the talk so far finds it in the direction of this turn (Born's rule).
        expected += weight * x * x;
        weight *= DECAY;
    }
    if total > 0.0 {
        (mean, expected) = (mean / total, expected / total);
    }
    let shared = |place: usize| slice.recent.iter().rev().nth(place).map_or(0.0, |said| overlap(terms, &said.terms));
    let at = |place: usize| cosines.get(place).copied().unwrap_or_default();
    let place = slice.spoken as f32;
    found.scalars = [
        at(0),
        at(1),
        at(2),
        mean,
        expected,
        cosines.iter().copied().reduce(f32::max).unwrap_or_default(),
        f32::from(u8::from(slice.spoken == 0)),
        f32::from(u8::from(slice.spoken == 1)),
        place.ln_1p().min(LONG) / LONG,
        f32::from(u8::from(slice.spoken > 0 && slice.sender == sender)),
        shared(0),
        (1..=EARLIER).map(shared).fold(0.0, f32::max),
        pair,
    ];
    Some(found)
}

/// Takes a turn into the slice.
fn remember(slice: &mut CoherenceSlice, roles: &Roles, said: Said, sender: &str) {
    slice.spoken += 1;
    sender.clone_into(&mut slice.sender);
    slice.recent.push(said);
    slice.recent.drain(..slice.recent.len().saturating_sub(RECENT_MAX));
    slice.last = roles.last.to_vec();
    slice.before.extend(roles.before);
    slice.before.drain(..slice.before.len().saturating_sub(2 * ROLE));
    slice.context.resize(ROLE, 0.0);
    slice.context.iter_mut().zip(roles.context).for_each(|(sum, x)| *sum = *sum * DECAY + x);
    slice.weight = slice.weight * DECAY + 1.0;
}

/// The density matrix of the kept turns, the newest with the largest weight.
fn measured(slice: &CoherenceSlice) -> Option<Density> {
    let turns: Vec<&Embedding> = slice.recent.iter().rev().map(|said| &said.vector).filter(|v| v.scale > 0.0).collect();
    let weights: Vec<f64> = (0..turns.len()).map(|lag| f64::from(DECAY).powi(lag as i32)).collect();
    let matrix = Matrix::new(&weights, |i, j| {
        let length = |v: &Embedding| f64::from(cosine(v, v)).sqrt();
        f64::from(cosine(turns[i], turns[j])) / (length(turns[i]) * length(turns[j]))
    });
    matrix.map(|matrix| matrix.measures())
}

#[cfg(test)]
mod tests;
