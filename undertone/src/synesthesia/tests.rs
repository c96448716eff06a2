//! The sound as an independent analyser hears it, and the picture as an XML reader sees it.
//!
//! The analyser knows nothing of how the sound was made: tempo from the autocorrelation of onsets, tonic and mode from a
//! chroma against key profiles, loudness from the mean square.

use std::f32::consts::TAU;

use schemas::{Provenance, Sound, Swatch, Texture, Tier};

use super::*;

const FRAME: usize = 512;
/// Samples of a chroma: half tones from 150 Hz up are apart.
const WINDOW: usize = 4096;
/// Samples that the chroma takes together: nothing above 2 kHz is looked at.
const TOGETHER: usize = 4;

struct Heard {
    samples: Vec<f32>,
    rate: f32,
    peak: f32,
}

fn part(sound: Sound) -> Synesthesia {
    let provenance = Provenance { model: "m".into(), version: "1".into(), tier: Tier::Fast };
    let swatch = |colour: &str| Swatch { colour: colour.to_owned(), weight: 0.2 };
    Synesthesia {
        provenance,
        colour: "#203a5c".into(),
        palette: ["#203a5c", "#5c7a9c", "#101c2c", "#c08040", "#e0e8f0"].map(swatch).to_vec(),
        text_colour: "#ffffff".into(),
        sound,
        texture: Texture { name: "water".into(), roughness: 0.4, density: 0.5, motion: 0.5 },
    }
}

fn piece(tempo_bpm: f32, mode: &str, register: i32, timbre: &str, dynamics: &str) -> Sound {
    Sound { tempo_bpm, mode: mode.into(), register, timbre: timbre.into(), dynamics: dynamics.into() }
}

fn hear(sound: &Sound, text: &str) -> Heard {
    let wav = super::sound(&part(sound.clone()), text).unwrap();
    let mut reader = hound::WavReader::new(wav.as_slice()).unwrap();
    let spec = reader.spec();
    let all: Vec<f32> = reader.samples::<i16>().map(|s| f32::from(s.unwrap()) / 32768.0).collect();
    let samples = all.chunks(2).map(|both| (both[0] + both[1]) / 2.0).collect();
    Heard { samples, rate: spec.sample_rate as f32, peak: all.iter().fold(0f32, |peak, x| peak.max(x.abs())) }
}

/// Beats a minute, among 40 to 200: how the rise of the loudness repeats.
fn tempo(heard: &Heard) -> f32 {
    let energy = |frame: &[f32]| frame.iter().map(|x| x * x).sum::<f32>().sqrt();
    let loudness: Vec<f32> =
        heard.samples.chunks_exact(FRAME).map(|frame| (1.0 + 100.0 * energy(frame)).ln()).collect();
    let rises: Vec<f32> = loudness.windows(3).map(|three| (three[2] - three[0]).max(0.0)).collect();
    let smooth: Vec<f32> = rises.windows(5).map(|five| five.iter().sum::<f32>() / 5.0).collect();
    let mean = smooth.iter().sum::<f32>() / smooth.len() as f32;
    let onsets: Vec<f32> = smooth.iter().map(|rise| rise - mean).collect();
    let at =
        |lag: usize| onsets.iter().zip(&onsets[lag..]).map(|(a, b)| a * b).sum::<f32>() / (onsets.len() - lag) as f32;
    let frames = |bpm: f32| 60.0 / bpm * heard.rate / FRAME as f32;
    let (shortest, longest) = (frames(200.0) as usize, frames(40.0) as usize);
    let strength: Vec<f32> = (0..=longest + 4).map(at).collect();
    let is_peak = |lag: &usize| (lag - 4..=lag + 4).all(|other| strength[other] <= strength[*lag]);
    let peaks: Vec<usize> = (shortest..=longest).filter(is_peak).collect();
    let best = peaks.iter().map(|lag| strength[*lag]).fold(0.0, f32::max);
    // A beat repeats every two and three beats as well: the shortest that is nearly as strong is the beat.
    let lag = *peaks.iter().find(|lag| strength[**lag] > 0.7 * best).unwrap();
    // Between frames: the vertex of the parabola through the peak.
    let (a, b, c) = (strength[lag - 1], strength[lag], strength[lag + 1]);
    let lag = lag as f32 + 0.5 * (a - c) / (a - 2.0 * b + c);
    60.0 * heard.rate / (lag * FRAME as f32)
}

/// The strength of each of the twelve notes: Goertzel filters over three octaves.
fn chroma(heard: &Heard) -> [f32; 12] {
    let samples: Vec<f32> = heard.samples.chunks_exact(TOGETHER).map(|few| few.iter().sum()).collect();
    let mut chroma = [0f32; 12];
    for note in 50..85i32 {
        let step = TAU * 440.0 * ((note - 69) as f32 / 12.0).exp2() * TOGETHER as f32 / heard.rate;
        for frame in samples.chunks_exact(WINDOW) {
            let (mut one, mut two) = (0f32, 0f32);
            for (index, sample) in frame.iter().enumerate() {
                let window = 0.5 - 0.5 * (TAU * index as f32 / WINDOW as f32).cos();
                (one, two) = (sample * window + 2.0 * step.cos() * one - two, one);
            }
            let power = (one * one + two * two - 2.0 * step.cos() * one * two).max(0.0);
            chroma[note as usize % 12] += power.sqrt();
        }
    }
    chroma
}

