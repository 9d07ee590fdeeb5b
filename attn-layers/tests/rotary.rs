//! Rotary embeddings: the function beside its formula, the layer beside the function, gradients beside differences.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::Flat;
use attn_layers::cpu::Cpu;
use attn_layers::tensor::Tensor;
use attn_layers::{
    AnyCache, Call, DType, DotProductAttention, Error, MultiHeadDotProductAttention, Pairing,
    Positions, Rotary, RotaryEmbedding, RotaryScaling, ScalarType, dot_product_attention,
    make_causal_mask, rotary_embedding, rotary_embedding_vjp,
};
use proptest::prelude::*;
use proptest::sample::select;
use support::{Numbers, Parameters, Sizes, half_unit, layer};

fn pairing() -> impl Strategy<Value = Pairing> {
    select(vec![Pairing::HalfSplit, Pairing::Interleaved])
}

/// The embedding from its formula, with the functions of the standard library.
fn formula(x: &Tensor, rotary: &Rotary, position: impl Fn(usize) -> f64) -> Vec<f64> {
    let [.., heads, depth] = x.shape().as_slice() else {
        panic!("an array of heads");
    };
    let dim = rotary.rotary_dim.unwrap_or(*depth);
    let mut out = x.to_vec_f64();
    for (n, row) in out.chunks_mut(*depth).enumerate() {
        for pair in 0..dim / 2 {
            let frequency = rotary.base.powf(-2.0 * pair as f64 / dim as f64);
            let (sin, cos) = (position(n / heads) * frequency).sin_cos();
            let [a, b] = match rotary.pairing {
                Pairing::HalfSplit => [pair, pair + dim / 2],
                Pairing::Interleaved => [2 * pair, 2 * pair + 1],
            };
            let (x, y) = (row[a], row[b]);
            row[a] = x * cos - y * sin;
            row[b] = y * cos + x * sin;
        }
    }
    out
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |most, x| most.max(x.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_function_is_its_formula(
        seed in any::<u64>(),
        pairing in pairing(),
        half in 1..40usize,
        rest in 0..5usize,
        first in 0..1_000_000usize,
        dtype in select(DType::ALL.to_vec()),
    ) {
        let rotary = Rotary { pairing, rotary_dim: Some(2 * half), ..Rotary::new() };
        let x = Numbers(seed).tensor(dtype.scalar(), &[2, 5, 3, 2 * half + rest], 2.0);
        let arguments = RotaryEmbedding::new(x.view(), rotary).with_positions(Positions::From(first));
        let got = rotary_embedding(&Cpu::detect(), &arguments).unwrap();
        prop_assert_eq!((got.scalar(), got.shape()), (x.scalar(), x.shape()));
        let wanted = formula(&x, &rotary, |row| (first + row % 5) as f64);
        // An angle is off by half a unit of itself and of its frequency; in `f32` cosine, sine, two products and a sum are rounded, and last the
        // result. The formula's own frequency is off as its exponent is, times the logarithm of the base.
        let angle = (first + 5) as f64 * f64::EPSILON * (2.0 + 10_000f64.ln());
        let accumulator = match dtype {
            DType::F64 => ScalarType::F64,
            _ => ScalarType::F32,
        };
        let relative = half_unit(x.scalar()) + 5.0 * half_unit(accumulator) + angle;
        let allowed = 2.0 * largest(&x.to_vec_f64()) * relative;
        for (got, wanted) in got.to_vec_f64().into_iter().zip(&wanted) {
            prop_assert!((got - wanted).abs() <= allowed, "{got}, wanted {wanted}, allowed {allowed:e}");
        }
    }

    #[test]
    fn a_product_depends_on_the_distance(
        seed in any::<u64>(),
        pairing in pairing(),
        query in 0..1000usize,
        key in 0..1000usize,
        shift in 0..100_000usize,
    ) {
        let rotary = Rotary { pairing, ..Rotary::new() };
        let mut numbers = Numbers(seed);
        let [q, k] = [0, 1].map(|_| numbers.tensor(ScalarType::F64, &[1, 1, 16], 1.0));
        let product = |query, key| -> f64 {
            let turn = |x: &Tensor, position| {
                let arguments = RotaryEmbedding::new(x.view(), rotary);
                let arguments = arguments.with_positions(Positions::From(position));
                rotary_embedding(&Cpu::detect(), &arguments).unwrap().to_vec_f64()
            };
            turn(&q, query).iter().zip(turn(&k, key)).map(|(a, b)| a * b).sum()
        };
        let (here, there) = (product(query, key), product(query + shift, key + shift));
        // Sixteen products of at most 1, whose angles are off by a unit each.
        let allowed = 16.0 * 4.0 * (query.max(key) + shift + 10) as f64 * f64::EPSILON;
        prop_assert!((here - there).abs() <= allowed, "{here} {there}");
    }

    #[test]
    fn gradients_are_slopes(
        seed in any::<u64>(),
        pairing in pairing(),
        normalize_qk in any::<bool>(),
        factor in select(vec![1.0, 4.0]),
    ) {
        gradients_of_the_layer(seed, pairing, normalize_qk, factor)?;
    }
}

/// The slope of the layer's output in a random direction, against the product of gradient and direction.
fn gradients_of_the_layer(
    seed: u64,
    pairing: Pairing,
    normalize_qk: bool,
    factor: f64,
) -> Result<(), TestCaseError> {
    let mut numbers = Numbers(seed);
    let sizes = Sizes::of(12, 2);
    let layer = MultiHeadDotProductAttention {
        normalize_qk,
        rotary: Some(Rotary {
            pairing,
            rotary_dim: Some(4),
            base: 10.0,
            scaling: RotaryScaling::yarn(factor, 8),
        }),
        ..layer(&sizes)
    };
    let params = Parameters::new(&mut numbers, &sizes, DType::F64);
    let [x, direction, weights] =
        [0, 1, 2].map(|_| numbers.tensor(ScalarType::F64, &[2, 5, 12], 1.0));
    let (cpu, source) = (Cpu::detect(), params.source());
    let loss = |step: f64| -> f64 {
        let moved = x.to_vec_f64().into_iter().zip(direction.to_vec_f64());
        let moved = moved.map(|(x, d)| x + step * d);
        let moved = Tensor::from_f64s(ScalarType::F64, x.shape(), moved).unwrap();
        let out = layer
            .apply(&cpu, &source, Call::new(moved.view()))
            .unwrap()
            .out;
        let terms = out.to_vec_f64().into_iter().zip(weights.to_vec_f64());
        terms.map(|(y, w)| y * w).sum()
    };
    let slope = |step: f64| (loss(step) - loss(-step)) / (2.0 * step);
    let (call, step) = (Call::new(x.view()), 1e-4);
    let (_, residuals) = layer.forward(&cpu, &source, call).unwrap();
    let gradients = layer.backward(&cpu, &residuals, weights.view()).unwrap();
    let gradient = gradients.d_inputs_q.unwrap().to_vec_f64();
    let got: f64 = gradient
        .iter()
        .zip(direction.to_vec_f64())
        .map(|(g, d)| g * d)
        .sum();
    let (coarse, fine) = (slope(2.0 * step), slope(step));
    // Richardson's value, off by less than what the halved step changed; and the rounding of two sums of 120 outputs over the step.
    let wanted = fine + (fine - coarse) / 3.0;
    let rounding = 120.0 * 1e3 * f64::EPSILON / step;
    let allowed = (fine - coarse).abs() + rounding;
    prop_assert!(
        (got - wanted).abs() <= allowed,
        "{got}, wanted {wanted}, allowed {allowed:e}"
    );
    Ok(())
}

#[test]
fn the_gradient_of_the_function_turns_back() {
    let mut numbers = Numbers(4);
    let rotary = Rotary {
        scaling: RotaryScaling::yarn(4.0, 100),
        ..Rotary::new()
    };
    let [x, d_out] = [0, 1].map(|_| numbers.tensor(ScalarType::F64, &[2, 6, 3, 8], 1.0));
    let ids: Vec<i32> = (0..12).map(|n| n * n * 31 % 97).collect();
    let arguments = RotaryEmbedding::new(x.view(), rotary)
        .with_positions(Positions::Ids(Flat::new(ids.as_slice())));
    let cpu = Cpu::detect();
    let out = rotary_embedding(&cpu, &arguments).unwrap().to_vec_f64();
    let d_x = rotary_embedding_vjp(&cpu, &arguments, d_out.view()).unwrap();
    // Linear: <d_out, R x> = <Rᵀ d_out, x>.
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let left = dot(&out, &d_out.to_vec_f64());
    let right = dot(&d_x.to_vec_f64(), &x.to_vec_f64());
    let allowed = 4.0 * 288.0 * f64::EPSILON;
    assert!((left - right).abs() <= allowed, "{left} {right}");
    // Twice the factor of YaRN.
    let turned = Tensor::from_f64s(ScalarType::F64, x.shape(), out).unwrap();
    let back = rotary_embedding_vjp(&cpu, &arguments, turned.view()).unwrap();
    let factor = (0.1 * 4f64.ln() + 1.0).powi(2);
    for (got, x) in back.to_vec_f64().into_iter().zip(x.to_vec_f64()) {
        assert!((got - factor * x).abs() <= 16.0 * f64::EPSILON, "{got} {x}");
    }
}

/// A layer whose projections change nothing, for inputs of 2 heads of 6.
fn transparent() -> (MultiHeadDotProductAttention<'static>, Parameters) {
    let sizes = Sizes::of(12, 2);
    let mut params = Parameters::new(&mut Numbers(1), &sizes, DType::F32);
    for (name, shape) in [
        ("query/kernel", [12, 2, 6]),
        ("key/kernel", [12, 2, 6]),
        ("value/kernel", [12, 2, 6]),
        ("out/kernel", [2, 6, 12]),
    ] {
        let ones = (0..144).map(|n| f64::from(u8::from(n / 12 == n % 12)));
        params.set(
            name,
            Tensor::from_f64s(ScalarType::F32, &shape, ones).unwrap(),
        );
    }
    let layer = MultiHeadDotProductAttention {
        use_bias: false,
        rotary: Some(Rotary {
            rotary_dim: Some(4),
            base: 100.0,
            ..Rotary::new()
        }),
        ..layer(&sizes)
    };
    (layer, params)
}

/// Attention of rotated heads, `[length, 2, 6]`, causal where asked.
fn by_hand(x: &Tensor, rotary: Rotary, causal: bool) -> Tensor {
    let cpu = Cpu::detect();
    let length = x.shape()[0];
    let heads = x.view().reshape(&[length, 2, 6]).unwrap();
    let turned = rotary_embedding(&cpu, &RotaryEmbedding::new(heads, rotary)).unwrap();
    let tokens = Tensor::zeros(ScalarType::F32, &[length]).unwrap();
    let mask = make_causal_mask(&tokens.view(), 0, ScalarType::F32).unwrap();
    let mut arguments = DotProductAttention::new(turned.view(), turned.view());
    if causal {
        arguments.mask = Some(mask.view());
    }
    let out = dot_product_attention(&cpu, &arguments, heads).unwrap();
    out.reshape(&[length, 12]).unwrap()
}

#[test]
fn the_layer_turns_queries_and_keys_and_no_values() {
    let (layer, params) = transparent();
    let x = Numbers(7).tensor(ScalarType::F32, &[9, 12], 1.0);
    let source = params.source();
    let got = layer
        .apply(&Cpu::detect(), &source, Call::new(x.view()))
        .unwrap()
        .out;
    let rotary = layer.rotary.unwrap();
    assert_eq!(got, by_hand(&x, rotary, false));
    let plain = MultiHeadDotProductAttention {
        rotary: None,
        ..layer
    };
    let plain = plain
        .apply(&Cpu::detect(), &source, Call::new(x.view()))
        .unwrap()
        .out;
    assert_ne!(got, plain);
}

#[test]
fn a_decoding_step_lies_at_the_index_of_its_cache() {
    let (mut layer, params) = transparent();
    layer.decode = true;
    let x = Numbers(8).tensor(ScalarType::F32, &[9, 12], 1.0);
    let source = params.source();
    let empty = Tensor::zeros(ScalarType::F32, &[9, 2, 6]).unwrap();
    let mut cache = AnyCache {
        cached_key: empty.clone(),
        cached_value: empty,
        cache_index: 0,
    };
    let call = Call::new(x.view());
    let cpu = Cpu::detect();
    let got = layer.prefill(&cpu, &source, call, &mut cache).unwrap().out;
    let rotary = layer.rotary.unwrap();
    assert_eq!(got, by_hand(&x, rotary, true));
    // The cache holds keys that are rotated.
    let heads = x.view().reshape(&[9, 2, 6]).unwrap();
    let turned = rotary_embedding(&cpu, &RotaryEmbedding::new(heads, rotary)).unwrap();
    assert_eq!(cache.cached_key, turned);
    assert_eq!(cache.cached_value.view().bytes(), x.view().bytes());
    // An index before the first position has none.
    cache.cache_index = -1;
    let before = cache.clone();
    let step = Tensor::from_slice(&[0.5f32; 12], &[1, 12]).unwrap();
    let result = layer.prefill(&cpu, &source, Call::new(step.view()), &mut cache);
    let wanted = "cache_index";
    assert!(
        matches!(result, Err(Error::Entry { argument, got: -1, .. }) if argument == wanted),
        "{result:?}"
    );
    assert_eq!(cache, before);
}

#[test]
fn what_does_not_fit_is_a_typed_error() {
    let (mut layer, params) = transparent();
    let x = Numbers(9).tensor(ScalarType::F32, &[3, 12], 1.0);
    let source = params.source();
    let mut apply = |rotary: Rotary| {
        layer.rotary = Some(rotary);
        layer
            .apply(&Cpu::detect(), &source, Call::new(x.view()))
            .unwrap_err()
    };
    let part = |dim| Rotary {
        rotary_dim: Some(dim),
        ..Rotary::new()
    };
    assert_eq!(apply(part(5)), Error::RotaryDim { got: 5, depth: 6 });
    assert_eq!(apply(part(8)), Error::RotaryDim { got: 8, depth: 6 });
    let flat = Rotary {
        base: 0.0,
        ..Rotary::new()
    };
    assert!(matches!(apply(flat), Error::Rotary { field: "base", .. }));
    // Integers have no gradient, and a table too short no row.
    let integers = Numbers(1).tensor(ScalarType::I32, &[2, 1, 2], 1.0);
    let arguments = RotaryEmbedding::new(integers.view(), Rotary::new());
    let result = rotary_embedding_vjp(&Cpu::detect(), &arguments, integers.view());
    assert!(matches!(result, Err(Error::DTypeMismatch { .. })));
    let one = Tensor::from_slice(&[1.0f32], &[1, 1]).unwrap();
    let arguments = arguments.with_table(Some([one.view(), one.view()]));
    let result = rotary_embedding(&Cpu::detect(), &arguments);
    assert!(
        matches!(
            result,
            Err(Error::Entry {
                got: 1,
                most: 0,
                ..
            })
        ),
        "{result:?}"
    );
}
