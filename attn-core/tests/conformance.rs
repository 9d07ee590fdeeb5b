//! The suite on plain arithmetic, and on faults that it must find.
#![cfg(feature = "conformance")]

use attn_core::conformance::{Group, Maths, Reference, run};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Causal, Dims, Element, Error,
    FullyMasked, Host, HostView, HostViewMut, Kernels, KeyValue, Layout, Mask, NormalizeBackward,
    Projection, ProjectionBackward, RowOrder, Scale, bf16, f16,
};

const MATHS: Maths = Maths {
    exp: f64::exp,
    sqrt: f64::sqrt,
};

attn_core::conformance_tests!(reference, Ok::<_, Error>(Reference { maths: MATHS }));

/// A wrong turn of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    IgnoresMask,
    MaskUpsideDown,
    IgnoresCausal,
    CausalOffByOne,
    CausalAtTheOtherCorner,
    IgnoresBias,
    WrongScale,
    IgnoresScale,
    OtherFullyMaskedRule,
    WeightsInBf16,
    OffByHundredThousandth,
    ForgetsLastKey,
    WeightsBeforeMask,
    IgnoresOutputStrides,
    DependsOnQueriesBeside,
    ForgetsProjectionBias,
    DependsOnRowsBeside,
    NormalizesWithoutEpsilon,
    NormalizesWithoutScale,
    AcceptsAnyScratch,
    ReadsStaleScratch,
    WritesBeforeChecking,
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

const REFERENCE: Reference = Reference { maths: MATHS };

/// Methods of a faulty backend that do what the reference does.
macro_rules! as_the_reference {
    ($($method:ident),+ $(,)?) => {
        $(as_the_reference!(@ $method);)+
    };
    (@ project) => {
        fn project(
            &self,
            call: &Projection<'_, Host, T>,
            out: HostViewMut<'_, T>,
            scratch: &mut [T::Acc],
        ) -> Result<(), Error> {
            REFERENCE.project(call, out, scratch)
        }
    };
    (@ normalize) => {
        fn normalize(
            &self,
            x: HostViewMut<'_, T>,
            scale: HostView<'_, T::Acc>,
            epsilon: f64,
        ) -> Result<(), Error> {
            REFERENCE.normalize(x, scale, epsilon)
        }
    };
    (@ attend) => {
        fn attend(
            &self,
            call: Attention<'_, Host, T>,
            out: HostViewMut<'_, T>,
            scratch: &mut [T::Acc],
        ) -> Result<(), Error> {
            REFERENCE.attend(call, out, scratch)
        }
    };
    (@ project_backward) => {
        fn project_backward(
            &self,
            call: ProjectionBackward<'_, Host, T>,
            scratch: &mut [T::Acc],
        ) -> Result<(), Error> {
            REFERENCE.project_backward(call, scratch)
        }
    };
    (@ normalize_backward) => {
        fn normalize_backward(&self, call: NormalizeBackward<'_, Host, T>) -> Result<(), Error> {
            REFERENCE.normalize_backward(call)
        }
    };
    (@ attend_backward) => {
        fn attend_backward(
            &self,
            call: AttentionBackward<'_, Host, T>,
            scratch: &mut [T::Acc],
        ) -> Result<(), Error> {
            REFERENCE.attend_backward(call, scratch)
        }
    };
    // It needs no scratch.
    (@ project_scratch) => {
        fn project_scratch(&self, _: usize, _: usize, _: usize) -> usize {
            0
        }
    };
    (@ attend_scratch) => {
        fn attend_scratch(&self, _: &AttentionShape) -> usize {
            0
        }
    };
    (@ project_backward_scratch) => {
        fn project_backward_scratch(&self, _: usize, _: usize, _: usize) -> usize {
            0
        }
    };
    (@ attend_backward_scratch) => {
        fn attend_backward_scratch(&self, _: &AttentionShape) -> usize {
            0
        }
    };
}

impl<T: Element> Kernels<T> for Faulty {
    as_the_reference!(
        project_backward,
        normalize_backward,
        attend_backward,
        project_scratch,
        project_backward_scratch,
        attend_backward_scratch
    );

