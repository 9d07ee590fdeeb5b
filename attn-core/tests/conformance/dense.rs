//! Faults of packed kernels, of dense layers computed together, and of outputs in heads that the suite must find.

use super::{MATHS, REFERENCE, next_up};
use attn_core::conformance::{Group, run};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, DenseKernel, Dims, Element, Error, Host,
    HostView, HostViewMut, Kernels, Layout, NormalizeBackward, PackedKernel, Packing, Projection,
    ProjectionBackward, bf16, f16,
};

/// A wrong turn of a backend.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    RoundsPackedOtherwise,
    RoundsDeepPackedOtherwise,
    PacksAsIfWithoutGaps,
    ReadsAnyPacking,
    PacksIntoAnyLength,
    PacksKernelsOfAnyRank,
    ReadsInputOfFirst,
    ReadsBufferOfFirst,
    ForgetsFourth,
    BiasOfFirst,
    LeavesCallsOut,
    LayersTakeAnyScratch,
    LayersReadStaleScratch,
    PackedTakesAnyScratch,
    HeadsSideBySide,
    WritesBetweenHeads,
    LaterHeadsInFront,
    GradientOfHeadsSideBySide,
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

const fn packing(features: usize, outputs: usize) -> Packing {
    Packing {
        elements: features * outputs,
        panel: 1,
    }
}

impl<T: Element> Kernels<T> for Faulty {
    as_the_reference!(
        normalize,
        attend,
        normalize_backward,
        attend_backward,
        attend_scratch,
        project_backward_scratch,
        attend_backward_scratch
    );

    fn project_scratch(&self, _: usize, _: usize, _: usize) -> usize {
        usize::from(self.0 == Fault::PackedTakesAnyScratch)
    }

    fn project(
        &self,
        call: &Projection<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let DenseKernel::Packed(packed) = call.kernel else {
            return self.project_plain(call, out, scratch);
        };
        let (_, features, outputs) = call.sizes(out.shape())?;
        if self.0 == Fault::ReadsAnyPacking {
            return read_any_packing(call, &packed, out);
        }
        packed.buf_packed_as("faulty", Some(packing(features, outputs)))?;
        self.project_plain(call, out.reborrow(), &mut [T::Acc::default()])?;
        match self.0 {
            Fault::RoundsPackedOtherwise => next_up(&mut out),
            Fault::RoundsDeepPackedOtherwise if features > 1024 => next_up(&mut out),
            _ => {}
        }
        Ok(())
    }

