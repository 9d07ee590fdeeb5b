//! Grouped heads beside as many heads of keys and values, each repeated for its group.
#![expect(clippy::std_instead_of_alloc, reason = "a test has std")]

use attn_core::{
    Attention, AttentionBackward, Causal, Dropout, Element, Error, FullyMasked, HostView,
    HostViewMut, Kernels, Mask,
    random::{Convention, Key},
};
use attn_cuda_emulator::{Emulator, Options};
use attn_kernels_cuda::{Cuda, CudaDevice};
use std::sync::Arc;

const BATCH: usize = 2;
const QUERIES: usize = 37;
const KEYS: usize = 70;
const KEY_HEADS: usize = 2;
const GROUP: usize = 3;
const HEADS: usize = KEY_HEADS * GROUP;
const DEPTH: usize = 20;
const VALUE_DEPTH: usize = 36;

fn cuda() -> Cuda {
    Cuda::on(CudaDevice::with_driver(Arc::new(Emulator::new(
        Options::default(),
    ))))
}

/// Numbers between -1 and 1 that repeat late.
fn numbers<T: Element>(seed: u64, count: usize) -> Vec<T> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        T::from_f64((state >> 33) as f64 / f64::from(1 << 30) - 1.0)
    };
    core::iter::repeat_with(next).take(count).collect()
}

/// `[batch, keys, key_heads, depth]` with each head as often as its group has heads.
fn repeated<T: Element>(rows: &[T], depth: usize) -> Vec<T> {
    rows.chunks(depth)
        .flat_map(|row| core::iter::repeat_n(row, GROUP).flatten().copied())
        .collect()
}

/// What a call and its gradients give.
struct Results<T: Element> {
    out: Vec<T>,
    statistics: Vec<T::Acc>,
    d_query: Vec<T>,
    d_key: Vec<T>,
    d_value: Vec<T>,
    d_bias: Vec<T::Acc>,
}

fn compute<T: Element>(
    key_heads: usize,
    key: &[T],
    value: &[T],
    dropout: Option<Dropout>,
) -> Result<Results<T>, Error> {
    let cuda = cuda();
    let query = numbers::<T>(1, BATCH * QUERIES * HEADS * DEPTH);
    let d_out = numbers::<T>(4, BATCH * QUERIES * HEADS * VALUE_DEPTH);
    let bias = numbers::<T::Acc>(5, HEADS * QUERIES * KEYS);
    let mask: Vec<u8> = numbers::<f32>(6, BATCH * KEYS)
        .iter()
        .map(|&x| u8::from(x < 0.6))
        .collect();
    let shapes = [
        [BATCH, QUERIES, HEADS, DEPTH],
        [BATCH, KEYS, key_heads, DEPTH],
        [BATCH, KEYS, key_heads, VALUE_DEPTH],
        [BATCH, QUERIES, HEADS, VALUE_DEPTH],
    ];
    let call = || -> Result<Attention<'_, attn_core::Host, T>, Error> {
        Ok(Attention::new(
            HostView::new(&query, &shapes[0])?,
            HostView::new(key, &shapes[1])?,
            HostView::new(value, &shapes[2])?,
        )
        .with_causal(Some(Causal::offset(20)))
        .with_mask(Some(Mask::keep(HostView::new(
            &mask,
            &[BATCH, 1, 1, KEYS],
        )?)))
        .with_bias(Some(HostView::new(&bias, &[HEADS, QUERIES, KEYS])?))
        .with_fully_masked(FullyMasked::Zero)
        .with_dropout(dropout))
    };
    let zeros = |count: usize| vec![T::default(); count];
    let statistics_shape = [BATCH, HEADS, QUERIES, 2];
    let mut results = Results {
        out: zeros(d_out.len()),
        statistics: vec![T::Acc::default(); BATCH * HEADS * QUERIES * 2],
        d_query: zeros(query.len()),
        d_key: zeros(key.len()),
        d_value: zeros(value.len()),
        d_bias: vec![T::Acc::default(); bias.len()],
    };
    let shape = call()?.shape()?;
    let mut scratch = vec![T::Acc::default(); <Cuda as Kernels<T>>::attend_scratch(&cuda, &shape)];
    let asked = HostViewMut::new(&mut results.statistics, &statistics_shape)?;
    cuda.attend(
        call()?.with_statistics(Some(asked)),
        HostViewMut::new(&mut results.out, &shapes[3])?,
        &mut scratch,
    )?;
    let needed = <Cuda as Kernels<T>>::attend_backward_scratch(&cuda, &shape);
    let mut scratch = vec![T::Acc::default(); needed];
    let backward = AttentionBackward {
        call: call()?,
        out: HostView::new(&results.out, &shapes[3])?,
        statistics: HostView::new(&results.statistics, &statistics_shape)?,
        d_out: HostView::new(&d_out, &shapes[3])?,
        d_query: HostViewMut::new(&mut results.d_query, &shapes[0])?,
        d_key: HostViewMut::new(&mut results.d_key, &shapes[1])?,
        d_value: HostViewMut::new(&mut results.d_value, &shapes[2])?,
        d_bias: Some(HostViewMut::new(
            &mut results.d_bias,
            &[HEADS, QUERIES, KEYS],
        )?),
        d_relative: None,
        d_sinks: None,
    };
    cuda.attend_backward(backward, &mut scratch)?;
    Ok(results)
}

