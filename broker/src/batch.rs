//! Record batches (magic 2) as bytes: the header, the records inside, and the batches that the broker itself makes.
//!
//! The layout is that of the Kafka documentation, "Record Batch". The broker stores batches byte for byte as clients
//! sent them; it only sets the base offset and the leader epoch, which the checksum does not cover. Records are decoded
//! where they must be (compacted topics, offsets for a time). What is not here: older message formats.

mod unpack;

use std::io;

use bytes::Bytes;

pub(crate) use unpack::UNPACKED_BYTES_MAX;

/// Bytes of a batch before its records.
pub(crate) const HEADER_BYTES: usize = 61;
/// Bytes before those that the length field counts: base offset and the length itself.
const LENGTH_PREFIX_BYTES: usize = 12;
/// Where the checksummed part begins.
const CHECKSUM_FROM: usize = 21;
const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// The fixed fields of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) base_offset: i64,
    /// Size of the whole batch in bytes.
    pub(crate) bytes: usize,
    pub(crate) attributes: i16,
    pub(crate) last_offset_delta: i32,
    pub(crate) base_timestamp_ms: i64,
    pub(crate) max_timestamp_ms: i64,
    /// -1 without a producer id.
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) records: i32,
}

impl Header {
    /// Reads the header at the beginning of `bytes`; `None` if it is none of magic 2.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Header> {
        if bytes.len() < HEADER_BYTES || bytes[16] != 2 {
            return None;
        }
        let length = usize::try_from(i32_at(bytes, 8)).ok()?;
        if length < HEADER_BYTES - LENGTH_PREFIX_BYTES {
            return None;
        }
        Some(Header {
            base_offset: i64_at(bytes, 0),
            bytes: length + LENGTH_PREFIX_BYTES,
            attributes: i16_at(bytes, 21),
            last_offset_delta: i32_at(bytes, 23),
            base_timestamp_ms: i64_at(bytes, 27),
            max_timestamp_ms: i64_at(bytes, 35),
            producer_id: i64_at(bytes, 43),
            producer_epoch: i16_at(bytes, 51),
            base_sequence: i32_at(bytes, 53),
            records: i32_at(bytes, 57),
        })
    }

    pub(crate) fn last_offset(&self) -> i64 {
        self.base_offset + i64::from(self.last_offset_delta)
    }

    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }

    /// Sequence number of the last record that the client sent, also after compaction took records out.
    pub(crate) fn last_sequence(&self) -> i32 {
        next_sequence(self.base_sequence, self.last_offset_delta)
    }
}

/// `sequence` plus `by`; sequence numbers wrap from `i32::MAX` to 0.
pub(crate) fn next_sequence(sequence: i32, by: i32) -> i32 {
    ((i64::from(sequence) + i64::from(by)) & i64::from(i32::MAX)) as i32
}

/// Whether the batch at the beginning of `bytes` has the content that its checksum says.
pub(crate) fn checksum_holds(bytes: &[u8], header: &Header) -> bool {
    bytes.len() >= header.bytes && crc32c::crc32c(&bytes[CHECKSUM_FROM..header.bytes]) == i32_at(bytes, 17) as u32
}

/// Gives a batch its place in the log.
pub(crate) fn place(bytes: &mut [u8], base_offset: i64) {
    bytes[..8].copy_from_slice(&base_offset.to_be_bytes());
    bytes[12..16].copy_from_slice(&0_i32.to_be_bytes());
}

/// One record of a batch, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: i64,
    pub(crate) timestamp_ms: i64,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    /// The headers as they are encoded, their count included.
    headers: Bytes,
}

/// Decodes the records of a whole batch; an error says that the bytes are no such records, or, as
/// [`io::ErrorKind::FileTooLarge`], that they unpack to more than [`UNPACKED_BYTES_MAX`].
pub(crate) fn records(batch: &[u8], header: &Header) -> io::Result<Vec<Record>> {
    let body = Bytes::copy_from_slice(&batch[HEADER_BYTES..header.bytes]);
    let body = unpack::unpack(header.attributes & CODEC_MASK, &body, UNPACKED_BYTES_MAX)?;
    // Each record takes a byte at least, and more than that in memory.
    if usize::try_from(header.records).is_ok_and(|records| records > body.len()) {
        return Err(invalid("more records than bytes"));
    }
    let mut cursor = Cursor { bytes: body, at: 0 };
    (0..header.records).map(|_| cursor.record(header)).collect()
}

