//! What attention needs beside its inputs and outputs, beforehand and whatever the length.

use attn_core::{AttentionShape, Dims, Kernels};
use attn_kernels_cpu::Cpu;

fn scratch_bytes(length: usize, heads: usize, depth: usize) -> usize {
    let dims = Dims::new(&[1, length, heads, depth]).expect("four axes");
    let shape = AttentionShape::of(&dims, &dims, &dims).expect("the same shape thrice");
    Kernels::<f32>::attend_scratch(&Cpu::detect(), &shape) * size_of::<f32>()
}

#[test]
fn attention_over_thousands_of_keys_needs_under_128_kib_a_thread() {
    assert!(
        scratch_bytes(4096, 8, 64) < 128 << 10,
        "{}",
        scratch_bytes(4096, 8, 64)
    );
}

#[test]
fn gradients_need_four_rows_a_key_of_one_head_a_thread() {
    let bytes = |length| {
        let dims = Dims::new(&[1, length, 8, 64]).expect("four axes");
        let shape = AttentionShape::of(&dims, &dims, &dims).expect("the same shape thrice");
        Kernels::<f32>::attend_backward_scratch(&Cpu::detect(), &shape) * size_of::<f32>()
    };
    assert_eq!(bytes(8192) - bytes(4096), 4096 * 4 * 64 * size_of::<f32>());
    assert!(bytes(0) < 256 << 10, "{}", bytes(0));
}

#[test]
fn scratch_does_not_grow_with_the_length() {
    assert_eq!(scratch_bytes(64, 8, 64), scratch_bytes(1 << 20, 8, 64));
    let of_one_query = |length| {
        let query = Dims::new(&[1, 1, 8, 64]).expect("four axes");
        let keys = Dims::new(&[1, length, 8, 64]).expect("four axes");
        let shape = AttentionShape::of(&query, &keys, &keys).expect("they differ in length alone");
        Kernels::<f32>::attend_scratch(&Cpu::detect(), &shape)
    };
    assert_eq!(of_one_query(64), of_one_query(1 << 20));
}

#[test]
#[cfg(feature = "rayon")]
fn the_scratch_of_an_absurd_product_is_a_number() {
    for threads in [1, 2, 64] {
        let cpu = Cpu::detect().with_threads(threads).expect("threads");
        let sizes = [usize::MAX; 3];
        assert!(Kernels::<f32>::project_scratch(&cpu, sizes[0], sizes[1], sizes[2]) > 0);
        assert!(Kernels::<f32>::project_backward_scratch(&cpu, sizes[0], sizes[1], sizes[2]) > 0);
    }
}
