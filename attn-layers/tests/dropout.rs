//! Dropout: which weights are dropped, by which key, and what the others become.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::{AttentionShape, Dropout, Host, Kernels};
use attn_layers::cpu::Cpu;
use attn_layers::random::{Convention, Counters, DefaultWidth, Key, Rngs};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AnyCache, AttentionArgs, CacheAccess, Call, DType, DecodeCache, Dense, Dims,
    DotProductAttention, Error, HostView, HostViewMut, Inputs, MultiHeadDotProductAttention,
    MultiHeadDotProductAttentionF32, OnFull, Output, OwnedScratch, Params, Result, ScalarType,
    dot_product_attention, dot_product_attention_weights,
};
use std::cell::Cell;
use support::{Numbers, Parameters, Sizes, plain};

/// What the root module draws first from `key(1)`.
const DRAWN: [u32; 2] = [0xb776_6976, 0x811d_a1f6];

fn key(seed: i64) -> Key {
    Key::new(seed, DefaultWidth::Bits32)
}

fn dropout_stream(seed: i64) -> Rngs {
    Rngs {
        dropout: Some(key(seed)),
        ..Rngs::default()
    }
}

fn sizes() -> Sizes {
    Sizes::of(6, 2)
}

struct World {
    layer: MultiHeadDotProductAttention<'static>,
    params: Parameters,
    x: Tensor,
}

impl World {
    fn new(rate: f64) -> Self {
        let mut numbers = Numbers(11);
        let layer = MultiHeadDotProductAttention {
            dropout_rate: rate,
            deterministic: Some(false),
            ..support::layer(&sizes())
        };
        Self {
            layer,
            params: Parameters::new(&mut numbers, &sizes(), DType::F32),
            x: numbers.tensor(ScalarType::F32, &[2, 5, 6], 2.0),
        }
    }

    fn call(&self) -> Call<'_> {
        Call::new(self.x.view())
    }

    fn run(&self, call: Call<'_>) -> Result<Output> {
        self.layer
            .apply(&Cpu::detect(), &self.params.source(), call)
    }

    fn out(&self, call: Call<'_>) -> Tensor {
        self.run(call).expect("a right call").out
    }
}

