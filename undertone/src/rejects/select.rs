//! Which rejects are meant. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemas::time;
use store::log::Place;
use uuid::Uuid;

use super::Found;

/// Which rejects are meant: all that fit every condition. An empty list asks for nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    /// One of these places or ids.
    pub which: Vec<Which>,
    /// One of these reasons.
    pub reasons: Vec<String>,
    /// Rejected by one of these: `ingest`, `processors`, `history`.
    pub stages: Vec<String>,
    /// Come from one of these topics.
    pub topics: Vec<String>,
    /// Come from one of these sources.
    pub sources: Vec<String>,
    /// Rejected at or after this time, in milliseconds since the Unix epoch.
    pub since: Option<i64>,
    /// Rejected before this time, in milliseconds since the Unix epoch.
    pub until: Option<i64>,
}

/// One reject by its place, or those of one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// Its place in the topic of rejects.
    At(Place),
    /// Its id.
    Id(Uuid),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Which, String> {
        if let Ok(id) = text.parse::<Uuid>() {
            return Ok(Which::Id(id));
        }
        let place = text.split_once(':').and_then(|(partition, offset)| {
            Some(Place { partition: partition.parse().ok()?, offset: offset.parse().ok()? })
        });
        let counted = place.filter(|place| place.partition >= 0 && place.offset >= 0);
        counted.map(Which::At).ok_or_else(|| {
            "give PARTITION:OFFSET as `undertone rejects list` shows it, such as 3:17, or an id".to_owned()
        })
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::At(place) => write!(f, "{}:{}", place.partition, place.offset),
            Which::Id(id) => id.fmt(f),
        }
    }
}

impl Which {
    /// Whether this is the reject that is named.
    pub fn names(&self, found: &Found) -> bool {
        match self {
            Which::At(place) => *place == found.place,
            Which::Id(id) => *id == found.reject.id,
        }
    }
}

/// What the rejects say of themselves that were read: tells a word that nothing has from one that nothing has now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    reasons: BTreeSet<String>,
    stages: BTreeSet<String>,
    topics: BTreeSet<String>,
    sources: BTreeSet<String>,
}

impl Seen {
    /// Takes in one of them.
    pub(super) fn note(&mut self, found: &Found) {
        let reject = &found.reject;
        let note = |seen: &mut BTreeSet<String>, word: Option<&String>| {
            if let Some(word) = word.filter(|word| !seen.contains(*word)) {
                seen.insert(word.clone());
            }
        };
        note(&mut self.reasons, Some(&reject.reason));
        note(&mut self.stages, Some(&reject.stage));
        note(&mut self.topics, reject.topic.as_ref());
        note(&mut self.sources, reject.source.as_ref());
    }
}

impl Selection {
    /// A sentence for each word of the conditions that no reject has, with those that there are.
    pub fn unknown(&self, seen: &Seen) -> Vec<String> {
        let conditions = [
            ("reason", &self.reasons, &seen.reasons),
            ("stage", &self.stages, &seen.stages),
            ("topic", &self.topics, &seen.topics),
            ("source", &self.sources, &seen.sources),
        ];
        let told = |(what, wanted, seen): (&str, &Vec<String>, &BTreeSet<String>)| {
            let all: Vec<&str> = seen.iter().map(String::as_str).collect();
            let there = if all.is_empty() { "none".to_owned() } else { all.join(", ") };
            let missing = wanted.iter().filter(|word| !seen.contains(*word));
            missing.map(|word| format!("no reject has the {what} {word:?}; there are: {there}")).collect::<Vec<_>>()
        };
        conditions.into_iter().flat_map(told).collect()
    }

    /// Whether this reject is meant.
    pub fn takes(&self, found: &Found) -> bool {
        let reject = &found.reject;
        let one_of = |wanted: &[String], have: Option<&str>| {
            wanted.is_empty() || have.is_some_and(|have| wanted.iter().any(|wanted| wanted == have))
        };
        (self.which.is_empty() || self.which.iter().any(|which| which.names(found)))
            && one_of(&self.reasons, Some(&reject.reason))
            && one_of(&self.stages, Some(&reject.stage))
            && one_of(&self.topics, reject.topic.as_deref())
            && one_of(&self.sources, reject.source.as_deref())
            && self.since.is_none_or(|since| reject.at >= since)
            && self.until.is_none_or(|until| reject.at < until)
    }
}

