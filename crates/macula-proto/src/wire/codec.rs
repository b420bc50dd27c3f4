//! Bounded reading and writing of wire values: a subset of MessagePack and big-endian numbers.
//!
//! [`Reader`] walks a slice and never allocates, panics or trusts an announced length: whatever it
//! hands out is borrowed from bytes that are really there. [`Writer`] writes the shortest form.
//! Neither knows messages. Spec: docs/protocol §4.2.

use bytes::{Buf, Bytes};

/// Arrays, maps and their elements may nest so deep in a field that is skipped.
pub const NESTING_DEPTH_MAX: u32 = 8;

/// What is wrong with a payload, and at which of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload ends too early.
    #[error("payload ends at byte {0}")]
    Truncated(usize),
    /// A value of another type was expected.
    #[error("the value at byte {0} has the wrong type")]
    Type(usize),
    /// A number is outside what its field allows.
    #[error("the number at byte {0} is out of range")]
    Range(usize),
    /// A text, a byte string, a list, a head or a body is longer than allowed.
    #[error("the value at byte {0} is too long")]
    TooLong(usize),
    /// A name is empty.
    #[error("the name at byte {0} is empty")]
    Empty(usize),
    /// A text is not UTF-8.
    #[error("the text at byte {0} is not UTF-8")]
    Utf8(usize),
    /// The array ends before its required elements.
    #[error("a field is missing at byte {0}")]
    Missing(usize),
    /// A skipped value nests deeper than [`NESTING_DEPTH_MAX`].
    #[error("the value at byte {0} is nested too deep")]
    Depth(usize),
    /// The byte `0xc1`, which begins nothing in MessagePack.
    #[error("byte {0} begins no value")]
    Invalid(usize),
    /// Bytes are left where there should be none.
    #[error("unexpected bytes from byte {0} on")]
    Trailing(usize),
    /// Frames of this kind do not belong on the channel that it came on.
    #[error("a frame of kind {kind:#04x} does not belong on its channel")]
    WrongChannel {
        /// The frame's kind.
        kind: u8,
    },
}

