//! The contract of a schema registry's client, on a registry in this process, and on the Apicurio Registry that
//! `UNDERTONE_TEST_APICURIO` names.

use std::time::Duration;

use opentelemetry::metrics::{Meter, MeterProvider as _};
use schemas::{Codec, Kind, Turn, latest};
use serde_json::{Value, json};
use store::registry::subjects::{self, LEVEL, State};
use store::registry::{Client, Registry, RegistryError, Settings, Subject};
use tests::registry::topic;
use tokio_util::sync::CancellationToken;

fn meter() -> Meter {
    opentelemetry_sdk::metrics::SdkMeterProvider::default().meter("test")
}

fn client(settings: &Settings) -> Client {
    Client::new(settings, &meter()).unwrap()
}

fn subject() -> Subject {
    Subject::of(&topic()).unwrap()
}

/// Registers the schemas of a subject, as a deployment does.
async fn apply(client: &Client, subject: &Subject) -> u32 {
    let found = subjects::compare(client, std::slice::from_ref(subject)).await.unwrap();
    assert_eq!(found[0].state, State::Missing);
    subjects::apply(client, &found[0]).await.unwrap().id
}

/// The schema of a turn, as another release may have it.
fn changed(change: impl FnOnce(&mut Vec<Value>)) -> String {
    let mut schema: Value = serde_json::from_str(latest(Kind::Turn).text).unwrap();
    change(schema["fields"].as_array_mut().unwrap());
    schema.to_string()
}

/// All versions that a deployment registers.
fn every_version() -> Vec<u32> {
    (1..=latest(Kind::Turn).version).collect()
}

fn newer(name: &str) -> String {
    changed(|fields| fields.insert(0, json!({ "name": name, "type": ["null", "string"], "default": null })))
}

fn breaking() -> String {
    changed(|fields| fields.push(json!({ "name": "weather", "type": "string" })))
}

/// A turn as the release with one field more in front writes it, under this id.
fn written_by_newer(id: u32) -> (Turn, Vec<u8>) {
    let turn = tests::turn("room", "1", "good morning");
    let mut bytes = Codec::embedded().encode(&turn).unwrap();
    bytes[1..5].copy_from_slice(&id.to_be_bytes());
    bytes.insert(5, 0);
    (turn, bytes)
}

#[tokio::test]
async fn registering_twice_gives_the_same_id() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    let id = apply(&client, &subject).await;
    let found = subjects::compare(&client, std::slice::from_ref(&subject)).await.unwrap();
    let State::Registered(place) = found[0].state else { panic!("{found:?}") };
    assert_eq!((place.id, place.version, found[0].level.as_deref()), (id, latest(Kind::Turn).version, Some(LEVEL)));
    assert!(!found[0].is_open());
    assert_eq!(subjects::apply(&client, &found[0]).await.unwrap(), place);
    assert_eq!(client.versions(&subject.name).await.unwrap(), every_version());
    // The same schema is the same id under every subject: a turn keeps it from topic to topic.
    let other = Subject::of(&topic()).unwrap();
    assert_eq!(apply(&client, &other).await, id);
}

#[tokio::test]
async fn a_level_that_somebody_lowered_is_set_again() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    client.set_level(&subject.name, "NONE").await.unwrap();
    let found = subjects::compare(&client, std::slice::from_ref(&subject)).await.unwrap();
    assert!(found[0].is_open() && matches!(found[0].state, State::Registered(_)), "{found:?}");
    subjects::apply(&client, &found[0]).await.unwrap();
    assert_eq!(client.level(&subject.name).await.unwrap().as_deref(), Some(LEVEL));
}

#[tokio::test]
async fn a_change_that_breaks_readers_is_refused() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    assert_eq!(client.objection(&subject.name, &newer("weather")).await.unwrap(), None);
    assert!(client.objection(&subject.name, &breaking()).await.unwrap().is_some());
    let refused = client.register(&subject.name, &breaking()).await.unwrap_err();
    assert!(matches!(&refused, RegistryError::Incompatible { message, .. } if !message.is_empty()), "{refused}");
    assert!(refused.to_string().contains(&subject.name), "{refused}");
    assert_eq!(client.versions(&subject.name).await.unwrap(), every_version());
}

