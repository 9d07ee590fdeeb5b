//! Decoding with a cache: what Flax does step by step, and that many tokens at once give the same bits.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AnyCache, CacheAccess, Call, DType, Error, MultiHeadDotProductAttention, Output, Result,
    Rotary, ScalarType,
};
use support::truth::{Truth, wide};
use support::{Numbers, Parameters, Sizes, assert_close, layer, plain};

const SIZES: Sizes = Sizes {
    features: [6; 3],
    num_heads: 2,
    num_kv_heads: 2,
    head_dim: 4,
    out_features: 5,
};

/// A decoding layer, its tokens, and a mask `[batch..., 1, tokens, max_length]` of theirs.
struct World {
    layer: MultiHeadDotProductAttention<'static>,
    params: Parameters,
    tokens: Tensor,
    mask: Option<Tensor>,
    max_length: usize,
}

impl World {
    fn new(dtype: DType, batch: &[usize], tokens: usize, max_length: usize) -> Self {
        Self::of(SIZES, dtype, batch, [tokens, max_length])
    }

    fn of(sizes: Sizes, dtype: DType, batch: &[usize], [tokens, max_length]: [usize; 2]) -> Self {
        let mut numbers = Numbers(tokens as u64);
        let mut layer = layer(&sizes);
        layer.decode = true;
        Self {
            layer,
            params: Parameters::new(&mut numbers, &sizes, dtype),
            tokens: numbers.tensor(dtype.scalar(), &[batch, &[tokens, 6]].concat(), 2.0),
            mask: None,
            max_length,
        }
    }

    fn batch(&self) -> &[usize] {
        &self.tokens.shape()[..self.tokens.shape().rank() - 2]
    }

    fn length(&self) -> usize {
        self.tokens.shape()[self.batch().len()]
    }

    fn masked(mut self) -> Self {
        let shape = [self.batch(), &[1, self.length(), self.max_length]].concat();
        self.mask = Some(Numbers(77).tensor(ScalarType::Bool, &shape, 1.0));
        self
    }

    fn fresh(&self) -> AnyCache {
        let longest = Tensor::zeros(
            self.tokens.scalar(),
            &[self.batch(), &[self.max_length, 6]].concat(),
        )
        .unwrap();
        let call = Call::new(longest.view());
        self.layer.init_cache(&self.params.source(), &call).unwrap()
    }

    /// Entries `range` of the tokens' axis; `from_end` counts it from the last.
    fn part(tensor: &Tensor, from_end: usize, first: usize, count: usize) -> Tensor {
        let axis = tensor.shape().rank() - from_end;
        let length = tensor.shape()[axis];
        let inner: usize = tensor.shape()[axis + 1..].iter().product();
        let all = tensor.to_vec_f64();
        let kept = all.iter().copied().enumerate().filter(|(index, _)| {
            let position = index / inner % length;
            (first..first + count).contains(&position)
        });
        let mut shape = tensor.shape().to_vec();
        shape[axis] = count;
        Tensor::from_f64s(tensor.scalar(), &shape, kept.map(|(_, value)| value)).unwrap()
    }

    fn step(&self, token: usize, cache: &mut Option<AnyCache>) -> Result<Output> {
        let x = Self::part(&self.tokens, 2, token, 1);
        let mask = self.mask.as_ref().map(|mask| Self::part(mask, 2, token, 1));
        let call = Call::new(x.view())
            .with_mask(mask.as_ref().map(Tensor::view))
            .with_sow_weights(true)
            .with_cache(CacheAccess::Mutable(cache));
        self.layer
            .apply(&Cpu::detect(), &self.params.source(), call)
    }

    fn prefill(&self, first: usize, count: usize, cache: &mut AnyCache) -> Result<Output> {
        let x = Self::part(&self.tokens, 2, first, count);
        let mask = self
            .mask
            .as_ref()
            .map(|mask| Self::part(mask, 2, first, count));
        let call = Call::new(x.view())
            .with_mask(mask.as_ref().map(Tensor::view))
            .with_sow_weights(true);
        self.layer
            .prefill(&Cpu::detect(), &self.params.source(), call, cache)
    }

