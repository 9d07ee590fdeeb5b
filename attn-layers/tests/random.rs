//! Random numbers, initializers and whole modules against the bits that real JAX and Flax drew; `data/random/record.py` records them.
#![cfg(feature = "std")]

use attn_layers::core::Element;
use attn_layers::init::{Init, Param};
use attn_layers::initializers::{
    Distribution, Drawing, FanMode, Function, Initializer, InitializerFunction, NormalOrder,
    ValuesMut,
};
use attn_layers::io::Tree;
use attn_layers::random::{self, Convention, Counters, DefaultWidth, Key, PathNames, Rngs};
use attn_layers::{
    Dims, Error, InitShapes, MultiHeadDotProductAttention, MultiHeadDotProductAttentionF32,
    ParamSource, ScalarType, bf16, f16, tensor::TensorView,
};
use serde_json::Value;

const KEY: Key = Key::from_words([0, 1_234_567]);

/// The recorded cases that have `field`.
fn cases(field: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_json::from_str(include_str!("data/random/drawn.json")).unwrap();
    let of_kind = all.into_iter().filter(|case| !case[field].is_null());
    let of_kind: Vec<_> = of_kind.collect();
    assert!(!of_kind.is_empty(), "nothing recorded has {field}");
    of_kind
}

/// CRC-32 as zlib computes it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn convention(case: &Value) -> Convention {
    let is = |field: &str, default| case[field].as_bool().unwrap_or(default);
    Convention {
        counters: match is("partitionable", true) {
            true => Counters::PerElement,
            false => Counters::SplitInHalves,
        },
        width: match is("x64", false) {
            true => DefaultWidth::Bits64,
            false => DefaultWidth::Bits32,
        },
    }
}

