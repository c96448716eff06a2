//! The sound of a part, played by a small synthesiser into a WAV file.
//!
//! Promises: tempo, mode, register, timbre and dynamics are those of the part, and can be measured in the samples: a pulse
//! on every beat, the tonic under all of it, a melody that touches every degree of the mode, the mean level of the
//! dynamics. The melody is drawn by the text alone: the same text gives the same bytes. Lasts from [`SECONDS_MIN`] to
//! twice as long. Leaves out: speaking the words.

use std::f32::consts::TAU;
use std::io::Cursor;

use anyhow::Context as _;
use schemas::Sound;

use super::Random;

/// Samples a second.
pub(super) const RATE: u32 = 44_100;
/// The shortest piece; it ends with the bar after that.
const SECONDS_MIN: f32 = 12.0;
/// Beats of a bar.
const BAR: usize = 4;
/// Semitones above the tonic of each degree, by mode.
const SCALES: [(&str, [i32; 7]); 5] = [
    ("ionian", [0, 2, 4, 5, 7, 9, 11]),
    ("mixolydian", [0, 2, 4, 5, 7, 9, 10]),
    ("dorian", [0, 2, 3, 5, 7, 9, 10]),
    ("aeolian", [0, 2, 3, 5, 7, 8, 10]),
    ("phrygian", [0, 1, 3, 5, 7, 8, 10]),
];
/// Mean level by dynamics, in decibels below full scale.
const LEVELS: [(&str, f32); 6] = [("pp", 36.0), ("p", 32.0), ("mp", 28.0), ("mf", 24.0), ("f", 20.0), ("ff", 16.0)];
/// No sample is louder than this share of full scale.
const PEAK_MAX: f32 = 0.97;
/// Two bars each, in degrees of the scale, a beat each: every degree is heard in all of them.
const PHRASES: [[i32; 2 * BAR]; 4] =
    [[0, 2, 4, 3, 5, 6, 1, 0], [4, 5, 3, 6, 2, 4, 1, 0], [0, 1, 2, 3, 4, 6, 5, 4], [7, 6, 5, 3, 2, 4, 1, 0]];

/// How an instrument sounds.
struct Timbre {
    name: &'static str,
    /// Strength of each harmonic.
    harmonics: &'static [f32],
    /// Seconds until a note is at its loudest.
    attack: f32,
    /// Seconds after which it has fallen to 1/e.
    decay: f32,
}

const TIMBRES: [Timbre; 4] = [
    Timbre { name: "pad", harmonics: &[1.0, 0.22, 0.08], attack: 0.12, decay: 2.2 },
    Timbre { name: "flute", harmonics: &[1.0, 0.35, 0.12, 0.05], attack: 0.05, decay: 1.2 },
    Timbre { name: "harp", harmonics: &[1.0, 0.55, 0.35, 0.22, 0.12, 0.06], attack: 0.006, decay: 0.7 },
    Timbre { name: "brass", harmonics: &[1.0, 0.85, 0.65, 0.5, 0.3, 0.2, 0.12, 0.06], attack: 0.025, decay: 0.9 },
];
/// What beats the time, whatever else plays.
const PULSE: Timbre = Timbre { name: "pulse", harmonics: &[1.0, 0.6, 0.3, 0.15], attack: 0.004, decay: 0.16 };

/// The file: two channels of 16 bits.
///
/// # Errors
/// A word of the part is none that this program knows.
pub(super) fn render(sound: &Sound, roughness: f32, density: f32, text: &str) -> anyhow::Result<Vec<u8>> {
    let (left, right) = play(sound, roughness, density, text)?;
    let spec =
        hound::WavSpec { channels: 2, sample_rate: RATE, bits_per_sample: 16, sample_format: hound::SampleFormat::Int };
    let mut file = Cursor::new(Vec::with_capacity(left.len() * 4 + 44));
    let mut writer = hound::WavWriter::new(&mut file, spec).context("begin the sound file")?;
    for (left, right) in left.iter().zip(&right) {
        for sample in [left, right] {
            writer.write_sample((sample * f32::from(i16::MAX)).round() as i16).context("write a sample")?;
        }
    }
    writer.finalize().context("end the sound file")?;
    Ok(file.into_inner())
}

