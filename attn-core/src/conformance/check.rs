//! A backend against the oracle.

use super::cases::{Case, Placement};
use super::data::Numbers;
use super::oracle;
use super::plain::{self, Order, round};
use crate::dtype::{DType, Element};
use crate::error::{Error, Result as CoreResult};
use crate::kernels::{Backend, Kernels, Projection, RowOrder};
use crate::layout::{Dims, Layout};
use crate::mask::{FullyMasked, Mask};
use crate::request::{Attention, AttentionShape, KeyValue};
use crate::view::{Host, HostView, HostViewMut};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

/// Functions that `core` lacks.
#[derive(Debug, Clone, Copy)]
pub struct Maths {
    /// `f64::exp`.
    pub exp: fn(f64) -> f64,
    /// `f64::sqrt`.
    pub sqrt: fn(f64) -> f64,
}

/// What a backend did wrong.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// The case.
    pub case: String,
    /// What, with the numbers.
    pub what: String,
}

impl Failure {
    pub(super) fn new(case: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            case: case.into(),
            what: what.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.case, self.what)
    }
}

impl core::error::Error for Failure {}

/// Half a unit in the last place of numbers of size 1.
fn half_unit(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => f64::from(f32::EPSILON) / 2.0,
        DType::F64 => f64::EPSILON / 2.0,
        DType::F16 => crate::f16::EPSILON.to_f64() / 2.0,
        DType::BF16 => crate::bf16::EPSILON.to_f64() / 2.0,
    }
}

/// Rows of a case for its error to be known: the largest error of a few says little, so a small case is drawn anew until there
/// are so many. (Outputs of one row share its weights and their errors.)
const ROWS: usize = 64;
/// Columns of a row that are looked at.
const COLUMNS: usize = 32;
/// Draws at least: where every query is fully masked all rows of a draw are the same.
const LEAST_DRAWS: usize = 8;
/// Multiply-adds after which a case is not drawn again.
const WORK: usize = 1 << 23;
/// Draws at most.
const DRAWS: usize = 50;

/// Outputs beside the truth and beside plain arithmetic.
#[derive(Default)]
pub(super) struct Comparison {
    entries: Vec<(usize, f64, f64)>,
    plain_error: f64,
    rows: usize,
}

impl Comparison {
    /// One output: its index, what the backend gave, the truth, what plain arithmetic gives in every order.
    pub(super) fn push(&mut self, index: usize, got: f64, truth: f64, plain: [f64; 3]) {
        self.entries.push((index, got, truth));
        for error in plain
            .map(|plain| (truth - plain).abs())
            .into_iter()
            .filter(|error| error.is_finite())
        {
            self.plain_error = self.plain_error.max(error);
        }
    }

    /// The rule of the module's documentation.
    pub(super) fn verdict(&self, case: &str, output: &str, dtype: DType) -> Result<(), Failure> {
        let truths = self
            .entries
            .iter()
            .map(|(_, _, truth)| truth.abs())
            .filter(|truth| truth.is_finite());
        let floor = half_unit(dtype) * truths.fold(0.0, f64::max);
        let allowed = (2.0 * self.plain_error).max(floor);
        for &(index, got, truth) in &self.entries {
            let right = if truth.is_nan() {
                got.is_nan()
            } else {
                (got - truth).abs() <= allowed
            };
            if !right {
                let what = format!(
                    "{output}[{index}] is {got:e}, wanted {truth:e}, off by {:e}, allowed {allowed:e}",
                    got - truth
                );
                return Err(Failure::new(case, what));
            }
        }
        Ok(())
    }
}

/// An array in a buffer of its own, placed as the case says; what it does not cover is NaN.
pub(super) struct Placed<T> {
    pub(super) buffer: Vec<T>,
    pub(super) layout: Layout,
}

