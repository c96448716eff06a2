//! The stages on the shipped models, held against the golden file and against themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use schemas::slice::EmotionSlice;
use schemas::{Codec, GoEmotions, Tier, Turn};
use serde::Deserialize;

use super::*;
use crate::eval::{self, Case, Choices, Report};
use crate::model::ngram::Normalised;
use crate::model::sets;
use crate::model::slots;
use crate::model::wanted::Wanted;
use crate::model::{Models, Options};
use crate::stage::{Failure, Stage};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn onnxruntime() -> PathBuf {
    root().join(".cache/onnxruntime/libonnxruntime.so")
}

/// The shipped models, opened once for all tests.
pub(crate) fn models() -> &'static Arc<Models> {
    static MODELS: LazyLock<Arc<Models>> = LazyLock::new(|| {
        let models = Models::open(&root().join("models"), &onnxruntime(), &Options { cores: 3, ..Options::default() });
        models.unwrap_or_else(|e| {
            panic!("{e}\nthe tests need the ONNX Runtime library: run `make test`, which fetches it")
        })
    });
    &MODELS
}

/// A line of `models/golden/emotion.jsonl`; `models/train/golden.py` says what the fields are.
#[derive(Deserialize)]
struct Golden {
    text: String,
    tokens: Vec<i64>,
    full: Vec<f32>,
    fast: Vec<f32>,
    ngram: Option<GoldenNgram>,
    ngram_logits: Option<Vec<f32>>,
    r#static: Option<Vec<f32>>,
    embedding: Option<GoldenEmbedding>,
}

#[derive(Deserialize)]
struct GoldenNgram {
    features: u32,
    buckets: usize,
    checksum: String,
}

#[derive(Deserialize)]
struct GoldenEmbedding {
    scale: f32,
    first: Vec<i8>,
}

fn golden() -> Vec<Golden> {
    let path = root().join("models/golden/emotion.jsonl");
    let lines = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn turn(number: usize, text: &str, tier: Tier) -> Turn {
    let at = 1_700_000_000_000 + number as i64 * 1000;
    Turn { tier: Some(tier), ..Turn::message("websocket", "room", "ann", &number.to_string(), text, at) }
}

fn turns<'a>(texts: impl IntoIterator<Item = &'a str>, tier: Tier) -> Vec<Turn> {
    texts.into_iter().enumerate().map(|(i, text)| turn(i, text, tier)).collect()
}

#[expect(clippy::print_stdout, reason = "a failure is repeated from its seed")]
fn seeded() -> StdRng {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

fn infer(turns: &mut [Turn]) {
    for stage in all(models()) {
        stage.infer(turns).unwrap();
    }
}

fn assert_near(found: f32, expected: f32, tolerance: f32, what: &str) {
    assert!((found - expected).abs() <= tolerance, "{what}: {found} instead of {expected}");
}

#[test]
fn tokens_are_those_of_the_training_code() {
    for row in golden() {
        assert_eq!(models().encoder().tokens(&row.text), row.tokens, "{:?}", row.text);
    }
}

#[test]
fn ngram_buckets_and_logits_are_those_of_the_training_code() {
    let mut compared = 0;
    for row in golden() {
        let (Some(expected), Some(logits)) = (row.ngram, row.ngram_logits) else { continue };
        let normalised = Normalised::of(&row.text);
        let buckets = normalised.buckets();
        assert_eq!(buckets.iter().map(|(_, count)| count).sum::<u32>(), expected.features, "{:?}", row.text);
        assert_eq!(buckets.len(), expected.buckets, "{:?}", row.text);
        let bytes = buckets.iter().flat_map(|(b, c)| [b.to_le_bytes(), c.to_le_bytes()].concat());
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
        let checksum = format!("{:016x}", bytes.fold(0xCBF2_9CE4_8422_2325, fnv));
        assert_eq!(checksum, expected.checksum, "{:?}", row.text);
        for (found, expected) in models().expression().ngram_logits(&normalised.buckets()).iter().zip(logits) {
            assert_near(*found, expected, 1e-3, &row.text);
        }
        compared += 1;
    }
    assert!(compared >= 100, "only {compared} texts have n-grams to compare with");
}

/// The golden file was made on a processor with AVX-512 VNNI. One without it sums floats in another order, which tips a
/// rounding of the int8 graph in a few texts; there the results may drift so far, and no more.
const DRIFTING_TEXTS_MAX: usize = 5;
/// Of a probability.
const PROBABILITY_DRIFT_MAX: f32 = 0.01;
/// Of an embedding's scale, relative.
const EMBEDDING_SCALE_DRIFT_MAX: f32 = 0.02;

/// Texts whose results are not those of the golden file within 1e-3.
#[derive(Default)]
struct Drift {
    texts: usize,
    worst: f32,
}

impl Drift {
    fn note(&mut self, near: bool, distance: f32) {
        self.texts += usize::from(!near);
        self.worst = self.worst.max(distance);
    }

    fn expect(&self, worst_max: f32) {
        let (texts, worst) = (self.texts, self.worst);
        assert!(texts <= DRIFTING_TEXTS_MAX && worst <= worst_max, "{texts} texts drift, the worst by {worst}");
    }
}

#[test]
fn embeddings_are_those_of_the_training_code() {
    let cores = models().cores();
    let mut drift = Drift::default();
    for row in golden() {
        if let Some(expected) = row.r#static {
            let vector = models().words().vector(&row.text);
            for (found, expected) in vector.iter().zip(expected) {
                assert_near(*found, expected, 1e-5, &row.text);
            }
        }
        if let Some(expected) = row.embedding {
            let embedding = &models().encoder().encode(&[&row.text], cores).unwrap()[0].embedding;
            let stretched = (embedding.scale - expected.scale).abs() / expected.scale;
            let moved = embedding.values.iter().zip(expected.first).map(|(v, e)| (*v as i8).abs_diff(e)).max();
            drift.note(stretched <= 1e-3 && moved <= Some(1), stretched);
        }
    }
    drift.expect(EMBEDDING_SCALE_DRIFT_MAX);
}

