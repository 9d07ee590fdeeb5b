//! The typed layer: the same numbers as Flax's layer, no allocation, every mistake named before anything is written.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::{Causal, Element, Flat, Host, Layout, Mask};
use attn_layers::cpu::Cpu;
use attn_layers::tensor::Tensor;
use attn_layers::{
    AnyCache, AnyDecodeCache, AnyInputs, AnyMultiHeadDotProductAttention, AnyParams, AnyScratch,
    Call, DType, DecodeCache, Dense, Dims, Error, FullyMasked, HostKernels, HostView, HostViewMut,
    Inputs, MultiHeadDotProductAttentionF16, MultiHeadDotProductAttentionF32,
    MultiHeadDotProductAttentionOf, OnFull, OwnedScratch, Params, Plan, Result, Rotary,
    RotaryTable, ScalarType, Scratch, bf16, f16,
};
use support::{Numbers, Parameters, Sizes, layer, plain};

const CROSS: Sizes = Sizes {
    features: [7, 5, 6],
    num_heads: 3,
    num_kv_heads: 3,
    head_dim: 4,
    out_features: 9,
};

fn view<T: Element>(tensor: &Tensor) -> HostView<'_, T> {
    HostView::new(tensor.as_slice().expect("of this type"), tensor.shape()).expect("its shape")
}

/// A layer's parameters as typed views; the scales of the layer norms are in the accumulator's type.
fn typed<'p, T: Element>(params: &'p Parameters, scales: &'p Parameters) -> Params<'p, Host, T> {
    let dense = |scope: &str| Dense {
        kernel: view(params.get(&format!("{scope}/kernel"))).into(),
        bias: Some(view(params.get(&format!("{scope}/bias")))),
    };
    Params {
        query: dense("query"),
        key: dense("key"),
        value: dense("value"),
        out: dense("out"),
        query_ln: Some(view(scales.get("query_ln/scale"))),
        key_ln: Some(view(scales.get("key_ln/scale"))),
    }
}

struct World<T: Element> {
    layer: MultiHeadDotProductAttentionOf<T>,
    params: Parameters,
    scales: Parameters,
    inputs: [Tensor; 3],
    plan: Plan,
}

impl<T: Element> World<T> {
    fn new(sizes: Sizes, batch: &[usize], lengths: [usize; 2]) -> Self {
        let mut numbers = Numbers(5);
        let params = Parameters::new(&mut numbers, &sizes, T::DTYPE);
        let lengths = [lengths[0], lengths[1], lengths[1]];
        let inputs = [0, 1, 2].map(|n| {
            let shape = [batch, &[lengths[n], sizes.features[n]]].concat();
            numbers.tensor(T::SCALAR, &shape, 2.0)
        });
        let layer = MultiHeadDotProductAttentionOf {
            num_kv_heads: sizes.num_kv_heads(),
            qkv_features: Some(sizes.num_heads * sizes.head_dim),
            out_features: Some(sizes.out_features),
            normalize_qk: true,
            ..MultiHeadDotProductAttentionOf::new(sizes.num_heads)
        };
        let [q, k, v] = &inputs;
        Self {
            plan: layer.plan(q.shape(), k.shape(), v.shape()).expect("a plan"),
            layer,
            scales: params.cast(<T::Acc as attn_layers::core::Scalar>::SCALAR),
            params,
            inputs,
        }
    }

    fn params(&self) -> Params<'_, Host, T> {
        typed(&self.params, &self.scales)
    }

    fn inputs(&self) -> Inputs<'_, Host, T> {
        let [q, k, v] = &self.inputs;
        Inputs::cross_attention(view(q), view(k), view(v))
    }

    fn out(&self) -> Tensor {
        Tensor::zeros(T::SCALAR, &self.plan.output().unwrap()).unwrap()
    }

    fn run<B: HostKernels + attn_layers::core::Kernels<T>>(
        &self,
        backend: &B,
        inputs: Inputs<'_, Host, T>,
    ) -> Result<Tensor> {
        let mut scratch = OwnedScratch::new(&self.plan.scratch::<T, _>(backend))?;
        let mut out = self.out();
        let shape = *out.shape();
        let to = HostViewMut::new(out.as_mut_slice().expect("of this type"), &shape)?;
        let params = self.params();
        self.layer.apply(
            backend,
            &self.plan,
            &params,
            inputs,
            to,
            &mut scratch.borrow(),
        )?;
        Ok(out)
    }
}

