//! What kernels take, byte for byte as `kernels/params.cuh` declares it.

use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::launch::Params;
use attn_core::layout::MAX_RANK;
use attn_core::random::Counters;
use attn_core::{
    Attention, AttentionShape, Buffer, Element, Error, FullyMasked, Layout, Scalar, View, ViewMut,
};
use bytemuck::{Pod, Zeroable};

/// Batch axes that an array can have beside its length, heads and depth.
const BATCH_AXES: usize = MAX_RANK - 3;

/// Batch axes common to all arrays of a call, merged where they can be.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Batch {
    /// How many there are.
    pub(crate) axes: u32,
    /// Their lengths.
    pub(crate) dims: [u32; BATCH_AXES],
}

/// An array `[batch..., row, head, column]` or `[batch..., head, row, column]`: strides in elements.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Array {
    /// Address of the first element; 0 for an array that is not there.
    pub(crate) address: u64,
    /// Of the axes of [`Batch`].
    pub(crate) batch: [i64; BATCH_AXES],
    pub(crate) head: i64,
    pub(crate) row: i64,
    pub(crate) column: i64,
}

impl Array {
    /// Whether rows of `depth` elements are whole numbers of 16 bytes that can be loaded at once.
    fn is_wide<T>(&self, depth: usize) -> bool {
        const BYTES: i64 = 16;
        let whole = |elements: i64| elements.wrapping_mul(size_of::<T>() as i64) % BYTES == 0;
        let strides = self.batch.iter().chain([&self.head, &self.row]);
        self.column == 1
            && self.address.is_multiple_of(BYTES as u64)
            && whole(depth as i64)
            && strides.into_iter().all(|&stride| whole(stride))
    }
}

/// Which weights are kept, as [`attn_core::dropout::KeepBits`] says.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Dropout {
    /// Words of the key.
    pub(crate) key: [u32; 2],
    /// 0: no dropout; else the width of a word, 32 or 64.
    pub(crate) width: u32,
    /// Whether words are numbered and cut into two halves that share a call.
    pub(crate) split: u32,
    /// Elements of the random array.
    pub(crate) length: u64,
    /// A word below it is kept.
    pub(crate) limit: u64,
    /// Whether every word is: the limit is one past the largest.
    pub(crate) keep_all: u32,
    pub(crate) _pad: u32,
    /// Elements from one matrix to the next.
    pub(crate) matrix: u64,
    /// What a kept weight is multiplied with.
    pub(crate) multiplier: f64,
}

/// A call of attention, forward or backward.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(crate) struct Attend {
    pub(crate) query: Array,
    pub(crate) key: Array,
    pub(crate) value: Array,
    pub(crate) out: Array,
    pub(crate) bias: Array,
    pub(crate) mask: Array,
    pub(crate) weights: Array,
    pub(crate) statistics: Array,
    pub(crate) d_out: Array,
    pub(crate) d_query: Array,
    pub(crate) d_key: Array,
    pub(crate) d_value: Array,
    pub(crate) d_bias: Array,
    pub(crate) batch: Batch,
    pub(crate) batches: u32,
    pub(crate) heads: u32,
    pub(crate) key_heads: u32,
    pub(crate) query_length: u32,
    pub(crate) key_length: u32,
    pub(crate) depth: u32,
    pub(crate) value_depth: u32,
    /// Whether query `i` sees the keys up to `i + shift` alone.
    pub(crate) causal: u32,
    pub(crate) shift: i64,
    pub(crate) scale: f64,
    /// Whether a set byte of the mask lets a query see a key.
    pub(crate) set_means_keep: u32,
    /// Whether a query that sees nothing gets zero rather than the mean of the values.
    pub(crate) zero_if_blind: u32,
    pub(crate) dropout: Dropout,
    /// The caller's scratch, in elements of the accumulator.
    pub(crate) scratch: u64,
    pub(crate) scratch_len: u64,
    /// Bits of the arrays whose rows are whole numbers of 16 bytes that can be loaded at once: 0 query, 1 key, 2 value, 3 out, 4 d_out.
    pub(crate) wide: u32,
    pub(crate) _pad: u32,
}

// SAFETY: `Attend` is made by `Call` alone, from views that were checked against their buffers.
#[expect(unsafe_code, reason = "vouches for the addresses")]
unsafe impl Params for Attend {}

/// The address of a view's first element, and its layout.
#[derive(Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) address: u64,
    pub(crate) layout: Layout,
}

impl Placed {
    pub(crate) fn of<T: Scalar>(view: &View<'_, Device, T>) -> Self {
        Self {
            address: view.buf().address() + (view.layout().offset() * size_of::<T>()) as u64,
            layout: *view.layout(),
        }
    }

    pub(crate) fn of_mut<T: Scalar>(view: &ViewMut<'_, Device, T>) -> Self {
        Self::of(&view.as_view())
    }

    /// Strides of the axes before the last three.
    fn batch(&self) -> &[usize] {
        let axes = self.layout.shape().rank() - 3;
        &self.layout.strides()[..axes]
    }
}