/// A moment as people write it: RFC 3339, or how long ago (`90s`, `30m`, `2h`, `7d`). In milliseconds since the Unix
/// epoch, as is `now`.
///
/// # Errors
/// It is neither; the text says what is taken.
pub fn moment(text: &str, now: i64) -> Result<i64, String> {
    if let Some(at) = time::milliseconds(text) {
        return Ok(at);
    }
    let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
    let seconds = match unit {
        "s" => Some(1),
        "m" => Some(60),
        "h" => Some(60 * 60),
        "d" => Some(24 * 60 * 60),
        _ => None,
    };
    let ago = seconds.and_then(|seconds| number.parse::<u32>().ok().map(|number| i64::from(number) * seconds * 1000));
    ago.map(|ago| now - ago)
        .ok_or_else(|| format!("{text:?} is no time: give RFC 3339 such as 2026-01-31T09:30:00Z, or 30m, 2h, 7d ago"))
}

#[cfg(test)]
pub(super) mod tests {
    use schemas::Reject;

    use super::*;

    pub(in crate::rejects) fn found() -> Found {
        let reject: Reject = serde_json::from_str(include_str!("../../../schemas/avro/examples/reject.json")).unwrap();
        Found { place: Place { partition: 3, offset: 17 }, headers: Vec::new(), reject, redriven: None }
    }

    #[test]
    fn a_selection_takes_what_fits_all_its_conditions() {
        let found = found();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let all = Selection::default();
        let at = found.reject.at;
        for (selection, takes) in [
            (all.clone(), true),
            (Selection { reasons: words(&["oversized", "unknown_kind"]), ..all.clone() }, true),
            (Selection { reasons: words(&["oversized"]), ..all.clone() }, false),
            (Selection { stages: words(&["ingest"]), sources: words(&["telegram"]), ..all.clone() }, true),
            (Selection { stages: words(&["processors"]), ..all.clone() }, false),
            (Selection { topics: words(&["undertone.turns.received.v1"]), ..all.clone() }, false),
            (Selection { since: Some(at), until: Some(at + 1), ..all.clone() }, true),
            (Selection { since: Some(at + 1), ..all.clone() }, false),
            (Selection { until: Some(at), ..all.clone() }, false),
            (Selection { which: vec!["3:17".parse().unwrap()], ..all.clone() }, true),
            (Selection { which: vec!["3:18".parse().unwrap()], ..all.clone() }, false),
            (Selection { which: vec![found.reject.id.to_string().parse().unwrap()], ..all.clone() }, true),
        ] {
            assert_eq!(selection.takes(&found), takes, "{selection:?}");
        }
        for wrong in ["17", "3:", ":17", "-1:17", "3:-17", "3:17:1"] {
            assert!(wrong.parse::<Which>().is_err(), "{wrong}");
        }
        assert_eq!("3:17".parse::<Which>().unwrap().to_string(), "3:17");
    }

    #[test]
    fn a_word_that_no_reject_has_is_told_with_those_that_there_are() {
        let mut seen = Seen::default();
        let selection = Selection {
            reasons: vec!["unknwon_kind".to_owned(), "unknown_kind".to_owned()],
            topics: vec!["undertone.turns.received.v1".to_owned()],
            ..Selection::default()
        };
        assert_eq!(selection.unknown(&seen).len(), 3, "nothing was rejected yet");
        seen.note(&found());
        assert_eq!(
            selection.unknown(&seen),
            [
                "no reject has the reason \"unknwon_kind\"; there are: unknown_kind",
                "no reject has the topic \"undertone.turns.received.v1\"; there are: none",
            ]
        );
        assert!(Selection::default().unknown(&seen).is_empty());
    }

    #[test]
    fn moments_are_times_or_how_long_ago() {
        let now = 1_700_000_000_000;
        assert_eq!(moment("2023-11-14T22:13:20Z", 0), Ok(now));
        assert_eq!(moment("90s", now), Ok(now - 90_000));
        assert_eq!(moment("7d", now), Ok(now - 7 * 86_400_000));
        for wrong in ["", "soon", "7", "-1h", "1.5h", "h", "7 d", "7ä"] {
            assert!(moment(wrong, now).is_err(), "{wrong}");
        }
    }
}
