//! A user's own code in the place of a part of the layer really runs, on what Flax would give it.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AttentionArgs, CacheAccess, Call, DType, DotGeneral, DotProductAttention, Einsum, Error,
    MultiHeadDotProductAttention, Output, Precision, Result, ScalarType, dot_product_attention,
    dot_product_attention_weights,
};
use std::cell::{Cell, RefCell};
use support::truth::{Core, Truth, wide};
use support::{Numbers, Parameters, Sizes, assert_close, plain};

const SIZES: Sizes = Sizes {
    features: [6; 3],
    num_heads: 2,
    num_kv_heads: 2,
    head_dim: 3,
    out_features: 6,
};

struct World {
    params: Parameters,
    x: Tensor,
}

impl World {
    fn new(dtype: DType) -> Self {
        let mut numbers = Numbers(3);
        Self {
            params: Parameters::new(&mut numbers, &SIZES, dtype),
            x: numbers.tensor(dtype.scalar(), &[2, 4, 6], 2.0),
        }
    }

    fn run(&self, layer: &MultiHeadDotProductAttention<'_>) -> Result<Output> {
        let call = Call::new(self.x.view()).with_sow_weights(true);
        layer.apply(&Cpu::detect(), &self.params.source(), call)
    }

    /// Output and weights hold against exact arithmetic, as those of the layer without hooks.
    fn holds(&self, layer: &MultiHeadDotProductAttention<'_>) {
        let truth = Truth {
            params: &self.params,
            num_heads: 2,
            head_dim: 3,
            use_bias: true,
            normalize_qk: false,
            sees: &|_, _, _, _| true,
        };
        let (out, weights) = truth.of(&self.x, &self.x, &self.x);
        let own = MultiHeadDotProductAttention::new(2);
        let call = Call::new(self.x.view()).with_sow_weights(true);
        let plain = own.apply(&plain(), &self.params.source(), call).unwrap();
        let got = self.run(layer).unwrap();
        assert_close("out", &got.out, &plain.out, &out);
        let (got, plain) = (got.attention_weights, plain.attention_weights);
        assert_close("weights", &got.unwrap(), &plain.unwrap(), &weights);
    }
}

/// `lhs · rhs` in the dtype of `lhs`.
fn product(lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
    let (&[features, outputs], Some((_, rows))) =
        (rhs.shape().as_slice(), lhs.shape().split_last())
    else {
        return Err(Error::Hook {
            hook: "dot_general",
            reason: "no matrices",
        });
    };
    let shape = [rows, &[outputs]].concat();
    let values = (0..shape.iter().product()).map(|n: usize| {
        let at =
            |f| lhs.get_f64(n / outputs * features + f) * rhs.get_f64(f * outputs + n % outputs);
        (0..features).map(at).sum()
    });
    Tensor::from_f64s(lhs.scalar(), &shape, values)
}

/// Both einsums of Flax, for two leading axes `b`.
fn einsum(spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
    let (l, r) = (lhs.shape(), rhs.shape());
    match spec {
        "...qhd,...khd->...hqk" => {
            let (b, q, h, d, k) = (l[0], l[1], l[2], l[3], r[1]);
            let values = (0..b * h * q * k).map(|n| {
                let (b, h_, q_, k_) = (n / (h * q * k), n / (q * k) % h, n / k % q, n % k);
                let query = ((b * q + q_) * h + h_) * d;
                let key = ((b * k + k_) * h + h_) * d;
                (0..d)
                    .map(|d| lhs.get_f64(query + d) * rhs.get_f64(key + d))
                    .sum()
            });
            Tensor::from_f64s(lhs.scalar(), &[b, h, q, k], values)
        }
        "...hqk,...khd->...qhd" => {
            let (b, h, q, k, d) = (l[0], l[1], l[2], l[3], r[3]);
            let values = (0..b * q * h * d).map(|n| {
                let (b, q_, h_, d_) = (n / (q * h * d), n / (h * d) % q, n / d % h, n % d);
                let weight = ((b * h + h_) * q + q_) * k;
                let value = |k_| ((b * k + k_) * h + h_) * d + d_;
                (0..k)
                    .map(|k| lhs.get_f64(weight + k) * rhs.get_f64(value(k)))
                    .sum()
            });
            Tensor::from_f64s(lhs.scalar(), &[b, q, h, d], values)
        }
        _ => Err(Error::Hook {
            hook: "einsum",
            reason: "another einsum than Flax's",
        }),
    }
}

