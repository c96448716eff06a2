//! Task `dreams`: verse held out, and dreams beside it.
//!
//! `bits_per_char`: −log2 of the probability of each line and its end, from the start token alone, unsteered, over the
//! vocabulary's own cut of the line, by Unicode characters with the newline. Of [`DREAMS`] dreams (seed [`SEED`]):
//! `copy_6gram`, the share of their word 6-grams, lower case, line breaks ignored, that stand in the training lines (only where
//! those are given); `distinct_2`, the share of word pairs that were not there before; `characters_per_second` on one core.
//! `relevance` (only where conversations are given): share of dreams nearer, by the tier's encoder, to their own conversation than
//! to nine others. The baseline: frequencies of single pieces for the bits, the data's own lines in stanzas for the rest, cut
//! to as many words for `distinct_2`. Units of the intervals: the line, the dream, the conversation. A pair counts as new by
//! the order in which the dreams come, in every resample.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use schemas::{Provenance, Stamp, Turn};

use super::bootstrap::SplitMix64;
use super::coherence::Line as Talk;
use super::{Baseline, Case, EvalError, Figure, Report, Task, bootstrap, lines, turn};
use crate::chain::Chain;
use crate::dreams::blocked::BlockList;
use crate::dreams::dreamer::Dreamer;
use crate::dreams::sampler::Wishes;
use crate::dreams::wishes;
use crate::model::coherence::cosine;
use crate::stage::{Failure, Stage as _};
use crate::stages::{self, Encode};

const FORMAT: &str = "the data are lines of verse, as they stand";
const TALKS: &str = "a line of --conversations is a JSON object with `turns` or `m`, as for coherence";
const DREAMS: usize = 1000;
const SEED: u64 = 1;
/// Words that are compared with the training lines at a time.
const GRAM: usize = 6;
/// Lines of real verse that stand beside a dream.
const STANZA: usize = 4;
/// Conversations that a dream is held against, its own among them.
const HELD_AGAINST: usize = 10;
/// Turns of a conversation that count.
const TALK_TURNS: usize = 12;
const GRAIN: NonZeroUsize = NonZeroUsize::new(8).expect("it is not zero");

/// The task.
pub(super) struct DreamsTask;

impl Task for DreamsTask {
    fn name(&self) -> &'static str {
        "dreams"
    }

    fn rows(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("bits_per_char", "bits a character      ↓"),
            ("copy_6gram", "copied 6-grams        ↓"),
            ("distinct_2", "distinct pairs        ↑"),
            ("relevance", "relevance, of ten     ↑"),
            ("characters_per_second", "characters/s, one core↑"),
        ]
    }

    fn run(&self, case: &Case<'_>) -> Result<Report, EvalError> {
        let text = String::from_utf8_lossy(case.data);
        let verse: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
        if verse.is_empty() {
            return Err(EvalError::Empty { format: FORMAT });
        }
        let (models, library) = case.models.places();
        let cores = case.models.cores();
        let dreamer = Dreamer::open(models, library, cores.count(), BlockList::default())?;
        let start = Instant::now();
        let bits = cores.map(&verse, GRAIN, |line| dreamer.bits(line)).into_iter().collect::<Result<Vec<_>, _>>()?;
        let time = start.elapsed();
        let characters: Vec<f64> = verse.iter().map(|line| line.chars().count() as f64 + 1.0).collect();
        let per_character = |which: usize| {
            bootstrap::figures(&["bits_per_char"], verse.len(), |times| {
                let (mut sum, mut whole) = (0.0, 0.0);
                for ((times, bits), characters) in times.iter().zip(&bits).zip(&characters) {
                    sum += f64::from(*times) * bits[which];
                    whole += f64::from(*times) * characters;
                }
                [sum / whole]
            })
        };
        let (mut ours, mut theirs) = (per_character(0), per_character(1));
        let (dreams, speed) = dreams(&dreamer, case)?;
        ours.extend(speed);
        let real: Vec<Vec<String>> = stanzas(&verse).iter().map(|stanza| words(stanza)).collect();
        let made: Vec<Vec<String>> = dreams.iter().map(|dream| words(dream)).collect();
        let training = String::from_utf8_lossy(&case.choices.training);
        if !training.is_empty() {
            let found = found(&training, made.iter().chain(&real));
            ours.extend(copied(&made, &found));
            theirs.extend(copied(&real, &found));
        }
        ours.extend(distinct(&made));
        let size: usize = made.iter().map(Vec::len).sum();
        let mut so_far = 0;
        let fitting = real
            .iter()
            .take_while(|words| {
                so_far += words.len();
                so_far <= size
            })
            .cloned();
        theirs.extend(distinct(&fitting.collect::<Vec<_>>()));
        if !case.choices.conversations.is_empty() {
            ours.extend(relevance(&dreamer, case)?);
            theirs.insert("relevance".to_owned(), Figure { value: 0.1, low: 0.1, high: 0.1 });
        }
        let name = "single pieces by frequency; the data's own verse; chance".to_owned();
        let Provenance { model, version, .. } = dreamer.provenance();
        let provenance = Provenance { model, version, tier: case.tier };
        Ok(case.report(self, verse.len(), &provenance, ours, Baseline { name, metrics: theirs }, time))
    }
}