    /// Outputs token by token, and the cache afterwards.
    fn one_by_one(&self) -> (Vec<Output>, AnyCache) {
        let mut cache = Some(self.fresh());
        let outputs = (0..self.length())
            .map(|token| self.step(token, &mut cache).expect("a step"))
            .collect();
        (outputs, cache.expect("a cache"))
    }

    /// Prefilling in pieces of these sizes gives the bits of one by one.
    fn pieces_agree(&self, what: &str, pieces: &[usize]) {
        let (outputs, wanted) = self.one_by_one();
        let (mut cache, mut done) = (self.fresh(), 0);
        for &count in pieces {
            let output = self.prefill(done, count, &mut cache).expect(what);
            let weights = output.attention_weights.expect("asked for");
            for token in 0..count {
                let alone = &outputs[done + token];
                let out = Self::part(&output.out, 2, token, 1);
                assert_eq!(
                    bits(&out),
                    bits(&alone.out),
                    "{what} token {}",
                    done + token
                );
                let row = Self::part(&weights, 2, token, 1);
                let alone = alone.attention_weights.as_ref().expect("asked for");
                assert_eq!(bits(&row), bits(alone), "{what} weights {}", done + token);
            }
            done += count;
        }
        assert_eq!(done, self.length());
        assert_eq!(cache, wanted, "{what} cache");
    }
}

/// As many heads of queries as of keys, and three times as many, in every dtype.
fn every_grouping() -> impl Iterator<Item = (Sizes, DType)> {
    let of = |sizes: Sizes| DType::ALL.into_iter().map(move |dtype| (sizes, dtype));
    [SIZES, SIZES.grouped(3)].into_iter().flat_map(of)
}

fn bits(tensor: &Tensor) -> Vec<u8> {
    tensor.view().bytes().to_vec()
}

#[test]
fn many_tokens_at_once_give_the_bits_of_one_by_one() {
    for (sizes, dtype) in every_grouping() {
        for batch in [&[][..], &[3], &[2, 2]] {
            let rotary = Some(Rotary::new());
            for (normalize_qk, rotary) in
                [(false, None), (true, None), (false, rotary), (true, rotary)]
            {
                let mut world = World::of(sizes, dtype, batch, [9, 12]);
                world.layer.normalize_qk = normalize_qk;
                world.layer.rotary = rotary;
                let what =
                    format!("{dtype} {sizes:?} {batch:?} normalize_qk {normalize_qk} {rotary:?}");
                world.pieces_agree(&what, &[9]);
                world.pieces_agree(&what, &[1, 3, 4, 1]);
                let world = world.masked();
                world.pieces_agree(&format!("{what} masked"), &[2, 7]);
            }
        }
    }
}

#[test]
fn many_tokens_past_the_end_give_the_bits_of_one_by_one() {
    for (sizes, dtype) in every_grouping() {
        let world = World::of(sizes, dtype, &[2], [9, 4]).masked();
        world.pieces_agree(&format!("{dtype} past the end"), &[9]);
        world.pieces_agree(&format!("{dtype} past the end"), &[3, 3, 3]);
    }
}

#[test]
fn long_prefill_gives_the_bits_of_one_by_one() {
    for (sizes, dtype) in every_grouping() {
        let what = format!("{dtype} {sizes:?}");
        World::of(sizes, dtype, &[], [150, 160]).pieces_agree(&what, &[150]);
    }
}

#[test]
fn a_token_that_is_not_finite_stays_out_of_earlier_ones() {
    for dtype in DType::ALL {
        for value in [f64::INFINITY, f64::NAN] {
            let mut world = World::new(dtype, &[2], 6, 8);
            let mut tokens = world.tokens.to_vec_f64();
            // Token 3 of batch entry 0.
            tokens[3 * 6] = value;
            let shape = *world.tokens.shape();
            world.tokens = Tensor::from_f64s(dtype.scalar(), &shape, tokens).unwrap();
            world.pieces_agree(&format!("{dtype} {value}"), &[6]);
        }
    }
}

