//! Gradients against finite differences, in every form of a call; their dtypes, their hooks, their errors.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AttentionArgs, AttentionFn, AttentionGradients, CacheAccess, Call, DType, DotGeneral,
    DotProductAttention, Einsum, Error, Gradients, HostKernels, MultiHeadDotProductAttention,
    ParamSource, Result, ScalarType, dot_product_attention, dot_product_attention_vjp,
};
use proptest::prelude::*;
use proptest::sample::select;
use support::{Numbers, Parameters, Sizes, half_unit, plain};

/// Which arrays a call is given.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    OneInput,
    Keys,
    KeysAndValues,
    KeyValue,
}

/// A random call of a random layer, all in one dtype.
#[derive(Debug, Clone)]
struct Case {
    seed: u64,
    form: Form,
    batch: Vec<usize>,
    lengths: [usize; 2],
    sizes: Sizes,
    use_bias: bool,
    normalize_qk: bool,
    masked: bool,
    rate: f64,
    broadcast_dropout: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let forms = vec![
        Form::OneInput,
        Form::Keys,
        Form::KeysAndValues,
        Form::KeyValue,
    ];
    let heads = (1..4usize, 1..4usize);
    let sizes = ([1..5usize, 1..5, 1..5], heads, 1..5usize, 1..5usize);
    let flags = any::<[bool; 4]>();
    let batches = vec![vec![], vec![1], vec![2], vec![2, 2]];
    (
        any::<u64>(),
        select(forms),
        select(batches),
        [1..6usize, 1..6],
        sizes,
        flags,
        select(vec![0.0, 0.3]),
    )
        .prop_map(|(seed, form, batch, lengths, sizes, flags, rate)| {
            let (mut features, (num_kv_heads, group), head_dim, out_features) = sizes;
            let mut lengths = lengths;
            match form {
                Form::OneInput => {
                    features = [features[0]; 3];
                    lengths[1] = lengths[0];
                }
                Form::Keys | Form::KeyValue => features[2] = features[1],
                Form::KeysAndValues => {}
            }
            let sizes = Sizes {
                features,
                num_heads: num_kv_heads * group,
                num_kv_heads,
                head_dim,
                out_features,
            };
            let [use_bias, normalize_qk, masked, broadcast_dropout] = flags;
            Case {
                seed,
                form,
                batch,
                lengths,
                sizes,
                use_bias,
                normalize_qk,
                masked,
                rate,
                broadcast_dropout,
            }
        })
}

/// A layer for the case, to which hooks of any lifetime can be given.
fn layer_of<'h>(case: &Case) -> MultiHeadDotProductAttention<'h> {
    let sizes = &case.sizes;
    MultiHeadDotProductAttention {
        num_kv_heads: sizes.num_kv_heads(),
        qkv_features: Some(sizes.num_heads * sizes.head_dim),
        out_features: Some(sizes.out_features),
        use_bias: case.use_bias,
        normalize_qk: case.normalize_qk,
        dropout_rate: case.rate,
        deterministic: Some(false),
        broadcast_dropout: case.broadcast_dropout,
        ..MultiHeadDotProductAttention::new(sizes.num_heads)
    }
}

/// A call's arrays: inputs and parameters by name, and those that have no gradient.
struct World {
    case: Case,
    layer: MultiHeadDotProductAttention<'static>,
    arrays: Vec<(&'static str, Tensor)>,
    mask: Option<Tensor>,
    /// The gradient of the output.
    d_out: Tensor,
}

fn named<'t>(arrays: &'t [(&'static str, Tensor)], name: &str) -> Option<TensorView<'t>> {
    let found = arrays.iter().find(|(given, _)| *given == name);
    found.map(|(_, tensor)| tensor.view())
}

impl World {
    fn new(case: &Case, dtype: DType) -> Self {
        let numbers = &mut Numbers(case.seed);
        let sizes = &case.sizes;
        let layer = layer_of(case);
        let [queries, keys] = case.lengths;
        let inputs: &[(&str, usize, usize)] = match case.form {
            Form::OneInput => &[("inputs_q", 0, queries)],
            Form::Keys => &[("inputs_q", 0, queries), ("inputs_k", 1, keys)],
            Form::KeyValue => &[("inputs_q", 0, queries), ("inputs_kv", 1, keys)],
            Form::KeysAndValues => &[
                ("inputs_q", 0, queries),
                ("inputs_k", 1, keys),
                ("inputs_v", 2, keys),
            ],
        };
        let mut arrays: Vec<(&'static str, Tensor)> = inputs
            .iter()
            .map(|&(name, role, length)| {
                let shape = [&case.batch[..], &[length, sizes.features[role]]].concat();
                (name, numbers.tensor(dtype.scalar(), &shape, 2.0))
            })
            .collect();
        let used = |name: &str| {
            (case.use_bias || !name.ends_with("bias"))
                && (case.normalize_qk || !name.ends_with("scale"))
        };
        let params = Parameters::new(numbers, sizes, dtype).0;
        arrays.extend(params.into_iter().filter(|(name, _)| used(name)));
        let mask = case
            .masked
            .then(|| numbers.tensor(ScalarType::Bool, &[queries, keys], 1.0));
        let out = [&case.batch[..], &[queries, sizes.out_features]].concat();
        Self {
            layer,
            arrays,
            mask,
            d_out: numbers.tensor(dtype.scalar(), &out, 1.0),
            case: case.clone(),
        }
    }

    fn call<'t>(&'t self, arrays: &'t [(&'static str, Tensor)]) -> Call<'t> {
        Call::new(named(arrays, "inputs_q").expect("always given"))
            .with_inputs_k(named(arrays, "inputs_k"))
            .with_inputs_v(named(arrays, "inputs_v"))
            .with_inputs_kv(named(arrays, "inputs_kv"))
            .with_mask(self.mask.as_ref().map(Tensor::view))
            .with_dropout_rng(Some([self.case.seed as u32, 7]))
    }

