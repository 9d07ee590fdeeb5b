//! Gradients of 16-bit attention over several tiles, on the emulator, beside plain arithmetic in f64: which kernels ran, and how far
//! off they are.
#![expect(clippy::std_instead_of_alloc, reason = "a test has std")]

use attn_core::conformance::{Maths, Reference};
use attn_core::{
    Attention, AttentionBackward, Backend, Causal, Element, Error, Host, HostView, HostViewMut,
    Kernels, bf16, f16,
};
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

const fn case(
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

/// Several tiles of queries and keys, ends within a tile, heads that share keys, warps and warpgroups without rows.
const CASES: [Case; 6] = [
    case([1, 2, 1], [200, 270], [64, 40], None),
    case([2, 3, 3], [130, 140], [48, 64], Some(30)),
    case([1, 4, 2], [150, 330], [128, 120], None),
    case([2, 2, 1], [270, 200], [96, 128], Some(0)),
    case([1, 1, 1], [20, 400], [128, 128], Some(380)),
    case([1, 1, 1], [400, 20], [72, 128], None),
];

impl Case {
    const fn query(&self, heads: usize) -> [usize; 4] {
        [self.batch, self.queries, heads, self.depth]
    }

    const fn key(&self, heads: usize, depth: usize) -> [usize; 4] {
        [self.batch, self.keys, heads, depth]
    }

    const fn out(&self) -> [usize; 4] {
        [self.batch, self.queries, self.heads, self.value_depth]
    }
}

/// Numbers that repeat late, about normal.
fn numbers<T: Element>(seed: u64, count: usize) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
    };
    (0..count)
        .map(|_| T::from_f64((next() + next() + next() + next()) * 1.7))
        .collect()
}

fn wide<T: Element>(elements: &[T]) -> Vec<f64> {
    elements.iter().map(|x| x.to_f64()).collect()
}

/// Queries, keys, values, gradients of the output.
struct Arrays<T> {
    case: Case,
    key_heads: usize,
    arrays: [Vec<T>; 4],
}

impl<T: Element> Arrays<T> {
    fn new(case: Case) -> Self {
        let lengths = [
            case.query(case.heads),
            case.key(case.key_heads, case.depth),
            case.key(case.key_heads, case.value_depth),
            case.out(),
        ]
        .map(|shape| shape.iter().product());
        let mut seed = 0;
        Self {
            case,
            key_heads: case.key_heads,
            arrays: lengths.map(|length| {
                seed += 1;
                numbers(seed, length)
            }),
        }
    }

    /// In f64, with keys and values as often as their groups have heads.
    fn repeated(&self) -> Arrays<f64> {
        let group = self.case.heads / self.key_heads;
        let repeat = |rows: &[T], depth: usize| -> Vec<f64> {
            rows.chunks(depth)
                .flat_map(|row| core::iter::repeat_n(wide(row), group).flatten())
                .collect()
        };
        let [query, key, value, d_out] = &self.arrays;
        Arrays {
            case: self.case,
            key_heads: self.case.heads,
            arrays: [
                wide(query),
                repeat(key, self.case.depth),
                repeat(value, self.case.value_depth),
                wide(d_out),
            ],
        }
    }