fn agrees_with_flax<T: Element>(sizes: Sizes)
where
    Cpu: attn_layers::core::Kernels<T>,
    attn_layers::core::conformance::Reference: attn_layers::core::Kernels<T>,
{
    let turning = Some(Rotary {
        rotary_dim: Some(2),
        ..Rotary::new()
    });
    for (batch, rotary) in [
        (&[][..], None),
        (&[2], None),
        (&[2, 3], None),
        (&[2, 3], turning),
    ] {
        let mut world = World::<T>::new(sizes, batch, [4, 5]);
        world.layer.rotary = rotary;
        let mask = Numbers(9).tensor(ScalarType::Bool, &[4, 5], 1.0);
        let bytes: Vec<u8> = mask.view().bytes().to_vec();
        let mask_view = HostView::new(&bytes, &[4, 5]).unwrap();
        let mut flax = layer(&sizes);
        flax.normalize_qk = true;
        flax.rotary = rotary;
        flax.dtype = Some(T::SCALAR);
        let [q, k, v] = &world.inputs;
        let call = || {
            Call::new(q.view())
                .with_inputs_k(Some(k.view()))
                .with_inputs_v(Some(v.view()))
                .with_mask(Some(mask.view()))
        };
        let source = world.params.source();
        let inputs = || world.inputs().with_mask(Some(Mask::keep(mask_view)));
        let cpu = Cpu::detect();
        let wanted = flax.apply(&cpu, &source, call()).unwrap().out;
        assert_eq!(
            world.run(&cpu, inputs()).unwrap(),
            wanted,
            "{} {batch:?}",
            T::DTYPE
        );
        let wanted = flax.apply(&plain(), &source, call()).unwrap().out;
        assert_eq!(
            world.run(&plain(), inputs()).unwrap(),
            wanted,
            "{} {batch:?}",
            T::DTYPE
        );
    }
}

#[test]
fn the_typed_layer_gives_the_bits_of_flaxs_layer() {
    for sizes in [CROSS, CROSS.grouped(2)] {
        agrees_with_flax::<f32>(sizes);
        agrees_with_flax::<f64>(sizes);
        agrees_with_flax::<f16>(sizes);
        agrees_with_flax::<bf16>(sizes);
    }
}

#[test]
fn causal_without_a_tensor_is_the_causal_mask() {
    let world = World::<f32>::new(CROSS, &[2], [5, 5]);
    let bytes: Vec<u8> = (0..25).map(|n| u8::from(n % 5 <= n / 5)).collect();
    let mask = Mask::keep(HostView::new(&bytes, &[5, 5]).unwrap());
    let cpu = Cpu::detect();
    let with_tensor = world.run(&cpu, world.inputs().with_mask(Some(mask)));
    let causal = Some(Causal::top_left());
    let without = world.run(&cpu, world.inputs().with_causal(causal));
    assert_eq!(with_tensor.unwrap(), without.unwrap());
}

#[test]
fn a_fully_masked_query_can_get_zero() {
    let mut world = World::<f32>::new(CROSS, &[], [2, 3]);
    let none = [1u8; 3];
    let drop_all = || Some(Mask::drop(HostView::new(&none, &[3]).unwrap()));
    let mean = world.run(&Cpu::detect(), world.inputs().with_mask(drop_all()));
    world.layer.fully_masked = FullyMasked::Zero;
    let zero = world.run(&Cpu::detect(), world.inputs().with_mask(drop_all()));
    let bias = world.params.get("out/bias").to_vec_f64();
    let wanted: Vec<f64> = bias.iter().copied().cycle().take(2 * 9).collect();
    assert_eq!(zero.unwrap().to_vec_f64(), wanted);
    assert_ne!(mean.unwrap().to_vec_f64(), wanted);
}

