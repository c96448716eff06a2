//! Encoding and decoding a turn allocates little: counted, because a tree of values in between would come back easily.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use schemas::{Codec, Turn};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system allocator unchanged; the counter is a thread-local without a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations<T>(work: impl FnOnce() -> T) -> (usize, T) {
    let before = ALLOCATIONS.get();
    let result = work();
    (ALLOCATIONS.get() - before, result)
}

#[test]
fn a_turn_is_written_and_read_with_few_allocations() {
    let codec = Codec::embedded();
    let text = include_str!("../avro/examples/turn.json");
    let turn: Turn = serde_json::from_str(text).unwrap();
    let mut out = Vec::with_capacity(4096);

    let (encoding, result) = allocations(|| codec.encode_into(&turn, &mut out));
    result.unwrap();
    let (decoding, decoded) = allocations(|| codec.decode::<Turn>(&out).unwrap());
    let (cloning, _) = allocations(|| turn.clone());
    assert_eq!(decoded, turn);

    assert!(encoding <= 16, "encoding a turn took {encoding} allocations");
    // A clone allocates what a turn owns; reading may not take much more than that.
    assert!(decoding <= 3 * cloning, "decoding a turn took {decoding} allocations, a clone takes {cloning}");
}
