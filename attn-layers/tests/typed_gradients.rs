//! The typed layer's gradients: the bits of Flax's layer, into the caller's buffers, without an allocation.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::{Causal, Dropout, Element, Host, Kernels, Mask, Scalar};
use attn_layers::cpu::Cpu;
use attn_layers::random::{Convention, Key};
use attn_layers::tensor::Tensor;
use attn_layers::{
    AnyGradientBuffers, AnyInputs, AnyMultiHeadDotProductAttention, AnyParams, AnyResidualBuffers,
    AnyScratch, Call, Dense, DenseGradientBuffers, Error, GradientBuffers, Gradients, HostKernels,
    HostView, HostViewMut, InputGradients, Inputs, MultiHeadDotProductAttention,
    MultiHeadDotProductAttentionOf, OwnedResiduals, OwnedScratch, Pairing, ParamSource, Params,
    Plan, Result, Rotary, RotaryScaling, ScalarType, bf16, f16,
};
use core::alloc::{GlobalAlloc, Layout};
use core::cell::Cell;
use std::alloc::System;
use support::{Numbers, Parameters, Sizes, plain};

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts what a thread asks for.
struct Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that is ending has no counter any more.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CROSS: Sizes = Sizes {
    features: [7, 5, 6],
    num_heads: 3,
    num_kv_heads: 3,
    head_dim: 4,
    out_features: 9,
};

/// Which of the inputs are the same array.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    SelfAttention,
    KeyValue,
    Separate,
}

struct World<T: Element> {
    form: Form,
    layer: MultiHeadDotProductAttentionOf<T>,
    params: Parameters,
    scales: Parameters,
    inputs: [Tensor; 3],
    mask: Vec<u8>,
    d_out: Tensor,
    plan: Plan,
}

fn view<T: Scalar>(tensor: &Tensor) -> HostView<'_, T> {
    HostView::new(tensor.as_slice().expect("of this type"), tensor.shape()).expect("its shape")
}

fn view_mut<T: Scalar>(tensor: &mut Tensor) -> HostViewMut<'_, T> {
    let shape = *tensor.shape();
    HostViewMut::new(tensor.as_mut_slice().expect("of this type"), &shape).expect("its shape")
}

impl<T: Element> World<T> {
    fn new(form: Form, normalize_qk: bool) -> Self {
        Self::of(CROSS, form, normalize_qk)
    }

    fn of(mut sizes: Sizes, form: Form, normalize_qk: bool) -> Self {
        let mut numbers = Numbers(21);
        let lengths = match form {
            Form::SelfAttention => {
                sizes.features = [7; 3];
                [5, 5, 5]
            }
            Form::KeyValue => {
                sizes.features[2] = sizes.features[1];
                [4, 5, 5]
            }
            Form::Separate => [4, 5, 5],
        };
        let params = Parameters::new(&mut numbers, &sizes, T::DTYPE);
        let mut inputs =
            [0, 1, 2].map(|n| numbers.tensor(T::SCALAR, &[2, lengths[n], sizes.features[n]], 2.0));
        match form {
            Form::SelfAttention => {
                inputs[1] = inputs[0].clone();
                inputs[2] = inputs[0].clone();
            }
            Form::KeyValue => inputs[2] = inputs[1].clone(),
            Form::Separate => {}
        }
        let layer = MultiHeadDotProductAttentionOf {
            num_kv_heads: sizes.num_kv_heads(),
            qkv_features: Some(sizes.num_heads * sizes.head_dim),
            out_features: Some(sizes.out_features),
            normalize_qk,
            ..MultiHeadDotProductAttentionOf::new(sizes.num_heads)
        };
        let [q, k, v] = &inputs;
        let plan = layer.plan(q.shape(), k.shape(), v.shape()).expect("a plan");
        let mask = numbers.tensor(ScalarType::Bool, &[lengths[0], 5], 1.0);
        Self {
            form,
            scales: params.cast(<T::Acc as Scalar>::SCALAR),
            d_out: numbers.tensor(T::SCALAR, &plan.output().expect("three axes"), 1.0),
            params,
            inputs,
            mask: mask.view().bytes().to_vec(),
            layer,
            plan,
        }
    }

