//! What a conversation wishes of its dream: its mood, its feeling, its colour, and the words that tell most of it.
//!
//! Promises: a pure function of the turns; the last [`TURNS_MAX`] count, the newer the more; names of rooms that are not
//! shown by default are not read. A conversation under the flag of self-harm has no dream ([`is_refused`]). Leaves out: what
//! the decoder makes of it.

use palette::{FromColor as _, Oklab, Srgb};
use schemas::turn::SELF_HARM_WORDS;
use schemas::{Ekman, Turn};

use super::sampler::Wishes;
use crate::model::embed::WordVectors;
use crate::stages::srgb;

/// Turns that are read, the last ones.
pub const TURNS_MAX: usize = 50;
/// What a turn counts beside the one after it.
const DECAY: f64 = 0.93;
/// Mean probability from which a feeling is one.
const FEELING_MIN: f64 = 0.12;
/// Valence beyond which a mood takes a side.
const SIDE: f32 = 0.15;
/// Shortest word that is wished for, in letters, and how many of them are.
const LETTERS_MIN: usize = 4;
const WORDS: usize = 3;
/// What the words of the room count beside a word that was said.
const ROOM: f64 = 2.0;
/// Colours that steer, as they look.
const COLOURS: [(&str, [u8; 3]); 11] = [
    ("black", [20, 20, 20]),
    ("white", [245, 245, 245]),
    ("grey", [128, 128, 128]),
    ("red", [190, 30, 40]),
    ("orange", [235, 130, 30]),
    ("yellow", [235, 205, 50]),
    ("green", [50, 140, 60]),
    ("blue", [45, 95, 190]),
    ("purple", [115, 60, 150]),
    ("pink", [235, 150, 180]),
    ("brown", [115, 75, 45]),
];
/// Words that tell nothing of what is talked about.
const STOP: &str = "that with from this have they them their there then than when what where which while were will would \
    shall should could your yours into upon unto like some such more most much many each every ever never only till until \
    over under here been being does must might these those very still though through thus even come came make made know \
    well said says tell just also down back again away before after about against really because something anything \
    everything nothing someone people thing things want wants wanted going gonna wanna think thought yeah okay thanks thank \
    please sorry good great nice sure maybe always need needs time year years today tomorrow yesterday dont doesnt didnt \
    cant couldnt wont wouldnt isnt arent wasnt havent hasnt youre theyre thats whats lets hello haha does doing done";

/// Whether nothing is dreamt of a conversation: its newest turn carries the flag.
pub fn is_refused(turns: &[Turn]) -> bool {
    turns
        .iter()
        .max_by_key(|turn| turn.position)
        .is_some_and(|turn| turn.flags.iter().any(|flag| flag == SELF_HARM_WORDS))
}

/// The wishes of a conversation, its turns the oldest first.
pub fn of(turns: &[Turn], words: &WordVectors) -> Wishes {
    let turns = &turns[turns.len().saturating_sub(TURNS_MAX)..];
    let steering = [feeling(turns).map(|name| format!("emotion {name}")), mood(turns), colour(turns)];
    Wishes { steering: steering.into_iter().flatten().collect(), about: telling(turns, words) }
}

/// Turns, and what each counts.
fn weighed(turns: &[Turn]) -> impl Iterator<Item = (&Turn, f64)> {
    turns.iter().rev().enumerate().map(|(age, turn)| (turn, DECAY.powi(age as i32)))
}

fn feeling(turns: &[Turn]) -> Option<&'static str> {
    let (mut sums, mut whole) = ([0.0; 7], 0.0);
    for (emotion, weight) in weighed(turns).filter_map(|(turn, weight)| Some((turn.emotion.as_ref()?, weight))) {
        sums.iter_mut().zip(emotion.ekman.to_array()).for_each(|(sum, p)| *sum += weight * f64::from(p));
        whole += weight;
    }
    let all = Ekman::LABELS.into_iter().zip(sums).filter(|(name, _)| *name != "neutral");
    let (name, sum) = all.max_by(|a, b| a.1.total_cmp(&b.1))?;
    (whole > 0.0 && sum / whole >= FEELING_MIN).then_some(name)
}