impl<T: Element> Placed<T> {
    /// `[batch..., length, heads, depth]`, filled by `next` in that order.
    pub(super) fn new(
        placement: Placement,
        batch: &[usize],
        [length, heads, depth]: [usize; 3],
        mut next: impl FnMut() -> T,
    ) -> CoreResult<Self> {
        let (offset, [sl, sh, sd], size) = match placement {
            Placement::Contiguous => (0, [heads * depth, depth, 1], length * heads * depth),
            Placement::HeadsMajor => (0, [depth, length * depth, 1], length * heads * depth),
            Placement::Gaps => (
                5,
                [heads * (depth + 3) + 1, depth + 3, 1],
                length * (heads * (depth + 3) + 1),
            ),
            Placement::Transposed => (0, [1, length * depth, length], length * heads * depth),
        };
        let shape = Dims::new(batch)?.concat(&[length, heads, depth])?;
        let mut strides = vec![0; shape.rank()];
        strides[batch.len()..].copy_from_slice(&[sl, sh, sd]);
        let mut step = size;
        for axis in (0..batch.len()).rev() {
            strides[axis] = step;
            step *= batch[axis];
        }
        let layout = Layout::strided(offset, shape, &strides)?;
        let mut buffer = vec![T::from_f64(f64::NAN); offset + step.max(layout.end()?)];
        for row in 0..layout.elements().checked_div(depth).unwrap_or(0) {
            let start = layout.base(batch.len() + 2, row);
            for column in 0..depth {
                buffer[start + column * sd] = next();
            }
        }
        Ok(Self { buffer, layout })
    }

    pub(super) fn view(&self) -> CoreResult<HostView<'_, T>> {
        HostView::with_layout(&self.buffer, self.layout)
    }

    pub(super) fn view_mut(&mut self) -> CoreResult<HostViewMut<'_, T>> {
        HostViewMut::with_layout(&mut self.buffer, self.layout)
    }
}

/// The inputs of a case.
pub(super) struct Inputs<T: Element> {
    pub(super) query: Placed<T>,
    pub(super) key: Placed<T>,
    pub(super) value: Placed<T>,
    mask: Option<(Vec<u8>, Vec<usize>, bool)>,
    bias: Option<(Vec<T::Acc>, Vec<usize>)>,
}

impl<T: Element> Inputs<T> {
    pub(super) fn new(case: &Case, draw: usize) -> CoreResult<Self> {
        let mut numbers = Numbers::new(&format!("{} {draw}", case.name));
        let mut placed = |length, depth, size: f64| {
            Placed::new(
                case.placement,
                &case.batch,
                [length, case.heads, depth],
                || T::from_f64(numbers.normal() * size),
            )
        };
        let query = placed(case.query_length, case.depth, case.size)?;
        let key = placed(case.key_length, case.depth, case.size)?;
        let value = placed(case.key_length, case.value_depth, 1.0)?;
        let mask = case.mask.as_ref().map(|mask| {
            let columns = mask.shape.last().copied().unwrap_or(1).max(1);
            let bytes = (0..mask.shape.iter().product()).map(|i: usize| {
                let blind = mask.blind_rows && (i / columns).is_multiple_of(3);
                // Any byte but 0 is set.
                let seen = numbers.uniform() < mask.density && !blind;
                if seen == mask.keep {
                    1 + (i % 255) as u8
                } else {
                    0
                }
            });
            (bytes.collect(), mask.shape.clone(), mask.keep)
        });
        let bias = case.bias.as_ref().map(|(shape, infinite)| {
            let values = (0..shape.iter().product()).map(|_: usize| {
                let value = numbers.normal();
                T::Acc::from_f64(if *infinite && value > 1.0 {
                    f64::NEG_INFINITY
                } else {
                    value
                })
            });
            (values.collect(), shape.clone())
        });
        Ok(Self {
            query,
            key,
            value,
            mask,
            bias,
        })
    }