/// The batch with only the records in `kept`, uncompressed, at the same offsets.
pub(crate) fn with_records(header: &Header, kept: &[Record]) -> Vec<u8> {
    let mut body = Vec::new();
    for record in kept {
        let mut fields = vec![0_u8];
        // As they are read: a client may claim any time.
        put_varint(&mut fields, record.timestamp_ms.wrapping_sub(header.base_timestamp_ms));
        put_varint(&mut fields, record.offset.wrapping_sub(header.base_offset));
        for field in [&record.key, &record.value] {
            match field {
                Some(bytes) => {
                    put_varint(&mut fields, bytes.len() as i64);
                    fields.extend_from_slice(bytes);
                }
                None => put_varint(&mut fields, -1),
            }
        }
        fields.extend_from_slice(&record.headers);
        put_varint(&mut body, fields.len() as i64);
        body.extend(fields);
    }
    let attributes = header.attributes & !CODEC_MASK;
    encode(&Header { attributes, records: kept.len() as i32, ..*header }, &body)
}

/// What a control batch says about the transaction it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marker {
    Abort,
    Commit,
}

/// The control batch that ends a transaction on a partition.
pub(crate) fn marker(marker: Marker, producer_id: i64, producer_epoch: i16, offset: i64, now_ms: i64) -> Vec<u8> {
    let mut fields = vec![0_u8];
    put_varint(&mut fields, 0);
    put_varint(&mut fields, 0);
    put_varint(&mut fields, 4);
    fields.extend([0, 0, 0, u8::from(marker == Marker::Commit)]);
    put_varint(&mut fields, 6);
    fields.extend([0_u8; 6]);
    put_varint(&mut fields, 0);
    let mut body = Vec::new();
    put_varint(&mut body, fields.len() as i64);
    body.extend(fields);
    let header = Header {
        base_offset: offset,
        bytes: 0,
        attributes: TRANSACTIONAL | CONTROL,
        last_offset_delta: 0,
        base_timestamp_ms: now_ms,
        max_timestamp_ms: now_ms,
        producer_id,
        producer_epoch,
        base_sequence: -1,
        records: 1,
    };
    encode(&header, &body)
}

/// Which marker a control batch holds; `None` if it is another kind of control record.
pub(crate) fn marker_of(batch: &[u8], header: &Header) -> Option<Marker> {
    let record = records(batch, header).ok()?.into_iter().next()?;
    match record.key?.get(2..4)? {
        [0, 0] => Some(Marker::Abort),
        [0, 1] => Some(Marker::Commit),
        _ => None,
    }
}

/// A batch from its header (size and checksum are computed) and encoded records.
pub(crate) fn encode(header: &Header, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
    out.extend(header.base_offset.to_be_bytes());
    out.extend(((HEADER_BYTES - LENGTH_PREFIX_BYTES + body.len()) as i32).to_be_bytes());
    out.extend(0_i32.to_be_bytes());
    out.push(2);
    out.extend([0_u8; 4]);
    out.extend(header.attributes.to_be_bytes());
    out.extend(header.last_offset_delta.to_be_bytes());
    out.extend(header.base_timestamp_ms.to_be_bytes());
    out.extend(header.max_timestamp_ms.to_be_bytes());
    out.extend(header.producer_id.to_be_bytes());
    out.extend(header.producer_epoch.to_be_bytes());
    out.extend(header.base_sequence.to_be_bytes());
    out.extend(header.records.to_be_bytes());
    out.extend_from_slice(body);
    let checksum = crc32c::crc32c(&out[CHECKSUM_FROM..]);
    out[17..21].copy_from_slice(&checksum.to_be_bytes());
    out
}

struct Cursor {
    bytes: Bytes,
    at: usize,
}

impl Cursor {
    fn record(&mut self, header: &Header) -> io::Result<Record> {
        let length = usize::try_from(self.varint()?).map_err(|_| invalid("negative record length"))?;
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| invalid("record beyond its batch"))?;
        self.at += 1;
        let timestamp_delta = self.varint()?;
        let offset_delta = self.varint()?;
        let key = self.field(end)?;
        let value = self.field(end)?;
        if self.at > end {
            return Err(invalid("record longer than it says"));
        }
        let headers = self.bytes.slice(self.at..end);
        self.at = end;
        let timestamp_ms = if header.attributes & LOG_APPEND_TIME != 0 {
            header.max_timestamp_ms
        } else {
            header.base_timestamp_ms.wrapping_add(timestamp_delta)
        };
        Ok(Record { offset: header.base_offset.wrapping_add(offset_delta), timestamp_ms, key, value, headers })
    }

    fn field(&mut self, end: usize) -> io::Result<Option<Bytes>> {
        let length = self.varint()?;
        if length < 0 {
            return Ok(None);
        }
        let to = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let to = to.filter(|to| *to <= end).ok_or_else(|| invalid("field beyond its record"))?;
        let field = self.bytes.slice(self.at..to);
        self.at = to;
        Ok(Some(field))
    }

    /// A zigzag varint of up to 64 bits.
    fn varint(&mut self) -> io::Result<i64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.bytes.get(self.at).ok_or_else(|| invalid("number beyond the batch"))?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(((value >> 1) as i64) ^ -((value & 1) as i64));
            }
        }
        Err(invalid("number of more than 64 bits"))
    }
}

