//! The committed history of schemas: every version that was ever written, with the id that the embedded registry
//! gives it. A new version is a new file in `avro/history` and a new line here; old lines never change.
//! Another registry gives ids of its own: [`Ids`].

use std::collections::HashMap;

/// What a value is; one Avro record each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`crate::Turn`].
    Turn,
    /// [`crate::Reject`].
    Reject,
    /// [`crate::Reply`].
    Reply,
    /// [`crate::Delivery`].
    Delivery,
    /// [`crate::Feedback`].
    Feedback,
    /// [`crate::Redrive`].
    Redrive,
    /// [`crate::slice::Sequence`].
    Sequence,
    /// [`crate::slice::EncodeSlice`].
    EncodeSlice,
    /// [`crate::slice::EmotionSlice`].
    EmotionSlice,
    /// [`crate::slice::DialogueSlice`].
    DialogueSlice,
    /// [`crate::slice::PersonalitySlice`].
    PersonalitySlice,
    /// [`crate::slice::CoherenceSlice`].
    CoherenceSlice,
    /// [`crate::slice::SynesthesiaSlice`].
    SynesthesiaSlice,
    /// [`crate::slice::MemorySlice`].
    MemorySlice,
    /// [`crate::Erasure`].
    Erasure,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 15] = [
        Kind::Turn,
        Kind::Reject,
        Kind::Reply,
        Kind::Delivery,
        Kind::Feedback,
        Kind::Redrive,
        Kind::Sequence,
        Kind::EncodeSlice,
        Kind::EmotionSlice,
        Kind::DialogueSlice,
        Kind::PersonalitySlice,
        Kind::CoherenceSlice,
        Kind::SynesthesiaSlice,
        Kind::MemorySlice,
        Kind::Erasure,
    ];

    /// The name of its schema file.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Turn => "turn",
            Kind::Reject => "reject",
            Kind::Reply => "reply",
            Kind::Delivery => "delivery",
            Kind::Feedback => "feedback",
            Kind::Redrive => "redrive",
            Kind::Sequence => "sequence",
            Kind::EncodeSlice => "encode_slice",
            Kind::EmotionSlice => "emotion_slice",
            Kind::DialogueSlice => "dialogue_slice",
            Kind::PersonalitySlice => "personality_slice",
            Kind::CoherenceSlice => "coherence_slice",
            Kind::SynesthesiaSlice => "synesthesia_slice",
            Kind::MemorySlice => "memory_slice",
            Kind::Erasure => "erasure",
        }
    }
}

/// A version of a schema.
#[derive(Debug, Clone, Copy)]
pub struct Registered {
    /// The id in the Confluent wire format.
    pub id: u32,
    /// What it describes.
    pub kind: Kind,
    /// 1, 2, 3 … within its kind.
    pub version: u32,
    /// The schema itself, JSON.
    pub text: &'static str,
}

macro_rules! history {
    ($($id:literal $kind:ident $version:literal $file:literal;)*) => {
        &[$(Registered {
            id: $id,
            kind: Kind::$kind,
            version: $version,
            text: include_str!(concat!("../avro/history/", $file)),
        }),*]
    };
}

/// Every version that was ever written.
pub const REGISTERED: &[Registered] = history! {
    1 Turn 1 "turn.1.avsc";
    2 Reject 1 "reject.1.avsc";
    3 Reply 1 "reply.1.avsc";
    4 Delivery 1 "delivery.1.avsc";
    5 Feedback 1 "feedback.1.avsc";
    6 Sequence 1 "sequence.1.avsc";
    7 EncodeSlice 1 "encode_slice.1.avsc";
    8 EmotionSlice 1 "emotion_slice.1.avsc";
    9 Redrive 1 "redrive.1.avsc";
    10 Turn 2 "turn.2.avsc";
    11 DialogueSlice 1 "dialogue_slice.1.avsc";
    12 Turn 3 "turn.3.avsc";
    13 PersonalitySlice 1 "personality_slice.1.avsc";
    14 EmotionSlice 2 "emotion_slice.2.avsc";
    15 CoherenceSlice 1 "coherence_slice.1.avsc";
    16 SynesthesiaSlice 1 "synesthesia_slice.1.avsc";
    17 DialogueSlice 2 "dialogue_slice.2.avsc";
    18 Turn 4 "turn.4.avsc";
    19 MemorySlice 1 "memory_slice.1.avsc";
    20 Turn 5 "turn.5.avsc";
    21 EncodeSlice 2 "encode_slice.2.avsc";
    22 Erasure 1 "erasure.1.avsc";
    23 Turn 6 "turn.6.avsc";
};

/// The version that is written today.
pub fn latest(kind: Kind) -> &'static Registered {
    versions(kind).next_back().expect("every kind has a version: a test says so")
}

/// The ids of a registry other than the embedded one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// Under which id the newest committed version of a kind is written.
    pub written: HashMap<Kind, u32>,
    /// What it has of each kind; of a newer release too.
    pub read: Vec<Entry>,
}

/// A schema of another registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The id in the Confluent wire format.
    pub id: u32,
    /// What it describes.
    pub kind: Kind,
    /// The schema itself, JSON.
    pub text: String,
}

/// Every version of a kind, the oldest first.
pub fn versions(kind: Kind) -> impl DoubleEndedIterator<Item = &'static Registered> {
    REGISTERED.iter().filter(move |registered| registered.kind == kind)
}

/// Whether two texts are the same schema, however they are laid out.
pub fn is_same(one: &str, other: &str) -> bool {
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).ok();
    one == other || read(one).is_some_and(|one| read(other) == Some(one))
}
