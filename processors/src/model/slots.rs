//! Values that the words give: a linear-chain model over hashed features of words (`models/dialogue/FORMAT.md`).
//!
//! Promises: a pure function of the text and of the names that were given before; the work is bounded by [`PIECES_MAX`];
//! what is found is in the order of the words and does not overlap. Leaves out: whether a value is true.

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;

use super::card::Family;
use super::ngram::{BUCKETS, Hash, Kind, bucket, kind};
use super::tensors::Tensors;
use crate::stage::Failure;

/// Pieces that are read of a text.
pub const PIECES_MAX: usize = 256;
/// Most names of values: they are written as one byte.
const LABELS_MAX: usize = 128;
/// Texts of at most so many pieces are also known by the shape of the whole.
const WHOLE_MAX: usize = 6;
/// Digits from which on a number's length counts no further.
const DIGITS_MAX: usize = 12;
/// Letters from which on a word's length counts no further.
const LETTERS_MAX: usize = 3;
/// A text's length in pieces counts up to here.
const LENGTH_MAX: usize = 8;
/// What no value is called.
const OUTSIDE: usize = 0;

const LABELS: &str = "slots.json";
const WEIGHTS: &str = "slots.safetensors";
const DICTIONARY: &str = "slots.dictionary.json";

/// A value that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<'a> {
    /// What it is.
    pub name: &'a str,
    /// Where it begins and ends in the text, in bytes.
    pub start: usize,
    /// As `start`.
    pub end: usize,
    /// The least probability of its pieces, each by itself.
    pub probability: f32,
}

/// A run of letters or of digits, in lower case, without the signs in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// As the model reads it.
    pub text: String,
    is_number: bool,
    /// Where it begins in the text, in bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

/// The pieces of a text: what the model reads, as its training texts were written.
pub fn pieces(text: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    let mut open = false;
    for (start, c) in text.char_indices() {
        match kind(c) {
            Kind::Space => open = false,
            Kind::Word if c != '\'' => {
                let is_number = c.is_ascii_digit();
                if !open || pieces.last().is_some_and(|piece| piece.is_number != is_number) {
                    if pieces.len() == PIECES_MAX {
                        break;
                    }
                    pieces.push(Piece { text: String::new(), is_number, start, end: start });
                    open = true;
                }
                if let Some(piece) = pieces.last_mut() {
                    piece.text.extend(c.to_lowercase());
                    piece.end = start + c.len_utf8();
                }
            }
            Kind::Drop | Kind::Symbol | Kind::Word => {}
        }
    }
    pieces
}

/// A domain: a kind of conversation, with the names of the values that it knows.
#[derive(Debug)]
struct Domain {
    /// The labels, [`OUTSIDE`] first.
    labels: Vec<usize>,
    /// From label to label, as it is and as a factor.
    transition: Vec<f32>,
    factor: Vec<f32>,
    /// At the first piece and at the last one.
    first: Vec<f32>,
    last: Vec<f32>,
}

/// The model.
#[derive(Debug)]
pub struct Tagger {
    labels: Vec<String>,
    domains: BTreeMap<String, Domain>,
    /// The row of a bucket.
    rows: HashMap<u32, u32>,
    /// Where the weights of each row begin, and where those of the last one end.
    start: Vec<u32>,
    label: Vec<u8>,
    step: Vec<i8>,
    /// One step of each label.
    scale: Vec<f32>,
}

#[derive(Deserialize)]
struct Names {
    labels: Vec<String>,
    domains: BTreeMap<String, Vec<String>>,
}

