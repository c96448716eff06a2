//! The laws of palettes and sounds, on colours and feelings drawn at random, and the model against its training code.

use ::palette::color_difference::Ciede2000 as _;
use ::palette::{Lab, Okhsl, Srgb};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use schemas::Emotion;

use super::super::tests::models;
use super::super::{Emotions, Encode};
use super::*;

const ROUNDS: usize = 400;

fn seeded() -> StdRng {
    StdRng::seed_from_u64(7)
}

fn any_colour(random: &mut StdRng) -> Oklab {
    Oklab::from_color(Srgb::new(random.random::<u8>(), random.random(), random.random()).into_format::<f32>())
}

fn any_feeling(random: &mut StdRng) -> Feeling {
    Feeling { valence: random.random_range(-1.0..=1.0), arousal: random.random_range(-1.0..=1.0) }
}

fn place<T: AsRef<str>, const N: usize>(steps: &[(T, f32); N], name: &str) -> usize {
    steps.iter().position(|(step, _)| step.as_ref() == name).unwrap()
}

#[test]
fn more_arousal_is_faster_louder_brighter_and_more_saturated() {
    let mut random = seeded();
    for _ in 0..ROUNDS {
        let (colour, calm) = (any_colour(&mut random), any_feeling(&mut random));
        let excited = Feeling { arousal: calm.arousal + 0.01 + 0.5 * random.random::<f32>(), ..calm };
        let saturations = |feeling| palette::palette(colour, feeling).map(|c| Okhsl::from_color(c).saturation);
        let pairs = saturations(&calm).into_iter().zip(saturations(&excited));
        assert!(pairs.into_iter().all(|(calm, excited)| excited > calm), "{colour:?} {calm:?} {excited:?}");
        let (slow, fast) = (sound::sound(&calm), sound::sound(&excited));
        assert!(fast.tempo_bpm > slow.tempo_bpm);
        assert!(place(&DYNAMICS, &fast.dynamics) >= place(&DYNAMICS, &slow.dynamics));
        assert!(place(&TIMBRES, &fast.timbre) >= place(&TIMBRES, &slow.timbre));
        assert_eq!((fast.mode, fast.register), (slow.mode, slow.register), "they are the valence's");
        let (still, moving) = (texture::texture(&calm), texture::texture(&excited));
        assert!(moving.motion > still.motion && moving.density > still.density);
    }
    let range = [-1.0, 1.0].map(|arousal| sound::sound(&Feeling { valence: 0.0, arousal }));
    let [slow, fast] = TEMPO_BPM;
    assert!((range[0].tempo_bpm - slow).abs() < 0.01 && (range[1].tempo_bpm - fast).abs() < 0.01);
    assert_eq!((range[0].dynamics.as_str(), range[1].dynamics.as_str()), ("pp", "ff"));
}

#[test]
fn more_valence_is_a_lighter_palette_a_brighter_mode_and_less_rough() {
    let mut random = seeded();
    for _ in 0..ROUNDS {
        let (colour, sad) = (any_colour(&mut random), any_feeling(&mut random));
        let glad = Feeling { valence: sad.valence + 0.01 + 0.5 * random.random::<f32>(), ..sad };
        let pairs = palette::palette(colour, &sad).into_iter().zip(palette::palette(colour, &glad));
        assert!(pairs.into_iter().all(|(sad, glad)| glad.l > sad.l), "{colour:?} {sad:?} {glad:?}");
        let (dark, bright) = (sound::sound(&sad), sound::sound(&glad));
        assert!(place(&MODES, &bright.mode) >= place(&MODES, &dark.mode) && bright.register >= dark.register);
        assert!((bright.tempo_bpm - dark.tempo_bpm).abs() < 1e-3, "it is the arousal's");
        assert!(texture::texture(&glad).roughness < texture::texture(&sad).roughness);
    }
    let modes = [-1.0, 1.0].map(|valence| sound::sound(&Feeling { valence, arousal: 0.0 }).mode);
    assert_eq!(modes, ["phrygian", "ionian"]);
}

