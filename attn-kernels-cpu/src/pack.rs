//! Kernels of dense layers packed beforehand: panels as wide as a register tile, in the order in which the tiles read them.

use crate::buffers::contiguous_columns;
use crate::cpu::Cpu;
use crate::element::Stored;
use crate::micro::width;
use crate::simd::{Kernel, Lane, Simd};
use attn_core::{DenseKernel, Error, Host, HostView, PackedKernel, Packing, Result};
use core::marker::PhantomData;

/// Lanes of a tile on the instruction set of a [`Cpu`].
struct Width<A>(PhantomData<A>);

impl<A: Lane> Kernel for Width<A> {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> usize {
        width::<S, A>()
    }
}

/// Columns of a panel: lanes of a tile.
pub(crate) fn panel<A: Lane>(cpu: &Cpu) -> usize {
    cpu.level().dispatch(Width::<A>(PhantomData))
}

pub(crate) fn packing<T: Stored>(cpu: &Cpu, features: usize, outputs: usize) -> Packing {
    let panel = panel::<T::Acc>(cpu);
    let columns = outputs.div_ceil(panel).saturating_mul(panel);
    Packing {
        elements: features.saturating_mul(columns),
        panel,
    }
}

/// Writes a kernel to `to`, `[panel][features][width]`, the last panel filled up with zeros.
pub(crate) fn pack<T: Stored>(cpu: &Cpu, kernel: &HostView<'_, T>, to: &mut [T]) -> Result<()> {
    let (features, outputs) = DenseKernel::Plain(*kernel).sizes()?;
    contiguous_columns("kernel", kernel.layout())?;
    let packing = packing::<T>(cpu, features, outputs);
    if to.len() != packing.elements {
        return Err(Error::Buffer {
            argument: "packed kernel",
            got: to.len(),
            wanted: packing.elements,
        });
    }
    for (number, panel) in to.chunks_mut((features * packing.panel).max(1)).enumerate() {
        let first = number * packing.panel;
        let used = packing.panel.min(outputs - first);
        for (feature, to) in panel.chunks_exact_mut(packing.panel).enumerate() {
            let start = kernel.layout().base(1, feature) + first;
            to[..used].copy_from_slice(&kernel.buf()[start..start + used]);
            to[used..].fill(T::default());
        }
    }
    Ok(())
}

/// The panels of a kernel that was packed for this machine's instruction set.
pub(crate) fn packed<'a, T: Stored>(
    cpu: &Cpu,
    kernel: &PackedKernel<'a, Host, T>,
) -> Result<&'a [T]> {
    let (features, outputs) = DenseKernel::Packed(*kernel).sizes()?;
    let packing = packing::<T>(cpu, features, outputs);
    kernel.buf_packed_as(cpu.isa().name(), Some(packing))
}
