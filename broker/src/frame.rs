//! Decoding what strangers send: counts in a request are held against what is there before room is made for them.
//!
//! The generated decoders make room for as many elements as an array says that it has; a request of thirty bytes could
//! ask for two thousand million, and the process would end for want of memory. Here they read through [`Guarded`], which
//! knows how many bytes are left: an element takes at least one, so no true count is larger. Where the encoding tells
//! lengths from other numbers, one that is too large is an error. Where it does not, a number that is too large for a
//! count is read as one that is just too large: an array with it fails before it took much, and everything else may be
//! such a number by right, so that the request is then decoded once more, as it is.

use bytes::{Buf, Bytes, TryGetError};
use kafka_protocol::protocol::Decodable;
use kafka_protocol::protocol::buf::ByteBuf;

/// Fields that a request may have in all. Each element of an array has at least one, and takes more memory than bytes.
const FIELDS_MAX: usize = 200_000;
/// Bytes of a varint of 32 bits.
const VARINT_BYTES_MAX: u32 = 5;

/// Decodes a request; an error says why it is none.
pub(crate) fn decode<T: Decodable>(bytes: &mut Bytes, version: i16) -> Result<T, String> {
    let whole = bytes.clone();
    let mut guarded = Guarded { bytes, fields: 0, varint: 0, varint_bytes: 0, doubted: false };
    let decoded = attempt(|| T::decode(&mut guarded, version))?;
    if !guarded.doubted {
        return Ok(decoded);
    }
    drop(decoded);
    // Every count in it is true, or it would have failed.
    *bytes = whole;
    attempt(|| T::decode(bytes, version))
}

/// The generated decoders trust lengths within the frame; a panic in one must cost no more than the connection.
fn attempt<T, E: std::fmt::Display>(decode: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(decode)) {
        Ok(decoded) => decoded.map_err(|error| error.to_string()),
        Err(_) => Err("the decoder panicked".to_owned()),
    }
}

/// The bytes of a request, with an eye on the counts in them.
struct Guarded<'b> {
    bytes: &'b mut Bytes,
    fields: usize,
    /// What has been read of a varint.
    varint: u64,
    varint_bytes: u32,
    /// A number was read as another, because it would have been too large for a count.
    doubted: bool,
}

impl Guarded<'_> {
    fn too_large(&self, requested: usize) -> TryGetError {
        TryGetError { requested, available: self.bytes.len() }
    }
}

impl Buf for Guarded<'_> {
    fn remaining(&self) -> usize {
        // With too many fields there is nothing left to read.
        if self.fields > FIELDS_MAX { 0 } else { self.bytes.len() }
    }

    fn chunk(&self) -> &[u8] {
        if self.fields > FIELDS_MAX { &[] } else { self.bytes }
    }

    fn advance(&mut self, count: usize) {
        self.fields += 1;
        self.bytes.advance(count);
    }

    fn copy_to_bytes(&mut self, length: usize) -> Bytes {
        self.fields += 1;
        self.bytes.split_to(length)
    }

    /// A byte is a truth value or a part of a varint, which is a length or the number of a field.
    fn try_get_u8(&mut self) -> Result<u8, TryGetError> {
        if self.remaining() == 0 {
            return Err(self.too_large(1));
        }
        self.fields += 1;
        let byte = self.bytes.get_u8();
        self.varint |= u64::from(byte & 0x7f) << (7 * self.varint_bytes);
        self.varint_bytes += 1;
        if byte & 0x80 != 0 && self.varint_bytes < VARINT_BYTES_MAX {
            return Ok(byte);
        }
        let value = std::mem::take(&mut self.varint);
        self.varint_bytes = 0;
        // Lengths are encoded plus one.
        if value > self.bytes.len() as u64 + 1 {
            return Err(self.too_large(value as usize));
        }
        Ok(byte)
    }

    /// A number of 32 bits is a count or anything else.
    fn try_get_i32(&mut self) -> Result<i32, TryGetError> {
        if self.remaining() < 4 {
            return Err(self.too_large(4));
        }
        self.fields += 1;
        let value = self.bytes.get_i32();
        if usize::try_from(value).is_ok_and(|value| value > self.bytes.len()) {
            self.doubted = true;
            return Ok(i32::try_from(self.bytes.len() + 1).unwrap_or(i32::MAX));
        }
        Ok(value)
    }
}