#[test]
fn strided_inputs_and_outputs_are_read_and_written_in_place() {
    // Tokens interleaved with another sequence's, as a time-major batch lies.
    let world = World::<f32>::new(Sizes::of(8, 2), &[], [3, 3]);
    let cpu = Cpu::detect();
    let x: &[f32] = world.inputs[0].as_slice().unwrap();
    let once = HostView::new(x, &[3, 8]).unwrap();
    let wanted = world.run(&cpu, Inputs::self_attention(once)).unwrap();
    let apart = Layout::strided(8, Dims::new(&[3, 8]).unwrap(), &[16, 1]).unwrap();
    let mut interleaved = vec![f32::NAN; 48];
    for (token, row) in x.chunks(8).enumerate() {
        interleaved[8 + token * 16..][..8].copy_from_slice(row);
    }
    let inputs = Inputs::self_attention(HostView::with_layout(&interleaved, apart).unwrap());
    let mut out = vec![0.0f32; 48];
    let to = HostViewMut::with_layout(&mut out, apart).unwrap();
    let mut scratch = OwnedScratch::new(&world.plan.scratch::<f32, _>(&cpu)).unwrap();
    let params = world.params();
    world
        .layer
        .apply(
            &cpu,
            &world.plan,
            &params,
            inputs,
            to,
            &mut scratch.borrow(),
        )
        .unwrap();
    for (token, row) in wanted.as_slice::<f32>().unwrap().chunks(8).enumerate() {
        assert_eq!(&out[8 + token * 16..][..8], row);
        assert_eq!(out[token * 16..][..8], [0.0; 8]);
    }
}

#[test]
fn weights_are_those_that_flax_sows() {
    let world = World::<f32>::new(CROSS, &[2], [4, 5]);
    let mut flax = layer(&CROSS);
    flax.normalize_qk = true;
    let [q, k, v] = &world.inputs;
    let call = Call::new(q.view())
        .with_inputs_k(Some(k.view()))
        .with_inputs_v(Some(v.view()))
        .with_sow_weights(true);
    let source = world.params.source();
    let wanted = flax.apply(&Cpu::detect(), &source, call).unwrap();
    let shape = world.plan.weights().unwrap();
    let mut weights = vec![0.0f32; shape.elements().unwrap()];
    let to = HostViewMut::new(&mut weights, &shape).unwrap();
    world
        .run(&Cpu::detect(), world.inputs().with_weights(Some(to)))
        .unwrap();
    assert_eq!(
        wanted.attention_weights.unwrap().as_slice(),
        Some(&weights[..])
    );
}

