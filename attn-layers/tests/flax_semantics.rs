//! What Flax's layer computes and in which dtypes, held against exact arithmetic.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    Call, DType, DotProductAttention, Error, MultiHeadAttention, MultiHeadDotProductAttention,
    Output, Result, ScalarType, SelfAttention, SplitHeads, dot_product_attention,
    dot_product_attention_weights, make_attention_mask, make_causal_mask,
};
use support::truth::{Core, Truth, wide};
use support::{Numbers, Parameters, Sizes, assert_close, layer, plain};

const CROSS: Sizes = Sizes {
    features: [7, 5, 6],
    num_heads: 3,
    num_kv_heads: 3,
    head_dim: 4,
    out_features: 9,
};

/// Inputs, parameters and layer of one comparison.
struct World {
    layer: MultiHeadDotProductAttention<'static>,
    sizes: Sizes,
    params: Parameters,
    inputs: [Tensor; 3],
    mask: Option<Tensor>,
}

impl World {
    fn new(seed: u64, sizes: Sizes, dtype: DType, batch: &[usize], lengths: [usize; 2]) -> Self {
        let mut numbers = Numbers(seed);
        let params = Parameters::new(&mut numbers, &sizes, dtype);
        let lengths = [lengths[0], lengths[1], lengths[1]];
        let inputs = [0, 1, 2].map(|n| {
            let shape = [batch, &[lengths[n], sizes.features[n]]].concat();
            numbers.tensor(dtype.scalar(), &shape, 2.0)
        });
        Self {
            layer: layer(&sizes),
            sizes,
            params,
            inputs,
            mask: None,
        }
    }

    fn run_on<B: attn_layers::HostKernels>(&self, backend: &B) -> Result<Output> {
        let [q, k, v] = &self.inputs;
        let call = Call::new(q.view())
            .with_inputs_k(Some(k.view()))
            .with_inputs_v(Some(v.view()))
            .with_mask(self.mask.as_ref().map(Tensor::view))
            .with_sow_weights(true);
        self.layer.apply(backend, &self.params.source(), call)
    }

    /// Output and weights against exact arithmetic, on every instruction set of this machine.
    fn holds(&self, what: &str, sees: &dyn Fn(usize, usize, usize, usize) -> bool) {
        let truth = Truth {
            params: &self.params,
            num_heads: self.sizes.num_heads,
            head_dim: self.sizes.head_dim,
            use_bias: self.layer.use_bias,
            normalize_qk: self.layer.normalize_qk,
            sees,
        };
        let [q, k, v] = &self.inputs;
        let (out, weights) = truth.of(q, k, v);
        let plain = self.run_on(&plain()).expect(what);
        for cpu in [Cpu::portable(), Cpu::detect()] {
            let got = self.run_on(&cpu).expect(what);
            assert_close(what, &got.out, &plain.out, &out);
            let sown = |output: &Output| output.attention_weights.clone().expect("asked for");
            assert_close(what, &sown(&got), &sown(&plain), &weights);
        }
    }
}

fn everything(_: usize, _: usize, _: usize, _: usize) -> bool {
    true
}

#[test]
fn cross_attention_is_right_in_every_dtype_and_batch_rank() {
    for dtype in DType::ALL {
        for batch in [&[][..], &[2], &[2, 3], &[1, 2, 2]] {
            let world = World::new(1, CROSS, dtype, batch, [11, 13]);
            world.holds(&format!("{dtype} {batch:?}"), &everything);
        }
    }
}

#[test]
fn options_are_right_in_every_dtype() {
    for dtype in DType::ALL {
        let mut world = World::new(2, CROSS, dtype, &[2], [17, 9]);
        world.layer.use_bias = false;
        world.holds(&format!("{dtype} without bias"), &everything);
        world.layer.use_bias = true;
        world.layer.normalize_qk = true;
        world.holds(&format!("{dtype} normalize_qk"), &everything);
    }
}

