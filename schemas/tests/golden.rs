//! Golden bytes: an accidental change of the encoding fails here. Each kind has an example (`avro/examples/KIND.json`)
//! and its bytes in the wire format (`avro/golden/KIND.hex`). After an intended change, write them anew with
//! `UNDERTONE_BLESS=1 cargo test -p schemas --test golden` and look at the difference.

use std::path::{Path, PathBuf};

use schemas::slice::{
    CoherenceSlice, DialogueSlice, EmotionSlice, EncodeSlice, MemorySlice, PersonalitySlice, Sequence, SynesthesiaSlice,
};
use schemas::{Codec, DecodeError, Delivery, Erasure, Feedback, Kind, Payload, Redrive, Reject, Reply, Turn};

fn avro(folder: &str, kind: Kind, extension: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("avro").join(folder).join(format!("{}.{extension}", kind.name()))
}

fn example<T: Payload>() -> T {
    let path = avro("examples", T::KIND, "json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn check<T: Payload + PartialEq + std::fmt::Debug>() {
    let codec = Codec::embedded();
    let value: T = example();
    let bytes = codec.encode(&value).unwrap();
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let path = avro("golden", T::KIND, "hex");
    if std::env::var_os("UNDERTONE_BLESS").is_some() {
        std::fs::write(&path, format!("{hex}\n")).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(hex, golden.trim(), "the encoding of {} changed", T::KIND.name());
    assert_eq!(codec.decode::<T>(&bytes).unwrap(), value);
    for cut in 0..bytes.len() {
        assert!(codec.decode::<T>(&bytes[..cut]).is_err(), "{} cut to {cut} bytes was accepted", T::KIND.name());
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(codec.decode::<T>(&longer), Err(DecodeError::Trailing(1))));
}

#[test]
fn every_kind_is_written_as_it_was_committed() {
    check::<Turn>();
    check::<Reject>();
    check::<Reply>();
    check::<Delivery>();
    check::<Feedback>();
    check::<Redrive>();
    check::<Sequence>();
    check::<EncodeSlice>();
    check::<EmotionSlice>();
    check::<DialogueSlice>();
    check::<PersonalitySlice>();
    check::<CoherenceSlice>();
    check::<SynesthesiaSlice>();
    check::<MemorySlice>();
    check::<Erasure>();
}

#[test]
fn a_foreign_value_is_told_apart_by_what_is_wrong_with_it() {
    let codec = Codec::embedded();
    let turn = codec.encode(&example::<Turn>()).unwrap();
    assert!(matches!(codec.decode::<Turn>(b""), Err(DecodeError::Short(0))));
    assert!(matches!(codec.decode::<Turn>(b"{\"id\":1}"), Err(DecodeError::Magic(b'{'))));
    assert!(matches!(codec.decode::<Turn>(&[0, 0, 0, 3, 231, 0]), Err(DecodeError::UnknownSchema(999))));
    assert!(matches!(codec.decode::<Reject>(&turn), Err(DecodeError::WrongKind { found: Kind::Turn, .. })));
    let mut broken = turn;
    broken.truncate(5);
    broken.extend_from_slice(&[0xff; 9]);
    assert!(matches!(codec.decode::<Turn>(&broken), Err(DecodeError::Malformed { id: 23, .. })));
}

#[test]
fn hostile_lengths_do_not_allocate() {
    // A string that claims 2^62 bytes, and an array that claims 2^62 items.
    let codec = Codec::embedded();
    let huge = [0, 0, 0, 0, 1, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert!(matches!(codec.decode::<Turn>(&huge), Err(DecodeError::Malformed { .. })));
}