#[test]
fn a_dtype_known_at_run_time_dispatches() {
    let world = World::<f16>::new(CROSS, &[2], [4, 5]);
    let cpu = Cpu::detect();
    let wanted = world.run(&cpu, world.inputs()).unwrap();
    let any: AnyMultiHeadDotProductAttention = world.layer.clone().into();
    assert_eq!(any.dtype(), DType::F16);
    let [q, k, v] = world.inputs.each_ref().map(|input| *input.shape());
    assert_eq!(any.plan(&q, &k, &v).unwrap(), world.plan);
    let params: AnyParams<'_, Host> = world.params().into();
    let mut owned = OwnedScratch::<f16>::new(&world.plan.scratch::<f16, _>(&cpu)).unwrap();
    let mut scratch: AnyScratch<'_, Host> = owned.borrow().into();
    let mut out = world.out();
    let shape = *out.shape();
    let to = HostViewMut::<f16>::new(out.as_mut_slice().unwrap(), &shape).unwrap();
    let inputs: AnyInputs<'_, Host> = world.inputs().into();
    any.apply(&cpu, &world.plan, &params, inputs, to.into(), &mut scratch)
        .unwrap();
    assert_eq!(out, wanted);

    // A layer of another dtype names the first argument that does not fit.
    let other: AnyMultiHeadDotProductAttention = MultiHeadDotProductAttentionF32::new(3).into();
    let to = HostViewMut::<f16>::new(out.as_mut_slice().unwrap(), &shape).unwrap();
    let inputs: AnyInputs<'_, Host> = world.inputs().into();
    let result = other.apply(&cpu, &world.plan, &params, inputs, to.into(), &mut scratch);
    assert_eq!(
        result.unwrap_err(),
        Error::dtype_mismatch("params", DType::F16, DType::F32)
    );
    assert!(MultiHeadDotProductAttentionF16::try_from(any).is_ok());
    assert!(MultiHeadDotProductAttentionF16::try_from(other).is_err());
}

/// A cache of `max_length` with `tokens` slots written by one call for each count.
struct Decoded {
    key: Tensor,
    value: Tensor,
    index: usize,
    out: Vec<Tensor>,
}

fn decode<T: Element>(
    world: &World<T>,
    max_length: usize,
    counts: &[usize],
    mask: Option<Mask<'_, Host>>,
) -> Result<Decoded>
where
    Cpu: attn_layers::core::Kernels<T>,
{
    let cpu = Cpu::detect();
    let tokens = &world.inputs[0];
    let axis = tokens.shape().rank() - 2;
    let with_length =
        |length: usize, tail: &[usize]| [&tokens.shape()[..axis], &[length], tail].concat();
    let heads = world.params.get("key/bias").shape();
    let cache_shape = with_length(max_length, heads);
    let mut decoded = Decoded {
        key: Tensor::zeros(T::SCALAR, &cache_shape)?,
        value: Tensor::zeros(T::SCALAR, &cache_shape)?,
        index: 0,
        out: Vec::new(),
    };
    // In many calls cosines and sines come from a table, in one they are computed: the bits must be the same.
    let positions: usize = counts.iter().sum();
    let head_dim = cache_shape[cache_shape.len() - 1];
    let turns = world.layer.rotary.filter(|_| counts.len() > 1);
    let entries = turns.map_or(0, |_| positions * head_dim / 2);
    let [mut cos, mut sin] = [
        vec![T::Acc::default(); entries],
        vec![T::Acc::default(); entries],
    ];
    if let Some(rotary) = turns {
        rotary.fill_table(head_dim, 0, &mut cos, &mut sin)?;
    }
    let table = turns.map(|_| RotaryTable {
        cos: Flat::new(cos.as_slice()),
        sin: Flat::new(sin.as_slice()),
    });
    let mut first = 0;
    for &count in counts {
        let x: HostView<'_, T> = view(tokens);
        let strides = x.layout().strides();
        let shape = Dims::new(&with_length(count, &tokens.shape()[axis + 1..]))?;
        let part = Layout::strided(first * strides[axis], shape, strides)?;
        let inputs = Inputs::self_attention(HostView::with_layout(x.buf(), part)?)
            .with_mask(mask)
            .with_rotary_table(table);
        let plan = world.layer.plan(&shape, &shape, &shape)?;
        let mut scratch = OwnedScratch::new(&plan.decode_scratch::<T, _>(&cpu, max_length))?;
        let mut out = Tensor::zeros(T::SCALAR, &plan.output()?)?;
        let out_shape = *out.shape();
        let mut cache = DecodeCache {
            cached_key: HostViewMut::new(decoded.key.as_mut_slice().unwrap(), &cache_shape)?,
            cached_value: HostViewMut::new(decoded.value.as_mut_slice().unwrap(), &cache_shape)?,
            cache_index: decoded.index,
            on_full: OnFull::OverwriteLast,
        };
        let to = HostViewMut::new(out.as_mut_slice().unwrap(), &out_shape)?;
        let (params, mut scratch) = (world.params(), scratch.borrow());
        world
            .layer
            .decode(&cpu, &plan, &params, &inputs, &mut cache, to, &mut scratch)?;
        decoded.index = cache.cache_index;
        decoded.out.push(out);
        first += count;
    }
    Ok(decoded)
}

