//! The wire format of Protocol Buffers, read in place: a message is a list of numbered fields.
//!
//! A length is held against the message before anything is done with it, and nothing is read by recursion.

use crate::io::{Error, Problem, Result};

/// Bytes of a file, and where in it they begin.
#[derive(Debug, Clone, Copy)]
pub(super) struct Message<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) offset: usize,
}

/// What stands in a field.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'a> {
    /// A whole number of any type.
    Varint(u64),
    /// Eight bytes: a `double`.
    Fixed64([u8; 8]),
    /// A text, bytes, a message, or many numbers.
    Bytes(Message<'a>),
    /// Four bytes: a `float`.
    Fixed32([u8; 4]),
}

/// A field of a message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
    offset: usize,
}

impl<'a> Message<'a> {
    /// Its fields in their order, none after an error.
    pub(super) const fn fields(self) -> Fields<'a> {
        Fields { rest: self }
    }

    /// The text that these bytes are.
    pub(super) fn text(self) -> Result<&'a str> {
        core::str::from_utf8(self.bytes).map_err(|_| Error::new(self.offset, Problem::Name))
    }

    /// The next whole number of a list without field numbers.
    pub(super) fn varint(&mut self) -> Result<u64> {
        let start = self.offset;
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let [byte] = self.take::<1>()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(unexpected(start, "a number of at most ten bytes"))
    }

    /// The next `N` bytes.
    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        match self.bytes.split_first_chunk::<N>() {
            Some((first, rest)) => {
                (self.bytes, self.offset) = (rest, self.offset + N);
                Ok(*first)
            }
            None => Err(self.truncated(N as u64)),
        }
    }

    fn message(&mut self) -> Result<Self> {
        let length = self.varint()?;
        let split = usize::try_from(length).ok();
        let Some((first, rest)) = split.and_then(|length| self.bytes.split_at_checked(length))
        else {
            return Err(self.truncated(length));
        };
        let message = Message {
            bytes: first,
            offset: self.offset,
        };
        (self.bytes, self.offset) = (rest, self.offset + first.len());
        Ok(message)
    }

    const fn truncated(&self, wanted: u64) -> Error {
        Error::new(
            self.offset,
            Problem::Truncated {
                got: self.bytes.len(),
                wanted,
            },
        )
    }
}

/// The fields of a message.
pub(super) struct Fields<'a> {
    rest: Message<'a>,
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<Field<'a>> {
        let offset = self.rest.offset;
        let key = self.rest.varint()?;
        let value = match key & 7 {
            0 => Value::Varint(self.rest.varint()?),
            1 => Value::Fixed64(self.rest.take()?),
            2 => Value::Bytes(self.rest.message()?),
            5 => Value::Fixed32(self.rest.take()?),
            _ => return Err(unexpected(offset, "a field of a known kind")),
        };
        Ok(Field {
            number: key >> 3,
            value,
            offset,
        })
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.bytes.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest.bytes = &[];
        }
        Some(field)
    }
}

impl<'a> Field<'a> {
    pub(super) fn message(&self) -> Result<Message<'a>> {
        match self.value {
            Value::Bytes(message) => Ok(message),
            _ => Err(unexpected(self.offset, "a message or text")),
        }
    }

    pub(super) fn text(&self) -> Result<&'a str> {
        self.message()?.text()
    }

    pub(super) fn integer(&self) -> Result<i64> {
        match self.value {
            Value::Varint(value) => Ok(value.cast_signed()),
            _ => Err(unexpected(self.offset, "a whole number")),
        }
    }

    pub(super) fn float(&self) -> Result<f32> {
        match self.value {
            Value::Fixed32(bytes) => Ok(f32::from_le_bytes(bytes)),
            _ => Err(unexpected(self.offset, "a number of four bytes")),
        }
    }

    /// Calls `each` with the numbers of a repeated field, which may stand one by one or many in one field.
    pub(super) fn integers(&self, mut each: impl FnMut(i64) -> Result<()>) -> Result<()> {
        match self.value {
            Value::Bytes(mut many) => {
                while !many.bytes.is_empty() {
                    each(many.varint()?.cast_signed())?;
                }
                Ok(())
            }
            _ => each(self.integer()?),
        }
    }

    /// The bytes of numbers of a fixed size, one or many.
    pub(super) fn fixed(&'a self) -> Result<&'a [u8]> {
        match &self.value {
            Value::Bytes(many) => Ok(many.bytes),
            Value::Fixed32(one) => Ok(one),
            Value::Fixed64(one) => Ok(one),
            Value::Varint(_) => Err(unexpected(self.offset, "numbers of a fixed size")),
        }
    }
}

const fn unexpected(offset: usize, wanted: &'static str) -> Error {
    Error::new(offset, Problem::Unexpected { wanted })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<usize> {
        let message = Message { bytes, offset: 0 };
        message
            .fields()
            .try_fold(0, |count, field| field.map(|_| count + 1))
    }

    #[test]
    fn a_field_of_each_kind_is_read() {
        let bytes = [
            0x08, 0x96, 0x01, 0x12, 2, 7, 8, 0x1d, 0, 0, 128, 63, 0x21, 1, 2, 3, 4, 5, 6, 7, 8,
        ];
        assert_eq!(read(&bytes), Ok(4));
        for length in 1..bytes.len() {
            let whole = [3, 7, 12].contains(&length);
            assert_eq!(read(&bytes[..length]).is_ok(), whole, "{length} bytes");
        }
    }

    #[test]
    fn a_length_beyond_the_message_is_an_error() {
        let bytes = [
            0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ];
        let error = read(&bytes).expect_err("too long");
        assert_eq!(
            error.problem,
            Problem::Truncated {
                got: 0,
                wanted: u64::MAX
            }
        );
    }

    #[test]
    fn a_number_that_never_ends_is_an_error() {
        assert!(read(&[0xff; 64]).is_err());
        assert!(read(&[0x0b]).is_err(), "a group");
    }
}