    fn params<'t>(&self, arrays: &'t [(&'static str, Tensor)]) -> Vec<(&'t str, TensorView<'t>)> {
        arrays
            .iter()
            .map(|(name, tensor)| (*name, tensor.view()))
            .collect()
    }

    fn gradients<B: HostKernels>(&self, backend: &B) -> Result<Gradients> {
        let params = self.params(&self.arrays);
        let call = self.call(&self.arrays);
        let (output, residuals) = self.layer.forward(backend, &params, call)?;
        let applied = self
            .layer
            .apply(backend, &params, self.call(&self.arrays))?;
        assert_eq!(output, applied);
        self.layer.backward(backend, &residuals, self.d_out.view())
    }
}

/// The gradient of an array of a call.
fn gradient_of(gradients: &Gradients, name: &str) -> Tensor {
    let given = match name {
        "inputs_q" => gradients.d_inputs_q.as_ref(),
        "inputs_k" => gradients.d_inputs_k.as_ref(),
        "inputs_v" => gradients.d_inputs_v.as_ref(),
        "inputs_kv" => gradients.d_inputs_kv.as_ref(),
        path => {
            let (scope, name) = path.split_once('/').expect("a parameter");
            let view = gradients.params.tensor(scope, name).expect("one for each");
            return view.to_tensor().expect("a small array");
        }
    };
    given.expect("one for each input that is given").clone()
}

/// The sum of products of `x`, an array or a gradient, with a direction, and the size of the terms that are rounded on the way: activations
/// are of size 1 also where their sum is not.
fn along(x: &Tensor, direction: &Tensor) -> (f64, f64) {
    assert_eq!(x.shape(), direction.shape());
    let pairs = x.to_vec_f64().into_iter().zip(direction.to_vec_f64());
    pairs.fold((0.0, 0.0), |(sum, size), (x, d)| {
        (sum + x * d, size + d.abs() * (1.0 + x.abs()))
    })
}

/// Holds a derivative along a direction against central differences of `loss` (and the size of its terms) at steps from 0.
///
/// With half the step a difference is off by a quarter, so two of them differ by thrice what the second is off by: once the step is small
/// beside what the loss bends by, which is little where a layer norm meets numbers that are nearly equal. Rounding adds at most a unit of each
/// term, over the step, and a term is itself a sum of a few dozen products. Of all steps the one counts whose bound is the smallest.
fn assert_derivative(what: &str, derivative: f64, loss: impl Fn(f64) -> (f64, f64)) {
    let differences: Vec<(f64, f64)> = (0..9)
        .map(|halvings| {
            let step = 1e-4 / f64::from(1 << halvings);
            let (ahead, behind) = (loss(step), loss(-step));
            let rounding = (ahead.1 + behind.1) * f64::EPSILON / step;
            ((ahead.0 - behind.0) / (2.0 * step), 64.0 * rounding)
        })
        .collect();
    let bounds = differences.windows(3).map(|steps| {
        let [(a, _), (b, _), (wanted, rounding)] = [steps[0], steps[1], steps[2]];
        (wanted, (a - b).abs().max((b - wanted).abs()) + rounding)
    });
    let smallest = bounds.min_by(|(_, a), (_, b)| a.total_cmp(b));
    let (wanted, allowed) = smallest.expect("several steps");
    let off = (derivative - wanted).abs();
    assert!(
        off <= allowed,
        "{what}: {derivative} instead of {wanted}, allowed {allowed:e}"
    );
}

fn moved(x: &Tensor, direction: &Tensor, step: f64) -> Tensor {
    let pairs = x.to_vec_f64().into_iter().zip(direction.to_vec_f64());
    let values = pairs.map(|(x, d)| x + step * d);
    Tensor::from_f64s(x.scalar(), x.shape(), values).expect("a small array")
}

fn holds_against_differences<B: HostKernels>(case: &Case, backend: &B) {
    let world = World::new(case, DType::F64);
    let gradients = world.gradients(backend).expect("a right call");
    assert_eq!(
        gradients.d_inputs_k.is_some(),
        matches!(case.form, Form::Keys | Form::KeysAndValues)
    );
    assert_eq!(
        gradients.d_inputs_v.is_some(),
        case.form == Form::KeysAndValues
    );
    assert_eq!(gradients.d_inputs_kv.is_some(), case.form == Form::KeyValue);
    let mut numbers = Numbers(case.seed ^ 77);
    for (index, (name, array)) in world.arrays.iter().enumerate() {
        let direction = numbers.tensor(ScalarType::F64, array.shape(), 1.0);
        let (derivative, _) = along(&gradient_of(&gradients, name), &direction);
        assert_derivative(&format!("{name} of {case:?}"), derivative, |step| {
            let mut arrays = world.arrays.clone();
            arrays[index].1 = moved(array, &direction, step);
            let params = world.params(&arrays);
            let call = world.call(&arrays);
            let out = world.layer.apply(backend, &params, call);
            let (loss, size) = along(&out.expect("a right call").out, &world.d_out);
            // A layer norm magnifies what it is given by up to one over the root of its epsilon, its rounding too.
            let magnified = if case.normalize_qk { 1e3 } else { 1.0 };
            (loss, magnified * size)
        });
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(150))]

