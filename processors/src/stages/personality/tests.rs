//! Whom the stage profiles, and what it keeps of them.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schemas::{Codec, Consent, Sender, Tier};

use super::super::tests::models;
use super::super::{Emotions, Encode};
use super::*;

fn said(sender: &str, bot: bool, text: &str, tier: Tier) -> Turn {
    let sender = Some(Sender { id: sender.to_owned(), name: None, bot });
    Turn { sender, tier: Some(tier), ..Turn::message("websocket", "room", "ann", "1", text, 1000) }
}

fn consents(sender: &str, granted: bool) -> Turn {
    let consent = Some(Consent { granted, text_version: "2026-01".to_owned() });
    Turn { consent, kind: "consent".to_owned(), ..said(sender, false, "", Tier::Fast) }
}

/// A conversation through the stages that this one builds on.
fn run(turns: Vec<Turn>) -> (Vec<Turn>, PersonalitySlice) {
    let mut turns = turns;
    let stage = Personalities::new(Arc::clone(models()));
    Encode::new(Arc::clone(models())).infer(&mut turns).unwrap();
    Emotions::new(Arc::clone(models())).infer(&mut turns).unwrap();
    stage.infer(&mut turns).unwrap();
    let mut slice = PersonalitySlice::default();
    for turn in &mut turns {
        stage.fold(&mut slice, turn).unwrap();
    }
    (turns, slice)
}

fn why(turn: &Turn) -> Option<&str> {
    turn.skipped.iter().find(|skipped| skipped.stage == NAME).map(|skipped| skipped.reason.as_str())
}

const WORDS: &str = "I think that the people here are wonderful, and we talk about music every day.";

#[test]
fn nobody_is_profiled_until_they_consent_and_nothing_of_them_is_kept() {
    for tier in [Tier::Full, Tier::Fast] {
        let (turns, slice) = run(vec![said("ann", false, WORDS, tier)]);
        assert_eq!((turns[0].personality.as_ref(), why(&turns[0])), (None, Some(reason::NO_CONSENT)));
        assert_eq!(slice, PersonalitySlice::default());
    }
}

#[test]
fn consent_counts_for_its_sender_alone_and_ends_with_all_that_was_gathered() {
    let speak = |who| said(who, false, WORDS, Tier::Fast);
    let (turns, slice) = run(vec![
        speak("ann"),
        consents("ann", true),
        speak("ben"),
        speak("ann"),
        consents("ben", false),
        speak("ann"),
    ]);
    let reasons: Vec<_> = turns.iter().map(why).collect();
    let (silent, empty) = (Some(reason::NO_CONSENT), Some(reason::EMPTY_TEXT));
    assert_eq!(reasons, [silent, empty, silent, None, empty, None]);
    let part = turns[5].personality.as_ref().unwrap();
    assert_eq!((part.evidence.words, part.words, part.not_enough, part.traits), (15, 30, true, None));
    assert!(part.style.is_some());
    let [ann] = &slice.persons[..] else { panic!("{slice:?}") };
    assert_eq!((ann.sender.as_str(), ann.consented_at, ann.text_version.as_str()), ("ann", 1000, "2026-01"));
    let (turns, slice) = run(vec![consents("ann", true), speak("ann"), consents("ann", false), speak("ann")]);
    assert_eq!((why(&turns[3]), slice), (silent, PersonalitySlice::default()));
    let (turns, slice) = run(vec![consents("ann", true), speak("ann"), consents("ann", true), speak("ann")]);
    assert_eq!(
        (turns[3].personality.as_ref().unwrap().words, slice.persons.len()),
        (30, 1),
        "once more keeps the sums"
    );
}

#[test]
fn nobody_is_adapted_to_under_the_flag_of_self_harm() {
    let flagged = Turn { flags: vec![SELF_HARM_WORDS.to_owned()], ..said("ann", false, WORDS, Tier::Fast) };
    let free = said("ann", false, WORDS, Tier::Fast);
    let (turns, _) = run(vec![consents("ann", true), flagged, free]);
    let style = |turn: &Turn| turn.personality.as_ref().map(|part| (part.words, part.style.is_some()));
    assert_eq!([style(&turns[1]), style(&turns[2])], [Some((15, false)), Some((30, true))]);
}

