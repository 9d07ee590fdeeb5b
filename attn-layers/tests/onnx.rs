//! What the ONNX operator means: equalities between calls, the rules of its versions, its errors, its gradients. Its numbers are held
//! against recorded cases in `replay.rs`.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

mod support;

use attn_layers::cpu::Cpu;
use attn_layers::onnx::{
    Attention, Opset, Outputs, attention, attention_vjp, precision_of_type, stage_of_mode,
    window_of_size,
};
use attn_layers::tensor::{Tensor, TensorView};
use attn_layers::{DType, Error, HostKernels, ScalarType, core::Stage};
use support::Numbers;

/// Arrays of a call, which its views borrow.
struct Arrays {
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

impl Arrays {
    /// Of rank 4: `[batch, heads, length, head_size]`.
    fn new(scalar: ScalarType, q: [usize; 4], k: [usize; 4], v_head_size: usize) -> Self {
        let mut numbers = Numbers(q.iter().chain(&k).sum::<usize>() as u64);
        let v = [k[0], k[1], k[2], v_head_size];
        Self {
            q: numbers.tensor(scalar, &q, 2.0),
            k: numbers.tensor(scalar, &k, 2.0),
            v: numbers.tensor(scalar, &v, 2.0),
        }
    }

    /// Two batch entries, 4 heads of queries and 2 of keys, 3 queries, 5 keys.
    fn small(scalar: ScalarType) -> Self {
        Self::new(scalar, [2, 4, 3, 6], [2, 2, 5, 6], 4)
    }

    fn call(&self) -> Attention<'_> {
        Attention::new(self.q.view(), self.k.view(), self.v.view())
    }
}

fn edited<'a>(mut call: Attention<'a>, edit: impl FnOnce(&mut Attention<'a>)) -> Attention<'a> {
    edit(&mut call);
    call
}

fn outputs<B: HostKernels>(backend: &B, call: &Attention<'_>) -> Outputs {
    attention(backend, call).expect("a call in which all fits")
}

fn error<B: HostKernels>(backend: &B, call: &Attention<'_>) -> Error {
    attention(backend, call).expect_err("a call that cannot be made")
}

fn y<B: HostKernels>(backend: &B, call: &Attention<'_>) -> Tensor {
    outputs(backend, call).y
}

/// Makes tests of functions of a backend, one on the CPU's kernels and one in plain arithmetic.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_the_cpu {
            $(#[test]
            fn $name() {
                super::$name(&super::Cpu::detect());
            })+
        }
        mod in_plain_arithmetic {
            $(#[test]
            fn $name() {
                super::$name(&super::support::plain());
            })+
        }
    };
}

/// A tensor with two of its axes changed, `[a, b, c, d]` to `[a, c, b, d]`.
fn swapped(tensor: &Tensor) -> Tensor {
    let &[a, b, c, d] = tensor.shape().as_slice() else {
        panic!("four axes")
    };
    let values = tensor.to_vec_f64();
    let mut order = Vec::new();
    for entry in 0..a {
        for row in 0..c {
            for head in 0..b {
                let start = ((entry * b + head) * c + row) * d;
                order.extend_from_slice(&values[start..start + d]);
            }
        }
    }
    Tensor::from_f64s(tensor.scalar(), &[a, c, b, d], order).expect("as many")
}

/// Rows `from..to` of the length axis of `[batch, heads, length, size]`.
fn rows(tensor: &Tensor, from: usize, to: usize) -> Tensor {
    let &[batch, heads, length, size] = tensor.shape().as_slice() else {
        panic!("four axes")
    };
    let values = tensor.to_vec_f64();
    let heads_of = values.chunks(length * size);
    let cut = heads_of.flat_map(|head| head[from * size..to * size].to_vec());
    Tensor::from_f64s(tensor.scalar(), &[batch, heads, to - from, size], cut).expect("as many")
}

/// A batch entry of any array.
fn entry(tensor: &Tensor, index: usize) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let values = tensor.to_vec_f64();
    let each = values.len() / shape[0];
    shape[0] = 1;
    let cut = values[index * each..(index + 1) * each].iter().copied();
    Tensor::from_f64s(tensor.scalar(), &shape, cut).expect("as many")
}

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_slice(values, shape).expect("as many")
}

