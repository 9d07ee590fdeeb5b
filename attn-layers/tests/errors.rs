//! Every error of Flax's layer is a typed one, and of two mistakes in one call the one is named that Flax names.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::core::error::Disagreement;
use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AnyCache, CacheAccess, Call, DType, DotGeneral, DotProductAttention, Einsum, Error,
    MultiHeadDotProductAttention, Output, Precision, Result, ScalarType, combine_masks,
    dot_product_attention, dot_product_attention_weights, make_attention_mask, make_causal_mask,
};
use support::{Numbers, Parameters, Sizes, layer};

fn refuse(_: &str, _: TensorView<'_>, _: TensorView<'_>) -> Result<Tensor> {
    Err(Error::Hook {
        hook: "einsum",
        reason: "it was called",
    })
}

fn einsum() -> Box<dyn Einsum> {
    Box::new(refuse)
}

/// Whether the call may use its cache.
#[derive(Clone, Copy, PartialEq)]
enum Access {
    Absent,
    Immutable,
    Mutable,
}

/// A call that succeeds, until a fault is put into it.
struct World {
    layer: MultiHeadDotProductAttention<'static>,
    params: Parameters,
    q: Tensor,
    k: Option<Tensor>,
    v: Option<Tensor>,
    kv: Option<Tensor>,
    mask: Option<Tensor>,
    deterministic: Option<bool>,
    dropout_rng: Option<[u32; 2]>,
    access: Access,
    cache: Option<AnyCache>,
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(ScalarType::F32, shape).expect("a small array")
}

impl World {
    fn new(decode: bool) -> Self {
        let sizes = Sizes::of(6, 2);
        let mut world = Self {
            layer: layer(&sizes),
            params: Parameters::new(&mut Numbers(1), &sizes, DType::F32),
            q: zeros(&[2, 1, 6]),
            k: Some(zeros(&[2, 1, 6])),
            v: Some(zeros(&[2, 1, 6])),
            kv: None,
            mask: None,
            deterministic: None,
            dropout_rng: None,
            access: Access::Mutable,
            cache: None,
        };
        world.layer.normalize_qk = true;
        world.layer.decode = decode;
        if decode {
            let longest = zeros(&[2, 4, 6]);
            let call = Call::new(longest.view());
            let cache = world.layer.init_cache(&world.params.source(), &call);
            world.cache = Some(cache.expect("a cache"));
        }
        world
    }

    fn run(&mut self) -> Result<Output> {
        let source = self.params.source();
        let mut cache = self.cache.clone();
        let access = match (self.access, &self.cache) {
            (Access::Immutable, Some(cache)) => CacheAccess::Immutable(cache),
            (Access::Mutable, _) => CacheAccess::Mutable(&mut cache),
            _ => CacheAccess::None,
        };
        let call = Call::new(self.q.view())
            .with_inputs_k(self.k.as_ref().map(Tensor::view))
            .with_inputs_v(self.v.as_ref().map(Tensor::view))
            .with_inputs_kv(self.kv.as_ref().map(Tensor::view))
            .with_mask(self.mask.as_ref().map(Tensor::view))
            .with_deterministic(self.deterministic)
            .with_dropout_rng(self.dropout_rng)
            .with_cache(access);
        let result = self.layer.apply(&Cpu::portable(), &source, call);
        if result.is_err() {
            assert_eq!(cache, self.cache, "an error left a mark on the cache");
        }
        result
    }
}

/// A mistake, and the error it gives.
struct Fault {
    name: &'static str,
    /// Two faults of a group touch the same part of a call, so a call has at most one of them.
    group: &'static str,
    decode: bool,
    put: fn(&mut World),
    gives: fn(&Error) -> bool,
}

macro_rules! fault {
    ($name:literal, $group:literal, $decode:literal, $put:expr, $pattern:pat) => {
        Fault {
            name: $name,
            group: $group,
            decode: $decode,
            put: $put,
            gives: |error| matches!(error, $pattern),
        }
    };
}

