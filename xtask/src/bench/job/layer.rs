//! The layer's forward pass, with and without dropout.

use super::{Computes, Job, bytes_of, rounded, to_f32};
use crate::data::{DenseArrays, LayerArrays};
use crate::spec::{LayerSizes, Pass};
use anyhow::Result;
use attn_core::random::{Convention, Key};
use attn_core::{Dropout, Element, Host, HostView, HostViewMut};
use attn_kernels_cpu::Cpu;
use attn_layers::{
    Dense, Dims, Inputs, MultiHeadDotProductAttentionOf, OwnedScratch, PackedParams, Params, Plan,
    ScratchSizes,
};

/// Dropout's key; any will do, its bits cost the same.
const KEY: [u32; 2] = [3, 4];

/// A layer with its parameters and input.
///
/// Training needs the parameters as they lie; a forward pass packs them beforehand.
pub(super) struct Layer<T> {
    pub(super) cpu: Cpu,
    pub(super) sizes: LayerSizes,
    pub(super) layer: MultiHeadDotProductAttentionOf<T>,
    pub(super) plan: Plan,
    x: Vec<T>,
    parameters: Parameters<T>,
}

/// The arrays of all four dense layers: of parameters or of gradients.
pub(super) struct Parameters<T> {
    pub(super) query: DenseParameters<T>,
    pub(super) key: DenseParameters<T>,
    pub(super) value: DenseParameters<T>,
    pub(super) out: DenseParameters<T>,
}

pub(super) struct DenseParameters<T> {
    pub(super) kernel: Vec<T>,
    pub(super) bias: Vec<T>,
}

impl<T: Element> Layer<T>
where
    Cpu: Computes<T>,
{
    pub(super) fn new(sizes: LayerSizes, arrays: LayerArrays, cpu: &Cpu) -> Result<Self> {
        let layer = MultiHeadDotProductAttentionOf::new(sizes.heads);
        let shape = Dims::new(&shape(sizes))?;
        Ok(Self {
            cpu: cpu.clone(),
            sizes,
            plan: layer.plan(&shape, &shape, &shape)?,
            layer,
            x: rounded(arrays.x),
            parameters: Parameters {
                query: DenseParameters::of(arrays.query),
                key: DenseParameters::of(arrays.key),
                value: DenseParameters::of(arrays.value),
                out: DenseParameters::of(arrays.out),
            },
        })
    }

    pub(super) fn inputs(&self) -> Result<Inputs<'_, Host, T>> {
        Ok(Inputs::self_attention(HostView::new(
            &self.x,
            &shape(self.sizes),
        )?))
    }

    pub(super) fn params(&self) -> Result<Params<'_, Host, T>> {
        let input = input_shapes(self.sizes);
        Ok(Params {
            query: self.parameters.query.view(&input)?,
            key: self.parameters.key.view(&input)?,
            value: self.parameters.value.view(&input)?,
            out: self.parameters.out.view(&out_shapes(self.sizes))?,
            query_ln: None,
            key_ln: None,
        })
    }
}

/// Shapes of a dense layer's kernel and bias.
pub(super) struct DenseShapes {
    pub(super) kernel: [usize; 3],
    pub(super) bias: Dims,
}

/// Of query, key and value.
pub(super) fn input_shapes(sizes: LayerSizes) -> DenseShapes {
    let heads = [sizes.heads, sizes.depth()];
    DenseShapes {
        kernel: [sizes.features, heads[0], heads[1]],
        bias: Dims::new(&heads).unwrap_or(Dims::SCALAR),
    }
}

/// Of out.
pub(super) fn out_shapes(sizes: LayerSizes) -> DenseShapes {
    DenseShapes {
        kernel: [sizes.heads, sizes.depth(), sizes.features],
        bias: Dims::new(&[sizes.features]).unwrap_or(Dims::SCALAR),
    }
}

/// Of input and output.
pub(super) const fn shape(sizes: LayerSizes) -> [usize; 3] {
    [sizes.batch, sizes.length, sizes.features]
}

impl<T: Element> DenseParameters<T> {
    fn of(arrays: DenseArrays) -> Self {
        Self {
            kernel: rounded(arrays.kernel),
            bias: rounded(arrays.bias),
        }
    }

    fn view(&self, shapes: &DenseShapes) -> Result<Dense<'_, Host, T>> {
        Ok(Dense {
            kernel: HostView::new(&self.kernel, &shapes.kernel)?.into(),
            bias: Some(HostView::new(&self.bias, &shapes.bias)?),
        })
    }
}

/// Bytes of these buffers.
pub(super) const fn scratch_bytes<T: Element>(sizes: &ScratchSizes) -> usize {
    (sizes.q + sizes.k + sizes.v + sizes.context) * size_of::<T>()
        + sizes.tiles * size_of::<T::Acc>()
}

/// A forward pass.
pub(super) struct Forward<T: Element> {
    layer: Layer<T>,
    packed: PackedParams<T>,
    dropout: Option<Dropout>,
    scratch: OwnedScratch<T>,
    scratch_bytes: usize,
    y: Vec<T>,
}

impl<T: Element> Forward<T>
where
    Cpu: Computes<T>,
{
    pub(super) fn new(
        sizes: LayerSizes,
        pass: Pass,
        arrays: LayerArrays,
        cpu: &Cpu,
    ) -> Result<Self> {
        let y = vec![T::default(); arrays.x.len()];
        let layer = Layer::new(sizes, arrays, cpu)?;
        let packed = PackedParams::new(cpu, &layer.params()?)?;
        let dropout = match pass {
            Pass::Dropout { rate } => Dropout::new(
                Key::from_words(KEY),
                rate,
                T::DTYPE,
                true,
                Convention::default(),
            )?,
            Pass::Forward | Pass::Train => None,
        };
        let scratch = layer.plan.scratch::<T, _>(cpu);
        Ok(Self {
            layer,
            packed,
            y,
            dropout,
            scratch_bytes: scratch_bytes::<T>(&scratch),
            scratch: OwnedScratch::new(&scratch)?,
        })
    }
}

impl<T: Element> Job for Forward<T>
where
    Cpu: Computes<T>,
{
    fn step(&mut self) -> Result<()> {
        let Layer {
            cpu,
            layer,
            plan,
            sizes,
            ..
        } = &self.layer;
        let inputs = self.layer.inputs()?.with_dropout(self.dropout);
        let y = HostViewMut::new(&mut self.y, &shape(*sizes))?;
        layer.apply(
            cpu,
            plan,
            &self.packed.borrow()?,
            inputs,
            y,
            &mut self.scratch.borrow(),
        )?;
        Ok(())
    }

    fn fetch(&self) -> Vec<f32> {
        to_f32(&self.y)
    }

    fn extra_bytes(&self) -> usize {
        bytes_of::<u8>(self.scratch_bytes)
    }
}
