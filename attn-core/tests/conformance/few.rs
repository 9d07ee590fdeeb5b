//! Faults of a way of its own for a few queries that the suite must find.

use super::{MATHS, REFERENCE, next_up};
use attn_core::conformance::{Group, run};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Causal, Element, Error, FullyMasked,
    Host, HostView, HostViewMut, Kernels, Layout, NormalizeBackward, Projection,
    ProjectionBackward, bf16, f16,
};

/// A wrong turn of a backend, taken for a few queries only.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    IgnoresBias,
    IgnoresMask,
    ZeroesBlindRows,
    CausalOfFirstQuery,
    KeepsDroppedWeights,
    OtherWeights,
    OtherStatistics,
    FiveQueriesDiffer,
    NineQueriesDiffer,
    SecondTileOfOneKeyDiffers,
    WideValuesDiffer,
    QueriesSideBySide,
    WritesBetweenGaps,
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
        project_backward,
        normalize_backward,
        attend_backward,
        project_scratch,
        attend_scratch,
        project_backward_scratch,
        attend_backward_scratch
    );

    fn attend(
        &self,
        call: Attention<'_, Host, T>,
        out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        match call.shape()?.query_length {
            1..=9 => attend_few(self.0, call, out),
            _ => REFERENCE.attend(call, out, scratch),
        }
    }
}

fn attend_few<T: Element>(
    fault: Fault,
    mut call: Attention<'_, Host, T>,
    mut out: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let shape = call.shape()?;
    match fault {
        Fault::IgnoresBias => call.scores.bias = None,
        Fault::IgnoresMask => call.visible.mask = None,
        Fault::ZeroesBlindRows => call.visible.fully_masked = FullyMasked::Zero,
        Fault::CausalOfFirstQuery => {
            let shift = |causal: Causal| causal.shift(shape.query_length, shape.key_length);
            let last = shape.query_length as isize - 1;
            call.visible.causal = call.visible.causal.map(|c| Causal::offset(shift(c) - last));
        }
        Fault::KeepsDroppedWeights => call.dropout = None,
        Fault::QueriesSideBySide => call.query = side_by_side(&call.query)?,
        Fault::WritesBetweenGaps => out.buf_mut().fill(T::default()),
        _ => {}
    }
    let mut weights = call.outputs.weights.take();
    let mut statistics = call.outputs.statistics.take();
    let call = call
        .with_weights(weights.as_mut().map(HostViewMut::reborrow))
        .with_statistics(statistics.as_mut().map(HostViewMut::reborrow));
    REFERENCE.attend(call, out.reborrow(), &mut [])?;
    let differs = match fault {
        Fault::FiveQueriesDiffer => shape.query_length == 5,
        Fault::NineQueriesDiffer => shape.query_length == 9,
        Fault::SecondTileOfOneKeyDiffers => shape.key_length == 65,
        Fault::WideValuesDiffer => shape.value_depth > 128,
        _ => false,
    };
    if differs {
        next_up(&mut out);
    }
    match (fault, weights, statistics) {
        (Fault::OtherWeights, Some(mut weights), _) => next_up(&mut weights),
        (Fault::OtherStatistics, _, Some(mut statistics)) => next_up(&mut statistics),
        _ => {}
    }
    Ok(())
}

/// Queries read as if the heads of one lay side by side, and those of the next after them.
fn side_by_side<'a, T: Element>(query: &HostView<'a, T>) -> Result<HostView<'a, T>, Error> {
    let layout = query.layout();
    let axes = layout.shape().rank() - 3;
    let (heads, depth) = (layout.shape()[axes + 1], layout.shape()[axes + 2]);
    let mut strides = layout.strides().to_vec();
    strides[axes..].copy_from_slice(&[heads * depth, depth, 1]);
    let layout = Layout::strided(layout.offset(), *layout.shape(), &strides)?;
    HostView::with_layout(query.buf(), layout)
}

fn found_by<T: Element>(fault: Fault, group: Group) -> String {
    run::<T, _>(&Faulty(fault), group, &MATHS)
        .map_or_else(|failure| failure.case, |_| String::new())
}

faults_found_by! {
    ignores_bias: IgnoresBias by Bitwise "few queries alone and among others";
    ignores_mask: IgnoresMask by Bitwise "few queries alone and among others";
    zeroes_blind_rows: ZeroesBlindRows by Bitwise "few queries alone and among others";
    keeps_dropped_weights: KeepsDroppedWeights by Bitwise "few queries alone and among others";
    other_weights: OtherWeights by Bitwise "few queries alone and among others";
    other_statistics: OtherStatistics by Bitwise "few queries alone and among others";
    five_queries_differ: FiveQueriesDiffer by Bitwise "few queries alone and among others";
    nine_queries_differ: NineQueriesDiffer by Bitwise "few queries alone and among others";
    second_tile_of_one_key_differs: SecondTileOfOneKeyDiffers by Bitwise "few queries alone and among others";
    wide_values_differ: WideValuesDiffer by Bitwise "few queries alone and among others";
    queries_side_by_side: QueriesSideBySide by Bitwise "few queries alone and among others";
    writes_between_gaps: WritesBetweenGaps by Bitwise "few queries alone and among others";
}

#[test]
fn causal_of_first_query() {
    // An older property, of many queries cut into parts, sees it first.
    let property = found_by::<f32>(Fault::CausalOfFirstQuery, Group::Bitwise);
    assert_eq!(property, "queries alone and together");
}