/// In Flax's order.
const FAULTS: &[Fault] = &[
    fault!(
        "E1",
        "inputs",
        false,
        |w| w.kv = w.k.clone(),
        Error::InputsKvWithKeyOrValue
    ),
    fault!(
        "E2",
        "inputs",
        false,
        |w| w.k = None,
        Error::ValueWithoutKey
    ),
    fault!(
        "E13",
        "inputs",
        false,
        |w| w.q = zeros(&[]),
        Error::Rank {
            argument: "inputs_q",
            got: 0,
            ..
        }
    ),
    fault!(
        "E3",
        "sizes",
        false,
        |w| w.layer.qkv_features = Some(7),
        Error::HeadsDoNotDivide {
            qkv_features: 7,
            num_heads: 2
        }
    ),
    fault!(
        "E3b",
        "sizes",
        false,
        |w| w.layer.num_heads = 0,
        Error::NoHeads
    ),
    fault!(
        "E11b",
        "params",
        false,
        |w| w.params.0.clear(),
        Error::ParamsEmpty
    ),
    fault!(
        "E11 query",
        "query",
        false,
        |w| w.params.remove("query/kernel"),
        Error::ParamMissing {
            scope: "query",
            name: "kernel"
        }
    ),
    fault!(
        "E10 query",
        "query",
        false,
        |w| w.params.set("query/bias", zeros(&[6])),
        Error::ParamShape {
            scope: "query",
            name: "bias",
            ..
        }
    ),
    fault!(
        "E12",
        "dtype",
        false,
        |w| w.layer.dtype = Some(ScalarType::I32),
        Error::NotInexact {
            got: ScalarType::I32
        }
    ),
    fault!(
        "E10 key",
        "key",
        false,
        |w| w.params.set("key/kernel", zeros(&[6, 3, 2])),
        Error::ParamShape {
            scope: "key",
            name: "kernel",
            ..
        }
    ),
    fault!(
        "E11 value",
        "value",
        false,
        |w| w.params.remove("value/bias"),
        Error::ParamMissing {
            scope: "value",
            name: "bias"
        }
    ),
    fault!(
        "E11 query_ln",
        "query_ln",
        false,
        |w| w.params.remove("query_ln/scale"),
        Error::ParamMissing {
            scope: "query_ln",
            name: "scale"
        }
    ),
    fault!(
        "E10 key_ln",
        "key_ln",
        false,
        |w| w.params.set("key_ln/scale", zeros(&[6])),
        Error::ParamShape {
            scope: "key_ln",
            name: "scale",
            ..
        }
    ),
    fault!(
        "E15b",
        "cache",
        true,
        |w| (w.access, w.cache) = (Access::Absent, None),
        Error::CacheMissing
    ),
    fault!(
        "E6",
        "query shape",
        true,
        |w| w.q = zeros(&[2, 2, 6]),
        Error::CacheQueryShape { .. }
    ),
    fault!(
        "cached dtype",
        "cache",
        true,
        |w| {
            let cache = w.cache.as_mut().expect("a cache");
            cache.cached_key = cache.cached_key.to_dtype(DType::F64).expect("a cast");
        },
        Error::DTypeMismatch {
            argument: "key",
            got: ScalarType::F32,
            wanted: ScalarType::F64
        }
    ),
    fault!(
        "E15",
        "cache",
        true,
        |w| w.access = Access::Immutable,
        Error::CacheImmutable
    ),
    fault!(
        "E14",
        "mask",
        true,
        |w| w.mask = Some(zeros(&[1, 4])),
        Error::MaskRank { left: 2, right: 4 }
    ),
    fault!(
        "rate",
        "dropout",
        false,
        |w| {
            w.layer.dropout_rate = 1.5;
            (w.layer.deterministic, w.deterministic) = (Some(true), Some(true));
        },
        Error::DropoutRate { got: 1.5 }
    ),
    fault!(
        "E8",
        "dropout",
        false,
        |w| w.layer.dropout_rate = 0.5,
        Error::DeterministicMissing
    ),
    fault!(
        "E9",
        "dropout",
        false,
        |w| {
            w.layer.dropout_rate = 0.5;
            (w.layer.deterministic, w.deterministic) = (Some(true), Some(true));
        },
        Error::DeterministicGivenTwice
    ),
    fault!(
        "E16",
        "dropout",
        false,
        |w| {
            w.layer.dropout_rate = 0.5;
            w.deterministic = Some(false);
        },
        Error::DropoutRngMissing
    ),
    fault!(
        "E18",
        "einsum",
        false,
        |w| w.layer.attn_weights_value_einsum_cls = Some(&|| einsum()),
        Error::Together { .. }
    ),
    fault!(
        "E17",
        "einsum",
        false,
        |w| {
            w.layer.precision = Some(Precision::Default);
            w.layer.qk_attn_weights_einsum_cls = Some(&|| einsum());
            w.layer.attn_weights_value_einsum_cls = Some(&|| einsum());
        },
        Error::Exclusive { .. }
    ),
    fault!(
        "E4",
        "inputs",
        false,
        |w| w.v = Some(zeros(&[1, 6])),
        Error::Mismatch {
            what: Disagreement::Rank,
            ..
        }
    ),
    fault!(
        "E5 batch",
        "inputs",
        false,
        |w| w.k = Some(zeros(&[3, 1, 6])),
        Error::Mismatch {
            what: Disagreement::BatchDims,
            ..
        }
    ),
    fault!(
        "E5 length",
        "inputs",
        false,
        |w| w.k = Some(zeros(&[2, 2, 6])),
        Error::Mismatch {
            what: Disagreement::Lengths,
            ..
        }
    ),
    fault!(
        "E7",
        "mask",
        false,
        |w| w.mask = Some(zeros(&[2, 3, 1, 1])),
        Error::Broadcast {
            argument: "mask",
            ..
        }
    ),
    fault!(
        "E10 out",
        "out kernel",
        false,
        |w| w.params.set("out/kernel", zeros(&[2, 3, 5])),
        Error::ParamShape {
            scope: "out",
            name: "kernel",
            ..
        }
    ),
    fault!(
        "E11 out",
        "out",
        false,
        |w| w.params.remove("out/bias"),
        Error::ParamMissing {
            scope: "out",
            name: "bias"
        }
    ),
];