#[test]
fn forced_float32_softmax_is_right_in_16_bits() {
    for dtype in [DType::F16, DType::BF16] {
        let mut world = World::new(3, CROSS, dtype, &[2], [8, 9]);
        world.layer.force_fp32_for_softmax = true;
        world.layer.dtype = Some(dtype.scalar());
        // The core is float32's; `out` brings the layer's own dtype back.
        let output = world.run_on(&Cpu::detect()).unwrap();
        assert_eq!(output.out.scalar(), dtype.scalar());
        assert_eq!(
            output.attention_weights.as_ref().unwrap().scalar(),
            ScalarType::F32
        );
        world.holds(&format!("{dtype} forced"), &everything);
    }
}

#[test]
fn a_fully_masked_query_gets_the_mean_of_all_values() {
    for dtype in DType::ALL {
        let mut world = World::new(4, CROSS, dtype, &[2], [5, 6]);
        // Batch entry 1 sees nothing, entry 0 only the first keys.
        let sees = |b: usize, _: usize, q: usize, k: usize| b == 0 && k <= q;
        let mask = (0..2 * 5 * 6).map(|n| f64::from(u8::from(sees(n / 30, 0, n / 6 % 5, n % 6))));
        world.mask = Some(Tensor::from_f64s(ScalarType::Bool, &[2, 1, 5, 6], mask).unwrap());
        world.holds(&format!("{dtype} masked"), &sees);
    }
}

#[test]
fn a_mask_of_any_type_and_rank_means_what_its_truth_values_mean() {
    let mut world = World::new(5, CROSS, DType::F32, &[2], [4, 5]);
    let mut numbers = Numbers(6);
    for shape in [
        &[5][..],
        &[4, 5],
        &[1, 5],
        &[4, 1],
        &[3, 4, 5],
        &[2, 3, 4, 5],
        &[2, 1, 1, 5],
        &[],
    ] {
        let bool_mask = numbers.tensor(ScalarType::Bool, shape, 1.0);
        world.mask = Some(bool_mask.clone());
        let wanted = world.run_on(&Cpu::detect()).unwrap();
        for scalar in ScalarType::ALL {
            world.mask = Some(bool_mask.view().to_scalar(scalar).unwrap());
            assert_eq!(
                world.run_on(&Cpu::detect()).unwrap(),
                wanted,
                "{scalar} {shape:?}"
            );
        }
    }
    // Half, minus one and NaN are not 0.
    let odd = [0.5f32, -1.0, f32::NAN, 0.0, -0.0];
    world.mask = Some(Tensor::from_slice(&odd, &[5]).unwrap());
    let got = world.run_on(&Cpu::detect()).unwrap();
    world.mask = Some(Tensor::from_slice(&[1u8, 1, 1, 0, 0], &[5]).unwrap());
    assert_eq!(got, world.run_on(&Cpu::detect()).unwrap());
}

#[test]
fn lengths_of_zero_work() {
    for dtype in DType::ALL {
        let world = World::new(7, CROSS, dtype, &[2], [3, 0]);
        let output = world.run_on(&Cpu::detect()).unwrap();
        // An empty sum is 0, so the output is the bias of `out`.
        let bias = world.params.get("out/bias").to_vec_f64();
        let wanted = bias.iter().copied().cycle().take(2 * 3 * 9);
        assert!(output.out.to_vec_f64().into_iter().eq(wanted), "{dtype}");
        let world = World::new(7, CROSS, dtype, &[2], [0, 3]);
        let output = world.run_on(&Cpu::detect()).unwrap();
        assert_eq!(output.out.shape().as_slice(), [2, 0, 9]);
        assert_eq!(
            output.attention_weights.unwrap().shape().as_slice(),
            [2, 3, 0, 3]
        );
    }
}

#[test]
fn features_of_zero_work() {
    let sizes = Sizes {
        features: [0; 3],
        num_heads: 2,
        num_kv_heads: 2,
        head_dim: 0,
        out_features: 3,
    };
    let mut world = World::new(8, sizes, DType::F32, &[2], [3, 4]);
    world.layer.qkv_features = None;
    let output = world.run_on(&Cpu::detect()).unwrap();
    let bias = world.params.get("out/bias").to_vec_f64();
    let wanted = bias.iter().copied().cycle().take(2 * 3 * 3);
    assert!(output.out.to_vec_f64().into_iter().eq(wanted));
    // All scores are the empty sum.
    let weights = output.attention_weights.unwrap().to_vec_f64();
    assert!(weights.iter().all(|&weight| weight == 0.25), "{weights:?}");
}

