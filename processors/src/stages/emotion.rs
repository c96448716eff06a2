//! Stage `emotion`: what the words express, and the mood of the conversation.
//!
//! Promises: 28 calibrated probabilities from n-grams and a vector: in the fast tier the turn's embedding *as it travels*, in
//! the full tier what stage `encode` left beside it in the same process, or where the chain is cut in between the same from
//! the encoder again, so that every cut gives the same part; the mood is a few decayed sums, deterministic, whatever the times say. A turn that has no
//! encoding, or one of an encoder that the head was not trained on, is skipped: the fusion is fitted on both halves, and
//! half a model would look as sure as a whole one. Valence, arousal and dominance come from a model of their own, or from
//! the 28 where it is left out ([`from_emotions`]). A text that is surely in another language than English is skipped.
//! Leaves out: how the models are trained.

mod mood;

use std::num::NonZeroUsize;
use std::sync::Arc;

use schemas::slice::EmotionSlice;
use schemas::{Ekman, Emotion, Encoding, GoEmotions, Tier, Turn};

use super::memo::Memo;
use super::{grams, is_foreign, note, reason};
use crate::model::Models;
use crate::model::expression::LABELS;
use crate::model::vad::AXES;
use crate::stage::{Failure, Stage};

pub use mood::{
    HALF_LIFE_MS, HALF_LIFE_TURNS, PLEASANT_MIN, RECENT_HALF_LIFE_MS, RECENT_HALF_LIFE_TURNS, TENSE_MIN, Turning,
    tension,
};

const NAME: &str = "emotion";
/// Texts that a core looks at together, so that starting a thread is worth it.
const GRAIN: NonZeroUsize = NonZeroUsize::new(32).expect("it is not zero");
const NEUTRAL: usize = LABELS - 1;

/// Positive emotions, as the authors of GoEmotions group them by sentiment (Demszky et al. 2020, figure 2; file
/// `sentiment_mapping.json` of their release). Confusion, curiosity, realization and surprise are ambiguous: they count
/// for neither side.
const POSITIVE: [bool; LABELS] = members([
    "admiration",
    "amusement",
    "approval",
    "caring",
    "desire",
    "excitement",
    "gratitude",
    "joy",
    "love",
    "optimism",
    "pride",
    "relief",
]);
/// Negative emotions; see [`POSITIVE`].
const NEGATIVE: [bool; LABELS] = members([
    "anger",
    "annoyance",
    "disappointment",
    "disapproval",
    "disgust",
    "embarrassment",
    "fear",
    "grief",
    "nervousness",
    "remorse",
    "sadness",
]);

/// Which labels are among these; none may be misspelt.
const fn members<const N: usize>(names: [&str; N]) -> [bool; LABELS] {
    let (mut found, mut count, mut label) = ([false; LABELS], 0, 0);
    while label < LABELS {
        let mut name = 0;
        while name < N {
            if is_same(names[name].as_bytes(), GoEmotions::LABELS[label].as_bytes()) {
                found[label] = true;
                count += 1;
            }
            name += 1;
        }
        label += 1;
    }
    assert!(count == N, "every name is a label");
    found
}

const fn is_same(mut a: &[u8], mut b: &[u8]) -> bool {
    while let ([x, more_a @ ..], [y, more_b @ ..]) = (a, b) {
        if *x != *y {
            return false;
        }
        (a, b) = (more_a, more_b);
    }
    a.is_empty() && b.is_empty()
}

/// What the n-grams of a text say by themselves.
#[derive(Debug, Clone)]
struct Words {
    /// Log-odds of each emotion.
    logits: [f32; LABELS],
    /// Valence, arousal and dominance; 0 without their model.
    vad: [f32; AXES],
}

/// The stage.
#[derive(Debug)]
pub struct Emotions {
    models: Arc<Models>,
    words: Memo<Words>,
}

impl Emotions {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Emotions {
        Emotions { models, words: Memo::new(size_of::<Words>()) }
    }

