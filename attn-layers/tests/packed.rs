//! Packed parameters: the bits of plain ones, and where they cannot be used.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::{Element, Host, Kernels, Layout, Scalar};
use attn_layers::cpu::{Cpu, Isa};
use attn_layers::tensor::Tensor;
use attn_layers::{
    DType, DecodeCache, Dense, DenseGradientBuffers, Dims, Error, GradientBuffers, HostView,
    HostViewMut, InputGradients, Inputs, MultiHeadDotProductAttentionOf, OnFull, OwnedResiduals,
    OwnedScratch, PackedParams, Params, Plan, Result, bf16, f16,
};
use support::{Numbers, Parameters, Sizes, plain};

/// Nothing fills a panel of any instruction set; three different inputs.
const CROSS: Sizes = Sizes {
    features: [37, 21, 29],
    num_heads: 3,
    num_kv_heads: 3,
    head_dim: 13,
    out_features: 41,
};

/// The same of one input.
const SELF: Sizes = Sizes {
    features: [37; 3],
    ..CROSS
};

/// Rows in batch entries of so many queries and keys: few enough that no instruction set leaves a product to another crate.
const FEW: [usize; 2] = [5, 7];
/// More rows than that, and than a block of any kernel in all.
const MANY: [usize; 2] = [70, 50];

fn view<T: Scalar>(tensor: &Tensor) -> HostView<'_, T> {
    HostView::new(tensor.as_slice().expect("of this type"), tensor.shape()).expect("its shape")
}

fn view_mut<T: Scalar>(tensor: &mut Tensor) -> HostViewMut<'_, T> {
    let shape = *tensor.shape();
    HostViewMut::new(tensor.as_mut_slice().expect("of this type"), &shape).expect("its shape")
}

/// A layer, its parameters and its inputs.
struct World<T: Element> {
    sizes: Sizes,
    layer: MultiHeadDotProductAttentionOf<T>,
    params: Parameters,
    scales: Parameters,
    inputs: Vec<Tensor>,
    plan: Plan,
}

impl<T: Element> World<T> {
    /// Of a batch of two. With one length it is self-attention.
    fn new(sizes: Sizes, lengths: &[usize]) -> Self {
        let mut numbers = Numbers(31);
        let params = Parameters::new(&mut numbers, &sizes, T::DTYPE);
        let inputs: Vec<Tensor> = match *lengths {
            [queries, keys] => [queries, keys, keys].to_vec(),
            _ => lengths.to_vec(),
        }
        .iter()
        .zip(sizes.features)
        .map(|(&length, features)| numbers.tensor(T::SCALAR, &[2, length, features], 2.0))
        .collect();
        let layer = MultiHeadDotProductAttentionOf {
            num_kv_heads: sizes.num_kv_heads(),
            qkv_features: Some(sizes.num_heads * sizes.head_dim),
            out_features: Some(sizes.out_features),
            ..MultiHeadDotProductAttentionOf::new(sizes.num_heads)
        };
        let shape = |n: usize| inputs.get(n).unwrap_or(&inputs[0]).shape();
        Self {
            plan: layer.plan(shape(0), shape(1), shape(2)).expect("a plan"),
            sizes,
            layer,
            scales: params.cast(<T::Acc as Scalar>::SCALAR),
            params,
            inputs,
        }
    }

