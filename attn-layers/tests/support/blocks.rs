//! The quantised formats of caches once more, written for nothing but to be read.
#![allow(
    dead_code,
    reason = "every test file has its own copy and uses a part of it"
)]

use attn_layers::f16;

/// A row of int8: its integers and their factor.
pub(crate) fn int8(numbers: &[f32]) -> (Vec<i8>, f32) {
    let amax = numbers.iter().fold(0.0, |most: f32, x| most.max(x.abs()));
    let d = amax / 127.0;
    let id = if d == 0.0 { 0.0 } else { 1.0 / d };
    (numbers.iter().map(|x| (x * id).round() as i8).collect(), d)
}

/// A row of q8_0, block after block: the factor, then 32 integers.
pub(crate) fn q8_0(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in numbers.chunks(32) {
        let (integers, d) = int8(block);
        bytes.extend(f16::from_f32(d).to_le_bytes());
        bytes.extend(integers.iter().map(|integer| integer.to_le_bytes()[0]));
    }
    bytes
}

/// The numbers of integers and a factor.
pub(crate) fn numbers(integers: &[i8], d: f32) -> Vec<f32> {
    integers.iter().map(|q| f32::from(*q) * d).collect()
}

/// The numbers of blocks.
pub(crate) fn numbers_of_blocks(bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.chunks(34).flat_map(|block| {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let integers: Vec<i8> = block[2..]
            .iter()
            .map(|byte| i8::from_le_bytes([*byte]))
            .collect();
        numbers(&integers, d)
    });
    blocks.collect()
}