#[test]
fn scores_of_minus_infinity_meet_no_later_token() {
    for dtype in DType::ALL {
        for query in [f64::NEG_INFINITY, dtype_lowest(dtype)] {
            let mut world = World::new(dtype, &[2], 6, 8);
            for (name, value) in [("query", query), ("key", 1.0)] {
                world.params.fill(&format!("{name}/kernel"), 0.0);
                world.params.fill(&format!("{name}/bias"), value);
            }
            world.pieces_agree(&format!("{dtype} {query}"), &[6]);
            world
                .masked()
                .pieces_agree(&format!("{dtype} {query} masked"), &[6]);
        }
    }
}

fn dtype_lowest(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f32::MIN.into(),
        DType::F64 => f64::MIN,
        DType::F16 => attn_layers::core::f16::MIN.to_f64(),
        DType::BF16 => attn_layers::core::bf16::MIN.to_f64(),
    }
}

#[test]
fn decoding_is_causal_attention() {
    for dtype in DType::ALL {
        let mut world = World::new(dtype, &[2], 8, 8);
        world.layer.normalize_qk = true;
        let truth = Truth {
            params: &world.params,
            num_heads: 2,
            head_dim: 4,
            use_bias: true,
            normalize_qk: true,
            sees: &|_, _, q, k| k <= q,
        };
        let (wanted, _) = truth.of(&world.tokens, &world.tokens, &world.tokens);
        let got = world.prefill(0, 8, &mut world.fresh()).unwrap().out;
        let call = Call::new(world.tokens.view());
        let source = world.params.source();
        let plain = world
            .layer
            .prefill(&plain(), &source, call, &mut world.fresh())
            .unwrap()
            .out;
        assert_close(&format!("{dtype}"), &got, &plain, &wanted);
    }
}

#[test]
fn the_first_call_makes_the_cache_and_is_not_causal() {
    let world = World::new(DType::BF16, &[2], 5, 5);
    let mut cache = None;
    let call = || Call::new(world.tokens.view());
    let source = world.params.source();
    let made = world
        .layer
        .apply(
            &Cpu::detect(),
            &source,
            call().with_cache(CacheAccess::Mutable(&mut cache)),
        )
        .unwrap();
    let cache = cache.expect("the call makes it");
    assert_eq!(cache, world.fresh());
    assert_eq!(cache.cached_key.shape().as_slice(), [2, 5, 2, 4]);
    assert_eq!(cache.cached_key.scalar(), ScalarType::BF16);
    assert_eq!(cache.cache_index, 0);
    assert!(wide(&cache.cached_value).iter().all(|x| x.value() == 0.0));
    let truth = Truth {
        params: &world.params,
        num_heads: 2,
        head_dim: 4,
        use_bias: true,
        normalize_qk: false,
        sees: &|_, _, _, _| true,
    };
    let (wanted, _) = truth.of(&world.tokens, &world.tokens, &world.tokens);
    let mut ordinary = world.layer.clone();
    ordinary.decode = false;
    let plain = ordinary.apply(&plain(), &source, call()).unwrap();
    assert_close("the first call", &made.out, &plain.out, &wanted);
}

#[test]
fn a_call_that_fails_makes_no_cache() {
    let mut world = World::new(DType::F32, &[], 3, 3);
    world.params.remove("out/bias");
    let mut cache = None;
    let call = Call::new(world.tokens.view()).with_cache(CacheAccess::Mutable(&mut cache));
    let result = world
        .layer
        .apply(&Cpu::detect(), &world.params.source(), call);
    assert!(result.is_err() && cache.is_none());
}

#[test]
fn the_cache_has_the_dtype_of_the_projections() {
    let mut world = World::new(DType::BF16, &[], 2, 2);
    for (dtype, scale, key, value) in [
        (None, ScalarType::BF16, ScalarType::BF16, ScalarType::BF16),
        (None, ScalarType::F32, ScalarType::F32, ScalarType::BF16),
        (
            Some(ScalarType::F16),
            ScalarType::F32,
            ScalarType::F16,
            ScalarType::F16,
        ),
    ] {
        world.layer.dtype = dtype;
        world.layer.normalize_qk = true;
        for name in ["query_ln/scale", "key_ln/scale"] {
            let cast = world.params.get(name).view().to_scalar(scale).unwrap();
            world.params.set(name, cast);
        }
        let cache = world.fresh();
        assert_eq!(
            (cache.cached_key.scalar(), cache.cached_value.scalar()),
            (key, value)
        );
        // A step then fits it.
        world.step(0, &mut Some(cache)).unwrap();
    }
}