    /// Parameters as they lie; without biases and scales that the layer has not.
    fn params(&self) -> Params<'_, Host, T> {
        let dense = |scope: &str| Dense {
            kernel: view(self.params.get(&format!("{scope}/kernel"))).into(),
            bias: (self.layer.use_bias).then(|| view(self.params.get(&format!("{scope}/bias")))),
        };
        let scale = |name| self.layer.normalize_qk.then(|| view(self.scales.get(name)));
        Params {
            query: dense("query"),
            key: dense("key"),
            value: dense("value"),
            out: dense("out"),
            query_ln: scale("query_ln/scale"),
            key_ln: scale("key_ln/scale"),
        }
    }

    fn inputs(&self) -> Inputs<'_, Host, T> {
        match self.inputs.as_slice() {
            [q, k, v] => Inputs::cross_attention(view(q), view(k), view(v)),
            inputs => Inputs::self_attention(view(&inputs[0])),
        }
    }

    /// An output that holds NaN.
    fn untouched(&self) -> Tensor {
        let shape = self.plan.output().expect("three axes");
        let count = shape.elements().expect("a small array");
        Tensor::from_f64s(T::SCALAR, &shape, (0..count).map(|_| f64::NAN)).expect("its shape")
    }

    fn apply<B: Kernels<T, Storage = Host, Error = Error>>(
        &self,
        backend: &B,
        params: &Params<'_, Host, T>,
        out: &mut Tensor,
    ) -> Result<()> {
        let mut scratch = OwnedScratch::new(&self.plan.scratch::<T, _>(backend))?;
        let (out, mut scratch) = (view_mut(out), scratch.borrow());
        let inputs = self.inputs();
        (self.layer).apply(backend, &self.plan, params, inputs, out, &mut scratch)
    }

    /// Decodes the tokens of the first input, so many in each call: every output, then the cache.
    fn decode<B: Kernels<T, Storage = Host, Error = Error>>(
        &self,
        backend: &B,
        params: &Params<'_, Host, T>,
        counts: &[usize],
    ) -> Result<Vec<Tensor>> {
        const SLOTS: usize = 9;
        let x: HostView<'_, T> = view(&self.inputs[0]);
        let (features, strides) = (x.shape()[2], x.layout().strides());
        let cached = [2, SLOTS, self.sizes.num_kv_heads, self.sizes.head_dim];
        let mut cached_key = Tensor::zeros(T::SCALAR, &cached)?;
        let mut cached_value = cached_key.clone();
        let (mut outputs, mut first) = (Vec::new(), 0);
        for &count in counts {
            let shape = Dims::new(&[2, count, features])?;
            let tokens = Layout::strided(first * strides[1], shape, strides)?;
            let inputs = Inputs::self_attention(HostView::with_layout(x.buf(), tokens)?);
            let plan = self.layer.plan(&shape, &shape, &shape)?;
            let mut scratch = OwnedScratch::new(&plan.decode_scratch::<T, _>(backend, SLOTS))?;
            let mut out = Tensor::zeros(T::SCALAR, &plan.output()?)?;
            let mut cache = DecodeCache {
                cached_key: view_mut(&mut cached_key),
                cached_value: view_mut(&mut cached_value),
                cache_index: first,
                on_full: OnFull::Error,
            };
            let (to, mut scratch) = (view_mut(&mut out), scratch.borrow());
            let cache = &mut cache;
            (self.layer).decode(backend, &plan, params, &inputs, cache, to, &mut scratch)?;
            outputs.push(out);
            first += count;
        }
        outputs.extend([cached_key, cached_value]);
        Ok(outputs)
    }
}

/// The bits, so that two NaN are the same and two zeros of different sign are not.
fn bits(tensor: &Tensor) -> (&Dims, &[u8]) {
    (tensor.shape(), tensor.view().bytes())
}

/// Every instruction set of this machine.
fn cpus() -> Vec<Cpu> {
    let cpus = Isa::ALL.into_iter().map(Cpu::with_isa);
    cpus.filter_map(core::result::Result::ok).collect()
}

/// Whether large products of this dtype are left to a crate that sums in its own order, unless they are packed.
fn sums_in_another_order(cpu: &Cpu, dtype: DType) -> bool {
    dtype == DType::F64 && cpu.isa() == Isa::detect()
}

/// Every form of a layer.
fn worlds<T: Element>(lengths: [usize; 2]) -> Vec<World<T>> {
    let mut worlds = Vec::new();
    for use_bias in [true, false] {
        for normalize_qk in [true, false] {
            let forms = [
                (CROSS, &lengths[..]),
                (SELF, &lengths[..1]),
                (SELF.grouped(2), &lengths[..1]),
            ];
            for (sizes, lengths) in forms {
                let mut world = World::new(sizes, lengths);
                (world.layer.use_bias, world.layer.normalize_qk) = (use_bias, normalize_qk);
                worlds.push(world);
            }
        }
    }
    worlds
}

/// `apply` with packed parameters and with plain ones.
fn applies_alike<T, B>(backend: &B, world: &World<T>)
where
    T: Element,
    B: Kernels<T, Storage = Host, Error = Error>,
{
    let packed = PackedParams::new(backend, &world.params()).unwrap();
    let (mut got, mut wanted) = (world.untouched(), world.untouched());
    (world.apply(backend, &packed.borrow().unwrap(), &mut got)).unwrap();
    (world.apply(backend, &world.params(), &mut wanted)).unwrap();
    assert!(wanted.to_vec_f64().iter().all(|x| x.is_finite()));
    let (name, dtype, layer) = (backend.name(), T::DTYPE, &world.layer);
    assert_eq!(bits(&got), bits(&wanted), "{name} {dtype} {layer:?}");
}

