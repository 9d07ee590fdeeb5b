//! A product of matrices, the right one prepared beforehand as a layer's parameters are.

use super::{Computes, Job, bytes_of, rounded, to_f32};
use crate::data::ProductArrays;
use crate::spec::ProductSizes;
use anyhow::{Context, Result};
use attn_core::{
    Element, HostView, HostViewMut, Kernels, PackedKernel, Packing, Projection, RowOrder,
};
use attn_kernels_cpu::Cpu;

/// `a · b`.
pub(super) struct Product<T: Element> {
    cpu: Cpu,
    sizes: ProductSizes,
    a: Vec<T>,
    weights: Weights<T>,
    scratch: Vec<T::Acc>,
    out: Vec<T>,
}

/// The right factor, packed.
struct Weights<T> {
    packed: Vec<T>,
    packing: Packing,
}

impl<T: Element> Weights<T> {
    fn prepare(b: Vec<f32>, sizes: ProductSizes, cpu: &Cpu) -> Result<Self>
    where
        Cpu: Computes<T>,
    {
        let b: Vec<T> = rounded(b);
        let packing = Kernels::<T>::packing(cpu, sizes.inner, sizes.columns);
        let packing = packing.context("the backend packs no kernels")?;
        let mut packed = vec![T::default(); packing.elements];
        cpu.pack(
            HostView::new(&b, &[sizes.inner, sizes.columns])?,
            &mut packed,
        )?;
        Ok(Self { packed, packing })
    }
}

impl<T: Element> Product<T>
where
    Cpu: Computes<T>,
{
    pub(super) fn new(sizes: ProductSizes, arrays: ProductArrays, cpu: &Cpu) -> Result<Self> {
        let scratch = cpu.project_scratch(sizes.rows, sizes.inner, sizes.columns);
        Ok(Self {
            cpu: cpu.clone(),
            sizes,
            a: rounded(arrays.a),
            weights: Weights::prepare(arrays.b, sizes, cpu)?,
            scratch: vec![T::Acc::default(); scratch],
            out: vec![T::default(); sizes.rows * sizes.columns],
        })
    }
}

impl<T: Element> Job for Product<T>
where
    Cpu: Computes<T>,
{
    fn step(&mut self) -> Result<()> {
        let ProductSizes {
            rows,
            inner,
            columns,
        } = self.sizes;
        let call = Projection {
            input: HostView::new(&self.a, &[rows, inner])?,
            kernel: PackedKernel::new(
                self.weights.packed.as_slice(),
                inner,
                columns,
                self.weights.packing,
            )?
            .into(),
            bias: None,
            row_order: RowOrder::Any,
        };
        let out = HostViewMut::new(&mut self.out, &[rows, columns])?;
        self.cpu.project(&call, out, &mut self.scratch)?;
        Ok(())
    }

    fn fetch(&self) -> Vec<f32> {
        to_f32(&self.out)
    }

    fn extra_bytes(&self) -> usize {
        bytes_of::<T::Acc>(self.scratch.len())
    }
}
