//! What the machine can do at best: fused multiply-adds, reads from memory and cache, exponentials. Measured in the same run as the cases, between their
//! slots, so that a slow hour of a shared machine slows both.

use core::hint::black_box;
use core::time::Duration;
use fearless_simd::{Level, Simd, SimdBase, SimdFloat, SimdInto, dispatch};
use std::sync::Barrier;
use std::time::Instant;

/// Bytes that each thread reads: more than the caches hold.
const READ_BYTES: usize = 128 << 20;
/// Bytes that all threads together read again and again: a step's keys and values that stay in a cache from one step to the next.
const CACHED_BYTES: usize = 4 << 20;
const CACHED_PASSES: usize = 32;
/// Numbers whose exponentials are taken again and again: their place is the first cache.
const EXPONENTS: usize = 2048;
/// Chains of multiply-adds of a step, for 16 and for 32 registers: enough to hide their latency.
const FEW_CHAINS: usize = 12;
const MANY_CHAINS: usize = 24;
/// Steps and passes of a sample: some ten milliseconds, so that a sample is no luckier than a slot.
const FMA_STEPS: usize = 1 << 21;
const EXP_PASSES: usize = 1 << 13;

/// The best that was seen on a number of threads, per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limits {
    pub(crate) threads: usize,
    /// Floating-point operations in `f32`; a fused multiply-add is two.
    pub(crate) flops: f64,
    /// Bytes read from memory.
    pub(crate) bytes: f64,
    /// Bytes read from a cache that holds some megabytes.
    pub(crate) cached_bytes: f64,
    /// Exponentials, read, stored and summed as softmax does.
    pub(crate) exponentials: f64,
}

/// Measures limits; holds what is read.
pub(crate) struct Probe {
    memory: Vec<Vec<f32>>,
    best: Vec<Limits>,
}

impl Probe {
    /// For these numbers of threads.
    pub(crate) fn new(threads: &[usize]) -> Self {
        let most = threads.iter().copied().max().unwrap_or(1);
        let part = || vec![0.5; READ_BYTES / size_of::<f32>()];
        let none = |&threads| Limits {
            threads,
            flops: 0.0,
            bytes: 0.0,
            cached_bytes: 0.0,
            exponentials: 0.0,
        };
        Self {
            memory: (0..most).map(|_| part()).collect(),
            best: threads.iter().map(none).collect(),
        }
    }

    /// Takes one sample of each, and keeps the best.
    pub(crate) fn sample(&mut self, threads: usize) {
        let few = rate(threads, |_| multiply_adds::<FEW_CHAINS>(FMA_STEPS));
        let many = rate(threads, |_| multiply_adds::<MANY_CHAINS>(FMA_STEPS / 2));
        let bytes = rate(threads, |thread| read(&self.memory[thread]));
        let part = CACHED_BYTES / size_of::<f32>() / threads;
        let cached_bytes = rate(threads, |thread| {
            let memory = &self.memory[thread][..part];
            (0..CACHED_PASSES).map(|_| read(black_box(memory))).sum()
        });
        let exponentials = rate(threads, |_| exponentials(EXP_PASSES));
        if let Some(best) = self.best.iter_mut().find(|best| best.threads == threads) {
            best.flops = best.flops.max(few).max(many);
            best.bytes = best.bytes.max(bytes);
            best.cached_bytes = best.cached_bytes.max(cached_bytes);
            best.exponentials = best.exponentials.max(exponentials);
        }
    }

    /// The best of all samples.
    pub(crate) fn best(&self) -> &[Limits] {
        &self.best
    }
}

/// What all threads together do in a second, from the first start to the last end. `work` says how much a thread did.
fn rate(threads: usize, work: impl Fn(usize) -> f64 + Sync) -> f64 {
    let barrier = Barrier::new(threads);
    let timed = |thread: usize| {
        barrier.wait();
        let start = Instant::now();
        let done = work(thread);
        (start, Instant::now(), done)
    };
    let samples = std::thread::scope(|scope| {
        let timed = &timed;
        let others: Vec<_> = (1..threads)
            .map(|thread| scope.spawn(move || timed(thread)))
            .collect();
        let mut samples = vec![timed(0)];
        samples.extend(others.into_iter().filter_map(|other| other.join().ok()));
        samples
    });
    let start = samples.iter().map(|sample| sample.0).min();
    let end = samples.iter().map(|sample| sample.1).max();
    let time = start
        .zip(end)
        .map_or(Duration::MAX, |(start, end)| end - start);
    samples.iter().map(|sample| sample.2).sum::<f64>() / time.as_secs_f64()
}