#[test]
fn several_keys_of_one_query_are_written_and_counted_once() {
    let world = World::new(DType::F32, &[], 3, 5);
    let mut cache = Some(world.fresh());
    let query = World::part(&world.tokens, 2, 0, 1);
    let call = Call::new(query.view())
        .with_inputs_k(Some(world.tokens.view()))
        .with_cache(CacheAccess::Mutable(&mut cache));
    world
        .layer
        .apply(&Cpu::detect(), &world.params.source(), call)
        .unwrap();
    let cache = cache.unwrap();
    assert_eq!(cache.cache_index, 1);
    let written = cache.cached_key.to_vec_f64();
    assert!(written[..24].iter().all(|&x| x != 0.0) && written[24..].iter().all(|&x| x == 0.0));
}

#[test]
fn a_failed_prefill_leaves_the_cache_as_it_was() {
    let mut world = World::new(DType::F32, &[2], 9, 4);
    let mut cache = world.fresh();
    world.prefill(0, 3, &mut cache).unwrap();
    let before = cache.clone();
    // Seven rows of a mask for six tokens: the parts before the last succeed.
    let ragged = Tensor::zeros(ScalarType::Bool, &[1, 1, 5, 4]).unwrap();
    let x = World::part(&world.tokens, 2, 3, 6);
    let call = |mask| Call::new(x.view()).with_mask(mask);
    let source = world.params.source();
    let run = |call: Call<'_>, cache: &mut AnyCache| {
        world.layer.prefill(&Cpu::detect(), &source, call, cache)
    };
    assert!(run(call(Some(ragged.view())), &mut cache).is_err());
    assert_eq!(cache, before);
    let two = TensorView::from_slice(&[1u8; 4], &[4]).unwrap();
    assert!(matches!(
        run(call(Some(two)), &mut cache),
        Err(Error::MaskRank { left: 1, right: 4 })
    ));
    let keys = World::part(&world.tokens, 2, 0, 2);
    assert!(matches!(
        run(call(None).with_inputs_k(Some(keys.view())), &mut cache),
        Err(Error::Mismatch { .. })
    ));
    assert_eq!(cache, before);
    drop(source);
    world.layer.decode = false;
    let result = world.prefill(3, 1, &mut cache);
    assert_eq!(result.unwrap_err(), Error::CacheMissing);
}

#[test]
fn no_tokens_leave_the_cache_as_it_was() {
    for max_length in [0, 4] {
        let world = World::new(DType::F32, &[2], 0, max_length);
        let mut cache = world.fresh();
        let output = world.prefill(0, 0, &mut cache).unwrap();
        assert_eq!(output.out.shape().as_slice(), [2, 0, 5]);
        assert_eq!(cache, world.fresh());
    }
    let world = World::new(DType::F32, &[2], 1, 0);
    assert!(world.prefill(0, 1, &mut world.fresh()).is_err());
}

#[test]
fn a_cache_of_another_shape_is_an_error_not_a_panic() {
    let world = World::new(DType::F32, &[2], 1, 4);
    let shapes = [
        &[][..],
        &[4],
        &[2, 4, 2],
        &[2, 4, 2, 4],
        &[2, 3, 2, 4],
        &[2, 4, 2, 0],
        &[1, 2, 4, 2, 4],
    ];
    for key in shapes {
        for value in shapes {
            for cache_index in [0, 3, i32::MAX, i32::MIN] {
                let mut cache = Some(AnyCache {
                    cached_key: Tensor::zeros(ScalarType::F32, key).unwrap(),
                    cached_value: Tensor::zeros(ScalarType::F32, value).unwrap(),
                    cache_index,
                });
                let fits = matches!(key, [2, 3 | 4, 2, 4]) && value == key;
                assert_eq!(world.step(0, &mut cache).is_ok(), fits, "{key:?} {value:?}");
            }
        }
    }
}