#[test]
fn probabilities_are_those_of_the_training_code() {
    let golden = golden();
    for tier in [Tier::Full, Tier::Fast] {
        let mut turns = turns(golden.iter().map(|row| row.text.as_str()), tier);
        infer(&mut turns);
        let (mut served, mut foreign, mut drift) = (0, 0, Drift::default());
        for (turn, row) in turns.iter().zip(&golden) {
            let Some(emotion) = &turn.emotion else {
                if turn.encoding.as_ref().is_some_and(is_foreign) {
                    assert!(
                        turn.skipped.iter().any(|s| s.stage == "emotion" && s.reason == reason::UNSUPPORTED_LANGUAGE)
                    );
                    foreign += 1;
                    continue;
                }
                let reasons: Vec<_> = turn.skipped.iter().map(|s| (s.stage.as_str(), s.reason.as_str())).collect();
                assert_eq!(reasons, ORDER.iter().map(|stage| (*stage, reason::EMPTY_TEXT)).collect::<Vec<_>>());
                assert!(turn.text.chars().all(|c| !c.is_alphanumeric()), "{:?} was skipped", turn.text);
                continue;
            };
            let expected = if tier == Tier::Full { &row.full } else { &row.fast };
            let pairs = emotion.probabilities.to_array().into_iter().zip(expected.iter().copied());
            let moved = pairs.map(|(found, expected)| (found - expected).abs()).fold(0.0, f32::max);
            match tier {
                Tier::Full => drift.note(moved <= 1e-3, moved),
                Tier::Fast => assert!(moved <= 1e-3, "{moved}: {:?}", row.text),
            }
            served += 1;
        }
        drift.expect(PROBABILITY_DRIFT_MAX);
        assert!(foreign > 0 && foreign < golden.len() / 20, "{foreign} texts are said to be in another language");
        assert!(served + foreign + 10 > golden.len(), "only {served} of {} texts were served", golden.len());
    }
}

#[test]
fn a_result_does_not_depend_on_its_neighbours() {
    let mut random = seeded();
    let mut golden = golden();
    golden.shuffle(&mut random);
    let texts: Vec<&str> = golden.iter().take(160).map(|row| row.text.as_str()).collect();
    for tier in [Tier::Full, Tier::Fast] {
        let alone: Vec<Turn> = turns(texts.iter().copied(), tier)
            .into_iter()
            .map(|turn| {
                let mut one = [turn];
                infer(&mut one);
                let [turn] = one;
                turn
            })
            .collect();
        for _ in 0..2 {
            let mut together = turns(texts.iter().copied(), tier);
            together.shuffle(&mut random);
            let mut rest = together.as_mut_slice();
            while !rest.is_empty() {
                let (batch, after) = rest.split_at_mut(random.random_range(1..=rest.len().min(70)));
                infer(batch);
                rest = after;
            }
            together.sort_by_key(|turn| turn.at);
            for (together, alone) in together.iter().zip(&alone) {
                assert_eq!(together, alone, "{:?} differs by its batch", alone.text);
            }
        }
    }
}

