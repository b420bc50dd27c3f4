//! Batches: several consecutive messages of one publisher in one publish.
//!
//! `count == 1`: the body is the payload itself. Otherwise each payload stands behind its length,
//! a number with 7 bits per byte. Nothing here knows topics or sequence numbers.
//! Spec: docs/protocol §5.3.

use bytes::{Buf, Bytes};

use super::codec::{DecodeError, Reader, Writer};
use crate::limits;

/// Payloads from this size on are not copied as long as they are alone in their batch, bytes.
const KEEP_WHOLE_BYTES_MIN: usize = 512;

/// Collects payloads into a batch; one builder makes any number of batches.
///
/// A payload of its own is handed through without copying ([`BatchBuilder::push_bytes`]).
#[derive(Debug, Default)]
pub struct BatchBuilder {
    /// The only payload so far, not copied. Then `buffer` is empty.
    whole: Option<Bytes>,
    /// Payloads behind their lengths.
    buffer: Writer,
    count: u32,
    payload_bytes: usize,
    /// Where in `buffer` the first payload begins.
    first_at: usize,
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages so far.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of all payloads so far, without their lengths.
    pub const fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    /// Whether there is nothing to finish.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether a payload of so many bytes may join: the first always, the others as long as the
    /// batch stays within [`limits::BATCH_BODY_BYTES_MAX`] and [`limits::BATCH_MESSAGES_MAX`].
    pub fn fits(&self, payload_bytes: usize) -> bool {
        let lengths = (self.count as usize).saturating_add(1).saturating_mul(LENGTH_BYTES_MAX);
        let estimate = self.payload_bytes.saturating_add(payload_bytes);
        self.count == 0
            || ((self.count as usize) < limits::BATCH_MESSAGES_MAX
                && (estimate.saturating_add(lengths) <= limits::BATCH_BODY_BYTES_MAX
                    || self.body_bytes_with(payload_bytes) <= limits::BATCH_BODY_BYTES_MAX))
    }

    /// Appends a copy of a payload. Ask [`BatchBuilder::fits`] first.
    pub fn push(&mut self, payload: &[u8]) {
        self.spill();
        self.append(payload);
    }

    /// Appends a payload; copies it only if it is small or not alone. Ask
    /// [`BatchBuilder::fits`] first.
    pub fn push_bytes(&mut self, payload: Bytes) {
        if self.count == 0 && payload.len() >= KEEP_WHOLE_BYTES_MIN {
            self.count = 1;
            self.payload_bytes = payload.len();
            self.whole = Some(payload);
        } else {
            self.push(&payload);
        }
    }

    /// Hands out the batch, as count and body of a publish, and starts the next one. The count is
    /// 0 when nothing was appended.
    pub fn finish(&mut self) -> (u32, Bytes) {
        let count = std::mem::take(&mut self.count);
        self.payload_bytes = 0;
        let body = match self.whole.take() {
            Some(payload) => payload,
            None => self.buffer.hand_out(if count == 1 { self.first_at } else { 0 }),
        };
        (count, body)
    }

    fn append(&mut self, payload: &[u8]) {
        debug_assert!(payload.len() <= limits::MESSAGE_BYTES_MAX, "callers check sizes");
        self.buffer.varint_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        if self.count == 0 {
            self.first_at = self.buffer.len();
        }
        self.buffer.raw(payload);
        self.count = self.count.saturating_add(1);
        self.payload_bytes = self.payload_bytes.saturating_add(payload.len());
    }

    /// Copies the payload that was kept whole, because it is not alone any more.
    fn spill(&mut self) {
        if let Some(payload) = self.whole.take() {
            self.count = 0;
            self.payload_bytes = 0;
            self.append(&payload);
        }
    }

    fn body_bytes_with(&self, payload_bytes: usize) -> usize {
        let before = match &self.whole {
            Some(payload) => payload.len().saturating_add(length_bytes(payload.len())),
            None => self.buffer.len(),
        };
        before.saturating_add(length_bytes(payload_bytes)).saturating_add(payload_bytes)
    }
}

/// Bytes of the longest length.
const LENGTH_BYTES_MAX: usize = 5;

