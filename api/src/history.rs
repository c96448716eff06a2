//! What was said before: conversations by their last activity, and their turns, paged both ways.
//!
//! Cursors are opaque: base64url of the direction and a place. A page of turns also carries the resume token from which
//! a stream goes on without a gap.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::Turn;
use serde_json::json;
use store::history::{Conversation, Cursor, HistoryError, Page};

use crate::Shared;
use crate::command::flag;
use crate::pages::Kept;
use crate::problem::Problem;
use crate::resume::{Token, key};
use crate::view::Embeddings;

type Pairs = Query<Vec<(String, String)>>;

/// `GET /v1/conversations`.
pub(crate) async fn conversations(State(shared): State<Arc<Shared>>, Query(query): Pairs) -> Result<Response, Problem> {
    let limit = limit(&query, &shared)?;
    let cursor = get(&query, "cursor").map(|text| conversations_cursor(text).ok_or_else(bad_cursor)).transpose()?;
    let found = shared.history.conversations(cursor, limit + 1).await.map_err(unavailable)?;
    let more = found.len() > limit;
    let found = &found[..limit.min(found.len())];
    let next = found.last().filter(|_| more).map(|last| write_cursor(&json!(["c", last.last_at, last.conversation])));
    let listed: Vec<_> = found.iter().map(describe).collect();
    Ok(answer(json!({ "conversations": listed, "next": next }).to_string()))
}

/// `GET /v1/conversations/{id}`.
pub(crate) async fn conversation(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let newest = shared.history.newest(&id, 1).await.map_err(unavailable)?;
    let Some(last) = newest.turns.first() else { return Err(Problem::unknown_conversation(&id)) };
    know(&shared, &newest.turns).await?;
    let turn = last.json(&shared.codec, Embeddings::Hide).unwrap_or("null".into());
    let head = json!(id);
    let (at, position, mark) = (last.at, last.position, mark(newest.degraded));
    Ok(answer(format!(
        r#"{{"conversation":{head},"last_at":{at},"last_position":{position},"last_turn":{turn}{mark}}}"#
    )))
}

/// `GET /v1/conversations/{id}/turns`.
pub(crate) async fn turns(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    Query(query): Pairs,
) -> Result<Response, Problem> {
    let limit = limit(&query, &shared)?;
    let order = get(&query, "order").map(Order::parse).transpose()?;
    let cursor = get(&query, "cursor").map(|text| TurnsCursor::read(text).ok_or_else(bad_cursor)).transpose()?;
    let embeddings = get(&query, "embedding").map(|value| flag("embedding", value)).transpose();
    let embeddings = embeddings.map_err(|fault| Problem::parameter("embedding", fault.message, "send embedding=1"))?;
    let embeddings = if embeddings == Some(true) { Embeddings::Show } else { Embeddings::Hide };
    // A cursor knows the order of the pages that it belongs to.
    let cursor = cursor.unwrap_or_else(|| TurnsCursor::first(order.unwrap_or(Order::Descending)));
    if order.is_some_and(|order| order != cursor.order) {
        let mend = "leave `order` out beside a cursor, or start without one";
        return Err(Problem::parameter("order", "the cursor belongs to the other order", mend));
    }
    let (turns, degraded) = match cursor.page {
        Page::Before(None) => {
            let newest = shared.history.newest(&id, limit + 1).await.map_err(unavailable)?;
            if newest.last.is_none() {
                return Err(Problem::unknown_conversation(&id));
            }
            (newest.turns, newest.degraded)
        }
        page => (shared.history.turns(&id, page, limit + 1).await.map_err(unavailable)?, false),
    };
    let more = turns.len() > limit;
    let mut rows: Vec<&Kept> = turns.iter().take(limit).map(|turn| &**turn).collect();
    know(&shared, &turns).await?;
    if rows.is_empty() && cursor.is_first() {
        let newest = shared.history.newest(&id, 1).await.map_err(unavailable)?;
        if newest.last.is_none() {
            return Err(Problem::unknown_conversation(&id));
        }
    }
    // What the hub holds ends somewhere; the turns are dense from 1, so that it shows whether there are older ones.
    let more = more || (degraded && rows.last().is_some_and(|row| row.position > 1));
    let (older, newer) = edges(cursor.page, &rows, more);
    let (next, previous) = match cursor.order {
        Order::Descending => (older, newer),
        Order::Ascending => (newer, older),
    };
    let backwards = matches!(cursor.page, Page::Before(_)) != (cursor.order == Order::Descending);
    if backwards {
        rows.reverse();
    }
    let newest = rows.iter().map(|row| row.position).max();
    let resume = newest.map(|position| Token::Positions([(key(&id), position)].into()).encode());
    let cursor = |page: Option<Page>| json!(page.map(|page| TurnsCursor { order: cursor.order, page }.write()));
    let shown: Vec<_> = rows.iter().filter_map(|row| row.json(&shared.codec, embeddings)).collect();
    let (conversation, next, previous, resume) = (json!(id), cursor(next), cursor(previous), json!(resume));
    let mark = mark(degraded);
    Ok(answer(format!(
        r#"{{"conversation":{conversation},"turns":[{}],"next":{next},"previous":{previous},"resume":{resume}{mark}}}"#,
        shown.join(",")
    )))
}

/// What an answer carries that was given without history.
fn mark(degraded: bool) -> &'static str {
    if degraded { r#","degraded":true"# } else { "" }
}

/// Which end comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// The oldest.
    Ascending,
    /// The newest.
    Descending,
}

impl Order {
    fn parse(text: &str) -> Result<Order, Problem> {
        match text {
            "asc" => Ok(Order::Ascending),
            "desc" => Ok(Order::Descending),
            _ => Err(Problem::parameter("order", "must be asc or desc", "send order=asc for the oldest first")),
        }
    }
}

