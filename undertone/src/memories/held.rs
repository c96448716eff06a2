//! What is held ready, bounded in bytes: the longest unused goes first.

use std::collections::HashMap;
use std::sync::Arc;

/// Values by name.
#[derive(Debug)]
pub(super) struct Held<T> {
    bytes_max: usize,
    bytes: usize,
    /// Counts the uses.
    uses: u64,
    values: HashMap<String, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    value: Arc<T>,
    bytes: usize,
    used: u64,
}

impl<T> Held<T> {
    pub(super) fn new(bytes_max: usize) -> Held<T> {
        Held { bytes_max, bytes: 0, uses: 0, values: HashMap::new() }
    }

    pub(super) fn get(&mut self, name: &str) -> Option<Arc<T>> {
        self.uses += 1;
        let entry = self.values.get_mut(name)?;
        entry.used = self.uses;
        Some(Arc::clone(&entry.value))
    }

    /// Holds a value in place of the one of that name, unless it is too large by itself.
    pub(super) fn put(&mut self, name: &str, value: Arc<T>, bytes: usize) {
        self.uses += 1;
        self.remove(name);
        if bytes > self.bytes_max {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some(oldest) = self.values.iter().min_by_key(|(_, entry)| entry.used).map(|(name, _)| name.clone())
            else {
                break;
            };
            self.remove(&oldest);
        }
        self.bytes += bytes;
        self.values.insert(name.to_owned(), Entry { value, bytes, used: self.uses });
    }

    /// Lets go of what is not wanted.
    pub(super) fn retain(&mut self, wanted: impl Fn(&T) -> bool) {
        self.values.retain(|_, entry| wanted(&entry.value));
        self.bytes = self.values.values().map(|entry| entry.bytes).sum();
    }

    fn remove(&mut self, name: &str) {
        if let Some(entry) = self.values.remove(name) {
            self.bytes -= entry.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_unused_goes_and_one_that_is_too_large_is_not_held() {
        let mut held = Held::new(10);
        for name in ["a", "b"] {
            held.put(name, Arc::new(name), 5);
        }
        assert!(held.get("a").is_some());
        held.put("c", Arc::new("c"), 5);
        assert_eq!(["a", "b", "c"].map(|name| held.get(name).is_some()), [true, false, true]);
        held.put("a", Arc::new("again"), 11);
        assert_eq!(["a", "c"].map(|name| held.get(name).is_some()), [false, true]);
        held.put("d", Arc::new("d"), 10);
        assert_eq!(["c", "d"].map(|name| held.get(name).is_some()), [false, true]);
    }
}
