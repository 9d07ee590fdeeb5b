//! The hot path allocates nothing: each of its calls, with a scratch that is used again, in every dtype, on every instruction set of this
//! machine, on the caller's thread.
//!
//! The allocator counts for all threads of the program, so there is one test here and no more.
#![cfg(all(feature = "alloc", feature = "cpu"))]

#[path = "../benches/hot_path/mod.rs"]
mod hot_path;

use attn_layers::core::{DType, Element, Kernels, for_each_dtype};
use attn_layers::cpu::Isa;
use attn_layers::{Cpu, HostView, KvCachePlan, KvFormat, KvLayout, OwnedKvCache, Result};
use hot_path::attention::{self, Core, Parts};
use hot_path::layer::{self, Decoding, Forward, Training};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// A call may do on every second time what it does not on the first.
const CALLS: usize = 3;

/// The calls that allocated, each by what it is.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    /// Makes the call some times, after once to initialise what lives as long as the program.
    fn expect_none(&mut self, what: &str, mut call: impl FnMut() -> Result<()>) {
        call().expect(what);
        let region = Region::new(ALLOCATOR);
        for _ in 0..CALLS {
            call().expect(what);
        }
        let change = region.change();
        let (times, bytes) = (
            change.allocations + change.reallocations,
            change.bytes_allocated,
        );
        if times > 0 {
            self.0.push(format!(
                "{what}: {times} allocations of {bytes} bytes in {CALLS} calls"
            ));
        }
    }

    fn layers<T: Element>(&mut self, cpu: &Cpu) -> Result<()>
    where
        Cpu: Kernels<T>,
    {
        for (normalize_qk, packed) in [(false, false), (true, false), (false, true)] {
            let options = layer::Options {
                normalize_qk,
                packed,
            };
            let sizes = layer::Sizes {
                batch: 2,
                length: most_rows::<T>(cpu, packed) / 2,
                features: 32,
                heads: 4,
            };
            let what = |call| format!("{call}, {}, {options:?}", place::<T>(cpu));
            let mut forward = Forward::<T>::new(cpu, sizes, options)?;
            self.expect_none(&what("apply"), || forward.apply(cpu));
            let mut decoding = Decoding::<T>::new(cpu, sizes, options)?;
            self.expect_none(&what("decode"), || decoding.step(cpu));
            if !packed {
                let mut training = Training::<T>::new(cpu, sizes, options)?;
                self.expect_none(&what("forward and backward"), || training.step(cpu));
            }
        }
        Ok(())
    }

    fn caches<T: Element>(&mut self) -> Result<()> {
        let rows = vec![T::from_f64(1.0); 2 * 4 * 2 * 32];
        let rows = HostView::new(&rows, &[2, 4, 2, 32])?;
        for plan in cache_plans() {
            let mut owned = OwnedKvCache::<T>::new(plan)?;
            self.expect_none(&format!("{}, {plan:?}", T::DTYPE), || {
                let mut cache = owned.borrow();
                cache.clear();
                cache.append_to(&[1, 0], rows, rows, Some(&[3, 4]))?;
                cache.remove(2)?;
                let fork = cache.fork(0)?;
                cache.append_to(&[fork, 0], rows, rows, Some(&[4, 1]))?;
                cache.truncate(fork, 7)
            });
        }
        Ok(())
    }

    fn cores<T: Element>(&mut self, cpu: &Cpu) -> Result<()>
    where
        Cpu: Kernels<T>,
    {
        // More keys than a tile has.
        let sizes = attention::Sizes {
            length: 70,
            heads: 3,
            depth: 8,
        };
        let causal = Parts {
            causal: true,
            ..Parts::default()
        };
        let padded = Parts {
            mask: true,
            dropout: true,
            ..Parts::default()
        };
        for parts in [Parts::default(), causal, padded] {
            let what = |call| format!("{call}, {}, {parts:?}", place::<T>(cpu));
            let mut core = Core::<T>::new(cpu, sizes, parts)?;
            self.expect_none(&what("attend"), || core.forward(cpu));
            self.expect_none(&what("attend_backward"), || core.backward(cpu));
        }
        Ok(())
    }
}

/// Every layout of a cache with every format.
fn cache_plans() -> impl Iterator<Item = KvCachePlan> {
    let layouts = [
        KvLayout::Contiguous { capacity: 8 },
        KvLayout::Ring {
            window: 3,
            capacity: 5,
        },
        KvLayout::Paged {
            page_size: 3,
            pages: 9,
            pages_per_sequence: 3,
        },
    ];
    let formats = [KvFormat::Plain, KvFormat::Int8, KvFormat::Q8_0];
    layouts.into_iter().flat_map(move |layout| {
        let plan = KvCachePlan::new(layout, 3, 2, 32);
        formats.map(|format| plan.with_formats(format, format))
    })
}

/// Rows that a layer may have: from 16 on, `f64` products with a kernel that is not packed go to matrixmultiply on the machine's best
/// instruction set, and it packs into memory of its own.
fn most_rows<T: Element>(cpu: &Cpu, packed: bool) -> usize {
    if T::DTYPE == DType::F64 && !packed && cpu.isa() == Isa::detect() {
        14
    } else {
        40
    }
}

fn place<T: Element>(cpu: &Cpu) -> String {
    let (dtype, isa) = (T::DTYPE, cpu.isa().name());
    format!("{dtype} on {isa} (threads: {})", cpu.threads())
}

/// Every call in every dtype.
fn every_call(findings: &mut Findings, cpu: &Cpu) {
    macro_rules! in_each_dtype {
        ($(($type:ty, $variant:ident, $acc:ty)),+ $(,)?) => {$(
            findings.caches::<$type>().expect("right sizes");
            findings.layers::<$type>(cpu).expect("right sizes");
            findings.cores::<$type>(cpu).expect("right sizes");
        )+};
    }
    for_each_dtype!(in_each_dtype);
}

/// Every instruction set of this machine.
fn cpus() -> impl Iterator<Item = Cpu> {
    let all = Isa::ALL.into_iter();
    all.filter_map(|isa| Cpu::with_isa(isa).ok())
}

#[test]
fn nothing_is_allocated() {
    let mut findings = Findings::default();
    for cpu in cpus() {
        every_call(&mut findings, &cpu);
    }
    assert!(findings.0.is_empty(), "{:#?}", findings.0);
}
