//! From messages to turns and back to records: what a chain admits, what it rejects, what it writes. Pure.

use schemas::seal::Key;
use schemas::topic::{REJECT_BYTES_MAX, REJECTS, TEXT_BYTES_MAX, TURN_BYTES_MAX};
use schemas::{
    Codec, DecodeError, EncodeError, Envelope, Header, Reason, Reject, Stamp, Tier, TraceParent, Turn, reject,
};
use store::log::{Message, Record};
use uuid::Uuid;

/// Longest conversation id in bytes.
pub const CONVERSATION_BYTES_MAX: usize = 512;

/// What a record may grow by on its way through one chain: parts, position, key, headers. A turn that was taken must fit
/// wherever it goes; one that the log refuses would stop the processors at it for ever.
const ROOM_BYTES: usize = 32 * 1024;
/// Largest record of `turns.received`, in bytes.
const RECEIVED_BYTES_MAX: usize = TURN_BYTES_MAX - 2 * ROOM_BYTES;
/// Largest record between two chains, in bytes.
const BETWEEN_BYTES_MAX: usize = TURN_BYTES_MAX - ROOM_BYTES;
/// What a reject keeps of a record, in bytes: few compressed bytes of the log can be far more than it takes in one record.
const KEPT_BYTES_MAX: usize = REJECT_BYTES_MAX - 2 * ROOM_BYTES;
/// What a header takes beside its name and value, in bytes: their lengths.
const ROOM_OF_A_HEADER: usize = 20;

/// The end of the year 9999, in milliseconds since the Unix epoch.
const TIME_MS_MAX: i64 = 253_402_300_799_999;

/// Where an admitted turn came from, and what travels beside it.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its place in `turns.received`.
    pub stamp: Stamp,
    /// Its place in the topic that the chain reads: it is written to the same partition.
    pub partition: i32,
    correlation_id: String,
    trace: Option<TraceParent>,
    /// What sealed it: it goes on sealed.
    key: Option<Key>,
}

/// A message that is at fault.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// The class of the fault.
    pub reason: Reason,
    /// What is wrong and how to mend it.
    pub detail: String,
}

/// A message that was read.
pub type Admitted = Result<(Turn, Place), Refused>;

/// Reads a message and checks what the first processor promises to all that come after.
///
/// # Errors
/// The message is at fault.
pub fn admit(codec: &Codec, first: bool, message: &Message) -> Admitted {
    let value = message.value.as_deref().unwrap_or_default();
    let bytes_max = if first { RECEIVED_BYTES_MAX } else { BETWEEN_BYTES_MAX };
    if value.len() > bytes_max {
        let detail = format!("record of {} bytes; at most {bytes_max} are taken: shorten it", value.len());
        return Err(Refused { reason: Reason::Oversized, detail });
    }
    let read = codec.open(value).and_then(|(value, key)| Ok((codec.decode::<Turn>(&value)?, key)));
    let (turn, key) = read.map_err(|error| Refused {
        reason: match error {
            DecodeError::UnknownSchema(_) | DecodeError::WrongKind { .. } => Reason::UnknownSchema,
            DecodeError::Short(_)
            | DecodeError::Magic(_)
            | DecodeError::Malformed { .. }
            | DecodeError::Trailing(_)
            | DecodeError::Locked(_) => Reason::Malformed,
        },
        detail: error.to_string(),
    })?;
    let place = Stamp { partition: message.partition, offset: message.offset };
    let stamp = if first { check(&turn, message).map(|()| place)? } else { stamped(&turn, message.partition)? };
    let correlation_id = message.correlation_id().map_or_else(|| turn.id.to_string(), str::to_owned);
    let trace = message.trace();
    Ok((turn, Place { stamp, partition: message.partition, correlation_id, trace, key }))
}