    fn inputs(&self) -> Inputs<'_, Host, T> {
        let [q, k, v] = &self.inputs;
        let mask = HostView::new(&self.mask, &[q.shape()[1], 5]).expect("its shape");
        let key = Key::from_words([1, 2]);
        let dropout = Dropout::new(key, 0.2, T::DTYPE, false, Convention::default());
        Inputs::cross_attention(view(q), view(k), view(v))
            .with_mask(Some(Mask::keep(mask)))
            .with_dropout(dropout.expect("a probability"))
    }

    fn params(&self) -> Params<'_, Host, T> {
        let dense = |scope: &str| Dense {
            kernel: view(self.params.get(&format!("{scope}/kernel"))).into(),
            bias: Some(view(self.params.get(&format!("{scope}/bias")))),
        };
        Params {
            query: dense("query"),
            key: dense("key"),
            value: dense("value"),
            out: dense("out"),
            query_ln: Some(view(self.scales.get("query_ln/scale"))),
            key_ln: Some(view(self.scales.get("key_ln/scale"))),
        }
    }

    /// Flax's layer on the same arrays.
    fn wanted<B: HostKernels>(&self, backend: &B) -> (Tensor, Gradients) {
        let flax = MultiHeadDotProductAttention {
            num_kv_heads: self.layer.num_kv_heads,
            qkv_features: self.layer.qkv_features,
            out_features: self.layer.out_features,
            use_bias: self.layer.use_bias,
            normalize_qk: self.layer.normalize_qk,
            rotary: self.layer.rotary,
            dropout_rate: 0.2,
            broadcast_dropout: false,
            deterministic: Some(false),
            dtype: Some(T::SCALAR),
            ..MultiHeadDotProductAttention::new(self.layer.num_heads)
        };
        let [q, k, v] = &self.inputs;
        let mask = Tensor::from_slice(&self.mask, &[q.shape()[1], 5]).expect("its shape");
        let given = |form| (self.form == form).then_some(());
        let call = Call::new(q.view())
            .with_inputs_k(given(Form::Separate).map(|()| k.view()))
            .with_inputs_v(given(Form::Separate).map(|()| v.view()))
            .with_inputs_kv(given(Form::KeyValue).map(|()| k.view()))
            .with_mask(Some(mask.view()))
            .with_dropout_rng(Some([1, 2]));
        // The scales of the layer norms stay in the accumulator's type.
        let mut params = self.params.clone();
        for name in ["query_ln/scale", "key_ln/scale"] {
            params.set(name, self.scales.get(name).clone());
        }
        let source = params.source();
        let (output, residuals) = flax.forward(backend, &source, call).expect("a right call");
        let gradients = flax.backward(backend, &residuals, self.d_out.view());
        (output.out, gradients.expect("a right gradient"))
    }
}

/// Arrays of the caller's for every gradient.
struct Buffers {
    inputs: Vec<Tensor>,
    params: Vec<(&'static str, Tensor)>,
    form: Form,
    use_bias: bool,
    normalize_qk: bool,
}

impl Buffers {
    fn new<T: Element>(world: &World<T>) -> Self {
        // What is there is overwritten, not added to.
        let like = |x: &Tensor| Numbers(3).tensor(x.scalar(), x.shape(), 100.0);
        let count = match world.form {
            Form::SelfAttention => 1,
            Form::KeyValue => 2,
            Form::Separate => 3,
        };
        let scale = |name: &str| name.ends_with("scale");
        let params = world.params.0.iter().zip(&world.scales.0);
        Self {
            inputs: world.inputs[..count].iter().map(like).collect(),
            params: params
                .map(|((name, x), (_, wide))| (*name, like(if scale(name) { wide } else { x })))
                .collect(),
            form: world.form,
            use_bias: world.layer.use_bias,
            normalize_qk: world.layer.normalize_qk,
        }
    }