#[test]
fn remembered_texts_give_the_same_parts() {
    let texts = ["ok", "lol", "ok", "I love you", "no way!!!", "lol", "", "I love you"];
    let stages = all(models());
    for tier in [Tier::Full, Tier::Fast] {
        let mut first = turns(texts, tier);
        infer(&mut first);
        for _ in 0..2 {
            let mut again = turns(texts, tier);
            stages.iter().for_each(|stage| stage.infer(&mut again).unwrap());
            assert_eq!(again, first);
        }
    }
}

#[test]
fn a_cut_behind_encode_gives_the_same_parts() {
    let (encode, emotions) = (Encode::new(Arc::clone(models())), Emotions::new(Arc::clone(models())));
    let codec = Codec::embedded();
    let texts = ["I adore you", "what a shame, I miss her so much", "ok", "", "why???"];
    for tier in [Tier::Full, Tier::Fast] {
        let mut whole = turns(texts, tier);
        Stage::infer(&encode, &mut whole).unwrap();
        let mut cut: Vec<Turn> = whole.iter().map(|turn| codec.decode(&codec.encode(turn).unwrap()).unwrap()).collect();
        let feelings = |turns: &[Turn]| turns.iter().flat_map(|t| &t.encoding).filter(|e| e.feeling.is_some()).count();
        assert_eq!((feelings(&whole), feelings(&cut)), (if tier == Tier::Full { 4 } else { 0 }, 0), "it never travels");
        Stage::infer(&emotions, &mut whole).unwrap();
        Stage::infer(&emotions, &mut cut).unwrap();
        assert!(whole[0].encoding.as_ref().is_some_and(|e| e.grams.is_some()), "counted once for all stages");
        assert!(cut[0].encoding.as_ref().is_some_and(|e| e.grams.is_none()), "nor do they");
        let parts =
            |turns: &[Turn]| -> Vec<_> { turns.iter().map(|t| (t.emotion.clone(), t.skipped.clone())).collect() };
        assert_eq!(parts(&whole), parts(&cut));
        assert!(whole[0].emotion.is_some());
    }
}

#[test]
fn without_its_own_model_valence_comes_from_the_emotions() {
    let options = Options { cores: 1, vad: false, ..Options::default() };
    let without = Models::open(&root().join("models"), &onnxruntime(), &options).unwrap();
    for tier in [Tier::Full, Tier::Fast] {
        let [mut with, mut plain] = [(); 2].map(|()| turns(["I am so happy, this is wonderful!"], tier));
        infer(&mut with);
        all(&without).iter().for_each(|stage| stage.infer(&mut plain).unwrap());
        let [with, plain] = [&with, &plain].map(|turns| turns[0].emotion.clone().unwrap());
        assert_eq!(with.probabilities, plain.probabilities);
        assert_eq!(
            [Some(plain.valence), plain.arousal, plain.dominance],
            from_emotions(&plain.probabilities).map(Some)
        );
        assert!(with.valence > 0.0 && with.valence != plain.valence && with.arousal.is_some());
    }
}

#[test]
fn tiers_of_a_batch_do_not_mix() {
    let mut mixed: Vec<Turn> =
        (0..6).map(|i| turn(i, "so happy for you", if i % 2 == 0 { Tier::Full } else { Tier::Fast })).collect();
    infer(&mut mixed);
    for turn in &mixed {
        let (encoding, emotion) = (turn.encoding.as_ref().unwrap(), turn.emotion.as_ref().unwrap());
        assert_eq!(encoding.provenance, models().embedder(turn.tier.unwrap()));
        assert_eq!(emotion.provenance.tier, turn.tier.unwrap());
        let dimension = if turn.tier == Some(Tier::Full) { 384 } else { 256 };
        assert_eq!((encoding.embedding.dimension, encoding.embedding.values.len()), (dimension, dimension as usize));
        assert!(emotion.labels.contains(&"joy".to_owned()), "{:?}", emotion.labels);
        assert!(emotion.valence > 0.3 && emotion.intensity > 0.3, "{emotion:?}");
        assert_eq!(encoding.language.as_deref(), Some("eng"));
    }
}

