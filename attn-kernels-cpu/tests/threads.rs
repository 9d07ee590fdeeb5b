//! Results have the same bits for every number of threads.
#![cfg(feature = "rayon")]
#![expect(
    clippy::std_instead_of_alloc,
    clippy::print_stderr,
    reason = "a test has std, and a skip must be seen"
)]

use attn_core::random::{Convention, Key};
use attn_core::{
    Attention, AttentionBackward, Causal, Dropout, Element, Error, Host, HostView, HostViewMut,
    Kernels, Projection, ProjectionBackward, RowOrder, bf16, f16,
};
use attn_kernels_cpu::{Cpu, Isa};
use std::sync::Arc;

/// Numbers of all sizes below 1, the same every time.
fn numbers<T: Element>(count: usize, seed: u64) -> Vec<T> {
    let mut state = seed;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        T::from_f64((state >> 33) as f64 / f64::from(1u32 << 30) - 1.0)
    };
    core::iter::repeat_with(next).take(count).collect()
}

fn attend<T: Element>(cpu: &Cpu, causal: bool) -> Vec<T>
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    let shape = [2, 150, 3, 20];
    let count = shape.iter().product();
    let [q, k, v] = [1, 2, 3].map(|seed| numbers::<T>(count, seed));
    let view = |data| HostView::new(data, &shape).expect("the shape fits");
    let call =
        Attention::new(view(&q), view(&k), view(&v)).with_causal(causal.then(Causal::top_left));
    let sizes = call.shape().expect("the shapes agree");
    let mut scratch = vec![T::Acc::default(); cpu.attend_scratch(&sizes)];
    let mut out = vec![T::default(); count];
    cpu.attend(
        call,
        HostViewMut::new(&mut out, &shape).expect("the shape fits"),
        &mut scratch,
    )
    .expect("a plain call");
    out
}

fn project<T: Element>(cpu: &Cpu, rows: usize, row_order: RowOrder) -> Vec<T>
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    let (features, outputs) = (70, 530);
    let (x, kernel, bias) = (
        numbers::<T>(rows * features, 4),
        numbers::<T>(features * outputs, 5),
        numbers::<T>(outputs, 6),
    );
    let call = Projection {
        input: HostView::new(&x, &[rows, features]).expect("the shape fits"),
        kernel: HostView::new(&kernel, &[features, outputs])
            .expect("the shape fits")
            .into(),
        bias: Some(HostView::new(&bias, &[outputs]).expect("the shape fits")),
        row_order,
    };
    let mut scratch = vec![T::Acc::default(); cpu.project_scratch(rows, features, outputs)];
    let mut out = vec![T::default(); rows * outputs];
    cpu.project(
        &call,
        HostViewMut::new(&mut out, &[rows, outputs]).expect("the shape fits"),
        &mut scratch,
    )
    .expect("a plain call");
    out
}

/// The gradients of query, key, value and of a bias that every two heads of a batch entry share.
fn attend_backward<T: Element>(
    cpu: &Cpu,
    [batch, heads]: [usize; 2],
    bias_shape: &[usize],
) -> (Vec<T>, Vec<T::Acc>)
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    let (shape, rows) = ([batch, 150, heads, 20], [batch, heads, 150, 2]);
    let count = shape.iter().product();
    let [q, k, v, d_out] = [1, 2, 3, 7].map(|seed| numbers::<T>(count, seed));
    let bias = numbers::<T::Acc>(bias_shape.iter().product(), 8);
    let (key, convention) = (Key::from_words([1, 2]), Convention::default());
    let dropout = Dropout::new(key, 0.2, T::DTYPE, false, convention).expect("a rate");
    let view = |data| HostView::new(data, &shape).expect("the shape fits");
    let call = || {
        Attention::new(view(&q), view(&k), view(&v))
            .with_bias(Some(
                HostView::new(&bias, bias_shape).expect("the shape fits"),
            ))
            .with_dropout(dropout)
    };
    let sizes = call().shape().expect("the shapes agree");
    let mut scratch = vec![T::Acc::default(); cpu.attend_scratch(&sizes)];
    let mut out = vec![T::default(); count];
    let mut statistics = vec![T::Acc::default(); rows.iter().product()];
    let asked = HostViewMut::new(&mut statistics, &rows).expect("the shape fits");
    let to = HostViewMut::new(&mut out, &shape).expect("the shape fits");
    cpu.attend(call().with_statistics(Some(asked)), to, &mut scratch)
        .expect("a plain call");
    let mut gradients = vec![T::default(); 3 * count];
    let mut d_bias = vec![T::Acc::default(); bias.len()];
    let mut parts = gradients
        .chunks_mut(count)
        .map(|part| HostViewMut::new(part, &shape).expect("the shape fits"));
    let mut next = || parts.next().expect("three parts");
    let call = AttentionBackward {
        call: call(),
        out: view(&out),
        statistics: HostView::new(&statistics, &rows).expect("the shape fits"),
        d_out: view(&d_out),
        d_query: next(),
        d_key: next(),
        d_value: next(),
        d_bias: Some(HostViewMut::new(&mut d_bias, bias_shape).expect("the shape fits")),
        d_relative: None,
        d_sinks: None,
    };
    let mut scratch = vec![T::Acc::default(); cpu.attend_backward_scratch(&sizes)];
    cpu.attend_backward(call, &mut scratch)
        .expect("a plain call");
    (gradients, d_bias)
}

