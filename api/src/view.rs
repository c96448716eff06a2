//! A turn as JSON: the schema's field names, times as integers in milliseconds since the Unix epoch.
//!
//! The embedding's bytes are left out unless they are asked for, because they are most of a turn and few readers want
//! them; then they are base64. Fields are written one by one rather than through a tree of values, so that numbers of
//! 32 bits keep their short form; a test holds the list against the schema.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::{
    Coherence, Consent, Dialogue, Emotion, Encoding, Memory, Personality, Provenance, Sender, Skipped, Stamp,
    Synesthesia, Tier, Turn,
};
use serde::Serialize;

/// What of a turn is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Embeddings {
    /// `encoding.embedding` is absent.
    Hide,
    /// `encoding.embedding` has `values` in base64, `scale` and `dimension`.
    Show,
}

/// The turn as one JSON object.
pub(crate) fn json(turn: &Turn, embeddings: Embeddings) -> String {
    serde_json::to_string(&View::of(turn, embeddings))
        .expect("strings and numbers serialise, and no key is not a string")
}

#[derive(Serialize)]
struct View<'a> {
    id: String,
    conversation: &'a str,
    position: Option<i64>,
    at: i64,
    received_at: i64,
    source: &'a str,
    kind: &'a str,
    bot: Option<&'a str>,
    external_id: &'a str,
    sender: Option<&'a Sender>,
    chat_kind: Option<&'a str>,
    message_id: Option<&'a str>,
    reply_to: Option<&'a str>,
    language_hint: Option<&'a str>,
    text: &'a str,
    consent: Option<&'a Consent>,
    stamp: Option<Stamp>,
    tier: Option<Tier>,
    skipped: &'a [Skipped],
    encoding: Option<EncodingView<'a>>,
    emotion: Option<&'a Emotion>,
    personality: Option<&'a Personality>,
    dialogue: Option<&'a Dialogue>,
    memory: Option<MemoryView<'a>>,
    coherence: Option<&'a Coherence>,
    synesthesia: Option<&'a Synesthesia>,
    flags: &'a [String],
}

/// A memory without its stems: the text is there.
#[derive(Serialize)]
struct MemoryView<'a> {
    provenance: &'a Provenance,
    salience: f32,
    keep: bool,
    locus: Option<LocusView<'a>>,
}

#[derive(Serialize)]
struct LocusView<'a> {
    room: i32,
    /// Nothing where the room is not shown.
    name: Option<&'a str>,
    place: i32,
    x: i32,
    y: i32,
    shown: bool,
}

#[derive(Serialize)]
struct EncodingView<'a> {
    provenance: &'a Provenance,
    language: Option<&'a str>,
    language_confidence: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embedding: Option<EmbeddingView>,
}

#[derive(Serialize)]
struct EmbeddingView {
    values: String,
    scale: f32,
    dimension: i32,
}