#[test]
fn bots_and_the_nameless_cannot_consent() {
    let mut bot = consents("helper", true);
    bot.sender.as_mut().unwrap().bot = true;
    let nameless = Turn { sender: None, ..consents("", true) };
    let (turns, slice) = run(vec![
        bot,
        nameless,
        said("helper", true, WORDS, Tier::Fast),
        Turn { sender: None, ..said("", false, WORDS, Tier::Fast) },
    ]);
    assert_eq!([why(&turns[2]), why(&turns[3])], [Some(reason::NO_PERSON); 2]);
    assert_eq!(slice, PersonalitySlice::default());
}

#[test]
fn traits_come_with_enough_words_and_the_interval_narrows() {
    for tier in [Tier::Full, Tier::Fast] {
        let mut turns = vec![consents("ann", true)];
        turns.extend((0..60).map(|_| said("ann", false, WORDS, tier)));
        let (turns, _) = run(turns);
        let parts: Vec<_> = turns.iter().filter_map(|turn| turn.personality.as_ref()).collect();
        assert!(
            parts
                .iter()
                .all(|part| part.not_enough == (part.words < WORDS_MIN) && part.not_enough == part.traits.is_none())
        );
        let width = |part: &Personality| part.traits.unwrap().to_array().map(|e| e.high - e.low);
        let (first, last) = (parts.iter().find(|part| !part.not_enough).unwrap(), parts.last().unwrap());
        assert!(width(first).iter().zip(width(last)).all(|(first, last)| *first > last && last > 0.0));
    }
}

#[test]
fn the_longest_silent_make_room_for_who_consents() {
    let mut slice = PersonalitySlice::default();
    for number in 0..=PERSONS_MAX {
        if number == PERSONS_MAX {
            spoke(&mut slice, "0").unwrap();
        }
        consent(&mut slice, &consents(&number.to_string(), true));
    }
    let known = |sender: &str| slice.persons.iter().any(|person| person.sender == sender);
    assert_eq!((slice.persons.len(), known("0"), known("1"), known("2")), (PERSONS_MAX, true, false, true));
}

#[test]
fn a_full_slice_is_small() {
    let sums = Statistics {
        model: "m".repeat(40),
        sums: vec![0.1; SCORES],
        squares: vec![0.1; SCORES],
        ..Statistics::default()
    };
    let sender = "s".repeat(128);
    let person = Person { sender, consented_at: 1, text_version: "v".repeat(64), statistics: vec![sums; MODELS_MAX] };
    let bytes = Codec::embedded().encode(&PersonalitySlice { persons: vec![person; PERSONS_MAX] }).unwrap();
    assert!(bytes.len() < 80_000, "{}", bytes.len());
}

#[test]
fn sums_of_several_conversations_are_those_of_one() {
    let mut random = StdRng::seed_from_u64(8);
    for _ in 0..200 {
        // Eighths add up without rounding, so that equality may be asked for.
        let turns: Vec<Evidence> = (0..random.random_range(1..20))
            .map(|_| Evidence {
                words: random.random_range(0..200),
                scores: (0..SCORES).map(|_| random.random_range(-64i8..64) as f32 / 8.0).collect(),
            })
            .collect();
        let sum = |turns: &[Evidence]| {
            let mut sum = Statistics::default();
            turns.iter().for_each(|evidence| sum.add(&Statistics::of(evidence)));
            sum
        };
        let (one, other) = turns.split_at(random.random_range(0..turns.len()));
        for (one, other) in [(one, other), (other, one)] {
            let mut both = sum(one);
            both.add(&sum(other));
            assert_eq!(both, sum(&turns));
        }
    }
}

#[test]
fn scores_are_those_of_the_training_code() {
    #[derive(serde::Deserialize)]
    struct Golden {
        text: String,
        words: i32,
        scores: Vec<f32>,
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/golden/personality.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows: Vec<Golden> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut turns: Vec<Turn> = rows.iter().map(|row| said("ann", false, &row.text, Tier::Fast)).collect();
    Encode::new(Arc::clone(models())).infer(&mut turns).unwrap();
    Personalities::new(Arc::clone(models())).infer(&mut turns).unwrap();
    let mut served = 0;
    for (turn, row) in turns.iter().zip(&rows) {
        let Some(part) = &turn.personality else { continue };
        served += 1;
        assert_eq!(part.evidence.words, row.words, "{:?}", row.text);
        for (found, expected) in part.evidence.scores.iter().zip(&row.scores) {
            assert!(
                (found - expected).abs() <= 2e-3 * expected.abs().max(1.0),
                "{found} for {expected}: {:?}",
                row.text
            );
        }
    }
    assert!(served > 450, "only {served} of {} texts were served", rows.len());
}