#[test]
fn colours_of_a_palette_stay_in_their_relations_and_apart() {
    let mut random = seeded();
    let mut nearest = f32::MAX;
    for _ in 0..ROUNDS {
        let colours = palette::palette(any_colour(&mut random), &any_feeling(&mut random));
        assert!(colours.iter().all(|c| c.l.is_finite() && c.a.is_finite() && c.b.is_finite()));
        let hues = colours.map(|c| Okhsl::from_color(c).hue);
        for (hue, wanted) in hues.iter().zip([0.0, 32.0, -30.0, 180.0, 12.0]) {
            let turned = ((*hue - hues[0]).into_degrees() - wanted).rem_euclid(360.0);
            assert!(turned.min(360.0 - turned) < 3.0, "{turned} degrees off");
        }
        let swatches = palette::swatches(&colours);
        assert!((swatches.iter().map(|swatch| swatch.weight).sum::<f32>() - 1.0).abs() < 1e-5);
        assert!(swatches.iter().all(|swatch| swatch.weight <= swatches[0].weight), "the heaviest is the first");
        let shown: Vec<Lab> = swatches.iter().map(|s| Lab::from_color(srgb(&s.colour).unwrap())).collect();
        for (index, one) in shown.iter().enumerate() {
            for other in &shown[..index] {
                nearest = nearest.min(one.difference(*other));
            }
        }
    }
    assert!(nearest > 2.0, "two colours of a palette are {nearest} apart by CIEDE2000, and nobody tells them apart");
}

