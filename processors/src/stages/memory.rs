//! Stage `memory`: what of a turn is worth remembering, and its place in the palace that the conversation builds.
//!
//! Promises: no call of a language model; rooms are grown from the conversation's own subjects, one turn after another; a
//! place, once given, never changes, and neither does where a room stands on the map. Bounded: [`ROOMS_MAX`] rooms at
//! most, of each [`TERMS_MAX`] words; when all are built, a turn goes to the nearest. The stage only emits parts: the history keeps what
//! `keep` says. Vectors of different models are never held against each other: with another model the rooms stand, and
//! are told apart by their words until their vectors are known again. Leaves out: how memories are found (`recall`).

use std::num::NonZeroUsize;
use std::sync::Arc;

use foldhash::HashMap;
use schemas::slice::{MemorySlice, Room, Weighed};
use schemas::{Embedding, Locus, Memory, Turn};

use super::{is_foreign, note, reason};
use crate::model::Models;
use crate::model::coherence::steps;
use crate::model::memory::{Rooms, Said};
use crate::recall::model_of;
use crate::stage::{Failure, Stage};
use crate::wide::wide;

/// Rooms of a palace.
pub const ROOMS_MAX: usize = 24;
/// Words that are kept of a room, and of what was said lately.
pub const TERMS_MAX: usize = 24;
/// Words of a room's name.
const NAME_WORDS: usize = 2;
/// Words of a room that decide whether it is sensitive: those of its name, and those that stand next.
const SENSITIVE_WORDS: usize = 4;
/// What a word must weigh to count among those that a room has.
const PRESENT: f32 = 0.5;

const NAME: &str = "memory";
/// Texts that a core looks at together, so that starting a thread is worth it.
const GRAIN: NonZeroUsize = NonZeroUsize::new(64).expect("it is not zero");

/// The stage.
#[derive(Debug)]
pub struct Memories {
    models: Arc<Models>,
}

impl Memories {
    /// The stage on loaded models.
    pub fn new(models: Arc<Models>) -> Memories {
        Memories { models }
    }

    /// The part before the fold gives it a place, or why there is none.
    fn part(&self, turn: &Turn) -> Result<Memory, &'static str> {
        let Some(encoding) = &turn.encoding else {
            let empty = turn.skipped.iter().any(|skipped| skipped.reason == reason::EMPTY_TEXT);
            return Err(if empty { reason::EMPTY_TEXT } else { reason::NO_ENCODING });
        };
        if is_foreign(encoding) {
            return Err(reason::UNSUPPORTED_LANGUAGE);
        }
        let model = self.models.memory();
        let Said { terms, salience, keep } = model.said(&turn.text);
        Ok(Memory { provenance: model.provenance(encoding.provenance.tier), salience, keep, terms, locus: None })
    }
}

impl Stage for Memories {
    type Slice = MemorySlice;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, turns: &mut [Turn]) -> Result<(), Failure> {
        let parts = self.models.cores().map(&*turns, GRAIN, |turn| self.part(turn));
        for (turn, part) in turns.iter_mut().zip(parts) {
            note(turn, NAME, part.as_ref().err().copied());
            turn.memory = part.ok();
        }
        Ok(())
    }

    fn fold(&self, slice: &mut MemorySlice, turn: &mut Turn) -> Result<(), Failure> {
        let (Some(encoding), Some(part)) = (&turn.encoding, &mut turn.memory) else { return Ok(()) };
        let model = self.models.memory();
        let name = model_of(encoding);
        if slice.model != name {
            slice.model = name;
            slice.direction.clear();
            slice.rooms.iter_mut().for_each(|room| room.centroid = None);
        }
        let lower = model.lower(&turn.text);
        let terms: Vec<(&str, &str)> = part.terms.iter().map(String::as_str).zip(model.words(&lower)).collect();
        let recipe = model.rooms(encoding.provenance.tier);
        let segment = turn.coherence.as_ref().and_then(|part| part.segment);
        let settled = recipe.free > 0 && segment.is_some_and(|segment| segment.turns > recipe.free);
        if segment.is_some_and(|segment| segment.turns == 1) {
            // What was said before is about something else: it must not hold the talk where it was.
            slice.direction.clear();
            slice.lately.clear();
        }
        let room = enter(slice, recipe, model.rooms_max(), settled, &encoding.embedding, &terms);
        part.locus = part.keep.then(|| {
            slice.rooms[room].places = slice.rooms[room].places.saturating_add(1);
            let named = named(&slice.rooms, room);
            let sensitive = named.iter().any(|word| model.is_sensitive(word.term()));
            let name = named.iter().take(NAME_WORDS).map(|word| word.word.as_str()).collect::<Vec<_>>().join(" and ");
            let Room { number, places: place, x, y, .. } = slice.rooms[room];
            Locus { room: number, name, place, x, y, sensitive }
        });
        Ok(())
    }
}