    fn project_each(
        &self,
        calls: &[Projection<'_, Host, T>],
        outs: &mut [HostViewMut<'_, T>],
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let needed = Kernels::<T>::project_each_scratch(self, 0, 0, 0, 0);
        if scratch.len() < needed && self.0 != Fault::LayersTakeAnyScratch {
            return Err(Error::Scratch {
                argument: "tiles",
                got: scratch.len(),
                wanted: needed,
            });
        }
        if calls.len() != outs.len() && self.0 != Fault::LeavesCallsOut {
            return Err(Error::Together {
                left: "calls",
                right: "outs",
            });
        }
        for (n, (call, out)) in calls.iter().zip(outs).enumerate() {
            if self.0 == Fault::ForgetsFourth && n == 3 {
                continue;
            }
            let call = self.member(calls, n, *call.input.shape())?;
            match self.0 {
                Fault::LaterHeadsInFront if n > 0 => {
                    let layout = heads_in_front(out.layout())?;
                    let out = HostViewMut::with_layout(out.buf_mut(), layout)?;
                    self.project(&call, out, scratch)?;
                }
                _ => self.project(&call, out.reborrow(), scratch)?,
            }
            if self.0 == Fault::LayersReadStaleScratch
                && let Some(first) = out.buf_mut().first_mut()
            {
                *first = T::from_f64(first.to_f64() + scratch[0].to_f64());
            }
        }
        Ok(())
    }

    fn project_each_scratch(&self, _: usize, _: usize, _: usize, _: usize) -> usize {
        let needs = matches!(
            self.0,
            Fault::LayersTakeAnyScratch
                | Fault::LayersReadStaleScratch
                | Fault::PackedTakesAnyScratch
        );
        usize::from(needs)
    }

    fn packing(&self, features: usize, outputs: usize) -> Option<Packing> {
        Some(packing(features, outputs))
    }

    fn pack(&self, kernel: HostView<'_, T>, to: &mut [T]) -> Result<(), Error> {
        let elements = kernel.shape().elements()?;
        match self.0 {
            Fault::PacksAsIfWithoutGaps => {
                let start = kernel.layout().offset();
                let dense = &kernel.buf()[start..start + elements];
                REFERENCE.pack(HostView::new(dense, kernel.shape())?, to)
            }
            Fault::PacksIntoAnyLength if to.len() != elements => Ok(()),
            Fault::PacksKernelsOfAnyRank if kernel.shape().rank() != 2 => Ok(()),
            _ => REFERENCE.pack(kernel, to),
        }
    }

    fn project_backward(
        &self,
        call: ProjectionBackward<'_, Host, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let d_out = match self.0 {
            Fault::GradientOfHeadsSideBySide => {
                let layout = heads_side_by_side(call.d_out.layout(), call.input.shape())?;
                HostView::with_layout(call.d_out.buf(), layout)?
            }
            _ => call.d_out,
        };
        REFERENCE.project_backward(ProjectionBackward { d_out, ..call }, scratch)
    }
}

impl Faulty {
    /// A dense layer with a kernel as it lies; also with one that was found to be packed rightly.
    fn project_plain<T: Element>(
        &self,
        call: &Projection<'_, Host, T>,
        mut out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<(), Error> {
        let packs = Kernels::<T>::project_scratch(self, 0, 0, 0);
        if scratch.len() < packs {
            return Err(Error::Scratch {
                argument: "tiles",
                got: scratch.len(),
                wanted: packs,
            });
        }
        call.sizes(out.shape())?;
        match self.0 {
            Fault::HeadsSideBySide => {
                let layout = heads_side_by_side(out.layout(), call.input.shape())?;
                let out = HostViewMut::with_layout(out.buf_mut(), layout)?;
                REFERENCE.project(call, out, scratch)
            }
            Fault::WritesBetweenHeads if out.shape().rank() > call.input.shape().rank() => {
                out.buf_mut().fill(T::default());
                REFERENCE.project(call, out, scratch)
            }
            _ => REFERENCE.project(call, out, scratch),
        }
    }

    /// The `n`-th of some calls.
    fn member<'a, T: Element>(
        &self,
        calls: &[Projection<'a, Host, T>],
        n: usize,
        shape: Dims,
    ) -> Result<Projection<'a, Host, T>, Error> {
        let (first, call) = (&calls[0], &calls[n]);
        let same_buffer = core::ptr::eq(first.input.buf(), call.input.buf());
        let input = match self.0 {
            Fault::ReadsInputOfFirst if first.input.shape() == &shape => first.input,
            Fault::ReadsBufferOfFirst if same_buffer => first.input,
            _ => call.input,
        };
        let fits = first.bias.map(|bias| *bias.shape()) == call.bias.map(|bias| *bias.shape());
        let bias = match self.0 {
            Fault::BiasOfFirst if fits => first.bias,
            _ => call.bias,
        };
        Ok(Projection {
            input,
            bias,
            kernel: call.kernel,
            row_order: call.row_order,
        })
    }
}

/// Whatever the panels are, as if they were the reference's, as far as they reach.
fn read_any_packing<T: Element>(
    call: &Projection<'_, Host, T>,
    packed: &PackedKernel<'_, Host, T>,
    out: HostViewMut<'_, T>,
) -> Result<(), Error> {
    let (features, outputs) = call.kernel.sizes()?;
    let right = packing(features, outputs);
    if packed.buf_packed_as("faulty", Some(right)).is_ok() {
        return REFERENCE.project(call, out, &mut []);
    }
    let buffer = vec![T::default(); right.elements];
    let kernel = PackedKernel::new(buffer.as_slice(), features, outputs, right)?.into();
    REFERENCE.project(&Projection { kernel, ..*call }, out, &mut [])
}

/// `[rows..., heads, head_dim]` as if the heads of a row lay side by side.
fn heads_side_by_side(layout: &Layout, input: &Dims) -> Result<Layout, Error> {
    let (row_axes, rank) = (input.rank() - 1, layout.shape().rank());
    let mut strides = layout.strides().to_vec();
    if rank == row_axes + 2 {
        strides[row_axes] = layout.shape()[rank - 1];
    }
    Layout::strided(layout.offset(), *layout.shape(), &strides)
}

/// `[.., length, heads, head_dim]` without gaps, head after head.
fn heads_in_front(layout: &Layout) -> Result<Layout, Error> {
    let (shape, mut strides) = (layout.shape(), layout.strides().to_vec());
    if let [.., length, _, depth] = shape.as_slice() {
        let axes = shape.rank() - 3;
        strides[axes..].copy_from_slice(&[*depth, length * depth, 1]);
    }
    Layout::strided(layout.offset(), *shape, &strides)
}

fn found_by<T: Element>(fault: Fault, group: Group) -> String {
    run::<T, _>(&Faulty(fault), group, &MATHS)
        .map_or_else(|failure| failure.case, |_| String::new())
}

faults_found_by! {
    rounds_packed_otherwise: RoundsPackedOtherwise by Bitwise "packed and plain";
    rounds_deep_packed_otherwise: RoundsDeepPackedOtherwise by Bitwise "packed and plain";
    packs_as_if_without_gaps: PacksAsIfWithoutGaps by Bitwise "packed from between gaps";
    reads_any_packing: ReadsAnyPacking by Errors "packed kernels of another kind";
    packs_into_any_length: PacksIntoAnyLength by Errors "packing that does not fit";
    packs_kernels_of_any_rank: PacksKernelsOfAnyRank by Errors "packing that does not fit";
    reads_input_of_first: ReadsInputOfFirst by Bitwise "dense layers together";
    reads_buffer_of_first: ReadsBufferOfFirst by Bitwise "dense layers together";
    forgets_fourth: ForgetsFourth by Bitwise "dense layers together";
    bias_of_first: BiasOfFirst by Bitwise "dense layers together";
    leaves_calls_out: LeavesCallsOut by Errors "dense layers without outputs";
    layers_take_any_scratch: LayersTakeAnyScratch by Bitwise "scratch of dense layers together";
    layers_read_stale_scratch: LayersReadStaleScratch by Bitwise "dense layers together";
    packed_takes_any_scratch: PackedTakesAnyScratch by Bitwise "scratch of a packed projection";
    heads_lie_side_by_side: HeadsSideBySide by Bitwise "output in heads";
    writes_between_heads: WritesBetweenHeads by Bitwise "output in heads";
    later_heads_in_front: LaterHeadsInFront by Bitwise "outputs in heads together";
    gradient_of_heads_side_by_side: GradientOfHeadsSideBySide by Bitwise "gradient of an output in heads";
}