/// A place in the pages of one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TurnsCursor {
    order: Order,
    page: Page,
}

impl TurnsCursor {
    fn first(order: Order) -> TurnsCursor {
        let page = if order == Order::Ascending { Page::After(0) } else { Page::Before(None) };
        TurnsCursor { order, page }
    }

    fn is_first(self) -> bool {
        self == TurnsCursor::first(self.order)
    }

    fn write(self) -> String {
        let order = if self.order == Order::Ascending { "a" } else { "d" };
        let (side, position) = match self.page {
            Page::Before(position) => ("b", position.unwrap_or(i64::MAX)),
            Page::After(position) => ("a", position),
        };
        write_cursor(&json!(["t", order, side, position]))
    }

    fn read(text: &str) -> Option<TurnsCursor> {
        let (kind, order, side, position): (String, String, String, i64) = read_cursor(text)?;
        let order = match order.as_str() {
            "a" => Order::Ascending,
            "d" => Order::Descending,
            _ => return None,
        };
        let page = match side.as_str() {
            "b" => Page::Before(Some(position)),
            "a" => Page::After(position),
            _ => return None,
        };
        (kind == "t").then_some(TurnsCursor { order, page })
    }
}

/// Reads a cursor of either kind: for fuzzing.
///
/// # Panics
/// One that was read is not written as it was: a fault of ours.
pub(crate) fn reads_cursor(text: &str) {
    if let Some(cursor) = TurnsCursor::read(text) {
        assert_eq!(TurnsCursor::read(&cursor.write()), Some(cursor));
        let _ = edges(cursor.page, &[], false);
    }
    if let Some(Cursor { last_at, conversation }) = conversations_cursor(text) {
        let again = conversations_cursor(&write_cursor(&json!(["c", last_at, conversation])));
        assert_eq!(again, Some(Cursor { last_at, conversation }));
    }
}

/// The pages beside this one: the older, then the newer. Positions are dense from 1, so that there is an older turn
/// exactly if the oldest here is not the first. Newer ones are known where the page was read that way, and sure where
/// it was read the other way from a place behind it; a page read from the end has none yet.
fn edges(page: Page, rows: &[&Kept], more: bool) -> (Option<Page>, Option<Page>) {
    let lowest = rows.iter().map(|row| row.position).min();
    let highest = rows.iter().map(|row| row.position).max();
    match (page, lowest, highest) {
        (Page::Before(below), Some(lowest), Some(highest)) => {
            (more.then_some(Page::Before(Some(lowest))), below.map(|_| Page::After(highest)))
        }
        (Page::After(_), Some(lowest), Some(highest)) => {
            ((lowest > 1).then_some(Page::Before(Some(lowest))), more.then_some(Page::After(highest)))
        }
        // Behind either end: the way back.
        (Page::Before(below), ..) => (None, below.map(|below| Page::After(below.saturating_sub(1)))),
        (Page::After(above), ..) => ((above > 0).then_some(Page::Before(Some(above.saturating_add(1)))), None),
    }
}

fn describe(conversation: &Conversation) -> serde_json::Value {
    json!({
        "conversation": conversation.conversation,
        "last_at": conversation.last_at,
        "last_position": conversation.last_position,
    })
}

fn conversations_cursor(text: &str) -> Option<Cursor> {
    let (kind, last_at, conversation): (String, i64, String) = read_cursor(text)?;
    (kind == "c").then_some(Cursor { last_at, conversation })
}

fn write_cursor(place: &serde_json::Value) -> String {
    URL_SAFE_NO_PAD.encode(place.to_string())
}

fn read_cursor<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

pub(crate) fn get<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn limit(query: &[(String, String)], shared: &Shared) -> Result<usize, Problem> {
    let max = shared.config.page_turns_max;
    let Some(text) = get(query, "limit") else { return Ok(shared.config.page_turns_default.min(max)) };
    let limit = text.parse().ok().filter(|limit| (1..=max).contains(limit));
    limit.ok_or_else(|| Problem::parameter("limit", format!("must be 1 to {max}"), "page with the cursors for more"))
}

fn bad_cursor() -> Problem {
    Problem::parameter("cursor", "is none of ours", "send `next` or `previous` of a page as it is, or start without")
}

/// Sees to it that the turns can be read: one that a newer release wrote may need the schema registry.
pub(crate) async fn know(shared: &Shared, turns: &[Arc<Kept>]) -> Result<(), Problem> {
    let known = shared.registry.know_now::<Turn>(turns.iter().map(|turn| turn.value.as_slice())).await;
    known.map_err(|error| {
        tracing::warn!(%error, "a turn in history has a schema that is not known");
        Problem::registry_unavailable()
    })
}

#[expect(clippy::needless_pass_by_value, reason = "it is called by map_err")]
pub(crate) fn unavailable(error: HistoryError) -> Problem {
    tracing::warn!(%error, "history could not be read");
    Problem::history_unavailable()
}

pub(crate) fn answer(body: String) -> Response {
    let kind = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static("no-store"))], body)
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_come_back_as_they_went_and_others_are_refused() {
        for order in [Order::Ascending, Order::Descending] {
            for page in [Page::Before(Some(7)), Page::After(0), Page::After(i64::MAX)] {
                let cursor = TurnsCursor { order, page };
                assert_eq!(TurnsCursor::read(&cursor.write()), Some(cursor));
            }
        }
        let list = write_cursor(&json!(["c", 5, "room:7"]));
        assert_eq!(conversations_cursor(&list), Some(Cursor { last_at: 5, conversation: "room:7".to_owned() }));
        assert_eq!(TurnsCursor::read(&list), None);
        assert_eq!(conversations_cursor("no cursor"), None);
    }
}
