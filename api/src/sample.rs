//! A turn with everything in it, for the tests of this crate.

use schemas::{
    Coherence, Consent, Density, Dialogue, DialogueState, Embedding, Emotion, Encoding, Evidence, GoEmotions, Intent,
    Mood, Personality, Provenance, Question, Segment, Sender, Skipped, Sound, Stamp, Style, Swatch, Synesthesia,
    Texture, Tier, Traits, Turn, turn_id,
};

/// A turn as the processors write it.
pub(crate) fn turn(conversation: &str, position: i64, text: &str) -> Turn {
    let provenance = Provenance { model: "sample".to_owned(), version: "1".to_owned(), tier: Tier::Full };
    let probabilities = GoEmotions { joy: 0.5, neutral: 0.25, ..GoEmotions::default() };
    Turn {
        id: turn_id("websocket", conversation, "ada", &position.to_string()),
        conversation: conversation.to_owned(),
        at: 1_700_000_000_000 + position,
        received_at: 1_700_000_000_001 + position,
        source: "websocket".to_owned(),
        kind: "message".to_owned(),
        bot: None,
        external_id: position.to_string(),
        sender: Some(Sender { id: "ada".to_owned(), name: Some("Ada".to_owned()), bot: false }),
        chat_kind: Some("room".to_owned()),
        message_id: None,
        reply_to: None,
        language_hint: None,
        text: text.to_owned(),
        consent: Some(Consent { granted: true, text_version: "1".to_owned() }),
        position: Some(position),
        stamp: Some(Stamp { partition: 0, offset: position }),
        tier: Some(Tier::Full),
        skipped: vec![Skipped { stage: "dialogue".to_owned(), reason: "empty_text".to_owned() }],
        encoding: Some(Encoding {
            provenance: provenance.clone(),
            embedding: Embedding { values: vec![1, 2, 3], scale: 0.5, dimension: 3 },
            language: Some("eng".to_owned()),
            language_confidence: Some(0.75),
            feeling: None,
        }),
        emotion: Some(Emotion {
            provenance: provenance.clone(),
            probabilities,
            ekman: probabilities.ekman(),
            labels: vec!["joy".to_owned()],
            valence: 0.5,
            arousal: None,
            dominance: None,
            intensity: 0.5,
            mood: Some(Mood {
                valence: 0.25,
                intensity: 0.5,
                trend: 0.0,
                volatility: 0.125,
                ekman: probabilities.ekman(),
                turns: position,
                turning: Some("relieved".to_owned()),
                tension: 0.125,
            }),
        }),
        personality: Some(Personality {
            provenance: provenance.clone(),
            evidence: Evidence { words: 2, scores: vec![0.5; 5] },
            words: 240,
            not_enough: false,
            traits: Some(Traits::default()),
            style: Some(Style::default()),
        }),
        dialogue: Some(Dialogue {
            provenance: provenance.clone(),
            intents: vec![Intent {
                name: "greeting".to_owned(),
                probability: 0.875,
                out_of_scope: false,
                set: "clinc150".to_owned(),
                set_sha256: "0123456789abcdef".to_owned(),
            }],
            act: "question".to_owned(),
            act_probability: 0.75,
            question: 0.75,
            slots: Vec::new(),
            next_actions: Vec::new(),
            state: Some(DialogueState {
                waiting: Some(Question { position, asked_by: "ada".to_owned(), at: 0 }),
                open_questions: 1,
                answered: 0,
                run: 1,
                exchanges: 0,
                slots: Vec::new(),
            }),
        }),
        coherence: Some(Coherence {
            provenance: provenance.clone(),
            score: 0.75,
            shift_probability: 0.625,
            shift: true,
            segment: Some(Segment { number: 2, first: position, turns: 1 }),
            density: Some(Density { purity: 0.5, entropy: 0.6875, effective_dimension: 2.0, turns: 2 }),
        }),
        synesthesia: Some(Synesthesia {
            provenance,
            colour: "#203a5c".to_owned(),
            palette: vec![Swatch { colour: "#1a2b3c".to_owned(), weight: 1.0 }],
            text_colour: "#ffffff".to_owned(),
            sound: Sound {
                tempo_bpm: 96.5,
                mode: "dorian".to_owned(),
                register: 62,
                timbre: "warm pad".to_owned(),
                dynamics: "mf".to_owned(),
            },
            texture: Texture { name: "velvet".to_owned(), roughness: 0.25, density: 0.5, motion: 0.125 },
        }),
    }
}
