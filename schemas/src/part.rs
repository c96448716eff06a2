//! What stages add to a turn. Every part carries its provenance.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Which models serve a turn; recorded in every part's provenance. A string on the wire, because the set may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Tier {
    /// Transformer encoder.
    Full,
    /// N-gram and static embedding.
    Fast,
}

impl Tier {
    /// The word on the wire and in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Full => "full",
            Tier::Fast => "fast",
        }
    }
}

impl From<Tier> for &'static str {
    fn from(tier: Tier) -> &'static str {
        tier.name()
    }
}

impl TryFrom<String> for Tier {
    type Error = String;

    fn try_from(name: String) -> Result<Tier, String> {
        match name.as_str() {
            "full" => Ok(Tier::Full),
            "fast" => Ok(Tier::Fast),
            _ => Err(format!("tier `{name}` is neither `full` nor `fast`")),
        }
    }
}

/// Which model made a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the model, as on its card.
    pub model: String,
    /// Version of the model, as on its card.
    pub version: String,
    /// Tier that ran.
    pub tier: Tier,
}

/// Part of stage `encode`: what the text is, before anybody interprets it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Encoding {
    /// Which model made it.
    pub provenance: Provenance,
    /// The text's place in the encoder's space.
    pub embedding: Embedding,
    /// ISO 639-3 code of the language, where detection was sure enough.
    pub language: Option<String>,
    /// Probability of that language, 0 to 1.
    pub language_confidence: Option<f32>,
    /// What else the encoder of the full tier said in the same call, for stage `emotion` alone. It never travels: where the
    /// chain is cut in between, the stage asks the encoder again, which says the same.
    #[serde(skip)]
    pub feeling: Option<Arc<[f32]>>,
    /// The text's hashed n-grams, rising, each with how often it was met: counted once for all stages of a process. They never
    /// travel: a stage that finds none counts them itself.
    #[serde(skip)]
    pub grams: Option<Arc<[(u32, u32)]>>,
}

/// A unit vector, quantised to one byte a component: component = byte (as i8) × scale.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// `dimension` signed bytes.
    #[serde(with = "apache_avro::serde::bytes")]
    pub values: Vec<u8>,
    /// Value of one step.
    pub scale: f32,
    /// 384 in the full tier, 256 in the fast tier.
    pub dimension: i32,
}

impl Embedding {
    /// Quantises a vector symmetrically: scale = max|x| / 127, rounded half away from zero. A zero vector has scale 0.
    pub fn quantise(vector: &[f32]) -> Embedding {
        let scale = largest(vector) / 127.0;
        let values =
            if scale > 0.0 { vector.iter().map(|x| step(x / scale) as u8).collect() } else { vec![0; vector.len()] };
        Embedding { values, scale, dimension: vector.len() as i32 }
    }

    /// The components, in order.
    pub fn components(&self) -> impl ExactSizeIterator<Item = f32> + '_ {
        self.values.iter().map(|byte| f32::from(*byte as i8) * self.scale)
    }
}

/// The largest magnitude, found in lanes: that of a float does not depend on the order.
fn largest(vector: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = vector.as_chunks::<LANES>();
    for chunk in chunks {
        for (largest, x) in lanes.iter_mut().zip(chunk) {
            *largest = if x.abs() > *largest { x.abs() } else { *largest };
        }
    }
    rest.iter().chain(&lanes).fold(0f32, |largest, x| largest.max(x.abs()))
}

/// Rounds half away from zero to a step, without a call: what is nearest to a half below it, added before the fraction is
/// cut off, carries exactly the halves and what is above them.
#[inline]
fn step(x: f32) -> i8 {
    const BELOW_HALF: f32 = 0.5 - f32::EPSILON / 4.0;
    (x.clamp(-127.0, 127.0) + BELOW_HALF.copysign(x)) as i8
}

