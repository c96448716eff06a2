//! Stage `synesthesia`: how the words and the mood look, sound and feel.
//!
//! Promises: the colour of the words is the model's, and a pure function of the text. The fold makes the conversation's
//! palette, sound and texture of it and of the emotion's valence and arousal; they move smoothly: by [`SHARE`] of the way
//! with each turn, and no colour by more than [`STEP_MAX`] in OKLab. A first turn has its own. A text without an emotion
//! (in another language, say) has a colour and leaves the feeling as it was. What each feeling does, and who found that,
//! stands in the files beside. Leaves out: drawing and playing, which the program does from the part.

mod palette;
mod sound;
mod texture;

use std::num::NonZeroUsize;
use std::sync::Arc;

use ::palette::{FromColor as _, Oklab};
use schemas::slice::{Shade, SynesthesiaSlice};
use schemas::{Synesthesia, Tier, Turn};

use super::memo::Memo;
use super::{grams, note, reason};
use crate::model::ngram::Normalised;
use crate::model::{Models, colours};
use crate::stage::{Failure, Stage};

pub use palette::{CONTRAST_MIN, SWATCHES, srgb};
pub use sound::{DYNAMICS, MODES, TEMPO_BPM, TIMBRES};

/// Share of the way to what a turn asks for that palette and feeling go with it.
pub const SHARE: f32 = 0.5;
/// The furthest that a colour moves with one turn, in OKLab (where black and white are 1 apart).
pub const STEP_MAX: f32 = 0.12;

/// How much valence and arousal are stretched before they count: people rate most sentences near the middle, and the emotion
/// model learned their ratings, so that hardly a text would reach the ends of a scale. Set by eye.
pub const STRETCH: f32 = 2.0;

const NAME: &str = "synesthesia";
/// Texts that a core looks at together, so that starting a thread is worth it.
const GRAIN: NonZeroUsize = NonZeroUsize::new(32).expect("it is not zero");

/// What is felt: valence and arousal, each −1 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Feeling {
    /// −1 (unpleasant) to 1 (pleasant).
    pub valence: f32,
    /// −1 (calm) to 1 (excited).
    pub arousal: f32,
}

/// The stage.
#[derive(Debug)]
pub struct Synesthesias {
    models: Arc<Models>,
    full: Memo<Oklab>,
    fast: Memo<Oklab>,
}

impl Synesthesias {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Synesthesias {
        let memo = || Memo::new(size_of::<Oklab>());
        Synesthesias { models, full: memo(), fast: memo() }
    }

    /// Why a turn gets no colour. The fast tier's needs no vector.
    fn why_not(&self, turn: &Turn) -> Option<&'static str> {
        let Some(encoding) = &turn.encoding else {
            let empty = turn.skipped.iter().any(|skipped| skipped.reason == reason::EMPTY_TEXT);
            return Some(if empty { reason::EMPTY_TEXT } else { reason::NO_ENCODING });
        };
        let tier = encoding.provenance.tier;
        let ours = tier == Tier::Fast || encoding.provenance == self.models.embedder(tier);
        (!ours).then_some(reason::OTHER_ENCODER)
    }

    /// The colours of turns with an encoding, as the tier sees them.
    fn colours(&self, tier: Tier, turns: &[&Turn]) -> Result<Vec<Oklab>, Failure> {
        let model = self.models.colours();
        let colour = |turn: &&Turn| {
            let (text, embedding) = (&turn.text, turn.encoding.as_ref().map(|encoding| &encoding.embedding));
            let said = match colours::beginning(text) {
                whole if whole.len() == text.len() => model.by_ngrams(&grams(turn)),
                beginning => model.by_ngrams(&Normalised::of(beginning).buckets()),
            };
            colours::oklab(match (tier, embedding) {
                (Tier::Full, Some(embedding)) => {
                    model.by_names(text, said, embedding, &self.models.words().vector(text))
                }
                _ => said,
            })
        };
        let memo = match tier {
            Tier::Full => &self.full,
            Tier::Fast => &self.fast,
        };
        memo.values(turns, |turn| &turn.text, |missing| Ok(self.models.cores().map(missing, GRAIN, colour)))
    }
}

