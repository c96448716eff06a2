//! A palette from the colour of words and from a feeling.
//!
//! Promises: five colours of sRGB in fixed relations of hue (the seed, a neighbour on either side, its opposite, a quiet
//! ground), whatever the input. Held apart from each other's influence: more valence makes every colour lighter and more
//! saturated, more arousal more saturated and a little darker, strictly, with the rest held still. The gains are those
//! that Valdez and Mehrabian (1994, "Effects of color on emotions", Journal of Experimental Psychology: General 123) found
//! for people's ratings of colour patches, read backwards: pleasure = 0.69 brightness + 0.22 saturation, arousal =
//! −0.31 brightness + 0.60 saturation. That saturation and brightness work so is also what Wilms and Oberfeld found (2018,
//! "Color and emotion: effects of hue, saturation, and brightness", Psychological Research 82). Hues come from data alone:
//! the colour names that the model learned. Saturation and lightness are those of Okhsl, so that every value is a colour
//! that a screen can show. Leaves out: how palettes follow each other (the stage).

use palette::color_difference::Wcag21RelativeContrast as _;
use palette::{FromColor as _, LinSrgb, Okhsl, Oklab, Srgb};
use schemas::Swatch;

use super::Feeling;

/// Colours of a palette.
pub const SWATCHES: usize = 5;
/// Brightness and saturation by pleasure and by arousal (Valdez and Mehrabian 1994).
const BRIGHTNESS: [f32; 2] = [0.69, -0.31];
const SATURATION: [f32; 2] = [0.22, 0.60];
/// How far a whole unit of the above moves brightness and saturation, in log-odds. Set by eye.
const GAINS: [f32; 2] = [1.2, 2.6];
/// What is added to the log-odds of saturation: the model's colours are middles of several, and greyer than each. Set by eye.
const PURER: f32 = 1.1;
/// What counts of the log-odds of the seed's lightness, so that there is room above and below. Set by eye.
const LIGHTNESS_SHARE: f32 = 0.75;
/// Saturation and lightness that the log-odds start from are kept within this of 0 and 1.
const EDGE: f32 = 0.06;
/// The least contrast of text on its ground (WCAG 2.1, level AA).
pub const CONTRAST_MIN: f32 = 4.5;

/// How a colour of the palette stands to its seed.
struct Relation {
    /// Degrees of hue.
    turn: f32,
    /// Log-odds of saturation.
    saturation: f32,
    /// Log-odds of lightness.
    lightness: f32,
    /// Share of the palette.
    weight: f32,
}

/// Neighbours and the opposite on the circle of hues, in steps of lightness that keep them apart. Set by eye.
const RELATIONS: [Relation; SWATCHES] = [
    Relation { turn: 0.0, saturation: 0.0, lightness: 0.0, weight: 0.36 },
    Relation { turn: 32.0, saturation: 0.1, lightness: 0.7, weight: 0.22 },
    Relation { turn: -30.0, saturation: -0.1, lightness: -0.9, weight: 0.18 },
    Relation { turn: 180.0, saturation: -0.2, lightness: 0.4, weight: 0.08 },
    Relation { turn: 12.0, saturation: -1.0, lightness: 1.7, weight: 0.16 },
];

/// The palette of a seed under a feeling.
pub(super) fn palette(seed: Oklab, feeling: &Feeling) -> [Oklab; SWATCHES] {
    let seed = Okhsl::from_color(seed);
    let moved = |[by_valence, by_arousal]: [f32; 2]| by_valence * feeling.valence + by_arousal * feeling.arousal;
    let (brighter, purer) = (GAINS[0] * moved(BRIGHTNESS), GAINS[1] * moved(SATURATION) + PURER);
    let (saturation, lightness) = (log_odds(seed.saturation), LIGHTNESS_SHARE * log_odds(seed.lightness));
    RELATIONS.map(|relation| {
        let hue = seed.hue.into_degrees() + relation.turn;
        let saturation = odds(saturation + relation.saturation + purer);
        Oklab::from_color(Okhsl::new(hue, saturation, odds(lightness + relation.lightness + brighter)))
    })
}

fn log_odds(x: f32) -> f32 {
    let x = if x.is_finite() { x.clamp(EDGE, 1.0 - EDGE) } else { EDGE };
    (x / (1.0 - x)).ln()
}

fn odds(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The palette as it travels.
pub(super) fn swatches(palette: &[Oklab; SWATCHES]) -> Vec<Swatch> {
    let swatch = |(colour, relation): (&Oklab, &Relation)| Swatch { colour: hex(*colour), weight: relation.weight };
    palette.iter().zip(&RELATIONS).map(swatch).collect()
}

/// Above this luminance black contrasts more than white, and below it white: √(1.05 × 0.05) − 0.05, where both have 4.58 to 1.
const MIDDLE: f32 = 0.179_13;

/// A colour for text on this ground: of the ground's hue and nearly black or nearly white; black or white itself where that
/// has not contrast enough.
pub(super) fn text_on(ground: Oklab) -> String {
    let hue = Okhsl::from_color(ground).hue;
    let ground: Srgb = shown(ground).into_format();
    let (lightness, plain) =
        if ground.relative_luminance().luma > MIDDLE { (0.12, "#000000") } else { (0.96, "#ffffff") };
    let tinted = shown(Oklab::from_color(Okhsl::new(hue, 0.4, lightness)));
    let enough = ground.relative_contrast(tinted.into_format()) >= CONTRAST_MIN;
    if enough { format!("#{tinted:02x}") } else { plain.to_owned() }
}

/// The nearest colour that a screen shows.
fn shown(colour: Oklab) -> Srgb<u8> {
    Srgb::from_linear(LinSrgb::from_color(colour))
}

/// A colour as `#rrggbb`; what no screen shows is brought to the nearest that one does.
pub(super) fn hex(colour: Oklab) -> String {
    format!("#{:02x}", shown(colour))
}

/// The colour that `#rrggbb` stands for.
pub fn srgb(hex: &str) -> Option<Srgb> {
    let digits = hex.strip_prefix('#').filter(|digits| digits.len() == 6)?;
    let digits = digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(digits)?;
    let number = u32::from_str_radix(digits, 16).ok()?;
    let [_, red, green, blue] = number.to_be_bytes();
    Some(Srgb::new(red, green, blue).into_format())
}