/// What every turn in `turns.received` must keep, whoever wrote it.
fn check(turn: &Turn, message: &Message) -> Result<(), Refused> {
    let invalid = |detail: String| Err(Refused { reason: Reason::Invalid, detail });
    if turn.conversation.is_empty() || turn.conversation.len() > CONVERSATION_BYTES_MAX {
        return invalid(format!("conversation must have 1 to {CONVERSATION_BYTES_MAX} bytes"));
    }
    if message.key.as_deref() != Some(turn.conversation.as_bytes()) {
        return invalid("the record's key must be the turn's conversation, or its order is lost".to_owned());
    }
    if [turn.at, turn.received_at].iter().any(|ms| !(0..=TIME_MS_MAX).contains(ms)) {
        return invalid("at and received_at are milliseconds since 1970, up to the year 9999".to_owned());
    }
    if turn.text.len() > TEXT_BYTES_MAX {
        let detail = format!("text of {} bytes; at most {TEXT_BYTES_MAX} are taken: shorten it", turn.text.len());
        return Err(Refused { reason: Reason::Oversized, detail });
    }
    Ok(())
}

fn stamped(turn: &Turn, partition: i32) -> Result<Stamp, Refused> {
    match (turn.stamp, turn.position, turn.tier) {
        (Some(stamp), Some(_), Some(_)) if stamp.partition == partition => Ok(stamp),
        _ => Err(Refused {
            reason: Reason::Invalid,
            detail: "a turn between two chains must have passed the first one: write to turns.received".to_owned(),
        }),
    }
}

impl Place {
    /// The trace that came with it.
    pub(crate) fn trace(&self) -> Option<TraceParent> {
        self.trace
    }

    /// The trace that goes on with the turn. The same turn gets the same span however often its batch is run.
    pub(crate) fn trace_of(&self, id: Uuid, chain: &str) -> Option<TraceParent> {
        self.trace.map(|trace| trace.child(Uuid::new_v5(&id, chain.as_bytes())))
    }

    /// The correlation id that came with it.
    pub(crate) fn correlation_id(&self) -> &str {
        &self.correlation_id
    }

    /// The record of the turn that came from here. `now` in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// The turn does not fit its schema: a fault of ours.
    pub fn record(
        &self,
        codec: &Codec,
        turn: &Turn,
        topic: &str,
        chain: &str,
        now: i64,
    ) -> Result<Record, EncodeError> {
        let id = turn.id;
        let envelope = Envelope {
            id: id.to_string(),
            source: format!("/processors/{chain}"),
            kind: "dev.undertone.turn.enriched.v1".to_owned(),
            time: now,
            correlation_id: self.correlation_id.clone(),
            trace: self.trace_of(id, chain),
        };
        Ok(Record {
            topic: topic.to_owned(),
            partition: Some(self.partition),
            key: Some(turn.conversation.clone().into_bytes()),
            value: Some(self.key.as_ref().map_or_else(|| codec.encode(turn), |key| codec.seal(turn, key))?),
            headers: wire(envelope.headers()),
            timestamp: turn.received_at,
        })
    }
}

/// The record of a reject, with the message as it came, or with the beginning of one that no reject can hold. `now` in
/// milliseconds since the Unix epoch.
///
/// # Errors
/// A fault of ours.
pub fn rejection(codec: &Codec, refused: &Refused, mut message: Message, now: i64) -> Result<Record, EncodeError> {
    let correlation_id = message.correlation_id().map(str::to_owned);
    let detail = match cut(&mut message) {
        0 => refused.detail.clone(),
        left_out => format!(
            "{}; {left_out} bytes are left out here, the whole record stands at its offset until retention takes it",
            refused.detail
        ),
    };
    let Message { topic, partition, offset, key, value, headers, .. } = message;
    let id = Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("{topic}/{partition}/{offset}").as_bytes());
    let envelope = Envelope {
        id: id.to_string(),
        source: "/processors".to_owned(),
        kind: "dev.undertone.reject.v1".to_owned(),
        time: now,
        correlation_id: correlation_id.unwrap_or_else(|| id.to_string()),
        trace: None,
    };
    let reject = Reject {
        id,
        at: now,
        stage: "processors".to_owned(),
        reason: refused.reason.name().to_owned(),
        detail,
        attempt: reject::attempt(headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()))),
        source: None,
        bot: None,
        topic: Some(topic.to_string()),
        partition: Some(partition),
        offset: Some(offset),
        key: key.clone(),
        headers: headers.into_iter().map(|(name, value)| Header { name, value }).collect(),
        raw: value.unwrap_or_default(),
    };
    Ok(Record {
        topic: REJECTS.to_owned(),
        partition: None,
        key,
        value: Some(codec.encode(&reject)?),
        headers: wire(envelope.headers()),
        timestamp: now,
    })
}