    pub(super) fn call<'a>(&'a self, case: &Case) -> CoreResult<Attention<'a, Host, T>> {
        let mask = match &self.mask {
            None => None,
            Some((bytes, shape, keep)) => {
                let view = HostView::new(bytes, shape)?;
                Some(if *keep {
                    Mask::keep(view)
                } else {
                    Mask::drop(view)
                })
            }
        };
        let bias = self
            .bias
            .as_ref()
            .map(|(values, shape)| HostView::new(values, shape))
            .transpose()?;
        Ok(
            Attention::new(self.query.view()?, self.key.view()?, self.value.view()?)
                .with_scale(case.scale)
                .with_causal(case.causal)
                .with_mask(mask)
                .with_bias(bias)
                .with_fully_masked(case.fully_masked),
        )
    }
}

/// Rows of a call as `f64`, for oracle and plain arithmetic.
pub(super) struct Rows<'a> {
    mask: Option<(Mask<'a, Host>, Layout)>,
    bias: Option<Vec<f64>>,
    bias_layout: Option<Layout>,
    causal: Option<crate::Causal>,
    shape: AttentionShape,
}

impl<'a> Rows<'a> {
    pub(super) fn new<T: Element>(
        call: &Attention<'a, Host, T>,
        shape: &AttentionShape,
    ) -> CoreResult<Self> {
        let weights = shape.weights(call.query.shape())?;
        let mask = match &call.visible.mask {
            None => None,
            Some(mask) => Some((*mask, *mask.view().broadcast_to("mask", &weights)?.layout())),
        };
        let bias = call.scores.bias.as_ref();
        let bias_layout = match bias {
            None => None,
            Some(bias) => Some(*bias.broadcast_to("bias", &weights)?.layout()),
        };
        let bias = bias.map(|bias| bias.buf().iter().map(|x| x.to_f64()).collect());
        Ok(Self {
            mask,
            bias,
            bias_layout,
            causal: call.visible.causal,
            shape: *shape,
        })
    }

    pub(super) fn element<T: Element>(
        &self,
        view: &HostView<'_, T>,
        batch: usize,
        head: usize,
        row: usize,
        column: usize,
    ) -> f64 {
        let (layout, axes) = (view.layout(), view.shape().rank() - 3);
        let strides = layout.strides();
        view.buf()[layout.base(axes, batch)
            + row * strides[axes]
            + head * strides[axes + 1]
            + column * strides[axes + 2]]
            .to_f64()
    }

    pub(super) fn row<'r, T: Element>(
        &'r self,
        view: &'r HostView<'_, T>,
        batch: usize,
        head: usize,
        row: usize,
    ) -> impl Iterator<Item = f64> + 'r {
        let depth = view.shape().last().copied().unwrap_or(0);
        (0..depth).map(move |column| self.element(view, batch, head, row, column))
    }

    pub(super) fn bias(&self, matrix: usize, query: usize) -> Option<Vec<f64>> {
        let (bias, layout) = (self.bias.as_ref()?, self.bias_layout.as_ref()?);
        let rank = layout.shape().rank();
        let start = layout.base(rank - 1, matrix * self.shape.query_length + query);
        Some(
            (0..self.shape.key_length)
                .map(|key| bias[start + key * layout.strides()[rank - 1]])
                .collect(),
        )
    }

    pub(super) fn seen(&self, matrix: usize, query: usize) -> Vec<bool> {
        let (queries, keys) = (self.shape.query_length, self.shape.key_length);
        (0..keys)
            .map(|key| {
                let causal = self
                    .causal
                    .is_none_or(|causal| causal.sees(query, key, queries, keys));
                let mask = self.mask.as_ref().is_none_or(|(mask, layout)| {
                    let rank = layout.shape().rank();
                    let index = layout.base(rank - 1, matrix * queries + query)
                        + key * layout.strides()[rank - 1];
                    (mask.view().buf()[index] != 0) == mask.set_means_keep()
                });
                causal && mask
            })
            .collect()
    }
}