    /// The vectors that the model of a turn's tier reads, taken out of the turns; none where the turn has no encoding, or
    /// one of another encoder.
    fn vectors(&self, turns: &mut [Turn]) -> Result<Vec<Option<Arc<[f32]>>>, Failure> {
        let mut vectors: Vec<Option<Arc<[f32]>>> = turns
            .iter_mut()
            .map(|turn| {
                let encoding = turn.encoding.as_mut()?;
                let feeling = encoding.feeling.take();
                match encoding.provenance.tier {
                    Tier::Full => feeling,
                    Tier::Fast => Some(encoding.embedding.components().collect()),
                }
            })
            .collect();
        let ours =
            |turn: &Turn| turn.encoding.as_ref().is_some_and(|e| e.provenance == self.models.embedder(Tier::Full));
        let absent: Vec<usize> = (0..turns.len()).filter(|i| vectors[*i].is_none() && ours(&turns[*i])).collect();
        let texts: Vec<&str> = absent.iter().map(|i| turns[*i].text.as_str()).collect();
        let encoded = self.models.encoder().encode(&texts, self.models.cores())?;
        for (place, encoded) in absent.into_iter().zip(encoded) {
            vectors[place] = Some(encoded.feeling);
        }
        Ok(vectors)
    }

    /// The part of a turn, or why there is none.
    fn part(&self, words: &Words, encoding: &Encoding, vector: Option<&[f32]>) -> Result<Emotion, &'static str> {
        if is_foreign(encoding) {
            return Err(reason::UNSUPPORTED_LANGUAGE);
        }
        let tier = encoding.provenance.tier;
        let vector =
            vector.filter(|_| encoding.provenance == self.models.embedder(tier)).ok_or(reason::OTHER_ENCODER)?;
        let expression = self.models.expression();
        let probabilities = expression.probabilities(tier, &words.logits, vector).ok_or(reason::OTHER_ENCODER)?;
        let own = self.models.vad().map(|vad| vad.of(tier, &words.vad, &encoding.embedding, vector, &probabilities));
        let [valence, arousal, dominance] = own.unwrap_or_else(|| from_emotions(&probabilities));
        Ok(Emotion {
            provenance: expression.provenance(tier),
            probabilities,
            ekman: probabilities.ekman(),
            labels: labels(&probabilities, &expression.head(tier).threshold),
            valence,
            arousal: Some(arousal),
            dominance: Some(dominance),
            intensity: intensity(&probabilities),
            mood: None,
        })
    }
}

impl Stage for Emotions {
    type Slice = EmotionSlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        let vectors = self.vectors(turns)?;
        let expression = self.models.expression();
        let encoded: Vec<&Turn> = turns.iter().filter(|turn| turn.encoding.is_some()).collect();
        let vad = self.models.vad();
        let read = |turn: &&Turn| {
            let grams = grams(turn);
            let logits = expression.ngram_logits(&grams);
            Words { logits, vad: vad.map_or([0.0; AXES], |vad| vad.words(&grams)) }
        };
        let infer = |missing: &[&Turn]| Ok::<_, Failure>(self.models.cores().map(missing, GRAIN, read));
        let words = self.words.values(&encoded, |turn| &turn.text, infer)?;
        let mut words = words.iter();
        for (turn, vector) in turns.iter_mut().zip(&vectors) {
            let result = match &turn.encoding {
                None if turn.skipped.iter().any(|s| s.reason == reason::EMPTY_TEXT) => Err(reason::EMPTY_TEXT),
                None => Err(reason::NO_ENCODING),
                Some(encoding) => {
                    let words = words.next().expect("every encoded turn has words");
                    self.part(words, encoding, vector.as_deref())
                }
            };
            note(turn, NAME, result.as_ref().err().copied());
            turn.emotion = result.ok();
        }
        Ok(())
    }

    fn fold(&self, slice: &mut EmotionSlice, turn: &mut Turn) -> Result<(), Failure> {
        let Some(emotion) = &mut turn.emotion else { return Ok(()) };
        if !slice.ekman.is_empty() && slice.ekman.len() != Ekman::LABELS.len() {
            let problem = format!("holds {} Ekman sums instead of {}", slice.ekman.len(), Ekman::LABELS.len());
            return Err(Failure::Slice { stage: NAME, conversation: turn.conversation.clone(), problem });
        }
        if !(0..i64::MAX).contains(&slice.turns) {
            let problem = format!("{} turns are damage: run `undertone contexts rebuild`", slice.turns);
            return Err(Failure::Slice { stage: NAME, conversation: turn.conversation.clone(), problem });
        }
        emotion.mood = Some(mood::fold(slice, turn.at, emotion));
        Ok(())
    }
}