fn drawing(case: &Value) -> Drawing {
    Drawing {
        counters: convention(case).counters,
        ..Drawing::default()
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn sizes(value: &Value) -> Vec<usize> {
    let all = value.as_array().unwrap().iter();
    all.map(|n| n.as_u64().unwrap() as usize).collect()
}

/// Calls a function generic over the dtype that a case names.
macro_rules! in_dtype {
    ($case:expr, $function:ident) => {
        match text(&$case["dtype"]) {
            "float32" => $function::<f32>($case),
            "float64" => $function::<f64>($case),
            "float16" => $function::<f16>($case),
            "bfloat16" => $function::<bf16>($case),
            other => panic!("{other}"),
        }
    };
}

/// Holds the bits of numbers against a case.
#[track_caller]
fn check<T: Element>(case: &Value, drawn: &[T]) {
    let drawn = TensorView::from_slice(drawn, &[drawn.len()]).unwrap();
    let crc = u64::from(crc32(drawn.bytes()));
    assert_eq!(Some(crc), case["crc32"].as_u64(), "{case}");
}

#[test]
fn numbers_are_those_of_jax() {
    for case in &cases("draw") {
        match text(&case["draw"]) {
            "bernoulli" => truth_values(case),
            _ => in_dtype!(case, numbers),
        }
    }
}

fn truth_values(case: &Value) {
    let mut out = vec![false; number(&case["length"]) as usize];
    random::bernoulli(
        KEY,
        convention(case),
        number(&case["probability"]),
        &mut out,
    )
    .unwrap();
    let bytes: Vec<u8> = out.into_iter().map(u8::from).collect();
    assert_eq!(
        Some(u64::from(crc32(&bytes))),
        case["crc32"].as_u64(),
        "{case}"
    );
}

fn numbers<T: Element>(case: &Value) {
    let mut out = vec![T::default(); number(&case["length"]) as usize];
    let counters = convention(case).counters;
    match text(&case["draw"]) {
        "uniform" => {
            let (low, high) = (number(&case["low"]), number(&case["high"]));
            random::uniform(KEY, counters, low, high, &mut out).unwrap();
        }
        "normal" => random::normal(KEY, counters, &mut out).unwrap(),
        "truncated_normal" => {
            let (lower, upper) = (number(&case["lower"]), number(&case["upper"]));
            random::truncated_normal(KEY, counters, lower, upper, &mut out).unwrap();
        }
        other => panic!("{other}"),
    }
    check(case, &out);
}

/// JAX has the logarithm from the C library. That one and ours are each less than a unit of the last place from the truth, so they are a unit apart at
/// most; the sum that ends the polynomial, the product before it, and two products after it round once more.
#[test]
fn wide_normal_numbers_are_those_of_jax_but_for_the_last_bits() {
    let file = include_bytes!("data/random/float64_normal.safetensors");
    let tree = Tree::read(file).unwrap();
    let recorded = tree.tensor("partitionable_false").unwrap();
    let wanted = recorded.to_vec::<f64>().unwrap();
    let mut got = vec![0.0f64; wanted.len()];
    random::normal(KEY, Counters::SplitInHalves, &mut got).unwrap();
    for (got, wanted) in got.iter().zip(&wanted) {
        let apart = (got - wanted).abs();
        assert!(apart <= 5.0 * f64::EPSILON * wanted.abs(), "{got} {wanted}");
    }
    let same = got
        .iter()
        .zip(&wanted)
        .filter(|(got, wanted)| got == wanted);
    assert!(
        same.count() > wanted.len() * 99 / 100,
        "few have the same bits"
    );
}

#[test]
fn initializers_are_those_of_jax() {
    for case in &cases("initializer") {
        in_dtype!(case, initial_values);
    }
}

fn initial_values<T: Element>(case: &Value) {
    let shape = sizes(&case["shape"]);
    let mut out = vec![T::default(); shape.iter().product()];
    let initializer = initializer(text(&case["initializer"]), &case["arguments"]);
    initializer
        .fill(KEY, &shape, drawing(case), &mut out)
        .unwrap();
    check(case, &out);
}

fn initializer(name: &str, arguments: &Value) -> Initializer<'static> {
    let argument = |name: &str| number(&arguments[name]);
    match name {
        "lecun_normal" => Initializer::LecunNormal,
        "lecun_uniform" => Initializer::LecunUniform,
        "he_normal" => Initializer::HeNormal,
        "he_uniform" => Initializer::HeUniform,
        "xavier_normal" => Initializer::XavierNormal,
        "xavier_uniform" => Initializer::XavierUniform,
        "zeros" => Initializer::Zeros,
        "ones" => Initializer::Ones,
        "normal" => Initializer::Normal {
            stddev: arguments["stddev"].as_f64().unwrap_or(1e-2),
        },
        "uniform" => Initializer::Uniform {
            scale: argument("scale"),
        },
        "constant" => Initializer::Constant {
            value: argument("value"),
        },
        "truncated_normal" => Initializer::TruncatedNormal {
            stddev: argument("stddev"),
            lower: argument("lower"),
            upper: argument("upper"),
        },
        "variance_scaling" => Initializer::VarianceScaling {
            scale: argument("scale"),
            mode: match text(&arguments["mode"]) {
                "fan_in" => FanMode::In,
                "fan_out" => FanMode::Out,
                "fan_avg" => FanMode::Average,
                _ => FanMode::GeometricAverage,
            },
            distribution: match text(&arguments["distribution"]) {
                "truncated_normal" => Distribution::TruncatedNormal,
                "normal" => Distribution::Normal,
                _ => Distribution::Uniform,
            },
        },
        other => panic!("{other}"),
    }
}

#[test]
fn deviations_follow_the_shape_as_in_jax() {
    for case in &cases("fans") {
        in_dtype!(case, first_values);
    }
}

fn first_values<T: Element>(case: &Value) {
    let initializer = initializer(text(&case["fans"]), &Value::Null);
    let first = |inputs: usize| {
        let mut out = vec![T::default(); inputs];
        initializer
            .fill(KEY, &[inputs, 1], drawing(case), &mut out)
            .unwrap();
        out[0]
    };
    let firsts: Vec<_> = sizes(&case["inputs"]).into_iter().map(first).collect();
    check(case, &firsts);
}

#[test]
fn modules_start_as_in_flax() {
    for case in &cases("module") {
        let path: Vec<_> = case["path"].as_array().unwrap().iter().map(text).collect();
        let layer = layer(&case["module"], &path);
        let shapes: Vec<_> = case["shapes"]
            .as_array()
            .unwrap()
            .iter()
            .map(sizes)
            .collect();
        let shapes = InitShapes::new(&shapes[0])
            .with_inputs_k(shapes.get(1).map(Vec::as_slice))
            .with_inputs_v(shapes.get(2).map(Vec::as_slice));
        let params = layer.init(&rngs(case), &shapes).unwrap();
        let recorded = case["params"].as_array().unwrap();
        assert_eq!(params.iter().count(), recorded.len(), "{case}");
        for ((path, array), recorded) in params.iter().zip(recorded) {
            assert_eq!(path, text(&recorded[0]), "the order of {case}");
            let crc = u64::from(crc32(array.bytes()));
            assert_eq!(Some(crc), recorded[1].as_u64(), "{path} {case}");
            let (scope, name) = path.split_once('/').unwrap();
            assert_eq!(params.tensor(scope, name), Some(array));
        }
    }
}

fn rngs(case: &Value) -> Rngs {
    Rngs {
        convention: convention(case),
        names: match case["separated"] {
            Value::Bool(true) => PathNames::Separated,
            _ => PathNames::Joined,
        },
        ..Rngs::params(Key::from_words([0, 11]))
    }
}

fn layer<'h>(config: &Value, path: &'h [&'h str]) -> MultiHeadDotProductAttention<'h> {
    let of = |field: &str| {
        config[field]
            .as_str()
            .map(|name| initializer(name, &Value::Null))
    };
    let size = |field: &str| config[field].as_u64().map(|n| n as usize);
    let default = MultiHeadDotProductAttention::new(size("num_heads").unwrap());
    MultiHeadDotProductAttention {
        qkv_features: size("qkv_features"),
        out_features: size("out_features"),
        use_bias: config["use_bias"].as_bool().unwrap_or(true),
        normalize_qk: config["normalize_qk"].as_bool().unwrap_or(false),
        param_dtype: config["param_dtype"]
            .as_str()
            .map_or(ScalarType::F32, |name| ScalarType::from_name(name).unwrap()),
        kernel_init: of("kernel_init").unwrap_or(Initializer::LecunNormal),
        out_kernel_init: of("out_kernel_init"),
        bias_init: of("bias_init").unwrap_or(Initializer::Zeros),
        out_bias_init: of("out_bias_init"),
        path,
        ..default
    }
}

#[test]
fn jax_since_0_12_multiplies_in_another_order() {
    // `normal(0.02)` for query/kernel of a root module with key(10): the first values of both.
    let key = Rngs::params(Key::from_words([0, 10]))
        .param_key(&[], "query", 1)
        .unwrap();
    let init = Initializer::Normal { stddev: 0.02 };
    let mut old = [0.0f32; 36];
    let mut new = old;
    init.fill(key, &[6, 6], Drawing::default(), &mut old)
        .unwrap();
    let drawing = Drawing {
        normal_order: NormalOrder::DeviationFirst,
        ..Drawing::default()
    };
    init.fill(key, &[6, 6], drawing, &mut new).unwrap();
    assert_eq!(crc32(bytes(&old)), 0x4dcb_fb82);
    assert_eq!(crc32(bytes(&new)), 0xb9ec_e280);
}

fn bytes(values: &[f32]) -> &[u8] {
    TensorView::from_slice(values, &[values.len()])
        .unwrap()
        .bytes()
}

#[test]
fn the_worked_example_has_its_values() {
    let layer = MultiHeadDotProductAttention {
        qkv_features: Some(6),
        out_features: Some(5),
        kernel_init: Initializer::XavierUniform,
        bias_init: Initializer::Normal { stddev: 1e-2 },
        ..MultiHeadDotProductAttention::new(2)
    };
    let rngs = Rngs::params(Key::from_words([0, 42]));
    let params = layer.init(&rngs, &InitShapes::new(&[1, 4, 8])).unwrap();
    for (scope, name, wanted) in [
        (
            "query",
            "kernel",
            [0x3f13_e5d5, 0x3f09_d214, 0xbeed_8abd, 0xbe8f_c821],
        ),
        (
            "query",
            "bias",
            [0x3abc_6324, 0xbc18_37c7, 0x3c00_d9f4, 0x3b9e_d32c],
        ),
        (
            "out",
            "bias",
            [0x3a4d_1ce2, 0x3c11_d1e9, 0xbb83_57c3, 0xbcb3_700e],
        ),
    ] {
        let values = params.tensor(scope, name).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(
            values[..4].iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
            wanted,
            "{scope}/{name}"
        );
    }
}

#[test]
fn the_typed_layer_starts_alike_without_an_allocator() {
    let path = ["encoder", "attention"];
    let layer = MultiHeadDotProductAttention {
        normalize_qk: true,
        path: &path,
        ..MultiHeadDotProductAttention::new(2)
    };
    let rngs = Rngs::params(Key::from_words([7, 8]));
    let whole = layer.init(&rngs, &InitShapes::new(&[3, 6])).unwrap();

    let typed = MultiHeadDotProductAttentionF32::new(2);
    let shape = Dims::new(&[3, 6]).unwrap();
    let sizes = typed.plan(&shape, &shape, &shape).unwrap().param_sizes();
    let init = Init {
        path: &path,
        ..Init::default()
    };
    for (param, (path, wanted)) in Param::ALL.into_iter().zip(whole.iter()) {
        assert_eq!(
            (param.path(), param.shape(&sizes).unwrap()),
            (path, *wanted.shape())
        );
        let mut buffer = [0.0f32; 36];
        let out = &mut buffer[..wanted.elements()];
        init.fill(param, &sizes, &rngs, out).unwrap();
        assert_eq!(Some(&*out), wanted.as_slice(), "{path}");
    }
}

struct ShapeAsValue;

impl InitializerFunction for ShapeAsValue {
    fn fill(&self, _: Key, shape: &[usize], mut out: ValuesMut<'_>) -> Result<(), Error> {
        let all = shape.iter().fold(0, |all, &length| all * 100 + length);
        out.set_all(|_| all as f64);
        Ok(())
    }
}

#[test]
fn a_function_sees_flattened_shapes() {
    let layer = MultiHeadDotProductAttention {
        kernel_init: Initializer::Function(Function(&ShapeAsValue)),
        bias_init: Initializer::Function(Function(&ShapeAsValue)),
        out_features: Some(5),
        qkv_features: Some(6),
        ..MultiHeadDotProductAttention::new(2)
    };
    let rngs = Rngs::params(Key::from_words([0, 0]));
    let params = layer.init(&rngs, &InitShapes::new(&[3, 8])).unwrap();
    let first = |scope, name| params.tensor(scope, name).unwrap().get_f64(0);
    assert_eq!(
        [first("query", "kernel"), first("query", "bias")],
        [806.0, 6.0]
    );
    assert_eq!([first("out", "kernel"), first("out", "bias")], [605.0, 5.0]);
}

/// JAX without 64-bit types takes `float64` for `float32`, and says so in a warning.
#[test]
fn without_64_bits_float64_parameters_are_those_of_float32() {
    let of = |param_dtype, convention| {
        let layer = MultiHeadDotProductAttention {
            qkv_features: Some(6),
            out_features: Some(5),
            normalize_qk: true,
            param_dtype,
            kernel_init: Initializer::XavierUniform,
            bias_init: Initializer::Normal { stddev: 1e-2 },
            ..MultiHeadDotProductAttention::new(2)
        };
        let rngs = Rngs {
            convention,
            ..Rngs::params(Key::from_words([0, 42]))
        };
        layer.init(&rngs, &InitShapes::new(&[1, 4, 8])).unwrap()
    };
    let narrow = Convention::default();
    let params = of(ScalarType::F64, narrow);
    assert_eq!(params, of(ScalarType::F32, narrow));
    // The first two numbers of each array as Flax makes it with `param_dtype=jnp.float64`.
    let wanted = [
        ("query/kernel", [0x3f13_e5d5, 0x3f09_d214]),
        ("query/bias", [0x3abc_6324, 0xbc18_37c7]),
        ("key/kernel", [0x3f26_ba8a, 0xbf1d_ad19]),
        ("key/bias", [0x3c9e_cef0, 0x3ccd_52e4]),
        ("value/kernel", [0x3ebd_94a1, 0xbed4_b2e7]),
        ("value/bias", [0x3cd2_3407, 0xba0f_3f50]),
        ("query_ln/scale", [0x3f80_0000, 0x3f80_0000]),
        ("key_ln/scale", [0x3f80_0000, 0x3f80_0000]),
        ("out/kernel", [0x3e0e_5628, 0x3e9a_b73a]),
        ("out/bias", [0x3a4d_1ce2, 0x3c11_d1e9]),
    ];
    let got = params.iter().map(|(path, array)| {
        let values = array.to_vec::<f32>().expect("float32");
        (path, [values[0].to_bits(), values[1].to_bits()])
    });
    assert!(got.eq(wanted));

    let wide = Convention {
        width: DefaultWidth::Bits64,
        ..narrow
    };
    for (scalar, convention) in [
        (ScalarType::F64, wide),
        (ScalarType::F32, wide),
        (ScalarType::F16, narrow),
        (ScalarType::BF16, narrow),
    ] {
        let params = of(scalar, convention);
        assert!(params.iter().all(|(_, array)| array.scalar() == scalar));
    }
}

#[test]
fn init_refuses_a_rate_that_is_no_probability() {
    let rngs = Rngs::params(Key::from_words([0, 0]));
    for rate in [-0.1, 1.1, f64::INFINITY, f64::NAN] {
        let layer = MultiHeadDotProductAttention {
            dropout_rate: rate,
            ..MultiHeadDotProductAttention::new(2)
        };
        for deterministic in [None, Some(true), Some(false)] {
            let shapes = InitShapes::new(&[3, 8]).with_deterministic(deterministic);
            let error = layer.init(&rngs, &shapes).unwrap_err();
            assert!(
                matches!(error, Error::DropoutRate { .. }),
                "{rate}: {error}"
            );
        }
    }
}

#[test]
fn what_flax_refuses_is_refused_in_its_order() {
    let rngs = Rngs::params(Key::from_words([0, 0]));
    let of = |layer: MultiHeadDotProductAttention<'_>, shapes: &InitShapes<'_>| {
        layer.init(&rngs, shapes).unwrap_err()
    };
    let new = MultiHeadDotProductAttention::new;
    let (query, other) = ([2, 3, 8], [2, 4, 8]);
    let shapes = InitShapes::new(&query);
    let both = shapes
        .with_inputs_k(Some(&query))
        .with_inputs_kv(Some(&query));
    assert_eq!(of(new(3), &both), Error::InputsKvWithKeyOrValue);
    assert_eq!(
        of(new(3), &shapes.with_inputs_v(Some(&query))),
        Error::ValueWithoutKey
    );
    assert!(matches!(
        of(new(3), &shapes),
        Error::HeadsDoNotDivide { .. }
    ));
    assert_eq!(of(new(0), &shapes), Error::NoHeads);
    let lengths = shapes
        .with_inputs_k(Some(&query))
        .with_inputs_v(Some(&other));
    let by_shape = MultiHeadDotProductAttention {
        bias_init: Initializer::HeNormal,
        ..new(2)
    };
    assert!(matches!(of(by_shape, &lengths), Error::FanShape { .. }));
    let dropout = MultiHeadDotProductAttention {
        dropout_rate: 0.1,
        ..new(2)
    };
    assert_eq!(of(dropout.clone(), &lengths), Error::DeterministicMissing);
    let twice = MultiHeadDotProductAttention {
        deterministic: Some(true),
        ..dropout.clone()
    };
    assert_eq!(
        of(twice, &lengths.with_deterministic(Some(true))),
        Error::DeterministicGivenTwice
    );
    let once = lengths.with_deterministic(Some(false));
    assert!(matches!(of(dropout, &once), Error::Mismatch { .. }));
    let integer = MultiHeadDotProductAttention {
        param_dtype: ScalarType::I32,
        ..new(2)
    };
    assert!(matches!(of(integer, &shapes), Error::NotInexact { .. }));
    let streams = Rngs::default();
    assert_eq!(new(2).init(&streams, &shapes), Err(Error::ParamsRngMissing));
}

#[test]
fn absurd_shapes_are_errors() {
    let key = Key::from_words([0, 0]);
    let mut out = [0.0f32; 4];
    let mut fill = |shape: &[usize], init: Initializer<'_>| {
        init.fill(key, shape, Drawing::default(), &mut out)
            .unwrap_err()
    };
    let huge = usize::MAX / 2;
    assert!(matches!(
        fill(&[huge, huge], Initializer::Zeros),
        Error::TooLarge { .. }
    ));
    assert!(matches!(
        fill(&[huge], Initializer::LecunNormal),
        Error::Buffer { .. }
    ));
    assert!(matches!(
        fill(&[4], Initializer::LecunNormal),
        Error::FanShape { .. }
    ));
    assert!(matches!(
        fill(&[1; 40], Initializer::Ones),
        Error::Rank { .. }
    ));
    let none = Initializer::HeUniform.fill::<f64>(key, &[0, 4], Drawing::default(), &mut []);
    assert!(matches!(none, Err(Error::FanShape { .. })));
    let rngs = Rngs::params(key);
    let layer = MultiHeadDotProductAttention::new(1);
    assert!(matches!(
        layer.init(&rngs, &InitShapes::new(&[1, huge])),
        Err(Error::TooLarge { .. })
    ));
    assert!(matches!(
        layer.init(&rngs, &InitShapes::new(&[])),
        Err(Error::Rank { .. })
    ));
}
