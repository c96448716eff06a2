//! What streams are told when the server goes down: to come back, and when, each at another moment, so that whoever takes
//! over is not met by all of them at once.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use serde_json::json;

use crate::Config;
use crate::session::Message;

/// When one stream shall come back.
pub(crate) fn retry_of(config: &Config) -> Duration {
    retry(config, RandomState::new().hash_one(()))
}

/// Between the usual wait and that much more, by the random number.
fn retry(config: &Config, random: u64) -> Duration {
    let share = random as f64 / u64::MAX as f64;
    config.retry + config.reconnect_spread.mul_f64(share)
}

/// The typed event before the end.
pub(crate) fn message(retry: Duration, resume: String) -> Message {
    let retry_ms = u64::try_from(retry.as_millis()).unwrap_or(u64::MAX);
    let text = json!({ "type": "reconnect", "reason": "going_down", "retry_ms": retry_ms, "resume": resume });
    Message { kind: "reconnect", text: text.to_string(), resume: Some(resume), onward: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_spread_from_the_usual_wait_on() {
        let (retry_min, reconnect_spread) = (Duration::from_secs(1), Duration::from_secs(4));
        let config = Config { retry: retry_min, reconnect_spread, ..Config::default() };
        assert_eq!(retry(&config, 0), Duration::from_secs(1));
        assert_eq!(retry(&config, u64::MAX), Duration::from_secs(5));
        assert_eq!(retry(&config, u64::MAX / 2).as_secs(), 3);
        let waits: std::collections::BTreeSet<_> = (0..64).map(|_| retry_of(&config)).collect();
        assert!(waits.len() > 32, "each has its own: {waits:?}");
    }
}
