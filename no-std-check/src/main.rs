//! A program that links without the standard library, without an allocator and without a C library, and runs an
//! attention layer. `cargo xtask no-std` builds and runs it.
//!
//! It ends with 0, or with the number of the dtype that went wrong: 1 `f32`, 2 `f64`, 3 `f16`, 4 `bf16`; 5 means that initial parameters have other bits
//! than Flax's, 6 that a cache did not give back what it got; 101 is a panic.
#![no_std]
#![no_main]

mod memory;
mod system;

use attn_layers::core::{Element, Kernels};
use attn_layers::init::{Init, Param};
use attn_layers::random::{DefaultWidth, Key, Rngs};
use attn_layers::{
    Cpu, DType, Dense, Dims, Error, HostView, HostViewMut, Inputs, KvCache, KvCacheBuffers,
    KvCachePlan, KvFormat, KvLayout, MultiHeadDotProductAttentionOf, Params, RowBuffers, Scratch,
    bf16, f16,
};

/// More than one query and two keys need.
const TILES: usize = 16_384;

fn run() -> i32 {
    let checks = [
        weighs_values::<f32>(),
        weighs_values::<f64>(),
        weighs_values::<f16>(),
        weighs_values::<bf16>(),
        starts_as_flax(),
        keeps_tokens(),
    ];
    let failed = checks.iter().position(|check| !matches!(check, Ok(true)));
    failed.map_or(0, |index| index as i32 + 1)
}

/// The first weights of query's kernel for key(42), 2 heads, `qkv_features` 6 and inputs `[1, 4, 8]`.
fn starts_as_flax() -> Result<bool, Error> {
    let mut layer = MultiHeadDotProductAttentionOf::<f32>::new(2);
    layer.qkv_features = Some(6);
    let shape = Dims::new(&[1, 4, 8])?;
    let sizes = layer.plan(&shape, &shape, &shape)?.param_sizes();
    let rngs = Rngs::params(Key::new(42, DefaultWidth::Bits32));
    let mut kernel = [0.0; 48];
    Init::default().fill(Param::QueryKernel, &sizes, &rngs, &mut kernel)?;
    let first = [kernel[0], kernel[1], kernel[2], kernel[3]].map(f32::to_bits);
    Ok(first == [0x3f11_6399, 0x3eff_22dc, 0xbecb_2777, 0xbe5d_722c])
}

/// Three tokens of a block of 32 numbers each, and a fork that gets a fourth, in a page of its own.
fn keeps_tokens() -> Result<bool, Error> {
    let layout = KvLayout::Paged {
        page_size: 2,
        pages: 4,
        pages_per_sequence: 2,
    };
    let plan = KvCachePlan::new(layout, 2, 1, 32).with_formats(KvFormat::Q8_0, KvFormat::Plain);
    let (mut keys, mut values, mut index) = ([0; 8 * 34], [0.0; 8 * 32], [0; 22]);
    let buffers = KvCacheBuffers {
        key: RowBuffers::Q8_0(&mut keys),
        value: RowBuffers::Plain(&mut values),
        index: &mut index,
    };
    let mut cache = KvCache::new(plan, buffers)?;
    let rows: [f32; 96] = core::array::from_fn(|n| n as f32 - 48.0);
    let rows = |count| HostView::new(&rows[..count * 32], &[count, 1, 32]);
    cache.append_to(&[0], rows(3)?, rows(3)?, None)?;
    cache.remove(1)?;
    let fork = cache.fork(0)?;
    cache.append_to(&[fork], rows(1)?, rows(1)?, None)?;
    let (mut key, mut value) = ([0.0; 32], [0.0; 32]);
    cache.read(fork, 3, &mut key, &mut value)?;
    // The largest is 48, and the factor 48/127.
    let close = key
        .iter()
        .zip(&value)
        .all(|(key, value)| (key - value).abs() < 0.25);
    Ok(close && value[0] == -48.0 && cache.free_pages() == Some(1))
}

/// One query 1 over keys 0 and ln 3 weighs the values 0 and 4 by 1/4 and 3/4, so the output is 3.
fn weighs_values<T: Element>() -> Result<bool, Error>
where
    Cpu: Kernels<T>,
{
    let cpu = Cpu::detect();
    let mut layer = MultiHeadDotProductAttentionOf::<T>::new(1);
    layer.use_bias = false;
    let (one, two) = (Dims::new(&[1, 1])?, Dims::new(&[2, 1])?);
    let plan = layer.plan(&one, &two, &two)?;

    let identity = [T::from_f64(1.0)];
    let dense = Dense {
        kernel: HostView::new(&identity, &[1, 1, 1])?.into(),
        bias: None,
    };
    let params = Params {
        query: dense,
        key: dense,
        value: dense,
        out: dense,
        query_ln: None,
        key_ln: None,
    };

    let query = [T::from_f64(1.0)];
    let keys = [0.0, 1.098_612_288_668_109_8].map(T::from_f64);
    let values = [0.0, 4.0].map(T::from_f64);
    let inputs = Inputs::cross_attention(
        HostView::new(&query, &one)?,
        HostView::new(&keys, &two)?,
        HostView::new(&values, &two)?,
    );

    let mut out = [T::default()];
    let mut scratch = Scratch {
        q: &mut [T::default(); 1][..],
        k: &mut [T::default(); 2][..],
        v: &mut [T::default(); 2][..],
        context: &mut [T::default(); 1][..],
        tiles: &mut [<T::Acc>::default(); TILES][..],
    };
    let target = HostViewMut::new(&mut out, &one)?;
    layer.apply(&cpu, &plan, &params, inputs, target, &mut scratch)?;

    // Key, query, weight and output are rounded once each. A relative error of the key moves the output by
    // 4 * 3/16 * ln 3 < 1 times it, one of a weight by at most 3, one of the output by 3.
    let allowed = 4.0 * 3.0 * unit_roundoff(T::DTYPE);
    Ok((out[0].to_f64() - 3.0).abs() <= allowed)
}

/// The largest relative error of one rounding.
fn unit_roundoff(dtype: DType) -> f64 {
    let bits = match dtype {
        DType::F32 => 24,
        DType::F64 => 53,
        DType::F16 => 11,
        DType::BF16 => 8,
    };
    1.0 / (1u64 << bits) as f64
}
