//! Dreams of conversations: who gets one, and what the answer says to who does not.

use std::sync::Arc;

use api::{Config, Dreams, Dreamt, NoDream};
use futures_util::future::BoxFuture;
use schemas::{Provenance, Tier, Turn};

use crate::site::{Site, turns};

/// Says how many turns it was given, and the last one's text; with seed 13 it says nothing.
#[derive(Debug)]
struct Parrot;

impl Dreams for Parrot {
    fn dream(&self, turns: Vec<Turn>, seed: u64) -> BoxFuture<'_, Result<Dreamt, NoDream>> {
        let text =
            format!("{} turns, {}", turns.len(), turns.last().map(|turn| turn.text.as_str()).unwrap_or_default());
        let provenance = Provenance { model: "parrot".to_owned(), version: "1".to_owned(), tier: Tier::Full };
        let (steering, about, palette) = (Vec::new(), Vec::new(), Vec::new());
        let dreamt = Dreamt { text, seed, number: 0, steering, about, palette, provenance };
        Box::pin(std::future::ready(if seed == 13 { Err(NoDream::Nothing) } else { Ok(dreamt) }))
    }
}

#[tokio::test]
async fn a_dream_is_of_the_last_turns_and_nobody_under_the_flag_gets_one() {
    let site = Site::start(Config::default()).await;
    let mut said = turns("a", 1..=60);
    said.iter_mut().for_each(|turn| turn.flags.clear());
    site.keep(&said).await;
    // The sample carries the flag.
    site.keep(&turns("b", 1..=3)).await;
    let (status, problem) = site.get("/v1/conversations/a/dream").await;
    assert_eq!((status, problem["code"].as_str()), (503, Some("dreams_unavailable")), "nobody is wired in");
    site.api.dream_by(Arc::new(Parrot));
    let (status, answer) = site.get("/v1/conversations/a/dream?seed=7").await;
    let dream = &answer["dream"];
    assert_eq!((status, answer["position"].as_i64(), dream["seed"].as_u64()), (200, Some(60), Some(7)), "{answer}");
    assert_eq!(dream["text"], "50 turns, turn 60");
    assert_eq!(site.get("/v1/conversations/a/dream").await.1["dream"]["seed"], 60, "the position is the seed");
    for (path, expected, code) in [
        ("b/dream", 409, "self_harm_words"),
        ("a/dream?seed=13", 409, "nothing_dreamt"),
        ("a/dream?seed=-1", 400, "bad_parameter"),
        ("nobody/dream", 404, "unknown_conversation"),
    ] {
        let (status, problem) = site.get(&format!("/v1/conversations/{path}")).await;
        assert_eq!((status, problem["code"].as_str()), (expected, Some(code)), "{path}: {problem}");
        assert!(
            code != "self_harm_words" || problem["detail"].as_str().is_some_and(|text| text.contains("says nothing"))
        );
    }
}