/// Reads values one after the other from a slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
    total_bytes: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, total_bytes: bytes.len() }
    }

    /// How many bytes were read so far.
    pub const fn offset(&self) -> usize {
        self.total_bytes.saturating_sub(self.rest.len())
    }

    /// The bytes that were not read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Checks that everything was read.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] when bytes are left.
    pub const fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.offset())) }
    }

    /// Takes the next `count` bytes as they are.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let Some((taken, rest)) = self.rest.split_at_checked(count) else {
            return Err(DecodeError::Truncated(self.total_bytes));
        };
        self.rest = rest;
        Ok(taken)
    }

    /// Takes the next `N` bytes as they are.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn take_array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(DecodeError::Truncated(self.total_bytes));
        };
        self.rest = rest;
        Ok(*taken)
    }

    /// A byte (fixed layout).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn be_u8(&mut self) -> Result<u8, DecodeError> {
        self.take_array().map(u8::from_be_bytes)
    }

    /// A big-endian number of 2 bytes (fixed layout).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn be_u16(&mut self) -> Result<u16, DecodeError> {
        self.take_array().map(u16::from_be_bytes)
    }

    /// A big-endian number of 4 bytes (fixed layout).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn be_u32(&mut self) -> Result<u32, DecodeError> {
        self.take_array().map(u32::from_be_bytes)
    }

    /// A big-endian number of 8 bytes (fixed layout).
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    #[inline]
    pub fn be_u64(&mut self) -> Result<u64, DecodeError> {
        self.take_array().map(u64::from_be_bytes)
    }

    /// A number with 7 bits per byte, low ones first (docs/protocol §5.3); at most 5 bytes. Forms
    /// that are longer than necessary are accepted.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`]; [`DecodeError::Range`] beyond 32 bits or 5 bytes.
    #[inline]
    pub fn varint_u32(&mut self) -> Result<u32, DecodeError> {
        let at = self.offset();
        let (mut value, mut shift) = (0u64, 0u32);
        loop {
            let byte = self.be_u8()?;
            value |= u64::from(byte & 0x7f) << (shift & 31);
            if byte < 0x80 {
                return u32::try_from(value).map_err(|_| DecodeError::Range(at));
            }
            if shift >= 28 {
                return Err(DecodeError::Range(at));
            }
            shift = shift.saturating_add(7);
        }
    }

    /// An unsigned number of any width; signed forms of numbers from zero are accepted.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`]; [`DecodeError::Type`]; [`DecodeError::Range`] below zero.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        let at = self.offset();
        let signed = match self.be_u8()? {
            value @ 0x00..=0x7f => return Ok(u64::from(value)),
            0xcc => return self.be_u8().map(u64::from),
            0xcd => return self.be_u16().map(u64::from),
            0xce => return self.be_u32().map(u64::from),
            0xcf => return self.be_u64(),
            0xd0 => i64::from(i8::from_be_bytes(self.take_array()?)),
            0xd1 => i64::from(i16::from_be_bytes(self.take_array()?)),
            0xd2 => i64::from(i32::from_be_bytes(self.take_array()?)),
            0xd3 => i64::from_be_bytes(self.take_array()?),
            0xe0..=0xff => -1,
            other => return Err(wrong_type(other, at)),
        };
        u64::try_from(signed).map_err(|_| DecodeError::Range(at))
    }

    /// An unsigned number that fits `T`.
    ///
    /// # Errors
    /// As [`Reader::u64`]; [`DecodeError::Range`] when it does not fit.
    pub fn uint<T: TryFrom<u64>>(&mut self) -> Result<T, DecodeError> {
        let at = self.offset();
        T::try_from(self.u64()?).map_err(|_| DecodeError::Range(at))
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`]; [`DecodeError::Type`].
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        let at = self.offset();
        match self.be_u8()? {
            0xc2 => Ok(false),
            0xc3 => Ok(true),
            other => Err(wrong_type(other, at)),
        }
    }

    /// Takes a nil if one is next, and says whether it did.
    pub fn nil(&mut self) -> bool {
        match self.rest.split_first() {
            Some((0xc0, rest)) => {
                self.rest = rest;
                true
            }
            _ => false,
        }
    }

    /// A text of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Type`], [`DecodeError::TooLong`],
    /// [`DecodeError::Utf8`].
    pub fn str(&mut self, bytes_max: usize) -> Result<&'a str, DecodeError> {
        let at = self.offset();
        let announced = match self.be_u8()? {
            short @ 0xa0..=0xbf => u32::from(short & 0x1f),
            0xd9 => self.be_u8()?.into(),
            0xda => self.be_u16()?.into(),
            0xdb => self.be_u32()?,
            other => return Err(wrong_type(other, at)),
        };
        let bytes = self.take(bounded(announced, bytes_max, at)?)?;
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Utf8(at))
    }

    /// A byte string of at most `bytes_max` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Type`], [`DecodeError::TooLong`].
    pub fn bin(&mut self, bytes_max: usize) -> Result<&'a [u8], DecodeError> {
        let at = self.offset();
        let announced = match self.be_u8()? {
            0xc4 => self.be_u8()?.into(),
            0xc5 => self.be_u16()?.into(),
            0xc6 => self.be_u32()?,
            other => return Err(wrong_type(other, at)),
        };
        self.take(bounded(announced, bytes_max, at)?)
    }

    /// A byte string of exactly `N` bytes.
    ///
    /// # Errors
    /// As [`Reader::bin`]; [`DecodeError::Range`] when it is shorter.
    pub fn bin_array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let at = self.offset();
        self.bin(N)?.try_into().map_err(|_| DecodeError::Range(at))
    }

    /// The head of an array: how many elements are announced. Nothing says that they are there.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`]; [`DecodeError::Type`].
    pub fn array(&mut self) -> Result<u32, DecodeError> {
        let at = self.offset();
        match self.be_u8()? {
            short @ 0x90..=0x9f => Ok(u32::from(short & 0x0f)),
            0xdc => self.be_u16().map(u32::from),
            0xdd => self.be_u32(),
            other => Err(wrong_type(other, at)),
        }
    }

    /// Passes over any one well-formed MessagePack value. Texts are not checked for UTF-8.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Invalid`], [`DecodeError::Depth`].
    pub fn skip(&mut self) -> Result<(), DecodeError> {
        self.skip_nested(NESTING_DEPTH_MAX)
    }

    fn skip_nested(&mut self, depth_left: u32) -> Result<(), DecodeError> {
        let at = self.offset();
        // Every element takes at least one byte, so announced counts cannot make this spin.
        let (bytes, elements) = match self.be_u8()? {
            0x00..=0x7f | 0xc0 | 0xc2 | 0xc3 | 0xe0..=0xff => (0, 0),
            0xc1 => return Err(DecodeError::Invalid(at)),
            map @ 0x80..=0x8f => (0, u64::from(map & 0x0f) << 1),
            array @ 0x90..=0x9f => (0, u64::from(array & 0x0f)),
            text @ 0xa0..=0xbf => (u64::from(text & 0x1f), 0),
            0xc4 | 0xd9 => (u64::from(self.be_u8()?), 0),
            0xc5 | 0xda => (u64::from(self.be_u16()?), 0),
            0xc6 | 0xdb => (u64::from(self.be_u32()?), 0),
            // Extensions: a type byte beside the data.
            0xc7 => (u64::from(self.be_u8()?).saturating_add(1), 0),
            0xc8 => (u64::from(self.be_u16()?).saturating_add(1), 0),
            0xc9 => (u64::from(self.be_u32()?).saturating_add(1), 0),
            0xd4 => (2, 0),
            0xd5 => (3, 0),
            0xd6 => (5, 0),
            0xd7 => (9, 0),
            0xd8 => (17, 0),
            0xcc | 0xd0 => (1, 0),
            0xcd | 0xd1 => (2, 0),
            0xca | 0xce | 0xd2 => (4, 0),
            0xcb | 0xcf | 0xd3 => (8, 0),
            0xdc => (0, u64::from(self.be_u16()?)),
            0xdd => (0, u64::from(self.be_u32()?)),
            0xde => (0, u64::from(self.be_u16()?) << 1),
            0xdf => (0, u64::from(self.be_u32()?) << 1),
        };
        self.take(usize::try_from(bytes).map_err(|_| DecodeError::Truncated(self.total_bytes))?)?;
        if elements > 0 {
            let depth_left = depth_left.checked_sub(1).ok_or(DecodeError::Depth(at))?;
            for _ in 0..elements {
                self.skip_nested(depth_left)?;
            }
        }
        Ok(())
    }
}