    #[test]
    fn gradients_of_the_cpu_are_those_of_finite_differences(case in case()) {
        holds_against_differences(&case, &Cpu::detect());
    }

    #[test]
    fn gradients_of_plain_arithmetic_are_those_of_finite_differences(case in case()) {
        holds_against_differences(&case, &plain());
    }

    #[test]
    fn the_functions_gradients_are_those_of_finite_differences(
        seed in any::<u64>(),
        batch in select(vec![vec![], vec![2]]),
        lengths in [1..6usize, 1..6],
        heads in 1..3usize,
        depths in [1..4usize, 1..4],
        bias in proptest::option::of(proptest::collection::vec(any::<bool>(), 1..5)),
        masked in any::<bool>(),
        rate in select(vec![0.0, 0.4]),
        hooked in any::<bool>(),
    ) {
        let numbers = &mut Numbers(seed);
        let of = |length, depth| [&batch[..], &[length, heads, depth]].concat();
        let full = [&batch[..], &[heads, lengths[0], lengths[1]]].concat();
        let mut arrays = vec![
            numbers.tensor(ScalarType::F64, &of(lengths[0], depths[0]), 2.0),
            numbers.tensor(ScalarType::F64, &of(lengths[1], depths[0]), 2.0),
            numbers.tensor(ScalarType::F64, &of(lengths[1], depths[1]), 2.0),
        ];
        if let Some(ones) = &bias {
            let mut shape: Vec<usize> = ones
                .iter()
                .zip(full.iter().rev())
                .map(|(one, dim)| if *one { 1 } else { *dim })
                .collect();
            shape.reverse();
            arrays.push(numbers.tensor(ScalarType::F64, &shape, 1.0));
        }
        let mask = masked.then(|| numbers.tensor(ScalarType::Bool, &full, 1.0));
        fn same<F: for<'a> Fn(DotProductAttention<'a>) -> DotProductAttention<'a>>(f: F) -> F {
            f
        }
        let set = same(|mut arguments| {
            arguments.dropout_rate = rate;
            arguments.dropout_rng = Some([1, seed as u32]);
            if hooked {
                arguments.qk_attn_weights_einsum = Some(&PlainEinsum);
                arguments.attn_weights_value_einsum = Some(&PlainEinsum);
            }
            arguments
        });
        let cpu = Cpu::detect();
        let run = |arrays: &[Tensor]| {
            let arguments = DotProductAttention::new(arrays[0].view(), arrays[1].view());
            let mut arguments = set(arguments);
            arguments.bias = arrays.get(3).map(Tensor::view);
            arguments.mask = mask.as_ref().map(Tensor::view);
            dot_product_attention(&cpu, &arguments, arrays[2].view()).expect("a right call")
        };
        let mut given = set(DotProductAttention::new(arrays[0].view(), arrays[1].view()));
        given.bias = arrays.get(3).map(Tensor::view);
        given.mask = mask.as_ref().map(Tensor::view);
        let (out, residuals) = dot_product_attention_vjp(&cpu, &given, arrays[2].view()).unwrap();
        prop_assert_eq!(&out, &run(&arrays));
        let d_out = numbers.tensor(ScalarType::F64, out.shape(), 1.0);
        let gradients = residuals.backward(&cpu, d_out.view()).unwrap();
        prop_assert_eq!(gradients.d_bias.is_some(), bias.is_some());
        prop_assert!(gradients.d_query.is_some() && gradients.d_key.is_some() && gradients.d_value.is_some());
        let all = [gradients.d_query, gradients.d_key, gradients.d_value, gradients.d_bias];
        for (index, gradient) in all.into_iter().flatten().enumerate() {
            let direction = numbers.tensor(ScalarType::F64, arrays[index].shape(), 1.0);
            let (derivative, _) = along(&gradient, &direction);
            assert_derivative(&format!("array {index}"), derivative, |step| {
                let mut arrays = arrays.clone();
                arrays[index] = moved(&arrays[index], &direction, step);
                along(&run(&arrays), &d_out)
            });
        }
    }
}

/// Both einsums of Flax with their gradients, on `f64`.
struct PlainEinsum;

/// `[batch, heads, queries, keys, depth]` of the einsums' operands.
fn sizes_of(spec: &str, lhs: &[usize], rhs: &[usize]) -> [usize; 5] {
    let (l, r) = (lhs.len(), rhs.len());
    let batch = lhs[..l - 3].iter().product();
    let [heads, queries] = match spec {
        "...qhd,...khd->...hqk" => [lhs[l - 2], lhs[l - 3]],
        _ => [lhs[l - 3], lhs[l - 2]],
    };
    [batch, heads, queries, rhs[r - 3], rhs[r - 1]]
}