/// Declares a record of one `f32` a label: named fields on the wire, an array in the models' order in Rust.
macro_rules! labelled {
    ($(#[$doc:meta])* $name:ident, $count:literal, [$($label:ident),+ $(,)?]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
        pub struct $name { $(#[doc = concat!("`", stringify!($label), "`, 0 to 1.")] pub $label: f32,)+ }

        impl $name {
            /// The labels, in the order of the arrays.
            pub const LABELS: [&'static str; $count] = [$(stringify!($label)),+];

            /// From an array in the order of [`Self::LABELS`].
            pub fn from_array([$($label),+]: [f32; $count]) -> Self {
                $name { $($label),+ }
            }

            /// As an array in the order of [`Self::LABELS`].
            pub fn to_array(&self) -> [f32; $count] {
                [$(self.$label),+]
            }
        }
    };
}

labelled! {
    /// Probabilities of the 27 GoEmotions emotions and neutral (Demszky et al. 2020). Labels are not exclusive.
    GoEmotions, 28, [
        admiration, amusement, anger, annoyance, approval, caring, confusion, curiosity, desire, disappointment,
        disapproval, disgust, embarrassment, excitement, fear, gratitude, grief, joy, love, nervousness, optimism,
        pride, realization, relief, remorse, sadness, surprise, neutral,
    ]
}

labelled! {
    /// The Ekman view of GoEmotions: 1 − Π(1 − p) over the members of each class, as its authors map them.
    Ekman, 7, [anger, disgust, fear, joy, sadness, surprise, neutral]
}

/// For each GoEmotions label, in order, the index of its class in [`Ekman::LABELS`] (the authors' mapping).
pub const EKMAN_OF: [usize; 28] = [3, 3, 0, 0, 3, 3, 5, 5, 3, 4, 0, 1, 4, 3, 2, 3, 4, 3, 3, 2, 3, 3, 5, 3, 4, 4, 5, 6];

impl GoEmotions {
    /// The Ekman view: 1 − Π(1 − p) over the members of each class.
    pub fn ekman(&self) -> Ekman {
        let mut absent = [1f32; 7];
        for (p, class) in self.to_array().iter().zip(EKMAN_OF) {
            absent[class] *= 1.0 - p;
        }
        Ekman::from_array(absent.map(|a| 1.0 - a))
    }
}

/// Part of stage `emotion`: what the words express, and the mood of the conversation with them folded in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Emotion {
    /// Which model made it.
    pub provenance: Provenance,
    /// Calibrated probability of each emotion.
    pub probabilities: GoEmotions,
    /// The Ekman view of `probabilities`.
    pub ekman: Ekman,
    /// Labels whose probability reaches the model's threshold, the most probable first; `neutral` if there is none.
    pub labels: Vec<String>,
    /// −1 (unpleasant) to 1 (pleasant).
    pub valence: f32,
    /// −1 (calm) to 1 (excited), where a model of it is present.
    pub arousal: Option<f32>,
    /// −1 (submissive) to 1 (dominant), where a model of it is present.
    pub dominance: Option<f32>,
    /// How emotional the words are: 0 (neutral) to 1.
    pub intensity: f32,
    /// The conversation's mood after this turn; added by the fold.
    pub mood: Option<Mood>,
}

/// The mood of a conversation, decayed over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mood {
    /// Decayed mean of the valence, −1 to 1.
    pub valence: f32,
    /// Decayed mean of the intensity, 0 to 1.
    pub intensity: f32,
    /// Where the valence is going: fast minus slow decayed mean, −2 to 2.
    pub trend: f32,
    /// Decayed standard deviation of the valence, 0 to 1.
    pub volatility: f32,
    /// Decayed mean of the Ekman view.
    pub ekman: Ekman,
    /// Turns folded so far.
    pub turns: i64,
    /// What turned with this turn: `escalating`, `relieved`, or nothing.
    #[serde(default)]
    pub turning: Option<String>,
    /// How probable distress was in what was said lately: decayed mean, 0 to 1.
    #[serde(default)]
    pub tension: f32,
}

/// Part of stage `personality`, of a sender who consented: a weak signal, never a ground for decisions about a person.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Personality {
    /// Which model made it.
    pub provenance: Provenance,
    /// What this turn adds to the person's statistics.
    pub evidence: Evidence,
    /// Words of the person that this model has read in the conversation since they consented; added by the fold.
    pub words: i64,
    /// Whether those are too few for traits.
    pub not_enough: bool,
    /// Absent while the words are not enough.
    #[serde(default)]
    pub traits: Option<Traits>,
    /// How a bot should write to the person: near the middle while there are few words; added by the fold.
    #[serde(default)]
    pub style: Option<Style>,
}

/// What a turn says of its sender.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evidence {
    /// Words of the turn: the weight of the scores.
    pub words: i32,
    /// What the model measures, in the order of its card.
    #[serde(default)]
    pub scores: Vec<f32>,
}

/// The Big Five, as a weak signal.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Traits {
    /// Curious and inventive, or practical and conventional.
    pub openness: Estimate,
    /// Orderly and careful, or easy-going.
    pub conscientiousness: Estimate,
    /// Outgoing, or reserved.
    pub extraversion: Estimate,
    /// Kind and trusting, or critical.
    pub agreeableness: Estimate,
    /// Easily worried, or calm.
    pub neuroticism: Estimate,
}