fn booleans(shape: &[usize], values: &[bool]) -> Tensor {
    let values = values.iter().map(|value| f64::from(u8::from(*value)));
    Tensor::from_f64s(ScalarType::Bool, shape, values).expect("as many")
}

fn lengths(values: &[i64]) -> Tensor {
    let values = values.iter().map(|value| *value as f64);
    Tensor::from_f64s(ScalarType::I64, &[values.len()], values).expect("as many")
}

fn rank_3_is_rank_4_with_heads_inside<B: HostKernels>(backend: &B) {
    for scalar in [ScalarType::F32, ScalarType::BF16, ScalarType::F64] {
        let arrays = Arrays::small(scalar);
        let packed = [&arrays.q, &arrays.k, &arrays.v].map(|array| {
            let array = swapped(array);
            let &[batch, length, heads, size] = array.shape().as_slice() else {
                panic!("four axes")
            };
            array
                .reshape(&[batch, length, heads * size])
                .expect("as many")
        });
        let [q, k, v] = packed.each_ref().map(Tensor::view);
        let mut call = Attention::new(q, k, v);
        (call.q_num_heads, call.kv_num_heads) = (Some(4), Some(2));
        (call.is_causal, call.present) = (true, true);
        let mut other = arrays.call();
        (other.is_causal, other.present) = (true, true);
        let (rank_3, rank_4) = (outputs(backend, &call), outputs(backend, &other));
        let flat = swapped(&rank_4.y)
            .reshape(rank_3.y.shape())
            .expect("as many");
        assert_eq!(rank_3.y, flat);
        assert_eq!(rank_3.present_key, rank_4.present_key);
        assert_eq!(rank_3.present_value.as_ref(), Some(&arrays.v));
    }
}

fn a_past_is_the_beginning_of_the_keys<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let [past_key, k] = [rows(&arrays.k, 0, 2), rows(&arrays.k, 2, 5)];
    let [past_value, v] = [rows(&arrays.v, 0, 2), rows(&arrays.v, 2, 5)];
    let mut call = Attention::new(arrays.q.view(), k.view(), v.view());
    call.past_key = Some(past_key.view());
    call.past_value = Some(past_value.view());
    (call.is_causal, call.present) = (true, true);
    let got = outputs(backend, &call);
    assert_eq!(got.present_key.as_ref(), Some(&arrays.k));
    assert_eq!(got.present_value.as_ref(), Some(&arrays.v));
    // Query 0 lies behind the past: it sees keys 0 to 2.
    let sees: Vec<bool> = (0..3)
        .flat_map(|q| (0..5).map(move |k| k <= q + 2))
        .collect();
    let mask = booleans(&[3, 5], &sees);
    let mut masked = arrays.call();
    masked.attn_mask = Some(mask.view());
    assert_eq!(got.y, y(backend, &masked));
}

fn lengths_are_those_of_each_entry<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let counts = [5, 2];
    let given = lengths(&counts);
    let mut call = arrays.call();
    call.nonpad_kv_seqlen = Some(given.view());
    call.is_causal = true;
    let together = y(backend, &call);
    for (index, count) in counts.into_iter().enumerate() {
        let count = count as usize;
        let [q, k, v] = [&arrays.q, &arrays.k, &arrays.v].map(|array| entry(array, index));
        let (k, v) = (rows(&k, 0, count), rows(&v, 0, count));
        // The last query lies at the last key; where there are fewer keys than queries, the first see none.
        let sees = (0..3).flat_map(|q| (0..count).map(move |k| k + 3 <= q + count));
        let mask = booleans(&[3, count], &sees.collect::<Vec<_>>());
        let mut alone = Attention::new(q.view(), k.view(), v.view());
        alone.attn_mask = Some(mask.view());
        assert_eq!(entry(&together, index), y(backend, &alone), "{count} keys");
    }
    assert_eq!(rows(&entry(&together, 1), 0, 1).to_vec_f64(), [0.0; 16]);
}