impl Tagger {
    /// Reads the model.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub(super) fn open(family: &Family) -> Result<Tagger, Failure> {
        let Names { labels, domains } =
            serde_json::from_slice(&family.read(LABELS)?).map_err(|e| family.failure(LABELS, e))?;
        if labels.is_empty() || labels.len() > LABELS_MAX {
            return Err(family.failure(LABELS, format!("has {} labels, expected 1 to {LABELS_MAX}", labels.len())));
        }
        let bytes = family.read(WEIGHTS)?;
        let tensors = Tensors::open(family, WEIGHTS, &bytes)?;
        let (rows, weights, count) = (tensors.rows("bucket")?, tensors.rows("step")?, labels.len());
        let start = tensors.numbers("start", &[rows + 1], weights + 1)?;
        let label: Vec<u8> = tensors.bytes("label", &[weights])?.into_iter().map(|label| label as u8).collect();
        if !start.is_sorted() || label.iter().any(|label| usize::from(*label) >= count) {
            return Err(family.failure(WEIGHTS, "has weights of labels that there are not, or rows out of order"));
        }
        let whole = tensors.floats("transition", &[count, count])?;
        let (first, last) = (tensors.floats("first", &[count])?, tensors.floats("last", &[count])?);
        let domain = |names: &Vec<String>| {
            let place = |name: &String| labels.iter().position(|label| label == name);
            let known: Option<Vec<usize>> = names.iter().map(place).collect();
            let known = known.ok_or_else(|| family.failure(LABELS, "has a domain with a name that is no label"))?;
            let known: Vec<usize> = std::iter::once(OUTSIDE).chain(known).collect();
            let pairs = known.iter().flat_map(|from| known.iter().map(move |to| (*from, *to)));
            let transition: Vec<f32> = pairs.map(|(from, to)| whole[from * count + to]).collect();
            let pick = |values: &[f32]| known.iter().map(|label| values[*label]).collect();
            Ok(Domain {
                factor: transition.iter().map(|x| x.exp()).collect(),
                transition,
                first: pick(&first),
                last: pick(&last),
                labels: known,
            })
        };
        let domains = domains.iter().map(|(name, names)| Ok((name.clone(), domain(names)?)));
        Ok(Tagger {
            domains: domains.collect::<Result<_, Failure>>()?,
            rows: tensors.numbers("bucket", &[rows], BUCKETS)?.into_iter().zip(0..).collect(),
            start,
            label,
            step: tensors.bytes("step", &[weights])?,
            scale: tensors.floats("scale", &[count])?,
            labels,
        })
    }

    /// The domains that it knows.
    pub fn domains(&self) -> Vec<&str> {
        self.domains.keys().map(String::as_str).collect()
    }

    /// The values in a text of a domain, where values of these names were `given` before, the newest last; `None`: there
    /// is no such domain.
    pub fn find(&self, domain: &str, text: &str, given: &[&str]) -> Option<Vec<Found<'_>>> {
        let pieces = pieces(text);
        let (labels, probabilities) = self.tag(domain, &pieces, given)?;
        let mut found: Vec<Found<'_>> = Vec::new();
        let mut before = OUTSIDE;
        for ((piece, label), probability) in pieces.iter().zip(labels).zip(probabilities) {
            match found.last_mut() {
                Some(last) if label == before && label != OUTSIDE => {
                    last.end = piece.end;
                    last.probability = last.probability.min(probability);
                }
                _ if label != OUTSIDE => {
                    let name = self.labels[label].as_str();
                    found.push(Found { name, start: piece.start, end: piece.end, probability });
                }
                _ => {}
            }
            before = label;
        }
        Some(found)
    }

    /// The label of each piece on the best path, and its probability.
    fn tag(&self, domain: &str, pieces: &[Piece], given: &[&str]) -> Option<(Vec<usize>, Vec<f32>)> {
        let of = self.domains.get(domain)?;
        if pieces.is_empty() {
            return Some((Vec::new(), Vec::new()));
        }
        let emissions = self.emissions(domain, of, pieces, given);
        let path = of.best(&emissions);
        let probabilities = of.probabilities(&emissions, &path);
        Some((path.into_iter().map(|state| of.labels[state]).collect(), probabilities))
    }

    /// What the features of each piece say for each label of the domain.
    fn emissions(&self, domain: &str, of: &Domain, pieces: &[Piece], given: &[&str]) -> Vec<Vec<f32>> {
        let features = Features::of(domain, pieces, given);
        let mut steps = vec![0i32; self.labels.len()];
        let emission = |place: usize| {
            steps.fill(0);
            features.of_piece(place, |bucket| {
                if let Some(row) = self.rows.get(&bucket) {
                    let row = *row as usize;
                    for w in self.start[row] as usize..self.start[row + 1] as usize {
                        steps[usize::from(self.label[w])] += i32::from(self.step[w]);
                    }
                }
            });
            of.labels.iter().map(|label| steps[*label] as f32 * self.scale[*label]).collect()
        };
        (0..pieces.len()).map(emission).collect()
    }
}