#[test]
fn a_turn_that_cannot_be_served_says_why() {
    let (encode, emotions) = (Encode::new(Arc::clone(models())), Emotions::new(Arc::clone(models())));
    let mut batch = turns(["hello there", "hello again", "\u{200B} \u{FE0F}"], Tier::Full);
    Stage::infer(&encode, &mut batch).unwrap();
    batch[0].encoding.as_mut().unwrap().provenance.version = "of another release".to_owned();
    batch[1].encoding = None;
    Stage::infer(&emotions, &mut batch).unwrap();
    let why = |turn: &Turn| turn.skipped.iter().find(|s| s.stage == "emotion").map(|s| s.reason.clone()).unwrap();
    assert_eq!(why(&batch[0]), reason::OTHER_ENCODER);
    assert_eq!(why(&batch[1]), reason::NO_ENCODING);
    assert_eq!(why(&batch[2]), reason::EMPTY_TEXT);
    assert!(batch.iter().all(|turn| turn.emotion.is_none()));
    let mut slice = EmotionSlice::default();
    for turn in &mut batch {
        Stage::fold(&emotions, &mut slice, turn).unwrap();
    }
    assert_eq!(slice.turns, 0, "turns without a part are not folded");
}

#[test]
fn a_slice_of_another_shape_is_our_fault() {
    let mut batch = turns(["hello there"], Tier::Fast);
    infer(&mut batch);
    let mut slice = EmotionSlice { ekman: vec![0.0; 3], turns: 1, ..EmotionSlice::default() };
    let result = Stage::fold(&Emotions::new(Arc::clone(models())), &mut slice, &mut batch[0]);
    assert!(matches!(result, Err(Failure::Slice { stage: "emotion", .. })), "{result:?}");
}

#[test]
fn every_unicode_text_is_served_or_skipped() {
    let mut random = seeded();
    let text =
        |random: &mut StdRng| -> String { (0..random.random_range(0..60)).map(|_| random.random::<char>()).collect() };
    let mut texts: Vec<String> = (0..100).map(|_| text(&mut random)).collect();
    texts.push("\u{10FFFF}".repeat(12_000));
    for tier in [Tier::Full, Tier::Fast] {
        let mut batch = turns(texts.iter().map(String::as_str), tier);
        infer(&mut batch);
        for turn in &batch {
            let skipped = |stage: &str| turn.skipped.iter().any(|skipped| skipped.stage == stage);
            assert_eq!(turn.emotion.is_some(), !skipped("emotion"), "{:?}", turn.text);
            assert_eq!(turn.personality.is_some(), !skipped("personality"), "{:?}", turn.text);
            assert_eq!(turn.dialogue.is_some(), !skipped("dialogue"), "{:?}", turn.text);
            assert_eq!(turn.memory.is_some(), !skipped("memory"), "{:?}", turn.text);
            assert_eq!(turn.coherence.is_some(), !skipped("coherence"), "{:?}", turn.text);
            let p = turn.emotion.as_ref().map_or([0.0; 28], |e| e.probabilities.to_array());
            assert!(p.iter().all(|p| (0.0..=1.0).contains(p)), "{:?}", turn.text);
        }
    }
}

#[test]
fn slices_survive_the_codec() {
    let codec = Codec::embedded();
    let mut batch = turns(["good morning", "this is terrible", "thanks a lot"], Tier::Full);
    infer(&mut batch);
    for stage in all(models()) {
        let mut whole = stage.open(&codec, "room", None).unwrap();
        let mut bytes = None;
        for turn in &batch {
            let (mut kept, mut reopened) = (turn.clone(), turn.clone());
            stage.fold(whole.as_mut(), &mut kept).unwrap();
            let mut slice = stage.open(&codec, "room", bytes.as_deref()).unwrap();
            stage.fold(slice.as_mut(), &mut reopened).unwrap();
            bytes = Some(stage.close(&codec, "room", slice.as_ref()).unwrap());
            assert_eq!(kept, reopened);
        }
        assert_eq!(bytes.unwrap(), stage.close(&codec, "room", whole.as_ref()).unwrap());
    }
}

/// A copy of the shipped models that can be damaged.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for family in
        ["encoder", "static", "emotion", "personality", "dialogue", "memory", "coherence", "synesthesia", "vad"]
    {
        std::fs::create_dir(dir.path().join(family)).unwrap();
        for entry in std::fs::read_dir(root().join("models").join(family)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), dir.path().join(family).join(entry.file_name())).unwrap();
        }
    }
    dir
}

fn problem(models: &Path, onnxruntime: &Path) -> (String, String, String) {
    match Models::open(models, onnxruntime, &Options { cores: 1, ..Options::default() }) {
        Err(Failure::Model { file, problem, mend }) => (file, problem, mend),
        Err(other) => panic!("another failure: {other}"),
        Ok(_) => panic!("it was opened"),
    }
}