/// Leaves out what a reject cannot hold, and says how many bytes that is: headers and key only if they alone are too large,
/// then the end of the value. The key is there twice, in the reject and beside it.
fn cut(message: &mut Message) -> usize {
    let size = |message: &Message| {
        let headers: usize =
            message.headers.iter().map(|(name, value)| name.len() + value.len() + ROOM_OF_A_HEADER).sum();
        (headers, message.key.as_ref().map_or(0, |key| 2 * key.len()), message.value.as_ref().map_or(0, Vec::len))
    };
    let before = size(message);
    if before.0 > KEPT_BYTES_MAX / 4 {
        message.headers.clear();
    }
    if before.1 > KEPT_BYTES_MAX / 4 {
        message.key = None;
    }
    let (headers, key, _) = size(message);
    if let Some(value) = &mut message.value {
        value.truncate(KEPT_BYTES_MAX - headers - key);
    }
    let after = size(message);
    (before.0 + before.1 + before.2) - (after.0 + after.1 + after.2)
}

fn wire(headers: Vec<(&'static str, String)>) -> Vec<(String, Vec<u8>)> {
    headers.into_iter().map(|(name, value)| (name.to_owned(), value.into_bytes())).collect()
}

/// Which tier new turns get.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TierPolicy {
    /// Always this one.
    Fixed(Tier),
    /// Full, but fast while the oldest turn in work has waited for longer than this, in milliseconds; full comes back
    /// when the wait has fallen to half of it.
    Degrade {
        /// The bound.
        lag_ms_max: i64,
    },
}