/// Takes a turn into the slice; the place of its room in `slice.rooms`. A talk that is `settled` stays where it is.
fn enter(
    slice: &mut MemorySlice,
    recipe: &Rooms,
    rooms_max: usize,
    settled: bool,
    vector: &Embedding,
    terms: &[(&str, &str)],
) -> usize {
    slice.turns += 1;
    let distinct = distinct(terms);
    follow(&mut slice.direction, recipe.decay, vector);
    follow_words(&mut slice.lately, recipe.decay, &distinct);
    let now = slice.rooms.iter().position(|room| room.number == slice.room);
    let thin = distinct.len() < recipe.thin;
    let room = match now {
        Some(now) if thin || settled => now,
        _ => {
            let likeness = likeness(slice, recipe, now);
            let best = (0..likeness.len()).max_by(|a, b| likeness[*a].total_cmp(&likeness[*b]).then(b.cmp(a)));
            match best {
                Some(best) if likeness[best] >= recipe.new || slice.rooms.len() >= rooms_max => best,
                // The room that is nearest among those that are not near enough is its neighbour on the map.
                best => build(&mut slice.rooms, best),
            }
        }
    };
    if now != Some(room) {
        // What was said in the room before says nothing of this one.
        slice.direction.clear();
        slice.lately.clear();
        follow(&mut slice.direction, recipe.decay, vector);
        follow_words(&mut slice.lately, recipe.decay, &distinct);
        slice.room = slice.rooms[room].number;
        slice.rooms[room].at = slice.turns;
    }
    let entered = &mut slice.rooms[room];
    let mut centroid: Vec<f32> = entered.centroid.as_ref().map_or_else(Vec::new, |c| c.components().collect());
    follow(&mut centroid, recipe.room_decay, vector);
    entered.centroid = (!centroid.is_empty()).then(|| Embedding::quantise(&centroid));
    follow_words(&mut entered.terms, recipe.room_decay, &distinct);
    room
}

/// How like each room is what was said lately.
fn likeness(slice: &MemorySlice, recipe: &Rooms, now: Option<usize>) -> Vec<f32> {
    let rooms = &slice.rooms;
    let lately: HashMap<u32, usize> = slice.lately.iter().map(Weighed::key).zip(0..).collect();
    let mut holders: Vec<Vec<usize>> = vec![Vec::new(); slice.lately.len()];
    for (place, room) in rooms.iter().enumerate() {
        let present = room.terms.iter().filter(|word| word.weight >= PRESENT);
        let said = present.filter_map(|word| Some((word, *lately.get(&word.key())?)));
        let said = said.filter(|(word, said)| slice.lately[*said].term() == word.term());
        said.for_each(|(_, said)| holders[said].push(place));
    }
    let (mut shared, mut all) = (vec![0.0; rooms.len()], 0.0);
    for (word, holders) in slice.lately.iter().zip(&holders) {
        // A word that many rooms have says little of where one is.
        let weight = word.weight / (2.0 + holders.len() as f32).ln();
        all += weight;
        holders.iter().for_each(|room| shared[*room] += weight);
    }
    let length = slice.direction.iter().map(|x| x * x).sum::<f32>().sqrt();
    rooms
        .iter()
        .enumerate()
        .map(|(place, room)| {
            let near = room.centroid.as_ref().map_or(0.0, |centroid| cosine(&slice.direction, length, centroid));
            let stay = if now == Some(place) { recipe.stay } else { 0.0 };
            near + recipe.words * if all > 0.0 { shared[place] / all } else { 0.0 } + stay
        })
        .collect()
}

/// The cosine of a direction of this length with a vector as it travels; of another number of components, 0.
fn cosine(direction: &[f32], length: f32, centroid: &Embedding) -> f32 {
    if direction.len() != centroid.values.len() {
        return 0.0;
    }
    // The scale is in the product and in the length alike.
    let lengths = length * (steps(&centroid.values, &centroid.values) as f32).sqrt();
    if lengths > 0.0 && centroid.scale > 0.0 { along(direction, &centroid.values) / lengths } else { 0.0 }
}

/// Decays a sum of vectors and adds one; of another length, the sum begins with it.
fn follow(sum: &mut Vec<f32>, decay: f32, vector: &Embedding) {
    if sum.len() != vector.values.len() {
        *sum = vec![0.0; vector.values.len()];
    }
    blend(sum, decay, &vector.values, vector.scale);
}

/// Sums that run side by side.
const LANES: usize = 16;