fn all_apply_alike<T: Element>()
where
    Cpu: Kernels<T>,
    attn_layers::core::conformance::Reference: Kernels<T>,
{
    for world in worlds::<T>(FEW) {
        applies_alike(&plain(), &world);
        for cpu in cpus() {
            applies_alike(&cpu, &world);
        }
    }
    for world in worlds::<T>(MANY) {
        for cpu in cpus() {
            if !sums_in_another_order(&cpu, T::DTYPE) {
                applies_alike(&cpu, &world);
            }
        }
    }
}

#[test]
fn apply_gives_the_bits_of_plain_parameters() {
    all_apply_alike::<f32>();
    all_apply_alike::<f64>();
    all_apply_alike::<f16>();
    all_apply_alike::<bf16>();
}

/// Decoding fixes the order of sums, in every dtype on every instruction set.
fn all_decode_alike<T: Element>()
where
    Cpu: Kernels<T>,
{
    for world in worlds::<T>([9, 9]) {
        if world.inputs.len() > 1 {
            continue;
        }
        for cpu in cpus() {
            let packed = PackedParams::new(&cpu, &world.params()).unwrap();
            let packed = packed.borrow().unwrap();
            for counts in [&[1; 9][..], &[9], &[4, 1, 2]] {
                let got = world.decode(&cpu, &packed, counts).unwrap();
                let wanted = world.decode(&cpu, &world.params(), counts).unwrap();
                assert_eq!(got.len(), counts.len() + 2);
                for (got, wanted) in got.iter().zip(&wanted) {
                    let (name, dtype) = (cpu.isa(), T::DTYPE);
                    assert_eq!(bits(got), bits(wanted), "{name} {dtype} {counts:?}");
                }
            }
        }
    }
}

#[test]
fn decode_gives_the_bits_of_plain_parameters() {
    all_decode_alike::<f32>();
    all_decode_alike::<f64>();
    all_decode_alike::<f16>();
    all_decode_alike::<bf16>();
}

#[test]
fn biases_that_the_layer_has_not_are_packed_and_not_looked_at() {
    let mut world = World::<f32>::new(CROSS, &FEW);
    let cpu = Cpu::detect();
    let packed = PackedParams::new(&cpu, &world.params()).unwrap();
    world.layer.use_bias = false;
    let (mut got, mut wanted) = (world.untouched(), world.untouched());
    (world.apply(&cpu, &packed.borrow().unwrap(), &mut got)).unwrap();
    (world.apply(&cpu, &world.params(), &mut wanted)).unwrap();
    assert_eq!(bits(&got), bits(&wanted));
}

#[test]
fn the_gradients_of_a_forward_pass_with_packed_parameters_are_those_of_plain_ones_only() {
    let world = World::<f32>::new(SELF, &FEW[..1]);
    let (cpu, plan) = (Cpu::detect(), &world.plan);
    let packed = PackedParams::new(&cpu, &world.params()).unwrap();
    let packed = packed.borrow().unwrap();
    let mut residuals = OwnedResiduals::<f32>::new(&plan.residuals()).unwrap();
    let sizes = plan.backward_scratch::<f32, _>(&cpu);
    let mut scratch = OwnedScratch::<f32>::new(&sizes).unwrap();
    let (mut out, mut wanted) = (world.untouched(), world.untouched());
    world
        .layer
        .forward(
            &cpu,
            plan,
            &packed,
            world.inputs(),
            view_mut(&mut out),
            &mut residuals.borrow(),
            &mut scratch.borrow(),
        )
        .unwrap();
    world.apply(&cpu, &world.params(), &mut wanted).unwrap();
    assert_eq!(bits(&out), bits(&wanted));

    let untouched = Numbers(3).tensor(f32::SCALAR, world.inputs[0].shape(), 100.0);
    let mut run = |params: &Params<'_, Host, f32>| {
        let mut d_x = untouched.clone();
        let none = || DenseGradientBuffers {
            kernel: None,
            bias: None,
        };
        let mut gradients = GradientBuffers {
            inputs: InputGradients::SelfAttention {
                x: view_mut(&mut d_x),
            },
            query: none(),
            key: none(),
            value: none(),
            out: none(),
            query_ln: None,
            key_ln: None,
        };
        let result = world.layer.backward(
            &cpu,
            plan,
            params,
            &world.inputs(),
            &residuals.borrow(),
            view(&wanted),
            &mut gradients,
            &mut scratch.borrow(),
        );
        (result, d_x)
    };
    let (refused, d_x) = run(&packed);
    assert!(is_unsupported(&refused), "{refused:?}");
    assert_eq!(bits(&d_x), bits(&untouched));
    let (done, d_x) = run(&world.params());
    done.unwrap();
    assert_ne!(bits(&d_x), bits(&untouched));
}