    fn borrow<T: Element>(&mut self) -> GradientBuffers<'_, Host, T> {
        let inputs = match (self.form, self.inputs.as_mut_slice()) {
            (Form::SelfAttention, [x]) => InputGradients::SelfAttention { x: view_mut(x) },
            (Form::KeyValue, [q, kv]) => InputGradients::KeyValue {
                q: view_mut(q),
                kv: view_mut(kv),
            },
            (_, [q, k, v]) => InputGradients::Separate {
                q: view_mut(q),
                k: view_mut(k),
                v: view_mut(v),
            },
            _ => unreachable!("as many as the form has"),
        };
        let [qk, qb, kk, kb, vk, vb, q_ln, k_ln, ok, ob] = self.params.as_mut_slice() else {
            unreachable!("as many as a layer has")
        };
        let use_bias = self.use_bias;
        let dense = |kernel, bias| DenseGradientBuffers {
            kernel: Some(kernel),
            bias: Some(bias).filter(|_| use_bias),
        };
        GradientBuffers {
            inputs,
            query: dense(view_mut(&mut qk.1), view_mut(&mut qb.1)),
            key: dense(view_mut(&mut kk.1), view_mut(&mut kb.1)),
            value: dense(view_mut(&mut vk.1), view_mut(&mut vb.1)),
            out: dense(view_mut(&mut ok.1), view_mut(&mut ob.1)),
            query_ln: self.normalize_qk.then(|| view_mut(&mut q_ln.1)),
            key_ln: self.normalize_qk.then(|| view_mut(&mut k_ln.1)),
        }
    }
}

fn agrees<T: Element, B: HostKernels + Kernels<T>>(backend: &B, form: Form, normalize_qk: bool) {
    for sizes in [CROSS, CROSS.grouped(2)] {
        let mut world = World::<T>::of(sizes, form, normalize_qk);
        world_agrees(backend, &world);
        world.layer.rotary = Some(Rotary {
            pairing: Pairing::Interleaved,
            rotary_dim: Some(2),
            scaling: RotaryScaling::yarn(2.0, 16),
            ..Rotary::new()
        });
        world_agrees(backend, &world);
    }
}

fn world_agrees<T: Element, B: HostKernels + Kernels<T>>(backend: &B, world: &World<T>) {
    let (form, layer) = (world.form, &world.layer);
    let what = format!("{form:?} {layer:?}");
    let (wanted, gradients) = world.wanted(backend);
    let (plan, params) = (&world.plan, world.params());
    let mut residuals = OwnedResiduals::<T>::new(&plan.residuals()).unwrap();
    let mut scratch = OwnedScratch::<T>::new(&plan.forward_scratch::<T, _>(backend)).unwrap();
    let mut out = Tensor::zeros(T::SCALAR, wanted.shape()).unwrap();
    let (inputs, to) = (world.inputs(), view_mut(&mut out));
    world
        .layer
        .forward(
            backend,
            plan,
            &params,
            inputs,
            to,
            &mut residuals.borrow(),
            &mut scratch.borrow(),
        )
        .expect(&what);
    assert_eq!(out, wanted, "{what}");

    let mut scratch = OwnedScratch::<T>::new(&plan.backward_scratch::<T, _>(backend)).unwrap();
    let mut buffers = Buffers::new(world);
    world
        .layer
        .backward(
            backend,
            plan,
            &params,
            &world.inputs(),
            &residuals.borrow(),
            view(&world.d_out),
            &mut buffers.borrow(),
            &mut scratch.borrow(),
        )
        .expect(&what);
    let Gradients {
        d_inputs_q,
        d_inputs_k,
        d_inputs_v,
        d_inputs_kv,
        ..
    } = &gradients;
    let others = [d_inputs_k, d_inputs_v, d_inputs_kv];
    let inputs = d_inputs_q.iter().chain(others.into_iter().flatten());
    assert!(buffers.inputs.iter().eq(inputs), "{what}");
    for (path, gradient) in &buffers.params {
        let (scope, name) = path.split_once('/').expect("a path");
        match gradients.params.tensor(scope, name) {
            Some(wanted) => assert_eq!(gradient.view(), wanted, "{what} {path}"),
            None if name == "scale" => assert!(!layer.normalize_qk, "{what}"),
            None => assert!(!layer.use_bias && name == "bias", "{what} {path}"),
        }
    }
}