fn same<T: Element>(what: &str, left: &[T], right: &[T]) {
    let differ = |(a, b): (&T, &T)| a.to_f64().to_bits() != b.to_f64().to_bits();
    assert_eq!(left.iter().zip(right).position(differ), None, "{what}");
}

/// The gradient of a shared row is the sum of those of its repetitions.
fn sums<T: Element>(what: &str, shared: &[T], repeated: &[T], depth: usize, close: f64) {
    for (n, (row, group)) in shared
        .chunks(depth)
        .zip(repeated.chunks(GROUP * depth))
        .enumerate()
    {
        for (column, got) in row.iter().enumerate() {
            let parts = group.iter().skip(column).step_by(depth);
            let sum: f64 = parts.map(|part| part.to_f64()).sum();
            let off = (got.to_f64() - sum).abs();
            assert!(off <= close, "{what} {n} {column}: {got:?} for {sum}");
        }
    }
}

fn check<T: Element>(dropout: Option<Dropout>, close: f64) -> Result<(), Error> {
    let key = numbers::<T>(2, BATCH * KEYS * KEY_HEADS * DEPTH);
    let value = numbers::<T>(3, BATCH * KEYS * KEY_HEADS * VALUE_DEPTH);
    let grouped = compute(KEY_HEADS, &key, &value, dropout)?;
    let (key, value) = (repeated(&key, DEPTH), repeated(&value, VALUE_DEPTH));
    let each = compute(HEADS, &key, &value, dropout)?;
    same("out", &grouped.out, &each.out);
    same("statistics", &grouped.statistics, &each.statistics);
    same("d_query", &grouped.d_query, &each.d_query);
    same("d_bias", &grouped.d_bias, &each.d_bias);
    sums("d_key", &grouped.d_key, &each.d_key, DEPTH, close);
    sums(
        "d_value",
        &grouped.d_value,
        &each.d_value,
        VALUE_DEPTH,
        close,
    );
    Ok(())
}

#[test]
fn groups_of_f32_share_keys() -> Result<(), Error> {
    check::<f32>(None, 1e-5)
}

#[test]
fn groups_of_f64_share_keys_and_drop_weights() -> Result<(), Error> {
    let key = Key::from_words([3, 5]);
    let dropout = Dropout::new(
        key,
        0.3,
        attn_core::DType::F64,
        false,
        Convention::default(),
    )?;
    check::<f64>(dropout, 1e-13)
}

#[test]
fn groups_of_bf16_share_keys() -> Result<(), Error> {
    check::<attn_core::bf16>(None, 0.05)
}