const fn length_bytes(payload_bytes: usize) -> usize {
    match payload_bytes {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        0x20_0000..0x1000_0000 => 4,
        _ => LENGTH_BYTES_MAX,
    }
}

/// Checks that `body` holds exactly `count` payloads.
///
/// # Errors
/// [`DecodeError::Truncated`], [`DecodeError::Trailing`], [`DecodeError::Range`] for a length that
/// is none, and for a `count` of 0. Offsets count from the start of the body.
pub fn validate(count: u32, body: &Bytes) -> Result<(), DecodeError> {
    match count {
        0 => Err(DecodeError::Range(0)),
        1 => Ok(()),
        _ => {
            let mut reader = Reader::new(body);
            for _ in 0..count {
                skip_payload(&mut reader)?;
            }
            reader.end()
        }
    }
}

/// Drops the first `n` messages of a batch: what is left, as count and body. A single message that
/// is left is the raw payload. `None` when nothing is left or the body is malformed.
pub fn skip(count: u32, body: &Bytes, n: u32) -> Option<(u32, Bytes)> {
    let left = count.checked_sub(n).filter(|left| *left > 0)?;
    if n == 0 {
        return Some((count, body.clone()));
    }
    let mut reader = Reader::new(body);
    for _ in 0..n {
        skip_payload(&mut reader).ok()?;
    }
    if left == 1 {
        let length = reader.varint_u32().ok()? as usize;
        if reader.rest().len() != length {
            return None;
        }
    }
    Some((left, body.slice_ref(reader.rest())))
}

#[inline]
fn skip_payload(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    let length = reader.varint_u32()? as usize;
    reader.take(length).map(drop)
}

/// The payloads of a batch, each sharing the body's memory.
///
/// Ends early when the body is malformed; [`validate`] says whether it is.
#[derive(Clone, Debug)]
pub struct BatchIter {
    body: Bytes,
    left: u32,
    /// The body is the one payload.
    raw: bool,
}

impl BatchIter {
    /// Walks the body of a publish of `count` messages.
    pub const fn new(count: u32, body: Bytes) -> Self {
        Self { body, left: count, raw: count == 1 }
    }

    /// Messages that are left.
    pub const fn left(&self) -> u32 {
        self.left
    }
}

impl Iterator for BatchIter {
    type Item = Bytes;

    #[inline]
    fn next(&mut self) -> Option<Bytes> {
        self.left = self.left.checked_sub(1)?;
        if self.raw {
            return Some(std::mem::take(&mut self.body));
        }
        let mut reader = Reader::new(&self.body);
        let Some(length) = reader.varint_u32().ok().map(|length| length as usize) else {
            self.left = 0;
            return None;
        };
        let at = reader.offset();
        if reader.rest().len() < length {
            self.left = 0;
            return None;
        }
        self.body.advance(at);
        Some(self.body.split_to(length))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, usize::try_from(self.left).ok())
    }
}