/// Calls `visit` with the indices of the three arrays for every product of an einsum: heads of the length `n` axis, weights.
fn products(sizes: [usize; 5], mut visit: impl FnMut(usize, usize, usize)) {
    let [batch, heads, queries, keys, depth] = sizes;
    for b in 0..batch {
        for h in 0..heads {
            for q in 0..queries {
                for k in 0..keys {
                    let weight = ((b * heads + h) * queries + q) * keys + k;
                    for d in 0..depth {
                        let of = |length, n| ((b * length + n) * heads + h) * depth + d;
                        visit(weight, of(queries, q), of(keys, k));
                    }
                }
            }
        }
    }
}

impl Einsum for PlainEinsum {
    fn call(&self, spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
        let sizes = sizes_of(spec, lhs.shape(), rhs.shape());
        let [_, heads, queries, keys, depth] = sizes;
        let batch = &lhs.shape()[..lhs.shape().rank() - 3];
        let scores = spec == "...qhd,...khd->...hqk";
        let tail = match scores {
            true => [heads, queries, keys],
            false => [queries, heads, depth],
        };
        let shape = [batch, &tail].concat();
        let mut out = vec![0.0; shape.iter().product()];
        products(sizes, |weight, query, key| {
            if scores {
                out[weight] += lhs.get_f64(query) * rhs.get_f64(key);
            } else {
                out[query] += lhs.get_f64(weight) * rhs.get_f64(key);
            }
        });
        Tensor::from_f64s(lhs.scalar(), &shape, out)
    }

    fn vjp(
        &self,
        spec: &str,
        lhs: TensorView<'_>,
        rhs: TensorView<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Option<[Tensor; 2]>> {
        let sizes = sizes_of(spec, lhs.shape(), rhs.shape());
        let scores = spec == "...qhd,...khd->...hqk";
        let (mut d_lhs, mut d_rhs) = (vec![0.0; lhs.elements()], vec![0.0; rhs.elements()]);
        products(sizes, |weight, query, key| {
            let (left, out) = if scores {
                (query, weight)
            } else {
                (weight, query)
            };
            d_lhs[left] += d_out.get_f64(out) * rhs.get_f64(key);
            d_rhs[key] += d_out.get_f64(out) * lhs.get_f64(left);
        });
        Ok(Some([
            Tensor::from_f64s(lhs.scalar(), lhs.shape(), d_lhs)?,
            Tensor::from_f64s(rhs.scalar(), rhs.shape(), d_rhs)?,
        ]))
    }
}

/// `lhs · rhs` with its gradients.
struct PlainProduct;

impl DotGeneral for PlainProduct {
    fn call(&self, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
        let (features, outputs) = (rhs.shape()[0], rhs.shape()[1]);
        let rows = lhs.elements() / features;
        let values = (0..rows * outputs).map(|n| {
            let (row, output) = (n / outputs, n % outputs);
            (0..features)
                .map(|f| lhs.get_f64(row * features + f) * rhs.get_f64(f * outputs + output))
                .sum()
        });
        let shape = [&lhs.shape()[..lhs.shape().rank() - 1], &[outputs]].concat();
        Tensor::from_f64s(lhs.scalar(), &shape, values)
    }

    fn vjp(
        &self,
        lhs: TensorView<'_>,
        rhs: TensorView<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Option<[Tensor; 2]>> {
        let (features, outputs) = (rhs.shape()[0], rhs.shape()[1]);
        let rows = lhs.elements() / features;
        let (mut d_lhs, mut d_rhs) = (vec![0.0; lhs.elements()], vec![0.0; rhs.elements()]);
        for row in 0..rows {
            for f in 0..features {
                for output in 0..outputs {
                    let gradient = d_out.get_f64(row * outputs + output);
                    d_lhs[row * features + f] += gradient * rhs.get_f64(f * outputs + output);
                    d_rhs[f * outputs + output] += gradient * lhs.get_f64(row * features + f);
                }
            }
        }
        Ok(Some([
            Tensor::from_f64s(lhs.scalar(), lhs.shape(), d_lhs)?,
            Tensor::from_f64s(rhs.scalar(), rhs.shape(), d_rhs)?,
        ]))
    }
}

/// Flax's own core by this crate's function.
struct PlainAttention;

fn arguments<'a>(
    query: TensorView<'a>,
    key: TensorView<'a>,
    args: &AttentionArgs<'a>,
) -> DotProductAttention<'a> {
    let mut arguments = DotProductAttention::new(query, key);
    arguments.mask = args.mask;
    arguments.dropout_rng = args.dropout_rng;
    arguments.dropout_rate = args.dropout_rate;
    arguments.broadcast_dropout = args.broadcast_dropout;
    arguments.convention = args.convention;
    arguments.deterministic = args.deterministic;
    arguments
}

impl AttentionFn for PlainAttention {
    fn call(
        &self,
        query: TensorView<'_>,
        key: TensorView<'_>,
        value: TensorView<'_>,
        args: &AttentionArgs<'_>,
    ) -> Result<Tensor> {
        dot_product_attention(&Cpu::detect(), &arguments(query, key, args), value)
    }

