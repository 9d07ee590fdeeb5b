//! Flax's msgpack (`flax.serialization.to_bytes`, `msgpack_serialize`), read in place.
//!
//! A file is nested maps with leaves; arrays are ext type 1 (and numpy scalars type 3), whose payload is msgpack again: shape,
//! dtype's name, little-endian bytes. The reader goes over the bytes once, without recursion and without an allocator, and
//! hands each leaf to a visitor together with its path. An array of more than 2^30 bytes is stored as a map of chunks; the
//! visitor sees that map's entries, `Tree` joins them. Whether a name stands twice is for the visitor to see: [`Found::fresh`]
//! tells it where to look.
//!
//! The published msgpack crates read into owned values or need `std`; this module is the part of the format that is needed,
//! over borrowed bytes.

use super::error::{Error, Problem, Result};
use crate::tensor::TensorView;
use attn_core::{Dims, ScalarType};

/// Deepest nesting that is read: a model's tree has about ten levels, an optimizer's state some more.
pub const MAX_DEPTH: usize = 64;

/// A step of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Segment<'a> {
    /// A map's key.
    Name(&'a str),
    /// An array's index.
    Index(usize),
}

/// What stands at the end of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// An array or numpy scalar.
    Tensor(TensorView<'a>),
    /// A number that is not an array.
    Int(i128),
    /// A number that is not an array.
    Float(f64),
    /// A complex number.
    Complex(f64, f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Str(&'a str),
    /// Bytes.
    Bin(&'a [u8]),
    /// Nothing.
    Nil,
    /// A map or list without entries.
    Empty,
}

/// A leaf of a file.
#[derive(Debug, Clone, Copy)]
pub struct Found<'p, 'a> {
    /// The steps from the root to it.
    pub path: &'p [Segment<'a>],
    /// From which step on the path is not a continuation of the leaf before: these steps were read anew, so in a file without
    /// duplicate names they are new.
    pub fresh: usize,
    /// What stands there.
    pub value: Value<'a>,
    /// Where it stands in the file.
    pub offset: usize,
}

/// What is done with each leaf.
pub type Visit<'v, 'a> = dyn FnMut(Found<'_, 'a>) -> Result<()> + 'v;

/// Reads `bytes` and calls `visit` for each leaf in the file's order.
///
/// ```
/// use attn_layers::io::msgpack::{Segment, Value, read};
/// let mut seen = 0;
/// read(&[0x81, 0xa1, b'n', 0x07], &mut |found| {
///     assert_eq!((found.path, found.value), ([Segment::Name("n")].as_slice(), Value::Int(7)));
///     seen += 1;
///     Ok(())
/// })?;
/// assert_eq!(seen, 1);
/// # Ok::<(), attn_layers::io::Error>(())
/// ```
///
/// # Errors
///
/// [`Error`] with the offset of what is wrong, or what `visit` returns.
pub fn read<'a>(bytes: &'a [u8], visit: &mut Visit<'_, 'a>) -> Result<()> {
    let mut cursor = Cursor::new(bytes, 0);
    let mut path = [Segment::Index(0); MAX_DEPTH];
    let mut open = [Open {
        left: 0,
        next: 0,
        map: false,
    }; MAX_DEPTH];
    let (mut depth, mut fresh) = (0, 0);
    loop {
        let start = cursor.at;
        let mut leaf = |value| {
            let path = &path[..depth];
            visit(Found {
                path,
                fresh: core::mem::replace(&mut fresh, depth),
                value,
                offset: start,
            })
        };
        match cursor.item()? {
            Item::Value(value) => leaf(value)?,
            Item::Begin { count: 0, .. } => leaf(Value::Empty)?,
            Item::Begin { count, map } => {
                let frame = open
                    .get_mut(depth)
                    .ok_or(Error::new(start, Problem::TooDeep { limit: MAX_DEPTH }))?;
                *frame = Open {
                    left: count,
                    next: 0,
                    map,
                };
                depth += 1;
            }
        }
        // To the next entry of the innermost container that has one.
        loop {
            let Some(level) = depth.checked_sub(1) else {
                return cursor.end();
            };
            let frame = &mut open[level];
            if frame.left == 0 {
                depth = level;
                continue;
            }
            fresh = fresh.min(level);
            path[level] = if frame.map {
                Segment::Name(cursor.key()?)
            } else {
                Segment::Index(frame.next)
            };
            frame.left -= 1;
            frame.next += 1;
            break;
        }
    }
}

/// The leaf that stands at `offset` of a file that was read.
#[cfg(feature = "alloc")]
pub(super) fn leaf(bytes: &[u8], offset: usize) -> Result<Value<'_>> {
    match Cursor::new(bytes, offset).item()? {
        Item::Value(value) => Ok(value),
        Item::Begin { .. } => Ok(Value::Empty),
    }
}

