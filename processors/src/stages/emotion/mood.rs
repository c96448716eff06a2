//! The mood of a conversation: decayed sums, and where it turns.
//!
//! Promises: deterministic, whatever the times say. Leaves out: who of several people is in which mood.

use schemas::slice::EmotionSlice;
use schemas::{Ekman, Emotion, GoEmotions, Mood};

use super::{any, members};
use crate::model::expression::LABELS;

/// After this time a turn counts half in the mood, in milliseconds: ten minutes, so that a mood outlives a pause but not
/// the day.
pub const HALF_LIFE_MS: f64 = 600_000.0;
/// After this many further turns a turn counts half in the mood, whatever the clock says: chats run at very different
/// paces, and some sources stamp whole bursts with one second.
pub const HALF_LIFE_TURNS: f64 = 8.0;
/// As [`HALF_LIFE_MS`], for what happens right now.
pub const RECENT_HALF_LIFE_MS: f64 = 60_000.0;
/// As [`HALF_LIFE_TURNS`], for what happens right now.
pub const RECENT_HALF_LIFE_TURNS: f64 = 2.0;

/// From this probability of a distressing emotion a turn is tense. Some fifty pairs of this and [`PLEASANT_MIN`] were
/// compared on dialogues; the model card has the figures.
pub const TENSE_MIN: f32 = 0.7;
/// From this probability of joy, by the Ekman view, a turn is pleasant: gratitude and approval are often mere courtesy.
pub const PLEASANT_MIN: f32 = 0.9;

/// Emotions that distress; annoyance and disapproval, which everyday disagreement is full of, are not among them.
const DISTRESSING: [bool; LABELS] = members([
    "anger",
    "disappointment",
    "disgust",
    "embarrassment",
    "fear",
    "grief",
    "nervousness",
    "remorse",
    "sadness",
]);

/// How a conversation turned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turning {
    /// It was not tense, and now it is.
    Escalating,
    /// It was tense, and now it is pleasant.
    Relieved,
}

impl Turning {
    /// As it stands in the mood.
    pub fn name(self) -> &'static str {
        match self {
            Turning::Escalating => "escalating",
            Turning::Relieved => "relieved",
        }
    }

    /// The one of this name.
    pub fn from_name(name: &str) -> Option<Turning> {
        [Turning::Escalating, Turning::Relieved].into_iter().find(|turning| turning.name() == name)
    }

    /// From one side to another; a side is negative when it is tense and positive when it is pleasant.
    pub fn between<S: Into<i32>>(before: S, now: S) -> Option<Turning> {
        match (before.into(), now.into()) {
            (0.., ..0) => Some(Turning::Escalating),
            (..0, 1..) => Some(Turning::Relieved),
            _ => None,
        }
    }
}

/// How probably a text expresses distress, 0 to 1: 1 − Π(1 − p) over anger, disappointment, disgust, embarrassment, fear,
/// grief, nervousness, remorse and sadness.
pub fn tension(probabilities: &GoEmotions) -> f32 {
    any(probabilities, &DISTRESSING)
}

/// Which side a turn is on: −1 tense, 1 pleasant, 0 neither.
fn side(tension: f32, joy: f32) -> i32 {
    match (tension >= TENSE_MIN && tension > joy, joy >= PLEASANT_MIN && joy > tension) {
        (true, _) => -1,
        (_, true) => 1,
        _ => 0,
    }
}

/// Folds a part into the decayed sums and returns the mood after it. A turn that is older than the latest one counts as
/// said at the same time, and time never runs back. The first turn of a conversation turns nothing.
pub(super) fn fold(slice: &mut EmotionSlice, at: i64, emotion: &Emotion) -> Mood {
    let elapsed_ms = if slice.turns == 0 { 0 } else { at.saturating_sub(slice.at).max(0) };
    let decay = |half_ms: f64, half_turns: f64| (-(elapsed_ms as f64) / half_ms - 1.0 / half_turns).exp2();
    let slow = decay(HALF_LIFE_MS, HALF_LIFE_TURNS);
    let fast = decay(RECENT_HALF_LIFE_MS, RECENT_HALF_LIFE_TURNS);
    let (valence, intensity) = (f64::from(emotion.valence), f64::from(emotion.intensity));
    let tension = tension(&emotion.probabilities);
    let side = side(tension, emotion.ekman.joy);
    let turning = Turning::between(slice.side, side).filter(|_| slice.turns > 0);
    slice.side = if side == 0 { slice.side } else { side };
    slice.at = if slice.turns == 0 { at } else { slice.at.max(at) };
    slice.turns += 1;
    slice.weight = slice.weight * slow + 1.0;
    slice.valence = slice.valence * slow + valence;
    slice.valence_squared = slice.valence_squared * slow + valence * valence;
    slice.intensity = slice.intensity * slow + intensity;
    slice.ekman.resize(Ekman::LABELS.len(), 0.0);
    for (sum, p) in slice.ekman.iter_mut().zip(emotion.ekman.to_array()) {
        *sum = *sum * slow + f64::from(p);
    }
    slice.recent_weight = slice.recent_weight * fast + 1.0;
    slice.recent_valence = slice.recent_valence * fast + valence;
    slice.recent_tension = slice.recent_tension * fast + f64::from(tension);
    mood(slice, turning)
}

/// What the sums say. The weight is at least 1 after a turn.
fn mood(slice: &EmotionSlice, turning: Option<Turning>) -> Mood {
    let mean = |sum: f64| sum / slice.weight;
    let valence = mean(slice.valence);
    let variance = mean(slice.valence_squared) - valence * valence;
    Mood {
        valence: valence as f32,
        intensity: mean(slice.intensity) as f32,
        trend: (slice.recent_valence / slice.recent_weight - valence) as f32,
        volatility: variance.max(0.0).sqrt() as f32,
        ekman: Ekman::from_array(std::array::from_fn(|class| mean(slice.ekman[class]) as f32)),
        turns: slice.turns,
        tension: (slice.recent_tension / slice.recent_weight) as f32,
        turning: turning.map(|turning| turning.name().to_owned()),
    }
}