    /// The gradients of queries, keys and values.
    fn gradients<B>(&self, backend: &B) -> Result<[Vec<T>; 3], Error>
    where
        B: Kernels<T> + Backend<Storage = Host, Error = Error>,
    {
        let case = self.case;
        let [query, key, value, d_out] = &self.arrays;
        let shapes = [
            case.query(case.heads),
            case.key(self.key_heads, case.depth),
            case.key(self.key_heads, case.value_depth),
        ];
        let call = || -> Result<Attention<'_, Host, T>, Error> {
            let call = Attention::new(
                HostView::new(query, &shapes[0])?,
                HostView::new(key, &shapes[1])?,
                HostView::new(value, &shapes[2])?,
            );
            Ok(call.with_causal(case.offset.map(Causal::offset)))
        };
        let shape = call()?.shape()?;
        let rows = [case.batch, case.heads, case.queries, 2];
        let mut statistics = vec![T::Acc::default(); rows.iter().product()];
        let mut out = vec![T::default(); d_out.len()];
        let mut scratch = vec![T::Acc::default(); backend.attend_scratch(&shape)];
        let asked = HostViewMut::new(&mut statistics, &rows)?;
        backend.attend(
            call()?.with_statistics(Some(asked)),
            HostViewMut::new(&mut out, &case.out())?,
            &mut scratch,
        )?;
        let nan = || T::from_f64(f64::NAN);
        let mut gradients = [query, key, value].map(|array| vec![nan(); array.len()]);
        let [d_query, d_key, d_value] = &mut gradients;
        let backward = AttentionBackward {
            call: call()?,
            out: HostView::new(&out, &case.out())?,
            statistics: HostView::new(&statistics, &rows)?,
            d_out: HostView::new(d_out, &case.out())?,
            d_query: HostViewMut::new(d_query, &shapes[0])?,
            d_key: HostViewMut::new(d_key, &shapes[1])?,
            d_value: HostViewMut::new(d_value, &shapes[2])?,
            d_bias: None,
            d_relative: None,
            d_sinks: None,
        };
        let mut scratch = vec![T::Acc::default(); backend.attend_backward_scratch(&shape)];
        backend.attend_backward(backward, &mut scratch)?;
        Ok(gradients)
    }
}

/// The sums of groups of rows.
fn sums(rows: &[f64], depth: usize, group: usize) -> Vec<f64> {
    rows.chunks(depth * group)
        .flat_map(|rows| (0..depth).map(|i| rows.iter().skip(i).step_by(depth).sum()))
        .collect()
}

/// Runs every case and compares; `kernel` is part of the names of those that must have run.
fn check<T: Element>(capability: (u32, u32), order: WarpOrder, kernel: &str) {
    let emulator = Arc::new(Emulator::new(Options {
        capability,
        order,
        panic_on_finding: true,
        ..Options::default()
    }));
    let cuda = Cuda::on(CudaDevice::with_driver(emulator.clone()));
    let reference = Reference {
        maths: Maths {
            exp: f64::exp,
            sqrt: f64::sqrt,
        },
    };
    for case in CASES {
        let arrays = Arrays::<T>::new(case);
        let got = arrays.gradients(&cuda).unwrap();
        let [d_query, d_key, d_value] = arrays.repeated().gradients(&reference).unwrap();
        let group = case.heads / case.key_heads;
        let wanted = [
            d_query,
            sums(&d_key, case.depth, group),
            sums(&d_value, case.value_depth, group),
        ];
        for (name, got, wanted) in [
            ("d_query", &got[0], &wanted[0]),
            ("d_key", &got[1], &wanted[1]),
            ("d_value", &got[2], &wanted[2]),
        ] {
            let largest = wanted.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
            // Weights and gradients of scores are rounded to the dtype, one in 2^8 or 2^11.
            let allowed = largest * 4.0 * unit::<T>();
            for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                let error = (got.to_f64() - wanted).abs();
                assert!(
                    error <= allowed,
                    "{case:?}: {name}[{index}] is {got:?}, wanted {wanted}, off by {error:e} of {allowed:e}"
                );
            }
        }
    }
    let names: Vec<String> = emulator.reports().into_keys().collect();
    for pass in ["queries", "keys"] {
        let ran = |name: &&String| name.contains(kernel) && name.contains(pass);
        assert!(
            names.iter().any(|name| ran(&name)),
            "{kernel} {pass}: {names:?}"
        );
    }
}

/// Half a unit in the last place of 1.
fn unit<T: Element>() -> f64 {
    let mut unit = 1.0;
    while T::from_f64(1.0 + unit).to_f64() > 1.0 {
        unit /= 2.0;
    }
    unit
}

#[test]
fn tensor_cores_in_f16() {
    check::<f16>((8, 0), WarpOrder::Forward, "f16_d128_plain");
}

#[test]
fn tensor_cores_in_bf16() {
    check::<bf16>((8, 0), WarpOrder::Backward, "bf16_d64_plain");
}

#[test]
fn warpgroups_in_f16() {
    check::<f16>((9, 0), WarpOrder::Forward, "hopper");
}

#[test]
fn warpgroups_in_bf16() {
    check::<bf16>((9, 0), WarpOrder::Backward, "hopper");
}