impl Traits {
    /// The names, in the order of [`Traits::from_array`].
    pub const NAMES: [&'static str; 5] =
        ["openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism"];

    /// From an array in the order of [`Traits::NAMES`].
    pub fn from_array(
        [openness, conscientiousness, extraversion, agreeableness, neuroticism]: [Estimate; 5],
    ) -> Traits {
        Traits { openness, conscientiousness, extraversion, agreeableness, neuroticism }
    }

    /// As an array in the order of [`Traits::NAMES`].
    pub fn to_array(&self) -> [Estimate; 5] {
        [self.openness, self.conscientiousness, self.extraversion, self.agreeableness, self.neuroticism]
    }
}

/// A trait of a person, in standard deviations from the mean of other people's chats.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate; the interval says how far few words carry.
    pub mean: f32,
    /// With 80 % probability, as many other words of the person give an estimate above this.
    pub low: f32,
    /// And below this.
    pub high: f32,
}

labelled! {
    /// How a bot should write: `formality` from casual to formal, `warmth` from matter-of-fact to warm, `verbosity` from
    /// a few words to many, `pace` from long, unhurried sentences to short, lively ones.
    Style, 4, [formality, warmth, verbosity, pace]
}

/// Part of stage `dialogue`: what the words are meant to do, and what may come next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dialogue {
    /// Which model made it.
    pub provenance: Provenance,
    /// One for each configured set of intents, in their order.
    #[serde(default)]
    pub intents: Vec<Intent>,
    /// What the turn does: `inform`, `question`, `directive` or `commissive`.
    pub act: String,
    /// Probability of that act, 0 to 1.
    pub act_probability: f32,
    /// Probability that an answer is expected, 0 to 1.
    pub question: f32,
    /// Values that the words give, in their order.
    #[serde(default)]
    pub slots: Vec<Slot>,
    /// The three most probable actions of each configured task, the most probable first.
    #[serde(default)]
    pub next_actions: Vec<NextAction>,
    /// Where the conversation stands after this turn; added by the fold.
    pub state: Option<DialogueState>,
}

/// What is wanted, among the intents of one set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    /// The most probable intent of the set.
    pub name: String,
    /// Its probability, 0 to 1.
    pub probability: f32,
    /// Whether the set's threshold says that none of its intents is meant.
    pub out_of_scope: bool,
    /// Name of the set.
    pub set: String,
    /// First 16 hexadecimal digits of the SHA-256 of what defines the set.
    pub set_sha256: String,
}

/// A value that the words give.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// What it is, such as `email_address`.
    pub name: String,
    /// As it was written.
    pub value: String,
    /// How sure the model is, 0 to 1.
    pub probability: f32,
}

/// What the other side may do next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NextAction {
    /// Name of the configured task.
    pub task: String,
    /// Its label.
    pub action: String,
    /// Its probability among the task's actions, 0 to 1.
    pub probability: f32,
}

/// Where a conversation stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DialogueState {
    /// The oldest question that waits for an answer.
    pub waiting: Option<Question>,
    /// Questions that wait for an answer.
    pub open_questions: i32,
    /// Questions that this turn answered.
    pub answered: i32,
    /// Turns of this speaker in a row, this one included.
    pub run: i32,
    /// How often the speaker has changed so far.
    pub exchanges: i64,
    /// The last value of each slot, the newest last.
    #[serde(default)]
    pub slots: Vec<Slot>,
}

/// A question that nobody has answered yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Position of the turn that asked it.
    pub position: i64,
    /// Who asked, as the source names them; empty where it does not.
    pub asked_by: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
}

/// Part of stage `coherence`: how the turn hangs together with what went before. Decided when it came: it never changes
/// later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Coherence {
    /// Which model made it.
    pub provenance: Provenance,
    /// Probability that it is what comes next here, rather than a turn of elsewhere, 0 to 1; of a first turn, that it opens
    /// a conversation.
    pub score: f32,
    /// Probability that it begins another topic, 0 to 1.
    pub shift_probability: f32,
    /// Whether that is probable enough to begin another segment.
    pub shift: bool,
    /// The segment of the turn; added by the fold.
    #[serde(default)]
    pub segment: Option<Segment>,
    /// Absent unless the configuration asks for it; added by the fold.
    #[serde(default)]
    pub density: Option<Density>,
}

/// A stretch of turns about one topic, as far as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// 1, 2, 3 … within the conversation.
    pub number: i64,
    /// Position of its first turn.
    pub first: i64,
    /// Its turns so far, this one included.
    pub turns: i64,
}

/// Measures of the density matrix of what was said lately; descriptive.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Density {
    /// Trace of its square: 1 where all was said in one direction, 1/turns where every turn went its own way.
    pub purity: f32,
    /// Von Neumann entropy in nats, 0 to ln(turns).
    pub entropy: f32,
    /// exp(entropy): how many directions the talk had, 1 to turns.
    pub effective_dimension: f32,
    /// Turns that it is made of.
    pub turns: i32,
}