fn is_unsupported<R>(result: &Result<R>) -> bool {
    matches!(result, Err(Error::Unsupported { .. }))
}

#[test]
fn what_is_packed_is_not_packed_again() {
    let (world, cpu) = (World::<f16>::new(CROSS, &FEW), Cpu::detect());
    let packed = PackedParams::new(&cpu, &world.params()).unwrap();
    let twice = PackedParams::new(&cpu, &packed.borrow().unwrap());
    assert!(is_unsupported(&twice), "{twice:?}");
    // Nor is a single dense layer of it.
    let mut mixed = world.params();
    let borrowed = packed.borrow().unwrap();
    mixed.out = borrowed.out;
    let twice = PackedParams::new(&cpu, &mixed);
    assert!(is_unsupported(&twice), "{twice:?}");
}

#[test]
fn a_layer_takes_some_kernels_packed_and_some_plain() {
    let world = World::<f32>::new(SELF, &FEW[..1]);
    let cpu = Cpu::detect();
    let packed = PackedParams::new(&cpu, &world.params()).unwrap();
    let mut mixed = packed.borrow().unwrap();
    mixed.key = world.params().key;
    let (mut got, mut wanted) = (world.untouched(), world.untouched());
    world.apply(&cpu, &mixed, &mut got).unwrap();
    world.apply(&cpu, &world.params(), &mut wanted).unwrap();
    assert_eq!(bits(&got), bits(&wanted));
}

/// What was packed for another instruction set is refused before anything is written.
fn other_instruction_sets_are_refused<T: Element>()
where
    Cpu: Kernels<T>,
{
    let world = World::<T>::new(CROSS, &FEW);
    let Sizes {
        features: [features, ..],
        num_heads,
        head_dim,
        ..
    } = world.sizes;
    let panel = |cpu: &Cpu| {
        let packing = cpu.packing(features, num_heads * head_dim);
        packing.expect("every instruction set packs").panel
    };
    for packer in cpus() {
        let packed = PackedParams::new(&packer, &world.params()).unwrap();
        let packed = packed.borrow().unwrap();
        for reader in cpus() {
            let mut out = world.untouched();
            let result = world.apply(&reader, &packed, &mut out);
            let what = format!("{} {} reads {}'s", T::DTYPE, reader.isa(), packer.isa());
            if panel(&packer) == panel(&reader) {
                result.expect(&what);
            } else {
                assert!(is_unsupported(&result), "{what}: {result:?}");
                assert_eq!(bits(&out), bits(&world.untouched()), "{what}");
            }
        }
    }
}

#[test]
fn parameters_packed_for_another_instruction_set_are_refused() {
    other_instruction_sets_are_refused::<f32>();
    other_instruction_sets_are_refused::<f64>();
    other_instruction_sets_are_refused::<f16>();
    other_instruction_sets_are_refused::<bf16>();
    // There is something to refuse wherever there are wider vectors than the portable ones.
    let (portable, best) = (Cpu::portable(), Cpu::detect());
    let panel = |cpu: &Cpu| Kernels::<f32>::packing(cpu, 8, 8).unwrap().panel;
    let wide = matches!(best.isa(), Isa::Avx2 | Isa::Avx512);
    assert!(!wide || panel(&best) > panel(&portable));
}

#[test]
fn packed_parameters_of_another_layer_are_named() {
    let (world, cpu) = (World::<f32>::new(SELF, &FEW[..1]), Cpu::detect());
    let packed = PackedParams::new(&cpu, &world.params()).unwrap();
    let other = World::<f32>::new(
        Sizes {
            out_features: 40,
            ..SELF
        },
        &FEW[..1],
    );
    let mut out = other.untouched();
    let result = other.apply(&cpu, &packed.borrow().unwrap(), &mut out);
    let wrong = |error| {
        matches!(
            error,
            Error::ParamShape {
                scope: "out",
                name: "kernel",
                ..
            }
        )
    };
    assert!(result.is_err_and(wrong));

    let mut without = World::<f32>::new(SELF, &FEW[..1]);
    without.layer.use_bias = false;
    let packed = PackedParams::new(&cpu, &without.params()).unwrap();
    let mut out = world.untouched();
    let result = world.apply(&cpu, &packed.borrow().unwrap(), &mut out);
    let missing = Error::ParamMissing {
        scope: "query",
        name: "bias",
    };
    assert_eq!(result.unwrap_err(), missing);
}