fn decoding_agrees<T: Element>(batch: &[usize], tokens: usize, max_length: usize)
where
    Cpu: attn_layers::core::Kernels<T>,
{
    for sizes in [Sizes::of(8, 2), Sizes::of(8, 2).grouped(3)] {
        let mut world = World::<T>::new(sizes, batch, [tokens, tokens]);
        decoding_of_world_agrees(&world, batch, tokens, max_length);
        world.layer.rotary = Some(Rotary::new());
        decoding_of_world_agrees(&world, batch, tokens, max_length);
    }
}

fn decoding_of_world_agrees<T: Element>(
    world: &World<T>,
    batch: &[usize],
    tokens: usize,
    max_length: usize,
) where
    Cpu: attn_layers::core::Kernels<T>,
{
    let what = format!("{} {batch:?} {:?}", T::DTYPE, world.layer.rotary);
    let bytes: Vec<u8> = (0..max_length).map(|n| u8::from(n != 1)).collect();
    let hides_one = Mask::keep(HostView::new(&bytes, &[max_length]).unwrap());
    for mask in [None, Some(hides_one)] {
        let alone = decode(world, max_length, &vec![1; tokens], mask).unwrap();
        let together = decode(world, max_length, &[tokens], mask).unwrap();
        assert_eq!(
            (&alone.key, &alone.value),
            (&together.key, &together.value),
            "{what}"
        );
        assert_eq!((alone.index, together.index), (tokens, tokens), "{what}");
        let entries = batch.iter().product::<usize>();
        let all = together.out[0].to_vec_f64();
        for (token, out) in alone.out.iter().enumerate() {
            for (entry, row) in out.to_vec_f64().chunks(8).enumerate() {
                assert!(entry < entries);
                assert_eq!(
                    row,
                    &all[(entry * tokens + token) * 8..][..8],
                    "{what} {token}"
                );
            }
        }
        flax_prefills_alike(world, max_length, &bytes, mask.is_some(), &together);
    }
}

/// The cache and outputs of Flax's layer are the typed layer's.
fn flax_prefills_alike<T: Element>(
    world: &World<T>,
    max_length: usize,
    mask: &[u8],
    masked: bool,
    decoded: &Decoded,
) where
    Cpu: attn_layers::core::Kernels<T>,
{
    let mut flax = layer(&Sizes::of(8, 2));
    flax.num_heads = world.layer.num_heads;
    flax.num_kv_heads = world.layer.num_kv_heads;
    flax.qkv_features = world.layer.qkv_features;
    (flax.normalize_qk, flax.decode, flax.dtype) = (true, true, Some(T::SCALAR));
    flax.rotary = world.layer.rotary;
    let mut cache = AnyCache {
        cached_key: Tensor::zeros(T::SCALAR, decoded.key.shape()).unwrap(),
        cached_value: Tensor::zeros(T::SCALAR, decoded.value.shape()).unwrap(),
        cache_index: 0,
    };
    let rank = decoded.key.shape().rank();
    let shape = [&[1; 15][..rank - 1], &[max_length]].concat();
    let mask = Tensor::from_slice(mask, &shape).unwrap();
    let call = Call::new(world.inputs[0].view()).with_mask(masked.then(|| mask.view()));
    let source = world.params.source();
    let output = flax
        .prefill(&Cpu::detect(), &source, call, &mut cache)
        .unwrap();
    assert_eq!(output.out, decoded.out[0]);
    assert_eq!(cache.cached_key, decoded.key);
    assert_eq!(cache.cached_value, decoded.value);
}

