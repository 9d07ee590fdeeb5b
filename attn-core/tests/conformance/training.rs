//! Faults of dropout, statistics and gradients that the suite must find.

use super::{MATHS, REFERENCE};
use attn_core::conformance::{Group, run};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Element, Error, FlatMut, Host, HostView,
    HostViewMut, Kernels, KeyValue, Layout, NormalizeBackward, Projection, ProjectionBackward,
    bf16, f16,
};

/// A wrong turn of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    IgnoresDropout,
    SharesMaskThatIsNotShared,
    WeightsAfterDropout,
    StatisticsInWrongOrder,
    StatisticsOfUnscaledScores,
    StatisticsChangeTheOutput,
    HasNoGradients,
    ForgetsDelta,
    ForgetsScale,
    ForgetsMultiplier,
    BitsOfTransposedIndex,
    IgnoresMaskInBackward,
    GradientThroughBlindRows,
    BiasOfFirstBatchOnly,
    KeyOfOtherHead,
    WritesBetweenGaps,
    AcceptsAnyScratch,
    ReadsStaleScratch,
    WritesBeforeChecking,
    ForgetsToAccumulate,
    AccumulatesUnasked,
    KernelWithoutLastRow,
    ForgetsProjectionBias,
    NormWithoutMean,
    NormWithoutScale,
    NormScaleOfLastRow,
}

/// The reference with a fault.
struct Faulty(Fault);

impl Backend for Faulty {
    type Storage = Host;
    type Error = Error;
    fn name(&self) -> &'static str {
        "faulty"
    }
}

impl<T: Element> Kernels<T> for Faulty {
    as_the_reference!(
        project,
        normalize,
        project_scratch,
        attend_scratch,
        project_backward_scratch
    );

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let shape = call.shape()?;
        match self.0 {
            Fault::IgnoresDropout => call.dropout = None,
            Fault::SharesMaskThatIsNotShared if call.dropout.is_some() => {
                return attend_with_shared_mask(call, &shape, out);
            }
            Fault::WeightsAfterDropout => return weights_after_dropout(call, &shape, out),
            Fault::StatisticsInWrongOrder | Fault::StatisticsOfUnscaledScores => {
                return wrong_statistics(self.0, call, &shape, out);
            }
            Fault::StatisticsChangeTheOutput if call.outputs.statistics.is_some() => {
                REFERENCE.attend(call, out.reborrow(), scratch)?;
                let first = out.layout().offset();
                if let Some(x) = out.buf_mut().get_mut(first) {
                    *x = T::from_f64(x.to_f64() * 1.01);
                }
                return Ok(());
            }
            _ => {}
        }
        REFERENCE.attend(call, out, scratch)
    }

    fn project_backward(
        &self,
        mut call: ProjectionBackward<'_, Host, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        match self.0 {
            Fault::ForgetsToAccumulate => call.accumulate = false,
            Fault::AccumulatesUnasked => call.accumulate = true,
            Fault::ForgetsProjectionBias => call.d_bias = None,
            Fault::KernelWithoutLastRow => return kernel_without_last_row(call, scratch),
            _ => {}
        }
        REFERENCE.project_backward(call, scratch)
    }

    fn normalize_backward(&self, call: NormalizeBackward<'_, Host, T>) -> Result<(), Error> {
        match self.0 {
            Fault::NormWithoutMean => norm_without_mean(call),
            Fault::NormWithoutScale => {
                let ones = vec![T::Acc::from_f64(1.0); call.scale.shape().elements()?];
                let scale = HostView::new(&ones, call.scale.shape())?;
                REFERENCE.normalize_backward(NormalizeBackward { scale, ..call })
            }
            Fault::NormScaleOfLastRow => norm_scale_of_last_row(call),
            _ => REFERENCE.normalize_backward(call),
        }
    }

    fn attend_backward_scratch(&self, _: &AttentionShape) -> usize {
        usize::from(matches!(
            self.0,
            Fault::AcceptsAnyScratch | Fault::ReadsStaleScratch
        ))
    }

    fn attend_backward(
        &self,
        mut call: AttentionBackward<'_, Host, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        match self.0 {
            Fault::HasNoGradients => {
                return Err(Error::Unsupported {
                    backend: "faulty",
                    feature: "gradients",
                    instead: "Use a backend that has them",
                });
            }
            Fault::WritesBeforeChecking => call.d_value.buf_mut().fill(T::default()),
            _ => {}
        }
        let shape = call.shape()?;
        match self.0 {
            Fault::IgnoresMaskInBackward => call.call.visible.mask = None,
            Fault::WritesBetweenGaps => call.d_key.buf_mut().fill(T::default()),
            _ => {}
        }
        backward(self.0, call, &shape, scratch)
    }
}