impl Domain {
    /// The states of the best path (Viterbi); of equal ones the first.
    fn best(&self, emissions: &[Vec<f32>]) -> Vec<usize> {
        let states = self.labels.len();
        let mut score: Vec<f32> = (0..states).map(|s| self.first[s] + emissions[0][s]).collect();
        let mut came: Vec<Vec<usize>> = Vec::with_capacity(emissions.len());
        for emission in &emissions[1..] {
            let from = |to: usize| {
                let scores = (0..states).map(|from| score[from] + self.transition[from * states + to]);
                scores.enumerate().fold((0, f32::NEG_INFINITY), |best, (s, x)| if x > best.1 { (s, x) } else { best })
            };
            let best: Vec<(usize, f32)> = (0..states).map(from).collect();
            score = best.iter().zip(emission).map(|((_, score), emission)| score + emission).collect();
            came.push(best.into_iter().map(|(from, _)| from).collect());
        }
        let ended = (0..states).map(|s| score[s] + self.last[s]).enumerate();
        let mut state = ended.fold((0, f32::NEG_INFINITY), |best, (s, x)| if x > best.1 { (s, x) } else { best }).0;
        let mut path = vec![state];
        for came in came.iter().rev() {
            state = came[state];
            path.push(state);
        }
        path.reverse();
        path
    }

    /// The probability of each piece's state by itself (forward and backward, each step scaled to a sum of one).
    fn probabilities(&self, emissions: &[Vec<f32>], path: &[usize]) -> Vec<f32> {
        let states = self.labels.len();
        let scaled = |mut x: Vec<f32>| {
            let sum: f32 = x.iter().sum();
            x.iter_mut().for_each(|x| *x /= sum.max(f32::MIN_POSITIVE));
            x
        };
        let weigh = |emission: &[f32]| {
            let largest = emission.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            emission.iter().map(|x| (x - largest).exp()).collect::<Vec<f32>>()
        };
        let weights: Vec<Vec<f32>> = emissions.iter().map(|emission| weigh(emission)).collect();
        let mut forward: Vec<Vec<f32>> = Vec::with_capacity(weights.len());
        for (place, weight) in weights.iter().enumerate() {
            let reach = |to: usize| match place {
                0 => self.first[to].exp(),
                _ => (0..states).map(|from| forward[place - 1][from] * self.factor[from * states + to]).sum(),
            };
            forward.push(scaled((0..states).map(|to| reach(to) * weight[to]).collect()));
        }
        let mut backward: Vec<f32> = self.last.iter().map(|x| x.exp()).collect();
        let mut probabilities = vec![0f32; path.len()];
        for place in (0..path.len()).rev() {
            let together = scaled((0..states).map(|s| forward[place][s] * backward[s]).collect());
            probabilities[place] = together[path[place]];
            let ahead: Vec<f32> = (0..states).map(|s| backward[s] * weights[place][s]).collect();
            let back = |from: usize| (0..states).map(|to| self.factor[from * states + to] * ahead[to]).sum();
            backward = scaled((0..states).map(back).collect());
        }
        probabilities
    }
}

/// What the model sees of a text: `models/train/slots.py` is the same definition.
struct Features<'a> {
    domain: Hash,
    pieces: &'a [Piece],
    shapes: Vec<String>,
    /// The shapes of a short text.
    whole: String,
    given: &'a [&'a str],
    /// The names given, in the order of the alphabet.
    all: String,
}