/// Merges batch axes that are one in every array: row-major steps. Gives their lengths and, of each array, their strides.
pub(crate) fn merge_batch(
    dims: &[usize],
    strides: &mut [[i64; BATCH_AXES]],
) -> Result<Batch, CudaError> {
    let mut merged = Batch {
        axes: 0,
        dims: [0; BATCH_AXES],
    };
    let mut count = 0;
    for (axis, &dim) in dims.iter().enumerate() {
        let dim = u32::try_from(dim).map_err(|_| Error::Unsupported {
            backend: crate::NAME,
            feature: "a batch axis of 2^32 entries",
            instead: "Cut the batch into several calls",
        })?;
        if dim == 1 {
            continue;
        }
        let joins = count > 0
            && strides
                .iter()
                .all(|array| array[count - 1] == array[axis] * i64::from(dim));
        let product = (count > 0).then(|| merged.dims[count - 1].checked_mul(dim));
        if let (true, Some(Some(product))) = (joins, product) {
            merged.dims[count - 1] = product;
            for array in &mut *strides {
                array[count - 1] = array[axis];
            }
            continue;
        }
        merged.dims[count] = dim;
        for array in &mut *strides {
            array[count] = array[axis];
        }
        count += 1;
    }
    merged.axes = count as u32;
    for array in strides {
        array[count..].fill(0);
    }
    Ok(merged)
}

/// Collects the arrays of a call until all are known and their batch axes can be merged.
pub(crate) struct Arrays<const N: usize> {
    placed: [Option<(Placed, HeadAxis)>; N],
}

/// Where the axis of heads is among the last three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadAxis {
    /// `[batch..., length, heads, depth]`.
    Second,
    /// `[batch..., heads, rows, columns]`.
    First,
}

impl<const N: usize> Arrays<N> {
    pub(crate) const fn new(placed: [Option<(Placed, HeadAxis)>; N]) -> Self {
        Self { placed }
    }

    /// The arrays with merged batch axes; `dims` are the batch axes of the call.
    pub(crate) fn merged(&self, dims: &[usize]) -> Result<(Batch, [Array; N]), CudaError> {
        let mut strides = [[0i64; BATCH_AXES]; N];
        for (strides, placed) in strides.iter_mut().zip(&self.placed) {
            if let Some((placed, _)) = placed {
                for (to, &from) in strides.iter_mut().zip(placed.batch()) {
                    *to = from as i64;
                }
            }
        }
        let batch = merge_batch(dims, &mut strides)?;
        let mut arrays = [Array::zeroed(); N];
        for ((array, batch), placed) in arrays.iter_mut().zip(strides).zip(&self.placed) {
            if let Some((placed, head)) = placed {
                let rank = placed.layout.shape().rank();
                let [a, b, c] = [3, 2, 1].map(|n| placed.layout.strides()[rank - n] as i64);
                let (row, head) = match head {
                    HeadAxis::Second => (a, b),
                    HeadAxis::First => (b, a),
                };
                *array = Array {
                    address: placed.address,
                    batch,
                    head,
                    row,
                    column: c,
                };
            }
        }
        Ok((batch, arrays))
    }
}

/// A size as a kernel takes it.
pub(crate) fn size(argument: &'static str, size: usize) -> Result<u32, CudaError> {
    match i32::try_from(size) {
        Ok(size) => Ok(size as u32),
        Err(_) => Err(Error::TooLarge {
            argument,
            got: attn_core::Dims::new(&[size])?,
        }
        .into()),
    }
}

/// What a backward call adds to a forward one.
pub(crate) struct Gradients {
    pub(crate) statistics: Placed,
    pub(crate) out: Placed,
    pub(crate) d_out: Placed,
    pub(crate) d_query: Placed,
    pub(crate) d_key: Placed,
    pub(crate) d_value: Placed,
    pub(crate) d_bias: Option<Placed>,
}

impl Attend {
    /// The parameters of a forward call into `out`, whose shape was checked.
    pub(crate) fn forward<T: Element>(
        call: &Attention<'_, Device, T>,
        shape: &AttentionShape,
        out: &ViewMut<'_, Device, T>,
        scratch: &DeviceBuffer<T::Acc>,
    ) -> Result<Self, CudaError> {
        let outputs = &call.outputs;
        let weights = outputs.weights.as_ref().map(Placed::of_mut);
        let statistics = outputs.statistics.as_ref().map(Placed::of_mut);
        let arrays = [
            Some(Placed::of_mut(out)),
            weights,
            statistics,
            None,
            None,
            None,
            None,
            None,
        ];
        Self::new(call, shape, arrays, scratch)
    }

    /// The parameters of a backward call.
    pub(crate) fn backward<T: Element>(
        call: &Attention<'_, Device, T>,
        shape: &AttentionShape,
        gradients: &Gradients,
        scratch: &DeviceBuffer<T::Acc>,
    ) -> Result<Self, CudaError> {
        let arrays = [
            Some(gradients.out),
            None,
            Some(gradients.statistics),
            Some(gradients.d_out),
            Some(gradients.d_query),
            Some(gradients.d_key),
            Some(gradients.d_value),
            gradients.d_bias,
        ];
        Self::new(call, shape, arrays, scratch)
    }