/// Queries that are looked at: the oracle takes its time.
fn sample(count: usize) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..count.min(3)).collect();
    rows.extend([
        15,
        16,
        31,
        32,
        63,
        64,
        65,
        count / 2,
        count.saturating_sub(2),
        count.saturating_sub(1),
    ]);
    rows.retain(|&row| row < count);
    rows.sort_unstable();
    rows.dedup();
    rows
}

/// A case of attention.
pub(super) fn attend<T: Element, B>(backend: &B, case: &Case, maths: &Maths) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    let (mut outputs, mut weights) = (Comparison::default(), Comparison::default());
    for draw in 0..DRAWS {
        attend_once::<T, B>(backend, case, draw, maths, &mut outputs, &mut weights)?;
        let work =
            case.query_length * case.key_length * (case.depth + case.value_depth) * (draw + 1);
        let enough = outputs.rows >= ROWS && draw + 1 >= LEAST_DRAWS;
        if outputs.rows == 0 || enough || work >= WORK {
            break;
        }
    }
    outputs.verdict(&case.name, "out", T::DTYPE)?;
    weights.verdict(&case.name, "weights", T::DTYPE)
}

fn attend_once<T: Element, B>(
    backend: &B,
    case: &Case,
    draw: usize,
    maths: &Maths,
    outputs: &mut Comparison,
    all_weights: &mut Comparison,
) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    let failed = |error: Error| Failure::new(&case.name, format!("{error}"));
    let inputs = Inputs::<T>::new(case, draw).map_err(failed)?;
    let call = inputs.call(case).map_err(failed)?;
    let shape = call.shape().map_err(failed)?;
    let size = [case.query_length, case.heads, case.value_depth];
    let mut out =
        Placed::new(case.placement, &case.batch, size, || T::from_f64(f64::NAN)).map_err(failed)?;
    let weights_shape = shape.weights(call.query.shape()).map_err(failed)?;
    let mut weights = vec![
        T::Acc::from_f64(f64::NAN);
        if case.weights {
            weights_shape.iter().product()
        } else {
            0
        }
    ];
    let asked = match case.weights {
        true => Some(HostViewMut::new(&mut weights, &weights_shape).map_err(failed)?),
        false => None,
    };
    let mut scratch = vec![T::Acc::from_f64(f64::NAN); backend.attend_scratch(&shape)];
    let run = inputs.call(case).map_err(failed)?.with_weights(asked);
    backend
        .attend(run, out.view_mut().map_err(failed)?, &mut scratch)
        .map_err(failed)?;
    let computed = Computed {
        shape,
        out: &out,
        weights: &weights,
    };
    compare::<T>(case, &call, &computed, maths, outputs, all_weights)
}

/// What a backend made of a case.
struct Computed<'a, T: Element> {
    shape: AttentionShape,
    out: &'a Placed<T>,
    weights: &'a [T::Acc],
}