fn play(sound: &Sound, roughness: f32, density: f32, text: &str) -> anyhow::Result<(Vec<f32>, Vec<f32>)> {
    let known = "a newer release may know it";
    let (_, scale) =
        SCALES.iter().find(|(name, _)| *name == sound.mode).with_context(|| format!("mode {}: {known}", sound.mode))?;
    let (_, level) = LEVELS
        .iter()
        .find(|(name, _)| *name == sound.dynamics)
        .with_context(|| format!("dynamics {}: {known}", sound.dynamics))?;
    let timbre = TIMBRES
        .iter()
        .find(|timbre| timbre.name == sound.timbre)
        .with_context(|| format!("timbre {}: {known}", sound.timbre))?;
    anyhow::ensure!(
        (20.0..=400.0).contains(&sound.tempo_bpm),
        "a tempo of {} is none that can be played",
        sound.tempo_bpm
    );
    let beat = 60.0 / sound.tempo_bpm;
    let bars = (SECONDS_MIN / (beat * BAR as f32)).ceil() as usize;
    let mut mix = Mix::new(beat * (bars * BAR) as f32 + 1.5, roughness);
    let mut random = Random::of(text);
    let tonic = sound.register.clamp(24, 96) as f32;
    let pitch = |degree: i32| tonic + (12 * degree.div_euclid(7) + scale[degree.rem_euclid(7) as usize]) as f32;
    let mut phrase = PHRASES[0];
    for bar in 0..bars {
        let begin = (bar * BAR) as f32 * beat;
        for (degree, strength) in [(0, 0.45), (4, 0.25), (7, 0.3)] {
            let note = Note { begin, pitch: pitch(degree) - 12.0, strength, seconds: beat * BAR as f32, place: 0.0 };
            mix.add(&PAD, &note);
        }
        if bar % 2 == 0 {
            phrase = PHRASES[random.below(PHRASES.len())];
        }
        for beat_of_bar in 0..BAR {
            let begin = begin + beat_of_bar as f32 * beat;
            let strong = if beat_of_bar == 0 { 1.2 } else { 1.0 };
            mix.add(&PULSE, &Note { begin, pitch: tonic - 12.0, strength: strong, seconds: 0.3, place: 0.0 });
            let last = bar + 1 == bars && beat_of_bar + 1 == BAR;
            let degree = if last { 0 } else { phrase[bar % 2 * BAR + beat_of_bar] };
            let place = if beat_of_bar % 2 == 0 { -0.35 } else { 0.35 };
            let note = Note { begin, pitch: pitch(degree) + 12.0, strength: 0.85, seconds: beat * 1.1, place };
            mix.add(timbre, &note);
            // A dense texture fills the half beats, softly, so that the beat stays the beat.
            if !last && random.share() < density - 0.35 {
                let between = Note {
                    begin: begin + beat / 2.0,
                    strength: 0.3,
                    pitch: pitch(degree + 2) + 12.0,
                    place: -place,
                    ..note
                };
                mix.add(timbre, &between);
            }
        }
    }
    Ok(mix.levelled(*level))
}

/// What lies under everything.
const PAD: Timbre = Timbre { name: "ground", harmonics: &[1.0, 0.3, 0.1], attack: 0.2, decay: 4.0 };

struct Note {
    /// Seconds from the beginning.
    begin: f32,
    /// As a MIDI number.
    pitch: f32,
    strength: f32,
    seconds: f32,
    /// −1 left to 1 right.
    place: f32,
}

struct Mix {
    channels: [Vec<f32>; 2],
    roughness: f32,
}

impl Mix {
    fn new(seconds: f32, roughness: f32) -> Mix {
        let samples = vec![0.0; (seconds * RATE as f32) as usize];
        Mix { channels: [samples.clone(), samples], roughness: roughness.clamp(0.0, 1.0) }
    }

    /// Adds a note; a rough texture lets a second voice beat against it.
    fn add(&mut self, timbre: &Timbre, note: &Note) {
        let frequency = 440.0 * ((note.pitch - 69.0) / 12.0).exp2();
        let beating = frequency * (1.0 + 0.012 * self.roughness);
        let loudness: f32 = timbre.harmonics.iter().sum();
        let release = 0.08f32.min(note.seconds / 4.0);
        let first = (note.begin * RATE as f32) as usize;
        let [left, right] = &mut self.channels;
        let length = ((note.seconds + release) * RATE as f32) as usize;
        for (index, (left, right)) in left.iter_mut().zip(right).skip(first).take(length).enumerate() {
            let t = index as f32 / RATE as f32;
            let rise = (t / timbre.attack).min(1.0);
            let fall = (-(t - timbre.attack).max(0.0) / timbre.decay).exp();
            let end = ((note.seconds + release - t) / release).clamp(0.0, 1.0);
            let voice = wave(t * frequency, timbre.harmonics)
                + if self.roughness > 0.0 { 0.6 * self.roughness * wave(t * beating, timbre.harmonics) } else { 0.0 };
            let sample = voice / loudness * rise * fall * end * note.strength;
            *left += sample * (1.0 - note.place) * 0.5;
            *right += sample * (1.0 + note.place) * 0.5;
        }
    }

    /// Both channels at a mean level of so many decibels below full scale, peaks rounded off.
    fn levelled(self, level: f32) -> (Vec<f32>, Vec<f32>) {
        let [mut left, mut right] = self.channels;
        let wanted = 10f32.powf(-level / 20.0);
        // Rounding off a peak takes some of the level with it: a few rounds find the gain.
        let raw = (left.clone(), right.clone());
        let mut gain = wanted / level_of(&raw.0, &raw.1).max(f32::MIN_POSITIVE);
        for _ in 0..4 {
            for (out, raw) in [(&mut left, &raw.0), (&mut right, &raw.1)] {
                out.iter_mut().zip(raw).for_each(|(out, raw)| *out = PEAK_MAX * (raw * gain / PEAK_MAX).tanh());
            }
            gain *= wanted / level_of(&left, &right).max(f32::MIN_POSITIVE);
        }
        (left, right)
    }
}

/// The sum of harmonics after so many turns of the first: sin((n + 1)x) = 2 cos x sin nx − sin((n − 1)x).
fn wave(turns: f32, harmonics: &[f32]) -> f32 {
    let (sine, cosine) = (TAU * turns.fract()).sin_cos();
    let (mut before, mut now, mut sum) = (0.0, sine, 0.0);
    for strength in harmonics {
        sum += strength * now;
        (before, now) = (now, 2.0 * cosine * now - before);
    }
    sum
}

/// Root of the mean square of both channels.
fn level_of(left: &[f32], right: &[f32]) -> f32 {
    let square: f64 = left.iter().chain(right).map(|x| f64::from(*x) * f64::from(*x)).sum();
    (square / (left.len() + right.len()).max(1) as f64).sqrt() as f32
}