fn a_window_hides_what_lies_outside<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F64);
    let mut window = arrays.call();
    (window.left_window_size, window.right_window_size) = (Some(1), Some(2));
    let sees = (0..3i32).flat_map(|q| (0..5).map(move |k| q - 1 <= k && k <= q + 2));
    let mask = booleans(&[3, 5], &sees.collect::<Vec<_>>());
    let mut masked = arrays.call();
    masked.attn_mask = Some(mask.view());
    let (window, masked) = (
        y(backend, &window).to_vec_f64(),
        y(backend, &masked).to_vec_f64(),
    );
    // Kernels may pass over hidden keys, so that sums have another order.
    for (window, masked) in window.into_iter().zip(masked) {
        assert!((window - masked).abs() <= 16.0 * f64::EPSILON);
    }
}

fn minus_infinity_hides_as_false_does<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let hidden = f32::NEG_INFINITY;
    let added = floats(
        &[3, 5],
        &[
            0.0, hidden, 0.0, hidden, 0.0, hidden, hidden, hidden, hidden, hidden, 0.0, 0.0, 0.0,
            0.0, hidden,
        ],
    );
    let sees: Vec<bool> = added
        .to_vec_f64()
        .iter()
        .map(|added| *added == 0.0)
        .collect();
    let mask = booleans(&[3, 5], &sees);
    let with = |mask: &Tensor, stage| {
        let mut call = arrays.call();
        call.attn_mask = Some(mask.view());
        call.qk_matmul_output = Some(stage);
        outputs(backend, &call)
    };
    for stage in [Stage::Scaled, Stage::Capped, Stage::Masked, Stage::Softmax] {
        assert_eq!(with(&added, stage), with(&mask, stage), "{stage:?}");
    }
    let blind = rows(&with(&mask, Stage::Softmax).y, 1, 2);
    assert_eq!(blind.to_vec_f64(), [0.0; 32], "a query that sees nothing");
    let scores = with(&mask, Stage::Masked)
        .qk_matmul_output
        .expect("asked for");
    for (index, score) in scores.to_vec_f64().into_iter().enumerate() {
        assert_eq!(score == f64::NEG_INFINITY, !sees[index % 15]);
    }
}

fn what_is_hidden_never_shows<B: HostKernels>(backend: &B) {
    let mut arrays = Arrays::small(ScalarType::F32);
    let mask = booleans(&[5], &[true, true, false, true, true]);
    let masked = |arrays: &Arrays| {
        let mut call = arrays.call();
        call.attn_mask = Some(mask.view());
        y(backend, &call)
    };
    let clean = masked(&arrays);
    for (array, size) in [(&mut arrays.k, 6), (&mut arrays.v, 4)] {
        let values = array.to_vec_f64().into_iter().enumerate();
        let poisoned = values.map(|(index, value)| match index / size % 5 {
            2 => f64::NAN,
            _ => value,
        });
        *array =
            Tensor::from_f64s(ScalarType::F32, &array.shape().clone(), poisoned).expect("as many");
    }
    assert_eq!(masked(&arrays), clean);
}

fn a_short_mask_hides_the_keys_beyond_it<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let short = floats(&[3, 2], &[0.5, -1.0, f32::NEG_INFINITY, 1.0, 0.0, 2.0]);
    let long: Vec<f32> = (short.as_slice::<f32>().expect("f32").chunks(2))
        .flat_map(|row| {
            [
                row[0],
                row[1],
                f32::NEG_INFINITY,
                f32::NEG_INFINITY,
                f32::NEG_INFINITY,
            ]
        })
        .collect();
    let long = floats(&[3, 5], &long);
    let with = |mask: &Tensor, opset, stage| {
        let mut call = arrays.call();
        call.attn_mask = Some(mask.view());
        (call.opset, call.qk_matmul_output) = (opset, stage);
        attention(backend, &call)
    };
    let stages = [Stage::Scaled, Stage::Capped, Stage::Masked, Stage::Softmax];
    for stage in stages.map(Some).into_iter().chain([None]) {
        let got = with(&short, Opset::V24, stage);
        assert_eq!(got, with(&long, Opset::V24, stage), "{stage:?}");
        assert!(got.is_ok());
    }
    let refused = with(&short, Opset::V23, None);
    assert!(matches!(
        refused,
        Err(Error::Broadcast {
            argument: "bias",
            ..
        })
    ));
}

