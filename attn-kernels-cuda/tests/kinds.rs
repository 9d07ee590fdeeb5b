//! The kernel for many queries without mask, bias or weights, and the one for everything else, give a row the same bits.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a test has std"
)]

use attn_core::{
    Attention, Causal, Element, FullyMasked, Host, HostView, HostViewMut, Kernels, bf16, f16,
};
use attn_cuda_emulator::{Emulator, Options};
use attn_kernels_cuda::{Cuda, CudaDevice};
use std::error::Error;
use std::sync::Arc;

const HEADS: usize = 2;
/// More than one tile of keys, the last one not whole.
const KEYS: usize = 150;
/// More than one block of the kernel for many.
const QUERIES: usize = 140;

/// Numbers of about the size of one, the same at each run.
fn elements<T: Element>(seed: u64, count: usize) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f64 / f64::from(1 << 22) - 2.0
    };
    (0..count).map(|_| T::from_f64(next())).collect()
}

/// Queries, keys and values.
struct Arrays<T> {
    depth: usize,
    arrays: [Vec<T>; 3],
}

impl<T: Element<Acc = f32>> Arrays<T>
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    /// Output, and statistics by heads, of some queries.
    fn attend(
        &self,
        cuda: &Cuda,
        [first, count]: [usize; 2],
        (causal, fully_masked): (Option<isize>, FullyMasked),
    ) -> Result<(Vec<T>, Vec<f32>), Box<dyn Error>> {
        let [query, key, value] = &self.arrays;
        let row = HEADS * self.depth;
        let (queries, keys) = ([count, HEADS, self.depth], [KEYS, HEADS, self.depth]);
        let mut out = vec![T::default(); count * row];
        let mut statistics = vec![0.0; HEADS * count * 2];
        let call = Attention::new(
            HostView::new(&query[first * row..][..count * row], &queries)?,
            HostView::new(key, &keys)?,
            HostView::new(value, &keys)?,
        )
        .with_causal(causal.map(|offset| Causal::offset(offset + first as isize)))
        .with_fully_masked(fully_masked)
        .with_statistics(Some(HostViewMut::new(&mut statistics, &[HEADS, count, 2])?));
        cuda.attend(call, HostViewMut::new(&mut out, &queries)?, &mut [])?;
        Ok((out, statistics))
    }

    fn same_bits(&self, cuda: &Cuda) -> Result<(), Box<dyn Error>> {
        for mode in [
            (None, FullyMasked::MeanOfValues),
            (Some(3), FullyMasked::MeanOfValues),
            (Some(-70), FullyMasked::MeanOfValues),
            (Some(-70), FullyMasked::Zero),
        ] {
            let (many, of_many) = self.attend(cuda, [0, QUERIES], mode)?;
            for first in (0..QUERIES).step_by(QUERIES / 4) {
                let count = QUERIES / 4;
                let (few, of_few) = self.attend(cuda, [first, count], mode)?;
                let row = HEADS * self.depth;
                let at = format!("depth {}, {mode:?}, queries from {first}", self.depth);
                let bits = |x: &[T]| bytemuck::cast_slice::<T, u16>(x).to_vec();
                assert_eq!(
                    bits(&many[first * row..][..count * row]),
                    bits(&few),
                    "{at}"
                );
                for head in 0..HEADS {
                    let many = &of_many[(head * QUERIES + first) * 2..][..count * 2];
                    assert_eq!(many, &of_few[head * count * 2..][..count * 2], "{at}");
                }
            }
        }
        Ok(())
    }
}

fn of_every_depth<T: Element<Acc = f32>>() -> Result<(), Box<dyn Error>>
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    let emulator = Emulator::new(Options {
        panic_on_finding: true,
        ..Options::default()
    });
    let cuda = Cuda::on(CudaDevice::with_driver(Arc::new(emulator)));
    for depth in [32, 48, 128, 256] {
        let counts = [QUERIES, KEYS, KEYS].map(|length| length * HEADS * depth);
        let mut seed = 0;
        let arrays = counts.map(|count| {
            seed += 1;
            elements(seed, count)
        });
        Arrays::<T> { depth, arrays }.same_bits(&cuda)?;
    }
    Ok(())
}

#[test]
fn bf16_has_the_same_bits() -> Result<(), Box<dyn Error>> {
    of_every_depth::<bf16>()
}

#[test]
fn f16_has_the_same_bits() -> Result<(), Box<dyn Error>> {
    of_every_depth::<f16>()
}