/// Tonic (as a pitch class) and mode whose profile correlates best: notes of the scale, the tonic and fifth above others.
fn key(heard: &Heard) -> (i32, &'static str) {
    let modes = [
        ("ionian", [0, 2, 4, 5, 7, 9, 11]),
        ("dorian", [0, 2, 3, 5, 7, 9, 10]),
        ("phrygian", [0, 1, 3, 5, 7, 8, 10]),
        ("lydian", [0, 2, 4, 6, 7, 9, 11]),
        ("mixolydian", [0, 2, 4, 5, 7, 9, 10]),
        ("aeolian", [0, 2, 3, 5, 7, 8, 10]),
    ];
    let heard = chroma(heard);
    let mut best = (f32::MIN, 0, "");
    for tonic in 0..12usize {
        for (name, scale) in modes {
            let mut profile = [0f32; 12];
            for (degree, semitones) in scale.into_iter().enumerate() {
                profile[(tonic + semitones) % 12] = [3.0, 1.0, 1.2, 1.0, 2.0, 1.0, 1.0][degree];
            }
            let fit = correlation(&heard.map(f32::sqrt), &profile);
            if fit > best.0 {
                best = (fit, tonic as i32, name);
            }
        }
    }
    (best.1, best.2)
}

fn correlation(a: &[f32; 12], b: &[f32; 12]) -> f32 {
    let centred = |x: &[f32; 12]| x.map(|v| v - x.iter().sum::<f32>() / 12.0);
    let (a, b) = (centred(a), centred(b));
    let dot = |a: &[f32; 12], b: &[f32; 12]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

fn decibels(heard: &Heard) -> f32 {
    let square: f32 = heard.samples.iter().map(|x| x * x).sum::<f32>() / heard.samples.len() as f32;
    10.0 * square.log10()
}

#[test]
fn an_analyser_hears_tempo_tonic_and_mode() {
    let wanted = [
        (56.0, "phrygian", 47, "pad"),
        (72.5, "aeolian", 50, "flute"),
        (96.0, "dorian", 54, "harp"),
        (118.0, "mixolydian", 57, "brass"),
        (148.0, "ionian", 61, "brass"),
        (64.0, "ionian", 60, "pad"),
    ];
    for (bpm, mode, register, timbre) in wanted {
        for text in ["the sea at night", "I cannot believe it!"] {
            let heard = hear(&piece(bpm, mode, register, timbre, "mf"), text);
            let found = tempo(&heard);
            assert!((found / bpm - 1.0).abs() < 0.03, "{found} bpm for {bpm}, {timbre}, {text:?}");
            assert_eq!(key(&heard), (register % 12, mode), "{bpm} bpm, {timbre}, {text:?}");
        }
    }
}

#[test]
fn each_step_of_dynamics_is_heard_louder_and_nothing_clips() {
    let mut before = f32::MIN;
    for dynamics in ["pp", "p", "mp", "mf", "f", "ff"] {
        let heard = hear(&piece(100.0, "dorian", 54, "brass", dynamics), "words");
        let level = decibels(&heard);
        assert!(level > before + 3.0, "{dynamics}: {level} dB after {before} dB");
        assert!(heard.peak < 0.99 && level < -12.0, "{dynamics}: peak {}, {level} dB", heard.peak);
        before = level;
    }
}

#[test]
fn the_same_words_give_the_same_bytes_and_others_another_melody() {
    let sound = piece(100.0, "dorian", 54, "harp", "mf");
    let made = |text: &str| super::sound(&part(sound.clone()), text).unwrap();
    assert_eq!(made("one"), made("one"));
    assert_ne!(made("one"), made("another"));
    let unknown = part(piece(100.0, "hypodorian", 54, "harp", "mf"));
    assert!(super::sound(&unknown, "x").unwrap_err().to_string().contains("hypodorian"));
}

#[test]
fn a_picture_is_well_formed_whatever_is_said() {
    let long = "ab ".repeat(5000) + &"x".repeat(5000);
    for text in ["", " ", "a < b & \"c\" > ]]>", "\u{0}\u{1b}[31m", "<script>alert(1)</script>", "👋🏽 ひらがな", &long]
    {
        let picture = picture(&part(piece(96.0, "dorian", 54, "harp", "mf")), text);
        let mut open: Vec<&str> = Vec::new();
        for tag in picture.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()) {
            let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) => assert_eq!(open.pop(), Some(name), "{text:?}"),
                (_, false) => open.push(name),
                _ => {}
            }
        }
        assert!(open.is_empty() && !picture.contains("<script") && picture.len() < 60_000, "{text:?}: {open:?}");
        assert!(!picture.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    }
}