/// Independent chains `x = x * a + b`; gives the floating-point operations.
fn multiply_adds<const CHAINS: usize>(steps: usize) -> f64 {
    dispatch!(Level::new(), simd => chains::<_, CHAINS>(simd, steps))
}

#[inline(always)]
fn chains<S: Simd, const CHAINS: usize>(simd: S, steps: usize) -> f64 {
    let factor = S::f32s::splat(simd, black_box(0.5));
    let summand = S::f32s::splat(simd, black_box(1.0));
    let mut chains = [S::f32s::splat(simd, 0.0); CHAINS];
    for _ in 0..steps {
        for chain in &mut chains {
            *chain = chain.mul_add(factor, summand);
        }
    }
    black_box(chains.into_iter().fold(factor, |sum, chain| sum + chain));
    2.0 * (steps * CHAINS * S::f32s::LEN) as f64
}

/// Reads all of `memory`; gives the bytes.
fn read(memory: &[f32]) -> f64 {
    dispatch!(Level::new(), simd => sum(simd, memory));
    size_of_val(memory) as f64
}

#[inline(always)]
fn sum<S: Simd>(simd: S, memory: &[f32]) {
    const SUMS: usize = 8;
    let mut sums = [S::f32s::splat(simd, 0.0); SUMS];
    for chunk in memory.chunks_exact(SUMS * S::f32s::LEN) {
        for (sum, part) in sums.iter_mut().zip(chunk.chunks_exact(S::f32s::LEN)) {
            *sum += S::f32s::from_slice(simd, part);
        }
    }
    black_box(
        sums.into_iter()
            .fold(S::f32s::splat(simd, 0.0), |all, sum| all + sum),
    );
}

/// Exponentials of numbers in the first cache, over and over; gives how many.
fn exponentials(passes: usize) -> f64 {
    let from: Vec<f32> = (0..EXPONENTS).map(|n| -(n as f32) / 128.0).collect();
    let mut to = vec![0.0; EXPONENTS];
    dispatch!(Level::new(), simd => {
        for _ in 0..passes {
            exponential_pass(simd, black_box(&from), &mut to);
        }
    });
    black_box(to);
    (passes * EXPONENTS) as f64
}

/// `to = e^from` with a polynomial of softmax's accuracy: `e^(n ln 2 + r)`, `n` into the exponent, degree 6 in `r`.
#[inline(always)]
fn exponential_pass<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    const COEFFICIENTS: [f32; 6] = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0];
    // Added to a small number, it rounds it to an integer, which stands in the low bits then.
    const ROUND: f32 = 12_582_912.0;
    let splat = |value: f32| -> S::f32s { value.simd_into(simd) };
    let mut sum = splat(0.0);
    let lanes = S::f32s::LEN;
    for (from, to) in from.chunks_exact(lanes).zip(to.chunks_exact_mut(lanes)) {
        let x = S::f32s::from_slice(simd, from);
        let shifted = x.mul_add(splat(core::f32::consts::LOG2_E), splat(ROUND));
        let n = splat(ROUND) - shifted;
        let r = n.mul_add(splat(core::f32::consts::LN_2), x);
        let mut poly = splat(COEFFICIENTS[0]);
        for coefficient in &COEFFICIENTS[1..] {
            poly = poly.mul_add(r, splat(*coefficient));
        }
        let power = poly.mul_add(r, splat(1.0));
        let result = S::f32s::from_bits(power.to_bits() + (shifted.to_bits() << 23));
        sum += result;
        result.store_slice(to);
    }
    black_box(sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_probed_exponential_is_one() {
        let from: Vec<f32> = (0..64).map(|n| -(n as f32) / 4.0).collect();
        let mut to = vec![0.0; 64];
        dispatch!(Level::new(), simd => exponential_pass(simd, &from, &mut to));
        for (x, got) in from.into_iter().zip(to) {
            let wanted = x.exp();
            // The series' first missing term, (ln(2)/2)^7 / 7!, and ln(2) in one part, off by half a unit, up to 23 times.
            let tolerance = wanted * (1.3e-7 + 23.0 * f32::EPSILON);
            assert!((got - wanted).abs() <= tolerance, "{x}: {got}, {wanted}");
        }
    }

    #[test]
    fn work_is_counted_for_every_thread() {
        assert_eq!(multiply_adds::<4>(10) % 80.0, 0.0);
        assert_eq!(exponentials(1), EXPONENTS as f64);
        assert!(rate(2, |thread| thread as f64) > 0.0);
    }
}