/// The reference's gradients, spoilt afterwards.
fn backward<T: Element>(
    fault: Fault,
    call: AttentionBackward<'_, Host, T>,
    shape: &AttentionShape,
    scratch: &mut [T::Acc],
) -> Result<(), Error> {
    let AttentionBackward {
        call: forward,
        out,
        statistics,
        d_out,
        mut d_query,
        mut d_key,
        mut d_value,
        mut d_bias,
        mut d_relative,
        mut d_sinks,
    } = call;
    REFERENCE.attend_backward(
        AttentionBackward {
            call: copy(&forward),
            out,
            statistics,
            d_out,
            d_query: d_query.reborrow(),
            d_key: d_key.reborrow(),
            d_value: d_value.reborrow(),
            d_bias: d_bias.as_mut().map(HostViewMut::reborrow),
            d_relative: d_relative.as_mut().map(FlatMut::reborrow),
            d_sinks: d_sinks.as_mut().map(FlatMut::reborrow),
        },
        scratch,
    )?;
    match fault {
        Fault::ForgetsDelta => forget_delta(&forward, shape, &out, &d_out, &mut d_query)?,
        Fault::ForgetsScale => {
            let factor = forward.scores.scale.factor(shape.depth, f64::sqrt);
            change(&mut d_query, |x| x / factor);
        }
        Fault::ForgetsMultiplier => {
            if let Some(dropout) = forward.dropout {
                change(&mut d_value, |x| x / dropout.multiplier());
            }
        }
        Fault::BitsOfTransposedIndex => bits_of_transposed_index(&forward, shape, &d_out, d_value)?,
        Fault::GradientThroughBlindRows => {
            gradient_through_blind_rows(&forward, shape, &statistics, &d_out, &mut d_query)?;
        }
        Fault::BiasOfFirstBatchOnly => {
            if let Some(d_bias) = d_bias {
                bias_of_first_batch_only(&forward, shape, &d_out, d_bias)?;
            }
        }
        Fault::KeyOfOtherHead if shape.num_heads > 1 => swap_heads(&mut d_key, shape),
        Fault::ReadsStaleScratch => {
            let stale = scratch[0].to_f64();
            change(&mut d_value, |x| x + stale);
        }
        _ => {}
    }
    Ok(())
}

fn key_and_value<'a, T: Element>(call: &Attention<'a, Host, T>) -> [HostView<'a, T>; 2] {
    match call.source {
        KeyValue::Dense { key, value } => [key, value],
        _ => unreachable!("the suite has no other source"),
    }
}

/// The same call without its outputs.
fn copy<'a, T: Element>(call: &Attention<'a, Host, T>) -> Attention<'a, Host, T> {
    let [key, value] = key_and_value(call);
    Attention::new(call.query, key, value)
        .with_scale(call.scores.scale)
        .with_bias(call.scores.bias)
        .with_causal(call.visible.causal)
        .with_mask(call.visible.mask)
        .with_fully_masked(call.visible.fully_masked)
        .with_dropout(call.dropout)
}

/// Changes every element.
fn change<T: Element>(view: &mut HostViewMut<'_, T>, f: impl Fn(f64) -> f64) {
    let (layout, rank) = (*view.layout(), view.shape().rank());
    for n in 0..layout.elements() {
        let x = &mut view.buf_mut()[layout.base(rank, n)];
        *x = T::from_f64(f(x.to_f64()));
    }
}

/// Index of an element of `[batch..., length, heads, depth]`.
fn at(layout: &Layout, shape: &AttentionShape, matrix: usize, [row, column]: [usize; 2]) -> usize {
    let (batch, head) = (matrix / shape.num_heads, matrix % shape.num_heads);
    let axes = layout.shape().rank() - 3;
    let strides = &layout.strides()[axes..];
    layout.base(axes, batch) + row * strides[0] + head * strides[1] + column * strides[2]
}

fn get<T: Element>(
    view: &HostView<'_, T>,
    shape: &AttentionShape,
    matrix: usize,
    place: [usize; 2],
) -> f64 {
    view.buf()[at(view.layout(), shape, matrix, place)].to_f64()
}

