//! What the tests of the layer share: repeatable arrays, parameters, and the layer in exact arithmetic.
#![allow(
    dead_code,
    reason = "every test file has its own copy and uses a part of it"
)]

pub(crate) mod truth;
pub(crate) mod twice;

use attn_layers::core::conformance::{Maths, Reference};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{DType, MultiHeadDotProductAttention, ScalarType};
use twice::Twice;

/// Repeatable numbers (splitmix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// An array of numbers in `[-size, size)`; small integers, 0 among them, for an integer type.
    pub(crate) fn tensor(&mut self, scalar: ScalarType, shape: &[usize], size: f64) -> Tensor {
        let integers = scalar.float().is_none();
        let mut next = || match integers {
            true => (self.uniform() * 3.0).floor(),
            false => (self.uniform() * 2.0 - 1.0) * size,
        };
        let elements = shape.iter().product::<usize>();
        Tensor::from_f64s(scalar, shape, (0..elements).map(|_| next())).expect("a small array")
    }
}

/// What the parameters of a layer must fit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Features of the inputs to query, key and value.
    pub(crate) features: [usize; 3],
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) out_features: usize,
}

impl Sizes {
    /// Self-attention of inputs `[..., features]`.
    pub(crate) fn of(features: usize, num_heads: usize) -> Self {
        Self {
            features: [features; 3],
            num_heads,
            num_kv_heads: num_heads,
            head_dim: features / num_heads,
            out_features: features,
        }
    }

    /// With `group` heads of queries for each head of keys and values.
    pub(crate) fn grouped(self, group: usize) -> Self {
        Self {
            num_heads: self.num_kv_heads * group,
            ..self
        }
    }

    /// The layer's field.
    pub(crate) fn num_kv_heads(&self) -> Option<usize> {
        Some(self.num_kv_heads).filter(|&heads| heads != self.num_heads)
    }
}

/// A layer's parameters by name.
#[derive(Debug, Clone)]
pub(crate) struct Parameters(pub(crate) Vec<(&'static str, Tensor)>);

impl Parameters {
    /// One number for all elements of a parameter.
    pub(crate) fn fill(&mut self, path: &str, value: f64) {
        let entry = self.0.iter_mut().find(|(name, _)| *name == path);
        let (_, tensor) = entry.expect("a parameter of the layer");
        let shape = *tensor.shape();
        let values = core::iter::repeat_n(value, tensor.to_vec_f64().len());
        *tensor = Tensor::from_f64s(tensor.scalar(), &shape, values).expect("the shape it had");
    }

    /// Of every kind, in one dtype, of a size that keeps activations near 1.
    pub(crate) fn new(numbers: &mut Numbers, sizes: &Sizes, dtype: DType) -> Self {
        let (heads, depth) = (sizes.num_heads, sizes.head_dim);
        let mut entries = Vec::new();
        let scopes = [
            ("query/kernel", "query/bias", heads),
            ("key/kernel", "key/bias", sizes.num_kv_heads),
            ("value/kernel", "value/bias", sizes.num_kv_heads),
        ];
        let spread = |fan_in: usize| 1.7 / (fan_in.max(1) as f64).sqrt();
        for ((kernel, bias, heads), features) in scopes.into_iter().zip(sizes.features) {
            let shape = [features, heads, depth];
            entries.push((
                kernel,
                numbers.tensor(dtype.scalar(), &shape, spread(features)),
            ));
            entries.push((bias, numbers.tensor(dtype.scalar(), &[heads, depth], 0.5)));
        }
        for scale in ["query_ln/scale", "key_ln/scale"] {
            entries.push((scale, numbers.tensor(dtype.scalar(), &[depth], 1.5)));
        }
        let shape = [heads, depth, sizes.out_features];
        let kernel = numbers.tensor(dtype.scalar(), &shape, spread(heads * depth));
        entries.push(("out/kernel", kernel));
        let bias = numbers.tensor(dtype.scalar(), &[sizes.out_features], 0.5);
        entries.push(("out/bias", bias));
        Self(entries)
    }

    pub(crate) fn source(&self) -> Vec<(&str, TensorView<'_>)> {
        self.0
            .iter()
            .map(|(name, tensor)| (*name, tensor.view()))
            .collect()
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        let found = self.0.iter().find(|(given, _)| *given == name);
        &found.expect("a parameter of the layer").1
    }

    pub(crate) fn set(&mut self, name: &str, tensor: Tensor) {
        let found = self.0.iter_mut().find(|(given, _)| *given == name);
        found.expect("a parameter of the layer").1 = tensor;
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.0.retain(|(given, _)| *given != name);
    }

    pub(crate) fn cast(&self, scalar: ScalarType) -> Self {
        let cast = |tensor: &Tensor| tensor.view().to_scalar(scalar).expect("a small array");
        Self(
            self.0
                .iter()
                .map(|(name, tensor)| (*name, cast(tensor)))
                .collect(),
        )
    }
}

/// Plain loops, every step rounded in Flax's order: what tolerances are derived from.
pub(crate) fn plain() -> Reference {
    Reference {
        maths: Maths {
            exp: f64::exp,
            sqrt: f64::sqrt,
        },
    }
}

/// Half a unit in the last place of numbers of size 1: what a correctly rounded result may be off by.
pub(crate) fn half_unit(scalar: ScalarType) -> f64 {
    match scalar {
        ScalarType::F32 => f64::from(f32::EPSILON) / 2.0,
        ScalarType::F64 => f64::EPSILON / 2.0,
        ScalarType::F16 => attn_layers::f16::EPSILON.to_f64() / 2.0,
        ScalarType::BF16 => attn_layers::bf16::EPSILON.to_f64() / 2.0,
        other => panic!("{other} is not a floating type"),
    }
}

/// The largest distance to the truth.
pub(crate) fn error(got: &Tensor, truth: &[Twice]) -> f64 {
    let got = got.to_vec_f64();
    assert_eq!(got.len(), truth.len());
    got.iter()
        .zip(truth)
        .map(|(got, truth)| (Twice::from(*got) - *truth).value().abs())
        .fold(
            0.0,
            |largest, error| if error <= largest { largest } else { error },
        )
}

/// `got` may be off by twice what plain arithmetic is, and by half a unit of the largest output.
pub(crate) fn assert_close(what: &str, got: &Tensor, plain: &Tensor, truth: &[Twice]) {
    assert_eq!(
        (got.scalar(), got.shape()),
        (plain.scalar(), plain.shape()),
        "{what}"
    );
    let largest = truth
        .iter()
        .map(|truth| truth.value().abs())
        .fold(0.0, f64::max);
    let allowed = (2.0 * error(plain, truth)).max(half_unit(got.scalar()) * largest);
    let off = error(got, truth);
    assert!(
        off <= allowed,
        "{what}: off by {off:e}, allowed {allowed:e}"
    );
}

/// A layer for these sizes.
pub(crate) fn layer(sizes: &Sizes) -> MultiHeadDotProductAttention<'static> {
    MultiHeadDotProductAttention {
        num_kv_heads: sizes.num_kv_heads(),
        qkv_features: Some(sizes.num_heads * sizes.head_dim),
        out_features: Some(sizes.out_features),
        ..MultiHeadDotProductAttention::new(sizes.num_heads)
    }
}
