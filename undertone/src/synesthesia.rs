//! A part of stage `synesthesia` made something to see and to hear: a picture as SVG, a sound as WAV.
//!
//! Promises: both are pure functions of the part and the text: the same words give the same bytes. Leaves out: how words
//! become a palette, a sound and a texture (the stage).

mod svg;
mod wav;

use schemas::Synesthesia;

/// The picture, as an SVG document.
pub fn picture(part: &Synesthesia, text: &str) -> String {
    svg::draw(part, text)
}

/// The sound, as a WAV file.
///
/// # Errors
/// A word of the part is none that this program knows.
pub fn sound(part: &Synesthesia, text: &str) -> anyhow::Result<Vec<u8>> {
    wav::render(&part.sound, part.texture.roughness, part.texture.density, text)
}

/// SplitMix64 (Steele, Lea and Flood 2014) from the FNV-1a of a text: what is arbitrary in a picture or a melody.
struct Random(u64);

impl Random {
    fn of(text: &str) -> Random {
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        Random(text.bytes().fold(0xCBF2_9CE4_8422_2325, fnv))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Evenly from 0 to below 1.
    fn share(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u32 << 24) as f32
    }

    /// Evenly below a small bound.
    fn below(&mut self, bound: usize) -> usize {
        ((self.share() * bound as f32) as usize).min(bound - 1)
    }
}

#[cfg(test)]
mod tests;