#[test]
fn without_a_fault_the_calls_succeed() {
    for decode in [false, true] {
        World::new(decode).run().expect("no fault");
    }
}

#[test]
fn every_fault_gives_its_error() {
    for fault in FAULTS {
        let mut world = World::new(fault.decode);
        (fault.put)(&mut world);
        let error = world.run().expect_err(fault.name);
        assert!((fault.gives)(&error), "{}: {error:?}", fault.name);
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn of_two_faults_the_earlier_is_named() {
    let mut pairs = 0;
    for (index, first) in FAULTS.iter().enumerate() {
        for second in &FAULTS[index + 1..] {
            // In a step the update of the cache, which comes first, sees other keys before the core does, and takes several of them.
            let seen_by_the_update = first.decode && second.group == "inputs";
            let of_the_same_part = first.group == second.group
                || [first.group, second.group].contains(&"params")
                || (first.decode && first.group == "cache" && second.name == "E6");
            if of_the_same_part || seen_by_the_update {
                continue;
            }
            let mut world = World::new(first.decode || second.decode);
            // The later one first: clearing must not undo it.
            (second.put)(&mut world);
            (first.put)(&mut world);
            let error = world.run().expect_err(first.name);
            assert!(
                (first.gives)(&error),
                "{} before {}: {error:?}",
                first.name,
                second.name
            );
            pairs += 1;
        }
    }
    assert!(pairs > 250, "only {pairs} pairs were tried");
}

#[test]
fn one_einsum_is_named_before_its_precision() {
    let mut world = World::new(false);
    world.layer.precision = Some(Precision::Highest);
    world.layer.qk_attn_weights_einsum_cls = Some(&|| einsum());
    assert!(matches!(world.run(), Err(Error::Together { .. })));
}

#[test]
fn deterministic_is_not_looked_at_without_dropout() {
    let mut world = World::new(false);
    (world.layer.deterministic, world.deterministic) = (Some(false), Some(false));
    world.run().expect("no dropout");
    for (constructor, call) in [(Some(true), None), (None, Some(true))] {
        let mut world = World::new(false);
        world.layer.dropout_rate = 0.5;
        (world.layer.deterministic, world.deterministic) = (constructor, call);
        world.run().expect("deterministic");
    }
}

#[test]
fn a_rate_that_is_no_probability_is_an_error_deterministic_or_not() {
    for rate in [-0.1, 1.000_1, f64::NAN, f64::INFINITY] {
        for deterministic in [None, Some(true), Some(false)] {
            let mut world = World::new(false);
            world.layer.dropout_rate = rate;
            world.deterministic = deterministic;
            assert!(
                matches!(world.run(), Err(Error::DropoutRate { .. })),
                "{rate}"
            );
            let one = zeros(&[1, 1, 1]);
            let mut arguments = DotProductAttention::new(one.view(), one.view());
            arguments.dropout_rate = rate;
            arguments.deterministic = deterministic == Some(true);
            let out = dot_product_attention(&Cpu::portable(), &arguments, one.view());
            assert!(matches!(out, Err(Error::DropoutRate { .. })), "{rate}");
            let weights = dot_product_attention_weights(&Cpu::portable(), &arguments);
            assert!(matches!(weights, Err(Error::DropoutRate { .. })), "{rate}");
        }
    }
}

#[test]
fn inputs_without_a_length_axis_are_an_error() {
    let mut world = World::new(false);
    (world.q, world.k, world.v) = (zeros(&[6]), None, None);
    assert!(matches!(world.run(), Err(Error::Rank { .. })));
    let mut world = World::new(false);
    world.k = Some(zeros(&[]));
    assert!(matches!(world.run(), Err(Error::Rank { .. })));
}

#[test]
fn keys_of_a_smaller_batch_do_not_fit_a_cache() {
    let mut world = World::new(true);
    (world.k, world.v) = (Some(zeros(&[1, 1, 6])), Some(zeros(&[1, 1, 6])));
    assert!(matches!(
        world.run(),
        Err(Error::Shape {
            argument: "key",
            ..
        })
    ));
}

#[test]
fn more_axes_than_there_can_be_are_an_error() {
    let shape = [1; 16];
    let mut world = World::new(false);
    (world.q, world.k, world.v) = (zeros(&[&shape[..15], &[6]].concat()), None, None);
    assert!(matches!(world.run(), Err(Error::Rank { .. })));
    let x = zeros(&[2]);
    assert!(matches!(
        make_causal_mask(&x.view(), usize::MAX, ScalarType::F32),
        Err(Error::Rank { .. })
    ));
}

#[test]
fn the_weights_function_checks_queries_and_keys() {
    let query = zeros(&[2, 3, 2, 4]);
    for (shape, what) in [
        (&[3, 2, 4][..], Disagreement::Rank),
        (&[1, 3, 2, 4], Disagreement::BatchDims),
        (&[2, 3, 1, 4], Disagreement::NumHeads),
        (&[2, 3, 2, 5], Disagreement::Depths),
    ] {
        let key = zeros(shape);
        let arguments = DotProductAttention::new(query.view(), key.view());
        let error = dot_product_attention_weights(&Cpu::portable(), &arguments).unwrap_err();
        assert!(
            matches!(error, Error::Mismatch { what: got, .. } if got == what),
            "{error}"
        );
    }
    let scalar = zeros(&[]);
    let arguments = DotProductAttention::new(scalar.view(), scalar.view());
    assert!(dot_product_attention_weights(&Cpu::portable(), &arguments).is_err());
}

#[test]
fn the_weights_function_takes_one_einsum() {
    let one = zeros(&[1, 1, 1]);
    let mut arguments = DotProductAttention::new(one.view(), one.view());
    arguments.qk_attn_weights_einsum = Some(&refuse);
    let weights = |arguments: &_| dot_product_attention_weights(&Cpu::portable(), arguments);
    assert!(matches!(weights(&arguments), Err(Error::Hook { .. })));
    let out = dot_product_attention(&Cpu::portable(), &arguments, one.view());
    assert!(matches!(out, Err(Error::Together { .. })));
    arguments.precision = Some(Precision::High);
    assert!(matches!(weights(&arguments), Err(Error::Exclusive { .. })));
}

#[test]
fn the_functions_default_is_not_deterministic() {
    let one = zeros(&[1, 1, 1]);
    let mut arguments = DotProductAttention::new(one.view(), one.view());
    arguments.dropout_rate = 0.5;
    let run = |arguments: &_| dot_product_attention(&Cpu::portable(), arguments, one.view());
    assert_eq!(run(&arguments).unwrap_err(), Error::DropoutRngMissing);
    arguments.dropout_rng = Some([0, 0]);
    run(&arguments).expect("a key");
    (arguments.dropout_rate, arguments.deterministic) = (0.5, true);
    run(&arguments).expect("deterministic");
}

#[test]
fn masks_that_do_not_fit_are_errors() {
    let (pair, row) = (zeros(&[2, 3]), zeros(&[3]));
    let both = [Some(pair.view()), None, Some(row.view())];
    assert_eq!(
        combine_masks(&both, ScalarType::F32).unwrap_err(),
        Error::MaskRank { left: 2, right: 1 }
    );
    let four = zeros(&[4]);
    let lengths = [Some(row.view()), Some(four.view())];
    assert!(matches!(
        combine_masks(&lengths, ScalarType::F32),
        Err(Error::Broadcast { .. })
    ));
    assert_eq!(combine_masks(&[None], ScalarType::F32), Ok(None));
    let other_batch = zeros(&[3, 3]);
    assert!(matches!(
        make_attention_mask(&pair.view(), &other_batch.view(), 0, ScalarType::F32),
        Err(Error::Broadcast { .. })
    ));
    assert!(make_causal_mask(&zeros(&[]).view(), 0, ScalarType::F32).is_err());
}

#[test]
fn hooks_that_give_wrong_shapes_are_errors() {
    let wrong = |_: TensorView<'_>, _: TensorView<'_>| Tensor::zeros(ScalarType::F32, &[1]);
    let wrong: &dyn DotGeneral = &wrong;
    let core =
        |_: TensorView<'_>,
         _: TensorView<'_>,
         _: TensorView<'_>,
         _: &attn_layers::AttentionArgs<'_>| { Tensor::zeros(ScalarType::F32, &[2, 1, 6]) };
    let x = zeros(&[2, 1, 6]);
    let params = Parameters::new(&mut Numbers(1), &Sizes::of(6, 2), DType::F32);
    let run = |layer: MultiHeadDotProductAttention<'_>| {
        layer.apply(&Cpu::portable(), &params.source(), Call::new(x.view()))
    };
    let plain = || MultiHeadDotProductAttention::new(2);
    for layer in [
        MultiHeadDotProductAttention {
            qkv_dot_general: Some(wrong),
            ..plain()
        },
        MultiHeadDotProductAttention {
            out_dot_general: Some(wrong),
            ..plain()
        },
        MultiHeadDotProductAttention {
            attention_fn: Some(&core),
            ..plain()
        },
    ] {
        assert!(matches!(run(layer), Err(Error::Hook { .. })));
    }
}
