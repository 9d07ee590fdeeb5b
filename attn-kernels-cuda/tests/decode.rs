//! Few queries over keys that are cut into spans get what they get when the keys are not cut, but for rounding.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a test has std"
)]

use attn_core::{
    Attention, Causal, Element, FullyMasked, Host, HostView, HostViewMut, Kernels, Mask, bf16, f16,
};
use attn_cuda_emulator::{Emulator, Options};
use attn_kernels_cuda::{Cuda, CudaDevice};
use std::error::Error;
use std::sync::Arc;

/// Sizes of a call, and what it has beside queries, keys and values.
#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    key_heads: usize,
    depth: usize,
    value_depth: usize,
    causal: Option<isize>,
    masked: Option<FullyMasked>,
    bias: bool,
}

const PLAIN: Case = Case {
    batch: 1,
    queries: 1,
    keys: 600,
    heads: 2,
    key_heads: 2,
    depth: 64,
    value_depth: 64,
    causal: None,
    masked: None,
    bias: false,
};

fn cases() -> [Case; 9] {
    [
        PLAIN,
        Case {
            batch: 2,
            heads: 8,
            key_heads: 2,
            queries: 3,
            depth: 128,
            value_depth: 120,
            ..PLAIN
        },
        Case {
            depth: 24,
            value_depth: 32,
            keys: 256,
            ..PLAIN
        },
        Case {
            depth: 256,
            value_depth: 200,
            keys: 1030,
            ..PLAIN
        },
        // A cache that is not full, and whose last tokens the first of the queries does not see.
        Case {
            queries: 4,
            causal: Some(290),
            heads: 4,
            ..PLAIN
        },
        Case {
            masked: Some(FullyMasked::MeanOfValues),
            causal: Some(290),
            queries: 2,
            ..PLAIN
        },
        Case {
            masked: Some(FullyMasked::Zero),
            causal: Some(-1),
            queries: 3,
            ..PLAIN
        },
        Case {
            bias: true,
            masked: Some(FullyMasked::MeanOfValues),
            ..PLAIN
        },
        Case {
            bias: true,
            ..PLAIN
        },
    ]
}

/// Numbers of about the size of one, the same at each run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / f64::from(1 << 23) - 1.0
    }

    fn elements<T: Element>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| T::from_f64(2.0 * self.next())).collect()
    }
}

fn device(split: bool) -> Cuda {
    let emulator = Emulator::new(Options {
        panic_on_finding: true,
        ..Options::default()
    });
    let device = CudaDevice::with_driver(Arc::new(emulator));
    Cuda::on(device.with_split_decode(split))
}

/// Output and statistics, as they are computed; the scratch that they take is that of the spans.
type Results = (Vec<f64>, Vec<f32>);

fn attend<T>(cuda: &Cuda, case: Case) -> Result<(Results, usize), Box<dyn Error>>
where
    T: Element<Acc = f32>,
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
    CudaDevice: Kernels<T>,
{
    let mut numbers = Numbers(7);
    let mut array = |length: usize, heads: usize, depth: usize| {
        let shape = [case.batch, length, heads, depth];
        (shape, numbers.elements::<T>(shape.iter().product()))
    };
    let query = array(case.queries, case.heads, case.depth);
    let key = array(case.keys, case.key_heads, case.depth);
    let value = array(case.keys, case.key_heads, case.value_depth);
    let scores = [case.batch, case.heads, case.queries, case.keys];
    let bias: Vec<f32> = numbers.elements(scores.iter().product());
    // The first query of each head sees nothing.
    let of_query = |index: usize| index / case.keys % case.queries;
    let seen = (0..bias.len()).map(|i| u8::from(of_query(i) != 0 && numbers.next() > 0.0));
    let seen: Vec<u8> = seen.collect();
    let mut out = vec![T::default(); case.batch * case.queries * case.heads * case.value_depth];
    let mut statistics = vec![0.0; case.batch * case.heads * case.queries * 2];
    let of_statistics = [case.batch, case.heads, case.queries, 2];
    let of_out = [case.batch, case.queries, case.heads, case.value_depth];
    let call = Attention::new(
        HostView::new(&query.1, &query.0)?,
        HostView::new(&key.1, &key.0)?,
        HostView::new(&value.1, &value.0)?,
    )
    .with_causal(case.causal.map(Causal::offset))
    .with_fully_masked(case.masked.unwrap_or_default())
    .with_statistics(Some(HostViewMut::new(&mut statistics, &of_statistics)?));
    let call = match case.masked {
        Some(_) => call.with_mask(Some(Mask::keep(HostView::new(&seen, &scores)?))),
        None => call,
    };
    let call = match case.bias {
        true => call.with_bias(Some(HostView::new(&bias, &scores)?)),
        false => call,
    };
    let spans = Kernels::<T>::attend_scratch(cuda.device(), &call.shape()?);
    cuda.attend(call, HostViewMut::new(&mut out, &of_out)?, &mut [])?;
    let out = out.into_iter().map(Element::to_f64).collect();
    Ok(((out, statistics), spans))
}

fn cut_and_whole<T>(unit: f64) -> Result<(), Box<dyn Error>>
where
    T: Element<Acc = f32>,
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
    CudaDevice: Kernels<T>,
{
    let (whole, cut) = (device(false), device(true));
    for case in cases() {
        let (expected, none) = attend::<T>(&whole, case)?;
        let (got, spans) = attend::<T>(&cut, case)?;
        assert_eq!(none, 0, "{case:?}");
        // A single span leaves nothing to put together.
        assert_eq!(spans > 0, case.keys >= 512, "{case:?}");
        let largest = expected.0.iter().fold(0.0f64, |most, x| most.max(x.abs()));
        for (a, b) in expected.0.iter().zip(&got.0) {
            assert!(
                (a - b).abs() <= 4.0 * unit * largest,
                "{case:?}: {a} and {b}"
            );
        }
        for (a, b) in expected.1.iter().zip(&got.1) {
            assert!(
                a == b || (a - b).abs() <= 1e-5 * a.abs(),
                "{case:?}: {a} and {b}"
            );
        }
    }
    Ok(())
}

#[test]
fn bf16_is_cut_without_a_trace() -> Result<(), Box<dyn Error>> {
    cut_and_whole::<bf16>(f64::from(bf16::EPSILON) / 2.0)
}

#[test]
fn f16_is_cut_without_a_trace() -> Result<(), Box<dyn Error>> {
    cut_and_whole::<f16>(f64::from(f16::EPSILON) / 2.0)
}
