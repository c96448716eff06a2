//! Short texts recur ("ok", "lol"): what a model says of them is remembered, within bounds.
//!
//! Promises: results are the same with and without, because a model's result is a pure function of the text; bounded by
//! entries and by bytes; each distinct short text of a batch is inferred once. Leaves out: long texts, which hardly recur.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Longest text that is remembered, in bytes.
pub(super) const TEXT_BYTES_MAX: usize = 64;
/// Texts of one generation; two generations are kept.
const ENTRIES_MAX: usize = 4096;
/// Texts and values of one generation, in bytes.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// What a model said of short texts.
#[derive(Debug)]
pub(super) struct Memo<V> {
    generations: Mutex<Generations<V>>,
    /// Size of a value with what it owns, in bytes.
    value_bytes: usize,
}

/// The young generation takes new texts; when it is full it becomes the old one, whose texts are forgotten unless they
/// were asked for in the meantime. So what recurs stays, without a list to keep in order.
#[derive(Debug)]
struct Generations<V> {
    young: HashMap<Box<str>, V>,
    young_bytes: usize,
    old: HashMap<Box<str>, V>,
}

impl<V: Clone> Memo<V> {
    /// An empty memory for values of `value_bytes` bytes each.
    pub(super) fn new(value_bytes: usize) -> Memo<V> {
        let generations = Generations { young: HashMap::new(), young_bytes: 0, old: HashMap::new() };
        Memo { generations: Mutex::new(generations), value_bytes }
    }

    /// The value of every text, in order; `asked` may be more than a text, which is then a part of it. `infer` is given those
    /// with the distinct texts that are not remembered, and returns a value for each.
    ///
    /// # Errors
    /// Those of `infer`; nothing is remembered then.
    pub(super) fn values<'t, T: Copy, E>(
        &self,
        asked: &[T],
        text: impl Fn(T) -> &'t str,
        infer: impl FnOnce(&[T]) -> Result<Vec<V>, E>,
    ) -> Result<Vec<V>, E> {
        let mut values: Vec<Option<V>> = Vec::with_capacity(asked.len());
        let mut missing: Vec<T> = Vec::new();
        let mut places: Vec<usize> = Vec::with_capacity(asked.len());
        let mut place_of: HashMap<&str, usize> = HashMap::new();
        {
            let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
            for one in asked {
                let text = text(*one);
                let short = text.len() <= TEXT_BYTES_MAX;
                let known = if short { generations.get(text, self.value_bytes) } else { None };
                let mut place = missing.len();
                if known.is_none() {
                    if short {
                        place = *place_of.entry(text).or_insert(place);
                    }
                    if place == missing.len() {
                        missing.push(*one);
                    }
                }
                places.push(place);
                values.push(known);
            }
        }
        // Models run without the lock: another batch may infer the same text at the same time, with the same result.
        let inferred = if missing.is_empty() { Vec::new() } else { infer(&missing)? };
        debug_assert_eq!(inferred.len(), missing.len(), "a value for each text");
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = missing.into_iter().map(text).zip(&inferred);
        for (text, value) in missing.filter(|(text, _)| text.len() <= TEXT_BYTES_MAX) {
            generations.put(text.into(), value.clone(), self.value_bytes);
        }
        Ok(values
            .into_iter()
            .zip(places)
            .map(|(known, place)| known.unwrap_or_else(|| inferred[place].clone()))
            .collect())
    }
}

impl<V: Clone> Generations<V> {
    fn get(&mut self, text: &str, value_bytes: usize) -> Option<V> {
        if let Some(value) = self.young.get(text) {
            return Some(value.clone());
        }
        let (text, value) = self.old.remove_entry(text)?;
        self.put(text, value.clone(), value_bytes);
        Some(value)
    }

    fn put(&mut self, text: Box<str>, value: V, value_bytes: usize) {
        let bytes = text.len() + value_bytes;
        if self.young.len() >= ENTRIES_MAX || self.young_bytes + bytes > BYTES_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(text, value).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    fn lengths(memo: &Memo<usize>, texts: &[&str], inferred: &Cell<usize>) -> Vec<usize> {
        let values = memo.values(
            texts,
            |text| text,
            |missing| {
                inferred.set(inferred.get() + missing.len());
                Ok::<_, Infallible>(missing.iter().map(|text| text.len()).collect())
            },
        );
        values.unwrap()
    }

    #[test]
    fn a_short_text_is_inferred_once() {
        let (memo, inferred) = (Memo::new(8), Cell::new(0));
        let long = "x".repeat(TEXT_BYTES_MAX + 1);
        assert_eq!(lengths(&memo, &["ok", "lol", "ok", &long, &long], &inferred), [2, 3, 2, 65, 65]);
        assert_eq!(inferred.get(), 4);
        assert_eq!(lengths(&memo, &["lol", "ok"], &inferred), [3, 2]);
        assert_eq!(inferred.get(), 4);
    }

    #[test]
    fn memory_is_bounded_and_what_recurs_stays() {
        let (memo, inferred) = (Memo::new(8), Cell::new(0));
        for i in 0..5 * ENTRIES_MAX {
            lengths(&memo, &["ok", &i.to_string()], &inferred);
        }
        assert_eq!(inferred.get(), 5 * ENTRIES_MAX + 1, "ok was forgotten");
        let generations = memo.generations.lock().unwrap();
        assert!(generations.young.len() <= ENTRIES_MAX && generations.old.len() <= ENTRIES_MAX);
        drop(generations);
        let (memo, inferred) = (Memo::new(BYTES_MAX / 10), Cell::new(0));
        for i in 0..100 {
            lengths(&memo, &[&i.to_string()], &inferred);
        }
        assert!(memo.generations.lock().unwrap().young.len() <= 10);
    }
}
