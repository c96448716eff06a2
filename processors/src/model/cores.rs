//! Work spread over the cores that models may use.
//!
//! Promises: results come back in the order of the items; all callers together use at most the given number of cores
//! beside their own threads, so that two pipelines and their partitions do not fight for the processor; a lone item
//! runs on the caller's thread at once. Leaves out: priorities.

use std::num::NonZeroUsize;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// The cores that models may use at once.
#[derive(Debug)]
pub struct Cores {
    /// Helpers that may still be started: one core is always the caller's own.
    spare: AtomicUsize,
    count: usize,
}

impl Cores {
    /// `count` cores, at least one.
    pub fn new(count: usize) -> Cores {
        let count = count.max(1);
        Cores { spare: AtomicUsize::new(count - 1), count }
    }

    /// How many cores there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// `work` of every item, in order. A helper is started for each further `grain` items, as long as cores are spare.
    pub fn map<T: Sync, R: Send>(&self, items: &[T], grain: NonZeroUsize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
        let chunks = items.len().div_ceil(grain.get());
        let helpers = Helpers::take(&self.spare, chunks.saturating_sub(1));
        if helpers.count == 0 {
            return items.iter().map(work).collect();
        }
        let next = AtomicUsize::new(0);
        let run = || {
            let mut done = Vec::new();
            loop {
                let chunk = next.fetch_add(1, Ordering::Relaxed);
                if chunk >= chunks {
                    return done;
                }
                let start = chunk * grain.get();
                let end = items.len().min(start + grain.get());
                done.push((chunk, items[start..end].iter().map(&work).collect::<Vec<R>>()));
            }
        };
        let mut done: Vec<(usize, Vec<R>)> = thread::scope(|scope| {
            let started: Vec<_> = (0..helpers.count).map(|_| scope.spawn(run)).collect();
            let mut done = run();
            done.extend(started.into_iter().flat_map(|helper| joined(helper.join())));
            done
        });
        done.sort_unstable_by_key(|(chunk, _)| *chunk);
        done.into_iter().flat_map(|(_, results)| results).collect()
    }
}

/// What a thread returned; its panic goes on here.
pub(crate) fn joined<R>(result: thread::Result<R>) -> R {
    result.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Helpers taken from the spare ones; they go back when this is dropped, also by a panic.
struct Helpers<'a> {
    spare: &'a AtomicUsize,
    count: usize,
}

impl Helpers<'_> {
    fn take(spare: &AtomicUsize, wanted: usize) -> Helpers<'_> {
        let mut count = 0;
        // The closure always returns a value, so the update cannot fail.
        let _ = spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| {
            count = free.min(wanted);
            Some(free - count)
        });
        Helpers { spare, count }
    }
}

impl Drop for Helpers<'_> {
    fn drop(&mut self) {
        self.spare.fetch_add(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order_of_the_items() {
        let cores = Cores::new(4);
        let items: Vec<usize> = (0..1000).collect();
        for grain in [1, 7, 999, 1000, 5000] {
            let grain = NonZeroUsize::new(grain).unwrap();
            assert_eq!(cores.map(&items, grain, |i| i * 2), items.iter().map(|i| i * 2).collect::<Vec<_>>());
        }
        assert_eq!(cores.map(&[] as &[usize], NonZeroUsize::MIN, |i| *i), Vec::<usize>::new());
    }

    #[test]
    fn a_panic_gives_its_cores_back() {
        let cores = Cores::new(3);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cores.map(&[1, 2, 3, 4], NonZeroUsize::MIN, |i| assert_ne!(*i, 3));
        }));
        assert!(result.is_err());
        assert_eq!(cores.spare.load(Ordering::Relaxed), 2);
    }
}