#[test]
fn a_damaged_or_missing_file_is_named_with_its_mend() {
    let dir = copy();
    for file in [
        "dialogue/clinc150.json",
        "dialogue/acts.fast.safetensors",
        "encoder/encoder.onnx",
        "encoder/tokenizer.json",
        "static/static.safetensors",
        "emotion/head.safetensors",
        "synesthesia/colours.safetensors",
    ] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let (named, what, mend) = problem(dir.path(), &onnxruntime());
        assert!(named.ends_with(file) && what.contains("sha256") && mend.contains("[models] dir"), "{named} {what}");
        std::fs::remove_file(&path).unwrap();
        let (named, what, _) = problem(dir.path(), &onnxruntime());
        assert!(named.ends_with(file) && what == "missing", "{named} {what}");
        std::fs::write(&path, whole).unwrap();
    }
    std::fs::remove_file(dir.path().join("static/card.json")).unwrap();
    let (named, what, _) = problem(dir.path(), &onnxruntime());
    assert!(named.ends_with("static/card.json") && what == "missing", "{named} {what}");
}

#[test]
fn a_graph_that_waits_is_loaded_by_the_first_text_that_needs_it() {
    let dir = copy();
    let graph = dir.path().join("encoder/encoder.onnx");
    let hidden = dir.path().join("encoder/hidden");
    std::fs::rename(&graph, &hidden).unwrap();
    let lazy = Options { cores: 1, lazy: true, ..Options::default() };
    let models = Models::open(dir.path(), &onnxruntime(), &lazy).unwrap();
    let served = |tier| {
        let mut turns = turns(["what a day"], tier);
        Stage::infer(&Encode::new(Arc::clone(&models)), &mut turns).map(|()| turns[0].encoding.is_some())
    };
    assert!(served(Tier::Fast).unwrap());
    match served(Tier::Full) {
        Err(Failure::Model { file, problem, .. }) => assert!(file.ends_with("encoder.onnx") && problem == "missing"),
        other => panic!("{other:?}"),
    }
    std::fs::rename(&hidden, &graph).unwrap();
    assert!(served(Tier::Full).unwrap(), "the file is back");
}

#[test]
fn a_graph_with_other_names_than_its_card_is_refused() {
    let dir = copy();
    let card = dir.path().join("encoder/card.json");
    let text = std::fs::read_to_string(&card).unwrap().replace("attention_mask", "mask");
    std::fs::write(&card, text).unwrap();
    let (named, what, _) = problem(dir.path(), &onnxruntime());
    assert!(named.ends_with("encoder/encoder.onnx") && what.contains("attention_mask"), "{named} {what}");
}

#[test]
fn the_library_is_missing_or_another_and_the_error_says_so() {
    let shipped = root().join("models");
    let (_, _, mend) = problem(&shipped, Path::new("/nowhere/libonnxruntime.so"));
    assert!(mend.contains("models/fetch.py") && mend.contains("[models] onnxruntime"), "{mend}");
    models();
    let other = tempfile::NamedTempFile::new().unwrap();
    let (_, what, _) = problem(&shipped, other.path());
    assert!(what.contains("already loaded"), "{what}");
    Models::open(&shipped, &onnxruntime(), &Options { cores: 2, ..Options::default() })
        .expect("a second pipeline opens its own models");
}

#[test]
fn evaluation_runs_the_shipped_stages_beside_the_baseline() {
    let data = br#"{"text":"I love this so much, thank you!","labels":["love","gratitude"]}
{"text":"That is disgusting and makes me angry","labels":["disgust","anger"]}
{"text":"","labels":["neutral"]}"#;
    for tier in [Tier::Full, Tier::Fast] {
        let report = evaluate("emotion", tier, data, &[]);
        assert_eq!((report.n, report.task.as_str(), report.data_sha256.len()), (3, "emotion", 64));
        assert_eq!(report.metrics.keys().collect::<Vec<_>>(), report.baseline.metrics.keys().collect::<Vec<_>>());
        assert!(report.metrics["micro_f1"].value > 0.5, "{report:?}");
        assert!(serde_json::to_string(&report).unwrap().contains("\"tier\":\"") && report.turns_per_second > 0.0);
    }
}

fn evaluate(task: &str, tier: Tier, data: &[u8], labels: &[&str]) -> Report {
    let choices = Choices { labels: labels.iter().map(|label| (*label).to_owned()).collect(), ..Choices::default() };
    let task = eval::TASKS.iter().find(|known| known.name() == task).unwrap();
    task.run(&Case { models: models(), tier, data, choices: &choices }).unwrap()
}