    fn vjp(
        &self,
        query: TensorView<'_>,
        key: TensorView<'_>,
        value: TensorView<'_>,
        args: &AttentionArgs<'_>,
        d_out: TensorView<'_>,
    ) -> Result<Option<[Tensor; 3]>> {
        let cpu = Cpu::detect();
        let arguments = arguments(query, key, args);
        let (_, residuals) = dot_product_attention_vjp(&cpu, &arguments, value)?;
        let AttentionGradients {
            d_query,
            d_key,
            d_value,
            ..
        } = residuals.backward(&cpu, d_out)?;
        let all = || Some([d_query?, d_key?, d_value?]);
        Ok(all())
    }
}

fn example() -> Case {
    Case {
        seed: 5,
        form: Form::KeysAndValues,
        batch: vec![2],
        lengths: [4, 5],
        sizes: Sizes {
            features: [5, 4, 3],
            num_heads: 2,
            num_kv_heads: 2,
            head_dim: 3,
            out_features: 4,
        },
        use_bias: true,
        normalize_qk: true,
        masked: true,
        rate: 0.2,
        broadcast_dropout: false,
    }
}

/// Every gradient of a call by name.
fn all(world: &World, gradients: &Gradients) -> Vec<(&'static str, Tensor)> {
    world
        .arrays
        .iter()
        .map(|(name, _)| (*name, gradient_of(gradients, name)))
        .collect()
}

fn largest(tensor: &Tensor) -> f64 {
    tensor
        .view()
        .iter_f64()
        .fold(0.0, |most, x| most.max(x.abs()))
}

#[test]
fn hooks_that_bring_a_vjp_keep_the_gradients() {
    let world = World::new(&example(), DType::F64);
    let wanted = all(&world, &world.gradients(&Cpu::detect()).unwrap());
    let einsum = || -> Box<dyn Einsum> { Box::new(PlainEinsum) };
    let layers = [
        MultiHeadDotProductAttention {
            qkv_dot_general: Some(&PlainProduct),
            ..layer_of(&world.case)
        },
        MultiHeadDotProductAttention {
            out_dot_general: Some(&PlainProduct),
            ..layer_of(&world.case)
        },
        MultiHeadDotProductAttention {
            attention_fn: Some(&PlainAttention),
            ..layer_of(&world.case)
        },
        MultiHeadDotProductAttention {
            qk_attn_weights_einsum_cls: Some(&einsum),
            attn_weights_value_einsum_cls: Some(&einsum),
            ..layer_of(&world.case)
        },
    ];
    for layer in layers {
        let params = world.params(&world.arrays);
        let call = world.call(&world.arrays);
        let (_, residuals) = layer.forward(&Cpu::detect(), &params, call).unwrap();
        let gradients = layer.backward(&Cpu::detect(), &residuals, world.d_out.view());
        let gradients = all(&world, &gradients.unwrap());
        for ((name, got), (_, wanted)) in gradients.iter().zip(&wanted) {
            for (a, b) in got.view().iter_f64().zip(wanted.view().iter_f64()) {
                // Some hundred roundings of numbers of this size.
                let allowed = 256.0 * f64::EPSILON * largest(wanted).max(1.0);
                assert!((a - b).abs() <= allowed, "{name}: {a} {b}");
            }
        }
    }
}

#[test]
fn hooks_without_a_vjp_say_so() {
    let world = World::new(&example(), DType::F32);
    let product = |lhs: TensorView<'_>, rhs: TensorView<'_>| PlainProduct.call(lhs, rhs);
    let core = |q: TensorView<'_>,
                k: TensorView<'_>,
                v: TensorView<'_>,
                args: &AttentionArgs<'_>| PlainAttention.call(q, k, v, args);
    let einsum = || -> Box<dyn Einsum> {
        Box::new(|spec: &str, lhs: TensorView<'_>, rhs: TensorView<'_>| {
            PlainEinsum.call(spec, lhs, rhs)
        })
    };
    let whole = || -> Box<dyn Einsum> { Box::new(PlainEinsum) };
    let layer = || layer_of(&world.case);
    let cases = [
        (
            "qkv_dot_general",
            MultiHeadDotProductAttention {
                qkv_dot_general: Some(&product),
                ..layer()
            },
        ),
        (
            "out_dot_general",
            MultiHeadDotProductAttention {
                out_dot_general: Some(&product),
                ..layer()
            },
        ),
        (
            "attention_fn",
            MultiHeadDotProductAttention {
                attention_fn: Some(&core),
                ..layer()
            },
        ),
        (
            "attn_weights_value_einsum",
            MultiHeadDotProductAttention {
                qk_attn_weights_einsum_cls: Some(&whole),
                attn_weights_value_einsum_cls: Some(&einsum),
                ..layer()
            },
        ),
        (
            "qk_attn_weights_einsum",
            MultiHeadDotProductAttention {
                qk_attn_weights_einsum_cls: Some(&einsum),
                attn_weights_value_einsum_cls: Some(&whole),
                ..layer()
            },
        ),
    ];
    for (field, layer) in cases {
        let params = world.params(&world.arrays);
        let call = world.call(&world.arrays);
        let (_, residuals) = layer.forward(&Cpu::detect(), &params, call).unwrap();
        let error = layer.backward(&Cpu::detect(), &residuals, world.d_out.view());
        match error.unwrap_err() {
            Error::Unsupported {
                backend, feature, ..
            } => assert_eq!((backend, feature), (field, "gradients")),
            other => panic!("{field}: {other}"),
        }
    }
}