/// Contrast by the words of WCAG 2.1, without the crate that the stage uses.
fn contrast(a: &str, b: &str) -> f64 {
    let luminance = |hex: &str| {
        let part = |at: usize| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()) / 255.0;
        let linear = |x: f64| if x <= 0.04045 { x / 12.92 } else { ((x + 0.055) / 1.055).powf(2.4) };
        0.2126 * linear(part(1)) + 0.7152 * linear(part(3)) + 0.0722 * linear(part(5))
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

#[test]
fn text_is_readable_on_any_ground() {
    let mut random = seeded();
    for _ in 0..ROUNDS * 5 {
        let ground = any_colour(&mut random);
        let (ground, text) = (palette::hex(ground), palette::text_on(ground));
        assert!(contrast(&ground, &text) >= f64::from(CONTRAST_MIN) - 1e-3, "{text} on {ground}");
    }
}

fn turn(number: i64, colour: &str, felt: Option<Feeling>) -> Turn {
    let mut turn = Turn::message("websocket", "room", "ann", &number.to_string(), "words", 1000 * number);
    let provenance = models().colours().provenance(Tier::Fast);
    turn.emotion = felt.map(|felt| Emotion {
        provenance: provenance.clone(),
        probabilities: Default::default(),
        ekman: Default::default(),
        labels: Vec::new(),
        valence: felt.valence,
        arousal: Some(felt.arousal),
        dominance: None,
        intensity: 0.5,
        mood: None,
    });
    turn.synesthesia = Some(Synesthesia {
        provenance,
        colour: colour.to_owned(),
        palette: Vec::new(),
        text_colour: String::new(),
        sound: sound::sound(&Feeling::default()),
        texture: texture::texture(&Feeling::default()),
    });
    turn
}

fn distance(a: &Shade, b: &Shade) -> f32 {
    ((a.lightness - b.lightness).powi(2) + (a.a - b.a).powi(2) + (a.b - b.b).powi(2)).sqrt()
}

#[test]
fn the_palette_of_a_conversation_moves_smoothly_and_arrives() {
    let (mut random, stage) = (seeded(), Synesthesias::new(Arc::clone(models())));
    let mut slice = SynesthesiaSlice::default();
    for number in 0..ROUNDS as i64 {
        let felt = random.random_bool(0.8).then(|| any_feeling(&mut random));
        let mut turn = turn(number, &palette::hex(any_colour(&mut random)), felt);
        let before = slice.clone();
        stage.fold(&mut slice, &mut turn).unwrap();
        for (one, other) in before.palette.iter().zip(&slice.palette) {
            assert!(distance(one, other) <= STEP_MAX + 1e-5, "{one:?} to {other:?}");
        }
        // Folded again from where it stood, as after a loss, it is the same to the bit.
        let (mut again, mut refolded) = (before, turn.clone());
        stage.fold(&mut again, &mut refolded).unwrap();
        assert_eq!((again, refolded), (slice.clone(), turn));
    }
    let felt = Feeling { valence: 0.4, arousal: 0.25 };
    let target = palette::palette(Oklab::from_color(srgb("#2060c0").unwrap()), &Feeling { valence: 0.8, arousal: 0.5 });
    for number in 0..60 {
        stage.fold(&mut slice, &mut turn(number, "#2060c0", Some(felt))).unwrap();
    }
    for (at, target) in slice.palette.iter().zip(target) {
        let target = Shade { lightness: target.l, a: target.a, b: target.b };
        assert!(distance(at, &target) < 0.005, "{at:?} is not at {target:?}");
    }
}

#[test]
fn a_first_turn_has_its_own_palette_and_damage_is_told() {
    let stage = Synesthesias::new(Arc::clone(models()));
    let felt = Feeling { valence: -0.25, arousal: 0.75 };
    let (mut slice, mut first) = (SynesthesiaSlice::default(), turn(0, "#c04020", Some(felt)));
    stage.fold(&mut slice, &mut first).unwrap();
    let stretched = Feeling { valence: -0.5, arousal: 1.0 };
    let own = palette::swatches(&palette::palette(Oklab::from_color(srgb("#c04020").unwrap()), &stretched));
    assert_eq!(first.synesthesia.unwrap().palette, own);
    let mut broken = SynesthesiaSlice { palette: slice.palette[..2].to_vec(), ..slice.clone() };
    let problem = stage.fold(&mut broken, &mut turn(1, "#c04020", None)).unwrap_err().to_string();
    assert!(problem.contains("2 colours are damage") && problem.contains("contexts rebuild"), "{problem}");
    let problem = stage.fold(&mut slice, &mut turn(1, "blue", None)).unwrap_err().to_string();
    assert!(problem.contains("\"blue\" is no colour"), "{problem}");
    for wrong in ["#12345", "123456", "#1234567", "#ggg000", "#+12345", "#é1234"] {
        assert_eq!(srgb(wrong), None, "{wrong}");
    }
}

/// What the stages make of texts, each as the first turn of a conversation.
fn shown(texts: &[&str], tier: Tier) -> Vec<Turn> {
    let message = |text: &&str| Turn { tier: Some(tier), ..Turn::message("eval", "eval", "", "", text, 0) };
    let mut turns: Vec<Turn> = texts.iter().map(message).collect();
    let (encode, emotions) = (Encode::new(Arc::clone(models())), Emotions::new(Arc::clone(models())));
    let stage = Synesthesias::new(Arc::clone(models()));
    encode.infer(&mut turns).unwrap();
    emotions.infer(&mut turns).unwrap();
    stage.infer(&mut turns).unwrap();
    for turn in &mut turns {
        stage.fold(&mut SynesthesiaSlice::default(), turn).unwrap();
    }
    turns
}

#[test]
fn colours_are_those_of_the_training_code_in_any_company() {
    #[derive(serde::Deserialize)]
    struct Golden {
        text: String,
        fast: [f32; 3],
        full: [f32; 3],
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/golden/colours.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let rows: Vec<Golden> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let texts: Vec<&str> = rows.iter().map(|row| row.text.as_str()).collect();
    for tier in [Tier::Fast, Tier::Full] {
        let mut off = 0;
        let turns = shown(&texts, tier);
        for (turn, row) in turns.iter().zip(&rows) {
            let Some(part) = &turn.synesthesia else {
                assert!(turn.encoding.is_none(), "{:?}", row.text);
                continue;
            };
            let [l, a, b] = if tier == Tier::Fast { row.fast } else { row.full };
            let expected =
                Lab::from_color(Srgb::from_color(Lab::new(l, a, b)).into_format::<u8>().into_format::<f32>());
            let away = expected.difference(Lab::from_color(srgb(&part.colour).unwrap()));
            // Another processor's encoder may tip a neighbour of a few names; the fast tier has no such excuse.
            off += usize::from(away > 1.0);
            assert!(away < 1.0 || tier == Tier::Full, "{:?} {} is {away} off", row.text, part.colour);
        }
        assert!(off <= rows.len() / 50, "{off} of {} texts have another colour", rows.len());
        let alone = shown(&texts[60..61], tier);
        assert_eq!(alone[0].synesthesia, turns[60].synesthesia, "alone and in company");
    }
}

/// What people of thirty nations associate with emotions (Jonauskaite et al. 2020), where it is of a hue: degrees in OKLab
/// from red to yellow. Nothing of the stage was set by it: hues come from names of colours alone.
#[test]
fn palettes_agree_with_published_associations_that_did_not_set_them() {
    let first = |text: &str| {
        let turn = shown(&[text], Tier::Full).remove(0);
        Oklab::from_color(srgb(&turn.synesthesia.unwrap().palette[0].colour).unwrap())
    };
    let hue = |c: &Oklab| c.b.atan2(c.a).to_degrees();
    let chroma = |c: &Oklab| c.a.hypot(c.b);
    let all = |texts: [&str; 3]| texts.map(first);
    let anger = all(["anger", "angry", "I am so angry at you"]);
    let love = all(["love", "I love you", "I love you so much"]);
    let joy = all(["happy", "I am so happy today", "happiness"]);
    let sadness = all(["sadness", "sad", "I feel so sad and alone"]);
    assert!(anger.iter().all(|c| (0.0..50.0).contains(&hue(c))), "anger is red: {anger:?}");
    assert!(love.iter().all(|c| (-40.0..50.0).contains(&hue(c))), "love is pink and red: {love:?}");
    assert!(joy.iter().all(|c| (55.0..115.0).contains(&hue(c))), "joy is yellow and orange: {joy:?}");
    let each = |sad: &Oklab, others: &[Oklab; 3]| others.iter().all(|other| sad.l < other.l);
    assert!(sadness.iter().all(|sad| each(sad, &joy)), "sadness is darker than joy: {sadness:?} {joy:?}");
    let mean = |colours: &[Oklab; 3]| colours.iter().map(chroma).sum::<f32>() / 3.0;
    assert!(mean(&sadness) < mean(&joy).min(mean(&anger)).min(mean(&love)), "and greyer than all of them");
}

#[test]
fn a_turn_without_a_colour_says_why() {
    let encode = Encode::new(Arc::clone(models()));
    let mut batch = ["hello there", "hello again", "\u{200B}", "guten Morgen, wie geht es dir heute?"]
        .map(|text| Turn { tier: Some(Tier::Full), ..Turn::message("eval", "eval", "", "", text, 0) });
    encode.infer(&mut batch).unwrap();
    batch[0].encoding.as_mut().unwrap().provenance.version = "of another release".to_owned();
    batch[1].encoding = None;
    let stage = Synesthesias::new(Arc::clone(models()));
    stage.infer(&mut batch).unwrap();
    let why = |turn: &Turn| turn.skipped.iter().find(|s| s.stage == NAME).map(|s| s.reason.clone());
    let wanted = [reason::OTHER_ENCODER, reason::NO_ENCODING, reason::EMPTY_TEXT].map(|reason| Some(reason.to_owned()));
    assert_eq!([0, 1, 2].map(|place: usize| why(&batch[place])), wanted);
    assert!(batch[..3].iter().all(|turn| turn.synesthesia.is_none()));
    let mut slice = SynesthesiaSlice::default();
    batch.iter_mut().for_each(|turn| stage.fold(&mut slice, turn).unwrap());
    // The last has a colour, and no emotion: the feeling stays where it was.
    assert_eq!((slice.turns, slice.valence, slice.arousal), (1, 0.0, 0.0));
    assert_eq!(batch[3].synesthesia.as_ref().unwrap().palette.len(), SWATCHES);
}

#[test]
fn evaluation_of_colours_runs_beside_the_baseline() {
    let task = crate::eval::TASKS.iter().find(|task| task.name() == "color").unwrap();
    let data = br##"{"name":"midnight blue","hex":"#191970"}
{"name":"pale pink","hex":"#fadadd"}
{"name":"forest green","hex":"#228b22"}"##;
    let choices = crate::eval::Choices::default();
    for tier in [Tier::Full, Tier::Fast] {
        let case = |data| crate::eval::Case { models: models(), tier, data, choices: &choices };
        let report = task.run(&case(data)).unwrap();
        let (ours, mean) = (report.metrics["median_de00"].value, report.baseline.metrics["median_de00"].value);
        assert!(report.n == 3 && ours < 20.0 && ours < mean / 2.0, "{ours} beside {mean}");
        let wrong = task.run(&case(br##"{"name":"red","hex":"#f00"}"##)).unwrap_err().to_string();
        assert!(wrong.contains("line 1") && wrong.contains("`#f00` is no colour"), "{wrong}");
    }
}