#[tokio::test]
async fn the_registry_refuses_what_this_release_may_not_become() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    // Somebody was here first, with a schema that does not go together with ours.
    client.register(&subject.name, &breaking()).await.unwrap();
    client.set_level(&subject.name, LEVEL).await.unwrap();
    let found = subjects::compare(&client, std::slice::from_ref(&subject)).await.unwrap();
    assert!(matches!(found[0].state, State::Incompatible(_)), "{found:?}");
    let refused = subjects::apply(&client, &found[0]).await.unwrap_err();
    assert!(matches!(refused, RegistryError::Incompatible { .. }), "{refused}");
}

/// What CI asks of every change: each committed version, in order, is one that the registry takes.
#[tokio::test]
async fn every_committed_version_is_compatible_with_those_before_it() {
    let server = tests::registry::Registry::start().await;
    let client = client(&server.settings());
    for wanted in schemas::topic::wanted(&[]) {
        // A subject of each kind that nobody has: kinds are told by a topic's name, and only turns have several.
        let name = format!("test-{}-{}", uuid::Uuid::new_v4().simple(), schemas::topic::subject(&wanted.name));
        for version in schemas::versions(wanted.kind) {
            assert_eq!(client.objection(&name, version.text).await.unwrap(), None, "{name}");
            client.register(&name, version.text).await.unwrap();
            client.set_level(&name, LEVEL).await.unwrap();
        }
        assert_eq!(client.versions(&name).await.unwrap().len(), schemas::versions(wanted.kind).count());
    }
}

#[tokio::test]
async fn values_carry_the_ids_of_the_registry() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    let id = apply(&client, &subject).await;
    let registry = Registry::open(&server.settings(), &[subject], &meter()).await.unwrap();
    let turn = tests::turn("room", "1", "good morning");
    let bytes = registry.codec().encode(&turn).unwrap();
    assert_eq!(bytes[1..5], id.to_be_bytes());
    assert_eq!(registry.codec().decode::<Turn>(&bytes).unwrap(), turn);
    // What was written before there was this registry.
    assert_eq!(registry.codec().decode::<Turn>(&Codec::embedded().encode(&turn).unwrap()).unwrap(), turn);
}

#[tokio::test]
async fn what_is_not_registered_is_named_with_the_mend() {
    let server = tests::registry::Registry::start().await;
    let subject = subject();
    let error = Registry::open(&server.settings(), std::slice::from_ref(&subject), &meter()).await.unwrap_err();
    assert!(!error.is_away());
    let message = error.to_string();
    assert!(message.contains(&subject.name) && message.contains("undertone topics apply"), "{message}");
    let versions = client(&server.settings()).versions(&subject.name).await.unwrap();
    assert_eq!(versions, [0; 0], "nothing registers by itself");
}

#[tokio::test]
async fn ids_of_a_newer_release_are_known_from_the_start() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    let id = client.register(&subject.name, &newer("weather")).await.unwrap();
    let registry = Registry::open(&server.settings(), &[subject], &meter()).await.unwrap();
    server.close();
    let (turn, bytes) = written_by_newer(id);
    assert_eq!(registry.codec().decode::<Turn>(&bytes).unwrap(), turn);
}

#[tokio::test]
async fn an_unknown_id_is_asked_for_once() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    let registry = Registry::open(&server.settings(), std::slice::from_ref(&subject), &meter()).await.unwrap();
    let id = client.register(&subject.name, &newer("wind")).await.unwrap();
    let (turn, bytes) = written_by_newer(id);
    let stop = CancellationToken::new();
    registry.know::<Turn>([bytes.as_slice()], &stop).await.unwrap();
    assert_eq!(registry.codec().decode::<Turn>(&bytes).unwrap(), turn);
    // Kept: a registry that is away is not missed.
    server.close();
    registry.know::<Turn>([bytes.as_slice()], &stop).await.unwrap();
    assert_eq!(registry.away(), None);
}