#[test]
fn a_vjp_of_wrong_shapes_is_an_error() {
    struct Wrong;
    impl DotGeneral for Wrong {
        fn call(&self, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
            PlainProduct.call(lhs, rhs)
        }
        fn vjp(
            &self,
            lhs: TensorView<'_>,
            _: TensorView<'_>,
            _: TensorView<'_>,
        ) -> Result<Option<[Tensor; 2]>> {
            Ok(Some([lhs.to_tensor()?, lhs.to_tensor()?]))
        }
    }
    let world = World::new(&example(), DType::F32);
    let layer = MultiHeadDotProductAttention {
        out_dot_general: Some(&Wrong),
        ..world.layer.clone()
    };
    let params = world.params(&world.arrays);
    let call = world.call(&world.arrays);
    let (_, residuals) = layer.forward(&Cpu::detect(), &params, call).unwrap();
    let error = layer.backward(&Cpu::detect(), &residuals, world.d_out.view());
    assert!(matches!(
        error,
        Err(Error::Hook {
            hook: "out_dot_general",
            ..
        })
    ));
}

#[test]
fn an_error_of_a_vjp_stays_as_it_is() {
    /// What the layer itself would say of a hook without gradients.
    const ITS_OWN: Error = Error::Unsupported {
        backend: "hook",
        feature: "gradients",
        instead: "Implement `vjp` for it",
    };
    struct Fails;
    impl DotGeneral for Fails {
        fn call(&self, lhs: TensorView<'_>, rhs: TensorView<'_>) -> Result<Tensor> {
            PlainProduct.call(lhs, rhs)
        }
        fn vjp(
            &self,
            _: TensorView<'_>,
            _: TensorView<'_>,
            _: TensorView<'_>,
        ) -> Result<Option<[Tensor; 2]>> {
            Err(ITS_OWN)
        }
    }
    let world = World::new(&example(), DType::F32);
    let layer = MultiHeadDotProductAttention {
        out_dot_general: Some(&Fails),
        ..world.layer.clone()
    };
    let params = world.params(&world.arrays);
    let call = world.call(&world.arrays);
    let (_, residuals) = layer.forward(&Cpu::detect(), &params, call).unwrap();
    let error = layer.backward(&Cpu::detect(), &residuals, world.d_out.view());
    assert_eq!(error.unwrap_err(), ITS_OWN);
}

/// What the gradients of one array are off by in several calls, as a sum of squares.
#[derive(Debug, Clone, Copy, Default)]
struct Errors {
    got: f64,
    plain: f64,
    elements: f64,
    largest: f64,
    unit: f64,
}