fn a_mask_of_one_column_depends_on_the_opset<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let column = booleans(&[3, 1], &[true, false, true]);
    let with = |opset| {
        let mut call = arrays.call();
        call.attn_mask = Some(column.view());
        (call.opset, call.qk_matmul_output) = (opset, Some(Stage::Softmax));
        let weights = outputs(backend, &call)
            .qk_matmul_output
            .expect("asked for")
            .to_vec_f64();
        let seen = weights[..15]
            .chunks(5)
            .map(|row| row.iter().filter(|weight| **weight > 0.0).count());
        seen.collect::<Vec<_>>()
    };
    assert_eq!(with(Opset::V23), [5, 0, 5], "repeated for every key");
    assert_eq!(
        with(Opset::V24),
        [1, 0, 1],
        "the end of the keys that are seen"
    );
}

fn softmax_in_float64_makes_it_all_float64<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F16);
    let mut call = arrays.call();
    call.softmax_precision = Some(DType::F64);
    let wide = [&arrays.q, &arrays.k, &arrays.v]
        .map(|array| array.to_dtype(DType::F64).expect("a small array"));
    let [q, k, v] = wide.each_ref().map(Tensor::view);
    let exact = y(backend, &Attention::new(q, k, v));
    assert_eq!(
        y(backend, &call),
        exact.to_dtype(DType::F16).expect("a small array")
    );
    call.softmax_precision = Some(DType::F16);
    assert_eq!(
        y(backend, &call),
        y(backend, &arrays.call()),
        "no less than float32"
    );
}

fn types_may_differ_between_keys_and_values<B: HostKernels>(backend: &B) {
    let halves = Arrays::small(ScalarType::F16);
    let brains = Arrays::small(ScalarType::BF16);
    let mut call = Attention::new(halves.q.view(), halves.k.view(), brains.v.view());
    call.present = true;
    let got = outputs(backend, &call);
    assert_eq!(got.y.scalar(), ScalarType::F16);
    assert_eq!(
        got.present_value.map(|value| value.scalar()),
        Some(ScalarType::BF16)
    );
    let call = Attention::new(halves.q.view(), brains.k.view(), halves.v.view());
    assert!(matches!(
        error(backend, &call),
        Error::DTypeMismatch { argument: "K", .. }
    ));
}

fn nothing_is_asked_of_empty_arrays<B: HostKernels>(backend: &B) {
    for (q, k) in [
        ([2, 4, 0, 6], [2, 2, 5, 6]),
        ([2, 4, 3, 6], [2, 2, 0, 6]),
        ([0, 4, 3, 6], [0, 2, 5, 6]),
    ] {
        let arrays = Arrays::new(ScalarType::F32, q, k, 4);
        let mut call = arrays.call();
        call.qk_matmul_output = Some(Stage::Masked);
        call.present = true;
        let got = outputs(backend, &call);
        assert_eq!(got.y.to_vec_f64(), vec![0.0; q[0] * q[1] * q[2] * 4]);
        let scores = got.qk_matmul_output.expect("asked for");
        assert_eq!(scores.shape().as_slice(), [q[0], q[1], q[2], k[2]]);
    }
}