#[test]
fn the_typed_layer_gives_the_bits_of_flaxs_layer() {
    for form in [Form::SelfAttention, Form::KeyValue, Form::Separate] {
        for normalize_qk in [false, true] {
            agrees::<f32, _>(&Cpu::detect(), form, normalize_qk);
            agrees::<f64, _>(&Cpu::detect(), form, normalize_qk);
            agrees::<f16, _>(&Cpu::detect(), form, normalize_qk);
            agrees::<bf16, _>(&Cpu::detect(), form, normalize_qk);
            agrees::<f32, _>(&plain(), form, normalize_qk);
        }
    }
}

/// Both passes with what a test changes; the gradients of the inputs.
fn run(
    world: &World<f32>,
    sizes: impl FnOnce(&mut attn_layers::ScratchSizes),
    gradients: impl for<'g> FnOnce(&mut GradientBuffers<'g, Host, f32>),
) -> Result<Buffers> {
    let cpu = Cpu::detect();
    let (plan, params) = (&world.plan, world.params());
    let mut residuals = OwnedResiduals::new(&plan.residuals())?;
    let mut needed = plan.backward_scratch::<f32, _>(&cpu);
    let mut scratch = OwnedScratch::new(&needed)?;
    let mut out = Tensor::zeros(ScalarType::F32, world.d_out.shape())?;
    world.layer.forward(
        &cpu,
        plan,
        &params,
        world.inputs(),
        view_mut(&mut out),
        &mut residuals.borrow(),
        &mut scratch.borrow(),
    )?;
    sizes(&mut needed);
    let mut scratch = OwnedScratch::new(&needed)?;
    let mut buffers = Buffers::new(world);
    let mut borrowed = buffers.borrow();
    gradients(&mut borrowed);
    world.layer.backward(
        &cpu,
        plan,
        &params,
        &world.inputs(),
        &residuals.borrow(),
        view(&world.d_out),
        &mut borrowed,
        &mut scratch.borrow(),
    )?;
    Ok(buffers)
}

#[test]
fn gradients_that_are_not_wanted_change_no_others() {
    let world = World::<f32>::new(Form::Separate, true);
    let all = run(&world, |_| (), |_| ()).unwrap();
    let some = run(
        &world,
        |_| (),
        |gradients| {
            gradients.inputs = InputGradients::NotWanted;
            gradients.query.kernel = None;
            gradients.key.bias = None;
            gradients.query_ln = None;
        },
    )
    .unwrap();
    let untouched = Buffers::new(&world);
    assert_eq!(some.inputs, untouched.inputs);
    for (index, (name, gradient)) in some.params.iter().enumerate() {
        let left_out = ["query/kernel", "key/bias", "query_ln/scale"].contains(name);
        let wanted = if left_out { &untouched } else { &all };
        assert_eq!(*gradient, wanted.params[index].1, "{name}");
    }
}

#[test]
fn mistakes_are_named() {
    let world = World::<f32>::new(Form::Separate, true);
    for short in [0, 1, 2, 3] {
        let result = run(
            &world,
            |sizes| {
                let all = [&mut sizes.q, &mut sizes.k, &mut sizes.v, &mut sizes.context];
                *all.into_iter().nth(short).expect("four") -= 1;
            },
            |_| (),
        );
        assert!(
            matches!(result.err(), Some(Error::Scratch { .. })),
            "{short}"
        );
    }
    let result = run(
        &world,
        |_| (),
        |gradients| {
            // The query's bias where the key's kernel goes.
            gradients.key.kernel = gradients.query.bias.take();
        },
    );
    assert!(matches!(
        result.err(),
        Some(Error::Shape {
            argument: "d_kernel",
            ..
        })
    ));
    // Self-attention of arrays that are not one.
    let mut x = Tensor::zeros(ScalarType::F32, &[2, 4, 7]).unwrap();
    let mut buffers = Buffers::new(&world);
    let mut gradients = buffers.borrow::<f32>();
    gradients.inputs = InputGradients::SelfAttention {
        x: view_mut(&mut x),
    };
    let cpu = Cpu::detect();
    let mut residuals = OwnedResiduals::new(&world.plan.residuals()).unwrap();
    let sizes = world.plan.backward_scratch::<f32, _>(&cpu);
    let result = world.layer.backward(
        &cpu,
        &world.plan,
        &world.params(),
        &world.inputs(),
        &residuals.borrow(),
        view(&world.d_out),
        &mut gradients,
        &mut OwnedScratch::new(&sizes).unwrap().borrow(),
    );
    assert!(matches!(
        result,
        Err(Error::Shape {
            argument: "d_inputs_k",
            ..
        })
    ));
}