fn put_varint(out: &mut Vec<u8>, value: i64) {
    let mut zigzag = ((value << 1) ^ (value >> 63)) as u64;
    while zigzag >= 0x80 {
        out.push((zigzag as u8) | 0x80);
        zigzag >>= 7;
    }
    out.push(zigzag as u8);
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes by construction")
}

fn i64_at(bytes: &[u8], at: usize) -> i64 {
    i64::from_be_bytes(array(bytes, at))
}

fn i32_at(bytes: &[u8], at: usize) -> i32 {
    i32::from_be_bytes(array(bytes, at))
}

fn i16_at(bytes: &[u8], at: usize) -> i16 {
    i16::from_be_bytes(array(bytes, at))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Batches for tests.
    use super::*;

    /// A batch of `records` (key, value) with the given producer and sequence; offsets from 0.
    pub(crate) fn batch(
        records: &[(Option<&str>, Option<&str>)],
        producer: (i64, i16, i32),
        attributes: i16,
    ) -> Vec<u8> {
        let bytes = |field: Option<&str>| field.map(|text| Bytes::copy_from_slice(text.as_bytes()));
        let records: Vec<Record> = records
            .iter()
            .enumerate()
            .map(|(i, (key, value))| Record {
                offset: i as i64,
                timestamp_ms: 1_000 + i as i64,
                key: bytes(*key),
                value: bytes(*value),
                headers: Bytes::from_static(&[0]),
            })
            .collect();
        let header = Header {
            base_offset: 0,
            bytes: 0,
            attributes,
            last_offset_delta: records.len() as i32 - 1,
            base_timestamp_ms: 1_000,
            max_timestamp_ms: 1_000 + records.len() as i64 - 1,
            producer_id: producer.0,
            producer_epoch: producer.1,
            base_sequence: producer.2,
            records: records.len() as i32,
        };
        with_records(&header, &records)
    }

    pub(crate) fn plain(values: &[&str]) -> Vec<u8> {
        let records: Vec<_> = values.iter().map(|value| (Some(*value), Some(*value))).collect();
        batch(&records, (-1, -1, -1), 0)
    }

    pub(crate) const TRANSACTIONAL_ATTRIBUTE: i16 = TRANSACTIONAL;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_encoding_and_decoding() {
        let bytes = testing::batch(&[(Some("k"), Some("v")), (None, None), (Some(""), Some(""))], (7, 1, 40), 0);
        let header = Header::parse(&bytes).unwrap();
        assert!(checksum_holds(&bytes, &header));
        assert_eq!((header.bytes, header.producer_id, header.last_sequence()), (bytes.len(), 7, 42));
        let decoded = records(&bytes, &header).unwrap();
        assert_eq!(decoded[0].key.as_deref(), Some(&b"k"[..]));
        assert_eq!(decoded[1].key, None);
        assert_eq!(decoded[2].value.as_deref(), Some(&b""[..]));
        assert_eq!(decoded.iter().map(|r| r.offset).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn markers_say_what_they_end() {
        for expected in [Marker::Abort, Marker::Commit] {
            let bytes = marker(expected, 9, 2, 50, 1_000);
            let header = Header::parse(&bytes).unwrap();
            assert!(header.is_control() && header.is_transactional() && checksum_holds(&bytes, &header));
            assert_eq!(marker_of(&bytes, &header), Some(expected));
        }
    }

    #[test]
    fn damaged_records_are_errors_and_never_panics() {
        let bytes = testing::plain(&["one", "two", "three"]);
        let header = Header::parse(&bytes).unwrap();
        for at in HEADER_BYTES..bytes.len() {
            for value in [0x00, 0x7f, 0x80, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = records(&damaged, &header);
            }
        }
        assert!(records(&bytes, &Header { records: 4, ..header }).is_err());
    }

    #[test]
    fn sequence_numbers_wrap_to_zero() {
        assert_eq!(next_sequence(i32::MAX, 1), 0);
        assert_eq!(next_sequence(i32::MAX - 1, 1), i32::MAX);
    }
}
