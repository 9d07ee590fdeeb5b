//! safetensors, read in place: eight bytes of length, a JSON header, the arrays' bytes.
//!
//! The header is scanned strictly for what it may hold, so that no allocator and no JSON library is needed, and a name that
//! stands twice is seen (a JSON map would keep the last). Names with an escape are refused.

use super::error::{Error, Problem, Result};
use super::msgpack::view;
use crate::tensor::TensorView;
use attn_core::{Dims, ScalarType};

/// Bytes of the header's length.
const PREFIX: usize = 8;

/// Whether `bytes` begin as such a file does.
#[must_use]
pub fn is_safetensors(bytes: &[u8]) -> bool {
    header(bytes).is_ok_and(|header| header.starts_with(b"{"))
}

fn header(bytes: &[u8]) -> Result<&[u8]> {
    let got = bytes.len();
    let Some(prefix) = bytes.first_chunk::<PREFIX>() else {
        return Err(Error::new(
            0,
            Problem::Truncated {
                got,
                wanted: PREFIX as u64,
            },
        ));
    };
    let wanted = u64::from_le_bytes(*prefix);
    let rest = &bytes[PREFIX..];
    usize::try_from(wanted)
        .ok()
        .and_then(|length| rest.get(..length))
        .ok_or(Error::new(
            0,
            Problem::Truncated {
                got: rest.len(),
                wanted,
            },
        ))
}

/// Reads `bytes` and calls `visit` with the name, the array and the offset of its entry in the header, in the header's order.
///
/// # Errors
///
/// [`Error`] with the offset of what is wrong, or what `visit` returns.
pub fn read<'a>(
    bytes: &'a [u8],
    visit: &mut dyn FnMut(&'a str, TensorView<'a>, usize) -> Result<()>,
) -> Result<()> {
    let header = header(bytes)?;
    let data = &bytes[PREFIX + header.len()..];
    let mut json = Json {
        bytes: &bytes[..PREFIX + header.len()],
        at: PREFIX,
    };
    let mut used = 0usize;
    json.object(&mut |json, name, offset| {
        if name == "__metadata__" {
            return json.object(&mut |json, _, _| json.string().map(drop));
        }
        let (tensor, end) = entry(json, data, offset)?;
        used = used.saturating_add(tensor.bytes().len());
        debug_assert!(end <= data.len());
        visit(name, tensor, offset)
    })?;
    json.spaces();
    if json.at != json.bytes.len() {
        return Err(Error::new(
            json.at,
            Problem::Trailing {
                count: json.bytes.len() - json.at,
            },
        ));
    }
    if used != data.len() {
        return Err(Error::new(PREFIX + header.len(), Problem::Overlap));
    }
    Ok(())
}

/// `{"dtype": .., "shape": [..], "data_offsets": [begin, end]}`, in any order.
fn entry<'a>(
    json: &mut Json<'a>,
    data: &'a [u8],
    offset: usize,
) -> Result<(TensorView<'a>, usize)> {
    let (mut dtype, mut shape, mut range) = (None, None, None);
    json.object(&mut |json, key, at| {
        let again = match key {
            "dtype" => dtype
                .replace(scalar(json.string()?).ok_or(Error::new(at, Problem::DType))?)
                .is_some(),
            "shape" => {
                let mut dims = Dims::SCALAR;
                json.numbers(&mut |dim| {
                    let dim = usize::try_from(dim).map_err(|_| Error::new(at, Problem::Shape))?;
                    dims = dims.push(dim).map_err(|_| Error::new(at, Problem::Shape))?;
                    Ok(())
                })?;
                shape.replace(dims).is_some()
            }
            "data_offsets" => {
                let (mut ends, mut count) = ([0u64; 2], 0);
                json.numbers(&mut |end| {
                    *ends.get_mut(count).ok_or(Error::new(
                        at,
                        Problem::Unexpected {
                            wanted: "two offsets",
                        },
                    ))? = end;
                    count += 1;
                    Ok(())
                })?;
                if count != 2 {
                    return Err(Error::new(
                        at,
                        Problem::Unexpected {
                            wanted: "two offsets",
                        },
                    ));
                }
                range.replace(ends).is_some()
            }
            _ => {
                return Err(Error::new(
                    at,
                    Problem::Unexpected {
                        wanted: "dtype, shape or data_offsets",
                    },
                ));
            }
        };
        if again {
            Err(Error::new(at, Problem::Duplicate))
        } else {
            Ok(())
        }
    })?;
    let (Some(dtype), Some(shape), Some([begin, end])) = (dtype, shape, range) else {
        return Err(Error::new(
            offset,
            Problem::Unexpected {
                wanted: "dtype, shape and data_offsets",
            },
        ));
    };
    let truncated = Error::new(
        offset,
        Problem::Truncated {
            got: data.len(),
            wanted: end,
        },
    );
    let (begin, end) = (
        usize::try_from(begin).map_err(|_| truncated)?,
        usize::try_from(end).map_err(|_| truncated)?,
    );
    let bytes = data.get(begin..end).ok_or(truncated)?;
    Ok((view(dtype, &shape, bytes, offset)?, end))
}