impl<'a> View<'a> {
    fn of(turn: &'a Turn, embeddings: Embeddings) -> View<'a> {
        View {
            id: turn.id.to_string(),
            conversation: &turn.conversation,
            position: turn.position,
            at: turn.at,
            received_at: turn.received_at,
            source: &turn.source,
            kind: &turn.kind,
            bot: turn.bot.as_deref(),
            external_id: &turn.external_id,
            sender: turn.sender.as_ref(),
            chat_kind: turn.chat_kind.as_deref(),
            message_id: turn.message_id.as_deref(),
            reply_to: turn.reply_to.as_deref(),
            language_hint: turn.language_hint.as_deref(),
            text: &turn.text,
            consent: turn.consent.as_ref(),
            stamp: turn.stamp,
            tier: turn.tier,
            skipped: &turn.skipped,
            encoding: turn.encoding.as_ref().map(|encoding| EncodingView::of(encoding, embeddings)),
            emotion: turn.emotion.as_ref(),
            personality: turn.personality.as_ref(),
            dialogue: turn.dialogue.as_ref(),
            memory: turn.memory.as_ref().map(MemoryView::of),
            coherence: turn.coherence.as_ref(),
            synesthesia: turn.synesthesia.as_ref(),
            flags: &turn.flags,
        }
    }
}

impl<'a> MemoryView<'a> {
    fn of(memory: &'a Memory) -> MemoryView<'a> {
        let locus = memory.locus.as_ref().map(|locus| LocusView {
            room: locus.room,
            name: (!locus.sensitive).then_some(locus.name.as_str()),
            place: locus.place,
            x: locus.x,
            y: locus.y,
            shown: !locus.sensitive,
        });
        MemoryView { provenance: &memory.provenance, salience: memory.salience, keep: memory.keep, locus }
    }
}

impl<'a> EncodingView<'a> {
    fn of(encoding: &'a Encoding, embeddings: Embeddings) -> EncodingView<'a> {
        let embedding = (embeddings == Embeddings::Show).then(|| EmbeddingView {
            values: STANDARD.encode(&encoding.embedding.values),
            scale: encoding.embedding.scale,
            dimension: encoding.embedding.dimension,
        });
        EncodingView {
            provenance: &encoding.provenance,
            language: encoding.language.as_deref(),
            language_confidence: encoding.language_confidence,
            embedding,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample;

    #[test]
    fn every_field_of_the_schema_is_shown() {
        fn fields(schema: &serde_json::Value, name: &str) -> Vec<String> {
            let record = find(schema, name).unwrap_or_else(|| panic!("record {name} in the schema"));
            record["fields"].as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
        }
        fn find<'v>(value: &'v serde_json::Value, name: &str) -> Option<&'v serde_json::Value> {
            match value {
                serde_json::Value::Object(map) if value["name"] == name && map.contains_key("fields") => Some(value),
                serde_json::Value::Object(map) => map.values().find_map(|v| find(v, name)),
                serde_json::Value::Array(list) => list.iter().find_map(|v| find(v, name)),
                _ => None,
            }
        }
        fn find_in<'v>(schema: &'v serde_json::Value, name: &str) -> &'v serde_json::Value {
            if name == "Turn" { schema } else { find(&schema["fields"], name).unwrap() }
        }
        let schema: serde_json::Value = serde_json::from_str(schemas::latest(schemas::Kind::Turn).text).unwrap();
        let shown: serde_json::Value =
            serde_json::from_str(&json(&sample::turn("room", 1, "hi"), Embeddings::Show)).unwrap();
        for (record, place) in [
            ("Turn", &shown),
            ("Sender", &shown["sender"]),
            ("Encoding", &shown["encoding"]),
            ("Embedding", &shown["encoding"]["embedding"]),
            ("Emotion", &shown["emotion"]),
            ("Mood", &shown["emotion"]["mood"]),
            ("GoEmotions", &shown["emotion"]["probabilities"]),
            ("Consent", &shown["consent"]),
            ("Personality", &shown["personality"]),
            ("Evidence", &shown["personality"]["evidence"]),
            ("Traits", &shown["personality"]["traits"]),
            ("Estimate", &shown["personality"]["traits"]["openness"]),
            ("Style", &shown["personality"]["style"]),
            ("Dialogue", &shown["dialogue"]),
            ("Intent", &shown["dialogue"]["intents"][0]),
            ("DialogueState", &shown["dialogue"]["state"]),
            ("Question", &shown["dialogue"]["state"]["waiting"]),
            ("Coherence", &shown["coherence"]),
            ("Segment", &shown["coherence"]["segment"]),
            ("Density", &shown["coherence"]["density"]),
            ("Synesthesia", &shown["synesthesia"]),
            ("Swatch", &shown["synesthesia"]["palette"][0]),
            ("Sound", &shown["synesthesia"]["sound"]),
            ("Texture", &shown["synesthesia"]["texture"]),
        ] {
            let mut wanted = fields(find_in(&schema, record), record);
            // Who sees a turn sees it opened.
            wanted.retain(|field| field != "sealed");
            let mut got: Vec<String> = place.as_object().unwrap().keys().cloned().collect();
            wanted.sort();
            got.sort();
            assert_eq!(got, wanted, "{record}");
        }
    }

    #[test]
    fn a_room_that_is_not_shown_has_no_name() {
        let mut turn = sample::turn("room", 1, "hi");
        let locus = |turn: &Turn| {
            let shown: serde_json::Value = serde_json::from_str(&json(turn, Embeddings::Hide)).unwrap();
            shown["memory"]["locus"].clone()
        };
        assert_eq!((&locus(&turn)["name"], &locus(&turn)["shown"]), (&"train and late".into(), &true.into()));
        turn.memory.as_mut().and_then(|part| part.locus.as_mut()).unwrap().sensitive = true;
        let hidden = locus(&turn);
        assert_eq!((&hidden["name"], &hidden["shown"]), (&serde_json::Value::Null, &false.into()));
        assert_eq!(hidden["room"], 1);
    }

    #[test]
    fn embedding_is_shown_only_when_asked_for() {
        let turn = sample::turn("room", 1, "hi");
        let hidden: serde_json::Value = serde_json::from_str(&json(&turn, Embeddings::Hide)).unwrap();
        assert!(hidden["encoding"].get("embedding").is_none());
        assert_eq!(hidden["encoding"]["provenance"]["tier"], "full");
        let shown: serde_json::Value = serde_json::from_str(&json(&turn, Embeddings::Show)).unwrap();
        assert_eq!(shown["encoding"]["embedding"]["values"], "AQID");
        assert_eq!(shown["encoding"]["embedding"]["dimension"], 3);
    }
}