/// Part of stage `synesthesia`: how the words and the mood look, sound and feel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Synesthesia {
    /// Which model made it.
    pub provenance: Provenance,
    /// sRGB: the colour of the words by themselves, which the palette begins from.
    pub colour: String,
    /// Colours that go together, the heaviest first: those of the conversation after this turn; added by the fold, as is
    /// all that follows.
    #[serde(default)]
    pub palette: Vec<Swatch>,
    /// sRGB: readable on the first colour of the palette (WCAG 2 AA).
    pub text_colour: String,
    /// How it sounds.
    pub sound: Sound,
    /// How it feels.
    pub texture: Texture,
}

/// A colour of a palette.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Swatch {
    /// sRGB, such as `#1a2b3c`.
    pub colour: String,
    /// Its share of the palette, 0 to 1.
    pub weight: f32,
}

/// How something sounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sound {
    /// Beats a minute.
    pub tempo_bpm: f32,
    /// A church mode, such as `dorian`.
    pub mode: String,
    /// MIDI note of the tonic.
    pub register: i32,
    /// What plays it.
    pub timbre: String,
    /// `pp`, `p`, `mp`, `mf`, `f` or `ff`.
    pub dynamics: String,
}

/// How something feels to the touch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Texture {
    /// In a word.
    pub name: String,
    /// 0 (smooth) to 1 (rough).
    pub roughness: f32,
    /// 0 (airy) to 1 (dense).
    pub density: f32,
    /// 0 (still) to 1 (restless).
    pub motion: f32,
}

/// Part of stage `memory`: what of the turn is worth remembering, and where. Decided when it came: a place never changes
/// later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Which model made it.
    pub provenance: Provenance,
    /// How much it tells, 0 to 1: what is low fades first.
    pub salience: f32,
    /// Whether it is worth keeping.
    pub keep: bool,
    /// Its content words, stemmed, in the order in which they were said.
    #[serde(default)]
    pub terms: Vec<String>,
    /// Where it is kept; added by the fold.
    #[serde(default)]
    pub locus: Option<Locus>,
}

/// A place in the palace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locus {
    /// Number of the room: 1, 2, 3 … in the order in which they were built.
    pub room: i32,
    /// What the room was called when the turn came: words of the conversation.
    pub name: String,
    /// Number of the place in the room: 1, 2, 3 …
    pub place: i32,
    /// Where the room stands on the map, eastwards.
    pub x: i32,
    /// Where the room stands on the map, northwards.
    pub y: i32,
    /// Whether the room speaks of health, sex, religion or politics: not shown unless asked for.
    #[serde(default)]
    pub sensitive: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantising_keeps_every_component_within_half_a_step() {
        let vector: Vec<f32> = (0..384).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect();
        let embedding = Embedding::quantise(&vector);
        for (x, y) in vector.iter().zip(embedding.components()) {
            assert!((x - y).abs() <= embedding.scale * 0.5001, "{x} became {y}");
        }
        assert_eq!(Embedding::quantise(&[0.0; 4]).components().collect::<Vec<_>>(), [0.0; 4]);
    }

    #[test]
    fn steps_are_rounded_half_away_from_zero() {
        let near = |x: f32| [x.next_down(), x, x.next_up()];
        for half in (-256..=256).map(|i| i as f32 / 2.0) {
            for x in near(half).into_iter().chain(near(half + 0.25)) {
                assert_eq!(step(x), x.round().clamp(-127.0, 127.0) as i8, "{x:?}");
            }
        }
        assert_eq!([f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(step), [0, 127, -127]);
    }

    #[test]
    fn ekman_view_follows_the_authors_mapping() {
        let members = |class: &str| -> Vec<&str> {
            let class = Ekman::LABELS.iter().position(|l| *l == class).unwrap();
            GoEmotions::LABELS.iter().zip(EKMAN_OF).filter(|(_, c)| *c == class).map(|(l, _)| *l).collect()
        };
        assert_eq!(members("anger"), ["anger", "annoyance", "disapproval"]);
        assert_eq!(members("disgust"), ["disgust"]);
        assert_eq!(members("fear"), ["fear", "nervousness"]);
        assert_eq!(members("sadness"), ["disappointment", "embarrassment", "grief", "remorse", "sadness"]);
        assert_eq!(members("surprise"), ["confusion", "curiosity", "realization", "surprise"]);
        assert_eq!(members("joy").len(), 12);
        let p = GoEmotions { anger: 0.5, annoyance: 0.5, ..Default::default() };
        assert_eq!(p.ekman().anger, 0.75);
    }
}