#[test]
fn transfer_asks_for_the_labels_of_another_set() {
    let data = br#"{"text":"I am so scared of the dark","label":"fear"}
{"text":"I adore you, my darling","label":"love"}
{"text":"I'm heartbroken and sad","label":"sadness"}"#;
    for tier in [Tier::Full, Tier::Fast] {
        let report = evaluate("emotion-transfer", tier, data, &[]);
        assert_eq!((report.n, report.metrics["accuracy"].value), (3, 1.0));
        let more = evaluate("emotion-transfer", tier, data, &["fear", "love", "sadness", "anger"]);
        assert_eq!(more.metrics["macro_f1"].value, 0.75, "a label without a text counts nothing");
    }
    let wrong = Case {
        models: models(),
        tier: Tier::Fast,
        data,
        choices: &Choices { labels: vec!["love".into()], ..Choices::default() },
    };
    let task = eval::TASKS.iter().find(|task| task.name() == "emotion-transfer").unwrap();
    assert!(task.run(&wrong).unwrap_err().to_string().starts_with("line 1: `fear` is none of"));
}

#[test]
fn order_names_the_stages() {
    assert_eq!(all(models()).iter().map(|stage| stage.name()).collect::<Vec<_>>(), ORDER);
    assert_eq!(GoEmotions::LABELS[27], "neutral");
}

/// A line of `models/golden/dialogue.jsonl`; `models/train/intents.py` says what the fields are.
#[derive(Deserialize)]
struct GoldenDialogue {
    text: String,
    full: BTreeMap<String, (String, f32)>,
    fast: BTreeMap<String, (String, f32)>,
}

#[test]
fn intents_and_acts_follow_the_golden_file() {
    let text = std::fs::read_to_string(root().join("models/golden/dialogue.jsonl")).unwrap();
    let golden: Vec<GoldenDialogue> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let sets = || sets::SHIPPED.iter().map(|name| sets::open(models(), name).unwrap()).collect();
    let (encode, dialogues) = (Encode::new(Arc::clone(models())), Dialogues::with_sets(Arc::clone(models()), sets()));
    let mut near = 0;
    for tier in [Tier::Full, Tier::Fast] {
        let mut turns: Vec<Turn> = turns(golden.iter().map(|line| line.text.as_str()), tier);
        Stage::infer(&encode, &mut turns).unwrap();
        Stage::infer(&dialogues, &mut turns).unwrap();
        for (line, turn) in golden.iter().zip(&turns) {
            let Some(part) = &turn.dialogue else {
                assert!(!turn.skipped.is_empty(), "{}", line.text);
                continue;
            };
            let expected = if tier == Tier::Full { &line.full } else { &line.fast };
            let intents = part.intents.iter().map(|i| (i.set.as_str(), &i.name, i.probability));
            for (set, name, probability) in intents.chain([("acts", &part.act, part.act_probability)]) {
                let (wanted, p) = &expected[set];
                let equal = name == wanted && (probability - p).abs() < 1e-3;
                near += usize::from(!equal);
                // A last bit may tip a rounding of the encoder: seen in 7 of 1,000 texts on another processor.
                assert!((probability - p).abs() < 0.05, "{set} of {:?}: {name} {probability}, {wanted} {p}", line.text);
            }
        }
    }
    assert!(near * 100 <= golden.len(), "{near} results differ");
}

/// A line of `models/golden/slots.jsonl`; `models/train/slots.py` says what the fields are.
#[derive(Deserialize)]
struct GoldenSlots {
    domain: String,
    text: String,
    given: Vec<String>,
    slots: Vec<(String, String, f32)>,
}

#[test]
fn values_follow_the_golden_file() {
    let text = std::fs::read_to_string(root().join("models/golden/slots.jsonl")).unwrap();
    let golden: Vec<GoldenSlots> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(golden.iter().map(|line| line.slots.len()).sum::<usize>() > 100, "too few values to compare with");
    for line in golden {
        let given: Vec<&str> = line.given.iter().map(String::as_str).collect();
        let found = models().dialogue().tagger().find(&line.domain, &line.text, &given).unwrap();
        let words = |start: usize, end: usize| {
            let pieces = slots::pieces(&line.text[start..end]).into_iter();
            pieces.map(|piece| piece.text).collect::<Vec<_>>().join(" ")
        };
        let said: Vec<_> = found.iter().map(|f| (f.name.to_owned(), words(f.start, f.end))).collect();
        let expected: Vec<_> = line.slots.iter().map(|(name, value, _)| (name.clone(), value.clone())).collect();
        assert_eq!(said, expected, "{:?}", line.text);
        for (found, (_, _, probability)) in found.iter().zip(&line.slots) {
            assert_near(found.probability, *probability, 1e-3, &line.text);
        }
    }
    assert!(models().dialogue().tagger().find("nonsense", "4453", &[]).is_none());
}