#[tokio::test]
async fn an_id_that_nobody_registered_is_the_fault_of_the_value() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    // Registered, but not as a turn.
    let elsewhere = format!("test-{}-value", uuid::Uuid::new_v4().simple());
    let foreign = client.register(&elsewhere, r#"{"type":"record","name":"Other","fields":[]}"#).await.unwrap();
    let registry = Registry::open(&server.settings(), &[subject], &meter()).await.unwrap();
    let stop = CancellationToken::new();
    for id in [u32::MAX / 2, foreign] {
        let (_, bytes) = written_by_newer(id);
        registry.know::<Turn>([bytes.as_slice()], &stop).await.unwrap();
        let fault = registry.codec().decode::<Turn>(&bytes).unwrap_err();
        assert!(matches!(fault, schemas::DecodeError::UnknownSchema(found) if found == id), "{fault}");
        // That nothing stands behind it is kept for a while too.
        server.close();
        registry.know_now::<Turn>([bytes.as_slice()]).await.unwrap();
        server.open();
    }
}

#[tokio::test]
async fn a_value_with_an_unknown_id_waits_for_a_registry_that_is_away() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    let registry = Registry::open(&server.settings(), std::slice::from_ref(&subject), &meter()).await.unwrap();
    let id = client.register(&subject.name, &newer("sunshine")).await.unwrap();
    let (turn, bytes) = written_by_newer(id);
    server.close();
    // Who cannot wait is told, and then at once.
    let now = registry.know_now::<Turn>([bytes.as_slice()]).await.unwrap_err();
    assert!(now.is_away(), "{now}");
    assert!(registry.know_now::<Turn>([bytes.as_slice()]).await.unwrap_err().is_away());
    let since = registry.away().expect("it is away").since;
    let (waiting, stop) = (registry.clone(), CancellationToken::new());
    let (value, stopped) = (bytes.clone(), stop.clone());
    let waits = tokio::spawn(async move { waiting.know::<Turn>([value.as_slice()], &stopped).await });
    server.open();
    waits.await.unwrap().unwrap();
    assert_eq!(registry.codec().decode::<Turn>(&bytes).unwrap(), turn);
    assert_eq!(registry.away(), None, "since {since:?}");
}

#[tokio::test]
async fn a_wait_for_the_registry_is_bounded_and_ends_with_the_process() {
    let server = tests::registry::Registry::start().await;
    let (client, subject) = (client(&server.settings()), subject());
    apply(&client, &subject).await;
    let impatient = Settings { away_max: Duration::ZERO, ..server.settings() };
    let bounded = Registry::open(&impatient, std::slice::from_ref(&subject), &meter()).await.unwrap();
    let patient = Registry::open(&server.settings(), std::slice::from_ref(&subject), &meter()).await.unwrap();
    server.close();
    let (_, bytes) = written_by_newer(u32::MAX / 2);
    let stop = CancellationToken::new();
    assert!(bounded.know::<Turn>([bytes.as_slice()], &stop).await.unwrap_err().is_away());
    stop.cancel();
    assert!(patient.know::<Turn>([bytes.as_slice()], &stop).await.unwrap_err().is_away());
}

#[tokio::test]
async fn the_next_address_is_asked_where_one_is_silent() {
    let (silent, server) = (tests::registry::Registry::in_process().await, tests::registry::Registry::start().await);
    silent.close();
    let settings = Settings { urls: vec![silent.url(), server.url()], ..server.settings() };
    let client = client(&settings);
    assert_eq!(client.versions("nobody-value").await.unwrap(), [0; 0]);
    assert_eq!(client.address(), server.url());
}

#[tokio::test]
async fn what_is_no_registry_is_told_from_one_that_lacks_a_schema() {
    let server = tests::registry::Registry::start().await;
    let settings = Settings { urls: vec![format!("{}/elsewhere", server.url())], ..server.settings() };
    let error = client(&settings).look_up("nobody-value", latest(Kind::Turn).text).await.unwrap_err();
    let told = matches!(error, RegistryError::Foreign { .. } | RegistryError::Refused { .. });
    assert!(told && error.to_string().contains(&settings.urls[0]), "{error}");
}
