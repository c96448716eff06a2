//! An OpenAI-compatible endpoint that makes dreams: chat completions over plain HTTP.
//!
//! Promises: one question a try, at most [`TRIES`]; each is bounded in time, and answers in bytes, lines and characters; a text
//! that the list does not admit is asked for again with another seed and never leaves this file. Leaves out: streaming, TLS.

use anyhow::Context as _;
use processors::dreams::blocked::{Admitted, BlockList};
use processors::dreams::sampler::{Bounds, Wishes};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::config::Generator;

/// Questions for one dream.
const TRIES: u64 = 3;
/// Most pieces that are asked for.
const TOKENS_MAX: u32 = 120;
/// Longest line that is taken, in characters.
const LINE_CHARS_MAX: usize = 120;
/// Largest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
const ASK: &str = "You write short free verse. Answer with at most four lines, and with nothing else.";

#[derive(Debug)]
pub(super) struct Endpoint {
    http: reqwest::Client,
    url: String,
    model: String,
    api_key: SecretString,
}

#[derive(Deserialize)]
struct Answer {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: String,
}

impl Endpoint {
    pub(super) fn new(generator: &Generator) -> anyhow::Result<Endpoint> {
        let http =
            reqwest::Client::builder().timeout(generator.within()).build().context("make the client of [generator]")?;
        let url = format!("{}/chat/completions", generator.url.trim_end_matches('/'));
        Ok(Endpoint { http, url, model: generator.model.clone(), api_key: generator.api_key.clone() })
    }

    pub(super) fn model(&self) -> &str {
        &self.model
    }

    pub(super) async fn dream(
        &self,
        wishes: &Wishes,
        list: &BlockList,
        seed: u64,
        number: u64,
    ) -> anyhow::Result<Option<Admitted>> {
        for try_ in 0..TRIES {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(number * TRIES + try_) & 0x7fff_ffff;
            let said = self.ask(&request(wishes, list), seed).await?;
            if let Some(text) = bounded(&said).and_then(|text| list.admit(text)) {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    async fn ask(&self, request: &str, seed: u64) -> anyhow::Result<String> {
        let body = json!({
            "model": self.model, "max_tokens": TOKENS_MAX, "temperature": 0.9, "seed": seed,
            "messages": [{ "role": "system", "content": ASK }, { "role": "user", "content": request }],
        });
        let mut asked = self.http.post(&self.url).json(&body);
        if !self.api_key.expose_secret().is_empty() {
            asked = asked.bearer_auth(self.api_key.expose_secret());
        }
        let away = || format!("ask the generator at {}; is it running, and is [generator] right?", self.url);
        let mut answer = asked.send().await.with_context(away)?.error_for_status().with_context(away)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.with_context(away)? {
            anyhow::ensure!(bytes.len() + chunk.len() <= ANSWER_BYTES_MAX, "the generator answers without an end");
            bytes.extend_from_slice(&chunk);
        }
        let answer: Answer =
            serde_json::from_slice(&bytes).context("what [generator] url answers is no chat completion")?;
        Ok(answer.choices.into_iter().next().map(|choice| choice.message.content).unwrap_or_default())
    }
}

/// What is asked for; words of the list are not passed on.
fn request(wishes: &Wishes, list: &BlockList) -> String {
    let mut request = "Write a short poem.".to_owned();
    for wish in &wishes.steering {
        request += &match wish.split_once(' ') {
            Some(("emotion", name)) => format!(" It feels like {name}, without naming it."),
            Some(("mood", "positive")) => " Its mood is bright.".to_owned(),
            Some(("mood", "negative")) => " Its mood is dark.".to_owned(),
            Some(("colour", name)) => format!(" There is something {name} in it."),
            _ => String::new(),
        };
    }
    let about: Vec<&str> = wishes.about.iter().map(String::as_str).filter(|word| !list.finds(word)).collect();
    if !about.is_empty() {
        request += &format!(" It is about: {}.", about.join(", "));
    }
    request
}

/// The first lines, cut where they are too long, without control characters; none if nothing is left.
fn bounded(said: &str) -> Option<String> {
    let plain = |line: &str| line.chars().filter(|c| !c.is_control()).take(LINE_CHARS_MAX).collect::<String>();
    let lines = said.lines().map(|line| plain(line).trim().to_owned()).filter(|line| !line.is_empty());
    let text = lines.take(Bounds::default().lines).collect::<Vec<_>>().join("\n");
    (!text.is_empty()).then_some(text)
}