impl ByteBuf for Guarded<'_> {
    fn peek_bytes(&mut self, range: std::ops::Range<usize>) -> Bytes {
        self.bytes.slice(range)
    }

    fn get_bytes(&mut self, size: usize) -> Bytes {
        self.fields += 1;
        self.bytes.split_to(size)
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut as _, BytesMut};
    use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
    use kafka_protocol::messages::{
        DeleteTopicsRequest, FetchRequest, JoinGroupRequest, MetadataRequest, ProduceRequest, TopicName,
    };
    use kafka_protocol::protocol::{Encodable, StrBytes};

    use super::*;

    #[test]
    fn requests_with_large_numbers_in_them_are_decoded_as_they_are() {
        for version in 4..=12 {
            let partition = FetchPartition::default()
                .with_partition(7)
                .with_fetch_offset(i64::MAX)
                .with_partition_max_bytes(i32::MAX);
            let topic = FetchTopic::default()
                .with_topic(TopicName(StrBytes::from_static_str("topic")))
                .with_partitions(vec![partition; 3]);
            let request =
                FetchRequest::default().with_max_bytes(i32::MAX).with_max_wait_ms(60_000).with_topics(vec![topic]);
            let mut bytes = BytesMut::new();
            request.encode(&mut bytes, version).unwrap();
            let mut bytes = bytes.freeze();
            assert_eq!(decode::<FetchRequest>(&mut bytes, version).unwrap(), request, "version {version}");
            assert!(bytes.is_empty());
        }
    }

    #[test]
    fn counts_beyond_the_request_take_no_memory() {
        // A decoder that believed these would ask for some hundred gigabytes, and the test would not end well.
        let mut lies = BytesMut::new();
        lies.put_i32(i32::MAX);
        assert!(decode::<MetadataRequest>(&mut lies.freeze(), 1).is_err());
        let mut lies = BytesMut::new();
        lies.put_i32(i32::MAX - 5);
        lies.put_i32(1000);
        assert!(decode::<DeleteTopicsRequest>(&mut lies.freeze(), 1).is_err());
        for varint in [&[0xff, 0xff, 0xff, 0xff, 0x07][..], &[0xff, 0xff, 0xff, 0xff, 0xff]] {
            let mut bytes = Bytes::copy_from_slice(varint);
            assert!(decode::<MetadataRequest>(&mut bytes, 9).is_err());
        }
    }

    #[test]
    fn as_many_fields_as_memory_could_not_hold_are_refused() {
        let names = FIELDS_MAX + 1;
        let mut bytes = BytesMut::new();
        bytes.put_i32(names as i32);
        bytes.put_bytes(0, 2 * names);
        assert!(decode::<MetadataRequest>(&mut bytes.freeze(), 1).is_err());
    }

    #[test]
    fn any_bytes_end_in_a_request_or_an_error() {
        // A fixed sequence of pseudo-random numbers (xorshift), so that a failure repeats.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..20_000 {
            let length = next() % 64;
            let bytes: Vec<u8> = (0..length).map(|_| if next() % 3 == 0 { 0xff } else { next() as u8 }).collect();
            let version = (next() % 10) as i16;
            let bytes = Bytes::from(bytes);
            let _ = decode::<FetchRequest>(&mut bytes.clone(), version.max(4));
            let _ = decode::<ProduceRequest>(&mut bytes.clone(), version.max(3));
            let _ = decode::<JoinGroupRequest>(&mut bytes.clone(), version.min(7));
            let _ = decode::<MetadataRequest>(&mut bytes.clone(), version);
        }
    }
}