fn add<T: Element>(
    view: &mut HostViewMut<'_, T>,
    shape: &AttentionShape,
    matrix: usize,
    place: [usize; 2],
    value: f64,
) {
    let index = at(view.layout(), shape, matrix, place);
    let x = &mut view.buf_mut()[index];
    *x = T::from_f64(x.to_f64() + value);
}

/// The weights before dropout, `[matrices, queries, keys]`.
fn weights<T: Element>(
    call: &Attention<'_, Host, T>,
    shape: &AttentionShape,
) -> Result<Vec<f64>, Error> {
    let weights_shape = shape.weights(call.query.shape())?;
    let mut weights = vec![T::Acc::default(); weights_shape.elements()?];
    let out_shape = shape.output(call.query.shape())?;
    let mut out = vec![T::default(); out_shape.elements()?];
    let asked = HostViewMut::new(&mut weights, &weights_shape)?;
    let call = copy(call).with_weights(Some(asked));
    REFERENCE.attend(call, HostViewMut::new(&mut out, &out_shape)?, &mut [])?;
    Ok(weights.iter().map(|x| x.to_f64()).collect())
}

/// The mask of the first head of the first batch entry for all.
fn attend_with_shared_mask<T: Element>(
    mut call: Attention<'_, Host, T>,
    shape: &AttentionShape,
    mut out: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let Some(dropout) = call.dropout else {
        return Ok(());
    };
    let (weights, bits) = (weights(&call, shape)?, dropout.bits(shape)?);
    let [_, value] = key_and_value(&call);
    call.dropout = None;
    REFERENCE.attend(call, out.reborrow(), &mut [])?;
    change(&mut out, |_| 0.0);
    let (queries, keys) = (shape.query_length, shape.key_length);
    for (n, weight) in weights.iter().enumerate() {
        let (matrix, query, key) = (n / keys / queries, n / keys % queries, n % keys);
        if bits.keeps(0, query, key) {
            for column in 0..shape.value_depth {
                let value = get(&value, shape, matrix, [key, column]);
                let term = weight * dropout.multiplier() * value;
                add(&mut out, shape, matrix, [query, column], term);
            }
        }
    }
    Ok(())
}

fn weights_after_dropout<T: Element>(
    mut call: Attention<'_, Host, T>,
    shape: &AttentionShape,
    out: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let asked = call.outputs.weights.take();
    let dropout = call.dropout;
    if let (Some(mut asked), Some(dropout)) = (asked, dropout) {
        let (weights, bits) = (weights(&call, shape)?, dropout.bits(shape)?);
        let (layout, rank) = (*asked.layout(), asked.shape().rank());
        let (queries, keys) = (shape.query_length, shape.key_length);
        for (n, weight) in weights.iter().enumerate() {
            let kept = bits.keeps(n / keys / queries, n / keys % queries, n % keys);
            let factor = if kept { dropout.multiplier() } else { 0.0 };
            asked.buf_mut()[layout.base(rank, n)] = T::Acc::from_f64(weight * factor);
        }
    }
    REFERENCE.attend(call, out, &mut [])
}

fn wrong_statistics<T: Element>(
    fault: Fault,
    mut call: Attention<'_, Host, T>,
    shape: &AttentionShape,
    out: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let statistics = call.outputs.statistics.take();
    let factor = call.scores.scale.factor(shape.depth, f64::sqrt);
    let Some(mut statistics) = statistics else {
        return REFERENCE.attend(call, out, &mut []);
    };
    let asked = Some(statistics.reborrow());
    REFERENCE.attend(call.with_statistics(asked), out, &mut [])?;
    let (layout, axes) = (*statistics.layout(), statistics.shape().rank() - 1);
    for row in 0..layout.elements() / 2 {
        let first = layout.base(axes, row);
        let second = first + layout.strides()[axes];
        let buffer = statistics.buf_mut();
        match fault {
            Fault::StatisticsInWrongOrder => buffer.swap(first, second),
            _ => buffer[first] = T::Acc::from_f64(buffer[first].to_f64() / factor),
        }
    }
    Ok(())
}

