//! The picture of a part: hills under a light, in the colours of the palette, made of its texture.
//!
//! Promises: well-formed SVG without scripts, fonts or files from elsewhere; words of people are escaped, and stand in the
//! text colour on the first colour. Bounded: so many hills, specks and letters. Leaves out: what the numbers mean.

use std::f32::consts::TAU;
use std::fmt::Write as _;

use schemas::{Swatch, Synesthesia};

use super::Random;

const WIDTH: f32 = 1200.0;
const HEIGHT: f32 = 900.0;
/// Where the picture ends and the words begin.
const HORIZON: f32 = 610.0;
/// Points of a hill's outline.
const POINTS: usize = 25;
const HILLS: [f32; 2] = [4.0, 8.0];
const SPECKS: [f32; 2] = [8.0, 110.0];
/// Letters of a line of the caption, and lines at most.
const LINE_LETTERS: usize = 58;
const LINES_MAX: usize = 3;
const NOTES: [&str; 12] = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];

/// The document.
pub(super) fn draw(part: &Synesthesia, text: &str) -> String {
    let mut random = Random::of(text);
    let grey = Swatch { colour: "#808080".to_owned(), weight: 1.0 };
    // A palette of this program has five; a shorter one is gone through again.
    let colour = |index: usize| part.palette.get(index % part.palette.len().max(1)).unwrap_or(&grey).colour.as_str();
    let (seed, lighter, darker, opposite, ground) = (colour(0), colour(1), colour(2), colour(3), colour(4));
    let texture = &part.texture;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{title}</title>\n<defs>\n\
         <linearGradient id=\"sky\" x1=\"0\" y1=\"0\" x2=\"0\" y2=\"1\"><stop offset=\"0\" stop-color=\"{lighter}\"/>\
         <stop offset=\".75\" stop-color=\"{ground}\"/></linearGradient>\n\
         <radialGradient id=\"light\"><stop offset=\"0\" stop-color=\"{ground}\"/><stop offset=\".35\" stop-color=\"{ground}\" stop-opacity=\".85\"/>\
         <stop offset=\"1\" stop-color=\"{ground}\" stop-opacity=\"0\"/></radialGradient>\n\
         <filter id=\"grain\" x=\"0\" y=\"0\" width=\"100%\" height=\"100%\"><feTurbulence type=\"fractalNoise\" \
         baseFrequency=\"{frequency:.3}\" numOctaves=\"3\" seed=\"{seed_number}\"/><feColorMatrix values=\"0 0 0 0 0  0 0 0 0 0  0 0 0 0 0  \
         0 0 0 {strength:.3} 0\"/></filter>\n</defs>\n<rect width=\"{WIDTH}\" height=\"{HORIZON}\" fill=\"url(#sky)\"/>\n",
        title = escaped(&caption(text).join(" ")),
        frequency = 0.25 + 0.6 * texture.roughness,
        strength = 0.05 + 0.28 * texture.roughness,
        seed_number = random.below(1000),
    );
    let (x, y) = (WIDTH * (0.25 + 0.5 * random.share()), HORIZON * (0.2 + 0.16 * random.share()));
    let radius = 64.0 + 50.0 * texture.density;
    let _ = writeln!(svg, "<circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"{:.0}\" fill=\"url(#light)\"/>", radius * 2.6);
    let _ = writeln!(svg, "<circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"{radius:.0}\" fill=\"{opposite}\"/>");
    let hills = between(HILLS, texture.density).round() as usize;
    for hill in 0..hills {
        let depth = (hill + 1) as f32 / hills as f32;
        let outline = hill_outline(depth, texture.roughness, texture.motion, &mut random);
        let fill = [lighter, seed, darker][(hill * 3 / hills).min(2)];
        let opacity = 0.62 + 0.38 * depth;
        let _ = writeln!(svg, "<path d=\"{outline}\" fill=\"{fill}\" fill-opacity=\"{opacity:.2}\"/>");
    }
    for _ in 0..between(SPECKS, texture.density).round() as usize {
        let (x, y) = (WIDTH * random.share(), HORIZON * random.share());
        let size = 2.0 + 7.0 * random.share() * random.share();
        let fill = [ground, opposite, lighter][random.below(3)];
        svg += &speck(x, y, size, texture.roughness, fill, &mut random);
    }
    let _ = writeln!(svg, "<rect width=\"{WIDTH}\" height=\"{HORIZON}\" filter=\"url(#grain)\"/>");
    svg += &words(part, text, seed);
    svg += &strip(part);
    svg + "</svg>\n"
}

fn between([least, most]: [f32; 2], share: f32) -> f32 {
    least + (most - least) * share.clamp(0.0, 1.0)
}