#[test]
fn dot_general_replaces_the_products_of_the_dense_layers() {
    for dtype in DType::ALL {
        let world = World::new(dtype);
        let calls = Cell::new(0);
        let counting = |lhs: TensorView<'_>, rhs: TensorView<'_>| {
            calls.set(calls.get() + 1);
            assert_eq!(
                (lhs.scalar(), rhs.scalar()),
                (dtype.scalar(), dtype.scalar())
            );
            product(lhs, rhs)
        };
        let counting: &dyn DotGeneral = &counting;
        let layer = MultiHeadDotProductAttention {
            qkv_dot_general: Some(counting),
            ..MultiHeadDotProductAttention::new(2)
        };
        world.holds(&layer);
        assert_eq!(calls.replace(0), 3);
        let layer = MultiHeadDotProductAttention {
            out_dot_general: Some(counting),
            ..MultiHeadDotProductAttention::new(2)
        };
        world.holds(&layer);
        assert_eq!(calls.get(), 1);
    }
}

#[test]
fn a_factory_wins_over_the_function_and_is_called_for_each_dense_layer() {
    let world = World::new(DType::F32);
    let fails = |_: TensorView<'_>, _: TensorView<'_>| -> Result<Tensor> {
        Err(Error::Hook {
            hook: "dot_general",
            reason: "the function must not be called",
        })
    };
    let fails: &dyn DotGeneral = &fails;
    let made = Cell::new(0);
    let factory = || -> Box<dyn DotGeneral> {
        made.set(made.get() + 1);
        Box::new(product)
    };
    let layer = MultiHeadDotProductAttention {
        qkv_dot_general: Some(fails),
        out_dot_general: Some(fails),
        qkv_dot_general_cls: Some(&factory),
        out_dot_general_cls: Some(&factory),
        ..MultiHeadDotProductAttention::new(2)
    };
    world.holds(&layer);
    assert_eq!(made.get(), 4);
}

#[test]
fn operands_reach_dot_general_in_the_layers_dtype_and_the_bias_is_added() {
    let mut world = World::new(DType::F32);
    world.params = world.params.cast(ScalarType::BF16);
    let nothing = |lhs: TensorView<'_>, rhs: TensorView<'_>| {
        assert_eq!(
            (lhs.scalar(), rhs.scalar()),
            (ScalarType::F16, ScalarType::F16)
        );
        let rows = &lhs.shape()[..lhs.shape().rank() - 1];
        Tensor::zeros(ScalarType::F16, &[rows, &[rhs.shape()[1]]].concat())
    };
    let layer = MultiHeadDotProductAttention {
        dtype: Some(ScalarType::F16),
        out_dot_general: Some(&nothing),
        ..MultiHeadDotProductAttention::new(2)
    };
    let out = world.run(&layer).unwrap().out;
    assert_eq!(out.scalar(), ScalarType::F16);
    let bias = world.params.get("out/bias").to_dtype(DType::F16).unwrap();
    let wanted = bias.to_vec_f64();
    assert!(out.to_vec_f64().chunks(6).all(|row| row == wanted));
}

#[test]
fn einsums_replace_both_products_of_the_core() {
    for dtype in DType::ALL {
        let world = World::new(dtype);
        let specs = RefCell::new(Vec::new());
        let factory = || -> Box<dyn Einsum + '_> {
            Box::new(|spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>| {
                specs.borrow_mut().push(spec.to_owned());
                einsum(spec, lhs, rhs)
            })
        };
        let layer = MultiHeadDotProductAttention {
            qk_attn_weights_einsum_cls: Some(&factory),
            attn_weights_value_einsum_cls: Some(&factory),
            ..MultiHeadDotProductAttention::new(2)
        };
        world.holds(&layer);
        let wanted = ["...qhd,...khd->...hqk", "...hqk,...khd->...qhd"];
        assert_eq!(*specs.borrow(), wanted, "{dtype}");
    }
}

