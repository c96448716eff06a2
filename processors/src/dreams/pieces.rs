//! The decoder's vocabulary: byte-pair pieces of folded lines, and the pieces that steer.
//!
//! Promises: [`Pieces::encode`] gives the pieces that training saw, by the same merges in the same order; [`Pieces::text`]
//! is total, with the replacement character where bytes are no UTF-8. Leaves out: how likely a piece is (the decoder).

use std::collections::HashMap;

use serde::Deserialize;

use super::verse::{bytes, fold, unfold, words};

/// Before the first piece of all.
pub const PAD: u32 = 0;
/// Begins every text.
pub const START: u32 = 1;
/// Ends a line.
pub const LINE: u32 = 2;
/// Ends what steers.
pub const GO: u32 = 3;
/// Begins the words that a text is to be about.
pub const ABOUT: u32 = 4;
/// Ends a text.
pub const END: u32 = 5;
/// Pieces below this number are no text.
pub const FIRST_TEXT: u32 = 64;

/// The file as the tokenizers library writes it.
#[derive(Deserialize)]
struct File {
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    vocab: HashMap<String, u32>,
    merges: Vec<(String, String)>,
}

/// The vocabulary.
#[derive(Debug)]
pub struct Pieces {
    /// Bytes of each piece; none of a steering one.
    bytes: Vec<Vec<u8>>,
    /// Rank and result of a pair of pieces that merges.
    merges: HashMap<(u32, u32), (usize, u32)>,
    single: Vec<u32>,
    steering: HashMap<String, u32>,
}

impl Pieces {
    /// Reads the tokenizer's file; the text says what is wrong with it.
    ///
    /// # Errors
    /// It is no such file, or pieces that merges name are missing.
    pub fn parse(file: &[u8]) -> Result<Pieces, String> {
        let Model { vocab, merges } = serde_json::from_slice::<File>(file).map_err(|e| e.to_string())?.model;
        let mut named = vec![None; vocab.len()];
        for (name, piece) in &vocab {
            *named.get_mut(*piece as usize).ok_or_else(|| format!("piece {piece} is out of range"))? =
                Some(name.as_str());
        }
        let mut read =
            Pieces { bytes: Vec::new(), merges: HashMap::new(), single: vec![0; 256], steering: HashMap::new() };
        for (piece, name) in (0u32..).zip(named) {
            let name = name.ok_or_else(|| format!("piece {piece} is missing"))?;
            if piece < FIRST_TEXT {
                read.steering.insert(name.to_owned(), piece);
                read.bytes.push(Vec::new());
                continue;
            }
            let bytes = bytes(name).ok_or_else(|| format!("piece {piece} ({name:?}) is not made of bytes"))?;
            if let [byte] = bytes[..] {
                read.single[usize::from(byte)] = piece;
            }
            read.bytes.push(bytes);
        }
        if read.single.contains(&0) {
            return Err("a byte has no piece of its own".to_owned());
        }
        for (rank, (left, right)) in merges.into_iter().enumerate() {
            let of = |name: &str| {
                vocab.get(name).copied().ok_or_else(|| format!("merge {rank} names {name:?}, which is no piece"))
            };
            read.merges.insert((of(&left)?, of(&right)?), (rank, of(&format!("{left}{right}"))?));
        }
        Ok(read)
    }

    /// How many pieces there are.
    pub fn count(&self) -> usize {
        self.bytes.len()
    }

    /// The piece that steers by this name, such as "emotion joy".
    pub fn steering(&self, name: &str) -> Option<u32> {
        self.steering.get(&format!("<{name}>")).copied()
    }

    /// A line's pieces, without start and end.
    pub fn encode(&self, line: &str) -> Vec<u32> {
        words(&fold(line)).into_iter().flat_map(|word| self.merged(word)).collect()
    }

    /// Pieces of one word within a line, as [`ABOUT`] takes them.
    pub fn word(&self, word: &str) -> Vec<u32> {
        self.merged(&format!(" {}", word.to_lowercase()))
    }

    fn merged(&self, word: &str) -> Vec<u32> {
        let mut pieces: Vec<u32> = word.bytes().map(|b| self.single[usize::from(b)]).collect();
        loop {
            let pairs = pieces.windows(2).enumerate();
            let best = pairs.filter_map(|(at, pair)| Some((self.merges.get(&(pair[0], pair[1]))?, at))).min();
            let Some(((_, whole), at)) = best else { return pieces };
            pieces[at] = *whole;
            pieces.remove(at + 1);
        }
    }

    /// The lines that pieces say.
    pub fn text(&self, pieces: &[u32]) -> Vec<String> {
        let lines = pieces.split(|p| *p == LINE).map(|line| {
            let bytes: Vec<u8> = line.iter().flat_map(|p| self.bytes.get(*p as usize)).flatten().copied().collect();
            unfold(&String::from_utf8_lossy(&bytes))
        });
        lines.filter(|line| !line.trim().is_empty()).collect()
    }
}
