//! The dialect of MessagePack that v0.7 programs speak: all text is `bin`, the empty list is the empty
//! `str`, and maps have no order.

use bytes::{BufMut, Bytes, BytesMut};

/// How deep lists and maps may be in each other.
pub const DEPTH_MAX: usize = 16;
/// Values in one payload, keys of maps included.
pub const VALUES_MAX: usize = 4_096;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Nothing.
    Nil,
    /// Truth.
    Bool(bool),
    /// From -2^63 to 2^64 - 1.
    Int(i128),
    /// A number with a fraction.
    Float(f64),
    /// Bytes, and every text that a v0.7 program sends.
    Bin(Bytes),
    /// A `str`, UTF-8. v0.7 programs send lists of small integers so, and the empty list.
    Str(Bytes),
    /// A list.
    List(Vec<Self>),
    /// A map, in the order of the wire.
    Map(Vec<(Self, Self)>),
}

impl Value {
    /// The value of a text.
    pub fn text(text: &str) -> Self {
        Self::Bin(Bytes::copy_from_slice(text.as_bytes()))
    }

    /// A map with `fields`, which are sorted by name.
    pub fn map<const N: usize>(mut fields: [(&'static str, Self); N]) -> Self {
        fields.sort_by_key(|(name, _)| *name);
        let entry = |(name, value): (&'static str, Self)| {
            (Self::Bin(Bytes::from_static(name.as_bytes())), value)
        };
        Self::Map(fields.into_iter().map(entry).collect())
    }

    /// The field `name` of a map; of several the last, as v0.7 programs have it.
    pub fn get(&self, name: &str) -> Option<&Self> {
        let Self::Map(entries) = self else { return None };
        let is_it =
            |key: &Self| matches!(key, Self::Bin(key) | Self::Str(key) if key == name.as_bytes());
        entries.iter().rev().find(|(key, _)| is_it(key)).map(|(_, value)| value)
    }

    /// The bytes of a `bin` or a `str`.
    pub fn bytes(&self) -> Option<&Bytes> {
        match self {
            Self::Bin(bytes) | Self::Str(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The number.
    pub fn int(&self) -> Option<i128> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The items of a list; an empty `str` is an empty list.
    pub fn list(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) => Some(items),
            Self::Str(text) if text.is_empty() => Some(&[]),
            _ => None,
        }
    }

    /// Reads exactly one value; `None` when that is not what the bytes are, or when it has more than
    /// [`VALUES_MAX`] values or is deeper than [`DEPTH_MAX`].
    pub fn decode(payload: &Bytes) -> Option<Self> {
        let mut reader = Reader { rest: payload.clone(), values: 0 };
        let value = reader.value(0)?;
        reader.rest.is_empty().then_some(value)
    }

    /// Writes the value in the shortest form that there is.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Nil => out.put_u8(0xc0),
            Self::Bool(is_true) => out.put_u8(0xc2 | u8::from(*is_true)),
            Self::Int(number) => encode_int(*number, out),
            Self::Float(number) => {
                out.put_u8(0xcb);
                out.put_f64(*number);
            }
            Self::Bin(bytes) => {
                encode_length(bytes.len(), None, [Some(0xc4), Some(0xc5), Some(0xc6)], out);
                out.extend_from_slice(bytes);
            }
            Self::Str(text) => {
                encode_length(
                    text.len(),
                    Some((0xa0, 31)),
                    [Some(0xd9), Some(0xda), Some(0xdb)],
                    out,
                );
                out.extend_from_slice(text);
            }
            Self::List(items) if items.is_empty() => out.put_u8(0xa0),
            Self::List(items) => {
                encode_length(items.len(), Some((0x90, 15)), [None, Some(0xdc), Some(0xdd)], out);
                items.iter().for_each(|item| item.encode(out));
            }
            Self::Map(entries) => {
                encode_length(entries.len(), Some((0x80, 15)), [None, Some(0xde), Some(0xdf)], out);
                for (key, value) in entries {
                    key.encode(out);
                    value.encode(out);
                }
            }
        }
    }
}

/// The sign of a length in the shortest form: `fix` is the sign and the most for the form without
/// bytes of its own, `forms` the signs for lengths of one, two and four bytes.
fn encode_length(
    length: usize,
    fix: Option<(u8, usize)>,
    forms: [Option<u8>; 3],
    out: &mut BytesMut,
) {
    // Whatever is longer was never made: payloads are bounded far below.
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    if let Some((sign, most)) = fix
        && length as usize <= most
    {
        return out.put_u8(sign | length as u8);
    }
    match (u8::try_from(length), u16::try_from(length), forms) {
        (Ok(length), _, [Some(sign), ..]) => out.extend_from_slice(&[sign, length]),
        (_, Ok(length), [_, Some(sign), _]) => {
            out.put_u8(sign);
            out.put_u16(length);
        }
        (.., [_, _, sign]) => {
            out.put_u8(sign.unwrap_or(0xc1));
            out.put_u32(length);
        }
    }
}

fn encode_int(number: i128, out: &mut BytesMut) {
    match number {
        0..=0x7f => out.put_u8(number as u8),
        0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
        0x100..=0xffff => {
            out.put_u8(0xcd);
            out.put_u16(number as u16);
        }
        0x1_0000..=0xffff_ffff => {
            out.put_u8(0xce);
            out.put_u32(number as u32);
        }
        0x1_0000_0000.. => {
            out.put_u8(0xcf);
            out.put_u64(number as u64);
        }
        -32..=-1 => out.put_i8(number as i8),
        -0x80..=-33 => {
            out.put_u8(0xd0);
            out.put_i8(number as i8);
        }
        -0x8000..=-0x81 => {
            out.put_u8(0xd1);
            out.put_i16(number as i16);
        }
        -0x8000_0000..=-0x8001 => {
            out.put_u8(0xd2);
            out.put_i32(number as i32);
        }
        ..=-0x8000_0001 => {
            out.put_u8(0xd3);
            out.put_i64(number as i64);
        }
    }
}

struct Reader {
    rest: Bytes,
    values: usize,
}

impl Reader {
    fn value(&mut self, depth: usize) -> Option<Value> {
        self.values += 1;
        if depth > DEPTH_MAX || self.values > VALUES_MAX {
            return None;
        }
        let [sign] = self.take()?;
        Some(match sign {
            0x00..=0x7f => Value::Int(i128::from(sign)),
            0x80..=0x8f => self.map(usize::from(sign & 0x0f), depth)?,
            0x90..=0x9f => self.list(usize::from(sign & 0x0f), depth)?,
            0xa0..=0xbf => self.text(usize::from(sign & 0x1f))?,
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            0xc4..=0xc6 => {
                let length = self.length(sign - 0xc4)?;
                Value::Bin(self.bytes(length)?)
            }
            0xca => Value::Float(f64::from(f32::from_be_bytes(self.take()?))),
            0xcb => Value::Float(f64::from_be_bytes(self.take()?)),
            0xcc => Value::Int(i128::from(u8::from_be_bytes(self.take()?))),
            0xcd => Value::Int(i128::from(u16::from_be_bytes(self.take()?))),
            0xce => Value::Int(i128::from(u32::from_be_bytes(self.take()?))),
            0xcf => Value::Int(i128::from(u64::from_be_bytes(self.take()?))),
            0xd0 => Value::Int(i128::from(i8::from_be_bytes(self.take()?))),
            0xd1 => Value::Int(i128::from(i16::from_be_bytes(self.take()?))),
            0xd2 => Value::Int(i128::from(i32::from_be_bytes(self.take()?))),
            0xd3 => Value::Int(i128::from(i64::from_be_bytes(self.take()?))),
            0xd9..=0xdb => {
                let length = self.length(sign - 0xd9)?;
                self.text(length)?
            }
            0xdc | 0xdd => {
                let length = self.length(sign - 0xdb)?;
                self.list(length, depth)?
            }
            0xde | 0xdf => {
                let length = self.length(sign - 0xdd)?;
                self.map(length, depth)?
            }
            0xe0..=0xff => Value::Int(i128::from(sign as i8)),
            // Never used, and extensions, which no v0.7 program sends.
            0xc1 | 0xc7..=0xc9 | 0xd4..=0xd8 => return None,
        })
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let taken = self.bytes(N)?;
        taken.as_ref().try_into().ok()
    }

