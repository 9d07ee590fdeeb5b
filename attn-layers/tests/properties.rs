//! What holds for every shape, dtype, mask and option: no panic, success where all fits, the output's shape and dtype.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{
    AnyCache, CacheAccess, Call, DType, Dims, DotProductAttention, Error,
    MultiHeadDotProductAttention, ScalarType, combine_masks, dot_product_attention,
    dot_product_attention_weights, make_attention_mask, make_causal_mask,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use support::{Numbers, Parameters, Sizes};

fn scalar() -> impl Strategy<Value = ScalarType> {
    select(ScalarType::ALL.to_vec())
}

fn dtype() -> impl Strategy<Value = DType> {
    select(DType::ALL.to_vec())
}

fn shape(rank: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = Vec<usize>> {
    vec(0..4usize, rank)
}

/// Numbers of which some are infinite, not a number, or as large as the type allows.
fn wild(numbers: &mut Numbers, scalar: ScalarType, shape: &[usize], share: f64) -> Tensor {
    let tame = numbers.tensor(scalar, shape, 2.0);
    let special = [
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        f64::MAX,
        f64::MIN,
        1e-320,
    ];
    let values = tame.to_vec_f64().into_iter().map(|tame| {
        if numbers.uniform() < share {
            special[numbers.bits() as usize % special.len()]
        } else {
            tame
        }
    });
    Tensor::from_f64s(scalar, shape, values).expect("a small array")
}

/// A call in which everything fits.
#[derive(Debug, Clone)]
struct Fitting {
    seed: u64,
    batch: Vec<usize>,
    lengths: [usize; 2],
    sizes: Sizes,
    /// Of the inputs and the parameters.
    scalars: [ScalarType; 2],
    dtype: Option<DType>,
    /// Which axes of the mask are 1, from the last; as many as it has.
    mask: Option<(ScalarType, Vec<bool>)>,
    flags: [bool; 4],
    wild: f64,
}

fn fitting() -> impl Strategy<Value = Fitting> {
    let heads = (1..4usize, 1..4usize);
    let sizes = ([0..5usize, 0..5, 0..5], heads, 0..5usize, 0..5usize);
    let sizes = sizes.prop_map(
        |(features, (num_kv_heads, group), head_dim, out_features)| Sizes {
            features,
            num_heads: num_kv_heads * group,
            num_kv_heads,
            head_dim,
            out_features,
        },
    );
    (
        any::<u64>(),
        shape(0..3),
        [0..6usize, 0..6],
        sizes,
        [scalar(), scalar()],
        option::of(dtype()),
        option::of((scalar(), vec(any::<bool>(), 0..6))),
        any::<[bool; 4]>(),
        select(vec![0.0, 0.1]),
    )
        .prop_map(
            |(seed, batch, lengths, mut sizes, scalars, dtype, mask, flags, wild)| {
                // 0 means the features of `inputs_q`, so a width of 0 is one only if those are.
                if sizes.head_dim == 0 {
                    let heads = sizes.num_heads;
                    sizes.features[0] = sizes.features[0] / heads * heads;
                    sizes.head_dim = sizes.features[0] / heads;
                }
                if sizes.out_features == 0 {
                    sizes.out_features = sizes.features[0];
                }
                Fitting {
                    seed,
                    batch,
                    lengths,
                    sizes,
                    scalars,
                    dtype,
                    mask,
                    flags,
                    wild,
                }
            },
        )
}

impl Fitting {
    fn layer(&self) -> MultiHeadDotProductAttention<'static> {
        let [use_bias, normalize_qk, force_fp32_for_softmax, _] = self.flags;
        MultiHeadDotProductAttention {
            dtype: self.dtype.map(DType::scalar),
            use_bias,
            normalize_qk,
            force_fp32_for_softmax,
            ..support::layer(&self.sizes)
        }
    }

    fn params(&self) -> Parameters {
        let numbers = &mut Numbers(self.seed);
        Parameters::new(numbers, &self.sizes, DType::F32).cast(self.scalars[1])
    }

    fn inputs(&self) -> [Tensor; 3] {
        let numbers = &mut Numbers(self.seed ^ 1);
        let lengths = [self.lengths[0], self.lengths[1], self.lengths[1]];
        [0, 1, 2].map(|n| {
            let shape = [&self.batch[..], &[lengths[n], self.sizes.features[n]]].concat();
            wild(numbers, self.scalars[0], &shape, self.wild)
        })
    }

    fn weights_shape(&self) -> Vec<usize> {
        let [queries, keys] = self.lengths;
        [&self.batch[..], &[self.sizes.num_heads, queries, keys]].concat()
    }

    fn mask(&self) -> Option<Tensor> {
        let (scalar, ones) = self.mask.as_ref()?;
        let full = self.weights_shape();
        let axes = ones.iter().zip(full.iter().rev());
        let mut shape: Vec<usize> = axes.map(|(one, dim)| if *one { 1 } else { *dim }).collect();
        shape.reverse();
        Some(Numbers(self.seed ^ 2).tensor(*scalar, &shape, 1.0))
    }

    /// The dtype of output and weights, by Flax's rules.
    fn dtypes(&self) -> [ScalarType; 2] {
        let [input, params] = self.scalars;
        let inferred = self.dtype.unwrap_or_else(|| input.promote(params));
        let forced = self.layer().force_fp32_for_softmax;
        let out = match (forced, self.dtype) {
            (true, None) => inferred.promote(DType::F32),
            _ => inferred,
        };
        let weights = if forced { DType::F32 } else { inferred };
        [out.scalar(), weights.scalar()]
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_call_that_fits_succeeds(case in fitting()) {
        let (params, [q, k, v], mask) = (case.params(), case.inputs(), case.mask());
        let call = Call::new(q.view())
            .with_inputs_k(Some(k.view()))
            .with_inputs_v(Some(v.view()))
            .with_mask(mask.as_ref().map(Tensor::view))
            .with_sow_weights(case.flags[3]);
        let output = case.layer().apply(&Cpu::detect(), &params.source(), call);
        let output = output.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let [dtype, weights_dtype] = case.dtypes();
        let shape = [&case.batch[..], &[case.lengths[0], case.sizes.out_features]].concat();
        prop_assert_eq!(output.out.shape().as_slice(), &shape[..]);
        prop_assert_eq!(output.out.scalar(), dtype);
        prop_assert_eq!(output.attention_weights.is_some(), case.flags[3]);
        if let Some(weights) = output.attention_weights {
            prop_assert_eq!(weights.shape().as_slice(), &case.weights_shape()[..]);
            prop_assert_eq!(weights.scalar(), weights_dtype);
            if case.wild == 0.0 {
                // Each row is a distribution, up to the rounding of its entries.
                let unit = support::half_unit(weights_dtype);
                let keys = case.lengths[1];
                for row in weights.to_vec_f64().chunks(keys.max(1)) {
                    let off = (row.iter().sum::<f64>() - 1.0).abs();
                    prop_assert!(off <= 2.0 * unit * keys as f64, "{off}");
                }
            }
        }
    }

    #[test]
    fn a_call_that_fits_has_gradients_but_of_integers(case in fitting()) {
        let (params, [q, k, v], mask) = (case.params(), case.inputs(), case.mask());
        let call = Call::new(q.view())
            .with_inputs_k(Some(k.view()))
            .with_inputs_v(Some(v.view()))
            .with_mask(mask.as_ref().map(Tensor::view))
            .with_dropout_rng(Some([1, 2]));
        let layer = MultiHeadDotProductAttention {
            dropout_rate: if case.flags[3] { 0.5 } else { 0.0 },
            deterministic: Some(false),
            ..case.layer()
        };
        let source = params.source();
        let passed = layer.forward(&Cpu::detect(), &source, call);
        if case.scalars[1].float().is_none() {
            let is_typed = matches!(passed, Err(Error::DTypeMismatch { .. }));
            prop_assert!(is_typed, "{:?}", passed.err());
            return Ok(());
        }
        let (output, residuals) = passed.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let d_out = Tensor::zeros(output.out.scalar(), output.out.shape()).unwrap();
        let gradients = layer.backward(&Cpu::detect(), &residuals, d_out.view());
        let gradients = gradients.map_err(|error| TestCaseError::fail(error.to_string()))?;
        let inputs = [gradients.d_inputs_q, gradients.d_inputs_k, gradients.d_inputs_v];
        for (gradient, input) in inputs.into_iter().zip([&q, &k, &v]) {
            prop_assert_eq!(gradient.is_some(), input.scalar().float().is_some());
            if let Some(gradient) = gradient {
                prop_assert_eq!(gradient.shape(), input.shape());
                prop_assert_eq!(gradient.scalar(), input.scalar());
            }
        }
        for (path, gradient) in gradients.params.iter() {
            let param = params.get(path);
            prop_assert_eq!(gradient.shape(), param.shape());
            prop_assert_eq!(gradient.scalar(), param.scalar());
        }
    }

    #[test]
    fn a_call_that_does_not_fit_is_an_error_not_a_panic(
        case in fitting(),
        num_heads in 0..4usize,
        num_kv_heads in option::of(0..4usize),
        widths in [option::of(0..7usize), option::of(0..7usize)],
        inputs in [option::of(shape(0..5)), option::of(shape(0..5)), option::of(shape(0..5))],
        replaced in option::of((0..10usize, shape(0..4))),
        mask in option::of(shape(0..6)),
        dtype in option::of(scalar()),
        decode in any::<bool>(),
        cache in option::of((shape(0..6), shape(0..6), any::<i32>(), scalar())),
    ) {
        let mut layer = case.layer();
        (layer.num_heads, layer.num_kv_heads) = (num_heads, num_kv_heads);
        [layer.qkv_features, layer.out_features] = widths;
        (layer.dtype, layer.decode) = (dtype, decode);
        let mut params = case.params();
        if let Some((index, shape)) = replaced {
            let (name, _) = params.0[index];
            params.set(name, Tensor::zeros(case.scalars[1], &shape).unwrap());
        }
        let zeros = |shape: &Vec<usize>| Tensor::zeros(case.scalars[0], shape).unwrap();
        let [q, k, v] = inputs.each_ref().map(|shape| shape.as_ref().map(zeros));
        let q = q.unwrap_or_else(|| case.inputs()[0].clone());
        let mask = mask.as_ref().map(zeros);
        let mut cache = cache.map(|(key, value, cache_index, scalar)| AnyCache {
            cached_key: Tensor::zeros(scalar, &key).unwrap(),
            cached_value: Tensor::zeros(scalar, &value).unwrap(),
            cache_index,
        });
        let before = cache.clone();
        let call = || {
            Call::new(q.view())
                .with_inputs_k(k.as_ref().map(Tensor::view))
                .with_inputs_v(v.as_ref().map(Tensor::view))
                .with_mask(mask.as_ref().map(Tensor::view))
                .with_sow_weights(true)
        };
        let source = params.source();
        let made = layer.init_cache(&source, &call());
        let stepped = layer.apply(
            &Cpu::detect(),
            &source,
            call().with_cache(CacheAccess::Mutable(&mut cache)),
        );
        if let Err(error) = stepped {
            prop_assert!(!error.to_string().is_empty());
            prop_assert_eq!(&cache, &before);
        }
        layer.decode = false;
        if let Ok((output, residuals)) = layer.forward(&Cpu::detect(), &source, call()) {
            let d_out = Tensor::zeros(output.out.scalar(), output.out.shape()).unwrap();
            prop_assert!(layer.backward(&Cpu::detect(), &residuals, d_out.view()).is_ok());
        }
        layer.decode = decode;
        let Some(mut cache) = cache.or_else(|| made.ok()) else { return Ok(()) };
        let before = cache.clone();
        if layer.prefill(&Cpu::detect(), &source, call(), &mut cache).is_err() {
            prop_assert_eq!(cache, before);
        }
    }

    #[test]
    fn the_functions_never_panic(
        seed in any::<u64>(),
        shapes in [shape(0..6), shape(0..6), shape(0..6)],
        fit in any::<bool>(),
        extra in [option::of(shape(0..6)), option::of(shape(0..6))],
        scalars in [scalar(), scalar(), scalar(), scalar()],
        dtype in option::of(scalar()),
        forced in any::<bool>(),
    ) {
        let [query, mut key, mut value] = shapes;
        if fit && query.len() >= 3 {
            key.clone_from(&query);
            value.clone_from(&query);
        }
        let numbers = &mut Numbers(seed);
        let [query, key, value] = [query, key, value]
            .map(|shape| wild(numbers, scalars[0], &shape, 0.1));
        let [bias, mask] = extra;
        let bias = bias.map(|shape| wild(numbers, scalars[1], &shape, 0.1));
        let mask = mask.map(|shape| wild(numbers, scalars[2], &shape, 0.1));
        let mut arguments = DotProductAttention::new(query.view(), key.view());
        arguments.bias = bias.as_ref().map(Tensor::view);
        arguments.mask = mask.as_ref().map(Tensor::view);
        arguments.dtype = dtype;
        arguments.force_fp32_for_softmax = forced;
        let out = dot_product_attention(&Cpu::detect(), &arguments, value.view());
        let weights = dot_product_attention_weights(&Cpu::detect(), &arguments);
        if let Ok(out) = &out {
            prop_assert!(weights.is_ok());
            let [.., last] = value.shape().as_slice() else { unreachable!("it has three axes") };
            let axes = query.shape().rank() - 1;
            prop_assert_eq!(&out.shape()[..axes], &query.shape()[..axes]);
            prop_assert_eq!(out.shape()[axes], *last);
        }
    }

    #[test]
    fn the_mask_helpers_never_panic(
        shapes in vec(shape(0..5), 1..4),
        extra in 0..20usize,
        dtype in scalar(),
        given in scalar(),
    ) {
        let masks: Vec<Tensor> = shapes
            .iter()
            .map(|shape| Numbers(7).tensor(given, shape, 1.0))
            .collect();
        let views: Vec<Option<TensorView<'_>>> = masks.iter().map(|mask| Some(mask.view())).collect();
        if let Ok(combined) = combine_masks(&views, dtype) {
            prop_assert_eq!(combined.expect("one is given").scalar(), dtype);
        }
        let first = masks[0].view();
        let causal = make_causal_mask(&first, extra, dtype);
        let rank = first.shape().rank() + 2 + extra;
        prop_assert_eq!(causal.is_ok(), first.shape().rank() > 0 && rank <= 16);
        let pair = make_attention_mask(&first, &masks[masks.len() - 1].view(), extra, dtype);
        if let Ok(pair) = pair {
            prop_assert_eq!(pair.scalar(), dtype);
        }
    }

    #[test]
    fn a_mask_means_what_it_broadcasts_to(case in fitting()) {
        // NaN is not equal to itself.
        let case = Fitting { wild: 0.0, ..case };
        let Some(mask) = case.mask() else { return Ok(()) };
        let full = Dims::new(&case.weights_shape()).unwrap();
        let ones = Tensor::from_f64s(
            ScalarType::Bool,
            &full,
            std::iter::repeat_n(1.0, full.elements().unwrap()),
        ).unwrap();
        // Only masks of one rank combine.
        let shape = [&[1; 16][..full.rank() - mask.shape().rank()], mask.shape()].concat();
        let reshaped = mask.view().reshape(&shape).unwrap();
        let wide = combine_masks(&[Some(reshaped), Some(ones.view())], ScalarType::I8)
            .unwrap()
            .expect("two are given");
        let (params, [q, k, v]) = (case.params(), case.inputs());
        let run = |mask: TensorView<'_>| {
            let call = Call::new(q.view())
                .with_inputs_k(Some(k.view()))
                .with_inputs_v(Some(v.view()))
                .with_mask(Some(mask));
            case.layer().apply(&Cpu::detect(), &params.source(), call).unwrap()
        };
        prop_assert_eq!(run(mask.view()), run(wide.view()));
    }

    #[test]
    fn pieces_of_any_size_give_the_bits_of_one_by_one(
        case in fitting(),
        tokens in 1..9usize,
        max_length in 1..9usize,
        pieces in vec(1..5usize, 8),
        masked in any::<bool>(),
    ) {
        let mut case = case;
        case.lengths = [tokens, tokens];
        let mut layer = case.layer();
        layer.decode = true;
        let (params, inputs) = (case.params(), case.inputs());
        let longest = case.inputs().map(|input| resized(&input, max_length));
        let source = params.source();
        let call = Call::new(longest[0].view())
            .with_inputs_k(Some(longest[1].view()))
            .with_inputs_v(Some(longest[2].view()));
        let fresh = layer.init_cache(&source, &call).unwrap();
        let shape = [&case.batch[..], &[1, tokens, max_length]].concat();
        let mask = masked.then(|| Numbers(case.seed).tensor(ScalarType::Bool, &shape, 1.0));
        let run = |counts: &[usize]| -> Result<(Vec<Vec<u8>>, AnyCache), Error> {
            let (mut cache, mut first, mut rows) = (fresh.clone(), 0, Vec::new());
            for &count in counts {
                let [q, k, v] = inputs.each_ref().map(|x| tokens_of(x, 2, first, count));
                let mask = mask.as_ref().map(|mask| tokens_of(mask, 2, first, count));
                let call = Call::new(q.view())
                    .with_inputs_k(Some(k.view()))
                    .with_inputs_v(Some(v.view()))
                    .with_mask(mask.as_ref().map(Tensor::view));
                let out = layer.prefill(&Cpu::detect(), &source, call, &mut cache)?.out;
                rows.extend((0..count).map(|token| {
                    tokens_of(&out, 2, token, 1).view().bytes().to_vec()
                }));
                first += count;
            }
            Ok((rows, cache))
        };
        let mut counts = Vec::new();
        for piece in pieces {
            let left = tokens - counts.iter().sum::<usize>();
            counts.extend((left > 0).then_some(piece.min(left)));
        }
        counts.extend(Some(tokens - counts.iter().sum::<usize>()).filter(|&left| left > 0));
        let alone = run(&vec![1; tokens]).unwrap();
        let together = run(&counts).unwrap();
        prop_assert_eq!(alone.0, together.0);
        let bytes = |cache: &AnyCache| {
            (cache.cached_key.view().bytes().to_vec(), cache.cached_value.view().bytes().to_vec())
        };
        prop_assert_eq!(bytes(&alone.1), bytes(&together.1));
        prop_assert_eq!(alone.1.cache_index, together.1.cache_index);
    }
}

/// Zeros like `x` with another length.
fn resized(x: &Tensor, length: usize) -> Tensor {
    let mut shape = x.shape().to_vec();
    let axis = shape.len() - 2;
    shape[axis] = length;
    Tensor::zeros(x.scalar(), &shape).expect("a small array")
}

/// `count` entries of the axis that is `from_end` from the last.
fn tokens_of(x: &Tensor, from_end: usize, first: usize, count: usize) -> Tensor {
    let axis = x.shape().rank() - from_end;
    let (length, size) = (x.shape()[axis], x.scalar().size());
    let entry = x.shape()[axis + 1..].iter().product::<usize>() * size;
    let view = x.view();
    let blocks = view.bytes().chunks((length * entry).max(1));
    let bytes: Vec<u8> = blocks
        .flat_map(|block| &block[first * entry..(first + count) * entry])
        .copied()
        .collect();
    let mut shape = x.shape().to_vec();
    shape[axis] = count;
    let part = TensorView::new(x.scalar(), &shape, &bytes).expect("a part");
    part.to_tensor().expect("a small array")
}
