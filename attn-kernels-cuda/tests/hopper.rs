//! Calls that the wgmma kernels serve, on the emulator, against sums in f64.
#![expect(clippy::std_instead_of_alloc, reason = "a test has std")]

use attn_core::{Attention, Causal, Element, Error, HostView, HostViewMut, Kernels, bf16, f16};
use attn_cuda_emulator::{Emulator, Options, WarpOrder};
use attn_kernels_cuda::{Cuda, CudaDevice};
use std::sync::Arc;

/// Sizes of a call; `offset` makes it causal.
#[derive(Debug, Clone, Copy)]
struct Case {
    batch: usize,
    heads: usize,
    key_heads: usize,
    queries: usize,
    keys: usize,
    depth: usize,
    value_depth: usize,
    offset: Option<isize>,
}

fn case(
    [batch, heads, key_heads]: [usize; 3],
    [queries, keys]: [usize; 2],
    [depth, value_depth]: [usize; 2],
    offset: Option<isize>,
) -> Case {
    Case {
        batch,
        heads,
        key_heads,
        queries,
        keys,
        depth,
        value_depth,
        offset,
    }
}

/// Several tiles of queries and keys, ends within a tile, few and many, heads that share keys, more tiles than blocks.
fn cases() -> [Case; 7] {
    [
        case([1, 1, 1], [1, 1], [8, 8], None),
        case([2, 3, 1], [200, 270], [64, 40], None),
        case([1, 6, 2], [130, 150], [48, 64], Some(30)),
        case([1, 5, 5], [40, 400], [96, 128], None),
        case([3, 2, 1], [130, 200], [128, 120], Some(70)),
        case([1, 2, 2], [129, 90], [256, 200], None),
        case([1, 5, 1], [70, 90], [200, 256], Some(0)),
    ]
}

/// Numbers that repeat from run to run, about normal.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> f64 {
        let mut sum = 0.0;
        for _ in 0..4 {
            self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            sum += (self.0 >> 40) as f64 / (1u64 << 24) as f64 - 0.5;
        }
        sum * 1.7
    }

    fn elements<T: Element>(&mut self, count: usize) -> Vec<T> {
        (0..count).map(|_| T::from_f64(self.next())).collect()
    }
}

struct Arrays<T> {
    case: Case,
    query: Vec<T>,
    key: Vec<T>,
    value: Vec<T>,
}

impl<T: Element<Acc = f32>> Arrays<T> {
    fn new(case: Case) -> Self {
        let mut numbers = Numbers(7);
        let keys = case.batch * case.keys * case.key_heads;
        Self {
            case,
            query: numbers.elements(case.batch * case.queries * case.heads * case.depth),
            key: numbers.elements(keys * case.depth),
            value: numbers.elements(keys * case.value_depth),
        }
    }

    /// Outputs and statistics.
    fn attend(&self, device: &Cuda) -> Result<(Vec<T>, Vec<f32>), Error> {
        let Case {
            batch,
            heads,
            key_heads,
            queries,
            keys,
            depth,
            value_depth,
            offset,
        } = self.case;
        let mut out = vec![T::default(); batch * queries * heads * value_depth];
        let mut statistics = vec![0.0; batch * heads * queries * 2];
        let call = Attention::new(
            HostView::new(&self.query, &[batch, queries, heads, depth])?,
            HostView::new(&self.key, &[batch, keys, key_heads, depth])?,
            HostView::new(&self.value, &[batch, keys, key_heads, value_depth])?,
        )
        .with_causal(offset.map(Causal::offset))
        .with_statistics(Some(HostViewMut::new(
            &mut statistics,
            &[batch, heads, queries, 2],
        )?));
        let to = HostViewMut::new(&mut out, &[batch, queries, heads, value_depth])?;
        device.attend(call, to, &mut [])?;
        Ok((out, statistics))
    }

