//! What a stranger's bytes can make the decoder allocate. A binary of its own, because it counts
//! every allocation.
#![expect(unsafe_code, reason = "a counting allocator implements an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use bytes::Bytes;
use macula_proto::id::StreamId;
use macula_proto::wire::{Channel, Message, RawFrame, batch, decode};
use proptest::collection::vec;
use proptest::prelude::*;

struct Counting;

thread_local! {
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
    static PEAK_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    HELD_BYTES.with(|held| {
        held.set(held.get() + bytes);
        PEAK_BYTES.with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: hands everything to the system's allocator, whose contract is the same; counting does
// not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most bytes that were held at once while `work` ran, beyond those held before.
fn peak_bytes<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = HELD_BYTES.with(Cell::get);
    PEAK_BYTES.with(|peak| peak.set(before));
    let result = work();
    (result, usize::try_from(PEAK_BYTES.with(Cell::get) - before).unwrap_or_default())
}

/// Bookkeeping of one shared buffer, and the first elements of a list.
const FIXED_BYTES: usize = 512;

/// A list that grows holds its old and its new half for a moment, and its elements are up to twice
/// as large in memory as on the wire.
const MULTIPLE: usize = 4;

fn check(kind: u8, payload: &[u8], channel: Channel) -> bool {
    let frame = RawFrame { kind, payload: Bytes::copy_from_slice(payload) };
    let (message, peak) = peak_bytes(|| decode(frame, channel));
    assert!(
        peak <= FIXED_BYTES + MULTIPLE * payload.len(),
        "{peak} bytes for {} of kind {kind:#04x} on {channel:?}: {message:?}",
        payload.len()
    );
    message.is_ok_and(|message| !matches!(message, Message::Unknown { .. }))
}

const CHANNELS: [Channel; 5] = [
    Channel::Control,
    Channel::Lane(0),
    Channel::Lane(1),
    Channel::Bulk,
    Channel::Stream(StreamId(1)),
];

proptest! {
    #[test]
    fn any_bytes_allocate_no_more_than_a_small_multiple_of_themselves(
        bytes in vec(prop_oneof![any::<u8>(), 0x90u8..0xa8, 0xc4u8..0xdf], 0..300),
        count: u32,
    ) {
        for kind in 0..=255 {
            for channel in CHANNELS {
                check(kind, &bytes, channel);
            }
        }
        let body = Bytes::from(bytes);
        let (_, peak) = peak_bytes(|| batch::validate(count, &body));
        prop_assert_eq!(peak, 0);
    }
}

#[test]
fn allocations_are_counted() {
    assert_eq!(peak_bytes(|| drop(Vec::<u8>::with_capacity(1000))).1, 1000);
}

#[test]
fn announced_lengths_allocate_nothing() {
    let huge: [&[u8]; 5] = [
        &[0x91, 0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdd, 0xff, 0xff, 0xff, 0xff, 0x00],
        &[0x93, 0x00, 0xdb, 0xff, 0xff, 0xff, 0xff],
        &[0x99, 1, 1, 0, 0xc2, 1, 1, 0xa0, 0xa0, 0xdc, 0, 64, 0x92, 0xc6, 0, 0, 0, 32],
        &[0x92, 0x00, 0xdf, 0xff, 0xff, 0xff, 0xff],
    ];
    for payload in huge {
        for kind in 0..=255 {
            check(kind, payload, Channel::Control);
        }
    }
}

#[test]
fn the_largest_lists_stay_within_the_bound() {
    let mut realms = vec![0x91, 0xdc, 0, 64];
    let mut hello = vec![0x99, 1, 1, 0, 0xc2, 1, 1, 0xa0, 0xa0, 0xdc, 0, 64];
    for _ in 0..64 {
        let realm = [&[0x92, 0xc4, 32][..], &[7; 32]].concat();
        realms.extend_from_slice(&realm);
        realms.extend_from_slice(&[0x92, 1, 0xa1, b'x']);
        hello.extend_from_slice(&realm);
        hello.extend_from_slice(&[0xc4, 1, 7]);
    }
    assert!(check(0x02, &realms, Channel::Control));
    assert!(check(0x01, &hello, Channel::Control));
}
