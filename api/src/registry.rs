//! The read half of the Confluent Schema Registry's API under `/registry`, so that an unmodified Avro deserialiser
//! decodes the topics.
//!
//! Schemas are those committed in `schemas` and never change while the process runs. Subjects follow the topic name
//! strategy. Whatever would write is refused as a registry in mode READONLY does (error code 42205). Error bodies are
//! the registry's own (`error_code`, `message`), not problem details, because its clients read those. Where the schemas
//! are kept by a registry outside, every path is answered 404 with its address: not forwarded, because what it asks of its
//! clients is between it and them, and not redirected, because clients would take their passwords along.
//! Source: docs.confluent.io, Schema Registry API reference.

use axum::extract::{Path, Query};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use schemas::{Kind, REGISTERED, Registered, latest, topic};
use serde_json::{Value, json};

const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// The paths, as they stand in OpenAPI, each with what answers.
pub(crate) fn routes<S: Clone + Send + Sync + 'static>() -> Vec<(&'static str, MethodRouter<S>)> {
    let refused = |router: MethodRouter<S>| router.fallback(refuse);
    vec![
        ("/registry", get(async || answer(&json!({})))),
        ("/registry/subjects", refused(get(subjects))),
        ("/registry/subjects/{subject}", refused(post(look_up))),
        ("/registry/subjects/{subject}/versions", refused(get(versions))),
        ("/registry/subjects/{subject}/versions/{version}", refused(get(version))),
        ("/registry/subjects/{subject}/versions/{version}/schema", refused(get(version_schema))),
        ("/registry/schemas/types", refused(get(async || answer(&json!(["AVRO"]))))),
        ("/registry/schemas/ids/{id}", refused(get(by_id))),
        ("/registry/schemas/ids/{id}/schema", refused(get(by_id_schema))),
        ("/registry/schemas/ids/{id}/subjects", refused(get(by_id_subjects))),
        ("/registry/schemas/ids/{id}/versions", refused(get(by_id_versions))),
        ("/registry/config", refused(get(async || answer(&json!({ "compatibilityLevel": "FULL_TRANSITIVE" }))))),
        ("/registry/config/{subject}", refused(get(config_of))),
        ("/registry/mode", refused(get(async || answer(&json!({ "mode": "READONLY" }))))),
        ("/registry/mode/{subject}", refused(get(mode_of))),
    ]
}

/// Whether a path is one of the registry's.
pub(crate) fn is_at(path: &str) -> bool {
    path.strip_prefix("/registry").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What every path of it answers where another registry gives the ids: those in here stand for nothing there.
pub(crate) fn elsewhere(url: &str) -> impl IntoResponse {
    let message =
        format!("the schemas of this deployment are kept by the registry at {url}: give clients that address");
    Refusal(StatusCode::NOT_FOUND, 404, message)
}

/// The registry's own error: HTTP status, its code, its words.
struct Refusal(StatusCode, u32, String);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.0, answer(&json!({ "error_code": self.1, "message": self.2 }))).into_response()
    }
}

type Answer = Result<Response, Refusal>;

async fn subjects() -> Response {
    answer(&json!(all_subjects().map(|(subject, _)| subject).collect::<Vec<_>>()))
}

async fn versions(Path(subject): Path<String>) -> Answer {
    let kind = kind_of(&subject)?;
    Ok(answer(&json!(of_kind(kind).map(|registered| registered.version).collect::<Vec<_>>())))
}

async fn version(Path((subject, version)): Path<(String, String)>) -> Answer {
    let found = find_version(&subject, &version)?;
    Ok(answer(&described(&subject, found)))
}

async fn version_schema(Path((subject, version)): Path<(String, String)>) -> Answer {
    Ok(raw(find_version(&subject, &version)?.text))
}

async fn by_id(Path(id): Path<String>, Query(query): Query<Vec<(String, String)>>) -> Answer {
    let found = find_id(&id)?;
    // A hint for contexts of a multi-tenant registry, or a filter: a schema under another subject is not found.
    let subject = query.iter().find(|(name, _)| name == "subject").map(|(_, value)| value.as_str());
    if let Some(subject) = subject.filter(|subject| !subject.is_empty())
        && kind_of(subject)? != found.kind
    {
        return Err(no_schema());
    }
    let mut body = json!({ "schema": found.text });
    if query.iter().any(|(name, value)| name == "fetchMaxId" && value == "true") {
        body["maxId"] = json!(REGISTERED.iter().map(|registered| registered.id).max());
    }
    Ok(answer(&body))
}

async fn by_id_schema(Path(id): Path<String>) -> Answer {
    Ok(raw(find_id(&id)?.text))
}

async fn by_id_subjects(Path(id): Path<String>) -> Answer {
    let found = find_id(&id)?;
    let subjects = all_subjects().filter(|(_, kind)| *kind == found.kind).map(|(subject, _)| subject);
    Ok(answer(&json!(subjects.collect::<Vec<_>>())))
}