fn what_an_opset_lacks_is_refused<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let given = lengths(&[5, 5]);
    let window = edited(arrays.call(), |call| {
        (call.left_window_size, call.opset) = (Some(1), Opset::V24);
    });
    assert!(matches!(
        error(backend, &window),
        Error::Unsupported {
            feature: "windows",
            ..
        }
    ));
    let mut heads = arrays.call();
    (heads.q_num_heads, heads.kv_num_heads) = (Some(4), Some(2));
    assert!(matches!(error(backend, &heads), Error::Unsupported { .. }));
    heads.opset = Opset::V24;
    assert_eq!(
        outputs(backend, &heads),
        outputs(backend, &arrays.call()),
        "they are those of the shapes"
    );
    heads.q_num_heads = Some(2);
    assert!(matches!(
        error(backend, &heads),
        Error::Shape { argument: "Q", .. }
    ));
    let with_lengths = || {
        let mut call = arrays.call();
        call.nonpad_kv_seqlen = Some(given.view());
        call
    };
    let mut call = with_lengths();
    call.opset = Opset::V23;
    assert!(matches!(
        error(backend, &call),
        Error::Unsupported {
            feature: "nonpad_kv_seqlen",
            ..
        }
    ));
    let mut call = with_lengths();
    call.present = true;
    assert!(matches!(
        error(backend, &call),
        Error::Exclusive {
            right: "present_key",
            ..
        }
    ));
    assert!(Opset::of_import(22).is_err());
    assert_eq!(Opset::of_import(30), Ok(Opset::V25));
}

fn errors_name_what_does_not_fit<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F32);
    let mut numbers = Numbers(1);
    let mut tensor = |shape: &[usize]| numbers.tensor(ScalarType::F32, shape, 1.0);
    let (flat, past, other) = (
        tensor(&[2, 3, 24]),
        tensor(&[2, 2, 7, 6]),
        tensor(&[2, 2, 7, 5]),
    );
    let call = || arrays.call();
    let rank = Attention::new(flat.view(), arrays.k.view(), arrays.v.view());
    assert!(matches!(error(backend, &rank), Error::Mismatch { .. }));
    let without = Attention::new(flat.view(), flat.view(), flat.view());
    assert!(matches!(
        error(backend, &without),
        Error::Rank {
            argument: "Q",
            got: 3,
            ..
        }
    ));
    let heads = |q, kv| {
        edited(without, |call| {
            (call.q_num_heads, call.kv_num_heads) = (Some(q), Some(kv));
        })
    };
    assert_eq!(error(backend, &heads(0, 1)), Error::NoHeads);
    assert!(matches!(
        error(backend, &heads(5, 5)),
        Error::Shape { argument: "Q", .. }
    ));
    assert!(matches!(
        error(backend, &heads(6, 4)),
        Error::Mismatch { .. }
    ));
    let alone = edited(call(), |call| call.past_key = Some(past.view()));
    assert!(matches!(error(backend, &alone), Error::Together { .. }));
    let unlike = edited(call(), |call| {
        (call.past_key, call.past_value) = (Some(other.view()), Some(other.view()));
    });
    assert!(matches!(
        error(backend, &unlike),
        Error::Shape {
            argument: "past_key",
            ..
        }
    ));
    let cap = edited(call(), |call| call.softcap = -1.0);
    assert_eq!(error(backend, &cap), Error::Softcap { got: -1.0 });
    for (counts, index, got) in [([6, 1], 0, 6), ([1, -1], 1, -1)] {
        let given = lengths(&counts);
        let call = edited(call(), |call| call.nonpad_kv_seqlen = Some(given.view()));
        let argument = "nonpad_kv_seqlen";
        let (least, most) = (0, 5);
        assert_eq!(
            error(backend, &call),
            Error::Entry {
                argument,
                index,
                got,
                least,
                most
            }
        );
    }
    let wide = floats(&[6], &[0.0; 6]);
    let mask = edited(call(), |call| call.attn_mask = Some(wide.view()));
    assert!(matches!(error(backend, &mask), Error::Broadcast { .. }));
}

#[test]
fn numbers_of_attributes_are_checked() {
    let stages = [Stage::Scaled, Stage::Capped, Stage::Masked, Stage::Softmax];
    assert_eq!([0, 1, 2, 3].map(stage_of_mode), stages.map(Ok));
    assert!(stage_of_mode(4).is_err() && stage_of_mode(-1).is_err());
    let types = [DType::F32, DType::F16, DType::F64, DType::BF16];
    assert_eq!([1, 10, 11, 16].map(precision_of_type), types.map(Ok));
    assert!(precision_of_type(7).is_err());
    assert_eq!(window_of_size("left_window_size", -1), Ok(None));
    assert_eq!(window_of_size("left_window_size", 0), Ok(Some(0)));
    assert!(window_of_size("left_window_size", -2).is_err());
}