fn mood(turns: &[Turn]) -> Option<String> {
    let mood = turns.iter().rev().find_map(|turn| turn.emotion.as_ref()?.mood.as_ref())?;
    let side = if mood.valence > SIDE {
        "positive"
    } else if mood.valence < -SIDE {
        "negative"
    } else {
        "even"
    };
    Some(format!("mood {side}"))
}

fn colour(turns: &[Turn]) -> Option<String> {
    let palette =
        turns.iter().rev().find_map(|turn| Some(&turn.synesthesia.as_ref()?.palette).filter(|p| !p.is_empty()))?;
    let main = palette.iter().max_by(|a, b| a.weight.total_cmp(&b.weight))?;
    let main = Oklab::from_color(srgb(&main.colour)?);
    let away = |[r, g, b]: [u8; 3]| {
        let other = Oklab::from_color(Srgb::new(r, g, b).into_format::<f32>());
        (main.l - other.l).powi(2) + (main.a - other.a).powi(2) + (main.b - other.b).powi(2)
    };
    let nearest = COLOURS.iter().min_by(|a, b| away(a.1).total_cmp(&away(b.1)))?;
    Some(format!("colour {}", nearest.0))
}

/// The words of highest weight: how often and how lately they were said, by how much the table of vectors has them tell.
fn telling(turns: &[Turn], words: &WordVectors) -> Vec<String> {
    let mut sums: Vec<(String, f64)> = Vec::new();
    let mut add = |word: String, weight: f64| match sums.iter_mut().find(|(known, _)| *known == word) {
        Some((_, sum)) => *sum += weight,
        None => sums.push((word, weight)),
    };
    for (turn, weight) in weighed(turns) {
        content(&turn.text).for_each(|word| add(word, weight));
    }
    let room = turns.iter().rev().find_map(|turn| turn.memory.as_ref()?.locus.as_ref());
    let room = room.filter(|locus| !locus.sensitive).map(|locus| locus.name.as_str()).unwrap_or_default();
    content(room).for_each(|word| add(word, ROOM));
    for (word, sum) in &mut sums {
        *sum *= f64::from(words.weight(word)).powi(2);
    }
    sums.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    sums.into_iter().take(WORDS).map(|(word, _)| word).collect()
}

/// Words of plain letters that may tell something, in lower case.
fn content(text: &str) -> impl Iterator<Item = String> + '_ {
    let words = text.split(|c: char| !c.is_alphabetic() && c != '\'' && c != '’');
    let words =
        words.map(|word| word.chars().filter(|c| c.is_alphabetic()).flat_map(char::to_lowercase).collect::<String>());
    words.filter(|word| {
        word.len() >= LETTERS_MIN
            && word.bytes().all(|b| b.is_ascii_lowercase())
            && !STOP.split_whitespace().any(|s| s == word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(text: &str) -> Turn {
        Turn::message("s", "c", "p", "1", text, 0)
    }

    #[test]
    fn plain_words_that_tell_something_are_read() {
        let found: Vec<String> = content("I don't want the Garden’s roses, naïve GARDEN: 12 tea").collect();
        assert_eq!(found, ["gardens", "roses", "garden"]);
    }

    #[test]
    fn the_newest_turn_decides_whether_there_is_a_dream() {
        let at = |position, flags: &[&str]| Turn {
            position: Some(position),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
            ..turn("x")
        };
        let (flagged, free) = (at(1, &[SELF_HARM_WORDS]), at(2, &["other"]));
        assert!(!is_refused(&[]) && !is_refused(&[flagged.clone(), free.clone()]));
        assert!(is_refused(&[at(3, &[SELF_HARM_WORDS]), free, flagged]));
    }

    #[test]
    fn a_palette_has_the_nearest_name() {
        let mut with = turn("x");
        assert_eq!(colour(std::slice::from_ref(&with)), None);
        let example: Turn =
            serde_json::from_str(include_str!("../../../schemas/avro/examples/turn.json")).expect("it is one");
        with.synesthesia = example.synesthesia;
        let palette = &mut with.synesthesia.as_mut().expect("the example has one").palette;
        palette.truncate(1);
        for (hex, name) in [("#b02030", "red"), ("#f0f0ff", "white"), ("#2050c0", "blue"), ("#6b4a2b", "brown")] {
            with.synesthesia.as_mut().expect("still").palette[0].colour = hex.to_owned();
            assert_eq!(colour(std::slice::from_ref(&with)), Some(format!("colour {name}")));
        }
    }
}