type Figures = BTreeMap<String, Figure>;

/// The dreams, unsteered, and how many characters a second one core made.
fn dreams(dreamer: &Dreamer, case: &Case<'_>) -> Result<(Vec<String>, Figures), EvalError> {
    let numbers: Vec<u64> = (0..DREAMS as u64).collect();
    let wishes = Wishes::default();
    let one = |number: &u64| {
        let start = Instant::now();
        let dream = dreamer.dream(&wishes, SEED, *number)?;
        Ok::<_, Failure>((dream.map(|dream| dream.as_str().to_owned()), start.elapsed().as_secs_f64()))
    };
    let made = case.models.cores().map(&numbers, GRAIN, one).into_iter().collect::<Result<Vec<_>, _>>()?;
    let speed = bootstrap::figures(&["characters_per_second"], made.len(), |times| {
        let characters = |dream: &Option<String>| dream.as_ref().map_or(0.0, |dream| dream.chars().count() as f64);
        let all = made.iter().zip(times);
        let sums = all.fold([0.0; 2], |sum, ((dream, spent), times)| {
            let times = f64::from(*times);
            [sum[0] + times * characters(dream), sum[1] + times * spent]
        });
        [sums[0] / sums[1]]
    });
    Ok((made.into_iter().filter_map(|(dream, _)| dream).collect(), speed))
}

/// Real verse in stanzas, as many as there are dreams, evenly from the data.
fn stanzas(verse: &[&str]) -> Vec<String> {
    let all = (verse.len() / STANZA).max(1);
    let count = all.min(DREAMS);
    (0..count)
        .map(|i| verse.iter().skip(i * all / count * STANZA).take(STANZA).copied().collect::<Vec<_>>().join("\n"))
        .collect()
}

/// Words in lower case: letters, with apostrophes between them.
fn words(text: &str) -> Vec<String> {
    let is_apostrophe = |c: char| matches!(c, '\'' | '’');
    let words =
        text.split(|c: char| !c.is_alphabetic() && !is_apostrophe(c)).map(|word| word.trim_matches(is_apostrophe));
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// FNV-1a.
fn hash(word: &str) -> u64 {
    word.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

fn grams(hashes: &[u64]) -> impl Iterator<Item = u64> + '_ {
    hashes.windows(GRAM).map(|window| {
        window.iter().fold(0, |sum: u64, hash| sum.rotate_left(9).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ hash)
    })
}

/// Of the texts' 6-grams those that stand in the training lines, as hashes.
fn found<'t>(training: &str, texts: impl Iterator<Item = &'t Vec<String>>) -> HashSet<u64> {
    let hashes = |words: &[String]| words.iter().map(|word| hash(word)).collect::<Vec<u64>>();
    let wanted: HashSet<u64> = texts.flat_map(|words| grams(&hashes(words)).collect::<Vec<_>>()).collect();
    let (mut found, mut window) = (HashSet::new(), Vec::new());
    for line in training.lines() {
        // So that a 6-gram may reach over lines.
        window.drain(..window.len().saturating_sub(GRAM - 1));
        window.extend(words(line).iter().map(|word| hash(word)));
        found.extend(grams(&window).filter(|gram| wanted.contains(gram)));
    }
    found
}

fn copied(texts: &[Vec<String>], found: &HashSet<u64>) -> Figures {
    let counts: Vec<[f64; 2]> = texts
        .iter()
        .map(|words| {
            let hashes: Vec<u64> = words.iter().map(|word| hash(word)).collect();
            grams(&hashes).fold([0.0; 2], |n, gram| [n[0] + f64::from(u8::from(found.contains(&gram))), n[1] + 1.0])
        })
        .collect();
    share("copy_6gram", &counts)
}

fn distinct(texts: &[Vec<String>]) -> Figures {
    let mut known = HashSet::new();
    let mut count = |words: &Vec<String>| {
        let new = words.windows(2).filter(|pair| known.insert((pair[0].clone(), pair[1].clone()))).count();
        [new as f64, words.len().saturating_sub(1) as f64]
    };
    share("distinct_2", &texts.iter().map(&mut count).collect::<Vec<_>>())
}

