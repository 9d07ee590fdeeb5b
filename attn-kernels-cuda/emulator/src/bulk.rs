//! Copies of boxes of an array, as tensor maps describe them.

use attn_kernels_cuda::driver::TensorMap;

/// A tensor map as the emulator's copy engine reads it: the fields one after another.
pub(crate) fn encode(map: &TensorMap) -> [u64; 16] {
    let mut words = [0; 16];
    words[0] = map.address;
    words[1..5].copy_from_slice(&map.dims);
    words[5..8].copy_from_slice(&map.strides);
    for (word, &length) in words[8..12].iter_mut().zip(&map.box_dims) {
        *word = u64::from(length);
    }
    words[12] = u64::from(map.is_bf16);
    words[15] = MAGIC;
    words
}

/// Marks what [`encode`] made.
const MAGIC: u64 = 0x7465_6e73_6f72_6d70;