/// Weights of equal scores: 1 over the number of keys, before dropout.
fn weights(
    shape: [usize; 2],
    dtype: DType,
    set: impl FnOnce(&mut DotProductAttention<'_>),
) -> Result<Tensor> {
    let query = Tensor::zeros(dtype.scalar(), &[2, shape[0], 3, 1])?;
    let keys = Tensor::zeros(dtype.scalar(), &[2, shape[1], 3, 1])?;
    let mut arguments = DotProductAttention::new(query.view(), keys.view());
    arguments.dropout_rng = Some(DRAWN);
    set(&mut arguments);
    let cpu = dot_product_attention_weights(&Cpu::detect(), &arguments)?;
    let reference = dot_product_attention_weights(&plain(), &arguments)?;
    assert_eq!(kept(&cpu), kept(&reference));
    Ok(cpu)
}

fn kept(weights: &Tensor) -> Vec<bool> {
    weights.view().iter_f64().map(|w| w != 0.0).collect()
}

#[test]
fn the_mask_is_that_of_flax() {
    let got = weights([4, 4], DType::F32, |arguments| arguments.dropout_rate = 0.1).unwrap();
    let mask: Vec<bool> = "0101111111111111".chars().map(|c| c == '1').collect();
    // Broadcast: every batch entry and head has it.
    assert_eq!(kept(&got), mask.repeat(6));
    let multiplied = 0.25 * (1.0f32 / 0.9f32);
    assert!(
        got.to_vec_f64()
            .iter()
            .all(|&w| w == 0.0 || w as f32 == multiplied)
    );
}

#[test]
fn without_broadcast_each_head_and_batch_entry_has_its_own() {
    for counters in [Counters::PerElement, Counters::SplitInHalves] {
        for width in [DefaultWidth::Bits32, DefaultWidth::Bits64] {
            let convention = Convention { counters, width };
            let got = weights([5, 7], DType::F32, |arguments| {
                arguments.dropout_rate = 0.5;
                arguments.broadcast_dropout = false;
                arguments.convention = convention;
            });
            let got = kept(&got.unwrap());
            let dims = |length| Dims::new(&[2, length, 3, 1]).unwrap();
            let shape = AttentionShape::of(&dims(5), &dims(7), &dims(7)).unwrap();
            let drawn = Key::from_words(DRAWN);
            let dropout = Dropout::new(drawn, 0.5, DType::F32, false, convention).unwrap();
            let bits = dropout.unwrap().bits(&shape).unwrap();
            let wanted: Vec<bool> = (0..6 * 35)
                .map(|n| bits.keeps(n / 35, n / 7 % 5, n % 7))
                .collect();
            assert_eq!(got, wanted, "{convention:?}");
            assert_ne!(got[..35], got[35..70], "{convention:?}");
        }
    }
}

#[test]
fn the_multiplier_is_rounded_to_the_computation_dtype() {
    let of = |dtype, forced| {
        let got = weights([1, 4], dtype, |arguments| {
            arguments.dropout_rate = 0.1;
            arguments.force_fp32_for_softmax = forced;
        })
        .unwrap();
        let largest = got.view().iter_f64().fold(0.0, f64::max);
        (got.scalar(), largest)
    };
    assert_eq!(of(DType::BF16, false), (ScalarType::BF16, 0.25 * 1.109375));
    // Weights that stay float32 meet the multiplier of bfloat16.
    assert_eq!(of(DType::BF16, true), (ScalarType::F32, 0.25 * 1.109375));
    // float32 weights times a float64 multiplier are float64.
    assert_eq!(of(DType::F64, true).0, ScalarType::F64);
}

#[test]
fn all_is_nan_at_a_rate_of_one() {
    let world = World::new(1.0);
    let out = world.out(world.call().with_rngs(dropout_stream(1)));
    assert!(out.view().iter_f64().all(f64::is_nan));
    let got = weights([2, 3], DType::F32, |arguments| arguments.dropout_rate = 1.0);
    assert!(got.unwrap().view().iter_f64().all(f64::is_nan));
}

#[test]
fn the_stream_gives_the_modules_own_key() {
    let mut world = World::new(0.5);
    let explicit = |world: &World, words| world.out(world.call().with_dropout_rng(Some(words)));
    let drawn = world.out(world.call().with_rngs(dropout_stream(1)));
    assert_eq!(drawn, explicit(&world, DRAWN));
    // Without a stream of its own dropout draws from that of parameters.
    assert_eq!(
        drawn,
        world.out(world.call().with_rngs(Rngs::params(key(1))))
    );
    // The call's own key wins.
    let both = world
        .call()
        .with_rngs(dropout_stream(1))
        .with_dropout_rng(Some([3, 4]));
    assert_eq!(world.out(both), explicit(&world, [3, 4]));
    // The module's second call.
    let second = world
        .call()
        .with_rngs(dropout_stream(1))
        .with_make_rng_count(2);
    let words = key(1).fold_in(0xc4ea_21bb).words();
    assert_eq!(world.out(second), explicit(&world, words));
    assert_ne!(drawn, explicit(&world, words));
    // In a parent.
    world.layer.path = &["MultiHeadDotProductAttention_0"];
    let drawn = world.out(world.call().with_rngs(dropout_stream(0)));
    assert_eq!(drawn, explicit(&world, [0xf574_945f, 0x34ae_6c0c]));
}

#[test]
fn draw_0_is_an_error_where_a_key_is_drawn() {
    let mut world = World::new(0.5);
    fn none(world: &World) -> Call<'_> {
        let call = world.call().with_rngs(dropout_stream(1));
        call.with_make_rng_count(0)
    }
    let error = world.run(none(&world)).unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    assert!(error.to_string().contains("from 1"), "{error}");
    // A key of the call's own is not drawn, nor is one without dropout.
    let given = world.out(world.call().with_dropout_rng(Some([3, 4])));
    let both = none(&world).with_dropout_rng(Some([3, 4]));
    assert_eq!(world.out(both), given);
    world.layer.deterministic = Some(true);
    assert!(world.run(none(&world)).is_ok());
}

#[test]
fn without_a_key_dropout_is_an_error_and_deterministic_needs_none() {
    let mut world = World::new(0.5);
    assert_eq!(world.run(world.call()), Err(Error::DropoutRngMissing));
    world.layer.deterministic = Some(true);
    let kept = world.out(world.call());
    world.layer.dropout_rate = 0.0;
    world.layer.deterministic = None;
    assert_eq!(world.out(world.call()), kept);
}

#[test]
fn the_convention_holds_for_the_calls_own_key_too() {
    let world = World::new(0.5);
    let with = |convention| {
        let rngs = Rngs {
            convention,
            ..Rngs::default()
        };
        world.out(world.call().with_rngs(rngs).with_dropout_rng(Some(DRAWN)))
    };
    let wide = Convention {
        width: DefaultWidth::Bits64,
        ..Convention::default()
    };
    let old = Convention {
        counters: Counters::SplitInHalves,
        ..Convention::default()
    };
    let (own, wide, old) = (with(Convention::default()), with(wide), with(old));
    assert!(own != wide && own != old && wide != old);
}