fn compare<T: Element>(
    case: &Case,
    call: &Attention<'_, Host, T>,
    computed: &Computed<'_, T>,
    maths: &Maths,
    outputs: &mut Comparison,
    all_weights: &mut Comparison,
) -> Result<(), Failure> {
    let Computed {
        shape,
        out,
        weights,
    } = computed;
    let failed = |error: Error| Failure::new(&case.name, format!("{error}"));
    let KeyValue::Dense { key, value } = &call.source;
    let rows = Rows::new(call, shape).map_err(failed)?;
    let out = out.view().map_err(failed)?;
    let factor = case.scale.factor(shape.depth, maths.sqrt);
    for matrix in 0..shape.batch * shape.num_heads {
        let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
        for query in sample(shape.query_length) {
            let q: Vec<f64> = rows.row(&call.query, batch, head, query).collect();
            let rounded: Vec<f64> = q
                .iter()
                .map(|x| round::<T>(x * round::<T>(factor)))
                .collect();
            let (bias, seen) = (rows.bias(matrix, query), rows.seen(matrix, query));
            let keys: Vec<Vec<f64>> = (0..shape.key_length)
                .map(|k| rows.row(key, batch, head, k).collect())
                .collect();
            let plain_weights = Order::ALL.map(|order| {
                let products: Vec<f64> = keys
                    .iter()
                    .map(|k| plain::dot::<T>(order, &rounded, k))
                    .collect();
                plain::weights::<T>(
                    order,
                    &products,
                    bias.as_deref(),
                    &seen,
                    case.fully_masked,
                    maths,
                )
            });
            let truth = oracle::Row {
                products: keys
                    .iter()
                    .map(|k| oracle::dot(q.iter().copied(), k.iter().copied()))
                    .collect(),
                scale: factor,
                bias,
                seen,
                zero_if_blind: case.fully_masked == FullyMasked::Zero,
                maths,
            }
            .weights();
            let row = matrix * shape.query_length + query;
            outputs.rows += 1;
            for column in (0..shape.value_depth).rev().take(COLUMNS) {
                let values: Vec<f64> = (0..shape.key_length)
                    .map(|k| rows.element(value, batch, head, k, column))
                    .collect();
                let exact = oracle::dot(truth.iter().copied(), values.iter().copied()).value();
                let plainly =
                    [0, 1, 2].map(|i| plain::dot::<T>(Order::ALL[i], &plain_weights[i], &values));
                let got = rows.element(&out, batch, head, query, column);
                outputs.push(row * shape.value_depth + column, got, exact, plainly);
            }
            if case.weights {
                for k in 0..shape.key_length {
                    let index = row * shape.key_length + k;
                    let plainly = [0, 1, 2].map(|i| plain_weights[i][k]);
                    all_weights.push(index, weights[index].to_f64(), truth[k], plainly);
                }
            }
        }
    }
    Ok(())
}