#[test]
fn bias_and_mask_apply_between_the_einsums() {
    let mut numbers = Numbers(8);
    for dtype in DType::ALL {
        let scalar = dtype.scalar();
        let query = numbers.tensor(scalar, &[2, 6, 2, 4], 2.0);
        let key = numbers.tensor(scalar, &[2, 5, 2, 4], 2.0);
        let value = numbers.tensor(scalar, &[2, 5, 2, 3], 2.0);
        let bias = numbers.tensor(scalar, &[2, 1, 5], 1.0);
        let mask = numbers.tensor(ScalarType::Bool, &[2, 1, 6, 5], 1.0);
        let mut arguments = DotProductAttention::new(query.view(), key.view());
        arguments.bias = Some(bias.view());
        arguments.mask = Some(mask.view());
        let plain_weights = dot_product_attention_weights(&plain(), &arguments).unwrap();
        let plain_out = dot_product_attention(&plain(), &arguments, value.view()).unwrap();
        arguments.qk_attn_weights_einsum = Some(&einsum);
        arguments.attn_weights_value_einsum = Some(&einsum);
        let weights = dot_product_attention_weights(&Cpu::detect(), &arguments).unwrap();
        let out = dot_product_attention(&Cpu::detect(), &arguments, value.view()).unwrap();

        let (added, seen) = (wide(&bias), mask.to_vec_f64());
        let core = Core {
            batch: 2,
            lengths: [6, 5],
            num_heads: 2,
            depths: [4, 3],
            bias: &|_, h, _, j| added[h * 5 + j],
            sees: &|b, _, i, j| seen[(b * 6 + i) * 5 + j] != 0.0,
        };
        let (truth, truth_weights) = core.of(&wide(&query), &wide(&key), &wide(&value));
        assert_close(&format!("{dtype} out"), &out, &plain_out, &truth);
        assert_close(
            &format!("{dtype} weights"),
            &weights,
            &plain_weights,
            &truth_weights,
        );

        arguments.force_fp32_for_softmax = true;
        let weights = dot_product_attention_weights(&Cpu::detect(), &arguments).unwrap();
        assert_eq!(weights.scalar(), ScalarType::F32);
    }
}

#[test]
fn attention_fn_is_given_what_flax_gives() {
    let world = World::new(DType::F32);
    let mask = Tensor::from_slice(&[1u8, 0, 1, 1], &[4]).unwrap();
    let function =
        |q: TensorView<'_>, k: TensorView<'_>, v: TensorView<'_>, args: &AttentionArgs<'_>| {
            for heads in [q, k, v] {
                assert_eq!(heads.shape().as_slice(), [2, 4, 2, 3]);
            }
            assert_eq!(args.mask, Some(mask.view()));
            assert_eq!((args.dropout_rate, args.deterministic), (0.25, false));
            assert_eq!(args.dropout_rng, Some([3, 4]));
            assert!(!args.broadcast_dropout && args.force_fp32_for_softmax);
            assert_eq!(args.precision, Some(Precision::High));
            assert_eq!(args.dtype, Some(DType::F32));
            // Twice the values: seen in the output.
            Tensor::from_f64s(v.scalar(), v.shape(), v.iter_f64().map(|x| 2.0 * x))
        };
    let layer = MultiHeadDotProductAttention {
        attention_fn: Some(&function),
        dropout_rate: 0.25,
        broadcast_dropout: false,
        force_fp32_for_softmax: true,
        precision: Some(Precision::High),
        dtype: Some(ScalarType::F32),
        ..MultiHeadDotProductAttention::new(2)
    };
    let call = Call::new(world.x.view())
        .with_mask(Some(mask.view()))
        .with_deterministic(Some(false))
        .with_dropout_rng(Some([3, 4]))
        .with_sow_weights(true);
    let source = world.params.source();
    let output = layer.apply(&Cpu::detect(), &source, call).unwrap();
    assert_eq!(output.out.shape().as_slice(), [2, 4, 6]);
    assert!(output.attention_weights.is_none());
}

#[test]
fn attention_fn_sees_the_mask_of_a_cache() {
    let world = World::new(DType::F32);
    let seen = RefCell::new(Vec::new());
    let function =
        |_: TensorView<'_>, k: TensorView<'_>, v: TensorView<'_>, args: &AttentionArgs<'_>| {
            assert_eq!(k.shape().as_slice(), [2, 4, 2, 3]);
            let mask = args.mask.expect("the cache's");
            assert_eq!(
                (mask.scalar(), mask.shape().as_slice()),
                (ScalarType::F32, &[2, 1, 1, 4][..])
            );
            seen.borrow_mut().push(mask.iter_f64().collect::<Vec<_>>());
            Tensor::zeros(v.scalar(), &[2, 1, 2, 3])
        };
    let layer = MultiHeadDotProductAttention {
        attention_fn: Some(&function),
        decode: true,
        ..MultiHeadDotProductAttention::new(2)
    };
    let source = world.params.source();
    let longest = Call::new(world.x.view());
    let mut cache = Some(layer.init_cache(&source, &longest).unwrap());
    let token = Tensor::zeros(ScalarType::F32, &[2, 1, 6]).unwrap();
    let users = Tensor::from_slice(&[0u8, 1, 1, 1], &[1, 1, 1, 4]).unwrap();
    for mask in [None, Some(users.view())] {
        let call = Call::new(token.view())
            .with_mask(mask)
            .with_cache(CacheAccess::Mutable(&mut cache));
        layer.apply(&Cpu::detect(), &source, call).unwrap();
    }
    let rows = |row: [f64; 4]| row.repeat(2);
    assert_eq!(
        *seen.borrow(),
        [rows([1.0, 0.0, 0.0, 0.0]), rows([0.0, 1.0, 0.0, 0.0])]
    );
}