#[test]
fn none_and_zero_features_are_those_of_inputs_q() {
    let sizes = Sizes::of(8, 2);
    let world = World::new(9, sizes, DType::F32, &[], [3, 3]);
    let wanted = world.run_on(&Cpu::detect()).unwrap();
    for given in [None, Some(0)] {
        let mut world = World::new(9, sizes, DType::F32, &[], [3, 3]);
        world.layer.qkv_features = given;
        world.layer.out_features = given;
        assert_eq!(world.run_on(&Cpu::detect()).unwrap(), wanted);
    }
}

#[test]
fn every_way_to_pass_the_inputs_is_the_same_call() {
    let world = World::new(10, Sizes::of(6, 2), DType::F32, &[2], [4, 4]);
    let x = world.inputs[0].view();
    let run = |call| {
        let output = world
            .layer
            .apply(&Cpu::detect(), &world.params.source(), call);
        output.unwrap().out
    };
    let wanted = run(Call::new(x));
    assert_eq!(run(Call::new(x).with_inputs_k(Some(x))), wanted);
    assert_eq!(
        run(Call::new(x).with_inputs_k(Some(x)).with_inputs_v(Some(x))),
        wanted
    );
    assert_eq!(run(Call::new(x).with_inputs_kv(Some(x))), wanted);
    let this = SelfAttention(world.layer.clone());
    let source = world.params.source();
    let same = this.apply(&Cpu::detect(), &source, x, None, None, None, false);
    assert_eq!(same.unwrap().out, wanted);
    let alias: MultiHeadAttention<'_> = world.layer.clone();
    let same = alias.apply(&Cpu::detect(), &source, Call::new(x));
    assert_eq!(same.unwrap().out, wanted);
}

#[test]
fn extra_parameters_are_ignored_and_flat_heads_can_be_split() {
    let mut world = World::new(11, CROSS, DType::F32, &[2], [3, 4]);
    world.layer.use_bias = false;
    let wanted = world.run_on(&Cpu::detect()).unwrap();
    world.params.0.retain(|(name, _)| name.ends_with("kernel"));
    let more = Tensor::from_slice(&[0.0f32], &[1]).unwrap();
    world.params.0.push(("dense/kernel", more));
    assert_eq!(world.run_on(&Cpu::detect()).unwrap(), wanted);

    let mut flat = Parameters::new(&mut Numbers(11), &CROSS, DType::F32);
    let [q, k, v] = &world.inputs;
    let call = || {
        Call::new(q.view())
            .with_inputs_k(Some(k.view()))
            .with_inputs_v(Some(v.view()))
    };
    world.layer.use_bias = true;
    let wanted = world
        .layer
        .apply(&Cpu::detect(), &flat.source(), call())
        .unwrap();
    for (name, tensor) in &mut flat.0 {
        let shape = tensor.shape().to_vec();
        let flattened = match (*name, shape.as_slice()) {
            ("out/kernel", [h, d, f]) => vec![h * d, *f],
            (_, [f, h, d]) => vec![*f, h * d],
            (_, [h, d]) => vec![h * d],
            (_, same) => same.to_vec(),
        };
        *tensor = tensor.clone().reshape(&flattened).unwrap();
    }
    let source = flat.source();
    assert!(matches!(
        world.layer.apply(&Cpu::detect(), &source, call()),
        Err(Error::ParamShape {
            scope: "query",
            name: "kernel",
            ..
        })
    ));
    let split = SplitHeads {
        num_kv_heads: None,
        params: &source,
        num_heads: CROSS.num_heads,
    };
    assert_eq!(
        world.layer.apply(&Cpu::detect(), &split, call()).unwrap(),
        wanted
    );
}

/// The output's dtype, and that of the weights, for dtypes of (module, input, parameters).
fn dtypes(
    dtype: Option<ScalarType>,
    input: ScalarType,
    params: ScalarType,
    forced: bool,
) -> [ScalarType; 2] {
    let mut world = World::new(12, Sizes::of(4, 2), DType::F32, &[1], [2, 2]);
    world.params = world.params.cast(params);
    world.inputs = world.inputs.map(|x| x.view().to_scalar(input).unwrap());
    world.layer.dtype = dtype;
    world.layer.force_fp32_for_softmax = forced;
    let output = world.run_on(&Cpu::detect()).unwrap();
    [
        output.out.scalar(),
        output.attention_weights.unwrap().scalar(),
    ]
}

