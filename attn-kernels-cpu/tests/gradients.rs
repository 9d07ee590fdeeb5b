//! Gradients at the edges that the conformance suite's tolerances cannot see.
#![expect(clippy::std_instead_of_core, reason = "a test has std")]

use attn_core::random::{Convention, Key};
use attn_core::{
    Attention, AttentionBackward, Causal, Dims, Dropout, Element, Error, Host, HostView,
    HostViewMut, Kernels, Layout, Mask, Scale, bf16, f16,
};
use attn_kernels_cpu::{Cpu, Isa};
use std::iter::repeat_with;

/// Numbers of all sizes below 1, the same every time.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        T::from_f64((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
    };
    repeat_with(next).take(count).collect()
}

/// The gradients of query, key and value of one head of depth 8, `length` queries and keys.
fn gradients<T: Element>(
    cpu: &Cpu,
    length: usize,
    rate: f64,
    see: impl for<'a> Fn(Attention<'a, Host, T>) -> Attention<'a, Host, T>,
) -> [Vec<T>; 3]
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    let (shape, rows) = ([length, 1, 8], [1, length, 2]);
    let count = length * 8;
    let [q, k, v, d_out] = [1, 2, 3, 4].map(|seed| numbers::<T>(count, seed));
    let (key, convention) = (Key::from_words([5, 6]), Convention::default());
    let dropout = Dropout::new(key, rate, T::DTYPE, true, convention).expect("a rate");
    let view = |data| HostView::new(data, &shape).expect("the shape fits");
    let call = || see(Attention::new(view(&q), view(&k), view(&v)).with_dropout(dropout));
    let sizes = call().shape().expect("the shapes agree");
    let mut out = vec![T::default(); count];
    let mut statistics = vec![T::Acc::default(); 2 * length];
    let asked = HostViewMut::new(&mut statistics, &rows).expect("the shape fits");
    let to = HostViewMut::new(&mut out, &shape).expect("the shape fits");
    let mut scratch = vec![T::Acc::default(); cpu.attend_scratch(&sizes)];
    cpu.attend(call().with_statistics(Some(asked)), to, &mut scratch)
        .expect("a plain call");
    let mut gradients = [(); 3].map(|()| vec![T::default(); count]);
    let [d_query, d_key, d_value] = gradients
        .each_mut()
        .map(|to| HostViewMut::new(to, &shape).expect("the shape fits"));
    let call = AttentionBackward {
        call: call(),
        out: view(&out),
        statistics: HostView::new(&statistics, &rows).expect("the shape fits"),
        d_out: view(&d_out),
        d_query,
        d_key,
        d_value,
        d_bias: None,
        d_relative: None,
        d_sinks: None,
    };
    let mut scratch = vec![T::Acc::default(); cpu.attend_backward_scratch(&sizes)];
    cpu.attend_backward(call, &mut scratch)
        .expect("a plain call");
    gradients
}

/// Every instruction set of this machine.
fn all() -> impl Iterator<Item = Cpu> {
    Isa::ALL
        .into_iter()
        .filter_map(|isa| Cpu::with_isa(isa).ok())
}

fn a_query_that_sees_one_key_has_no_gradient<T: Element>()
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    for cpu in all() {
        for length in [1, 64, 65, 128, 200] {
            for rate in [0.0, 0.1] {
                let [d_query, ..] = gradients::<T>(&cpu, length, rate, top_left);
                for x in &d_query[..8] {
                    assert_eq!(x.to_f64(), 0.0, "{:?} {length} {rate}", cpu.isa());
                }
            }
        }
    }
}

fn top_left<'a, T: Element>(call: Attention<'a, Host, T>) -> Attention<'a, Host, T> {
    call.with_causal(Some(Causal::top_left()))
}

#[test]
fn a_query_that_sees_one_key_has_no_gradient_in_any_dtype() {
    a_query_that_sees_one_key_has_no_gradient::<f32>();
    a_query_that_sees_one_key_has_no_gradient::<f64>();
    a_query_that_sees_one_key_has_no_gradient::<f16>();
    a_query_that_sees_one_key_has_no_gradient::<bf16>();
}

#[test]
fn a_rate_of_one_makes_every_gradient_nan_those_of_hidden_keys_too() {
    static SEEN: [u8; 200] = {
        let mut seen = [0; 200];
        let mut key = 0;
        while key < 50 {
            seen[key] = 1;
            key += 1;
        }
        seen
    };
    for cpu in all() {
        let gradients = gradients::<f32>(&cpu, 200, 1.0, |call| {
            let seen = HostView::new(&SEEN, &[200]).expect("the shape fits");
            call.with_mask(Some(Mask::keep(seen)))
        });
        assert!(gradients[2].iter().all(|x| x.is_nan()), "{:?}", cpu.isa());
    }
}

#[test]
fn an_empty_array_may_name_any_place_of_its_buffer() {
    let layout = |offset, shape: &[usize]| {
        let shape = Dims::new(shape).expect("three axes");
        let strides = [64, 4, 1];
        Layout::strided(offset, shape, &strides).expect("a small layout")
    };
    for cpu in all() {
        for [length, depth, value_depth] in [[0, 4, 4], [2, 0, 4], [2, 4, 0]] {
            let (query, out) = ([1, 1, depth], [1, 1, value_depth]);
            let of = |depth| if length == 0 || depth == 0 { 0 } else { 200 };
            let (q, o) = (vec![0.5f32; depth], vec![0.5f32; value_depth]);
            let (k, v) = (vec![0.5f32; of(depth)], vec![0.5f32; of(value_depth)]);
            let place = |data, depth| {
                let offset = if of(depth) == 0 { 5 } else { 0 };
                HostView::with_layout(data, layout(offset, &[length, 1, depth]))
            };
            let call = || {
                Attention::new(
                    HostView::new(&q, &query).expect("the shape fits"),
                    place(&k, depth).expect("nothing of it is outside"),
                    place(&v, value_depth).expect("nothing of it is outside"),
                )
                .with_scale(Scale::Value(1.0))
            };
            let sizes = call().shape().expect("the shapes agree");
            let needed = Kernels::<f32>::attend_scratch(&cpu, &sizes)
                .max(Kernels::<f32>::attend_backward_scratch(&cpu, &sizes));
            let mut scratch = vec![0.0f32; needed];
            let (mut to, mut statistics) = (o.clone(), [0.0f32; 2]);
            let asked = HostViewMut::new(&mut statistics, &[1, 1, 2]).expect("the shape fits");
            let view = HostViewMut::new(&mut to, &out).expect("the shape fits");
            cpu.attend(call().with_statistics(Some(asked)), view, &mut scratch)
                .expect("an empty call");
            let (mut d_q, mut d_k, mut d_v) = (q.clone(), k.clone(), v.clone());
            let backward = AttentionBackward {
                call: call(),
                out: HostView::new(&to, &out).expect("the shape fits"),
                statistics: HostView::new(&statistics, &[1, 1, 2]).expect("the shape fits"),
                d_out: HostView::new(&o, &out).expect("the shape fits"),
                d_query: HostViewMut::new(&mut d_q, &query).expect("the shape fits"),
                d_key: HostViewMut::with_layout(&mut d_k, layout(0, &[length, 1, depth]))
                    .expect("nothing of it is outside"),
                d_value: HostViewMut::with_layout(&mut d_v, layout(0, &[length, 1, value_depth]))
                    .expect("nothing of it is outside"),
                d_bias: None,
                d_relative: None,
                d_sinks: None,
            };
            cpu.attend_backward(backward, &mut scratch)
                .expect("an empty call");
        }
    }
}