    fn bytes(&mut self, length: usize) -> Option<Bytes> {
        (length <= self.rest.len()).then(|| self.rest.split_to(length))
    }

    /// A length of 1, 2 or 4 bytes.
    fn length(&mut self, form: u8) -> Option<usize> {
        match form {
            0 => Some(usize::from(u8::from_be_bytes(self.take()?))),
            1 => Some(usize::from(u16::from_be_bytes(self.take()?))),
            _ => usize::try_from(u32::from_be_bytes(self.take()?)).ok(),
        }
    }

    fn text(&mut self, length: usize) -> Option<Value> {
        let text = self.bytes(length)?;
        std::str::from_utf8(&text).ok()?;
        Some(Value::Str(text))
    }

    fn list(&mut self, length: usize, depth: usize) -> Option<Value> {
        // Each item has at least a byte, so no length makes us allocate much.
        let mut items = Vec::with_capacity(length.min(self.rest.len()).min(64));
        for _ in 0..length {
            items.push(self.value(depth + 1)?);
        }
        Some(Value::List(items))
    }

    fn map(&mut self, length: usize, depth: usize) -> Option<Value> {
        let mut entries = Vec::with_capacity(length.min(self.rest.len()).min(64));
        for _ in 0..length {
            entries.push((self.value(depth + 1)?, self.value(depth + 1)?));
        }
        Some(Value::Map(entries))
    }
}