impl<'a> Features<'a> {
    fn of(domain: &str, pieces: &'a [Piece], given: &'a [&'a str]) -> Features<'a> {
        let shape = |piece: &Piece| {
            let length = piece.text.chars().count();
            if piece.is_number {
                format!("d{}", length.min(DIGITS_MAX))
            } else {
                format!("a{}", length.min(LETTERS_MAX))
            }
        };
        let shapes: Vec<String> = pieces.iter().map(shape).collect();
        let mut all = given.to_vec();
        all.sort_unstable();
        Features {
            domain: Hash::new(b'D').and_all(domain),
            pieces,
            whole: if pieces.len() <= WHOLE_MAX { shapes.join(" ") } else { "n".to_owned() },
            shapes,
            given,
            all: all.join(" "),
        }
    }

    /// The buckets of a piece's features.
    fn of_piece(&self, place: usize, mut met: impl FnMut(u32)) {
        let count = self.pieces.len();
        let near = |texts: &dyn Fn(usize) -> &'a str, step: isize| match place.checked_add_signed(step) {
            None => "^",
            Some(place) if place >= count => "$",
            Some(place) => texts(place),
        };
        let pieces = self.pieces;
        let word = |step: isize| near(&|place| pieces[place].text.as_str(), step);
        let (piece, shape) = (self.pieces[place].text.as_str(), self.shapes[place].as_str());
        let shape_at = |step: isize| match place.checked_add_signed(step) {
            None => "^",
            Some(place) if place >= count => "$",
            Some(place) => self.shapes[place].as_str(),
        };
        let mut take = |hash: Hash| met(bucket(hash));
        let pair = |hash: Hash, a: &str, b: &str| hash.and_all(a).and(b' ').and_all(b);
        take(Hash::new(b'0').and_all(piece));
        for (tag, step) in [(b'1', -1), (b'2', 1), (b'3', -2), (b'4', 2)] {
            take(Hash::new(tag).and_all(word(step)));
        }
        take(pair(Hash::new(b'5'), word(-1), piece));
        take(pair(Hash::new(b'6'), piece, word(1)));
        for (tag, length) in [(b'p', 1), (b'q', 2), (b'r', 3)] {
            take(Hash::new(tag).and_all(head(piece, length)));
        }
        for (tag, length) in [(b's', 1), (b't', 2), (b'u', 3), (b'v', 4)] {
            take(Hash::new(tag).and_all(tail(piece, length)));
        }
        take(pair(pair(Hash::new(b'h'), shape_at(-1), shape), "", shape_at(1)));
        take(Hash::new(b'i').and_all(shape));
        take(pair(Hash::new(b'j'), word(-2), word(-1)));
        take(pair(Hash::new(b'k'), word(1), word(2)));
        let of = self.domain;
        take(of.and(b'a'));
        take(of.and(b'A').and_all(piece));
        take(of.and(b'B').and_all(shape));
        take(of.and(b'C').and_all(&self.whole));
        take(pair(of.and(b'E'), word(-1), shape));
        take(pair(of.and(b'F'), shape, word(1)));
        take(of.and(b'G').and(b'0' + count.min(LENGTH_MAX) as u8));
        let (first, last) = (if place == 0 { "f" } else { "" }, if place + 1 == count { "l" } else { "" });
        take(of.and(b'H').and_all(first).and_all(last));
        let newest = self.given.last().copied().unwrap_or("-");
        take(pair(of.and(b'L').and_all(newest), "", shape));
        take(pair(of.and(b'M').and_all(newest), "", &self.whole));
        take(of.and(b'N').and_all(newest));
        for name in self.given {
            take(pair(of.and(b'P'), name, shape));
        }
        take(pair(of.and(b'Q'), &self.all, shape));
    }
}

/// The first characters.
fn head(text: &str, length: usize) -> &str {
    text.char_indices().nth(length).map_or(text, |(end, _)| &text[..end])
}

/// The last characters.
fn tail(text: &str, length: usize) -> &str {
    text.char_indices().rev().nth(length - 1).map_or(text, |(start, _)| &text[start..])
}

/// The simple model beside: values that stood in the training texts, digits as zeros, the longest first.
#[derive(Debug, Deserialize)]
pub struct Dictionary(BTreeMap<String, HashMap<String, String>>);

impl Dictionary {
    /// Reads it.
    ///
    /// # Errors
    /// [`Failure::Model`].
    pub(super) fn open(family: &Family) -> Result<Dictionary, Failure> {
        serde_json::from_slice(&family.read(DICTIONARY)?).map_err(|e| family.failure(DICTIONARY, e))
    }