fn squares(a: &Tensor, b: &Tensor) -> f64 {
    let pairs = a.to_vec_f64().into_iter().zip(b.to_vec_f64());
    pairs.map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The gradients of a mixed call, held against the same in `f64` throughout.
#[derive(Debug, Clone, Copy)]
struct Mixed {
    inputs: DType,
    params: DType,
    dtype: Option<DType>,
    forced: bool,
}

impl Mixed {
    fn world(&self, case: &Case) -> World {
        let mut world = World::new(case, DType::F64);
        for (name, array) in &mut world.arrays {
            let is_param = name.contains('/');
            let dtype = if is_param { self.params } else { self.inputs };
            *array = array.to_dtype(dtype).unwrap();
        }
        world.layer.dtype = self.dtype.map(DType::scalar);
        world.layer.force_fp32_for_softmax = self.forced;
        let params = world.params(&world.arrays);
        let call = world.call(&world.arrays);
        let out = world.layer.apply(&plain(), &params, call).unwrap().out;
        world.d_out = world.d_out.view().to_scalar(out.scalar()).unwrap();
        world
    }

    /// Of every array, in the order of the case's.
    fn errors(&self, case: &Case) -> Vec<(&'static str, Errors)> {
        let world = self.world(case);
        let got = all(&world, &world.gradients(&Cpu::detect()).unwrap());
        let reference = all(&world, &world.gradients(&plain()).unwrap());
        let mut exact = World::new(case, DType::F64);
        let wide = |array: &Tensor| array.to_dtype(DType::F64).unwrap();
        let arrays = world.arrays.iter();
        exact.arrays = arrays.map(|(name, array)| (*name, wide(array))).collect();
        exact.d_out = wide(&world.d_out);
        let truth = all(&exact, &exact.gradients(&plain()).unwrap());
        let computed = self
            .dtype
            .unwrap_or_else(|| self.inputs.promote(self.params));
        let gradients = got.iter().zip(&reference).zip(&truth).zip(&world.arrays);
        gradients
            .map(|((((name, got), (_, plain)), (_, truth)), (_, primal))| {
                let like = (primal.scalar(), primal.shape());
                assert_eq!((got.scalar(), got.shape()), like, "{name}: {self:?}");
                let errors = Errors {
                    got: squares(got, truth),
                    plain: squares(plain, truth),
                    elements: got.view().elements() as f64,
                    largest: largest(truth),
                    unit: half_unit(got.scalar()).max(half_unit(computed.scalar())),
                };
                (*name, errors)
            })
            .collect()
    }

    /// The root of the mean square over several calls: each of a few numbers of 16 bits is off by chance.
    fn hold(&self, case: &Case) {
        let mut sums: Vec<(&'static str, Errors)> = Vec::new();
        for seed in 0..16 {
            let case = Case {
                seed,
                ..case.clone()
            };
            let errors = self.errors(&case);
            if sums.is_empty() {
                sums = errors;
                continue;
            }
            for ((_, sum), (_, errors)) in sums.iter_mut().zip(errors) {
                sum.got += errors.got;
                sum.plain += errors.plain;
                sum.elements += errors.elements;
                sum.largest = sum.largest.max(errors.largest);
            }
        }
        for (name, errors) in sums {
            let mean = |squares: f64| (squares / errors.elements).sqrt();
            let allowed = (2.0 * mean(errors.plain)).max(errors.unit * errors.largest);
            let off = mean(errors.got);
            assert!(off <= allowed, "{name}: {self:?} {off:e} {allowed:e}");
        }
    }
}

#[test]
fn each_gradient_has_the_dtype_of_its_array() {
    // Without dropout: its multiplier, rounded, would be another factor than that of f64.
    let case = Case {
        rate: 0.0,
        lengths: [9, 11],
        ..example()
    };
    for (inputs, params, dtype) in [
        (DType::F32, DType::F32, None),
        (DType::F32, DType::F32, Some(DType::BF16)),
        (DType::BF16, DType::F32, None),
        (DType::F16, DType::BF16, None),
        (DType::F16, DType::F16, None),
        (DType::BF16, DType::BF16, Some(DType::F32)),
        (DType::F64, DType::F32, Some(DType::F32)),
        (DType::F32, DType::F64, Some(DType::F16)),
    ] {
        for forced in [false, true] {
            let mixed = Mixed {
                inputs,
                params,
                dtype,
                forced,
            };
            mixed.hold(&case);
            // The sum of three uses.
            mixed.hold(&Case {
                form: Form::OneInput,
                sizes: Sizes::of(6, 2),
                lengths: [9, 9],
                ..case.clone()
            });
        }
    }
}

#[test]
fn gradients_have_the_same_bits_for_every_number_of_threads() {
    let case = Case {
        lengths: [70, 133],
        batch: vec![3],
        ..example()
    };
    for dtype in DType::ALL {
        let world = World::new(&case, dtype);
        let one = world.gradients(&Cpu::detect()).unwrap();
        for threads in [1, 2, 5] {
            let cpu = Cpu::detect().with_threads(threads).unwrap();
            assert_eq!(world.gradients(&cpu).unwrap(), one, "{dtype} {threads}");
        }
    }
}

#[test]
fn parameters_come_in_the_order_of_flax() {
    let world = World::new(&example(), DType::F32);
    let gradients = world.gradients(&Cpu::detect()).unwrap();
    let paths: Vec<&str> = gradients.params.iter().map(|(path, _)| path).collect();
    let wanted = [
        "query/kernel",
        "query/bias",
        "key/kernel",
        "key/bias",
        "value/kernel",
        "value/bias",
        "query_ln/scale",
        "key_ln/scale",
        "out/kernel",
        "out/bias",
    ];
    assert_eq!(paths, wanted);
    assert!(gradients.params.tensor("query", "scale").is_none());
    assert!(!gradients.params.is_empty());
    assert_eq!(gradients.params.into_iter().count(), wanted.len());
}

#[test]
fn a_fully_masked_query_has_no_gradient_but_its_values_have() {
    let case = Case {
        normalize_qk: false,
        masked: false,
        rate: 0.0,
        ..example()
    };
    let mut world = World::new(&case, DType::F32);
    world.mask = Some(Tensor::zeros(ScalarType::Bool, &[1]).unwrap());
    let gradients = world.gradients(&Cpu::detect()).unwrap();
    assert_eq!(largest(gradients.d_inputs_q.as_ref().expect("floats")), 0.0);
    assert_eq!(largest(&gradients.d_inputs_k.unwrap()), 0.0);
    assert!(largest(&gradients.d_inputs_v.unwrap()) > 0.0);
}

#[test]
fn lengths_of_zero_have_gradients_of_zero() {
    for lengths in [[0, 3], [3, 0], [0, 0]] {
        let case = Case {
            lengths,
            rate: 0.0,
            masked: false,
            ..example()
        };
        let world = World::new(&case, DType::F32);
        let gradients = world.gradients(&Cpu::detect()).unwrap();
        for (name, gradient) in all(&world, &gradients) {
            // Without keys the output is the bias of `out`.
            let is_bias = name == "out/bias" && lengths[0] > 0;
            assert_eq!(largest(&gradient) > 0.0, is_bias, "{name} {lengths:?}");
        }
    }
}

#[test]
fn a_gradient_unlike_the_output_is_an_error() {
    let world = World::new(&example(), DType::F32);
    let params = world.params(&world.arrays);
    let call = || world.call(&world.arrays);
    let (_, residuals) = world
        .layer
        .forward(&Cpu::detect(), &params, call())
        .unwrap();
    let run = |d_out: &Tensor| {
        world
            .layer
            .backward(&Cpu::detect(), &residuals, d_out.view())
    };
    let short = Tensor::zeros(ScalarType::F32, &[2, 3, 4]).unwrap();
    assert!(matches!(
        run(&short),
        Err(Error::Shape {
            argument: "d_out",
            ..
        })
    ));
    assert_eq!(
        run(&world.d_out.to_dtype(DType::F64).unwrap()),
        Err(Error::DTypeMismatch {
            argument: "d_out",
            got: ScalarType::F64,
            wanted: ScalarType::F32
        })
    );
}

#[test]
fn an_input_of_integers_goes_without_a_gradient_and_leaves_the_others_theirs() {
    let mut world = World::new(&example(), DType::F32);
    let rounded = |world: &mut World, scalar| {
        let inputs = world.arrays.iter_mut();
        let (_, array) = inputs
            .into_iter()
            .find(|(name, _)| *name == "inputs_v")
            .unwrap();
        *array = array.view().to_scalar(scalar).unwrap();
    };
    rounded(&mut world, ScalarType::I32);
    let integers = world.gradients(&plain()).unwrap();
    rounded(&mut world, ScalarType::F32);
    let floats = world.gradients(&plain()).unwrap();
    assert!(integers.d_inputs_v.is_none() && floats.d_inputs_v.is_some());
    assert_eq!(integers.d_inputs_q, floats.d_inputs_q);
    assert_eq!(integers.params, floats.params);
}

#[test]
fn an_operand_of_integers_goes_without_a_gradient_and_leaves_the_others_theirs() {
    let mut numbers = Numbers(17);
    let shapes: [&[usize]; 4] = [&[2, 4, 2, 3], &[2, 5, 2, 3], &[2, 5, 2, 6], &[4, 5]];
    let whole = shapes.map(|shape| {
        let array = numbers.tensor(ScalarType::F32, shape, 4.0);
        array.view().to_scalar(ScalarType::I32).unwrap()
    });
    let floats = whole.each_ref().map(|array| {
        let array = array.view().to_scalar(ScalarType::F32);
        array.unwrap()
    });
    let cpu = Cpu::detect();
    let d_out = numbers.tensor(ScalarType::F32, &[2, 4, 2, 6], 1.0);
    for einsums in [false, true] {
        let run = |arrays: [&Tensor; 4]| {
            let [query, key, value, bias] = arrays.map(Tensor::view);
            let mut arguments = DotProductAttention::new(query, key);
            arguments.bias = Some(bias);
            if einsums {
                arguments.qk_attn_weights_einsum = Some(&PlainEinsum);
                arguments.attn_weights_value_einsum = Some(&PlainEinsum);
            }
            let (out, residuals) = dot_product_attention_vjp(&cpu, &arguments, value).unwrap();
            let AttentionGradients {
                d_query,
                d_key,
                d_value,
                d_bias,
                ..
            } = residuals.backward(&cpu, d_out.view()).unwrap();
            (out, [d_query, d_key, d_value, d_bias])
        };
        let (out, wanted) = run(floats.each_ref());
        assert!(
            wanted
                .iter()
                .flatten()
                .all(|gradient| largest(gradient) > 0.0)
        );
        // The first, the second, …, and all of them.
        for integers in [1u8, 2, 4, 8, 15] {
            let is_integer = |n: usize| integers >> n & 1 == 1;
            let given = [0, 1, 2, 3].map(|n| if is_integer(n) { &whole[n] } else { &floats[n] });
            let (got_out, got) = run(given);
            assert_eq!(got_out, out);
            for (n, (got, wanted)) in got.iter().zip(&wanted).enumerate() {
                match is_integer(n) {
                    true => assert!(got.is_none()),
                    false => assert!(got.is_some() && got == wanted, "{n}"),
                }
            }
        }
    }
}

#[test]
fn parameters_of_integers_have_no_gradients() {
    let mut world = World::new(&example(), DType::F32);
    let found = world
        .arrays
        .iter_mut()
        .find(|(given, _)| *given == "key/bias");
    let (_, array) = found.unwrap();
    *array = array.view().to_scalar(ScalarType::I32).unwrap();
    let params = world.params(&world.arrays);
    world
        .layer
        .apply(&Cpu::detect(), &params, world.call(&world.arrays))
        .expect("integers go forward");
    let call = world.call(&world.arrays);
    let error = world
        .layer
        .forward(&Cpu::detect(), &params, call)
        .unwrap_err();
    let got = ScalarType::I32;
    assert!(
        matches!(error, Error::DTypeMismatch { got: found, .. } if found == got),
        "{error}"
    );
}

#[test]
fn the_call_that_makes_a_cache_has_gradients_and_a_step_has_not() {
    let case = Case {
        form: Form::OneInput,
        sizes: Sizes::of(6, 2),
        lengths: [4, 4],
        ..example()
    };
    let mut world = World::new(&case, DType::F64);
    let wanted = world.gradients(&plain()).unwrap();
    world.layer.decode = true;
    let params = world.params(&world.arrays);
    let mut cache = None;
    let call = || world.call(&world.arrays);
    let mutable = call().with_cache(CacheAccess::Mutable(&mut cache));
    let (_, residuals) = world.layer.forward(&plain(), &params, mutable).unwrap();
    let gradients = world
        .layer
        .backward(&plain(), &residuals, world.d_out.view());
    assert_eq!(gradients.unwrap(), wanted);
    drop(residuals);
    assert!(cache.is_some());
    let before = cache.clone();
    let mutable = call().with_cache(CacheAccess::Mutable(&mut cache));
    let step = world.layer.forward(&plain(), &params, mutable);
    assert!(matches!(step, Err(Error::Unsupported { .. })));
    assert_eq!(cache, before);
    let none = world.layer.forward(&plain(), &params, call());
    assert!(matches!(none, Err(Error::CacheMissing)));
}