/// Labels at or above their thresholds, the most probable first; `neutral` if there is none.
fn labels(probabilities: &GoEmotions, threshold: &[f32; LABELS]) -> Vec<String> {
    let p = probabilities.to_array();
    let mut present: Vec<usize> = (0..LABELS).filter(|label| p[*label] >= threshold[*label]).collect();
    present.sort_by(|a, b| p[*b].total_cmp(&p[*a]));
    if present.is_empty() {
        present.push(NEUTRAL);
    }
    present.into_iter().map(|label| GoEmotions::LABELS[label].to_owned()).collect()
}

/// Valence of a text by its emotions, −1 (unpleasant) to 1 (pleasant): the probability of any positive emotion less that of any negative
/// one, each 1 − Π(1 − p) over the group that GoEmotions' authors give. Neutral and ambiguous emotions pull towards 0 by
/// taking part in neither.
pub fn valence(probabilities: &GoEmotions) -> f32 {
    any(probabilities, &POSITIVE) - any(probabilities, &NEGATIVE)
}

/// Arousal and dominance of each emotion, −1 to 1, in the order of [`GoEmotions::LABELS`]. Set by hand after the
/// circumplex (Russell 1980): anger, fear, excitement and surprise rouse, sadness, relief and remorse do not; anger, pride
/// and admiration of oneself are strong, fear, grief and embarrassment are weak. Nothing was fitted.
const AROUSAL_DOMINANCE: [[f32; 2]; LABELS] = [
    [0.2, 0.1],   // admiration
    [0.4, 0.2],   // amusement
    [0.8, 0.3],   // anger
    [0.4, 0.1],   // annoyance
    [0.0, 0.2],   // approval
    [0.0, 0.2],   // caring
    [0.1, -0.3],  // confusion
    [0.2, 0.0],   // curiosity
    [0.4, 0.1],   // desire
    [-0.1, -0.3], // disappointment
    [0.2, 0.1],   // disapproval
    [0.4, 0.0],   // disgust
    [0.2, -0.5],  // embarrassment
    [0.9, 0.3],   // excitement
    [0.8, -0.5],  // fear
    [0.2, 0.1],   // gratitude
    [-0.1, -0.6], // grief
    [0.5, 0.3],   // joy
    [0.4, 0.2],   // love
    [0.5, -0.5],  // nervousness
    [0.2, 0.3],   // optimism
    [0.5, 0.6],   // pride
    [0.1, 0.0],   // realization
    [-0.3, 0.1],  // relief
    [0.0, -0.4],  // remorse
    [-0.3, -0.5], // sadness
    [0.7, -0.1],  // surprise
    [-0.2, 0.0],  // neutral
];

/// Valence, arousal and dominance, −1 to 1, from the probabilities alone: [`valence`], and the means of a fixed table.
pub fn from_emotions(probabilities: &GoEmotions) -> [f32; 3] {
    let mut sums = [0.0; 2];
    for (p, weights) in probabilities.to_array().iter().zip(AROUSAL_DOMINANCE) {
        for (sum, weight) in sums.iter_mut().zip(weights) {
            *sum += p * weight;
        }
    }
    [valence(probabilities), sums[0].clamp(-1.0, 1.0), sums[1].clamp(-1.0, 1.0)]
}

/// How emotional a text is, 0 to 1: the probability of any emotion, 1 − Π(1 − p) over the 27, times the probability that
/// the text is not neutral, 1 − p(neutral).
pub fn intensity(probabilities: &GoEmotions) -> f32 {
    const EMOTIONS: [bool; LABELS] = {
        let mut emotions = [true; LABELS];
        emotions[NEUTRAL] = false;
        emotions
    };
    any(probabilities, &EMOTIONS) * (1.0 - probabilities.neutral)
}

fn any(probabilities: &GoEmotions, members: &[bool; LABELS]) -> f32 {
    let members = probabilities.to_array().into_iter().zip(members).filter(|(_, member)| **member);
    1.0 - members.map(|(p, _)| 1.0 - p).product::<f32>()
}

#[cfg(test)]
mod tests;