/// `d_query` of `w dW` instead of `w (dW - delta)`. The sum of weighted keys is attention with keys for values.
fn forget_delta<T: Element>(
    call: &Attention<'_, Host, T>,
    shape: &AttentionShape,
    out: &HostView<'_, T>,
    d_out: &HostView<'_, T>,
    d_query: &mut HostViewMut<'_, T>,
) -> Result<(), Error> {
    let [key, _] = key_and_value(call);
    let weights = weights(call, shape)?;
    let factor = call.scores.scale.factor(shape.depth, f64::sqrt);
    let (queries, keys) = (shape.query_length, shape.key_length);
    for row in 0..shape.batch * shape.num_heads * queries {
        let (matrix, query) = (row / queries, row % queries);
        let delta: f64 = (0..shape.value_depth)
            .map(|c| {
                let place = [query, c];
                get(out, shape, matrix, place) * get(d_out, shape, matrix, place)
            })
            .sum();
        for column in 0..shape.depth {
            let weighted = |(j, w): (usize, &f64)| w * get(&key, shape, matrix, [j, column]);
            let sum: f64 = (weights[row * keys..][..keys].iter().enumerate())
                .map(weighted)
                .sum();
            add(
                d_query,
                shape,
                matrix,
                [query, column],
                factor * delta * sum,
            );
        }
    }
    Ok(())
}

/// `d_value` with the mask's bits counted as if keys came before queries.
fn bits_of_transposed_index<T: Element>(
    call: &Attention<'_, Host, T>,
    shape: &AttentionShape,
    d_out: &HostView<'_, T>,
    mut d_value: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let Some(dropout) = call.dropout else {
        return Ok(());
    };
    let (weights, bits) = (weights(call, shape)?, dropout.bits(shape)?);
    change(&mut d_value, |_| 0.0);
    let (queries, keys) = (shape.query_length, shape.key_length);
    for (n, weight) in weights.iter().enumerate() {
        let (matrix, query, key) = (n / keys / queries, n / keys % queries, n % keys);
        let index = bits.index(matrix, 0, 0) + (key * queries + query) as u64;
        if u128::from(bits.words().at(index)) < bits.limit() {
            for column in 0..shape.value_depth {
                let d_out = get(d_out, shape, matrix, [query, column]);
                let term = weight * dropout.multiplier() * d_out;
                add(&mut d_value, shape, matrix, [key, column], term);
            }
        }
    }
    Ok(())
}

/// A fully masked row is the mean of all values, and its scores get a gradient as if it were by their own doing.
fn gradient_through_blind_rows<T: Element>(
    call: &Attention<'_, Host, T>,
    shape: &AttentionShape,
    statistics: &HostView<'_, T::Acc>,
    d_out: &HostView<'_, T>,
    d_query: &mut HostViewMut<'_, T>,
) -> Result<(), Error> {
    let [key, value] = key_and_value(call);
    let (queries, keys) = (shape.query_length, shape.key_length);
    let axes = statistics.shape().rank() - 1;
    for row in 0..shape.batch * shape.num_heads * queries {
        let (matrix, query) = (row / queries, row % queries);
        let largest = statistics.buf()[statistics.layout().base(axes, row)].to_f64();
        if largest > -1e30 || !largest.is_finite() {
            continue;
        }
        let product = |j: usize| -> f64 {
            let term =
                |c| get(d_out, shape, matrix, [query, c]) * get(&value, shape, matrix, [j, c]);
            (0..shape.value_depth).map(term).sum()
        };
        let d_weights: Vec<f64> = (0..keys).map(product).collect();
        let delta = d_weights.iter().sum::<f64>() / keys as f64;
        for (j, d_weight) in d_weights.iter().enumerate() {
            for column in 0..shape.depth {
                let key = get(&key, shape, matrix, [j, column]);
                let term = (d_weight - delta) / keys as f64 * key;
                add(d_query, shape, matrix, [query, column], term);
            }
        }
    }
    Ok(())
}