fn project_backward<T: Element>(cpu: &Cpu, rows: usize) -> [Vec<T>; 3]
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    let (features, outputs) = (270, 130);
    let (x, kernel, d_out) = (
        numbers::<T>(rows * features, 4),
        numbers::<T>(features * outputs, 5),
        numbers::<T>(rows * outputs, 6),
    );
    let mut gradients = [&x, &kernel, &x].map(Clone::clone);
    gradients[2].truncate(outputs);
    let [d_input, d_kernel, d_bias] = &mut gradients;
    let call = ProjectionBackward {
        input: HostView::new(&x, &[rows, features]).expect("the shape fits"),
        kernel: HostView::new(&kernel, &[features, outputs]).expect("the shape fits"),
        d_out: HostView::new(&d_out, &[rows, outputs]).expect("the shape fits"),
        d_input: Some(HostViewMut::new(d_input, &[rows, features]).expect("the shape fits")),
        accumulate: true,
        d_kernel: Some(HostViewMut::new(d_kernel, &[features, outputs]).expect("the shape fits")),
        d_bias: Some(HostViewMut::new(d_bias, &[outputs]).expect("the shape fits")),
    };
    let scratch = cpu.project_backward_scratch(rows, features, outputs);
    cpu.project_backward(call, &mut vec![T::Acc::default(); scratch])
        .expect("a plain call");
    gradients
}

fn same_for_every_count<T: Element>(isa: Isa)
where
    Cpu: Kernels<T, Storage = Host, Error = Error>,
{
    let Ok(one) = Cpu::with_isa(isa) else {
        eprintln!("SKIPPED threads::{isa}: this machine lacks it");
        return;
    };
    for threads in [2, 3, 5] {
        let many = one.clone().with_threads(threads).expect("threads");
        assert_eq!(many.threads(), threads);
        for causal in [false, true] {
            assert_eq!(
                attend::<T>(&one, causal),
                attend::<T>(&many, causal),
                "{isa} {threads} threads"
            );
        }
        let of_six: [&[usize]; 4] = [&[2, 1, 150, 150], &[3, 1, 150], &[150, 1], &[1]];
        let of_one: [&[usize]; 2] = [&[150, 150], &[1]];
        let six = of_six.map(|bias| ([2, 3], bias));
        for (sizes, bias) in six.into_iter().chain(of_one.map(|bias| ([1, 1], bias))) {
            let (left, right) = (
                attend_backward::<T>(&one, sizes, bias),
                attend_backward::<T>(&many, sizes, bias),
            );
            assert_eq!(
                left, right,
                "{isa} {threads} threads, {sizes:?}, bias {bias:?}"
            );
        }
        for rows in [1, 50, 600] {
            let (left, right) = (
                project_backward::<T>(&one, rows),
                project_backward::<T>(&many, rows),
            );
            assert_eq!(left, right, "{isa} {threads} threads, {rows} rows");
        }
        for rows in [1, 2, 50, 300, 600] {
            for row_order in [RowOrder::Any, RowOrder::Fixed] {
                let (left, right) = (
                    project::<T>(&one, rows, row_order),
                    project::<T>(&many, rows, row_order),
                );
                assert_eq!(
                    left, right,
                    "{isa} {threads} threads {rows} rows {row_order:?}"
                );
            }
        }
    }
}

macro_rules! tests {
    ($($isa:ident $value:ident),+) => {$(
        mod $isa {
            use super::*;
            #[test]
            fn f32() { same_for_every_count::<f32>(Isa::$value); }
            #[test]
            fn f64() { same_for_every_count::<f64>(Isa::$value); }
            #[test]
            fn f16() { same_for_every_count::<f16>(Isa::$value); }
            #[test]
            fn bf16() { same_for_every_count::<bf16>(Isa::$value); }
        }
    )+};
}
tests!(portable Portable, avx2 Avx2, avx512 Avx512, neon Neon);

#[test]
fn a_pool_of_the_callers_serves() {
    let pool = Arc::new(
        rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .build()
            .expect("threads"),
    );
    let cpu = Cpu::detect().with_pool(pool);
    assert_eq!(
        attend::<f32>(&cpu, true),
        attend::<f32>(&Cpu::detect(), true)
    );
}
