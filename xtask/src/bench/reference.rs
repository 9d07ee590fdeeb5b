//! What a case should give: plain `f64` arithmetic on the unrounded inputs, formula by formula, with nothing of the kernels in it.
//!
//! Of cores and products a sample of rows is computed, of layers everything, on all threads, before the clock starts.

mod layer;
mod matrix;

use crate::data::{Arrays, CoreArrays, ProductArrays, Random};
use crate::spec::{CoreSizes, Pass, ProductSizes, Spec, Work};
use matrix::{parallel, product, softmax, widened};

/// Rows of a sample.
const SAMPLE: usize = 16;

/// Parts of a result that are known.
#[derive(Debug)]
pub(crate) struct Reference {
    /// Arrays that are each judged by their own largest number.
    parts: Vec<Vec<Known>>,
}

/// Numbers of a result from an index on.
#[derive(Debug)]
struct Known {
    start: usize,
    values: Vec<f64>,
}

impl Reference {
    /// What `spec` should give; `None` for dropout, whose masks every library draws in its own way.
    pub(crate) fn of(spec: &Spec, arrays: &Arrays) -> Option<Self> {
        let parts = match (spec.work, arrays) {
            (Work::Layer(_, Pass::Dropout { .. }), _) => return None,
            (Work::Layer(sizes, pass), Arrays::Layer(arrays)) => {
                one_after_another(layer::results(sizes, pass == Pass::Train, arrays))
            }
            (Work::Core(sizes), Arrays::Core(arrays)) => vec![core(sizes, arrays)],
            (Work::Product(sizes), Arrays::Product(arrays)) => vec![rows_of_product(sizes, arrays)],
            _ => return None,
        };
        Some(Self { parts })
    }

    /// The largest difference, divided by the largest number of the reference; the worst of the parts.
    pub(crate) fn error(&self, result: &[f32]) -> f64 {
        self.parts
            .iter()
            .map(|part| error_of(part, result))
            .fold(0.0, f64::max)
    }
}

fn error_of(part: &[Known], result: &[f32]) -> f64 {
    let (mut worst, mut largest) = (0.0f64, 0.0f64);
    for known in part {
        let end = known.start + known.values.len();
        let Some(got) = result.get(known.start..end) else {
            return f64::INFINITY;
        };
        for (&got, &wanted) in got.iter().zip(&known.values) {
            let difference = (f64::from(got) - wanted).abs();
            // NaN must not pass as small.
            worst = if difference.is_nan() {
                f64::INFINITY
            } else {
                worst.max(difference)
            };
            largest = largest.max(wanted.abs());
        }
    }
    if worst == 0.0 { 0.0 } else { worst / largest }
}

fn one_after_another(arrays: Vec<Vec<f64>>) -> Vec<Vec<Known>> {
    let mut start = 0;
    let mut parts = Vec::new();
    for values in arrays {
        let next = start + values.len();
        parts.push(vec![Known { start, values }]);
        start = next;
    }
    parts
}

/// Some rows of every head.
fn core(sizes: CoreSizes, arrays: &CoreArrays) -> Vec<Known> {
    let rows = sample(sizes.query_length);
    let heads = parallel(sizes.batch * sizes.heads, |head| {
        let (k, v) = keys_of(sizes, arrays, head);
        let row = |&row: &usize| Known {
            start: (head * sizes.query_length + row) * sizes.depth,
            values: core_row(
                sizes,
                arrays,
                head * sizes.query_length + row,
                sizes.visible(row),
                k,
                v,
            ),
        };
        rows.iter().map(row).collect::<Vec<_>>()
    });
    heads.into_iter().flatten().collect()
}

/// The keys and values that a head of a batch entry, counted through, shares.
fn keys_of(sizes: CoreSizes, arrays: &CoreArrays, head: usize) -> (&[f32], &[f32]) {
    let (batch, head) = (head / sizes.heads, head % sizes.heads);
    let matrix = batch * sizes.kv_heads + head / sizes.group();
    let each = sizes.key_length * sizes.depth;
    (
        &arrays.k[matrix * each..][..each],
        &arrays.v[matrix * each..][..each],
    )
}

fn core_row(
    sizes: CoreSizes,
    arrays: &CoreArrays,
    row: usize,
    visible: usize,
    k: &[f32],
    v: &[f32],
) -> Vec<f64> {
    let depth = sizes.depth;
    let q = &arrays.q[row * depth..][..depth];
    let scale = 1.0 / (depth as f64).sqrt();
    let dot = |key: &[f32]| {
        q.iter()
            .zip(key)
            .map(|(&a, &b)| f64::from(a) * f64::from(b))
            .sum::<f64>()
    };
    let mut weights: Vec<f64> = k
        .chunks_exact(depth)
        .take(visible)
        .map(|key| dot(key) * scale)
        .collect();
    softmax(&mut weights);
    let mut out = vec![0.0; depth];
    for (weight, value) in weights.iter().zip(v.chunks_exact(depth)) {
        for (out, &value) in out.iter_mut().zip(value) {
            *out += weight * f64::from(value);
        }
    }
    out
}

fn rows_of_product(sizes: ProductSizes, arrays: &ProductArrays) -> Vec<Known> {
    let b = widened(&arrays.b);
    let rows = sample(sizes.rows);
    parallel(rows.len(), |n| {
        let a = widened(&arrays.a[rows[n] * sizes.inner..][..sizes.inner]);
        Known {
            start: rows[n] * sizes.columns,
            values: product(&a, &b, 1, sizes.inner, sizes.columns),
        }
    })
}

/// Some of `count` rows, first and last among them, in order.
fn sample(count: usize) -> Vec<usize> {
    if count <= SAMPLE {
        return (0..count).collect();
    }
    let mut random = Random::new(&["sample"]);
    let mut rows = vec![0, count - 1];
    while rows.len() < SAMPLE {
        let row = random.below(count);
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    rows.sort_unstable();
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_relative_to_the_largest_number_of_a_part() {
        let reference = Reference {
            parts: one_after_another(vec![vec![1.0, -4.0], vec![0.5]]),
        };
        assert_eq!(reference.error(&[1.0, -4.0, 0.5]), 0.0);
        assert_eq!(reference.error(&[2.0, -4.0, 0.5]), 0.25);
        assert_eq!(reference.error(&[1.0, -4.0, 0.25]), 0.5);
        assert_eq!(reference.error(&[1.0, f32::NAN, 0.5]), f64::INFINITY);
        assert_eq!(reference.error(&[1.0]), f64::INFINITY);
    }

    #[test]
    fn a_sample_has_the_ends() {
        assert_eq!(sample(3), [0, 1, 2]);
        let rows = sample(1000);
        assert_eq!((rows[0], rows[SAMPLE - 1], rows.len()), (0, 999, SAMPLE));
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
