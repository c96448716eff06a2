//! Laws of the mood and of what is derived from probabilities.

use schemas::Mood;

use super::*;

fn emotion(valence: f32, intensity: f32) -> Emotion {
    let provenance = schemas::Provenance { model: "m".into(), version: "1".into(), tier: Tier::Full };
    let probabilities = GoEmotions { joy: valence.max(0.0), ..GoEmotions::default() };
    let (ekman, labels) = (probabilities.ekman(), Vec::new());
    Emotion { provenance, probabilities, ekman, labels, valence, arousal: None, dominance: None, intensity, mood: None }
}

fn run(steps: &[(i64, f32)]) -> (EmotionSlice, Mood) {
    let mut slice = EmotionSlice::default();
    let mut last = None;
    for (at, valence) in steps {
        last = Some(mood::fold(&mut slice, *at, &emotion(*valence, valence.abs())));
    }
    (slice, last.unwrap())
}

#[test]
fn first_turn_is_the_mood() {
    let (_, mood) = run(&[(i64::MIN, 0.5)]);
    assert_eq!((mood.valence, mood.intensity, mood.trend, mood.volatility, mood.turns), (0.5, 0.5, 0.0, 0.0, 1));
    assert_eq!(mood.ekman.joy, 0.5);
}

#[test]
fn constant_input_is_a_fixed_point_whatever_the_times() {
    for times in [[0, 0, 0, 0], [0, 1000, 900_000, 1 << 40], [5, 4, 3, 2], [i64::MIN, i64::MAX, i64::MIN, 0]] {
        let (_, mood) = run(&times.map(|at| (at, -0.25)));
        assert!(
            (mood.valence + 0.25).abs() < 1e-6 && mood.trend.abs() < 1e-6 && mood.volatility < 1e-3,
            "{times:?} {mood:?}"
        );
    }
}

#[test]
fn a_half_life_halves_an_old_turn() {
    let (slice, _) = run(&[(0, 1.0), (HALF_LIFE_MS as i64, 0.0)]);
    let expected = (-1.0 - 1.0 / HALF_LIFE_TURNS).exp2();
    assert!((slice.valence - expected).abs() < 1e-12 && (slice.weight - 1.0 - expected).abs() < 1e-12, "{slice:?}");
}

#[test]
fn turns_with_equal_stamps_still_fade() {
    let mut steps = vec![(0, 1.0)];
    steps.extend([(0, -1.0); 32]);
    let (slice, mood) = run(&steps);
    assert!(mood.valence < -0.98, "{mood:?}");
    assert!(slice.weight < 1.0 / (1.0 - (-1.0 / HALF_LIFE_TURNS).exp2()), "the weight is bounded");
}

#[test]
fn time_that_runs_back_is_clamped() {
    let (back, _) = run(&[(1_000_000, 0.5), (400_000, -0.5), (1_000_000, 0.5)]);
    let (still, _) = run(&[(1_000_000, 0.5), (1_000_000, -0.5), (1_000_000, 0.5)]);
    assert_eq!(back, still);
}

#[test]
fn trend_points_where_the_talk_goes() {
    let mut steps = vec![(0, -0.8); 10];
    steps.extend([(0, 0.8); 3]);
    let (_, mood) = run(&steps);
    assert!(mood.trend > 0.2 && mood.volatility > 0.5 && mood.volatility <= 1.0, "{mood:?}");
    let flipped: Vec<_> = steps.iter().map(|(at, v)| (*at, -v)).collect();
    assert!((run(&flipped).1.trend + mood.trend).abs() < 1e-6);
}

#[test]
fn valence_and_intensity_stay_in_their_ranges() {
    let all = |p: f32| GoEmotions::from_array([p; LABELS]);
    for p in [all(0.0), all(1.0), all(0.5)] {
        assert!((-1.0..=1.0).contains(&valence(&p)) && (0.0..=1.0).contains(&intensity(&p)));
    }
    assert_eq!(valence(&GoEmotions { joy: 1.0, ..Default::default() }), 1.0);
    assert_eq!(valence(&GoEmotions { grief: 1.0, ..Default::default() }), -1.0);
    assert_eq!(valence(&GoEmotions { surprise: 1.0, curiosity: 1.0, ..Default::default() }), 0.0);
    assert_eq!(intensity(&GoEmotions { neutral: 1.0, joy: 1.0, ..Default::default() }), 0.0);
    assert_eq!(intensity(&GoEmotions { fear: 1.0, ..Default::default() }), 1.0);
    let ambiguous = ["confusion", "curiosity", "realization", "surprise", "neutral"];
    for (index, label) in GoEmotions::LABELS.into_iter().enumerate() {
        let sides = [POSITIVE[index], NEGATIVE[index], ambiguous.contains(&label)];
        assert_eq!(sides.iter().filter(|s| **s).count(), 1, "{label} is on one side");
    }
}

#[test]
fn labels_are_sorted_and_never_empty() {
    let threshold = [0.5; LABELS];
    let p = GoEmotions { joy: 0.6, love: 0.9, anger: 0.4, ..Default::default() };
    assert_eq!(labels(&p, &threshold), ["love", "joy"]);
    assert_eq!(labels(&GoEmotions::default(), &threshold), ["neutral"]);
}

/// The mood after turns of these probabilities of sadness and joy.
fn turned(turns: &[(f32, f32)]) -> Vec<Option<String>> {
    let mut slice = EmotionSlice::default();
    let mut turning = |(sadness, joy): &(f32, f32)| {
        let probabilities = GoEmotions { sadness: *sadness, joy: *joy, ..GoEmotions::default() };
        let emotion = Emotion { ekman: probabilities.ekman(), probabilities, ..emotion(0.0, 0.0) };
        mood::fold(&mut slice, 0, &emotion).turning
    };
    turns.iter().map(&mut turning).collect()
}

#[test]
fn a_mood_turns_where_distress_comes_and_where_it_goes() {
    let (sad, glad, even) = ((TENSE_MIN, 0.0), (0.0, PLEASANT_MIN), (0.3, 0.3));
    let names = |turns: &[(f32, f32)]| turned(turns).iter().map(|t| t.clone().unwrap_or_default()).collect::<Vec<_>>();
    assert_eq!(names(&[even, sad, even, sad, glad, even, glad]), ["", "escalating", "", "", "relieved", "", ""]);
    assert_eq!(names(&[sad, sad, glad]), ["", "", "relieved"], "the first turn turns nothing");
    assert_eq!(names(&[glad, sad]), ["", "escalating"]);
    assert_eq!(names(&[even, (TENSE_MIN - 0.01, 0.0), (1.0, 1.0)]), ["", "", ""], "both at once are neither");
}

#[test]
fn tension_is_the_recent_mean_of_distress_and_outlives_an_even_turn() {
    let mut slice = EmotionSlice::default();
    let mut after = |sadness: f32| {
        let probabilities = GoEmotions { sadness, annoyance: 1.0, ..GoEmotions::default() };
        let emotion = Emotion { ekman: probabilities.ekman(), probabilities, ..emotion(0.0, 0.0) };
        mood::fold(&mut slice, 0, &emotion).tension
    };
    assert_eq!(after(0.8), 0.8, "annoyance is no distress");
    let (once, twice) = (after(0.0), after(0.0));
    assert!(0.0 < twice && twice < once && once < 0.4, "{once} {twice}");
}