#[test]
fn typed_decoding_gives_the_bits_of_flaxs_layer_and_of_one_by_one() {
    for batch in [&[][..], &[3], &[2, 2]] {
        decoding_agrees::<f32>(batch, 6, 8);
        decoding_agrees::<f64>(batch, 6, 8);
        decoding_agrees::<f16>(batch, 6, 8);
        decoding_agrees::<bf16>(batch, 6, 8);
    }
}

#[test]
fn past_the_end_the_last_slot_is_overwritten() {
    decoding_agrees::<f32>(&[2], 7, 3);
    decoding_agrees::<bf16>(&[], 5, 1);
}

#[test]
fn a_full_cache_can_be_an_error() {
    let world = World::<f32>::new(Sizes::of(8, 2), &[], [2, 2]);
    let cpu = Cpu::detect();
    let (mut key, mut value, mut out) = ([0.0f32; 24], [0.0f32; 24], [7.0f32; 16]);
    let mut scratch = OwnedScratch::new(&world.plan.decode_scratch::<f32, _>(&cpu, 3)).unwrap();
    let mut cache = DecodeCache {
        cached_key: HostViewMut::new(&mut key, &[3, 2, 4]).unwrap(),
        cached_value: HostViewMut::new(&mut value, &[3, 2, 4]).unwrap(),
        cache_index: 2,
        on_full: OnFull::Error,
    };
    let params = world.params();
    let mut run = |cache: &mut DecodeCache<'_, Host, f32>| {
        let to = HostViewMut::new(&mut out, &[2, 8]).unwrap();
        let mut scratch = scratch.borrow();
        world.layer.decode(
            &cpu,
            &world.plan,
            &params,
            &world.inputs(),
            cache,
            to,
            &mut scratch,
        )
    };
    assert_eq!(run(&mut cache), Err(Error::CacheFull { got: 2, free: 1 }));
    assert_eq!(cache.cache_index, 2);
    cache.cache_index = 1;
    run(&mut cache).unwrap();
    assert_eq!(cache.cache_index, 3);
    // An index beyond any slot is not a panic.
    cache.on_full = OnFull::OverwriteLast;
    cache.cache_index = usize::MAX;
    run(&mut cache).unwrap();
    let _: AnyDecodeCache<'_, Host> = cache.into();
    assert!(key[..8].iter().all(|&x| x == 0.0) && key[8..].iter().all(|&x| x != 0.0));
}

#[test]
fn what_does_not_fit_is_named_before_anything_is_written() {
    let world = World::<f32>::new(CROSS, &[2], [4, 5]);
    let other = World::<f32>::new(CROSS, &[2], [3, 5]);
    let cpu = Cpu::detect();
    let sizes = world.plan.scratch::<f32, _>(&cpu);
    let mut scratch = OwnedScratch::<f32>::new(&sizes).unwrap();
    let mut out = [7.0f32; 2 * 4 * 9];
    let mut run =
        |inputs: Inputs<'_, Host, f32>, params: &Params<'_, Host, f32>, shape: &[usize]| {
            let mut weights = [7.0f32; 2 * 3 * 4 * 5];
            let inputs = inputs.with_weights(Some(HostViewMut::new(&mut weights, &[2, 3, 4, 5])?));
            let to = HostViewMut::new(&mut out, shape)?;
            let result =
                world
                    .layer
                    .apply(&cpu, &world.plan, params, inputs, to, &mut scratch.borrow());
            if result.is_err() {
                assert!(out.iter().chain(&weights).all(|&x| x == 7.0));
            }
            result
        };
    let good = world.params();
    let argument = |result: Result<()>| match result.unwrap_err() {
        Error::Shape { argument, .. } | Error::Broadcast { argument, .. } => argument,
        Error::ParamMissing { scope, .. } | Error::ParamShape { scope, .. } => scope,
        error => panic!("{error}"),
    };
    let shape = [2, 4, 9];
    assert_eq!(argument(run(other.inputs(), &good, &shape)), "inputs_q");
    assert_eq!(argument(run(world.inputs(), &good, &[2, 36])), "output");
    let bytes = [1u8; 7];
    let mask = Mask::keep(HostView::new(&bytes, &[7]).unwrap());
    let masked = world.inputs().with_mask(Some(mask));
    assert_eq!(argument(run(masked, &good, &shape)), "mask");
    let without = Params {
        key_ln: None,
        ..good
    };
    assert_eq!(argument(run(world.inputs(), &without, &shape)), "key_ln");
    let mut swapped = good;
    (swapped.query, swapped.key) = (good.key, good.query);
    assert_eq!(argument(run(world.inputs(), &swapped, &shape)), "query");
    let mut no_bias = good;
    no_bias.out.bias = None;
    assert_eq!(argument(run(world.inputs(), &no_bias, &shape)), "out");
    run(world.inputs(), &good, &shape).unwrap();
}