/// A call for gradients: its arrays by name, in `float64`.
struct Graded {
    arrays: [Tensor; 6],
    edit: fn(&mut Attention<'_>),
}

impl Graded {
    const Q: usize = 0;
    const MASK: usize = 5;

    /// One with a past and a mask of floats, one element of it `-inf`.
    fn new(kv_heads: usize, edit: fn(&mut Attention<'_>)) -> Self {
        let mut numbers = Numbers(7);
        let mut tensor = |shape: &[usize]| numbers.tensor(ScalarType::F64, shape, 1.0);
        let mask = tensor(&[4, 1, 7]).to_vec_f64().into_iter().enumerate();
        let mask = mask.map(|(index, value)| if index == 9 { f64::NEG_INFINITY } else { value });
        let mask = Tensor::from_f64s(ScalarType::F64, &[4, 1, 7], mask).expect("as many");
        Self {
            arrays: [
                tensor(&[2, 3, 4 * 3]),
                tensor(&[2, 5, kv_heads * 3]),
                tensor(&[2, 5, kv_heads * 2]),
                tensor(&[2, kv_heads, 2, 3]),
                tensor(&[2, kv_heads, 2, 2]),
                mask,
            ],
            edit,
        }
    }

    fn call<'v>(
        &self,
        [q, k, v, past_key, past_value, mask]: [TensorView<'v>; 6],
    ) -> Attention<'v> {
        let mut call = Attention::new(q, k, v);
        let &[_, kv_heads, ..] = past_key.shape().as_slice() else {
            panic!("four axes")
        };
        (call.q_num_heads, call.kv_num_heads) = (Some(4), Some(kv_heads));
        (call.past_key, call.past_value) = (Some(past_key), Some(past_value));
        call.attn_mask = Some(mask);
        (self.edit)(&mut call);
        call
    }

    /// `sum(Y * weights)` with one number of one array moved.
    fn loss<B: HostKernels>(
        &self,
        backend: &B,
        weights: &[f64],
        moved: (usize, usize, f64),
    ) -> f64 {
        let (array, index, step) = moved;
        let mut arrays = self.arrays.clone();
        let mut values = arrays[array].to_vec_f64();
        values[index] += step;
        let shape = *arrays[array].shape();
        arrays[array] = Tensor::from_f64s(ScalarType::F64, &shape, values).expect("as many");
        let call = self.call(arrays.each_ref().map(Tensor::view));
        let outputs = attention(backend, &call).expect("a call in which all fits");
        let y = outputs.y.to_vec_f64();
        y.iter().zip(weights).map(|(y, weight)| y * weight).sum()
    }

