//! Fewer heads of keys and values than of queries: the layer is that whose heads of keys and values are repeated for each head of queries.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::error::Disagreement;
use attn_layers::cpu::Cpu;
use attn_layers::init::Param;
use attn_layers::random::{Key, Rngs};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AnyCache, AttentionArgs, CacheAccess, Call, DType, Dims, DotProductAttention, Einsum, Error,
    Gradients, HostKernels, InitShapes, MultiHeadDotProductAttention,
    MultiHeadDotProductAttentionF32, Output, ParamSource, Result, Rotary, ScalarType, SplitHeads,
    dot_product_attention,
};
use proptest::prelude::*;
use proptest::sample::select;
use support::twice::Twice;
use support::{Numbers, Parameters, Sizes, assert_close, layer, plain};

/// The heads of an array, `[..., heads, depth]`, one after the other, each `group` times.
fn repeated(tensor: &Tensor, group: usize) -> Tensor {
    let [rows @ .., heads, depth] = tensor.shape().as_slice() else {
        panic!("an array without heads")
    };
    let all = tensor.to_vec_f64();
    let each = all.chunks(*depth).flat_map(|head| [head].repeat(group));
    let shape = [rows, &[heads * group, *depth]].concat();
    Tensor::from_f64s(tensor.scalar(), &shape, each.flatten().copied()).expect("a small array")
}

/// The sums over `group` heads of a gradient, `[..., heads, depth]`.
fn summed(tensor: TensorView<'_>, group: usize) -> Vec<f64> {
    let depth = tensor.shape()[tensor.shape().rank() - 1];
    let all: Vec<f64> = tensor.iter_f64().collect();
    let groups = all.chunks(depth * group);
    let sum = |heads: &[f64], n: usize| heads.iter().skip(n).step_by(depth).sum();
    groups
        .flat_map(|heads| (0..depth).map(move |n| sum(heads, n)))
        .collect()
}

const OF_KEYS: [&str; 4] = ["key/kernel", "key/bias", "value/kernel", "value/bias"];

/// A layer with grouped heads, and a call of it.
struct World {
    sizes: Sizes,
    layer: MultiHeadDotProductAttention<'static>,
    params: Parameters,
    inputs: [Tensor; 3],
    mask: Option<Tensor>,
}

impl World {
    fn new(sizes: Sizes, scalars: [ScalarType; 2], batch: &[usize], lengths: [usize; 2]) -> Self {
        let mut numbers = Numbers(lengths.iter().sum::<usize>() as u64);
        let params = Parameters::new(&mut numbers, &sizes, DType::F64).cast(scalars[1]);
        let lengths = [lengths[0], lengths[1], lengths[1]];
        let inputs = [0, 1, 2].map(|n| {
            let shape = [batch, &[lengths[n], sizes.features[n]]].concat();
            numbers.tensor(scalars[0], &shape, 2.0)
        });
        Self {
            sizes,
            layer: layer(&sizes),
            params,
            inputs,
            mask: None,
        }
    }

    /// The same in one dtype.
    fn of(sizes: Sizes, dtype: DType) -> Self {
        Self::new(sizes, [dtype.scalar(); 2], &[2], [5, 6])
    }

    /// The same with a head of keys and values for each of queries.
    fn repeated(&self) -> Self {
        let group = self.sizes.num_heads / self.sizes.num_kv_heads;
        let mut params = self.params.clone();
        for name in OF_KEYS {
            params.set(name, repeated(params.get(name), group));
        }
        Self {
            sizes: Sizes {
                num_kv_heads: self.sizes.num_heads,
                ..self.sizes
            },
            layer: MultiHeadDotProductAttention {
                num_kv_heads: None,
                ..self.layer.clone()
            },
            params,
            inputs: self.inputs.clone(),
            mask: self.mask.clone(),
        }
    }

    /// The same in `float64`.
    fn wide(&self) -> Self {
        let wide = |x: &Tensor| x.view().to_scalar(ScalarType::F64).expect("small");
        Self {
            sizes: self.sizes,
            layer: self.layer.clone(),
            params: self.params.cast(ScalarType::F64),
            inputs: self.inputs.each_ref().map(wide),
            mask: self.mask.clone(),
        }
    }

