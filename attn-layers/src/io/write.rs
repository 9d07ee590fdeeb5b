//! Writing both formats.

use super::error::{Error, Problem, Result};
use super::msgpack::MAX_DEPTH;
use super::safetensors::{METADATA, dtype_name};
use crate::tensor::TensorView;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::cmp::Reverse;
use core::fmt::Write as _;

/// Flax's limit on an array's bytes, above which it is stored in chunks.
const MAX_CHUNK: usize = 1 << 30;

/// The bytes of `flax.serialization.to_bytes` for nested dicts of arrays, given as paths with `/` in the dicts' order.
///
/// # Errors
///
/// [`Problem::Duplicate`] if a path stands twice or is also the beginning of another; [`Problem::TooDeep`].
pub fn write_msgpack(entries: &[(&str, TensorView<'_>)]) -> Result<Vec<u8>> {
    write_msgpack_chunked(entries, MAX_CHUNK)
}

/// [`write_msgpack`] with a smaller limit on an array's bytes.
///
/// # Errors
///
/// As [`write_msgpack`].
pub fn write_msgpack_chunked(
    entries: &[(&str, TensorView<'_>)],
    max_chunk: usize,
) -> Result<Vec<u8>> {
    let mut dicts = Dicts::new();
    for (path, view) in entries {
        dicts.insert(path, *view)?;
    }
    let mut out = Vec::new();
    dicts.write(0, &mut out, max_chunk.min(MAX_CHUNK));
    Ok(out)
}

/// Nested dicts, each in insertion order. The first is the outermost.
struct Dicts<'a> {
    dicts: Vec<Vec<(&'a str, Child<'a>)>>,
    /// Where a name stands in a dict.
    index: BTreeMap<(usize, &'a str), Child<'a>>,
}

#[derive(Clone, Copy)]
enum Child<'a> {
    Dict(usize),
    Tensor(TensorView<'a>),
}

impl<'a> Dicts<'a> {
    fn new() -> Self {
        Self {
            dicts: Vec::from([Vec::new()]),
            index: BTreeMap::new(),
        }
    }

    fn insert(&mut self, path: &'a str, view: TensorView<'a>) -> Result<()> {
        if path.split('/').nth(MAX_DEPTH).is_some() {
            return Err(Error::new(0, Problem::TooDeep { limit: MAX_DEPTH }));
        }
        let (mut dict, mut rest) = (0, path);
        while let Some((name, below)) = rest.split_once('/') {
            dict = match self.index.get(&(dict, name)) {
                Some(&Child::Dict(inner)) => inner,
                Some(Child::Tensor(_)) => return Err(Error::new(0, Problem::Duplicate)),
                None => {
                    self.dicts.push(Vec::new());
                    let inner = self.dicts.len() - 1;
                    self.put(dict, name, Child::Dict(inner));
                    inner
                }
            };
            rest = below;
        }
        if self.index.contains_key(&(dict, rest)) {
            return Err(Error::new(0, Problem::Duplicate));
        }
        self.put(dict, rest, Child::Tensor(view));
        Ok(())
    }

    fn put(&mut self, dict: usize, name: &'a str, child: Child<'a>) {
        self.dicts[dict].push((name, child));
        self.index.insert((dict, name), child);
    }

    /// Goes no deeper than [`MAX_DEPTH`].
    fn write(&self, dict: usize, out: &mut Vec<u8>, max_chunk: usize) {
        container(out, self.dicts[dict].len(), 0x80, 0xde);
        for (name, child) in &self.dicts[dict] {
            text(out, name);
            match child {
                Child::Dict(inner) => self.write(*inner, out, max_chunk),
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
    let mut head = Vec::from([0x93]);
    container(&mut head, view.shape().rank(), 0x90, 0xdc);
    for &dim in view.shape().iter() {
        integer(&mut head, dim);
    }
    text(&mut head, view.scalar().name());
    sized(&mut head, view.bytes().len(), 0xc4);
    match head.len() + view.bytes().len() {
        count @ (1 | 2 | 4 | 8 | 16) => out.push(0xd4 + count.trailing_zeros() as u8),
        count => sized(out, count, 0xc7),
    }
    out.push(1);
    out.extend(head);
    out.extend(view.bytes());
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

/// A safetensors file of these arrays: those of larger element types first, otherwise in this order, so that each one is aligned
/// for its type wherever the file itself is aligned to 8 bytes.
///
/// # Errors
///
/// [`Problem::Duplicate`] if a name stands twice; [`Problem::Name`] if one would need an escape, or is `__metadata__`.
pub fn write_safetensors(entries: &[(&str, TensorView<'_>)]) -> Result<Vec<u8>> {
    let mut names = BTreeSet::new();
    for (name, _) in entries {
        let escape = |byte| byte == b'"' || byte == b'\\' || byte < b' ';
        if *name == METADATA || name.bytes().any(escape) {
            return Err(Error::new(0, Problem::Name));
        }
        if !names.insert(*name) {
            return Err(Error::new(0, Problem::Duplicate));
        }
    }
    let mut sorted = Vec::from(entries);
    sorted.sort_by_key(|(_, view)| Reverse(view.scalar().size()));
    let mut header = json_header(&sorted);
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut out = Vec::from((header.len() as u64).to_le_bytes());
    out.extend(header.as_bytes());
    for (_, view) in sorted {
        out.extend(view.bytes());
    }
    Ok(out)
}

fn json_header(entries: &[(&str, TensorView<'_>)]) -> String {
    let (mut header, mut begin) = (String::from("{"), 0usize);
    for (index, (name, view)) in entries.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let dtype = dtype_name(view.scalar());
        let end = begin + view.bytes().len();
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
        begin = end;
    }
    header.push('}');
    header
}