#[test]
fn dtypes_promote_as_in_jax() {
    use ScalarType::{BF16, Bool, F16, F32, F64, I32, U8};
    for (input, params, wanted) in [
        (F32, F32, F32),
        (BF16, F32, F32),
        (BF16, F16, F32),
        (BF16, BF16, BF16),
        (F16, F16, F16),
        (I32, BF16, BF16),
        (U8, F16, F16),
        (Bool, F32, F32),
        (F64, BF16, F64),
        (F32, F64, F64),
        (I32, I32, F32),
    ] {
        assert_eq!(
            dtypes(None, input, params, false),
            [wanted; 2],
            "{input} with {params}"
        );
        for dtype in DType::ALL.map(DType::scalar) {
            assert_eq!(dtypes(Some(dtype), input, params, false), [dtype; 2]);
        }
    }
}

#[test]
fn forced_float32_weights_stay_so_and_leak_into_the_output() {
    use ScalarType::{BF16, F16, F32, F64};
    assert_eq!(dtypes(None, BF16, BF16, true), [F32, F32]);
    assert_eq!(dtypes(None, F16, F16, true), [F32, F32]);
    assert_eq!(dtypes(Some(BF16), BF16, F32, true), [BF16, F32]);
    assert_eq!(dtypes(None, F32, F32, true), [F32, F32]);
    assert_eq!(dtypes(None, F64, F64, true), [F64, F32]);
}

#[test]
fn queries_keys_and_values_promote_together_only_in_the_core() {
    // Query stays float16, key and value are bfloat16: each is rounded to its own type before the core makes all float32.
    let mut world = World::new(13, Sizes::of(4, 1), DType::F32, &[], [3, 3]);
    let [f16, bf16] = [ScalarType::F16, ScalarType::BF16];
    let cast = |tensor: &Tensor, scalar| tensor.view().to_scalar(scalar).unwrap();
    for (name, tensor) in &mut world.params.0 {
        let scalar = if name.starts_with("query") { f16 } else { bf16 };
        *tensor = cast(tensor, scalar);
    }
    let [q, k, v] = &world.inputs;
    world.inputs = [cast(q, f16), cast(k, bf16), cast(v, bf16)];
    let output = world.run_on(&Cpu::detect()).unwrap();
    assert_eq!(output.out.scalar(), ScalarType::F32);

    let dense = |scope: &str, input: &Tensor, dtype: ScalarType| {
        let input = input.to_vec_f64();
        let kernel = world.params.get(&format!("{scope}/kernel")).to_vec_f64();
        let bias = world.params.get(&format!("{scope}/bias")).to_vec_f64();
        let values = (0..3 * 4).map(|n| {
            let products = (0..4).map(|f| input[n / 4 * 4 + f] * kernel[f * 4 + n % 4]);
            products.sum::<f64>() + bias[n % 4]
        });
        Tensor::from_f64s(dtype, &[3, 1, 4], values).unwrap()
    };
    let [q, k, v] = &world.inputs;
    let (q, k, v) = (
        dense("query", q, f16),
        dense("key", k, bf16),
        dense("value", v, bf16),
    );
    let arguments = DotProductAttention::new(q.view(), k.view());
    let weights = dot_product_attention_weights(&Cpu::detect(), &arguments).unwrap();
    assert_eq!(weights.scalar(), ScalarType::F32);
    assert_eq!(
        weights.to_vec_f64(),
        output.attention_weights.unwrap().to_vec_f64()
    );
    let context = dot_product_attention(&Cpu::detect(), &arguments, v.view()).unwrap();
    assert_eq!(context.scalar(), ScalarType::F32);
}