#[test]
fn a_scratch_that_is_too_short_is_named() {
    let world = World::<f32>::new(CROSS, &[2], [4, 5]);
    let cpu = Cpu::detect();
    let sizes = world.plan.scratch::<f32, _>(&cpu);
    let full = [sizes.q, sizes.k, sizes.v, sizes.context, sizes.tiles];
    for (short, name) in ["q", "k", "v", "context", "tiles"].into_iter().enumerate() {
        let mut buffers: Vec<Vec<f32>> = full.map(|len| vec![0.0; len]).into();
        buffers[short].pop();
        let mut buffers = buffers.iter_mut().map(Vec::as_mut_slice);
        let mut next = || buffers.next().expect("five buffers");
        let mut scratch = Scratch {
            q: next(),
            k: next(),
            v: next(),
            context: next(),
            tiles: next(),
        };
        let mut out = [7.0f32; 2 * 4 * 9];
        let to = HostViewMut::new(&mut out, &[2, 4, 9]).unwrap();
        let result = world.layer.apply(
            &cpu,
            &world.plan,
            &world.params(),
            world.inputs(),
            to,
            &mut scratch,
        );
        let error = result.unwrap_err();
        assert!(
            matches!(error, Error::Scratch { argument, .. } if argument == name),
            "{name}: {error}"
        );
        assert_eq!(out, [7.0; 2 * 4 * 9]);
    }
}

#[test]
fn plans_refuse_what_cannot_be() {
    let plan = |heads: usize, shapes: [&[usize]; 3]| {
        let [q, k, v] = shapes.map(|shape| Dims::new(shape).unwrap());
        MultiHeadDotProductAttentionF32::new(heads).plan(&q, &k, &v)
    };
    assert_eq!(plan(0, [&[2, 4]; 3]).unwrap_err(), Error::NoHeads);
    assert!(matches!(
        plan(3, [&[2, 4]; 3]),
        Err(Error::HeadsDoNotDivide { .. })
    ));
    assert!(matches!(
        plan(2, [&[], &[2, 4], &[2, 4]]),
        Err(Error::Rank { .. })
    ));
    assert!(matches!(plan(2, [&[4]; 3]), Err(Error::Rank { .. })));
    assert!(matches!(
        plan(2, [&[2, 4], &[3, 4], &[2, 4]]),
        Err(Error::Mismatch { .. })
    ));
    // What no machine holds is refused where memory would be taken.
    let huge = plan(2, [&[usize::MAX, 2, 4]; 3]).unwrap();
    assert!(matches!(
        OwnedScratch::<f32>::new(&huge.scratch::<f32, _>(&Cpu::portable())),
        Err(Error::TooLarge { .. })
    ));
    // Rows without features need no memory, however many.
    let endless = plan(1, [&[usize::MAX, 0]; 3]).unwrap();
    assert_eq!(endless.scratch::<f32, _>(&Cpu::portable()).q, 0);
}