/// The edge of a hill from left to right, and down to the horizon. What moves has high waves, and what is rough has edges.
fn hill_outline(depth: f32, roughness: f32, motion: f32, random: &mut Random) -> String {
    let height = HORIZON * (0.38 + 0.5 * depth);
    let waves = [(1.0, 0.6), (2.3, 0.3), (4.1, 0.16)].map(|(turns, strength)| (turns, strength, TAU * random.share()));
    let amplitude = 26.0 + 110.0 * motion * (1.2 - depth);
    let points: Vec<(f32, f32)> = (0..POINTS)
        .map(|point| {
            let across = point as f32 / (POINTS - 1) as f32;
            let wave: f32 =
                waves.iter().map(|(turns, strength, phase)| strength * (TAU * turns * across + phase).sin()).sum();
            let edge = roughness * roughness * 46.0 * (random.share() - 0.5);
            (across * WIDTH, height + amplitude * wave + edge)
        })
        .collect();
    let mut outline = format!("M0 {:.1}", points[0].1);
    for pair in points.windows(2) {
        let [(x, y), (to_x, to_y)] = [pair[0], pair[1]];
        if roughness >= 0.5 {
            let _ = write!(outline, "L{to_x:.1} {to_y:.1}");
        } else {
            let half = (to_x - x) / 2.0;
            let _ = write!(outline, "C{:.1} {y:.1} {:.1} {to_y:.1} {to_x:.1} {to_y:.1}", x + half, to_x - half);
        }
    }
    outline + &format!("V{HORIZON}H0Z")
}

fn speck(x: f32, y: f32, size: f32, roughness: f32, fill: &str, random: &mut Random) -> String {
    let opacity = 0.35 + 0.5 * random.share();
    if roughness < 0.5 {
        return format!(
            "<circle cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"{size:.1}\" fill=\"{fill}\" fill-opacity=\"{opacity:.2}\"/>\n"
        );
    }
    let turned = random.share() * 360.0;
    format!(
        "<path d=\"M0 {:.1}L{size:.1} {size:.1}L{:.1} {:.1}Z\" transform=\"translate({x:.0} {y:.0}) rotate({turned:.0})\" \
         fill=\"{fill}\" fill-opacity=\"{opacity:.2}\"/>\n",
        -1.6 * size,
        -0.7 * size,
        size * 0.6
    )
}

/// The caption in lines; what does not fit ends with an ellipsis.
fn caption(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = vec![String::new()];
    for word in text.split_whitespace() {
        let word: String = word.chars().filter(|c| !c.is_control()).take(LINE_LETTERS).collect();
        let full = lines.len() == LINES_MAX;
        let last = lines.last_mut().expect("there is a line");
        if last.is_empty() {
            *last = word;
        } else if last.chars().count() + 1 + word.chars().count() <= LINE_LETTERS {
            last.push(' ');
            last.push_str(&word);
        } else if full {
            last.push('…');
            break;
        } else {
            lines.push(word);
        }
    }
    lines
}

/// The words on the first colour, and beneath them what they sound like.
fn words(part: &Synesthesia, text: &str, seed: &str) -> String {
    let (sound, fill) = (&part.sound, &part.text_colour);
    let mut svg =
        format!("<rect y=\"{HORIZON}\" width=\"{WIDTH}\" height=\"{:.0}\" fill=\"{seed}\"/>\n", HEIGHT - HORIZON);
    let _ = writeln!(svg, "<g fill=\"{fill}\" font-family=\"Georgia, 'DejaVu Serif', serif\">");
    let lines = caption(text);
    for (number, line) in lines.iter().enumerate() {
        let y = HORIZON + 62.0 + 44.0 * number as f32;
        let _ = writeln!(svg, "<text x=\"60\" y=\"{y:.0}\" font-size=\"34\">{}</text>", escaped(line));
    }
    let octave = sound.register.div_euclid(12) - 1;
    let note = NOTES[sound.register.rem_euclid(12) as usize];
    let said = format!(
        "♩ = {:.0}   {note}{octave} {}   {}, {}   {}",
        sound.tempo_bpm, sound.mode, sound.timbre, sound.dynamics, part.texture.name
    );
    let _ = writeln!(
        svg,
        "<text x=\"60\" y=\"{:.0}\" font-size=\"22\" xml:space=\"preserve\">{}</text>\n</g>",
        HEIGHT - 92.0,
        escaped(&said)
    );
    svg
}

/// The palette, each colour as wide as its share.
fn strip(part: &Synesthesia) -> String {
    let all: f32 = part.palette.iter().map(|swatch| swatch.weight).sum();
    let (mut svg, mut x) = (String::new(), 0.0);
    for swatch in &part.palette {
        let width = WIDTH * swatch.weight / all.max(f32::MIN_POSITIVE);
        let _ = writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.0}\" width=\"{:.1}\" height=\"56\" fill=\"{}\"><title>{}</title></rect>",
            HEIGHT - 56.0,
            width + 0.5,
            escaped(&swatch.colour),
            escaped(&swatch.colour)
        );
        x += width;
    }
    svg
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML 1.0 has no such characters.
            '\u{0}'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {}
            c => out.push(c),
        }
    }
    out
}
