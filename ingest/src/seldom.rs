//! What an operator should see in the log, and not once for every call: each thing once a minute, with the number of
//! those that went unsaid. The table is bounded, whoever calls.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a thing that was said is not said again.
const EVERY: Duration = Duration::from_secs(60);
/// Most things that are remembered; beyond, only those of the last minute are, and new ones go unsaid.
const THINGS_MAX: usize = 1024;

/// Remembers what was said when.
#[derive(Debug, Default)]
pub(crate) struct Seldom {
    said: Mutex<HashMap<(String, String), Said>>,
}

#[derive(Debug)]
struct Said {
    at: Instant,
    unsaid: u64,
}

impl Seldom {
    /// Whether to say `what` of `bot` now: `Some` with how often it happened unsaid since the last time.
    pub(crate) fn due(&self, what: &str, bot: &str, now: Instant) -> Option<u64> {
        // The table is whole whatever happened to a thread that held it.
        let mut said = self.said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let thing = (what.to_owned(), bot.to_owned());
        if let Some(last) = said.get_mut(&thing) {
            if now.saturating_duration_since(last.at) < EVERY {
                last.unsaid += 1;
                return None;
            }
            last.at = now;
            return Some(std::mem::take(&mut last.unsaid));
        }
        if said.len() >= THINGS_MAX {
            said.retain(|_, last| now.saturating_duration_since(last.at) < EVERY);
        }
        if said.len() >= THINGS_MAX {
            return None;
        }
        said.insert(thing, Said { at: now, unsaid: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_said_once_a_minute_with_how_often_it_went_unsaid() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.due("wrong secret", "helper", now), Some(0));
        assert_eq!(seldom.due("wrong secret", "helper", now), None);
        assert_eq!(seldom.due("wrong secret", "helper", now + EVERY / 2), None);
        assert_eq!(seldom.due("wrong secret", "other", now), Some(0), "every bot by itself");
        assert_eq!(seldom.due("invalid", "helper", now), Some(0), "every thing by itself");
        assert_eq!(seldom.due("wrong secret", "helper", now + EVERY), Some(2));
        assert_eq!(seldom.due("wrong secret", "helper", now + EVERY), None);
    }

    #[test]
    fn the_table_is_bounded_and_makes_room() {
        let (seldom, now) = (Seldom::default(), Instant::now());
        for n in 0..THINGS_MAX {
            assert_eq!(seldom.due("thing", &n.to_string(), now), Some(0));
        }
        assert_eq!(seldom.due("thing", "one more", now), None);
        assert_eq!(seldom.due("thing", "one more", now + EVERY), Some(0));
    }
}