/// Dense layers of all sizes, in both row orders.
pub(super) fn project<T: Element, B>(backend: &B, _: &Maths) -> Result<usize, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    let sizes = [
        (1, 1, 1),
        (1, 768, 33),
        (2, 65, 257),
        (3, 7, 5),
        (5, 16, 16),
        (6, 33, 31),
        (17, 3, 64),
        (48, 64, 48),
        (49, 130, 65),
        (70, 256, 96),
        (300, 40, 40),
        (0, 4, 4),
        (4, 0, 4),
        (4, 4, 0),
    ];
    let mut count = 0;
    for (rows, features, outputs) in sizes {
        for row_order in [RowOrder::Any, RowOrder::Fixed] {
            for with_bias in [true, false] {
                let name =
                    format!("project {rows} {features} {outputs} {row_order:?} bias {with_bias}");
                let mut comparison = Comparison::default();
                for draw in 0..DRAWS {
                    let sizes = [rows, features, outputs];
                    one_projection::<T, B>(
                        backend,
                        &name,
                        draw,
                        sizes,
                        row_order,
                        with_bias,
                        &mut comparison,
                    )?;
                    if comparison.rows == 0 || comparison.rows >= ROWS {
                        break;
                    }
                }
                comparison.verdict(&name, "out", T::DTYPE)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

fn one_projection<T: Element, B>(
    backend: &B,
    name: &str,
    draw: usize,
    [rows, features, outputs]: [usize; 3],
    row_order: RowOrder,
    with_bias: bool,
    comparison: &mut Comparison,
) -> Result<(), Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    let failed = |error: Error| Failure::new(name, format!("{error}"));
    let mut numbers = Numbers::new(&format!("{name} {draw}"));
    let input: Vec<T> = numbers.elements(rows * features, 1.0);
    let kernel: Vec<T> = numbers.elements(features * outputs, 1.0);
    let bias: Vec<T> = numbers.elements(outputs, 1.0);
    let mut out = vec![T::from_f64(f64::NAN); rows * outputs];
    let call = Projection {
        input: HostView::new(&input, &[rows, features]).map_err(failed)?,
        kernel: HostView::new(&kernel, &[features, outputs]).map_err(failed)?,
        bias: if with_bias {
            Some(HostView::new(&bias, &[outputs]).map_err(failed)?)
        } else {
            None
        },
        row_order,
    };
    let mut scratch =
        vec![T::Acc::from_f64(f64::NAN); backend.project_scratch(rows, features, outputs)];
    let view = HostViewMut::new(&mut out, &[rows, outputs]).map_err(failed)?;
    backend.project(&call, view, &mut scratch).map_err(failed)?;
    for row in sample(rows) {
        comparison.rows += 1;
        for column in 0..outputs {
            let left: Vec<f64> = (0..features)
                .map(|f| input[row * features + f].to_f64())
                .collect();
            let right: Vec<f64> = (0..features)
                .map(|f| kernel[f * outputs + column].to_f64())
                .collect();
            let added = if with_bias {
                bias[column].to_f64()
            } else {
                0.0
            };
            let exact = oracle::dot(
                left.iter().copied().chain([1.0]),
                right.iter().copied().chain([added]),
            )
            .value();
            let plainly =
                Order::ALL.map(|order| round::<T>(plain::dot::<T>(order, &left, &right) + added));
            let index = row * outputs + column;
            comparison.push(index, out[index].to_f64(), exact, plainly);
        }
    }
    Ok(())
}

/// Layer norm, rows whose mean is far from 0 included.
pub(super) fn normalize<T: Element, B>(backend: &B, maths: &Maths) -> Result<usize, Failure>
where
    B: Kernels<T> + Backend<Storage = Host, Error = Error>,
{
    const EPSILON: f64 = 1e-6;
    let mut count = 0;
    for depth in [1, 2, 3, 5, 8, 16, 31, 64, 65, 130, 256] {
        for mean in [0.0, 1.0] {
            let name = format!("normalize {depth} mean {mean}");
            let failed = |error: Error| Failure::new(&*name, format!("{error}"));
            let mut numbers = Numbers::new(&name);
            let rows = ROWS;
            let input: Vec<T> = (0..rows * depth)
                .map(|_| T::from_f64(numbers.normal() + mean))
                .collect();
            let scale: Vec<T::Acc> = (0..depth)
                .map(|_| T::Acc::from_f64(1.0 + numbers.normal() / 4.0))
                .collect();
            let mut x = input.clone();
            let view = HostViewMut::new(&mut x, &[rows, depth]).map_err(failed)?;
            backend
                .normalize(
                    view,
                    HostView::new(&scale, &[depth]).map_err(failed)?,
                    EPSILON,
                )
                .map_err(failed)?;
            let wide: Vec<f64> = scale.iter().map(|x| x.to_f64()).collect();
            let mut comparison = Comparison::default();
            for (row, got) in input.chunks(depth).zip(x.chunks(depth)) {
                let row: Vec<f64> = row.iter().map(|x| x.to_f64()).collect();
                let mean = oracle::sum(row.iter().copied()).value() / depth as f64;
                let centred = || row.iter().map(|x| x - mean);
                let variance = oracle::dot(centred(), centred()).value() / depth as f64;
                let plainly = Order::ALL
                    .map(|order| plain::normalize::<T>(order, &row, &wide, EPSILON, maths));
                for (i, x) in centred().enumerate() {
                    let truth = x / (maths.sqrt)(variance + EPSILON) * wide[i];
                    comparison.push(
                        i,
                        got[i].to_f64(),
                        truth,
                        [0, 1, 2].map(|order: usize| plainly[order][i]),
                    );
                }
            }
            comparison.verdict(&name, "x", T::DTYPE)?;
            count += 1;
        }
    }
    Ok(count)
}
