//! Layer norm and its gradients.

use super::dense::{sum, whole};
use super::matrix::{Norm, NormBackward, Operand};
use super::suffix;
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::{Placed, size};
use attn_core::{DType, Dims, Element, Error, NormalizeBackward, View, ViewMut};

const THREADS: u32 = 256;
/// Columns up to which a warp has a row of its own; above, a block has.
const WARP_COLUMNS: u32 = 256;
/// Rows of a block at least, where each gives a share to the gradient of the scale, and blocks at most.
const SHARE_ROWS: u32 = 32;
const SHARES: u32 = 256;

/// The kernel for rows of a depth, without the dtype, and how many rows its blocks work on at once.
fn kernel(prefix: &'static str, depth: u32, dtype: DType) -> (String, u32) {
    let suffix = suffix(dtype);
    match depth <= WARP_COLUMNS {
        true => (format!("{prefix}_{suffix}"), THREADS / 32),
        false => (format!("{prefix}_deep_{suffix}"), 1),
    }
}

pub(crate) fn normalize<T: Element>(
    device: &CudaDevice,
    x: ViewMut<'_, Device, T>,
    scale: View<'_, Device, T::Acc>,
    epsilon: f64,
) -> Result<(), CudaError> {
    let Some((&depth, rows)) = x.shape().split_last() else {
        return Err(Error::Rank {
            argument: "x",
            got: 0,
            wanted: "[..., depth]",
        }
        .into());
    };
    if scale.shape().as_slice() != [depth] {
        return Err(Error::Shape {
            argument: "scale",
            got: *scale.shape(),
            wanted: Dims::new(&[depth])?,
        }
        .into());
    }
    let depth = size("x", depth)?;
    if depth == 0 {
        return Ok(());
    }
    let params = Norm {
        x: Operand::new::<T>("x", &Placed::of_mut(&x), rows.len())?,
        scale: Placed::of(&scale).address,
        scale_stride: scale.layout().strides()[0] as i64,
        epsilon,
        rows: size("x", Dims::new(rows)?.elements()?)?,
        depth,
    };
    let (name, rows_of_block) = kernel("normalize", depth, T::DTYPE);
    device.launch(
        Kernel {
            module: Module::Norm,
            name: &name,
            blocks: u64::from(params.rows.div_ceil(rows_of_block)),
            threads: THREADS,
            shared: 0,
        },
        &params,
    )
}

pub(crate) fn normalize_backward<T: Element>(
    device: &CudaDevice,
    call: NormalizeBackward<'_, Device, T>,
) -> Result<(), CudaError> {
    let (rows, depth) = call.sizes()?;
    let (rows, depth) = (size("x", rows)?, size("x", depth)?);
    if depth == 0 {
        return Ok(());
    }
    let axes = call.x.shape().rank() - 1;
    let (name, at_once) = kernel("backward", depth, T::DTYPE);
    let rows_of_block = match call.d_scale {
        Some(_) => rows.div_ceil(SHARES).max(SHARE_ROWS),
        None => at_once,
    };
    let blocks = rows.div_ceil(rows_of_block);
    // A share in f64 is two words.
    let words = match T::DTYPE {
        DType::F64 => 2 * blocks,
        DType::F32 | DType::F16 | DType::BF16 => blocks,
    };
    let shares: Option<DeviceBuffer<f64>> = match call.d_scale {
        Some(_) => Some(device.buffer(words as usize * depth as usize)?),
        None => None,
    };
    let params = NormBackward {
        x: Operand::new::<T>("x", &Placed::of(&call.x), axes)?,
        gradient: Operand::new::<T>("gradient", &Placed::of_mut(&call.gradient), axes)?,
        scale: Placed::of(&call.scale).address,
        scale_stride: call.scale.layout().strides()[0] as i64,
        epsilon: call.epsilon,
        d_scale: shares.as_ref().map_or(0, DeviceBuffer::address),
        rows,
        depth,
        rows_of_block,
        _pad: 0,
    };
    device.launch(
        Kernel {
            module: Module::Norm,
            name: &name,
            blocks: u64::from(blocks),
            threads: THREADS,
            shared: 0,
        },
        &params,
    )?;
    if let (Some(shares), Some(d_scale)) = (shares, call.d_scale) {
        let from = Operand::contiguous(shares.address(), depth);
        let to = Placed::of_mut(&d_scale);
        let to = (to.address, to.layout.strides()[0] as i64);
        let params = whole(from, [words, depth], to);
        sum(device, DType::F64, <T::Acc as Element>::DTYPE, &params)?;
    }
    Ok(())
}