    fn project(
        &self,
        call: &Projection<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let bias = call.bias.filter(|_| self.0 != Fault::ForgetsProjectionBias);
        let call = Projection { bias, ..*call };
        let (rows, ..) = call.sizes(out.shape())?;
        REFERENCE.project(&call, out.reborrow(), scratch)?;
        if self.0 == Fault::DependsOnRowsBeside && call.row_order == RowOrder::Fixed && rows > 4 {
            next_up(&mut out);
        }
        Ok(())
    }

    fn normalize(
        &self,
        x: HostViewMut<'_, T>,
        scale: HostView<'_, T::Acc>,
        epsilon: f64,
    ) -> Result<(), Error> {
        match self.0 {
            Fault::NormalizesWithoutEpsilon => REFERENCE.normalize(x, scale, 0.0),
            Fault::NormalizesWithoutScale => {
                let ones = vec![T::Acc::from_f64(1.0); scale.shape().elements()?];
                REFERENCE.normalize(x, HostView::new(&ones, scale.shape())?, epsilon)
            }
            _ => REFERENCE.normalize(x, scale, epsilon),
        }
    }

    fn attend_scratch(&self, _: &AttentionShape) -> usize {
        usize::from(matches!(
            self.0,
            Fault::AcceptsAnyScratch | Fault::ReadsStaleScratch
        ))
    }

