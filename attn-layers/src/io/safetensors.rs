//! safetensors, read in place: eight bytes of length, a JSON header, the arrays' bytes.
//!
//! The header is scanned strictly for what it may hold, so that no allocator and no JSON library is needed, and a name that
//! stands twice can be seen (a JSON map would keep the last). Names of arrays with an escape are refused; `__metadata__` may
//! hold them, it is checked and passed over.

use super::error::{Error, Problem, Result};
use super::msgpack::view;
use crate::tensor::TensorView;
use attn_core::{Dims, ScalarType};

/// Bytes of the header's length.
const PREFIX: usize = 8;

/// The entry of the header that is no array.
pub(super) const METADATA: &str = "__metadata__";

/// Whether `bytes` begin as such a file does: a length below 2^48, then an object.
#[must_use]
pub fn is_safetensors(bytes: &[u8]) -> bool {
    bytes.get(6..=PREFIX) == Some(b"\0\0{")
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
/// Every array lies inside the file and their lengths add up to its data. That no two overlap and no name stands twice takes
/// memory to see: `Tree` does.
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
    if json.bytes.get(PREFIX) != Some(&b'{') {
        return Err(Error::new(
            PREFIX,
            Problem::Unexpected {
                wanted: "an object",
            },
        ));
    }
    let (mut used, mut metadata) = (0usize, false);
    json.object(Json::name, &mut |json, name, offset| {
        if name == METADATA {
            if core::mem::replace(&mut metadata, true) {
                return Err(Error::new(offset, Problem::Duplicate));
            }
            return json.object(Json::text, &mut |json, _, _| json.text().map(drop));
        }
        let tensor = entry(json, data, offset)?;
        used = used.saturating_add(tensor.bytes().len());
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
fn entry<'a>(json: &mut Json<'a>, data: &'a [u8], offset: usize) -> Result<TensorView<'a>> {
    let (mut dtype, mut shape, mut range) = (None, None, None);
    json.object(Json::name, &mut |json, key, at| {
        let again = match key {
            "dtype" => dtype
                .replace(scalar(json.name()?).ok_or(Error::new(at, Problem::DType))?)
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
    view(dtype, &shape, bytes, offset)
}

/// safetensors' name of an element type.
pub(super) const fn dtype_name(scalar: ScalarType) -> &'static str {
    match scalar {
        ScalarType::Bool => "BOOL",
        ScalarType::I8 => "I8",
        ScalarType::I16 => "I16",
        ScalarType::I32 => "I32",
        ScalarType::I64 => "I64",
        ScalarType::U8 => "U8",
        ScalarType::U16 => "U16",
        ScalarType::U32 => "U32",
        ScalarType::U64 => "U64",
        ScalarType::F16 => "F16",
        ScalarType::BF16 => "BF16",
        ScalarType::F32 => "F32",
        ScalarType::F64 => "F64",
    }
}

fn scalar(name: &str) -> Option<ScalarType> {
    ScalarType::ALL
        .into_iter()
        .find(|&scalar| dtype_name(scalar) == name)
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

    /// Calls `entry` before each value of an object, whose keys `key` reads; it must read the value.
    fn object(
        &mut self,
        key: fn(&mut Self) -> Result<&'a str>,
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
            let name = key(self)?;
            self.expect(b':', "a colon")?;
            entry(self, name, offset)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                _ => return self.expect(b'}', "a comma or the end of an object"),
            }
        }
    }

    /// A text without escapes.
    fn name(&mut self) -> Result<&'a str> {
        let text = self.text()?;
        match text.find('\\') {
            None => Ok(text),
            // Its closing quote was the last byte read.
            Some(escape) => Err(Error::new(self.at - 1 - text.len() + escape, Problem::Name)),
        }
    }

    /// A text, its escapes left as they stand.
    fn text(&mut self) -> Result<&'a str> {
        self.expect(b'"', "a text")?;
        let start = self.at;
        let unexpected = |at, wanted| Error::new(at, Problem::Unexpected { wanted });
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => self.at += self.escape_length()?,
                Some(b' '..) => self.at += 1,
                Some(_) => return Err(Error::new(self.at, Problem::Name)),
                None => return Err(unexpected(start, "the end of a text")),
            }
        }
        let text = &self.bytes[start..self.at];
        self.at += 1;
        core::str::from_utf8(text).map_err(|_| Error::new(start, Problem::Name))
    }

    fn escape_length(&self) -> Result<usize> {
        match self.bytes[self.at + 1..] {
            [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => Ok(2),
            [b'u', ref rest @ ..]
                if rest
                    .first_chunk::<4>()
                    .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
            {
                Ok(6)
            }
            _ => Err(Error::new(self.at, Problem::Name)),
        }
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