#[test]
fn parameters_that_the_layer_has_not_are_not_looked_at() {
    let mut world = World::<f32>::new(Form::SelfAttention, false);
    world.layer.use_bias = false;
    assert!(world.params().out.bias.is_some() && world.params().query_ln.is_some());
    world_agrees(&Cpu::detect(), &world);
}

#[test]
fn gradients_of_parameters_that_the_layer_has_not_are_refused_before_anything_is_written() {
    type Change = fn(&mut GradientBuffers<'_, Host, f32>);
    let cases: [(&str, &str, Change); 6] = [
        ("query.bias", "use_bias", |_| ()),
        ("key.bias", "use_bias", |given| given.query.bias = None),
        ("value.bias", "use_bias", |given| {
            (given.query.bias, given.key.bias) = (None, None);
        }),
        ("query_ln", "normalize_qk", without_input_biases),
        ("key_ln", "normalize_qk", |given| {
            without_input_biases(given);
            given.query_ln = None;
        }),
        ("out.bias", "use_bias", |given| {
            without_input_biases(given);
            (given.query_ln, given.key_ln) = (None, None);
        }),
    ];
    let mut world = World::<f32>::new(Form::Separate, false);
    world.layer.use_bias = false;
    let cpu = Cpu::detect();
    let sizes = world.plan.backward_scratch::<f32, _>(&cpu);
    for (left, right, change) in cases {
        let mut buffers = Buffers::new(&world);
        (buffers.use_bias, buffers.normalize_qk) = (true, true);
        let mut given = buffers.borrow();
        change(&mut given);
        let result = world.layer.backward(
            &cpu,
            &world.plan,
            &world.params(),
            &world.inputs(),
            &OwnedResiduals::new(&world.plan.residuals())
                .unwrap()
                .borrow(),
            view(&world.d_out),
            &mut given,
            &mut OwnedScratch::new(&sizes).unwrap().borrow(),
        );
        assert_eq!(result, Err(Error::Together { left, right }));
        let untouched = Buffers::new(&world);
        assert_eq!(buffers.inputs, untouched.inputs, "{left}");
        assert_eq!(buffers.params, untouched.params, "{left}");
    }
}

fn without_input_biases(gradients: &mut GradientBuffers<'_, Host, f32>) {
    for dense in [
        &mut gradients.query,
        &mut gradients.key,
        &mut gradients.value,
    ] {
        dense.bias = None;
    }
}

#[test]
fn a_causal_mask_without_a_tensor_has_gradients() {
    let world = World::<f64>::new(Form::SelfAttention, false);
    let bytes: Vec<u8> = (0..25).map(|n| u8::from(n % 5 <= n / 5)).collect();
    let tensor = Mask::keep(HostView::new(&bytes, &[5, 5]).expect("its shape"));
    let with = |causal: Option<Causal>, mask: Option<Mask<'_, Host>>| {
        let inputs = || {
            let plain = world.inputs().with_dropout(None);
            plain.with_causal(causal).with_mask(mask)
        };
        let cpu = Cpu::detect();
        let (plan, params) = (&world.plan, world.params());
        let mut residuals = OwnedResiduals::new(&plan.residuals()).unwrap();
        let sizes = plan.backward_scratch::<f64, _>(&cpu);
        let mut scratch = OwnedScratch::new(&sizes).unwrap();
        let mut out = Tensor::zeros(ScalarType::F64, world.d_out.shape()).unwrap();
        let to = view_mut(&mut out);
        let mut kept = residuals.borrow();
        let layer = &world.layer;
        layer
            .forward(
                &cpu,
                plan,
                &params,
                inputs(),
                to,
                &mut kept,
                &mut scratch.borrow(),
            )
            .unwrap();
        let mut buffers = Buffers::new(&world);
        layer
            .backward(
                &cpu,
                plan,
                &params,
                &inputs(),
                &kept,
                view(&world.d_out),
                &mut buffers.borrow(),
                &mut scratch.borrow(),
            )
            .unwrap();
        buffers
    };
    let causal = with(Some(Causal::top_left()), None);
    let masked = with(None, Some(tensor));
    assert_eq!(causal.inputs, masked.inputs);
    // The scales have no gradient without layer norms.
    assert_eq!(causal.params, masked.params);
}