async fn by_id_versions(Path(id): Path<String>) -> Answer {
    let found = find_id(&id)?;
    let subjects = all_subjects().filter(|(_, kind)| *kind == found.kind).map(|(subject, _)| subject);
    let places = subjects.map(|subject| json!({ "subject": subject, "version": found.version }));
    Ok(answer(&json!(places.collect::<Vec<_>>())))
}

/// Whether a schema is registered under the subject: what a serialiser without auto-registration asks.
async fn look_up(Path(subject): Path<String>, body: String) -> Answer {
    let kind = kind_of(&subject)?;
    let schema = schema_of(&body)?;
    let same = |registered: &&Registered| serde_json::from_str::<Value>(registered.text).is_ok_and(|own| own == schema);
    let found = of_kind(kind).find(same).ok_or_else(no_schema)?;
    Ok(answer(&described(&subject, found)))
}

/// The schema in the body of a look-up.
fn schema_of(body: &str) -> Result<Value, Refusal> {
    let unreadable = |what: &str| Refusal(StatusCode::UNPROCESSABLE_ENTITY, 42201, format!("Invalid schema: {what}"));
    let body: Value = serde_json::from_str(body).map_err(|_| unreadable("the body is not JSON"))?;
    let text = body["schema"].as_str().ok_or_else(|| unreadable("the field `schema` is missing"))?;
    serde_json::from_str(text).map_err(|_| unreadable("the schema is not JSON"))
}

/// Reads the body of a look-up: for fuzzing.
pub(crate) fn reads_schema(body: &str) {
    let _ = schema_of(body);
}

async fn config_of(Path(subject): Path<String>) -> Answer {
    kind_of(&subject)?;
    Ok(answer(&json!({ "compatibilityLevel": "FULL_TRANSITIVE" })))
}

async fn mode_of(Path(subject): Path<String>) -> Answer {
    kind_of(&subject)?;
    Ok(answer(&json!({ "mode": "READONLY" })))
}

/// Every other method: nothing is registered, changed or deleted from outside.
async fn refuse(method: Method, uri: Uri) -> Refusal {
    let message = format!(
        "{method} {} is not permitted: this registry is in mode READONLY, its schemas come with the release; \
         set auto.register.schemas=false and use.latest.version=true",
        uri.path()
    );
    let status = if method == Method::POST { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::METHOD_NOT_ALLOWED };
    Refusal(status, 42205, message)
}

fn answer(body: &Value) -> Response {
    let text = body.to_string();
    ([(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], text).into_response()
}

fn raw(schema: &'static str) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE))], schema).into_response()
}

fn described(subject: &str, registered: &Registered) -> Value {
    json!({
        "subject": subject,
        "version": registered.version,
        "id": registered.id,
        "schema": registered.text,
    })
}

/// Subjects of the topics that every deployment has; those between chains are answered for but not listed, because
/// where a chain is cut is the processors' configuration.
fn all_subjects() -> impl Iterator<Item = (String, Kind)> {
    topic::wanted(&[]).into_iter().map(|topic| (topic::subject(&topic.name), topic.kind))
}

fn of_kind(kind: Kind) -> impl Iterator<Item = &'static Registered> {
    REGISTERED.iter().filter(move |registered| registered.kind == kind)
}

fn kind_of(subject: &str) -> Result<Kind, Refusal> {
    let kind = subject.strip_suffix("-value").and_then(topic::kind);
    kind.ok_or_else(|| Refusal(StatusCode::NOT_FOUND, 40401, format!("Subject '{subject}' not found.")))
}

fn find_version(subject: &str, version: &str) -> Result<&'static Registered, Refusal> {
    let kind = kind_of(subject)?;
    if matches!(version, "latest" | "-1") {
        return Ok(latest(kind));
    }
    let number = version.parse::<u32>().ok().filter(|number| *number > 0).ok_or_else(|| {
        let message = format!(
            "The specified version '{version}' is not a valid version id. Allowed values are between [1, 2^31-1] and \
             the string \"latest\""
        );
        Refusal(StatusCode::UNPROCESSABLE_ENTITY, 42202, message)
    })?;
    let missing = || Refusal(StatusCode::NOT_FOUND, 40402, format!("Version {number} not found."));
    of_kind(kind).find(|registered| registered.version == number).ok_or_else(missing)
}

fn find_id(id: &str) -> Result<&'static Registered, Refusal> {
    let id = id.parse::<u32>().ok();
    REGISTERED.iter().find(|registered| Some(registered.id) == id).ok_or_else(no_schema)
}

fn no_schema() -> Refusal {
    Refusal(StatusCode::NOT_FOUND, 40403, "Schema not found".to_owned())
}