fn wrong_type(first: u8, at: usize) -> DecodeError {
    if first == 0xc1 { DecodeError::Invalid(at) } else { DecodeError::Type(at) }
}

fn bounded(announced: u32, bytes_max: usize, at: usize) -> Result<usize, DecodeError> {
    usize::try_from(announced)
        .ok()
        .filter(|bytes| *bytes <= bytes_max)
        .ok_or(DecodeError::TooLong(at))
}

/// Writes values one after the other, each in its shortest form.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer with room for `bytes` bytes; it grows when that is not enough.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Bytes written so far.
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Hands out what was written, without its first `skip` bytes, and starts anew. Small contents
    /// are copied, so that they do not keep a large buffer alive; large ones take it with them.
    pub(super) fn hand_out(&mut self, skip: usize) -> Bytes {
        if self.bytes.len() < self.bytes.capacity() >> 1 {
            let copy = Bytes::copy_from_slice(self.bytes.get(skip..).unwrap_or_default());
            self.bytes.clear();
            return copy;
        }
        let next = Vec::with_capacity(self.bytes.len());
        let mut whole = Bytes::from(std::mem::replace(&mut self.bytes, next));
        whole.advance(skip.min(whole.len()));
        whole
    }

    /// Bytes as they are.
    #[inline]
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Writes over what was written at `at`; does nothing when that is not all there.
    pub(super) fn overwrite(&mut self, at: usize, bytes: &[u8]) {
        let place = self.bytes.get_mut(at..).and_then(|rest| rest.get_mut(..bytes.len()));
        debug_assert!(place.is_some(), "only what was reserved is written over");
        if let Some(place) = place {
            place.copy_from_slice(bytes);
        }
    }

    /// A number with 7 bits per byte, low ones first, in the shortest form.
    pub fn varint_u32(&mut self, value: u32) {
        let mut rest = value;
        while rest >= 0x80 {
            self.bytes.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        self.bytes.push(rest as u8);
    }

    /// An unsigned number.
    pub fn uint(&mut self, value: impl Into<u64>) {
        let value = value.into();
        if let Ok(byte) = u8::try_from(value) {
            if byte >= 0x80 {
                self.bytes.push(0xcc);
            }
            self.bytes.push(byte);
        } else if let Ok(value) = u16::try_from(value) {
            self.tagged(0xcd, &value.to_be_bytes());
        } else if let Ok(value) = u32::try_from(value) {
            self.tagged(0xce, &value.to_be_bytes());
        } else {
            self.tagged(0xcf, &value.to_be_bytes());
        }
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(if value { 0xc3 } else { 0xc2 });
    }

    /// The absence of a value.
    pub fn nil(&mut self) {
        self.bytes.push(0xc0);
    }

    /// A text. Beyond 4 GiB it is cut, which no caller comes near.
    pub fn str(&mut self, text: &str) {
        let count = u32::try_from(text.len()).unwrap_or(u32::MAX);
        if count < 32 {
            self.bytes.push(0xa0 | count as u8);
        } else {
            self.length(count, Some(0xd9), 0xda, 0xdb);
        }
        self.raw(text.as_bytes().get(..count as usize).unwrap_or_default());
    }

    /// A byte string. Beyond 4 GiB it is cut, which no caller comes near.
    pub fn bin(&mut self, bytes: &[u8]) {
        let count = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.length(count, Some(0xc4), 0xc5, 0xc6);
        self.raw(bytes.get(..count as usize).unwrap_or_default());
    }

    /// The head of an array; `count` values must follow.
    pub fn array(&mut self, count: u32) {
        if count < 16 {
            self.bytes.push(0x90 | count as u8);
        } else {
            self.length(count, None, 0xdc, 0xdd);
        }
    }

    fn length(&mut self, count: u32, in_8: Option<u8>, in_16: u8, in_32: u8) {
        match (u8::try_from(count), in_8, u16::try_from(count)) {
            (Ok(count), Some(tag), _) => self.tagged(tag, &[count]),
            (_, _, Ok(count)) => self.tagged(in_16, &count.to_be_bytes()),
            _ => self.tagged(in_32, &count.to_be_bytes()),
        }
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.bytes.push(tag);
        self.raw(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer);
        writer.into_bytes()
    }

    #[test]
    fn numbers_take_their_shortest_form() {
        let cases: [(u64, &[u8]); 9] = [
            (0, &[0x00]),
            (127, &[0x7f]),
            (128, &[0xcc, 0x80]),
            (255, &[0xcc, 0xff]),
            (256, &[0xcd, 1, 0]),
            (65_535, &[0xcd, 0xff, 0xff]),
            (65_536, &[0xce, 0, 1, 0, 0]),
            (1 << 32, &[0xcf, 0, 0, 0, 1, 0, 0, 0, 0]),
            (u64::MAX, &[0xcf, 255, 255, 255, 255, 255, 255, 255, 255]),
        ];
        for (value, bytes) in cases {
            assert_eq!(written(|w| w.uint(value)), bytes);
            assert_eq!(Reader::new(bytes).u64(), Ok(value));
        }
    }

    #[test]
    fn numbers_are_read_in_any_width_but_not_below_zero() {
        for bytes in [
            &[0x05][..],
            &[0xcc, 5],
            &[0xcd, 0, 5],
            &[0xce, 0, 0, 0, 5],
            &[0xcf, 0, 0, 0, 0, 0, 0, 0, 5],
            &[0xd0, 5],
            &[0xd1, 0, 5],
            &[0xd2, 0, 0, 0, 5],
            &[0xd3, 0, 0, 0, 0, 0, 0, 0, 5],
        ] {
            assert_eq!(Reader::new(bytes).u64(), Ok(5), "{bytes:02x?}");
        }
        assert_eq!(Reader::new(&[0xff]).u64(), Err(DecodeError::Range(0)));
        assert_eq!(Reader::new(&[0xd0, 0x80]).u64(), Err(DecodeError::Range(0)));
        assert_eq!(Reader::new(&[0xcd, 1, 0]).uint::<u8>(), Err(DecodeError::Range(0)));
        assert_eq!(Reader::new(&[0xc3]).u64(), Err(DecodeError::Type(0)));
    }

    #[test]
    fn announced_lengths_are_checked_before_use() {
        let huge = [0xdb, 0xff, 0xff, 0xff, 0xff, b'x'];
        assert_eq!(Reader::new(&huge).str(255), Err(DecodeError::TooLong(0)));
        assert_eq!(Reader::new(&huge).str(usize::MAX), Err(DecodeError::Truncated(6)));
        assert_eq!(Reader::new(&huge).skip(), Err(DecodeError::Truncated(6)));
        let array = [0xdd, 0xff, 0xff, 0xff, 0xff, 0x00];
        assert_eq!(Reader::new(&array).skip(), Err(DecodeError::Truncated(6)));
        assert_eq!(Reader::new(&[0xa1, 0xff]).str(9), Err(DecodeError::Utf8(0)));
        assert_eq!(Reader::new(&[0xc4, 1, 7]).bin_array::<2>(), Err(DecodeError::Range(0)));
        assert_eq!(Reader::new(&[0xc4, 3, 7, 7, 7]).bin_array::<2>(), Err(DecodeError::TooLong(0)));
    }

    #[test]
    fn every_valid_value_is_skipped() {
        for value in [
            &[0x00][..],
            &[0xe0],
            &[0xc0],
            &[0xc2],
            &[0xca, 0, 0, 0, 0],
            &[0xcb, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x82, 0xa1, b'k', 0x01, 0x02, 0x90],
            &[0xde, 0, 1, 0x01, 0x02],
            &[0xdf, 0, 0, 0, 1, 0x01, 0x02],
            &[0xdc, 0, 2, 0x01, 0x02],
            &[0xd4, 1, 9],
            &[0xd5, 1, 9, 9],
            &[0xd6, 1, 9, 9, 9, 9],
            &[0xd7, 1, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0xd8, 1, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9],
            &[0xc7, 2, 1, 9, 9],
            &[0xc8, 0, 2, 1, 9, 9],
            &[0xc9, 0, 0, 0, 2, 1, 9, 9],
            &[0xd9, 1, 0xff],
            &[0xc5, 0, 1, 7],
        ] {
            let mut reader = Reader::new(value);
            assert_eq!(reader.skip(), Ok(()), "{value:02x?}");
            assert_eq!(reader.end(), Ok(()), "{value:02x?}");
            for cut in 0..value.len() {
                assert!(Reader::new(&value[..cut]).skip().is_err(), "{value:02x?} cut at {cut}");
            }
        }
        assert_eq!(Reader::new(&[0x91, 0xc1]).skip(), Err(DecodeError::Invalid(1)));
    }

    #[test]
    fn nesting_is_bounded() {
        let nested = |depth: u32| {
            let mut bytes = vec![0x91; depth as usize];
            bytes.push(0x00);
            Reader::new(&bytes).skip()
        };
        assert_eq!(nested(NESTING_DEPTH_MAX), Ok(()));
        assert_eq!(nested(NESTING_DEPTH_MAX + 1), Err(DecodeError::Depth(8)));
        assert_eq!(nested(100_000), Err(DecodeError::Depth(8)));
    }

    #[test]
    fn varints_end_after_five_bytes() {
        assert_eq!(written(|w| w.varint_u32(300)), [0xac, 0x02]);
        let max = [0xff, 0xff, 0xff, 0xff, 0x0f];
        assert_eq!(written(|w| w.varint_u32(u32::MAX)), max);
        assert_eq!(Reader::new(&max).varint_u32(), Ok(u32::MAX));
        assert_eq!(Reader::new(&[0x85, 0x80, 0x00]).varint_u32(), Ok(5));
        let beyond = [0xff, 0xff, 0xff, 0xff, 0x1f];
        assert_eq!(Reader::new(&beyond).varint_u32(), Err(DecodeError::Range(0)));
        let endless = [0x80; 9];
        assert_eq!(Reader::new(&endless).varint_u32(), Err(DecodeError::Range(0)));
        assert_eq!(Reader::new(&[0x80]).varint_u32(), Err(DecodeError::Truncated(1)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            number: u64,
            small: u32,
            truth: bool,
            text in ".{0,400}",
            bytes in proptest::collection::vec(any::<u8>(), 0..70_000),
            count: u32,
        ) {
            let all = written(|w| {
                w.uint(number);
                w.varint_u32(small);
                w.bool(truth);
                w.nil();
                w.str(&text);
                w.bin(&bytes);
                w.array(count);
            });
            let mut reader = Reader::new(&all);
            prop_assert_eq!(reader.u64(), Ok(number));
            prop_assert_eq!(reader.varint_u32(), Ok(small));
            prop_assert_eq!(reader.bool(), Ok(truth));
            prop_assert!(reader.clone().array().is_err() && reader.nil() && !reader.nil());
            prop_assert_eq!(reader.str(usize::MAX), Ok(text.as_str()));
            prop_assert_eq!(reader.bin(usize::MAX), Ok(bytes.as_slice()));
            prop_assert_eq!(reader.array(), Ok(count));
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn skipping_any_bytes_ends_within_them(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut reader = Reader::new(&bytes);
            while reader.skip().is_ok() {}
            prop_assert!(reader.offset() <= bytes.len());
        }
    }
}