/// safetensors' names of element types.
pub(super) const DTYPES: [(&str, ScalarType); 13] = [
    ("BOOL", ScalarType::Bool),
    ("I8", ScalarType::I8),
    ("I16", ScalarType::I16),
    ("I32", ScalarType::I32),
    ("I64", ScalarType::I64),
    ("U8", ScalarType::U8),
    ("U16", ScalarType::U16),
    ("U32", ScalarType::U32),
    ("U64", ScalarType::U64),
    ("F16", ScalarType::F16),
    ("BF16", ScalarType::BF16),
    ("F32", ScalarType::F32),
    ("F64", ScalarType::F64),
];

fn scalar(name: &str) -> Option<ScalarType> {
    DTYPES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|&(_, scalar)| scalar)
}

/// A scanner of the JSON that a header may hold: objects, strings, lists of whole numbers.
struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Json<'a> {
    fn spaces(&mut self) {
        while matches!(self.bytes.get(self.at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.spaces();
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8, wanted: &'static str) -> Result<()> {
        if self.peek() != Some(byte) {
            return Err(Error::new(self.at, Problem::Unexpected { wanted }));
        }
        self.at += 1;
        Ok(())
    }

    /// Calls `entry` before each value of an object; it must read the value.
    fn object(
        &mut self,
        entry: &mut dyn FnMut(&mut Self, &'a str, usize) -> Result<()>,
    ) -> Result<()> {
        self.expect(b'{', "an object")?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.spaces();
            let offset = self.at;
            let name = self.string()?;
            self.expect(b':', "a colon")?;
            entry(self, name, offset)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b'}', "a comma or the end of an object"),
            }
        }
    }

    fn string(&mut self) -> Result<&'a str> {
        self.expect(b'"', "a text")?;
        let start = self.at;
        let rest = &self.bytes[start..];
        let length = rest
            .iter()
            .position(|&byte| byte == b'"' || byte == b'\\' || byte < b' ')
            .ok_or(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "the end of a text",
                },
            ))?;
        if rest[length] != b'"' {
            return Err(Error::new(start + length, Problem::Name));
        }
        self.at += length + 1;
        core::str::from_utf8(&rest[..length]).map_err(|_| Error::new(start, Problem::Name))
    }

    fn numbers(&mut self, number: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        self.expect(b'[', "a list")?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(());
        }
        loop {
            self.spaces();
            let start = self.at;
            let mut value: Option<u64> = None;
            while let Some(digit) = self.bytes.get(self.at).filter(|byte| byte.is_ascii_digit()) {
                let next = value
                    .unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|tens| tens.checked_add(u64::from(digit - b'0')));
                value = Some(next.ok_or(Error::new(start, Problem::Shape))?);
                self.at += 1;
            }
            number(value.ok_or(Error::new(
                start,
                Problem::Unexpected {
                    wanted: "a whole number",
                },
            ))?)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b']', "a comma or the end of a list"),
            }
        }
    }
}