#[test]
fn sown_weights_are_those_before_dropout() {
    let world = World::new(0.5);
    let call = || world.call().with_sow_weights(true);
    let dropped = world.run(call().with_rngs(dropout_stream(1))).unwrap();
    let mut without = World::new(0.0);
    without.layer.deterministic = None;
    let whole = without.run(without.call().with_sow_weights(true)).unwrap();
    assert_eq!(dropped.attention_weights, whole.attention_weights);
    assert_ne!(dropped.out, whole.out);
}

#[test]
fn every_instruction_set_drops_what_plain_arithmetic_drops() {
    let world = World::new(0.3);
    for broadcast_dropout in [true, false] {
        let layer = MultiHeadDotProductAttention {
            broadcast_dropout,
            ..world.layer.clone()
        };
        let source = world.params.source();
        let call = || world.call().with_rngs(dropout_stream(7));
        let wanted = layer.apply(&plain(), &source, call()).unwrap().out;
        for cpu in [Cpu::portable(), Cpu::detect()] {
            let got = layer.apply(&cpu, &source, call()).unwrap().out;
            for (got, wanted) in got.view().iter_f64().zip(wanted.view().iter_f64()) {
                // A weight more or less changes the output by far more.
                assert!((got - wanted).abs() < 1e-4, "{got} {wanted}");
            }
        }
    }
}

#[test]
fn einsums_of_the_users_own_see_dropped_weights() {
    let mut numbers = Numbers(4);
    let [query, keys] = [2, 3].map(|n| numbers.tensor(ScalarType::F64, &[1, n, 1, 2], 1.0));
    let value = numbers.tensor(ScalarType::F64, &[1, 3, 1, 2], 1.0);
    let mut arguments = DotProductAttention::new(query.view(), keys.view());
    arguments.dropout_rng = Some([5, 6]);
    arguments.dropout_rate = 0.4;
    let fused = dot_product_attention(&plain(), &arguments, value.view()).unwrap();
    let fused_weights = dot_product_attention_weights(&plain(), &arguments).unwrap();
    let einsum = |spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>| {
        let pairs: Vec<f64> = match spec {
            "...qhd,...khd->...hqk" => (0..6)
                .map(|n| {
                    let (q, k) = (n / 3, n % 3);
                    (0..2)
                        .map(|d| lhs.get_f64(q * 2 + d) * rhs.get_f64(k * 2 + d))
                        .sum()
                })
                .collect(),
            _ => (0..4)
                .map(|n| {
                    let (q, d) = (n / 2, n % 2);
                    (0..3)
                        .map(|k| lhs.get_f64(q * 3 + k) * rhs.get_f64(k * 2 + d))
                        .sum()
                })
                .collect(),
        };
        let shape = match spec {
            "...qhd,...khd->...hqk" => [1, 1, 2, 3],
            _ => [1, 2, 1, 2],
        };
        Tensor::from_f64s(ScalarType::F64, &shape, pairs)
    };
    arguments.qk_attn_weights_einsum = Some(&einsum);
    let weights = dot_product_attention_weights(&plain(), &arguments).unwrap();
    assert_eq!(kept(&weights), kept(&fused_weights));
    assert!(kept(&weights).contains(&false) && kept(&weights).contains(&true));
    arguments.attn_weights_value_einsum = Some(&einsum);
    let out = dot_product_attention(&plain(), &arguments, value.view()).unwrap();
    for (got, wanted) in out.view().iter_f64().zip(fused.view().iter_f64()) {
        assert!(
            (got - wanted).abs() <= 16.0 * f64::EPSILON,
            "{got} {wanted}"
        );
    }
}

#[test]
fn attention_fn_is_given_the_key_that_is_drawn() {
    let seen = Cell::new(None);
    let function =
        |q: TensorView<'_>, _: TensorView<'_>, _: TensorView<'_>, args: &AttentionArgs<'_>| {
            seen.set(Some((args.dropout_rng, args.deterministic)));
            q.to_tensor()
        };
    let world = World::new(0.5);
    let layer = MultiHeadDotProductAttention {
        attention_fn: Some(&function),
        dropout_rate: 0.5,
        deterministic: Some(false),
        ..MultiHeadDotProductAttention::new(2)
    };
    let source = world.params.source();
    let call = || world.call().with_rngs(dropout_stream(1));
    layer.apply(&Cpu::detect(), &source, call()).unwrap();
    assert_eq!(seen.take(), Some((Some(DRAWN), false)));
    let layer = MultiHeadDotProductAttention {
        deterministic: Some(true),
        ..layer
    };
    layer.apply(&Cpu::detect(), &source, call()).unwrap();
    assert_eq!(seen.take(), Some((None, true)));
}