wide! {
    /// The product of a vector with one in steps, in [`LANES`] sums that are then added up in order.
    fn along(direction: &[f32], steps: &[u8]) -> f32 {
        let mut sums = [0f32; LANES];
        let mut place = 0;
        while place + LANES <= direction.len() {
            let (direction, steps) = (&direction[place..place + LANES], &steps[place..place + LANES]);
            let mut i = 0;
            while i < LANES {
                sums[i] += direction[i] * f32::from(steps[i] as i8);
                i += 1;
            }
            place += LANES;
        }
        while place < direction.len() {
            sums[place % LANES] += direction[place] * f32::from(steps[place] as i8);
            place += 1;
        }
        sums.iter().sum()
    }

    /// Decays a sum and adds a vector in steps of `scale`.
    fn blend(sum: &mut [f32], decay: f32, steps: &[u8], scale: f32) {
        let mut place = 0;
        while place < sum.len() && place < steps.len() {
            sum[place] = sum[place] * decay + f32::from(steps[place] as i8) * scale;
            place += 1;
        }
    }
}

/// A content word of a turn.
struct Term<'t> {
    key: u32,
    term: &'t str,
    /// As it is said.
    word: &'t str,
}

/// Decays words and adds those of a turn; the heaviest [`TERMS_MAX`] stay, of equal ones the earlier.
fn follow_words(words: &mut Vec<Weighed>, decay: f32, terms: &[Term<'_>]) {
    words.iter_mut().for_each(|word| word.weight *= decay);
    for Term { key, term, word } in terms {
        match words.iter_mut().find(|known| known.is(*key, term)) {
            Some(known) => {
                known.weight += 1.0;
                (*word).clone_into(&mut known.word);
            }
            None => words.push(Weighed::said(term, word)),
        }
    }
    words.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    words.truncate(TERMS_MAX);
}

/// The first of each stem.
fn distinct<'t>(terms: &[(&'t str, &'t str)]) -> Vec<Term<'t>> {
    let mut found: Vec<Term<'_>> = Vec::with_capacity(terms.len().min(TERMS_MAX));
    for (term, word) in terms {
        let key = Weighed::key_of(term);
        if found.len() < TERMS_MAX && !found.iter().any(|known| known.key == key && known.term == *term) {
            found.push(Term { key, term, word });
        }
    }
    found
}

/// Builds a room on the free place that is nearest to its neighbour's; its place in `rooms`.
fn build(rooms: &mut Vec<Room>, neighbour: Option<usize>) -> usize {
    let (x, y) = neighbour.map_or((0, 0), |neighbour| (rooms[neighbour].x, rooms[neighbour].y));
    let taken = |x: i32, y: i32| rooms.iter().any(|room| (room.x, room.y) == (x, y));
    // A square of more places than there are rooms has a free one; what is nearer than that is within twice its reach.
    let square = (1..).find(|reach: &i32| (2 * reach + 1).pow(2) > rooms.len() as i32).unwrap_or(1);
    let reach = 2 * square;
    let around = (-reach..=reach).flat_map(|dx| (-reach..=reach).map(move |dy| (dx, dy)));
    let free = around.filter(|(dx, dy)| !taken(x + dx, y + dy));
    let (dx, dy) = free.min_by_key(|(dx, dy)| (dx * dx + dy * dy, -dx, -dy)).unwrap_or_default();
    let number = rooms.last().map_or(1, |last| last.number + 1);
    rooms.push(Room { number, x: x + dx, y: y + dy, places: 0, at: 0, centroid: None, terms: Vec::new() });
    rooms.len() - 1
}

/// The words that a room is called by, and those that stand next: heavy there, and light elsewhere.
fn named(rooms: &[Room], room: usize) -> Vec<&Weighed> {
    let words = &rooms[room].terms;
    let own: HashMap<u32, usize> = words.iter().map(Weighed::key).zip(0..).collect();
    let mut elsewhere = vec![0f32; words.len()];
    let others = rooms.iter().enumerate().filter(|(place, _)| *place != room).flat_map(|(_, other)| &other.terms);
    for other in others {
        if let Some(word) = own.get(&other.key()).filter(|word| words[**word].term() == other.term()) {
            elsewhere[*word] += 1.0;
        }
    }
    let mut best: Vec<(&Weighed, f32)> = Vec::with_capacity(SENSITIVE_WORDS + 1);
    for (word, elsewhere) in words.iter().zip(elsewhere) {
        // The heaviest stand first: what weighs less than those that are chosen cannot be chosen any more.
        if best.len() == SENSITIVE_WORDS && best[SENSITIVE_WORDS - 1].1 >= word.weight {
            break;
        }
        best.push((word, word.weight / (1.0 + elsewhere)));
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        best.truncate(SENSITIVE_WORDS);
    }
    best.into_iter().map(|(word, _)| word).collect()
}

#[cfg(test)]
mod tests;