    /// Names of values with where they begin and end, in bytes.
    pub fn find(&self, domain: &str, text: &str) -> Vec<(&str, usize, usize)> {
        let pieces = pieces(text);
        let Some(known) = self.0.get(domain) else { return Vec::new() };
        let key = |piece: &Piece| if piece.is_number { "0".repeat(piece.text.len()) } else { piece.text.clone() };
        let keys: Vec<String> = pieces.iter().map(key).collect();
        let (mut found, mut place) = (Vec::new(), 0);
        while place < pieces.len() {
            let ends = (place + 1..=pieces.len().min(place + WHOLE_MAX)).rev();
            let value = ends.filter_map(|end| Some((end, known.get(&keys[place..end].join(" "))?))).next();
            if let Some((end, name)) = value {
                found.push((name.as_str(), pieces[place].start, pieces[end - 1].end));
                place = end;
            } else {
                place += 1;
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<(String, &str)> {
        pieces(text).into_iter().map(|piece| (piece.text, &text[piece.start..piece.end])).collect()
    }

    #[test]
    fn pieces_are_written_as_in_the_training_texts_and_lie_where_they_were() {
        let expected = [("it", "It"), ("is", "is"), ("nivika", "Nivika"), ("45", "45"), ("gmailcom", "gmail.com")];
        assert_eq!(read("It is Nivika45@gmail.com!"), expected.map(|(a, b)| (a.to_owned(), b)));
        assert_eq!(read(" 9/20/18 • "), [("92018".to_owned(), "9/20/18")]);
        assert_eq!(read("\u{200b} ... 'tis"), [("tis".to_owned(), "tis")]);
        assert_eq!(pieces(&"a ".repeat(10_000)).len(), PIECES_MAX);
    }

    /// Two labels beside none: everything is computed over all paths.
    #[test]
    fn the_best_path_and_the_probabilities_are_those_of_all_paths() {
        let domain = |transition: Vec<f32>| Domain {
            labels: vec![0, 1, 2],
            factor: transition.iter().map(|x| x.exp()).collect(),
            transition,
            first: vec![0.3, -0.2, 0.1],
            last: vec![0.0, 0.4, -0.3],
        };
        let domain = domain(vec![0.5, -1.0, 0.2, -0.3, 1.5, -2.0, 0.1, 0.0, 0.7]);
        let emissions = vec![vec![0.1, 0.9, 0.3], vec![0.4, 0.2, 1.1], vec![-0.5, 0.8, 0.6]];
        let score = |path: [usize; 3]| {
            let steps: f32 = path.windows(2).map(|p| domain.transition[p[0] * 3 + p[1]]).sum();
            let said: f32 = path.iter().zip(&emissions).map(|(s, e)| e[*s]).sum();
            domain.first[path[0]] + steps + said + domain.last[path[2]]
        };
        let paths = (0..27).map(|i| [i / 9, i / 3 % 3, i % 3]);
        let best = paths.clone().max_by(|a, b| score(*a).total_cmp(&score(*b))).unwrap();
        assert_eq!(domain.best(&emissions), best);
        let total: f32 = paths.clone().map(|p| score(p).exp()).sum();
        for (place, found) in domain.probabilities(&emissions, &best).into_iter().enumerate() {
            let same = paths.clone().filter(|p| p[place] == best[place]);
            let expected = same.map(|p| score(p).exp()).sum::<f32>() / total;
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }

    #[test]
    fn ends_of_words_are_counted_in_characters() {
        assert_eq!((head("über", 2), tail("über", 4), tail("café", 1), head("a", 3)), ("üb", "über", "é", "a"));
    }
}
