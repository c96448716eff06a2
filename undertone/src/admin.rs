//! What operators ask over HTTP: health, status and metrics.
//!
//! `/livez`, `/readyz`, `/startupz`, their customer's names `/live`, `/ready`, `/health`, then `/status` and
//! `/metrics`. They answer from the moment the listener is bound, before any role has started. Everything else is the
//! roles' routers, which are put in when they are there.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::json;
use tower::ServiceExt as _;

use crate::health::{Health, Readiness, Reason};
use crate::lag::Lag;
use crate::telemetry::Metrics;

/// What `/status` tells beside health and lag; fixed once the addresses are known.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// Version of the program.
    pub version: &'static str,
    /// Roles that this process plays.
    pub roles: Vec<&'static str>,
    /// Address of this listener.
    pub http: String,
    /// Brokers of the log, as clients name them.
    pub kafka: String,
    /// Whether the log is in this process.
    pub broker_embedded: bool,
    /// Name of this process among those that share the work.
    pub instance: String,
    /// Stages that run here, in order; none: this process plays no processors.
    pub stages: Vec<String>,
    /// When the process started, in milliseconds since the Unix epoch.
    pub started_at: i64,
}

/// The admin endpoints of one pipeline, and a place for the roles' routers.
#[derive(Debug, Clone)]
pub struct Admin {
    health: Health,
    metrics: Metrics,
    facts: Arc<OnceLock<Facts>>,
    roles: Arc<OnceLock<Router>>,
}

impl Admin {
    /// Endpoints that say "starting" until told otherwise.
    pub fn new(health: Health, metrics: Metrics) -> Admin {
        Admin { health, metrics, facts: Arc::default(), roles: Arc::default() }
    }

    /// Puts in what is known once everything has started: the facts and the roles' routers. Only the first call counts.
    pub fn open(&self, facts: Facts, roles: Router) {
        let _ = self.facts.set(facts);
        let _ = self.roles.set(roles);
    }

    /// The whole listener's router.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(live))
            .route("/live", get(live))
            .route("/readyz", get(ready))
            .route("/ready", get(ready))
            .route("/startupz", get(startup))
            .route("/health", get(health))
            .route("/status", get(status))
            .route("/metrics", get(metrics))
            .fallback(roles)
            .with_state(self.clone())
    }
}

#[derive(Serialize)]
struct Told<S> {
    status: S,
    reasons: Vec<Reason>,
}

async fn live() -> Json<serde_json::Value> {
    // Answering is the proof; a role that fails ends the process.
    Json(json!({ "status": "live" }))
}

async fn ready(State(admin): State<Admin>) -> Response {
    // Taking traffic away from a process that serves in part would help nobody: what is away is away for all.
    let (status, reasons) = admin.health.told();
    let code = if status == Readiness::Unready { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(Told { status, reasons })).into_response()
}

async fn startup(State(admin): State<Admin>) -> Response {
    if admin.health.is_started() {
        return Json(json!({ "status": "started" })).into_response();
    }
    let body = Told { status: "starting", reasons: admin.health.reasons() };
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

async fn health(State(admin): State<Admin>) -> Response {
    // For people and dashboards: always answers, and says in words what /readyz says in its code.
    let (readiness, reasons) = admin.health.told();
    let status = match readiness {
        Readiness::Ready => "healthy",
        Readiness::Degraded => "degraded",
        Readiness::Unready => "unhealthy",
    };
    Json(Told { status, reasons }).into_response()
}

#[derive(Serialize)]
struct Status {
    status: Readiness,
    reasons: Vec<Reason>,
    #[serde(flatten)]
    facts: Facts,
    lag: Vec<Lag>,
    warnings: Vec<Reason>,
}

async fn status(State(admin): State<Admin>) -> Response {
    let (status, reasons) = admin.health.told();
    let facts = admin.facts.get().cloned().unwrap_or_default();
    let (lag, warnings) = (admin.health.lag(), admin.health.warnings());
    Json(Status { status, reasons, facts, lag, warnings }).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(e) => problem(
            StatusCode::INTERNAL_SERVER_ERROR,
            "metrics_unavailable",
            "Metrics unavailable",
            &format!("gather metrics: {e}"),
        ),
    }
}

async fn roles(State(admin): State<Admin>, request: Request<Body>) -> Response {
    let Some(router) = admin.roles.get() else {
        let mut response = problem(
            StatusCode::SERVICE_UNAVAILABLE,
            "starting",
            "Starting",
            "the process is starting; /readyz says what it waits for",
        );
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        return response;
    };
    let Ok(response) = router.clone().oneshot(request).await;
    response
}

/// An RFC 9457 problem.
fn problem(status: StatusCode, code: &str, title: &str, detail: &str) -> Response {
    let kind = format!("urn:undertone:problem:{code}");
    let body = json!({ "type": kind, "title": title, "status": status.as_u16(), "detail": detail, "code": code });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::State as Part;

    async fn ask(admin: &Admin, path: &str) -> (u16, String) {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = admin.router().oneshot(request).await.unwrap();
        let code = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn readiness_says_why_not_and_liveness_answers_from_the_start() {
        let health = Health::default();
        let admin = Admin::new(health.clone(), Metrics::new());
        assert_eq!(ask(&admin, "/livez").await.0, 200);
        assert_eq!(ask(&admin, "/startupz").await.0, 503);
        let (code, body) = ask(&admin, "/v1/conversations").await;
        assert_eq!(code, 503, "{body}");
        health.set("kafka", Part::Unwell("no broker answers at kafka:9092".into()));
        health.set_started();
        admin.open(Facts { version: "1", ..Facts::default() }, Router::new().route("/role", get(|| async { "role" })));
        let (code, body) = ask(&admin, "/ready").await;
        assert_eq!(code, 503);
        assert!(body.contains("no broker answers at kafka:9092"), "{body}");
        assert_eq!(ask(&admin, "/health").await.0, 200);
        health.set("kafka", Part::Ready);
        assert_eq!(ask(&admin, "/readyz").await.0, 200);
        assert_eq!(ask(&admin, "/startupz").await.0, 200);
        assert_eq!(ask(&admin, "/role").await, (200, "role".to_owned()));
        assert_eq!(ask(&admin, "/nothing").await.0, 404);
    }

    #[tokio::test]
    async fn metrics_are_the_pipelines_own() {
        let metrics = Metrics::new();
        metrics.meter().u64_counter("undertone.test").build().add(1, &[]);
        let admin = Admin::new(Health::default(), metrics);
        assert!(ask(&admin, "/metrics").await.1.contains("undertone_test_total 1"));
    }
}
