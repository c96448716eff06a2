//! `GET /v1/conversations/{id}/dream`: verse in the mood of a conversation. Who makes it is wired in by the program.
//!
//! Promises: reads the last [`TURNS`] turns and nothing else; the same seed gives the same dream until somebody speaks. A
//! conversation whose newest turn carries the flag of self-harm gets none, and the answer says what that is and is not.
//! Leaves out: making dreams ([`Dreams`]), and keeping them.

use std::fmt::Debug;
use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::future::BoxFuture;
use schemas::turn::SELF_HARM_WORDS;
use schemas::{Provenance, Swatch, Turn};
use serde::Serialize;
use serde_json::json;

use crate::Shared;
use crate::history::{get, know, unavailable};
use crate::problem::Problem;

/// Turns that a dream is made of.
const TURNS: usize = 50;

/// What makes dreams.
pub trait Dreams: Debug + Send + Sync {
    /// A dream of these turns, the oldest first.
    fn dream(&self, turns: Vec<Turn>, seed: u64) -> BoxFuture<'_, Result<Dreamt, NoDream>>;
}

/// A dream, and what made it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dreamt {
    /// Its lines.
    pub text: String,
    /// The seed.
    pub seed: u64,
    /// Which of the seed's dreams.
    pub number: u64,
    /// What steered it, such as "emotion joy".
    pub steering: Vec<String>,
    /// Words that it was to be about.
    pub about: Vec<String>,
    /// The conversation's palette.
    pub palette: Vec<Swatch>,
    /// What made it.
    pub provenance: Provenance,
}

/// Why there is no dream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoDream {
    /// As many as may be are made already.
    Busy,
    /// Nothing was said that the list of blocked words admits.
    Nothing,
    /// Models or the generator do not serve; the log says why.
    Unavailable,
}

/// `GET /v1/conversations/{id}/dream`.
pub(crate) async fn dream(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
) -> Result<Response, Problem> {
    let seed = get(&query, "seed").map(|text| text.parse::<u64>().map_err(|_| bad_seed())).transpose()?;
    let newest = shared.history.newest(&id, TURNS).await.map_err(unavailable)?;
    let Some(last) = newest.last else { return Err(Problem::unknown_conversation(&id)) };
    know(&shared, &newest.turns).await?;
    let mut turns: Vec<Turn> = newest.turns.iter().filter_map(|kept| shared.codec.decode(&kept.value).ok()).collect();
    turns.sort_by_key(|turn| turn.position);
    if turns.last().is_none_or(|turn| turn.flags.iter().any(|flag| flag == SELF_HARM_WORDS)) {
        return Err(refused());
    }
    let dreams = shared.dreams.get().ok_or_else(|| problem(NoDream::Unavailable))?;
    // JSON numbers are exact up to 2^53, and so are positions.
    let dreamt = dreams.dream(turns, seed.unwrap_or(last.unsigned_abs())).await.map_err(problem)?;
    let body = json!({ "conversation": id, "position": last, "dream": dreamt }).to_string();
    let kind = HeaderValue::from_static("application/json");
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    Ok((headers, body).into_response())
}

fn bad_seed() -> Problem {
    Problem::parameter("seed", "must be a whole number, 0 or more", "leave it out, or send seed=1")
}

fn refused() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "self_harm_words",
        "Nothing is dreamt of this conversation",
        "words of self-harm were found in its last turns: words of a list, which says nothing of anybody's state",
        "a person should look at the conversation; there are dreams again when such words have not been said for some turns",
    )
}

fn problem(why: NoDream) -> Problem {
    let (status, code, detail, mend) = match why {
        NoDream::Busy => (
            StatusCode::SERVICE_UNAVAILABLE,
            "dreams_busy",
            "as many dreams as may be are made already",
            "try again in a moment",
        ),
        NoDream::Nothing => (
            StatusCode::CONFLICT,
            "nothing_dreamt",
            "nothing was said that the list of blocked words admits",
            "try another seed, or shorten [dreams] blocked_words",
        ),
        NoDream::Unavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "dreams_unavailable",
            "what makes dreams does not serve",
            "the log of the program says why; `undertone dream` tries it by itself",
        ),
    };
    Problem::new(status, code, "There is no dream", detail, mend)
}
