//! What a partition knows of its producers: sequence numbers, so that a repeated batch is appended once, and open
//! transactions. Pure: time is an argument. Bounded by [`Producers::expire`].

use std::collections::{BTreeMap, VecDeque};

use kafka_protocol::error::ResponseError;
use serde::{Deserialize, Serialize};

use super::KnownProducer;
use crate::batch::{Header, Marker, next_sequence};

/// Batches a producer may repeat and still be recognised; clients keep at most five in flight.
const REMEMBERED_BATCHES: usize = 5;

/// The producers of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Producers {
    by_id: BTreeMap<i64, Producer>,
    /// First offset of each open transaction, by producer id.
    open: BTreeMap<i64, i64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Producer {
    epoch: i16,
    recent: VecDeque<Remembered>,
    last_append_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    first_sequence: i32,
    last_sequence: i32,
    offset: i64,
}

/// An aborted transaction on a partition: its producer's transactional records in `first..=last` are not for
/// `read_committed` readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Aborted {
    pub(crate) producer_id: i64,
    pub(crate) first: i64,
    pub(crate) last: i64,
}

/// What to do with a batch that may be appended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Append,
    /// It is in the log already, at this offset.
    Duplicate(i64),
}

impl Producers {
    /// Whether a client's batch may follow what its producer sent before.
    pub(crate) fn check(&self, header: &Header) -> Result<Verdict, ResponseError> {
        if header.producer_id < 0 {
            return Ok(Verdict::Append);
        }
        // A producer that is not known (new, or expired) may begin anywhere, as in Apache Kafka.
        let Some(producer) = self.by_id.get(&header.producer_id) else { return Ok(Verdict::Append) };
        if header.producer_epoch < producer.epoch {
            return Err(ResponseError::InvalidProducerEpoch);
        }
        if header.producer_epoch > producer.epoch {
            let begins = header.base_sequence == 0;
            return if begins { Ok(Verdict::Append) } else { Err(ResponseError::OutOfOrderSequenceNumber) };
        }
        let same =
            |r: &&Remembered| (r.first_sequence, r.last_sequence) == (header.base_sequence, header.last_sequence());
        if let Some(repeated) = producer.recent.iter().find(same) {
            return Ok(Verdict::Duplicate(repeated.offset));
        }
        match producer.recent.back() {
            Some(last) if next_sequence(last.last_sequence, 1) != header.base_sequence => {
                Err(ResponseError::OutOfOrderSequenceNumber)
            }
            _ if !header.is_transactional() && self.open.contains_key(&header.producer_id) => {
                Err(ResponseError::InvalidTxnState)
            }
            _ => Ok(Verdict::Append),
        }
    }

    /// Notes a batch of a client that is in the log.
    pub(crate) fn appended(&mut self, header: &Header, now_ms: i64) {
        if header.producer_id < 0 {
            return;
        }
        if header.is_transactional() {
            self.open.entry(header.producer_id).or_insert(header.base_offset);
        }
        let producer = self.by_id.entry(header.producer_id).or_default();
        if header.producer_epoch != producer.epoch {
            producer.epoch = header.producer_epoch;
            producer.recent.clear();
        }
        producer.last_append_ms = now_ms;
        producer.recent.push_back(Remembered {
            first_sequence: header.base_sequence,
            last_sequence: header.last_sequence(),
            offset: header.base_offset,
        });
        if producer.recent.len() > REMEMBERED_BATCHES {
            producer.recent.pop_front();
        }
    }

    /// Notes a marker that is in the log; returns the transaction if it was aborted.
    pub(crate) fn ended(&mut self, header: &Header, marker: Option<Marker>, now_ms: i64) -> Option<Aborted> {
        let producer = self.by_id.entry(header.producer_id).or_default();
        producer.last_append_ms = now_ms;
        if header.producer_epoch > producer.epoch {
            producer.epoch = header.producer_epoch;
            producer.recent.clear();
        }
        let marker = marker?;
        let first = self.open.remove(&header.producer_id)?;
        let aborted = Aborted { producer_id: header.producer_id, first, last: header.base_offset };
        (marker == Marker::Abort).then_some(aborted)
    }