/// What `d_bias` is if later batch entries have no gradient.
fn bias_of_first_batch_only<T: Element>(
    call: &Attention<'_, Host, T>,
    shape: &AttentionShape,
    d_out: &HostView<'_, T>,
    d_bias: HostViewMut<'_, T::Acc>,
) -> Result<(), Error> {
    let layout = Layout::contiguous(*d_out.shape())?;
    let rank = layout.shape().rank();
    let first = layout.elements() / shape.batch.max(1);
    let buffer: Vec<T> = (0..layout.elements())
        .map(|n| match n < first {
            true => d_out.buf()[d_out.layout().base(rank, n)],
            false => T::default(),
        })
        .collect();
    let [key, value] = key_and_value(call);
    let unused = |shape: &attn_core::Dims| Ok::<_, Error>(vec![T::default(); shape.elements()?]);
    let (mut d_query, mut d_key, mut d_value) = (
        unused(call.query.shape())?,
        unused(key.shape())?,
        unused(value.shape())?,
    );
    let statistics_shape = shape.statistics(call.query.shape())?;
    let statistics = vec![T::Acc::default(); statistics_shape.elements()?];
    let d_out = HostView::new(&buffer, d_out.shape())?;
    let backward = AttentionBackward {
        call: copy(call),
        out: d_out,
        statistics: HostView::new(&statistics, &statistics_shape)?,
        d_out,
        d_query: HostViewMut::new(&mut d_query, call.query.shape())?,
        d_key: HostViewMut::new(&mut d_key, key.shape())?,
        d_value: HostViewMut::new(&mut d_value, value.shape())?,
        d_bias: Some(d_bias),
        d_relative: None,
        d_sinks: None,
    };
    REFERENCE.attend_backward(backward, &mut [])
}

/// The gradients of the first two heads change places.
fn swap_heads<T: Element>(d_key: &mut HostViewMut<'_, T>, shape: &AttentionShape) {
    let layout = *d_key.layout();
    for batch in 0..shape.batch {
        for row in 0..shape.key_length {
            for column in 0..shape.depth {
                let [a, b] = [0, 1].map(|head| {
                    at(
                        &layout,
                        shape,
                        batch * shape.num_heads + head,
                        [row, column],
                    )
                });
                d_key.buf_mut().swap(a, b);
            }
        }
    }
}

fn kernel_without_last_row<T: Element>(
    call: ProjectionBackward<'_, Host, T>,
    scratch: &mut [T::Acc],
) -> Result<(), Error> {
    let (rows, features, outputs) = call.sizes()?;
    let d_kernel = call.d_kernel;
    let (input, d_out) = (call.input, call.d_out);
    let call = ProjectionBackward {
        d_kernel: None,
        ..call
    };
    REFERENCE.project_backward(call, scratch)?;
    let Some(mut d_kernel) = d_kernel else {
        return Ok(());
    };
    let value = |view: &HostView<'_, T>, row: usize, column: usize| -> f64 {
        let (layout, axes) = (view.layout(), view.shape().rank() - 1);
        view.buf()[layout.base(axes, row) + column * layout.strides()[axes]].to_f64()
    };
    let layout = *d_kernel.layout();
    for feature in 0..features {
        for output in 0..outputs {
            let term = |row| value(&input, row, feature) * value(&d_out, row, output);
            let sum: f64 = (0..rows.saturating_sub(1)).map(term).sum();
            d_kernel.buf_mut()[layout.at(&[feature, output])] = T::from_f64(sum);
        }
    }
    Ok(())
}

/// As if the mean were a constant.
fn norm_without_mean<T: Element>(mut call: NormalizeBackward<'_, Host, T>) -> Result<(), Error> {
    let (rows, depth) = call.sizes()?;
    let (layout, axes) = (*call.gradient.layout(), call.x.shape().rank() - 1);
    let read = |view: &HostView<'_, T>, row: usize| -> Vec<f64> {
        let (start, stride) = (view.layout().base(axes, row), view.layout().strides()[axes]);
        (0..depth)
            .map(|i| view.buf()[start + i * stride].to_f64())
            .collect()
    };
    let lost: Vec<f64> = (0..rows)
        .map(|row| {
            let (x, g) = (read(&call.x, row), read(&call.gradient.as_view(), row));
            let mean = x.iter().sum::<f64>() / depth as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / depth as f64;
            let scaled = |(i, g): (usize, &f64)| g * call.scale.buf()[i].to_f64();
            let sum: f64 = g.iter().enumerate().map(scaled).sum();
            sum / depth as f64 / (variance + call.epsilon).sqrt()
        })
        .collect();
    REFERENCE.normalize_backward(NormalizeBackward {
        gradient: call.gradient.reborrow(),
        d_scale: call.d_scale,
        ..call
    })?;
    for (row, lost) in lost.iter().enumerate() {
        for i in 0..depth {
            let index = layout.base(axes, row) + i * layout.strides()[axes];
            let x = &mut call.gradient.buf_mut()[index];
            *x = T::from_f64(x.to_f64() + lost);
        }
    }
    Ok(())
}

