//! How much intake holds at a time. What it takes is held from before it is read to the report of the log, so that a log
//! that takes nothing costs no more memory than the bound: webhooks are told to come again, and sockets are not read.

use std::sync::Arc;

use opentelemetry::metrics::{Counter, Meter, UpDownCounter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

/// What is counted in: a record costs at least this much beside its bytes, with its headers and its queues.
const UNIT_BYTES: usize = 1024;

/// The bound that all sources share.
pub(crate) struct Room {
    free: Arc<Semaphore>,
    units_max: u32,
    held: UpDownCounter<i64>,
    waits: Counter<u64>,
}

/// A part of the room, given back when it is dropped.
pub(crate) struct Held {
    _permit: OwnedSemaphorePermit,
    bytes: i64,
    held: UpDownCounter<i64>,
}

impl Room {
    pub(crate) fn new(bytes_max: usize, meter: &Meter) -> Room {
        let units = (bytes_max / UNIT_BYTES).clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Room {
            free: Arc::new(Semaphore::new(units)),
            units_max: u32::try_from(units).unwrap_or(u32::MAX),
            held: meter
                .i64_up_down_counter("undertone.ingest.in_flight")
                .with_unit("By")
                .with_description("Bytes that intake holds for the log; [ingest] in_flight_bytes_max bounds them")
                .build(),
            waits: meter
                .u64_counter("undertone.ingest.waits")
                .with_description("How often a socket was not read because the log took no more")
                .build(),
        }
    }

    /// Room for an input of so many bytes, if there is some now. One that is larger than all the room takes all of it.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Held> {
        let units = self.units(bytes);
        match Arc::clone(&self.free).try_acquire_many_owned(units) {
            Ok(permit) => Some(self.held(permit, units)),
            Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => None,
        }
    }

    /// Waits for room. May be cancelled.
    pub(crate) async fn take(&self, bytes: usize) -> Held {
        let units = self.units(bytes);
        let permit = Arc::clone(&self.free).acquire_many_owned(units).await.expect("nobody closes the semaphore");
        self.held(permit, units)
    }

    /// Bytes that are held now.
    pub(crate) fn held_bytes(&self) -> usize {
        (self.units_max as usize - self.free.available_permits()) * UNIT_BYTES
    }

    /// Whether there is any.
    pub(crate) fn is_left(&self) -> bool {
        self.free.available_permits() > 0
    }

    /// Waits until there is any. May be cancelled.
    pub(crate) async fn left(&self) {
        drop(self.free.acquire().await);
    }

    pub(crate) fn waited(&self) {
        self.waits.add(1, &[]);
    }

    fn units(&self, bytes: usize) -> u32 {
        let units = 1 + bytes.div_ceil(UNIT_BYTES);
        u32::try_from(units).unwrap_or(u32::MAX).min(self.units_max)
    }

    fn held(&self, permit: OwnedSemaphorePermit, units: u32) -> Held {
        let bytes = i64::from(units) * UNIT_BYTES as i64;
        self.held.add(bytes, &[]);
        Held { _permit: permit, bytes, held: self.held.clone() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.add(-self.bytes, &[]);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::metrics::MeterProvider;

    use super::*;

    fn room(bytes: usize) -> Room {
        Room::new(bytes, &opentelemetry::metrics::noop::NoopMeterProvider::new().meter("test"))
    }

    #[tokio::test]
    async fn what_is_held_never_exceeds_the_bound_and_is_given_back() {
        let room = room(8 * UNIT_BYTES);
        let held: Vec<_> = (0..9).map(|_| room.try_take(100)).collect();
        assert_eq!(held.iter().filter(|held| held.is_some()).count(), 4, "a kilobyte each beside its bytes");
        assert!(!room.is_left());
        drop(held);
        assert!(room.is_left());
        let all = room.take(1 << 30).await;
        assert!(room.try_take(0).is_none(), "what is larger than the room takes all of it");
        drop(all);
        room.left().await;
    }
}