    /// All that are remembered, by id.
    pub(crate) fn list(&self) -> Vec<KnownProducer> {
        let known = self.by_id.iter().map(|(id, producer)| KnownProducer {
            id: *id,
            epoch: producer.epoch,
            last_sequence: producer.recent.back().map_or(-1, |batch| batch.last_sequence),
            last_append_ms: producer.last_append_ms,
            open_from: self.open.get(id).copied(),
        });
        known.collect()
    }

    pub(crate) fn has_open(&self, producer_id: i64) -> bool {
        self.open.contains_key(&producer_id)
    }

    /// First offset of the oldest open transaction.
    pub(crate) fn first_open(&self) -> Option<i64> {
        self.open.values().min().copied()
    }

    /// Forgets producers that were last heard of before `before_ms`, then the longest silent ones beyond `most`; never
    /// one with an open transaction.
    pub(crate) fn expire(&mut self, before_ms: i64, most: usize) {
        self.by_id.retain(|id, producer| producer.last_append_ms >= before_ms || self.open.contains_key(id));
        let surplus = self.by_id.len().saturating_sub(most);
        if surplus == 0 {
            return;
        }
        let idle = self.by_id.iter().filter(|(id, _)| !self.open.contains_key(id));
        let mut idle: Vec<(i64, i64)> = idle.map(|(id, producer)| (producer.last_append_ms, *id)).collect();
        idle.sort_unstable();
        for (_, id) in idle.into_iter().take(surplus) {
            self.by_id.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(producer_epoch: i16, base_sequence: i32, records: i32, base_offset: i64) -> Header {
        let bytes = crate::batch::testing::batch(&[], (1, producer_epoch, base_sequence), 0);
        let header = Header::parse(&bytes).unwrap();
        Header { records, last_offset_delta: records - 1, base_offset, ..header }
    }

    #[test]
    fn repeated_batches_are_recognised_and_gaps_are_refused() {
        let mut producers = Producers::default();
        for i in 0..7 {
            let header = header(0, i * 10, 10, i64::from(i) * 10);
            assert_eq!(producers.check(&header), Ok(Verdict::Append));
            producers.appended(&header, 0);
        }
        let cases = [
            (header(0, 60, 10, 0), Ok(Verdict::Duplicate(60))),
            (header(0, 20, 10, 0), Ok(Verdict::Duplicate(20))),
            (header(0, 70, 1, 0), Ok(Verdict::Append)),
            (header(0, 10, 10, 0), Err(ResponseError::OutOfOrderSequenceNumber)),
            (header(0, 71, 1, 0), Err(ResponseError::OutOfOrderSequenceNumber)),
            (header(1, 0, 1, 0), Ok(Verdict::Append)),
            (header(1, 5, 1, 0), Err(ResponseError::OutOfOrderSequenceNumber)),
            (header(-1, 70, 1, 0), Err(ResponseError::InvalidProducerEpoch)),
        ];
        for (header, expected) in cases {
            assert_eq!(producers.check(&header), expected, "{header:?}");
        }
    }

    #[test]
    fn expiry_keeps_open_transactions_and_the_newest() {
        let mut producers = Producers::default();
        for id in 0..10 {
            let attributes = if id == 0 { crate::batch::testing::TRANSACTIONAL_ATTRIBUTE } else { 0 };
            producers.appended(&Header { producer_id: id, attributes, ..header(0, 0, 1, id) }, id);
        }
        producers.expire(3, 4);
        assert_eq!(producers.by_id.keys().copied().collect::<Vec<_>>(), [0, 7, 8, 9]);
        assert_eq!(producers.first_open(), Some(0));
    }
}
