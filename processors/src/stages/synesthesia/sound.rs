//! A sound from a feeling: tempo, mode, register, timbre and dynamics.
//!
//! Promises: more arousal is faster, louder and brighter in timbre; more valence is a brighter mode and a higher register.
//! Arousal follows tempo and mood follows mode when people listen (Husain, Thompson and Schellenberg 2002, "Effects of
//! musical tempo and mode on arousal, mood, and spatial abilities", Music Perception 20). The modes stand in the order of
//! rising happiness that Temperley and Tan found (2013, "Emotional connotations of diatonic modes", Music Perception 30);
//! Lydian, which is brighter than Ionian and was heard as less happy, is left out. Loudness with arousal and height with
//! happiness are what the review of Gabrielsson and Lindström collects (2010, in Juslin and Sloboda, Handbook of Music and
//! Emotion), and what musicians chose when asked to render emotions (Bresin and Friberg 2011, "Emotion rendering in music",
//! Cortex 47). The numbers, as against the directions, were set by ear for this project. Leaves out: playing it.

use schemas::Sound;

use super::Feeling;

/// Beats a minute at the least and the most arousal.
pub const TEMPO_BPM: [f32; 2] = [54.0, 150.0];
/// From dark to bright, with the valence that each begins at.
pub const MODES: [(&str, f32); 5] =
    [("phrygian", -1.0), ("aeolian", -0.5), ("dorian", -0.15), ("mixolydian", 0.15), ("ionian", 0.45)];
/// From dull to bright, with the arousal that each begins at.
pub const TIMBRES: [(&str, f32); 4] = [("pad", -1.0), ("flute", -0.35), ("harp", 0.0), ("brass", 0.45)];
/// From soft to loud, with the arousal that each begins at.
pub const DYNAMICS: [(&str, f32); 6] =
    [("pp", -1.0), ("p", -0.5), ("mp", -0.15), ("mf", 0.1), ("f", 0.35), ("ff", 0.65)];
/// The tonic of a feeling without valence, as a MIDI note (middle C is 60), and semitones for a whole unit of valence.
const TONIC: f32 = 54.0;
const TONIC_BY_VALENCE: f32 = 7.0;

/// The sound of a feeling.
pub(super) fn sound(feeling: &Feeling) -> Sound {
    let [slow, fast] = TEMPO_BPM;
    Sound {
        tempo_bpm: slow * (fast / slow).powf(0.5 * (feeling.arousal + 1.0)),
        mode: step(&MODES, feeling.valence).to_owned(),
        register: (TONIC + TONIC_BY_VALENCE * feeling.valence).round() as i32,
        timbre: step(&TIMBRES, feeling.arousal).to_owned(),
        dynamics: step(&DYNAMICS, feeling.arousal).to_owned(),
    }
}

/// The last step that begins at or below `x`; the first if there is none.
fn step<const N: usize>(steps: &[(&'static str, f32); N], x: f32) -> &'static str {
    steps.iter().rev().find(|(_, begin)| *begin <= x).map_or(steps[0].0, |(name, _)| name)
}