impl Stage for Synesthesias {
    type Slice = SynesthesiaSlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        for turn in &mut *turns {
            turn.synesthesia = None;
            note(turn, NAME, self.why_not(turn));
        }
        for tier in [Tier::Full, Tier::Fast] {
            let mine = |turn: &Turn| {
                turn.encoding.as_ref().is_some_and(|encoding| encoding.provenance.tier == tier)
                    && self.why_not(turn).is_none()
            };
            let places: Vec<usize> = (0..turns.len()).filter(|place| mine(&turns[*place])).collect();
            let of: Vec<&Turn> = places.iter().map(|place| &turns[*place]).collect();
            let found = self.colours(tier, &of)?;
            for (place, colour) in places.into_iter().zip(found) {
                turns[place].synesthesia = Some(Synesthesia {
                    provenance: self.models.colours().provenance(tier),
                    colour: palette::hex(colour),
                    palette: Vec::new(),
                    text_colour: String::new(),
                    sound: sound::sound(&Feeling::default()),
                    texture: texture::texture(&Feeling::default()),
                });
            }
        }
        Ok(())
    }

    fn fold(&self, slice: &mut SynesthesiaSlice, turn: &mut Turn) -> Result<(), Failure> {
        let felt = felt(turn);
        let Some(part) = &mut turn.synesthesia else { return Ok(()) };
        let damage = |problem: String| Failure::Slice { stage: NAME, conversation: turn.conversation.clone(), problem };
        if !(0..i64::MAX).contains(&slice.turns) || ![0, SWATCHES].contains(&slice.palette.len()) {
            let problem = format!("{} turns and {} colours are damage", slice.turns, slice.palette.len());
            return Err(damage(format!("{problem}: run `undertone contexts rebuild`")));
        }
        let colour = palette::srgb(&part.colour)
            .ok_or_else(|| damage(format!("{:?} is no colour: run `undertone contexts rebuild`", part.colour)))?;
        let first = slice.palette.is_empty();
        let share = if first { 1.0 } else { f64::from(SHARE) };
        if let Some(felt) = felt {
            slice.valence += share * (f64::from(felt.valence) - slice.valence);
            slice.arousal += share * (f64::from(felt.arousal) - slice.arousal);
        }
        let feeling = Feeling { valence: slice.valence as f32, arousal: slice.arousal as f32 };
        let mut colours = palette::palette(Oklab::from_color(colour), &feeling);
        if !first {
            for (colour, before) in colours.iter_mut().zip(&slice.palette) {
                *colour = step(Oklab::new(before.lightness, before.a, before.b), *colour);
            }
        }
        slice.palette = colours.iter().map(|c| Shade { lightness: c.l, a: c.a, b: c.b }).collect();
        slice.turns += 1;
        part.palette = palette::swatches(&colours);
        part.text_colour = palette::text_on(colours[0]);
        part.sound = sound::sound(&feeling);
        part.texture = texture::texture(&feeling);
        Ok(())
    }
}

/// What a turn makes felt: its own valence and the mood's, in equal parts, and its arousal, both stretched.
fn felt(turn: &Turn) -> Option<Feeling> {
    let emotion = turn.emotion.as_ref()?;
    let mood = emotion.mood.as_ref().map_or(emotion.valence, |mood| mood.valence);
    let stretched = |x: f32| (STRETCH * x).clamp(-1.0, 1.0);
    let (valence, arousal) = (0.5 * (emotion.valence + mood), emotion.arousal.unwrap_or(0.0));
    Some(Feeling { valence: stretched(valence), arousal: stretched(arousal) })
}

/// From one colour towards another: [`SHARE`] of the way, and no further than [`STEP_MAX`].
fn step(from: Oklab, to: Oklab) -> Oklab {
    let way = to - from;
    let length = (way.l * way.l + way.a * way.a + way.b * way.b).sqrt();
    from + way * SHARE.min(STEP_MAX / length.max(f32::MIN_POSITIVE))
}

#[cfg(test)]
mod tests;