/// A container that is being read.
#[derive(Clone, Copy)]
struct Open {
    left: usize,
    next: usize,
    map: bool,
}

enum Item<'a> {
    Value(Value<'a>),
    Begin { count: usize, map: bool },
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Inside an extension, which holds no other: else a file could nest them until the stack ends.
    inner: bool,
}

impl<'a> Cursor<'a> {
    const fn new(bytes: &'a [u8], at: usize) -> Self {
        Self {
            bytes,
            at,
            inner: false,
        }
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let truncated = Error::new(
            self.at,
            Problem::Truncated {
                got: rest.len(),
                wanted: count,
            },
        );
        let count = usize::try_from(count).map_err(|_| truncated)?;
        let taken = rest.get(..count).ok_or(truncated)?;
        self.at += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// A big-endian length of 1, 2 or 4 bytes.
    fn length(&mut self, bytes: usize) -> Result<u64> {
        Ok(match bytes {
            1 => self.byte()?.into(),
            2 => u16::from_be_bytes(self.array()?).into(),
            _ => u32::from_be_bytes(self.array()?).into(),
        })
    }

    fn end(&self) -> Result<()> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            count => Err(Error::new(self.at, Problem::Trailing { count })),
        }
    }

    fn text(&mut self, count: u64) -> Result<&'a str> {
        let start = self.at;
        core::str::from_utf8(self.take(count)?).map_err(|_| Error::new(start, Problem::Name))
    }

    /// Each entry takes at least one byte (two in a map), so a count beyond the file is a lie.
    fn container(&mut self, count: u64, map: bool) -> Result<Item<'a>> {
        let least = count.saturating_mul(if map { 2 } else { 1 });
        let got = self.bytes.len() - self.at;
        if least > got as u64 {
            return Err(Error::new(
                self.at,
                Problem::Truncated { got, wanted: least },
            ));
        }
        Ok(Item::Begin {
            count: count as usize,
            map,
        })
    }

    fn key(&mut self) -> Result<&'a str> {
        let start = self.at;
        match self.item()? {
            Item::Value(Value::Str(name)) => Ok(name),
            Item::Value(Value::Bin(name)) => {
                core::str::from_utf8(name).map_err(|_| Error::new(start, Problem::Name))
            }
            _ => Err(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "a text as the key of a map",
                },
            )),
        }
    }

    fn item(&mut self) -> Result<Item<'a>> {
        let start = self.at;
        let value = match self.byte()? {
            byte @ 0x00..=0x7f => Value::Int(byte.into()),
            byte @ 0x80..=0x8f => return self.container((byte & 15).into(), true),
            byte @ 0x90..=0x9f => return self.container((byte & 15).into(), false),
            byte @ 0xa0..=0xbf => Value::Str(self.text((byte & 31).into())?),
            0xc0 => Value::Nil,
            0xc2 => Value::Bool(false),
            0xc3 => Value::Bool(true),
            byte @ 0xc4..=0xc6 => {
                let count = self.length(1 << (byte - 0xc4))?;
                Value::Bin(self.take(count)?)
            }
            byte @ 0xc7..=0xc9 => {
                let count = self.length(1 << (byte - 0xc7))?;
                self.extension(count)?
            }
            0xca => Value::Float(f32::from_be_bytes(self.array()?).into()),
            0xcb => Value::Float(f64::from_be_bytes(self.array()?)),
            0xcc => Value::Int(self.byte()?.into()),
            0xcd => Value::Int(u16::from_be_bytes(self.array()?).into()),
            0xce => Value::Int(u32::from_be_bytes(self.array()?).into()),
            0xcf => Value::Int(u64::from_be_bytes(self.array()?).into()),
            0xd0 => Value::Int(i8::from_be_bytes(self.array()?).into()),
            0xd1 => Value::Int(i16::from_be_bytes(self.array()?).into()),
            0xd2 => Value::Int(i32::from_be_bytes(self.array()?).into()),
            0xd3 => Value::Int(i64::from_be_bytes(self.array()?).into()),
            byte @ 0xd4..=0xd8 => self.extension(1 << (byte - 0xd4))?,
            byte @ 0xd9..=0xdb => {
                let count = self.length(1 << (byte - 0xd9))?;
                Value::Str(self.text(count)?)
            }
            byte @ 0xdc..=0xdd => {
                let count = self.length(2 << (byte - 0xdc))?;
                return self.container(count, false);
            }
            byte @ 0xde..=0xdf => {
                let count = self.length(2 << (byte - 0xde))?;
                return self.container(count, true);
            }
            byte @ 0xe0..=0xff => Value::Int((byte as i8).into()),
            0xc1 => {
                return Err(Error::new(
                    start,
                    Problem::Unexpected {
                        wanted: "a msgpack item",
                    },
                ));
            }
        };
        Ok(Item::Value(value))
    }

    /// Flax's extensions: 1 an array, 2 a complex number, 3 a numpy scalar.
    fn extension(&mut self, count: u64) -> Result<Value<'a>> {
        let start = self.at;
        if self.inner {
            return Err(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "no extension inside of another",
                },
            ));
        }
        let code = self.byte()?;
        let first = self.at;
        let payload = self.take(count)?;
        // Offsets in errors stay those of the file.
        let mut inner = Cursor {
            bytes: &self.bytes[..first + payload.len()],
            at: first,
            inner: true,
        };
        let value = match code {
            1 | 3 => Value::Tensor(inner.tensor()?),
            2 => inner.complex()?,
            _ => {
                return Err(Error::new(
                    start,
                    Problem::Unexpected {
                        wanted: "an extension of Flax (1, 2 or 3)",
                    },
                ));
            }
        };
        inner.end()?;
        Ok(value)
    }

    fn list(&mut self, wanted: usize) -> Result<()> {
        let start = self.at;
        match self.item()? {
            Item::Begin { count, map: false } if count == wanted => Ok(()),
            _ => Err(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "the list that describes an array",
                },
            )),
        }
    }

    fn complex(&mut self) -> Result<Value<'a>> {
        self.list(2)?;
        let start = self.at;
        match (self.item()?, self.item()?) {
            (Item::Value(Value::Float(re)), Item::Value(Value::Float(im))) => {
                Ok(Value::Complex(re, im))
            }
            _ => Err(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "two numbers",
                },
            )),
        }
    }

    /// `[shape, dtype, data]`. Names and data may be text or bytes: Flax itself unpacks them raw.
    fn tensor(&mut self) -> Result<TensorView<'a>> {
        self.list(3)?;
        let start = self.at;
        let Item::Begin { count, map: false } = self.item()? else {
            return Err(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "the shape of an array",
                },
            ));
        };
        let mut shape = Dims::SCALAR;
        for _ in 0..count {
            let Item::Value(Value::Int(dim)) = self.item()? else {
                return Err(Error::new(
                    start,
                    Problem::Unexpected {
                        wanted: "the shape of an array",
                    },
                ));
            };
            let dim = usize::try_from(dim).map_err(|_| Error::new(start, Problem::Shape))?;
            shape = shape
                .push(dim)
                .map_err(|_| Error::new(start, Problem::Shape))?;
        }
        let name = self.at;
        let scalar = match self.item()? {
            Item::Value(Value::Str(text)) => ScalarType::from_name(text),
            Item::Value(Value::Bin(bytes)) => core::str::from_utf8(bytes)
                .ok()
                .and_then(ScalarType::from_name),
            _ => None,
        }
        .ok_or(Error::new(name, Problem::DType))?;
        let start = self.at;
        let data = match self.item()? {
            Item::Value(Value::Bin(data)) => data,
            Item::Value(Value::Str(data)) => data.as_bytes(),
            _ => {
                return Err(Error::new(
                    start,
                    Problem::Unexpected {
                        wanted: "the bytes of an array",
                    },
                ));
            }
        };
        view(scalar, &shape, data, start)
    }
}

/// An array in a file, its length held against its shape.
pub(super) fn view<'a>(
    scalar: ScalarType,
    shape: &Dims,
    data: &'a [u8],
    offset: usize,
) -> Result<TensorView<'a>> {
    TensorView::new(scalar, shape, data).map_err(|error| {
        Error::new(
            offset,
            match error {
                attn_core::Error::Buffer { got, wanted, .. } => Problem::Length { got, wanted },
                _ => Problem::Shape,
            },
        )
    })
}