    fn attend(
        &self,
        mut call: Attention<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        if self.0 == Fault::WritesBeforeChecking {
            out.buf_mut().fill(T::default());
        }
        let shape = call.shape()?;
        match self.0 {
            Fault::WeightsInBf16 => return attend_with_weights_in_bf16(call, out),
            Fault::WeightsBeforeMask => weights_before_mask(&mut call)?,
            Fault::IgnoresOutputStrides => {
                let (layout, whole) = (Layout::contiguous(*out.shape())?, out.buf_mut());
                let dense = HostViewMut::with_layout(whole, layout)?;
                return REFERENCE.attend(call, dense, scratch);
            }
            fault => change(fault, &mut call, &shape)?,
        }
        REFERENCE.attend(call, out.reborrow(), scratch)?;
        match self.0 {
            Fault::OffByHundredThousandth => {
                for x in out.buf_mut() {
                    *x = T::from_f64(x.to_f64() + 1e-5);
                }
            }
            Fault::DependsOnQueriesBeside if shape.query_length > 1 => next_up(&mut out),
            Fault::ReadsStaleScratch => {
                let (first, stale) = (out.layout().offset(), scratch[0].to_f64());
                if let Some(x) = out.buf_mut().get_mut(first) {
                    *x = T::from_f64(x.to_f64() + stale);
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Faults in reading the request.
fn change<T: Element>(
    fault: Fault,
    call: &mut Attention<'_, Host, T>,
    shape: &AttentionShape,
) -> Result<(), Error> {
    match fault {
        Fault::IgnoresMask => call.visible.mask = None,
        Fault::MaskUpsideDown => {
            call.visible.mask = call.visible.mask.map(|mask| match mask.set_means_keep() {
                true => Mask::drop(*mask.view()),
                false => Mask::keep(*mask.view()),
            });
        }
        Fault::IgnoresCausal => call.visible.causal = None,
        Fault::CausalOffByOne => {
            let shift = |causal: Causal| causal.shift(shape.query_length, shape.key_length);
            call.visible.causal = call.visible.causal.map(|c| Causal::offset(shift(c) + 1));
        }
        Fault::CausalAtTheOtherCorner if call.visible.causal == Some(Causal::bottom_right()) => {
            call.visible.causal = Some(Causal::top_left());
        }
        Fault::IgnoresBias => call.scores.bias = None,
        Fault::WrongScale => {
            let factor = call.scores.scale.factor(shape.depth, f64::sqrt);
            call.scores.scale = Scale::Value(1.01 * factor);
        }
        Fault::IgnoresScale => call.scores.scale = Scale::InverseSqrtDepth,
        Fault::OtherFullyMaskedRule => {
            call.visible.fully_masked = match call.visible.fully_masked {
                FullyMasked::Zero => FullyMasked::MeanOfValues,
                FullyMasked::MeanOfValues => FullyMasked::Zero,
            };
        }
        Fault::ForgetsLastKey => forget_last_key(call, shape)?,
        _ => {}
    }
    Ok(())
}

/// Cuts the last key and value off, where nothing else has their number.
fn forget_last_key<T: Element>(
    call: &mut Attention<'_, Host, T>,
    shape: &AttentionShape,
) -> Result<(), Error> {
    let alone = call.scores.bias.is_none() && call.visible.mask.is_none();
    if !alone || call.outputs.weights.is_some() || shape.key_length < 2 {
        return Ok(());
    }
    let KeyValue::Dense { key, value } = &mut call.source else {
        return Ok(());
    };
    for view in [key, value] {
        let (layout, axis) = (*view.layout(), view.shape().rank() - 3);
        let mut shorter = layout.shape().to_vec();
        shorter[axis] -= 1;
        let layout = Layout::strided(layout.offset(), Dims::new(&shorter)?, layout.strides())?;
        *view = HostView::with_layout(view.buf(), layout)?;
    }
    Ok(())
}

/// One value up: the smallest difference there is.
fn next_up<T: Element>(out: &mut HostViewMut<'_, T>) {
    let (layout, rank) = (*out.layout(), out.shape().rank());
    for n in 0..layout.elements() {
        let x = &mut out.buf_mut()[layout.base(rank, n)];
        let value = x.to_f64();
        let mut step = value.abs() * f64::EPSILON;
        while step > 0.0 && T::from_f64(value + step) == *x {
            step *= 2.0;
        }
        *x = T::from_f64(value + step);
    }
}

/// Right weights, rounded to bf16 before they meet the values.
fn attend_with_weights_in_bf16<T: Element>(
    mut call: Attention<'_, Host, T>,
    mut out: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let shape = call.shape()?;
    let weights_shape = shape.weights(call.query.shape())?;
    let mut weights = vec![T::Acc::default(); weights_shape.elements()?];
    let asked = call.outputs.weights.take();
    let value = match &call.source {
        KeyValue::Dense { value, .. } => *value,
        _ => return Ok(()),
    };
    let inner = call.with_weights(Some(HostViewMut::new(&mut weights, &weights_shape)?));
    REFERENCE.attend(inner, out.reborrow(), &mut [])?;
    if let Some(mut asked) = asked {
        asked.buf_mut().copy_from_slice(&weights);
    }
    let (from, to, axes) = (*value.layout(), *out.layout(), out.shape().rank() - 3);
    for n in 0..out.layout().elements() {
        // `n` counts `[batch, query, head, column]`.
        let (column, n_head) = (n % shape.value_depth, n / shape.value_depth);
        let (head, n_query) = (n_head % shape.num_heads, n_head / shape.num_heads);
        let (query, batch) = (n_query % shape.query_length, n_query / shape.query_length);
        let row = (batch * shape.num_heads + head) * shape.query_length + query;
        let strides = from.strides();
        let base = from.base(axes, batch) + head * strides[axes + 1] + column * strides[axes + 2];
        let sum: f64 = (0..shape.key_length)
            .map(|key| {
                let weight = weights[row * shape.key_length + key].to_f64();
                bf16::from_f64(weight).to_f64() * value.buf()[base + key * strides[axes]].to_f64()
            })
            .sum();
        out.buf_mut()[to.base(axes + 3, n)] = T::from_f64(sum);
    }
    Ok(())
}

/// The weights asked for are those without a mask; the output is right.
fn weights_before_mask<T: Element>(call: &mut Attention<'_, Host, T>) -> Result<(), Error> {
    let Some(weights) = call.outputs.weights.take() else {
        return Ok(());
    };
    let KeyValue::Dense { key, value } = call.source else {
        return Ok(());
    };
    let shape = call.shape()?;
    let out_shape = shape.output(call.query.shape())?;
    let mut unused = vec![T::default(); out_shape.elements()?];
    let without = Attention::new(call.query, key, value)
        .with_scale(call.scores.scale)
        .with_weights(Some(weights));
    REFERENCE.attend(without, HostViewMut::new(&mut unused, &out_shape)?, &mut [])
}

fn is_found<T: Element>(fault: Fault, group: Group) -> bool {
    run::<T, _>(&Faulty(fault), group, &MATHS).is_err()
}

/// Tests, beside a `Fault` and its `is_found`, that a fault is found by a group in the dtypes that are precise enough to see it.
macro_rules! faults_found {
    ($($test:ident: $fault:ident by $group:ident in $($dtype:ty),+;)+) => {$(
        #[test]
        fn $test() {
            $(
                let dtype = <$dtype as Element>::DTYPE;
                assert!(is_found::<$dtype>(Fault::$fault, Group::$group), "not found in {dtype}");
            )+
        }
    )+};
}

/// Tests, beside a `Fault` and a `found_by`, that a fault is found by a property of a group, in every dtype.
macro_rules! faults_found_by {
    ($($test:ident: $fault:ident by $group:ident $property:literal;)+) => {$(
        #[test]
        fn $test() {
            assert_eq!(found_by::<f32>(Fault::$fault, Group::$group), $property, "float32");
            assert_eq!(found_by::<f64>(Fault::$fault, Group::$group), $property, "float64");
            assert_eq!(found_by::<f16>(Fault::$fault, Group::$group), $property, "float16");
            assert_eq!(found_by::<bf16>(Fault::$fault, Group::$group), $property, "bfloat16");
        }
    )+};
}

#[path = "conformance/dense.rs"]
mod dense_fault_found;
#[path = "conformance/few.rs"]
mod few_queries_fault_found;
#[path = "conformance/rotary.rs"]
mod rotary_fault_found;
#[path = "conformance/training.rs"]
mod training_fault_found;

mod fault_found {
    use super::*;

    faults_found! {
        ignores_mask: IgnoresMask by Mask in f32, f64, f16, bf16;
        mask_upside_down: MaskUpsideDown by Mask in f32, f64, f16, bf16;
        ignores_causal: IgnoresCausal by Causal in f32, f64, f16, bf16;
        causal_off_by_one: CausalOffByOne by Causal in f32, f64, f16, bf16;
        causal_at_the_other_corner: CausalAtTheOtherCorner by Causal in f32, f64, f16, bf16;
        ignores_bias: IgnoresBias by Bias in f32, f64, f16, bf16;
        wrong_scale: WrongScale by Plain in f32, f64, f16;
        ignores_scale: IgnoresScale by Bias in f32, f64, f16, bf16;
        other_fully_masked_rule: OtherFullyMaskedRule by Mask in f32, f64, f16, bf16;
        other_fully_masked_rule_causal: OtherFullyMaskedRule by Causal in f32, f64, f16, bf16;
        weights_in_bf16: WeightsInBf16 by Plain in f32, f64;
        off_by_a_hundred_thousandth: OffByHundredThousandth by Plain in f32, f64;
        forgets_last_key: ForgetsLastKey by Plain in f32, f64, f16, bf16;
        weights_before_mask: WeightsBeforeMask by Weights in f32, f64, f16, bf16;
        ignores_output_strides: IgnoresOutputStrides by Strided in f32, f64, f16, bf16;
        ignores_output_strides_bitwise: IgnoresOutputStrides by Bitwise in f32, f64, f16, bf16;
        depends_on_queries_beside: DependsOnQueriesBeside by Bitwise in f32, f64, f16, bf16;
        forgets_projection_bias: ForgetsProjectionBias by Project in f32, f64, f16, bf16;
        depends_on_rows_beside: DependsOnRowsBeside by Bitwise in f32, f64, f16, bf16;
        normalizes_without_epsilon: NormalizesWithoutEpsilon by Normalize in f32, f64, f16, bf16;
        normalizes_without_scale: NormalizesWithoutScale by Normalize in f32, f64, f16, bf16;
        accepts_any_scratch: AcceptsAnyScratch by Bitwise in f32, f64, f16, bf16;
        reads_stale_scratch: ReadsStaleScratch by Bitwise in f32, f64, f16, bf16;
        writes_before_checking: WritesBeforeChecking by Errors in f32, f64, f16, bf16;
    }
}