    fn call(&self) -> Call<'_> {
        let [q, k, v] = &self.inputs;
        Call::new(q.view())
            .with_inputs_k(Some(k.view()))
            .with_inputs_v(Some(v.view()))
            .with_mask(self.mask.as_ref().map(Tensor::view))
            .with_dropout_rng(Some([3, 4]))
            .with_sow_weights(self.layer.attention_fn.is_none())
    }

    fn run<B: HostKernels>(&self, backend: &B) -> Result<Output> {
        self.layer
            .apply(backend, &self.params.source(), self.call())
    }

    fn gradients<B: HostKernels>(&self, backend: &B, d_out: &Tensor) -> Gradients {
        let source = self.params.source();
        let passed = self.layer.forward(backend, &source, self.call());
        let (_, residuals) = passed.expect("a right call");
        let d_out = d_out.view();
        let gradients = self.layer.backward(backend, &residuals, d_out);
        gradients.expect("a right gradient")
    }
}

const CROSS: Sizes = Sizes {
    features: [7, 5, 6],
    num_heads: 6,
    num_kv_heads: 2,
    head_dim: 4,
    out_features: 9,
};

/// A layer of those sizes, to which hooks of any lifetime can be given.
fn cross<'h>() -> MultiHeadDotProductAttention<'h> {
    MultiHeadDotProductAttention {
        num_kv_heads: Some(2),
        qkv_features: Some(24),
        out_features: Some(9),
        ..MultiHeadDotProductAttention::new(6)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_bits_are_those_of_repeated_heads(
        features in [1..9usize, 1..9, 1..9],
        heads in (1..4usize, 1..5usize),
        half in 1..9usize,
        batch in select(vec![vec![], vec![1], vec![2, 2]]),
        lengths in [1..20usize, 1..90],
        scalars in [select(DType::ALL.to_vec()), select(DType::ALL.to_vec())],
        flags in any::<[bool; 6]>(),
        rate in select(vec![0.0, 0.3]),
        dtype in proptest::option::of(select(DType::ALL.to_vec())),
    ) {
        let sizes = Sizes {
            features,
            num_heads: heads.0 * heads.1,
            num_kv_heads: heads.0,
            head_dim: 2 * half,
            out_features: 3,
        };
        let mut world = World::new(sizes, scalars.map(DType::scalar), &batch, lengths);
        let [use_bias, normalize_qk, force_fp32_for_softmax, broadcast_dropout, turned, masked] = flags;
        world.layer = MultiHeadDotProductAttention {
            use_bias,
            normalize_qk,
            force_fp32_for_softmax,
            broadcast_dropout,
            dropout_rate: rate,
            deterministic: Some(false),
            rotary: turned.then(Rotary::new),
            dtype: dtype.map(DType::scalar),
            ..world.layer
        };
        let full = [&batch[..], &[sizes.num_heads, lengths[0], lengths[1]]].concat();
        world.mask = masked.then(|| Numbers(8).tensor(ScalarType::Bool, &full, 1.0));
        let wanted = world.repeated();
        prop_assert_eq!(world.run(&Cpu::detect()), wanted.run(&Cpu::detect()));
        prop_assert_eq!(world.run(&plain()), wanted.run(&plain()));
    }
}

#[test]
fn gradients_of_keys_and_values_are_the_sums_over_their_groups() {
    // In float64, the truth's own precision, they are held against differences (`gradients.rs`).
    let narrow = [DType::F32, DType::F16, DType::BF16];
    for (dtype, normalize_qk) in narrow.into_iter().flat_map(|d| [(d, false), (d, true)]) {
        let mut world = World::of(CROSS, dtype);
        world.layer.normalize_qk = normalize_qk;
        world.layer.rotary = Some(Rotary::new());
        world.mask = Some(Numbers(5).tensor(ScalarType::Bool, &[5, 6], 1.0));
        let d_out = Numbers(6).tensor(dtype.scalar(), &[2, 5, 9], 1.0);
        let cpu = Cpu::detect();
        let got = world.gradients(&cpu, &d_out);
        let repeated = world.repeated();
        let alike = repeated.gradients(&cpu, &d_out);
        assert_eq!(got.d_inputs_q, alike.d_inputs_q, "{dtype}");

        let plainly = world.gradients(&plain(), &d_out);
        let wide_d_out = d_out.view().to_scalar(ScalarType::F64).unwrap();
        let truth = repeated.wide().gradients(&plain(), &wide_d_out);
        let close = |what: &str, got: TensorView<'_>, plainly: TensorView<'_>, truth: Vec<f64>| {
            let truth: Vec<Twice> = truth.into_iter().map(Twice::from).collect();
            let [got, plainly] = [got, plainly].map(|x| x.to_tensor().expect("small"));
            assert_close(&format!("{what} {dtype}"), &got, &plainly, &truth);
        };
        for (path, gradient) in got.params.iter() {
            let (scope, name) = path.split_once('/').expect("a path");
            let of = |gradients: &Gradients| {
                let view = gradients.params.tensor(scope, name);
                view.expect("one for each").to_tensor().expect("small")
            };
            let (alike, plainly, truth) = (of(&alike), of(&plainly), of(&truth));
            assert_eq!(gradient.shape(), world.params.get(path).shape());
            if OF_KEYS.contains(&path) {
                close(path, gradient, plainly.view(), summed(truth.view(), 3));
            } else if path == "key_ln/scale" {
                close(path, gradient, plainly.view(), truth.to_vec_f64());
            } else {
                assert_eq!(gradient, alike.view(), "{path} {dtype}");
            }
        }
        for (what, of) in [
            (
                "inputs_k",
                (|all| all.d_inputs_k.as_ref()) as fn(&Gradients) -> Option<&Tensor>,
            ),
            ("inputs_v", |all| all.d_inputs_v.as_ref()),
        ] {
            let [got, plainly, truth] =
                [&got, &plainly, &truth].map(|all| of(all).expect("floats"));
            close(what, got.view(), plainly.view(), truth.to_vec_f64());
        }
    }
}

#[test]
fn the_field_at_the_number_of_heads_changes_nothing() {
    let world = World::of(CROSS, DType::F32).repeated();
    let mut named = world.repeated();
    named.layer.num_kv_heads = Some(6);
    assert_eq!(named.run(&Cpu::detect()), world.run(&Cpu::detect()));
    assert!(named.run(&Cpu::detect()).is_ok());
}

#[test]
fn initial_parameters_and_caches_have_as_many_heads() {
    let rngs = Rngs::params(Key::from_words([0, 7]));
    let shapes = InitShapes::new(&[2, 4, 5])
        .with_inputs_k(Some(&[2, 6, 5]))
        .with_inputs_v(Some(&[2, 6, 3]));
    let mut layer = MultiHeadDotProductAttention {
        num_kv_heads: Some(2),
        qkv_features: Some(12),
        normalize_qk: true,
        ..MultiHeadDotProductAttention::new(6)
    };
    let grouped = layer.init(&rngs, &shapes).unwrap();
    let shape = |scope: &str, name: &str| *grouped.tensor(scope, name).expect("there").shape();
    assert_eq!(shape("query", "kernel").as_slice(), [5, 6, 2]);
    assert_eq!(shape("key", "kernel").as_slice(), [5, 2, 2]);
    assert_eq!(shape("key", "bias").as_slice(), [2, 2]);
    assert_eq!(shape("value", "kernel").as_slice(), [3, 2, 2]);
    assert_eq!(shape("value", "bias").as_slice(), [2, 2]);
    assert_eq!(shape("key_ln", "scale").as_slice(), [2]);
    assert_eq!(shape("out", "kernel").as_slice(), [6, 2, 5]);

    // The typed layer's list is the same, and a kernel is drawn as a matrix, whatever its columns are heads of.
    let [q, k, v] = [[2, 4, 5], [2, 6, 5], [2, 6, 3]].map(|shape| Dims::new(&shape).unwrap());
    let typed = MultiHeadDotProductAttentionF32 {
        num_kv_heads: Some(2),
        qkv_features: Some(12),
        ..MultiHeadDotProductAttentionF32::new(6)
    };
    let sizes = typed.plan(&q, &k, &v).unwrap().param_sizes();
    for param in Param::ALL {
        let (scope, name) = param.path().split_once('/').expect("a path");
        assert_eq!(
            param.shape(&sizes).unwrap(),
            shape(scope, name),
            "{param:?}"
        );
    }
    let narrow = MultiHeadDotProductAttention {
        qkv_features: Some(4),
        ..MultiHeadDotProductAttention::new(2)
    };
    let narrow = narrow.init(&rngs, &shapes).unwrap();
    let of = |tree: &dyn ParamSource, scope| {
        let kernel = tree.tensor(scope, "kernel");
        kernel.expect("there").to_tensor().unwrap()
    };
    assert_eq!(of(&grouped, "key"), of(&narrow, "key"));
    assert_eq!(of(&grouped, "value"), of(&narrow, "value"));

    layer.decode = true;
    let x = [4, 6].map(|length| Numbers(1).tensor(ScalarType::F32, &[2, length, 5], 1.0));
    let v = Numbers(2).tensor(ScalarType::F32, &[2, 6, 3], 1.0);
    let call = || {
        Call::new(x[0].view())
            .with_inputs_k(Some(x[1].view()))
            .with_inputs_v(Some(v.view()))
    };
    let promised = layer.init_cache(&grouped, &call()).unwrap();
    let mut made = None;
    let access = CacheAccess::Mutable(&mut made);
    layer
        .apply(&Cpu::detect(), &grouped, call().with_cache(access))
        .unwrap();
    assert_eq!(promised.cached_key.shape().as_slice(), [2, 6, 2, 2]);
    assert_eq!(promised.cached_value.shape().as_slice(), [2, 6, 2, 2]);
    assert_eq!(made, Some(promised));
}

#[test]
fn numbers_of_heads_that_do_not_divide_are_named() {
    let shape = [2, 4, 12];
    let x = Tensor::zeros(ScalarType::F32, &shape).unwrap();
    let dims = Dims::new(&shape).unwrap();
    let params = Parameters::new(&mut Numbers(1), &Sizes::of(12, 4), DType::F32);
    let rngs = Rngs::params(Key::from_words([0, 7]));
    for num_kv_heads in [0, 3, 8, usize::MAX] {
        let wanted = Error::KvHeadsDoNotDivide {
            num_heads: 4,
            num_kv_heads,
        };
        let layer = MultiHeadDotProductAttention {
            num_kv_heads: Some(num_kv_heads),
            ..MultiHeadDotProductAttention::new(4)
        };
        let (source, call) = (params.source(), || Call::new(x.view()));
        let cpu = Cpu::detect();
        assert_eq!(layer.apply(&cpu, &source, call()), Err(wanted));
        assert_eq!(layer.forward(&cpu, &source, call()).err(), Some(wanted));
        assert_eq!(layer.init_cache(&source, &call()), Err(wanted));
        assert_eq!(layer.init(&rngs, &InitShapes::new(&shape)), Err(wanted));
        let typed = MultiHeadDotProductAttentionF32 {
            num_kv_heads: Some(num_kv_heads),
            ..MultiHeadDotProductAttentionF32::new(4)
        };
        assert_eq!(typed.plan(&dims, &dims, &dims), Err(wanted));
        let words = wanted.to_string();
        let names = [
            format!("`num_kv_heads` is {num_kv_heads}"),
            "`num_heads` 4".into(),
        ];
        assert!(names.iter().all(|name| words.contains(name)), "{words}");
    }
    // No heads at all are the first mistake, as in Flax.
    let none = MultiHeadDotProductAttention {
        num_kv_heads: Some(0),
        ..MultiHeadDotProductAttention::new(0)
    };
    let result = none.apply(&Cpu::detect(), &params.source(), Call::new(x.view()));
    assert_eq!(result, Err(Error::NoHeads));
}

#[test]
fn parameters_and_caches_of_other_heads_are_refused() {
    let mut world = World::of(CROSS, DType::F32);
    world.params = world.repeated().params;
    let error = world.run(&Cpu::detect()).unwrap_err();
    assert!(
        matches!(error, Error::ParamShape { scope: "key", name: "kernel", wanted, .. } if wanted.as_slice() == [5, 2, 4]),
        "{error}"
    );

    let world = World::new(CROSS, [ScalarType::F32; 2], &[2], [1, 1]);
    let mut layer = world.layer.clone();
    layer.decode = true;
    // A cache of six heads would serve eighteen.
    let full = Tensor::zeros(ScalarType::F32, &[2, 3, 6, 4]).unwrap();
    let cache = AnyCache {
        cached_key: full.clone(),
        cached_value: full,
        cache_index: 0,
    };
    let mut held = Some(cache.clone());
    let call = world.call().with_cache(CacheAccess::Mutable(&mut held));
    let error = layer.apply(&Cpu::detect(), &world.params.source(), call);
    let wanted = Error::CacheQueryShape {
        got: Dims::new(&[2, 1, 6, 4]).unwrap(),
        wanted: Dims::new(&[2, 1, 18, 4]).unwrap(),
    };
    assert_eq!(error, Err(wanted));
    assert_eq!(held, Some(cache));
}

#[test]
fn a_core_of_the_users_gets_what_the_layer_projects() {
    let world = World::of(CROSS, DType::F32);
    let wanted = world.run(&Cpu::detect()).unwrap().out;
    let core = |query: TensorView<'_>,
                key: TensorView<'_>,
                value: TensorView<'_>,
                _: &AttentionArgs<'_>| {
        assert_eq!(query.shape().as_slice(), [2, 5, 6, 4]);
        assert_eq!(key.shape().as_slice(), [2, 6, 2, 4]);
        assert_eq!(value.shape().as_slice(), [2, 6, 2, 4]);
        let [key, value] = [
            repeated(&key.to_tensor()?, 3),
            repeated(&value.to_tensor()?, 3),
        ];
        let arguments = DotProductAttention::new(query, key.view());
        dot_product_attention(&Cpu::detect(), &arguments, value.view())
    };
    let layer = MultiHeadDotProductAttention {
        attention_fn: Some(&core),
        ..cross()
    };
    let call = world.call().with_sow_weights(false);
    let got = layer.apply(&Cpu::detect(), &world.params.source(), call);
    assert_eq!(got.unwrap().out, wanted);

    // Products of queries and keys by one letter for both's heads cannot be had.
    fn never(_: &str, _: TensorView<'_>, _: TensorView<'_>) -> Result<Tensor> {
        panic!("an einsum that must not be called")
    }
    let einsum = || -> Box<dyn Einsum> { Box::new(never) };
    let layer = MultiHeadDotProductAttention {
        qk_attn_weights_einsum_cls: Some(&einsum),
        attn_weights_value_einsum_cls: Some(&einsum),
        ..cross()
    };
    let refused = |error: &Error| {
        matches!(
            error,
            Error::Unsupported {
                backend: "qk_attn_weights_einsum",
                feature: "grouped heads",
                ..
            }
        )
    };
    let source = world.params.source();
    let error = layer
        .apply(&Cpu::detect(), &source, world.call())
        .unwrap_err();
    assert!(refused(&error), "{error}");
    let rngs = Rngs::params(Key::from_words([0, 7]));
    let shapes = InitShapes::new(&[2, 5, 7]);
    let error = layer.init(&rngs, &shapes).unwrap_err();
    assert!(refused(&error), "{error}");

    // Flax's own function has no grouped heads.
    let [query, key] = [6, 2].map(|heads| Tensor::zeros(ScalarType::F32, &[5, heads, 4]).unwrap());
    let arguments = DotProductAttention::new(query.view(), key.view());
    let error = dot_product_attention(&Cpu::detect(), &arguments, key.view()).unwrap_err();
    let heads = Disagreement::NumHeads;
    assert!(
        matches!(error, Error::Mismatch { what, .. } if what == heads),
        "{error}"
    );
}

#[test]
fn flat_parameters_are_split_into_as_many_heads() {
    let world = World::of(CROSS, DType::F32);
    let mut flat = world.params.clone();
    for (name, shape) in [
        ("query/kernel", &[7, 24][..]),
        ("query/bias", &[24]),
        ("key/kernel", &[5, 8]),
        ("key/bias", &[8]),
        ("value/kernel", &[6, 8]),
        ("value/bias", &[8]),
        ("out/kernel", &[24, 9]),
    ] {
        let values = world.params.get(name).to_vec_f64();
        flat.set(
            name,
            Tensor::from_f64s(ScalarType::F32, shape, values).unwrap(),
        );
    }
    let source = flat.source();
    let split = SplitHeads {
        params: &source,
        num_heads: 6,
        num_kv_heads: Some(2),
    };
    let got = world.layer.apply(&Cpu::detect(), &split, world.call());
    assert_eq!(got, world.run(&Cpu::detect()));
    assert!(got.is_ok());
}