/// Each row writes its share over the last one's.
fn norm_scale_of_last_row<T: Element>(
    mut call: NormalizeBackward<'_, Host, T>,
) -> Result<(), Error> {
    let (rows, depth) = call.sizes()?;
    let (Some(mut d_scale), Some(last)) = (call.d_scale.take(), rows.checked_sub(1)) else {
        return REFERENCE.normalize_backward(call);
    };
    let axes = call.x.shape().rank() - 1;
    let row = |view: &HostView<'_, T>| -> Vec<T> {
        let start = view.layout().base(axes, last);
        let stride = view.layout().strides()[axes];
        (0..depth).map(|i| view.buf()[start + i * stride]).collect()
    };
    let (x, mut gradient) = (row(&call.x), row(&call.gradient.as_view()));
    let (scale, epsilon) = (call.scale, call.epsilon);
    REFERENCE.normalize_backward(call)?;
    REFERENCE.normalize_backward(NormalizeBackward {
        x: HostView::new(&x, &[depth])?,
        scale,
        epsilon,
        gradient: HostViewMut::new(&mut gradient, &[depth])?,
        d_scale: Some(d_scale.reborrow()),
    })
}

fn is_found<T: Element>(fault: Fault, group: Group) -> bool {
    run::<T, _>(&Faulty(fault), group, &MATHS).is_err()
}

mod found {
    use super::*;

    faults_found! {
        ignores_dropout: IgnoresDropout by Dropout in f32, f64, f16, bf16;
        shares_mask_that_is_not_shared: SharesMaskThatIsNotShared by Dropout in f32, f64, f16, bf16;
        weights_after_dropout: WeightsAfterDropout by Dropout in f32, f64, f16, bf16;
        statistics_in_wrong_order: StatisticsInWrongOrder by Gradients in f32, f64, f16, bf16;
        statistics_of_unscaled_scores: StatisticsOfUnscaledScores by Gradients in f32, f64, f16, bf16;
        statistics_change_the_output: StatisticsChangeTheOutput by Bitwise in f32, f64, f16, bf16;
        has_no_gradients: HasNoGradients by Gradients in f32, f64, f16, bf16;
        forgets_delta: ForgetsDelta by Gradients in f32, f64, f16, bf16;
        forgets_scale: ForgetsScale by Gradients in f32, f64, f16, bf16;
        forgets_multiplier: ForgetsMultiplier by GradientsMasked in f32, f64, f16, bf16;
        bits_of_transposed_index: BitsOfTransposedIndex by GradientsMasked in f32, f64, f16, bf16;
        ignores_mask_in_backward: IgnoresMaskInBackward by GradientsMasked in f32, f64, f16, bf16;
        gradient_through_blind_rows: GradientThroughBlindRows by GradientsMasked in f32, f64, f16, bf16;
        bias_of_first_batch_only: BiasOfFirstBatchOnly by GradientsBias in f32, f64, f16, bf16;
        key_of_other_head: KeyOfOtherHead by Gradients in f32, f64, f16, bf16;
        writes_between_gaps: WritesBetweenGaps by GradientsStrided in f32, f64, f16, bf16;
        accepts_any_scratch: AcceptsAnyScratch by Bitwise in f32, f64, f16, bf16;
        reads_stale_scratch: ReadsStaleScratch by Bitwise in f32, f64, f16, bf16;
        writes_before_checking: WritesBeforeChecking by Errors in f32, f64, f16, bf16;
        forgets_to_accumulate: ForgetsToAccumulate by ProjectBackward in f32, f64, f16, bf16;
        accumulates_unasked: AccumulatesUnasked by ProjectBackward in f32, f64, f16, bf16;
        kernel_without_last_row: KernelWithoutLastRow by ProjectBackward in f32, f64, f16, bf16;
        forgets_projection_bias: ForgetsProjectionBias by ProjectBackward in f32, f64, f16, bf16;
        norm_without_mean: NormWithoutMean by NormalizeBackward in f32, f64, f16, bf16;
        norm_without_scale: NormWithoutScale by NormalizeBackward in f32, f64, f16, bf16;
        norm_scale_of_last_row: NormScaleOfLastRow by NormalizeBackward in f32, f64, f16, bf16;
    }
}
