//! Every path of the read side, and what stands in front of all of them: the check of host and origin, and the count.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get};

use crate::problem::Problem;
use crate::{Shared, dream, guard, history, memories, page, registry, sse, stream};

/// The paths in the order of the map, each with what answers.
pub(crate) fn routes() -> Vec<(&'static str, MethodRouter<Arc<Shared>>)> {
    let mut routes = vec![
        ("/v1/stream", get(stream::upgrade)),
        ("/v1/conversations", get(history::conversations)),
        ("/v1/conversations/{id}", get(history::conversation).delete(memories::forget_conversation)),
        ("/v1/conversations/{id}/turns", get(history::turns)),
        ("/v1/conversations/{id}/memories", get(memories::recall)),
        ("/v1/conversations/{id}/memories/{position}", delete(memories::forget_memory)),
        ("/v1/conversations/{id}/rooms/{room}", delete(memories::forget_room)),
        ("/v1/conversations/{id}/palace", get(memories::palace)),
        ("/v1/people/{person}", delete(memories::forget_person)),
        ("/v1/conversations/{id}/events", get(sse::events)),
        ("/v1/conversations/{id}/dream", get(dream::dream)),
    ];
    routes.extend(registry::routes());
    routes.extend(page::routes());
    routes
}

/// All of them, ready to be merged with those of other roles.
pub(crate) fn build(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for (path, answer) in routes() {
        router = router.route(path, answer);
    }
    router
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            Problem::wrong_method(method.as_str(), uri.path())
        })
        .fallback(async |uri: Uri| Problem::unknown_path(uri.path()))
        .layer(middleware::from_fn_with_state(shared.clone(), front))
        .with_state(shared)
}

async fn front(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = match guard::check(request.headers(), request.uri(), &shared.config.hosts_allowed) {
        // Here and not in every handler, whose own answer would be bare text.
        Ok(()) if !legible(&path) => Problem::illegible_path(&path).into_response(),
        Ok(()) if registry::is_at(&path) && shared.config.registry_elsewhere.is_some() => {
            registry::elsewhere(shared.config.registry_elsewhere.as_deref().unwrap_or_default()).into_response()
        }
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    shared.meters.answered(&path, response.status().as_u16());
    response
}

/// Whether a path, percent-decoded, is UTF-8. A `%` that no two hexadecimal digits follow stands for itself.
fn legible(path: &str) -> bool {
    let (bytes, mut decoded, mut at) = (path.as_bytes(), Vec::with_capacity(path.len()), 0);
    let digit = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.extend(u8::try_from(high * 16 + low));
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    std::str::from_utf8(&decoded).is_ok()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_path_is_legible_if_its_bytes_are_utf8() {
        for (path, expected) in [
            ("/v1/conversations/room%207/turns", true),
            ("/v1/conversations/%E2%82%AC", true),
            ("/v1/100%", true),
            ("/v1/%zz", true),
            ("/v1/conversations/%FF/turns", false),
            ("/v1/%E2%82", false),
            ("/v1/%c3%28", false),
        ] {
            assert_eq!(legible(path), expected, "{path}");
        }
    }

    #[test]
    fn every_route_is_described_and_every_description_has_a_route() {
        let openapi: Value = serde_json::from_str(page::OPENAPI).unwrap();
        assert!(openapi["openapi"].as_str().unwrap().starts_with("3.1"));
        let described: BTreeSet<&str> = openapi["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        let routed: BTreeSet<&str> = routes().into_iter().map(|(path, _)| path).collect();
        assert_eq!(described, routed);
    }

    #[test]
    fn every_reference_of_the_descriptions_leads_somewhere() {
        for text in [page::OPENAPI, page::ASYNCAPI] {
            let document: Value = serde_json::from_str(text).unwrap();
            let mut open = vec![&document];
            while let Some(value) = open.pop() {
                if let Some(target) = value.get("$ref").and_then(Value::as_str) {
                    let pointer = target.strip_prefix('#').unwrap_or_else(|| panic!("{target} is in the document"));
                    assert!(document.pointer(pointer).is_some(), "{target}");
                }
                match value {
                    Value::Object(map) => open.extend(map.values()),
                    Value::Array(list) => open.extend(list),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn streams_are_described() {
        let asyncapi: Value = serde_json::from_str(page::ASYNCAPI).unwrap();
        assert!(asyncapi["asyncapi"].as_str().unwrap().starts_with("3."));
        let channels = asyncapi["channels"].as_object().unwrap();
        let addresses: BTreeSet<&str> = channels.values().map(|c| c["address"].as_str().unwrap()).collect();
        assert_eq!(addresses, ["/v1/conversations/{id}/events", "/v1/stream"].into());
    }
}
