//! A texture from a feeling: how rough, how dense and how moving it is, and a word for that.
//!
//! Promises: unpleasant is rougher; arousal is denser and moves more. It follows no published measurement: it is this
//! project's own translation, set by eye, and says nothing that valence and arousal do not.

use schemas::Texture;

use super::Feeling;

/// From still to moving: where a texture begins, and its words when smooth and when rough.
const WORDS: [(f32, [&str; 2]); 4] =
    [(0.0, ["silk", "moss"]), (0.3, ["water", "bark"]), (0.5, ["feather", "gravel"]), (0.7, ["sparks", "thorns"])];
/// From this a texture is rough.
const ROUGH_MIN: f32 = 0.5;

/// The texture of a feeling.
pub(super) fn texture(feeling: &Feeling) -> Texture {
    let share = |x: f32| 1.0 / (1.0 + (-x).exp());
    let (valence, arousal) = (feeling.valence, feeling.arousal);
    let (roughness, motion) = (share(0.8 * arousal - 2.4 * valence - 0.4), share(2.2 * arousal));
    let (_, words) = WORDS.iter().rev().find(|(begin, _)| *begin <= motion).unwrap_or(&WORDS[0]);
    let name = words[usize::from(roughness >= ROUGH_MIN)].to_owned();
    Texture { name, roughness, density: share(1.6 * arousal), motion }
}