    /// Compares a head's rows with sums in f64.
    fn compare(
        &self,
        (out, statistics): (&[T], &[f32]),
        [entry, head]: [usize; 2],
        tolerance: f64,
    ) {
        let case = self.case;
        let key_head = head * case.key_heads / case.heads;
        let row =
            |array: &[T], length: usize, heads: usize, head: usize, row: usize, depth: usize| {
                let start = ((entry * length + row) * heads + head) * depth;
                let row = &array[start..start + depth];
                row.iter().map(|x| x.to_f64()).collect::<Vec<f64>>()
            };
        let of_keys = |array: &[T], depth: usize| {
            let row = |key| row(array, case.keys, case.key_heads, key_head, key, depth);
            (0..case.keys).map(row).collect::<Vec<_>>()
        };
        let (keys, values) = (
            of_keys(&self.key, case.depth),
            of_keys(&self.value, case.value_depth),
        );
        for query in 0..case.queries {
            let of = row(
                &self.query,
                case.queries,
                case.heads,
                head,
                query,
                case.depth,
            );
            let seen = match case.offset {
                Some(offset) => (query + 1 + offset as usize).min(case.keys),
                None => case.keys,
            };
            let dot = |key: &Vec<f64>| key.iter().zip(&of).map(|(a, b)| a * b).sum::<f64>();
            let scale = 1.0 / (case.depth as f64).sqrt();
            let scores: Vec<f64> = keys[..seen].iter().map(|key| dot(key) * scale).collect();
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            let at = ((entry * case.heads + head) * case.queries + query) * 2;
            assert!(
                (f64::from(statistics[at]) - largest).abs() < 1e-5,
                "{case:?} {query}"
            );
            assert!(
                (f64::from(statistics[at + 1]) / total - 1.0).abs() < 1e-5,
                "{case:?} {query}"
            );
            let got = row(out, case.queries, case.heads, head, query, case.value_depth);
            for (column, got) in got.into_iter().enumerate() {
                let sum: f64 = weights
                    .iter()
                    .zip(&values)
                    .map(|(w, v)| w * v[column])
                    .sum();
                let error = (got - sum / total).abs();
                assert!(error < tolerance, "{case:?} {query} {column}: {error}");
            }
        }
    }
}

fn check<T: Element<Acc = f32>>(order: WarpOrder, tolerance: f64) -> Result<(), Error> {
    let emulator = Arc::new(Emulator::new(Options {
        capability: (9, 0),
        order,
        ..Options::default()
    }));
    let device = Cuda::on(CudaDevice::with_driver(emulator.clone()));
    for case in cases() {
        let arrays = Arrays::<T>::new(case);
        let (out, statistics) = arrays.attend(&device)?;
        for entry in 0..case.batch {
            for head in 0..case.heads {
                arrays.compare((&out, &statistics), [entry, head], tolerance);
            }
        }
    }
    for kernel in emulator.reports().into_keys() {
        assert!(kernel.starts_with("attend_hopper"), "{kernel}");
    }
    Ok(())
}

#[test]
fn bf16_is_near_sums_in_f64() -> Result<(), Error> {
    check::<bf16>(WarpOrder::Seeded(5), 2e-2)
}

#[test]
fn f16_is_near_sums_in_f64() -> Result<(), Error> {
    check::<f16>(WarpOrder::Backward, 2.5e-3)
}

#[test]
fn a_query_gets_the_same_bits_alone_and_among_others() -> Result<(), Error> {
    let emulator = Arc::new(Emulator::new(Options {
        capability: (9, 0),
        ..Options::default()
    }));
    let device = Cuda::on(CudaDevice::with_driver(emulator));
    let whole = Arrays::<f16>::new(case([1, 1, 1], [1050, 1050], [64, 64], Some(0)));
    let (together, _) = whole.attend(&device)?;
    let row = 64;
    for (first, count) in [(0, 1), (63, 2), (130, 64), (1049, 1)] {
        let case = Case {
            queries: count,
            offset: Some(first as isize),
            ..whole.case
        };
        let part = Arrays {
            case,
            query: whole.query[first * row..(first + count) * row].to_vec(),
            key: whole.key.clone(),
            value: whole.value.clone(),
        };
        let (alone, _) = part.attend(&device)?;
        assert_eq!(
            together[first * row..(first + count) * row],
            alone,
            "{first}"
        );
    }
    Ok(())
}