    fn check<B: HostKernels>(&self, backend: &B, what: &str) {
        let call = self.call(self.arrays.each_ref().map(Tensor::view));
        let (outputs, residuals) = attention_vjp(backend, &call).expect("a call in which all fits");
        assert_eq!(Ok(&outputs), attention(backend, &call).as_ref(), "{what}");
        let d_y = Numbers(8).tensor(ScalarType::F64, outputs.y.shape(), 1.0);
        let gradients = residuals.backward(backend, d_y.view()).expect("gradients");
        let gradients = [
            Some(gradients.d_q),
            Some(gradients.d_k),
            Some(gradients.d_v),
            gradients.d_past_key,
            gradients.d_past_value,
            gradients.d_attn_mask,
        ]
        .map(|gradient| gradient.expect("of every array"));
        let weights = d_y.to_vec_f64();
        // The error of a central difference is of the size of step^2 and epsilon / step; both are this for the cube root of epsilon.
        let step = f64::EPSILON.cbrt();
        let allowed = 64.0 * step * step;
        for (array, gradient) in gradients.iter().enumerate() {
            assert_eq!(gradient.shape(), self.arrays[array].shape(), "{what}");
            let values = gradient.to_vec_f64();
            for index in (0..values.len()).step_by(if array == Self::Q { 1 } else { 3 }) {
                let difference = match self.arrays[array].to_vec_f64()[index] {
                    f64::NEG_INFINITY => 0.0,
                    _ => {
                        let moved = |step| self.loss(backend, &weights, (array, index, step));
                        (moved(step) - moved(-step)) / (2.0 * step)
                    }
                };
                let off = (values[index] - difference).abs();
                assert!(
                    off <= allowed,
                    "{what}: array {array} at {index} is off by {off:e}"
                );
            }
            assert!(values.iter().any(|value| *value != 0.0), "{what}: {array}");
        }
        assert_eq!(gradients[Self::MASK].to_vec_f64()[9], 0.0, "{what}: hidden");
    }
}

fn gradients_are_those_of_the_output<B: HostKernels>(backend: &B) {
    Graded::new(4, |call| call.scale = Some(0.7)).check(backend, "scale");
    Graded::new(4, |call| call.is_causal = true).check(backend, "causal");
    Graded::new(2, |call| call.is_causal = true).check(backend, "grouped");
    Graded::new(1, |call| call.softcap = 1.5).check(backend, "softcap");
    Graded::new(2, |call| call.left_window_size = Some(2)).check(backend, "window");
    gradients_of_lengths_are_those_of_a_mask(backend);
}

fn gradients_of_lengths_are_those_of_a_mask<B: HostKernels>(backend: &B) {
    let arrays = Arrays::small(ScalarType::F64);
    let given = lengths(&[4, 2]);
    let by_lengths = edited(arrays.call(), |call| {
        call.nonpad_kv_seqlen = Some(given.view())
    });
    let sees = [4, 2]
        .into_iter()
        .flat_map(|count| (0..5).map(move |key| key < count));
    let mask = booleans(&[2, 1, 1, 5], &sees.collect::<Vec<_>>());
    let by_mask = edited(arrays.call(), |call| call.attn_mask = Some(mask.view()));
    let [by_lengths, by_mask] = [by_lengths, by_mask].map(|call| {
        let (outputs, residuals) = attention_vjp(backend, &call).expect("a call in which all fits");
        let d_y = Numbers(9).tensor(ScalarType::F64, outputs.y.shape(), 1.0);
        let gradients = residuals.backward(backend, d_y.view()).expect("gradients");
        [gradients.d_q, gradients.d_k, gradients.d_v].map(|gradient| gradient.to_vec_f64())
    });
    for (lengths, mask) in by_lengths.iter().flatten().zip(by_mask.iter().flatten()) {
        // A kernel that passes over hidden keys may sum in another order.
        assert!(
            (lengths - mask).abs() <= 64.0 * f64::EPSILON,
            "{lengths} and {mask}"
        );
    }
}

fn gradients_of_other_arrays_are_refused<B: HostKernels>(backend: &B) {
    let arrays = Arrays::new(ScalarType::F32, [1, 2, 3, 4], [1, 2, 5, 4], 4);
    let (outputs, residuals) =
        attention_vjp(backend, &arrays.call()).expect("a call in which all fits");
    let unlike = outputs.y.to_dtype(DType::F64).expect("a small array");
    let refused = residuals.backward(backend, unlike.view());
    assert!(matches!(
        refused,
        Err(Error::DTypeMismatch {
            argument: "d_out",
            ..
        })
    ));
    let refused = residuals.backward(backend, arrays.k.view());
    assert!(matches!(
        refused,
        Err(Error::Shape {
            argument: "d_out",
            ..
        })
    ));
}

on_both! {
    a_mask_of_one_column_depends_on_the_opset,
    a_past_is_the_beginning_of_the_keys,
    a_short_mask_hides_the_keys_beyond_it,
    a_window_hides_what_lies_outside,
    errors_name_what_does_not_fit,
    gradients_are_those_of_the_output,
    gradients_of_other_arrays_are_refused,
    lengths_are_those_of_each_entry,
    minus_infinity_hides_as_false_does,
    nothing_is_asked_of_empty_arrays,
    rank_3_is_rank_4_with_heads_inside,
    softmax_in_float64_makes_it_all_float64,
    types_may_differ_between_keys_and_values,
    what_an_opset_lacks_is_refused,
    what_is_hidden_never_shows,
}