/// Entries `first..first + count` of the length axis of `[2, length, 6]`.
fn tokens(x: &Tensor, first: usize, count: usize) -> Tensor {
    let length = x.shape()[1];
    let values = x.to_vec_f64();
    let rows = (0..2).flat_map(|entry| {
        let start = (entry * length + first) * 6;
        values[start..start + count * 6].to_vec()
    });
    Tensor::from_f64s(x.scalar(), &[2, count, 6], rows).expect("a small array")
}

#[test]
fn a_prefill_draws_what_single_tokens_draw() {
    let mut world = World::new(0.5);
    world.layer.decode = true;
    for broadcast_dropout in [true, false] {
        world.layer.broadcast_dropout = broadcast_dropout;
        let (source, cpu) = (world.params.source(), Cpu::detect());
        let fresh = world.layer.init_cache(&source, &world.call()).unwrap();
        let mut together = fresh.clone();
        let call = world.call().with_rngs(dropout_stream(9));
        let all = world.layer.prefill(&cpu, &source, call, &mut together);
        let all = all.unwrap().out;
        let mut alone = Some(fresh);
        for token in 0..5 {
            let x = tokens(&world.x, token, 1);
            let call = Call::new(x.view())
                .with_rngs(dropout_stream(9))
                .with_cache(CacheAccess::Mutable(&mut alone));
            let out = world.layer.apply(&cpu, &source, call).unwrap().out;
            assert_eq!(out, tokens(&all, token, 1), "{token}");
        }
        assert_eq!(alone, Some(together));
    }
}

#[test]
fn typed_decoding_draws_the_same() {
    let world = World::new(0.5);
    let cpu = Cpu::detect();
    let flax = MultiHeadDotProductAttention {
        decode: true,
        ..world.layer.clone()
    };
    let source = world.params.source();
    let mut cache: AnyCache = flax.init_cache(&source, &world.call()).unwrap();
    let call = world.call().with_dropout_rng(Some(DRAWN));
    let wanted = flax.prefill(&cpu, &source, call, &mut cache).unwrap().out;

    let layer = MultiHeadDotProductAttentionF32::new(2);
    let shape = *world.x.shape();
    let plan = layer.plan(&shape, &shape, &shape).unwrap();
    let sizes = plan.decode_scratch::<f32, _>(&cpu, 5);
    let mut scratch = OwnedScratch::<f32>::new(&sizes).unwrap();
    let (mut keys, mut values) = (vec![0.0; 60], vec![0.0; 60]);
    let mut typed = DecodeCache {
        cached_key: HostViewMut::new(&mut keys, &[2, 5, 2, 3]).unwrap(),
        cached_value: HostViewMut::new(&mut values, &[2, 5, 2, 3]).unwrap(),
        cache_index: 0,
        on_full: OnFull::Error,
    };
    let convention = Convention::default();
    let dropout = Dropout::new(Key::from_words(DRAWN), 0.5, DType::F32, true, convention);
    let x = HostView::new(world.x.as_slice().unwrap(), &shape).unwrap();
    let inputs = Inputs::self_attention(x).with_dropout(dropout.unwrap());
    let mut out = vec![0.0f32; 60];
    let to = HostViewMut::new(&mut out, &[2, 5, 6]).unwrap();
    let params = typed_params(&world.params);
    layer
        .decode(
            &cpu,
            &plan,
            &params,
            &inputs,
            &mut typed,
            to,
            &mut scratch.borrow(),
        )
        .unwrap();
    assert_eq!(wanted.as_slice(), Some(&out[..]));
}

fn typed_params(params: &Parameters) -> Params<'_, Host, f32>
where
    Cpu: Kernels<f32>,
{
    let view = |name: &str| {
        let tensor = params.get(name);
        HostView::new(tensor.as_slice().expect("of this type"), tensor.shape()).expect("its shape")
    };
    let dense = |scope: &str| Dense {
        kernel: view(&format!("{scope}/kernel")).into(),
        bias: Some(view(&format!("{scope}/bias"))),
    };
    Params {
        query: dense("query"),
        key: dense("key"),
        value: dense("value"),
        out: dense("out"),
        query_ln: None,
        key_ln: None,
    }
}