#[test]
fn a_dtype_known_at_run_time_dispatches() {
    let world = World::<f32>::new(Form::Separate, true);
    let wanted = run(&world, |_| (), |_| ()).unwrap();
    let cpu = Cpu::detect();
    let any: AnyMultiHeadDotProductAttention = world.layer.clone().into();
    let params: AnyParams<'_, Host> = world.params().into();
    let mut owned = OwnedResiduals::<f32>::new(&world.plan.residuals()).unwrap();
    let mut residuals: AnyResidualBuffers<'_, Host> = owned.borrow().into();
    let sizes = world.plan.backward_scratch::<f32, _>(&cpu);
    let mut scratch = OwnedScratch::<f32>::new(&sizes).unwrap();
    let mut scratch: AnyScratch<'_, Host> = scratch.borrow().into();
    let mut out = Tensor::zeros(ScalarType::F32, world.d_out.shape()).unwrap();
    let to = view_mut::<f32>(&mut out);
    let inputs: AnyInputs<'_, Host> = world.inputs().into();
    any.forward(
        &cpu,
        &world.plan,
        &params,
        inputs,
        to.into(),
        &mut residuals,
        &mut scratch,
    )
    .unwrap();
    let mut buffers = Buffers::new(&world);
    let mut gradients: AnyGradientBuffers<'_, Host> = buffers.borrow::<f32>().into();
    let inputs: AnyInputs<'_, Host> = world.inputs().into();
    any.backward(
        &cpu,
        &world.plan,
        &params,
        &inputs,
        &residuals,
        view::<f32>(&world.d_out).into(),
        &mut gradients,
        &mut scratch,
    )
    .unwrap();
    assert_eq!(buffers.inputs, wanted.inputs);
    assert_eq!(buffers.params, wanted.params);
}

#[test]
fn nothing_is_allocated() {
    fn both<T: Element>()
    where
        Cpu: Kernels<T>,
    {
        let world = World::<T>::new(Form::SelfAttention, true);
        let cpu = Cpu::detect();
        let (plan, params) = (&world.plan, world.params());
        let mut residuals = OwnedResiduals::<T>::new(&plan.residuals()).unwrap();
        let sizes = plan.backward_scratch::<T, _>(&cpu);
        let mut scratch = OwnedScratch::<T>::new(&sizes).unwrap();
        let mut out = Tensor::zeros(T::SCALAR, world.d_out.shape()).unwrap();
        let mut buffers = Buffers::new(&world);
        let before = ALLOCATIONS.with(Cell::get);
        let mut kept = residuals.borrow();
        let to = view_mut(&mut out);
        let layer = &world.layer;
        layer
            .forward(
                &cpu,
                plan,
                &params,
                world.inputs(),
                to,
                &mut kept,
                &mut scratch.borrow(),
            )
            .unwrap();
        layer
            .backward(
                &cpu,
                plan,
                &params,
                &world.inputs(),
                &kept,
                view(&world.d_out),
                &mut buffers.borrow(),
                &mut scratch.borrow(),
            )
            .unwrap();
        assert_eq!(ALLOCATIONS.with(Cell::get), before, "{}", T::DTYPE);
    }
    both::<f32>();
    both::<f64>();
    both::<f16>();
    both::<bf16>();
}