impl TierPolicy {
    /// The tier of a batch whose oldest turn has waited `lag_ms`, after `last`.
    pub fn choose(self, last: Tier, lag_ms: i64) -> Tier {
        match self {
            TierPolicy::Fixed(tier) => tier,
            TierPolicy::Degrade { lag_ms_max } if lag_ms > lag_ms_max => Tier::Fast,
            TierPolicy::Degrade { lag_ms_max } if lag_ms <= lag_ms_max / 2 => Tier::Full,
            TierPolicy::Degrade { .. } => last,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turn() -> Turn {
        serde_json::from_str(include_str!("../../schemas/avro/examples/turn.json")).unwrap()
    }

    fn message(codec: &Codec, turn: &Turn) -> Message {
        Message {
            topic: "undertone.turns.received.v1".into(),
            partition: 2,
            offset: 9,
            timestamp: 5,
            key: Some(turn.conversation.clone().into_bytes()),
            value: Some(codec.encode(turn).unwrap()),
            headers: vec![("correlationid".to_owned(), b"c-1".to_vec())],
        }
    }

    #[test]
    fn a_good_turn_is_admitted_with_its_place_and_keeps_its_correlation() {
        let codec = Codec::embedded();
        let (admitted, place) = admit(&codec, true, &message(&codec, &turn())).unwrap();
        assert_eq!(place.stamp, Stamp { partition: 2, offset: 9 });
        let record = place.record(&codec, &admitted, "t", "encode", 1).unwrap();
        assert_eq!(record.partition, Some(2));
        assert!(record.headers.contains(&("correlationid".to_owned(), b"c-1".to_vec())));
        assert_eq!(codec.decode::<Turn>(record.value.as_deref().unwrap()).unwrap(), turn());
    }

    #[test]
    fn each_fault_has_its_reason_and_keeps_the_raw_bytes() {
        let codec = Codec::embedded();
        let good = turn();
        let with = |change: &dyn Fn(&mut Message)| {
            let mut message = message(&codec, &good);
            change(&mut message);
            message
        };
        let long = Turn { text: "x".repeat(TEXT_BYTES_MAX + 1), ..good.clone() };
        let cases = [
            (with(&|m| m.value = None), Reason::Malformed),
            (with(&|m| m.value = Some(b"{}".to_vec())), Reason::Malformed),
            (with(&|m| m.value = Some(vec![0, 0, 0, 9, 9, 1])), Reason::UnknownSchema),
            (with(&|m| m.value.as_mut().unwrap().truncate(40)), Reason::Malformed),
            (with(&|m| m.key = Some(b"somebody else".to_vec())), Reason::Invalid),
            (with(&|m| m.value = Some(vec![0; TURN_BYTES_MAX + 1])), Reason::Oversized),
            (message(&codec, &long), Reason::Oversized),
        ];
        for (message, reason) in cases {
            let refused = admit(&codec, true, &message).unwrap_err();
            assert_eq!(refused.reason, reason, "{}", refused.detail);
            let raw = message.value.clone().unwrap_or_default();
            let record = rejection(&codec, &refused, message, 7).unwrap();
            let reject: Reject = codec.decode(record.value.as_deref().unwrap()).unwrap();
            assert_eq!((reject.raw, reject.offset, reject.reason.as_str()), (raw, Some(9), reason.name()));
        }
    }

    #[test]
    fn a_turn_that_is_taken_fits_wherever_it_goes() {
        let codec = Codec::embedded();
        let padded = |bytes: usize| {
            let turn = Turn { external_id: "x".repeat(bytes), ..turn() };
            let long = "c".repeat(bytes);
            Message { headers: vec![("correlationid".to_owned(), long.into_bytes())], ..message(&codec, &turn) }
        };
        let around = codec.encode(&turn()).unwrap().len() + 8;
        let (mut taken, place) = admit(&codec, true, &padded(RECEIVED_BYTES_MAX - around)).unwrap();
        (taken.position, taken.stamp, taken.tier) = (Some(1), Some(place.stamp), Some(Tier::Full));
        let record = place.record(&codec, &taken, "t", "encode", 1).unwrap();
        let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        let value = record.value.unwrap();
        assert!(headers < 1024 && value.len() + headers < BETWEEN_BYTES_MAX, "{} bytes and {headers}", value.len());
        // The next chain takes it as well; what is larger it does not.
        let next = Message { value: Some(value), ..message(&codec, &taken) };
        assert!(admit(&codec, false, &next).is_ok());
        for (first, bytes) in [(true, RECEIVED_BYTES_MAX), (false, BETWEEN_BYTES_MAX)] {
            assert_eq!(admit(&codec, first, &padded(bytes)).unwrap_err().reason, Reason::Oversized);
        }
    }

    #[test]
    fn a_record_that_no_reject_can_hold_is_rejected_with_what_fits_of_it() {
        let codec = Codec::embedded();
        let whole = message(&codec, &turn());
        let large = || vec![b'x'; 2 * REJECT_BYTES_MAX];
        let cases = [
            Message { value: Some(large()), ..whole.clone() },
            Message { key: Some(large()), ..whole.clone() },
            Message { headers: vec![("h".to_owned(), large())], ..whole.clone() },
            Message { key: Some(large()), value: Some(large()), headers: vec![("h".to_owned(), large())], ..whole },
        ];
        for message in cases {
            let refused = admit(&codec, true, &message).err();
            let refused = refused.unwrap_or(Refused { reason: Reason::Killer, detail: "it kills".to_owned() });
            let value = message.value.clone().unwrap();
            let record = rejection(&codec, &refused, message, 7).unwrap();
            let key = record.key.map_or(0, |key| key.len());
            let bytes = record.value.unwrap();
            assert!(bytes.len() + key < REJECT_BYTES_MAX - ROOM_BYTES, "{} bytes", bytes.len() + key);
            let reject: Reject = codec.decode(&bytes).unwrap();
            assert!(
                value.starts_with(&reject.raw) && reject.detail.contains("bytes are left out here"),
                "{}",
                reject.detail
            );
        }
    }

    #[test]
    fn overload_gives_the_fast_tier_until_the_lag_is_gone() {
        let policy = TierPolicy::Degrade { lag_ms_max: 1000 };
        assert_eq!(policy.choose(Tier::Full, 1000), Tier::Full);
        assert_eq!(policy.choose(Tier::Full, 1001), Tier::Fast);
        assert_eq!(policy.choose(Tier::Fast, 700), Tier::Fast, "no flapping");
        assert_eq!(policy.choose(Tier::Fast, 500), Tier::Full);
        assert_eq!(TierPolicy::Fixed(Tier::Fast).choose(Tier::Full, 0), Tier::Fast);
    }
}