impl std::iter::FusedIterator for BatchIter {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let lengths = prop_oneof![4 => 0usize..40, 2 => 100usize..300, 1 => 510usize..20_000];
        vec((lengths, any::<u8>()), 1..40).prop_map(|payloads| {
            payloads.into_iter().map(|(length, fill)| vec![fill; length]).collect()
        })
    }

    fn build(builder: &mut BatchBuilder, payloads: &[Vec<u8>]) -> (u32, Bytes) {
        for (index, payload) in payloads.iter().enumerate() {
            if index % 2 == 0 {
                builder.push_bytes(Bytes::copy_from_slice(payload));
            } else {
                builder.push(payload);
            }
        }
        builder.finish()
    }

    proptest! {
        #[test]
        fn what_is_pushed_comes_out(first in payloads(), second in payloads()) {
            let mut builder = BatchBuilder::new();
            for payloads in [&first, &second] {
                let (count, body) = build(&mut builder, payloads);
                prop_assert_eq!(count as usize, payloads.len());
                prop_assert_eq!(validate(count, &body), Ok(()));
                prop_assert!(BatchIter::new(count, body).eq(payloads.iter().cloned()));
                prop_assert!(builder.is_empty() && builder.payload_bytes() == 0);
            }
        }

        #[test]
        fn skipping_drops_from_the_front(payloads in payloads(), n in 0u32..45) {
            let (count, body) = build(&mut BatchBuilder::new(), &payloads);
            let rest = skip(count, &body, n);
            let wanted = payloads.get(n as usize..).filter(|rest| !rest.is_empty());
            prop_assert_eq!(rest.is_some(), wanted.is_some());
            if let (Some((left, body)), Some(wanted)) = (rest, wanted) {
                prop_assert_eq!(left as usize, wanted.len());
                prop_assert_eq!(validate(left, &body), Ok(()));
                prop_assert!(BatchIter::new(left, body).eq(wanted.iter().cloned()));
            }
        }

        #[test]
        fn batches_that_fit_stay_within_their_limit(
            lengths in vec(prop_oneof![0usize..40, 0usize..40_000], 1..300),
        ) {
            let mut builder = BatchBuilder::new();
            for length in lengths {
                if !builder.fits(length) {
                    // Closed only when it has to be.
                    let would_be = builder.body_bytes_with(length);
                    prop_assert!(would_be > limits::BATCH_BODY_BYTES_MAX);
                    let (count, body) = builder.finish();
                    prop_assert!(count == 1 || body.len() <= limits::BATCH_BODY_BYTES_MAX);
                }
                builder.push_bytes(vec![0; length].into());
            }
        }

        #[test]
        fn any_bytes_are_walked_without_panic(
            count in 0u32..20,
            bytes in vec(prop_oneof![3 => 0u8..4, 1 => any::<u8>()], 0..60),
            n in 0u32..20,
        ) {
            let body = Bytes::from(bytes);
            let valid = validate(count, &body).is_ok();
            let walked = BatchIter::new(count, body.clone()).count();
            prop_assert!(walked <= count as usize);
            if valid {
                prop_assert_eq!(walked, count as usize);
            }
            if let Some((left, rest)) = skip(count, &body, n) {
                prop_assert_eq!(left, count - n);
                prop_assert!(!valid || validate(left, &rest).is_ok());
            }
        }
    }

    #[test]
    fn batches_have_a_fixed_form() {
        let mut builder = BatchBuilder::new();
        builder.push(b"ab");
        builder.push(b"");
        builder.push(&[b'x'; 200]);
        let (count, body) = builder.finish();
        assert_eq!(count, 3);
        assert_eq!(body[..6], [2, b'a', b'b', 0, 0xc8, 0x01]);
        assert_eq!(builder.finish(), (0, Bytes::new()));
    }

    #[test]
    fn count_and_body_must_agree() {
        let body = Bytes::from_static(&[1, b'a', 1, b'b']);
        assert_eq!(validate(2, &body), Ok(()));
        assert_eq!(validate(1, &body), Ok(()), "a raw payload");
        assert_eq!(validate(0, &body), Err(DecodeError::Range(0)));
        assert_eq!(validate(3, &body), Err(DecodeError::Truncated(4)));
        let longer = Bytes::from_static(&[1, b'a', 1, b'b', 0]);
        assert_eq!(validate(2, &longer), Err(DecodeError::Trailing(4)));
        assert_eq!(validate(u32::MAX, &Bytes::new()), Err(DecodeError::Truncated(0)));
        assert_eq!(skip(2, &longer, 1), None);
    }

    #[test]
    fn a_large_payload_alone_is_not_copied() {
        let payload = Bytes::from(vec![7; 100_000]);
        let mut builder = BatchBuilder::new();
        builder.push_bytes(payload.clone());
        assert!(!builder.fits(10));
        let (count, body) = builder.finish();
        assert_eq!((count, body.as_ptr()), (1, payload.as_ptr()));
        assert_eq!(BatchIter::new(1, body).next().map(|b| b.as_ptr()), Some(payload.as_ptr()));
    }

    #[test]
    fn the_number_of_messages_is_bounded() {
        let mut builder = BatchBuilder::new();
        while builder.fits(0) {
            builder.push(b"");
        }
        assert_eq!(builder.count() as usize, limits::BATCH_MESSAGES_MAX);
    }
}