    /// `others` are out, weights, statistics, d_out, d_query, d_key, d_value, d_bias.
    fn new<T: Element>(
        call: &Attention<'_, Device, T>,
        shape: &AttentionShape,
        others: [Option<Placed>; 8],
        scratch: &DeviceBuffer<T::Acc>,
    ) -> Result<Self, CudaError> {
        use HeadAxis::{First, Second};
        let (key, value) = call.dense()?;
        let weights_shape = shape.weights(call.query.shape())?;
        let bias = call.scores.bias.as_ref();
        let bias = bias.map(|bias| bias.broadcast_to("bias", &weights_shape));
        let mask = call.visible.mask.as_ref();
        let bytes = mask.map(|mask| mask.view().broadcast_to("mask", &weights_shape));
        let [
            out,
            weights,
            statistics,
            d_out,
            d_query,
            d_key,
            d_value,
            d_bias,
        ] = others;
        let d_bias = match d_bias {
            None => None,
            Some(placed) => Some(Placed {
                address: placed.address,
                layout: placed.layout.broadcast_to("d_bias", &weights_shape)?,
            }),
        };
        let second = |placed: Option<Placed>| placed.map(|placed| (placed, Second));
        let first = |placed: Option<Placed>| placed.map(|placed| (placed, First));
        let arrays = Arrays::new([
            second(Some(Placed::of(&call.query))),
            second(Some(Placed::of(key))),
            second(Some(Placed::of(value))),
            second(out),
            first(bias.transpose()?.as_ref().map(Placed::of)),
            first(bytes.transpose()?.as_ref().map(Placed::of)),
            first(weights),
            first(statistics),
            second(d_out),
            second(d_query),
            second(d_key),
            second(d_value),
            first(d_bias),
        ]);
        let axes = call.query.shape().rank() - 3;
        let (batch, arrays) = arrays.merged(&call.query.shape()[..axes])?;
        let [
            query,
            key,
            value,
            out,
            bias,
            mask_bytes,
            weights,
            statistics,
            d_out,
            d_query,
            d_key,
            d_value,
            d_bias,
        ] = arrays;
        let depths = [
            (&query, shape.depth),
            (&key, shape.depth),
            (&value, shape.value_depth),
            (&out, shape.value_depth),
            (&d_out, shape.value_depth),
        ];
        let wide = (depths.iter().enumerate())
            .map(|(bit, (array, depth))| u32::from(array.is_wide::<T>(*depth)) << bit)
            .sum();
        let causal = call.visible.causal;
        let shift = causal.map_or(0, |causal| {
            causal.shift(shape.query_length, shape.key_length)
        });
        Ok(Self {
            query,
            key,
            value,
            out,
            bias,
            mask: mask_bytes,
            weights,
            statistics,
            d_out,
            d_query,
            d_key,
            d_value,
            d_bias,
            batch,
            batches: size("query", shape.batch)?,
            heads: size("query", shape.num_heads)?,
            key_heads: size("key", shape.key_heads)?,
            query_length: size("query", shape.query_length)?,
            key_length: size("key", shape.key_length)?,
            depth: size("query", shape.depth)?,
            value_depth: size("value", shape.value_depth)?,
            causal: u32::from(causal.is_some()),
            // Lengths are below 2^31, so a shift beyond sees all or nothing all the same.
            shift: (shift as i64).clamp(-(1 << 32), 1 << 32),
            scale: call.scores.scale.factor(shape.depth, libm::sqrt),
            set_means_keep: u32::from(mask.is_some_and(attn_core::Mask::set_means_keep)),
            zero_if_blind: u32::from(call.visible.fully_masked == FullyMasked::Zero),
            dropout: Dropout::new(call, shape)?,
            scratch: scratch.address(),
            scratch_len: scratch.len() as u64,
            wide,
            _pad: 0,
        })
    }

    /// Heads of all batch entries.
    pub(crate) fn matrices(&self) -> u64 {
        u64::from(self.batches) * u64::from(self.heads)
    }
}

impl Dropout {
    fn new<T: Element>(
        call: &Attention<'_, Device, T>,
        shape: &AttentionShape,
    ) -> Result<Self, CudaError> {
        let Some(dropout) = &call.dropout else {
            return Ok(Self::zeroed());
        };
        let keep = dropout.bits(shape)?;
        let words = keep.words();
        let limit = u64::try_from(keep.limit());
        let most = (1u128 << words.width()) <= keep.limit();
        Ok(Self {
            key: words.key().words(),
            width: words.width(),
            split: u32::from(words.counters() == Counters::SplitInHalves),
            length: words.length(),
            limit: limit.unwrap_or(u64::MAX),
            keep_all: u32::from(most),
            _pad: 0,
            matrix: keep.index(1, 0, 0),
            multiplier: dropout.multiplier(),
        })
    }
}