#[test]
fn values_are_looked_for_in_what_persons_say_and_kept() {
    let said = |bot: bool, text: &str| {
        let sender = schemas::Sender { id: bot.to_string(), name: None, bot };
        Turn { sender: Some(sender), ..turn(0, text, Tier::Fast) }
    };
    let mut turns = [said(true, "my name is anthony"), said(false, "It is Anthony!"), said(false, "4453")];
    Stage::infer(&Encode::new(Arc::clone(models())), &mut turns).unwrap();
    let fold = |stage: &Dialogues, turns: &mut [Turn]| {
        Stage::infer(stage, turns).unwrap();
        let mut slice = schemas::slice::DialogueSlice::default();
        turns.iter_mut().for_each(|turn| Stage::fold(stage, &mut slice, turn).unwrap());
        slice
    };
    let stage = Dialogues::with_sets(Arc::clone(models()), Vec::new());
    assert!(fold(&stage, &mut turns).slots.is_empty(), "nothing is configured");
    let stage = stage.with_domains(vec!["finance".to_owned(), "insurance".to_owned()]);
    let slice = fold(&stage, &mut turns);
    let found = |turn: &Turn| {
        let slots = &turn.dialogue.as_ref().unwrap().slots;
        slots.iter().map(|slot| (slot.name.clone(), slot.value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(found(&turns[0]), []);
    assert_eq!(found(&turns[1]), [("name".to_owned(), "Anthony".to_owned())]);
    assert_eq!(slice.slots.first().map(|slot| slot.value.as_str()), Some("Anthony"));
    assert_eq!(turns[2].dialogue.as_ref().unwrap().state.as_ref().unwrap().slots, slice.slots);

    let wanted = Wanted { slots: vec!["nonsense".to_owned()], ..Wanted::default() };
    let error = wanted.configure(models()).unwrap_err().to_string();
    assert!(error.contains("nonsense") && error.contains("airline"), "{error}");
}

const EXAMPLES: &str = r#"{
    "refund": ["I want my money back", "please refund this order", "can I get a refund?", "give me back what I paid"],
    "hours": ["when do you open?", "are you open on Sunday", "what are your opening hours", "how late are you open today?"],
    "human": ["let me talk to a person", "I want to speak to an agent", "connect me with a human", "is there anybody real here?"]
}"#;

#[test]
fn intents_are_named_by_examples_and_read_again_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.json");
    std::fs::write(&file, EXAMPLES).unwrap();
    let set = sets::open(models(), file.to_str().unwrap()).unwrap();
    let first = set.hash.clone();
    assert_eq!((set.name.as_str(), set.labels.len()), ("shop", 3));
    for tier in [Tier::Full, Tier::Fast] {
        assert_eq!(set.left_out(tier).unwrap().len(), 12);
        let right = set.left_out(tier).unwrap().iter().enumerate().filter(|(i, said)| i / 4 == **said).count();
        assert!(right >= 8, "{right} of 12 in the {} tier", tier.name());
    }
    let dialogues = Dialogues::with_sets(Arc::clone(models()), vec![set]);
    let mut turns = vec![
        turn(0, "Could I please have a refund for my order?", Tier::Full),
        turn(1, "at what time do you open", Tier::Fast),
    ];
    Stage::infer(&Encode::new(Arc::clone(models())), &mut turns).unwrap();
    Stage::infer(&dialogues, &mut turns).unwrap();
    let intents: Vec<_> = turns.iter().map(|turn| &turn.dialogue.as_ref().unwrap().intents[0]).collect();
    assert_eq!((intents[0].name.as_str(), intents[1].name.as_str()), ("refund", "hours"));
    assert!(intents.iter().all(|intent| intent.set == "shop" && intent.set_sha256 == first && !intent.out_of_scope));

    let other =
        Models::open(&root().join("models"), &onnxruntime(), &Options { cores: 1, ..Options::default() }).unwrap();
    sets::follow(&other, &[file.display().to_string(), "hwu64".to_owned()]).unwrap();
    let hashes = || other.dialogue().sets().iter().map(|set| set.hash.clone()).collect::<Vec<_>>();
    assert_eq!((hashes().len(), &hashes()[0]), (2, &first));
    std::fs::write(&file, EXAMPLES.replace("Sunday", "Sundays in May")).unwrap();
    let patience = std::time::Instant::now();
    while hashes()[0] == first {
        assert!(patience.elapsed() < std::time::Duration::from_secs(60), "the file was not read again");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let error = sets::configure(&other, &["nonsense".to_owned()]).unwrap_err().to_string();
    assert!(error.contains("clinc150"), "{error}");
}

#[test]
fn what_the_models_do_not_read_is_told_rather_than_guessed() {
    let mut turns = vec![
        turn(0, "Könnten Sie mir bitte sagen, wann das Geschäft am Sonntag geöffnet ist?", Tier::Fast),
        turn(1, " ", Tier::Fast),
        turn(2, "When does the shop open on Sunday?", Tier::Fast),
    ];
    Stage::infer(&Encode::new(Arc::clone(models())), &mut turns).unwrap();
    Stage::infer(&Dialogues::new(Arc::clone(models())), &mut turns).unwrap();
    let reason = |turn: &Turn| turn.skipped.iter().find(|s| s.stage == "dialogue").map(|s| s.reason.clone());
    assert_eq!(reason(&turns[0]).as_deref(), Some(reason::UNSUPPORTED_LANGUAGE));
    assert_eq!(reason(&turns[1]).as_deref(), Some(reason::EMPTY_TEXT));
    let part = turns[2].dialogue.as_ref().unwrap();
    assert_eq!((part.act.as_str(), part.question > 0.5), ("question", true));
}

#[test]
fn evaluation_of_intents_and_acts_runs_beside_the_baselines() {
    let data = br#"{"text":"what's the weather like in Rome","intent":"weather"}
{"text":"set an alarm for seven","intent":"alarm"}
{"text":"how many moons does Saturn have and who found them","intent":"oos"}"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("shop.json");
    std::fs::write(&file, EXAMPLES).unwrap();
    let task = |name: &str| *crate::eval::TASKS.iter().find(|task| task.name() == name).unwrap();
    for tier in [Tier::Full, Tier::Fast] {
        let run = |name: &str, data: &[u8], choices: &Choices| {
            task(name).run(&Case { models: models(), tier, data, choices })
        };
        let report = run("intent", data, &Choices { set: Some("clinc150".into()), ..Choices::default() }).unwrap();
        assert_eq!((report.n, report.metrics["accuracy"].value, report.metrics.len()), (3, 1.0, 4));
        assert!(report.baseline.metrics.contains_key("accuracy"));
        let shop = Choices { examples: Some(file.clone()), ..Choices::default() };
        let report = run("intent", br#"{"text":"give me a refund please","intent":"refund"}"#, &shop).unwrap();
        assert_eq!((report.metrics["accuracy"].value, report.metrics.len()), (1.0, 2));
        let wrong = run("intent", data, &shop).unwrap_err().to_string();
        assert!(wrong.contains("weather"), "{wrong}");
        assert!(run("intent", data, &Choices::default()).unwrap_err().to_string().contains("--set"));
        let acts = br#"{"turns":["Where do you live?","I live in Rome .","Please close the door .","OK, I will ."],"acts":[2,1,3,4]}"#;
        let report = run("acts", acts, &Choices::default()).unwrap();
        assert_eq!((report.n, report.metrics["question_f1"].value), (4, 1.0));
        let slots = br#"{"dialogue":"a","domain":"finance","text":"anthony","slots":"name"}
{"dialogue":"a","domain":"finance","text":"ok thank you","slots":"O O O"}"#;
        let report = run("slots", slots, &Choices::default()).unwrap();
        assert_eq!((report.n, report.metrics["f1"].value, report.metrics.len()), (2, 1.0, 3));
        assert!(report.baseline.metrics.contains_key("f1"));
        let wrong =
            run("slots", br#"{"dialogue":"a","domain":"x","text":"","slots":""}"#, &Choices::default()).unwrap_err();
        assert!(wrong.to_string().contains("airline"), "{wrong}");
    }
}

#[test]
fn the_density_matrix_is_measured_where_it_is_asked_for() {
    let options = Options { cores: 1, lazy: true, density: true, ..Options::default() };
    let models = Models::open(&root().join("models"), &onnxruntime(), &options).unwrap();
    let mut batch = turns(["good morning", "good morning", "the train was late again"], Tier::Fast);
    Stage::infer(&Encode::new(Arc::clone(&models)), &mut batch).unwrap();
    let stage = Coherences::new(models);
    Stage::infer(&stage, &mut batch).unwrap();
    let mut slice = Default::default();
    for turn in &mut batch {
        Stage::fold(&stage, &mut slice, turn).unwrap();
    }
    let density = |turn: &Turn| turn.coherence.as_ref().unwrap().density.unwrap();
    let (first, second, third) = (density(&batch[0]), density(&batch[1]), density(&batch[2]));
    assert_eq!([first.turns, second.turns, third.turns], [1, 2, 3]);
    assert!(first.entropy < 1e-6 && second.entropy < 1e-3 && third.entropy > 0.2, "{third:?}");
}
