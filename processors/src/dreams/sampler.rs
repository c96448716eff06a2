//! Draws dreams from a decoder: seeded, bounded, and read by the block list line by line.
//!
//! Promises: the same seed, wishes, list and decoder give the same dream; a line that the list does not admit, alone or
//! with the lines before it, is drawn again, at most [`Bounds::tries`] times, and never leaves this file; work is
//! bounded by pieces. Leaves out: the decoder's numbers.

use super::blocked::{Admitted, BlockList};
use super::pieces::{ABOUT, END, FIRST_TEXT, GO, LINE, Pieces, START};
use crate::stage::Failure;

/// What gives the next piece's logits.
pub trait Decoder {
    /// What it has read so far; a copy can be gone back to.
    type State: Clone;

    /// Nothing read yet.
    fn begin(&self) -> Self::State;

    /// Reads a piece and returns the logits of the next.
    ///
    /// # Errors
    /// [`Failure::Run`].
    fn read(&mut self, state: &mut Self::State, piece: u32) -> Result<Vec<f32>, Failure>;
}

/// What a dream may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Lines of a dream.
    pub lines: usize,
    /// Pieces of a line; a line that does not end by then is drawn again.
    pub pieces: usize,
    /// Draws of a line before the dream ends without it.
    pub tries: usize,
    /// Words that a dream is to be about.
    pub words: usize,
    /// Below 1 likely pieces become likelier.
    pub temperature: f64,
    /// The share of probability from which is drawn, the likeliest pieces first.
    pub share: f64,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { lines: 4, pieces: 40, tries: 8, words: 3, temperature: 0.85, share: 0.95 }
    }
}

/// What a dream is asked to be like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Steering pieces by name: "emotion joy", "colour blue", "mood negative", "length short". Unknown ones are left out.
    pub steering: Vec<String>,
    /// Words to be about; those on the block list are left out.
    pub about: Vec<String>,
}

/// One dream from a seed; none if not one line was admitted.
///
/// # Errors
/// [`Failure::Run`] of the decoder.
pub fn dream<D: Decoder>(
    decoder: &mut D,
    pieces: &Pieces,
    list: &BlockList,
    wishes: &Wishes,
    bounds: &Bounds,
    seed: u64,
) -> Result<Option<Admitted>, Failure> {
    let mut random = Random(seed);
    let (mut state, mut logits) = (decoder.begin(), Vec::new());
    let about = wishes.about.iter().filter(|word| !list.finds(word)).take(bounds.words);
    let about: Vec<Vec<u32>> = about.map(|word| pieces.word(word)).filter(|word| !word.is_empty()).collect();
    for piece in head(pieces, wishes, &about) {
        logits = decoder.read(&mut state, piece)?;
    }
    let (mut admitted, mut told): (Option<Admitted>, Vec<u32>) = (None, Vec::new());
    for line in 0..bounds.lines {
        let mut drawn = None;
        for _ in 0..bounds.tries {
            let (mut at, mut next, mut said) = (state.clone(), logits.clone(), Vec::new());
            let ended = loop {
                pull(&mut next, &about, &told, &said);
                let piece = draw(&next, bounds, line > 0 && said.is_empty(), &mut random);
                if piece == END {
                    return Ok(admitted);
                }
                next = decoder.read(&mut at, piece)?;
                if piece == LINE {
                    break true;
                }
                said.push(piece);
                if said.len() == bounds.pieces {
                    break false;
                }
            };
            let mut whole: Vec<String> = admitted.iter().map(|a| a.as_str().to_owned()).collect();
            let text = pieces.text(&said);
            if !ended || text.is_empty() {
                continue;
            }
            whole.extend(text);
            if let Some(good) = list.admit(whole.join("\n")) {
                drawn = Some((good, at, next, said));
                break;
            }
        }
        let Some((good, at, next, said)) = drawn else { break };
        (admitted, state, logits) = (Some(good), at, next);
        told.extend(said);
        told.push(LINE);
    }
    Ok(admitted)
}

fn head(pieces: &Pieces, wishes: &Wishes, about: &[Vec<u32>]) -> Vec<u32> {
    let mut head = vec![START];
    head.extend(wishes.steering.iter().filter_map(|name| pieces.steering(name)));
    if !about.is_empty() {
        head.push(ABOUT);
        head.extend(about.iter().flatten());
    }
    if head.len() > 1 {
        head.push(GO);
    }
    head
}

/// What is added to the logit of the piece that begins a word to be about, and of the one with which a begun word almost surely goes on: a
/// bag of words pulls at the decoder, as in Dathathri et al. (2020), but at its outputs.
const BEGIN: f32 = 5.5;
const GO_ON: f32 = 16.0;

/// Makes the words to be about likelier, each until it is said.
fn pull(logits: &mut [f32], about: &[Vec<u32>], told: &[u32], said: &[u32]) {
    let stands = |pieces: &[u32], word: &[u32]| pieces.windows(word.len()).any(|window| window == word);
    for word in about.iter().filter(|word| !stands(told, word) && !stands(said, word)) {
        let begun = (0..word.len()).rev().find(|begun| said.ends_with(&word[..*begun])).unwrap_or_default();
        logits[word[begun] as usize] += if begun == 0 { BEGIN } else { GO_ON };
    }
}

/// Pieces that are so much less likely than the likeliest (e⁻²⁰) are never drawn, whatever the share, and not sorted.
const OUT_OF_REACH: f64 = 20.0;

/// A piece that is text or ends the line, or the dream where that may end.
fn draw(logits: &[f32], bounds: &Bounds, may_end: bool, random: &mut Random) -> u32 {
    let open = |piece: u32| piece >= FIRST_TEXT || piece == LINE || (may_end && piece == END);
    let mut order: Vec<(f64, u32)> =
        (0u32..).zip(logits).filter(|(p, _)| open(*p)).map(|(p, z)| (f64::from(*z) / bounds.temperature, p)).collect();
    let top = order.iter().map(|(z, _)| *z).fold(f64::NEG_INFINITY, f64::max);
    order.retain(|(z, _)| top - z < OUT_OF_REACH);
    // Equal ones by number, so that the order is one.
    order.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let weights: Vec<f64> = order.iter().map(|(z, _)| (z - top).exp()).collect();
    let whole: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let count = 1 + weights
        .iter()
        .take_while(|w| {
            kept += **w;
            kept < bounds.share * whole
        })
        .count();
    let kept: f64 = weights.iter().take(count).sum();
    let mut left = random.unit() * kept;
    for (weight, (_, piece)) in weights.iter().zip(&order).take(count) {
        left -= weight;
        if left < 0.0 {
            return *piece;
        }
    }
    order[0].1
}

/// SplitMix64 (Steele, Lea and Flood, 2014): the same draws on every machine.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