#[test]
fn the_function_takes_bias_mask_and_values_of_another_depth() {
    let mut numbers = Numbers(14);
    for dtype in DType::ALL {
        let scalar = dtype.scalar();
        let query = numbers.tensor(scalar, &[2, 6, 3, 4], 2.0);
        let key = numbers.tensor(scalar, &[2, 7, 3, 4], 2.0);
        let value = numbers.tensor(scalar, &[2, 7, 3, 5], 2.0);
        let bias = numbers.tensor(scalar, &[3, 1, 7], 2.0);
        let mask = numbers.tensor(ScalarType::Bool, &[2, 1, 6, 7], 1.0);
        let mut arguments = DotProductAttention::new(query.view(), key.view());
        arguments.bias = Some(bias.view());
        arguments.mask = Some(mask.view());
        let (wide_bias, seen) = (wide(&bias), mask.to_vec_f64());
        let core = Core {
            batch: 2,
            lengths: [6, 7],
            num_heads: 3,
            depths: [4, 5],
            bias: &|_, h, _, j| wide_bias[h * 7 + j],
            sees: &|b, _, i, j| seen[(b * 6 + i) * 7 + j] != 0.0,
        };
        let (truth, weights) = core.of(&wide(&query), &wide(&key), &wide(&value));
        let plain_out = dot_product_attention(&plain(), &arguments, value.view()).unwrap();
        let plain_weights = dot_product_attention_weights(&plain(), &arguments).unwrap();
        let out = dot_product_attention(&Cpu::detect(), &arguments, value.view()).unwrap();
        assert_close("out", &out, &plain_out, &truth);
        let got = dot_product_attention_weights(&Cpu::detect(), &arguments).unwrap();
        assert_close("weights", &got, &plain_weights, &weights);
    }
}

#[test]
fn a_row_of_infinite_bias_is_nan_unlike_a_masked_one() {
    let one = Tensor::from_slice(&[1.0f32, 2.0], &[2, 1, 1]).unwrap();
    let bias = Tensor::from_slice(&[f32::NEG_INFINITY; 2], &[2]).unwrap();
    let mut arguments = DotProductAttention::new(one.view(), one.view());
    arguments.bias = Some(bias.view());
    let out = dot_product_attention(&Cpu::detect(), &arguments, one.view()).unwrap();
    assert!(out.to_vec_f64().iter().all(|x| x.is_nan()));
    let mask = Tensor::from_slice(&[0u8; 2], &[2]).unwrap();
    arguments.mask = Some(mask.view());
    let out = dot_product_attention(&Cpu::detect(), &arguments, one.view()).unwrap();
    assert_eq!(out.to_vec_f64(), [1.5, 1.5]);
}

#[test]
fn a_float32_bias_does_not_make_16_bit_weights_wider() {
    let one = Tensor::from_slice(&[attn_layers::bf16::ONE; 2], &[2, 1, 1]).unwrap();
    let bias = Tensor::from_slice(&[0.0f32, 1.0], &[2]).unwrap();
    let mut arguments = DotProductAttention::new(one.view(), one.view());
    arguments.bias = Some(bias.view());
    let weights = dot_product_attention_weights(&Cpu::detect(), &arguments).unwrap();
    assert_eq!(weights.scalar(), ScalarType::BF16);
}

#[test]
fn padding_and_causal_masks_come_out_as_in_flax() {
    let valid = TensorView::from_slice(&[1.0f32, 2.0, 0.0, 1.0], &[2, 2]).unwrap();
    let mask = make_attention_mask(&valid, &valid, 1, ScalarType::F32).unwrap();
    assert_eq!(mask.shape().as_slice(), [1, 2, 1, 2, 2]);
    // The products are kept, not made 0 and 1.
    assert_eq!(mask.to_vec_f64(), [1.0, 2.0, 2.0, 4.0, 0.0, 0.0, 0.0, 1.0]);
    let bytes = TensorView::from_slice(&[16u8, 1], &[2]).unwrap();
    let mask = make_attention_mask(&bytes, &bytes, 0, ScalarType::U8).unwrap();
    assert_eq!(mask.to_vec_f64(), [0.0, 16.0, 16.0, 1.0]);
    let causal = make_causal_mask(&valid, 2, ScalarType::Bool).unwrap();
    assert_eq!(causal.shape().as_slice(), [1, 1, 2, 1, 2, 2]);
    assert_eq!(
        causal.to_vec_f64(),
        [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    );
}
