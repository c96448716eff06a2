//! The registry's read API, as Confluent's clients call it. `registry_client.py` calls it through the real one.

use api::Config;
use schemas::{Kind, latest, topic};
use serde_json::{Value, json};

use crate::site::Site;

#[tokio::test]
async fn schemas_are_found_by_id_by_version_and_by_themselves() {
    let site = Site::start(Config::default()).await;
    let turn = latest(Kind::Turn);
    let subject = topic::subject(topic::TURNS_ENRICHED);
    let (_, by_id) = site.get(&format!("/registry/schemas/ids/{}?subject={subject}&fetchMaxId=true", turn.id)).await;
    assert_eq!(by_id["schema"], turn.text);
    assert!(by_id["maxId"].as_u64().unwrap() >= 8);
    let (_, subjects) = site.get("/registry/subjects").await;
    assert!(subjects.as_array().unwrap().contains(&json!(subject)));
    let (_, versions) = site.get(&format!("/registry/subjects/{subject}/versions")).await;
    assert_eq!(versions.as_array().unwrap().last().unwrap(), turn.version);
    let (_, newest) = site.get(&format!("/registry/subjects/{subject}/versions/latest")).await;
    assert_eq!((newest["id"].as_u64(), newest["subject"].as_str()), (Some(turn.id.into()), Some(subject.as_str())));
    let (_, schema) = site.get(&format!("/registry/subjects/{subject}/versions/{}/schema", turn.version)).await;
    assert_eq!(schema["name"], "Turn");
    let (_, places) = site.get(&format!("/registry/schemas/ids/{}/versions", turn.id)).await;
    assert!(places.as_array().unwrap().contains(&json!({ "subject": subject, "version": turn.version })));
    let cut = topic::subject(&topic::turns_after("encode"));
    assert_eq!(site.get(&format!("/registry/subjects/{cut}/versions/{}", turn.version)).await.1["id"], turn.id);

    let client = reqwest::Client::new();
    let same = json!({ "schema": serde_json::from_str::<Value>(turn.text).unwrap().to_string() });
    let found = client.post(format!("http://{}/registry/subjects/{subject}", site.http)).body(same.to_string());
    let found: Value = serde_json::from_str(&found.send().await.unwrap().text().await.unwrap()).unwrap();
    assert_eq!(found["id"], turn.id);
}

#[tokio::test]
async fn errors_are_the_registrys_own_and_writes_are_refused() {
    let site = Site::start(Config::default()).await;
    let subject = topic::subject(topic::TURNS_ENRICHED);
    for (path, status, code) in [
        ("/registry/subjects/nobody-value/versions".to_owned(), 404, 40401),
        (format!("/registry/subjects/{subject}/versions/99"), 404, 40402),
        (format!("/registry/subjects/{subject}/versions/first"), 422, 42202),
        ("/registry/schemas/ids/4711".to_owned(), 404, 40403),
        (format!("/registry/schemas/ids/2?subject={subject}"), 404, 40403),
    ] {
        let (got, body) = site.get(&path).await;
        assert_eq!((got, body["error_code"].as_u64()), (status, Some(code)), "{path}");
    }
    assert_eq!(site.get("/registry/config").await.1["compatibilityLevel"], "FULL_TRANSITIVE");
    assert_eq!(site.get("/registry/mode").await.1["mode"], "READONLY");
    let client = reqwest::Client::new();
    let url = |path: &str| format!("http://{}/registry/{path}", site.http);
    for (request, status) in [
        (client.post(url(&format!("subjects/{subject}/versions"))), 422),
        (client.put(url("config")), 405),
        (client.delete(url(&format!("subjects/{subject}"))), 405),
    ] {
        let response = request.body("{}").send().await.unwrap();
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.headers()["content-type"], "application/vnd.schemaregistry.v1+json");
        let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        assert_eq!(body["error_code"], 42205);
    }
}
