//! Writing both formats.

use super::error::{Error, Problem, Result};
use super::safetensors::DTYPES;
use crate::tensor::TensorView;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::Write as _;

/// Flax's limit on an array's bytes, above which it is stored in chunks.
const MAX_CHUNK: usize = 1 << 30;

/// The bytes of `flax.serialization.to_bytes` for nested dicts of arrays, given as paths with `/` in the dicts' order.
///
/// # Errors
///
/// [`Problem::Duplicate`] if a path stands twice or is also the beginning of another.
pub fn write_msgpack(entries: &[(&str, TensorView<'_>)]) -> Result<Vec<u8>> {
    write_msgpack_chunked(entries, MAX_CHUNK)
}

/// [`write_msgpack`] with another limit on an array's bytes.
///
/// # Errors
///
/// As [`write_msgpack`].
pub fn write_msgpack_chunked(
    entries: &[(&str, TensorView<'_>)],
    max_chunk: usize,
) -> Result<Vec<u8>> {
    let mut root = Map::default();
    for (path, view) in entries {
        root.insert(path, *view)?;
    }
    let mut out = Vec::new();
    root.write(&mut out, max_chunk);
    Ok(out)
}

/// A dict, in insertion order.
#[derive(Default)]
struct Map<'a>(Vec<(&'a str, Child<'a>)>);

enum Child<'a> {
    Map(Map<'a>),
    Tensor(TensorView<'a>),
}

impl<'a> Map<'a> {
    fn insert(&mut self, path: &'a str, view: TensorView<'a>) -> Result<()> {
        let mut map = self;
        let mut path = path;
        while let Some((step, rest)) = path.split_once('/') {
            let index = map
                .0
                .iter()
                .position(|(name, _)| *name == step)
                .unwrap_or_else(|| {
                    map.0.push((step, Child::Map(Map::default())));
                    map.0.len() - 1
                });
            let Child::Map(inner) = &mut map.0[index].1 else {
                return Err(Error::new(0, Problem::Duplicate));
            };
            (map, path) = (inner, rest);
        }
        if map.0.iter().any(|(name, _)| *name == path) {
            return Err(Error::new(0, Problem::Duplicate));
        }
        map.0.push((path, Child::Tensor(view)));
        Ok(())
    }

    fn write(&self, out: &mut Vec<u8>, max_chunk: usize) {
        container(out, self.0.len(), 0x80, 0xde);
        for (name, child) in &self.0 {
            text(out, name);
            match child {
                Child::Map(map) => map.write(out, max_chunk),
                Child::Tensor(view) if view.bytes().len() > max_chunk => {
                    chunked(out, view, max_chunk)
                }
                Child::Tensor(view) => tensor(out, view),
            }
        }
    }
}

fn container(out: &mut Vec<u8>, count: usize, fixed: u8, wide: u8) {
    match count {
        0..=15 => out.push(fixed | count as u8),
        16..=0xffff => {
            out.push(wide);
            out.extend((count as u16).to_be_bytes());
        }
        _ => {
            out.push(wide + 1);
            out.extend((count as u32).to_be_bytes());
        }
    }
}

/// A header of 8, 16 or 32 bits of length, whichever is the shortest.
fn sized(out: &mut Vec<u8>, count: usize, narrowest: u8) {
    match count {
        0..=0xff => out.extend([narrowest, count as u8]),
        0x100..=0xffff => {
            out.push(narrowest + 1);
            out.extend((count as u16).to_be_bytes());
        }
        _ => {
            out.push(narrowest + 2);
            out.extend((count as u32).to_be_bytes());
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    match text.len() {
        count @ 0..=31 => out.push(0xa0 | count as u8),
        count => sized(out, count, 0xd9),
    }
    out.extend(text.as_bytes());
}

fn integer(out: &mut Vec<u8>, value: usize) {
    match value {
        0..=0x7f => out.push(value as u8),
        0x80..=0xff => out.extend([0xcc, value as u8]),
        0x100..=0xffff => {
            out.push(0xcd);
            out.extend((value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xce);
            out.extend((value as u32).to_be_bytes());
        }
        _ => {
            out.push(0xcf);
            out.extend((value as u64).to_be_bytes());
        }
    }
}

fn tensor(out: &mut Vec<u8>, view: &TensorView<'_>) {
    let mut payload = Vec::new();
    payload.push(0x93);
    container(&mut payload, view.shape().rank(), 0x90, 0xdc);
    for &dim in view.shape().iter() {
        integer(&mut payload, dim);
    }
    text(&mut payload, view.scalar().name());
    sized(&mut payload, view.bytes().len(), 0xc4);
    payload.extend(view.bytes());
    match payload.len() {
        count @ (1 | 2 | 4 | 8 | 16) => out.push(0xd4 + count.trailing_zeros() as u8),
        count => sized(out, count, 0xc7),
    }
    out.push(1);
    out.extend(payload);
}

fn chunked(out: &mut Vec<u8>, view: &TensorView<'_>, max_chunk: usize) {
    container(out, 3, 0x80, 0xde);
    text(out, "__msgpack_chunked_array__");
    out.push(0xc3);
    text(out, "shape");
    container(out, view.shape().rank(), 0x80, 0xde);
    let mut name = String::new();
    for (axis, &dim) in view.shape().iter().enumerate() {
        number(&mut name, axis);
        text(out, &name);
        integer(out, dim);
    }
    text(out, "chunks");
    let size = view.scalar().size();
    let chunk = (max_chunk / size).max(1) * size;
    let chunks = view.bytes().chunks(chunk);
    container(out, chunks.len(), 0x80, 0xde);
    for (index, bytes) in chunks.enumerate() {
        number(&mut name, index);
        text(out, &name);
        // A part of a valid array, whole elements: it is one too.
        if let Ok(part) = TensorView::new(view.scalar(), &[bytes.len() / size], bytes) {
            tensor(out, &part);
        }
    }
}

fn number(name: &mut String, value: usize) {
    name.clear();
    // Writing to a `String` cannot fail.
    let _ = write!(name, "{value}");
}

/// A safetensors file of these arrays, in this order, their data aligned to 8 bytes.
///
/// # Errors
///
/// [`Problem::Duplicate`] if a name stands twice, [`Problem::Name`] if one would need an escape.
pub fn write_safetensors(entries: &[(&str, TensorView<'_>)]) -> Result<Vec<u8>> {
    let mut header = String::from("{");
    let mut end = 0usize;
    for (index, (name, view)) in entries.iter().enumerate() {
        if entries[..index].iter().any(|(other, _)| other == name) {
            return Err(Error::new(0, Problem::Duplicate));
        }
        if name
            .bytes()
            .any(|byte| byte == b'"' || byte == b'\\' || byte < b' ')
        {
            return Err(Error::new(0, Problem::Name));
        }
        let dtype = DTYPES
            .iter()
            .find(|(_, scalar)| *scalar == view.scalar())
            .map_or("", |(dtype, _)| dtype);
        let comma = if index == 0 { "" } else { "," };
        let begin = end;
        end += view.bytes().len();
        // Writing to a `String` cannot fail.
        let _ = write!(
            header,
            "{comma}\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":["
        );
        for (axis, dim) in view.shape().iter().enumerate() {
            let comma = if axis == 0 { "" } else { "," };
            let _ = write!(header, "{comma}{dim}");
        }
        let _ = write!(header, "],\"data_offsets\":[{begin},{end}]}}");
    }
    header.push('}');
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut out = Vec::from((header.len() as u64).to_le_bytes());
    out.extend(header.as_bytes());
    for (_, view) in entries {
        out.extend(view.bytes());
    }
    Ok(out)
}