/// The sum of the first over the sum of the second.
fn share(name: &'static str, counts: &[[f64; 2]]) -> Figures {
    bootstrap::figures(&[name], counts.len(), |times| {
        let all = counts.iter().zip(times);
        let sums = all.fold([0.0; 2], |sum, (count, times)| {
            [sum[0] + f64::from(*times) * count[0], sum[1] + f64::from(*times) * count[1]]
        });
        [sums[0] / sums[1].max(1.0)]
    })
}

/// Dreams of conversations, held against their own and others.
fn relevance(dreamer: &Dreamer, case: &Case<'_>) -> Result<Figures, EvalError> {
    let talks = lines(&case.choices.conversations, TALKS, |line: Talk| Ok(line.texts()))?;
    let talks: Vec<Vec<String>> = talks.into_iter().filter(|texts| !texts.is_empty()).take(DREAMS).collect();
    if talks.len() < HELD_AGAINST {
        return Err(EvalError::Choice(format!("{HELD_AGAINST} or more conversations are needed; {TALKS}")));
    }
    let talks: Vec<&[String]> = talks.iter().map(|texts| &texts[texts.len().saturating_sub(TALK_TURNS)..]).collect();
    let chain = Chain::new(stages::all(case.models), true, Arc::new(schemas::Codec::embedded()));
    let mut dreams = Vec::new();
    for (number, texts) in talks.iter().enumerate() {
        let mut turns: Vec<Turn> = texts
            .iter()
            .zip(0u128..)
            .map(|(text, id)| Turn { id: uuid::Uuid::from_u128(id), ..turn(text, case.tier) })
            .collect();
        chain.infer(&mut turns)?;
        let mut conversation = chain.open("eval", HashMap::new())?;
        for (offset, turn) in turns.iter_mut().enumerate() {
            chain.fold(&mut conversation, turn, Stamp { partition: 0, offset: offset as i64 })?;
        }
        let dream = dreamer.dream(&wishes::of(&turns, case.models.words()), SEED, number as u64)?;
        dreams.push(dream.map(|dream| dream.as_str().replace('\n', " ")).unwrap_or_default());
    }
    let mut vectors: Vec<Turn> =
        talks.iter().map(|texts| texts.join(" ")).chain(dreams).map(|text| turn(&text, case.tier)).collect();
    Encode::new(Arc::clone(case.models)).infer(&mut vectors)?;
    let near = |dream: usize, talk: usize| {
        let (dream, talk) = (vectors[talks.len() + dream].encoding.as_ref(), vectors[talk].encoding.as_ref());
        dream.zip(talk).map_or(-1.0, |(dream, talk)| cosine(&dream.embedding, &talk.embedding))
    };
    let mut random = SplitMix64(SEED);
    let won: Vec<[f64; 2]> = (0..talks.len())
        .map(|own| {
            let mut others = HashSet::new();
            while others.len() < HELD_AGAINST - 1 {
                others.insert(random.below(talks.len()));
                others.remove(&own);
            }
            let mine = near(own, own);
            [f64::from(u8::from(others.iter().all(|other| near(own, *other) < mine))), 1.0]
        })
        .collect();
    Ok(share("relevance", &won))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_and_pairs_are_those_that_a_hand_counts() {
        let texts = |lines: &[&str]| lines.iter().map(|line| words(line)).collect::<Vec<_>>();
        let made = texts(&["The sun, the moon\nand all the stars", "O'er hill and dale"]);
        let found = found("And lo! the sun the moon\nand all\nthe rest", made.iter());
        let copied = copied(&made, &found)["copy_6gram"].value;
        assert!((copied - 2.0 / 3.0).abs() < 1e-12, "two of three, over lines: {copied}");
        let distinct = distinct(&texts(&["a b a b", "b a c"]))["distinct_2"].value;
        assert!((distinct - 3.0 / 5.0).abs() < 1e-12, "{distinct}");
    }

    #[test]
    fn stanzas_come_evenly_from_the_data() {
        let verse: Vec<String> = (0..8001).map(|i| i.to_string()).collect();
        let verse: Vec<&str> = verse.iter().map(String::as_str).collect();
        let found = stanzas(&verse);
        assert_eq!((found.len(), found[0].as_str(), found[1].as_str()), (DREAMS, "0\n1\n2\n3", "8\n9\n10\n11"));
        assert_eq!(stanzas(&["a", "b"]), ["a\nb"]);
    }
}
