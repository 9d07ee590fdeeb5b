//! Dense layers and their gradients: checks, and which kernels compute their products.

use super::matrix::{Operand, Product, Sum};
use super::{enough, suffix};
use crate::cuda::CudaDevice;
use crate::device::{Device, DeviceBuffer};
use crate::driver::{Factor, Matmul, MatmulAddresses};
use crate::error::CudaError;
use crate::images::Module;
use crate::launch::Kernel;
use crate::params::{Placed, size};
use attn_core::{Buffer, DType, Element, Projection, ProjectionBackward, RowOrder, ViewMut};

/// Rows whose sum is a step of its own, where there are so many that the device would else be idle: of the gradient of a bias, and of
/// that of a kernel, whose slices are multiples of a kernel's chunks.
const BIAS_SLICE: usize = 256;
const MAX_BIAS_SLICES: usize = 64;
const KERNEL_SLICE: usize = 1024;
const CHUNK: usize = 256;
/// Tiles of the gradient of a kernel with which a device is busy. It does not depend on the device, so that bits do not either.
const BUSY: usize = 512;
const MAX_KERNEL_SLICES: usize = 16;
/// Columns that a block sums.
const SUM_COLUMNS: u64 = 32;

pub(crate) const fn scratch(_rows: usize, _features: usize, _outputs: usize) -> usize {
    0
}

/// The sums of slices of the rows.
pub(crate) fn backward_scratch(rows: usize, features: usize, outputs: usize) -> usize {
    let several = |slices, elements: usize| match slices {
        1 => 0,
        slices => elements.saturating_mul(slices),
    };
    let kernel = several(
        kernel_slices(rows, features, outputs),
        features.saturating_mul(outputs),
    );
    kernel.max(several(bias_slices(rows), outputs))
}

fn bias_slices(rows: usize) -> usize {
    (rows / BIAS_SLICE).clamp(1, MAX_BIAS_SLICES)
}

fn kernel_slices(rows: usize, features: usize, outputs: usize) -> usize {
    let tiles = features.div_ceil(64).saturating_mul(outputs.div_ceil(64));
    let wanted = BUSY / tiles.max(1);
    wanted.min(rows / KERNEL_SLICE).clamp(1, MAX_KERNEL_SLICES)
}

pub(crate) fn project<T: Element>(
    device: &CudaDevice,
    call: &Projection<'_, Device, T>,
    out: ViewMut<'_, Device, T>,
    scratch: &mut DeviceBuffer<T::Acc>,
) -> Result<(), CudaError> {
    let (rows, features, outputs) = call.sizes(out.shape())?;
    let kernel = call.kernel.plain(crate::NAME)?;
    enough(scratch.len(), self::scratch(rows, features, outputs))?;
    let axes = call.input.shape().rank() - 1;
    let bias = call.bias.as_ref().map(Placed::of);
    let product = Product {
        a: Operand::new::<T>("input", &Placed::of(&call.input), axes)?,
        b: Operand::new::<T>("kernel", &Placed::of(&kernel), 1)?,
        out: Operand::new::<T>("output", &Placed::of_mut(&out), axes)?,
        bias: bias.map_or(0, |bias| bias.address),
        bias_stride: bias.map_or(0, |bias| bias.layout.strides()[0] as i64),
        m: size("input", rows)?,
        n: size("kernel", outputs)?,
        k: size("kernel", features)?,
        accumulate: 0,
        parts: 0,
        slice: 0,
        _pad: 0,
    };
    multiply::<T>(device, Factors::Forward, call.row_order, &product)
}

pub(crate) fn project_backward<T: Element>(
    device: &CudaDevice,
    call: ProjectionBackward<'_, Device, T>,
    scratch: &mut DeviceBuffer<T::Acc>,
) -> Result<(), CudaError> {
    let (rows, features, outputs) = call.sizes()?;
    enough(scratch.len(), backward_scratch(rows, features, outputs))?;
    let axes = call.input.shape().rank() - 1;
    let input = Operand::new::<T>("input", &Placed::of(&call.input), axes)?;
    let kernel = Operand::new::<T>("kernel", &Placed::of(&call.kernel), 1)?;
    let d_out = Operand::new::<T>("d_out", &Placed::of(&call.d_out), axes)?;
    let [rows, features, outputs] = [rows, features, outputs].map(|n| size("input", n));
    let (rows, features, outputs) = (rows?, features?, outputs?);
    let to = |argument, view: Option<&ViewMut<'_, Device, T>>, axes| {
        view.map(|view| Operand::new::<T>(argument, &Placed::of_mut(view), axes))
            .transpose()
    };
    let product = |a, b, out, [m, n, k]: [u32; 3], accumulate| Product {
        a,
        b,
        out,
        bias: 0,
        bias_stride: 0,
        m,
        n,
        k,
        accumulate: u32::from(accumulate),
        parts: 0,
        slice: 0,
        _pad: 0,
    };
    // All are checked before any is written.
    let d_input = to("d_input", call.d_input.as_ref(), axes)?;
    let d_kernel = to("d_kernel", call.d_kernel.as_ref(), 1)?;
    if let Some(out) = d_input {
        let sizes = [rows, features, outputs];
        let product = product(d_out, kernel, out, sizes, call.accumulate);
        multiply::<T>(device, Factors::Input, RowOrder::Any, &product)?;
    }
    if let Some(out) = d_kernel {
        let product = product(input, d_out, out, [features, outputs, rows], false);
        kernel_gradient::<T>(device, product, scratch.address())?;
    }
    if let Some(d_bias) = call.d_bias {
        let to = Placed::of_mut(&d_bias);
        let to = (to.address, to.layout.strides()[0] as i64);
        sum_of_rows::<T>(device, d_out, [rows, outputs], to, scratch.address())?;
    }
    Ok(())
}

/// `inputᵀ · d_out`. Where that is few tiles over many rows, slices of the rows are summed side by side.
fn kernel_gradient<T: Element>(
    device: &CudaDevice,
    product: Product,
    scratch: u64,
) -> Result<(), CudaError> {
    let [m, n, k] = [product.m, product.n, product.k].map(|size| size as usize);
    let slices = kernel_slices(k, m, n);
    if let Some(done) = by_library::<T>(device, Factors::Kernel, &product) {
        return done;
    }
    if slices == 1 || !product.out.is_contiguous(product.m) {
        return multiply::<T>(device, Factors::Kernel, RowOrder::Fixed, &product);
    }
    let slice = k.div_ceil(slices).next_multiple_of(CHUNK) as u32;
    let parts = Product {
        parts: scratch,
        slice,
        ..product
    };
    multiply::<T>(device, Factors::Kernel, RowOrder::Fixed, &parts)?;
    // The tiles of few columns are few: their number of elements is far below 2^31.
    let elements = product.m * product.n;
    let from = Operand::contiguous(scratch, elements);
    let to = (product.out.address, 1);
    let params = whole(from, [product.k.div_ceil(slice), elements], to);
    sum(device, <T::Acc as Element>::DTYPE, T::DTYPE, &params)
}

/// How the factors of a product are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Factors {
    /// Both as they are multiplied.
    Forward,
    /// The right one transposed: the gradient of an input.
    Input,
    /// The left one transposed: the gradient of a kernel.
    Kernel,
}

impl Factors {
    /// In the names of kernels.
    const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Input => "d_input",
            Self::Kernel => "d_kernel",
        }
    }
}

/// Tiles of a kernel.
struct Tiles {
    rows: u32,
    columns: u32,
    threads: u32,
    shared: u32,
}

impl Tiles {
    fn blocks(&self, product: &Product) -> u64 {
        let rows = u64::from(product.m.div_ceil(self.rows));
        let slices = match product.parts {
            0 => 1,
            _ => u64::from(product.k.div_ceil(product.slice)),
        };
        rows * u64::from(product.n.div_ceil(self.columns)) * slices
    }
}

const ORDINARY: Tiles = Tiles {
    rows: 64,
    columns: 64,
    threads: 256,
    shared: 0,
};
const F32_LARGE: Tiles = Tiles {
    rows: 128,
    ..ORDINARY
};
const TENSOR: Tiles = Tiles {
    rows: 64,
    columns: 64,
    threads: 128,
    shared: 40 << 10,
};
const TENSOR_LARGE: Tiles = Tiles {
    rows: 128,
    columns: 128,
    threads: 256,
    shared: 80 << 10,
};
/// Whose blocks have all rows.
const FEW: Tiles = Tiles {
    rows: 8,
    columns: 32,
    threads: 256,
    shared: 0,
};
const TENSOR_FEW: Tiles = Tiles {
    rows: 16,
    shared: 136 << 10,
    ..FEW
};

/// The product by the vendor's library, if the caller wants that, it is there, and the matrices lie as it needs them.
fn by_library<T: Element>(
    device: &CudaDevice,
    factors: Factors,
    product: &Product,
) -> Option<Result<(), CudaError>> {
    let has_bias = product.bias != 0;
    let is_empty = [product.m, product.n, product.k].contains(&0);
    let fits = product.bias.is_multiple_of(16) && (!has_bias || product.bias_stride == 1);
    if !device.options().library_products || is_empty || !fits {
        return None;
    }
    let call = Matmul {
        dtype: T::DTYPE,
        sizes: [product.m, product.n, product.k].map(u64::from),
        a: Factor {
            stride: product.a.even_rows()?,
            is_transposed: factors == Factors::Kernel,
        },
        b: Factor {
            stride: product.b.even_rows()?,
            is_transposed: factors == Factors::Input,
        },
        out_stride: product.out.even_rows()?,
        has_bias,
        accumulate: product.accumulate != 0,
    };
    let addresses = MatmulAddresses {
        a: product.a.address,
        b: product.b.address,
        out: product.out.address,
        bias: product.bias,
    };
    // SAFETY: the addresses are of views that were checked against their buffers, and whose sizes and strides these are.
    #[expect(unsafe_code, reason = "the library accesses what its arguments say")]
    let started = unsafe { device.driver().matmul(&call, addresses) };
    started.map(|started| started.map_err(CudaError::from))
}

/// Every kernel sums in the same order, so the choice among them is one of speed alone; the library has an order of its own.
fn multiply<T: Element>(
    device: &CudaDevice,
    factors: Factors,
    order: RowOrder,
    product: &Product,
) -> Result<(), CudaError> {
    if order == RowOrder::Any
        && let Some(done) = by_library::<T>(device, factors, product)
    {
        return done;
    }
    let info = device.info();
    let (few, ordinary, large) = match T::DTYPE {
        DType::F16 | DType::BF16 => (TENSOR_FEW, TENSOR, Some(TENSOR_LARGE)),
        DType::F32 => (FEW, ORDINARY, Some(F32_LARGE)),
        DType::F64 => (FEW, ORDINARY, None),
    };
    let is_few =
        factors == Factors::Forward && product.m <= few.rows && few.shared <= info.shared_per_block;
    // Large tiles read less, where there are enough of them for the whole device.
    let large = large.filter(|tiles| tiles.blocks(product) >= u64::from(info.multiprocessors));
    let (tiles, kind, size) = match (is_few, large) {
        (true, _) => (few, "few", few_rows(T::DTYPE, product.m)),
        (false, Some(tiles)) => (tiles, factors.name(), "large_"),
        (false, None) => (ordinary, factors.name(), ""),
    };
    let name = format!("{kind}_{size}{}", suffix(T::DTYPE));
    device.launch(
        Kernel {
            module: Module::Dense,
            name: &name,
            blocks: tiles.blocks(product),
            threads: tiles.threads,
            shared: tiles.shared,
        },
        product,
    )
}

/// For how many rows a kernel for few is made, in its name.
const fn few_rows(dtype: DType, rows: u32) -> &'static str {
    match (dtype, rows) {
        (DType::F16 | DType::BF16, _) => "",
        (DType::F32 | DType::F64, 0 | 1) => "1_",
        (DType::F32 | DType::F64, _) => "8_",
    }
}

/// The sum of the rows of `from`, `[rows, columns]`, to an address and a stride; sums of slices go to the scratch.
fn sum_of_rows<T: Element>(
    device: &CudaDevice,
    from: Operand,
    [rows, columns]: [u32; 2],
    to: (u64, i64),
    scratch: u64,
) -> Result<(), CudaError> {
    let slices = bias_slices(rows as usize) as u32;
    if slices == 1 {
        return sum(
            device,
            T::DTYPE,
            T::DTYPE,
            &whole(from, [rows, columns], to),
        );
    }
    let acc = <T::Acc as Element>::DTYPE;
    let parts = Sum {
        slice: i64::from(columns),
        rows_of_slice: rows.div_ceil(slices),
        ..whole(from, [rows, columns], (scratch, 1))
    };
    sum(device, T::DTYPE, acc, &parts)?;
    let parts = parts.rows.div_ceil(parts.rows_of_slice);
    let from = Operand::contiguous(scratch, columns);
    sum(device, acc, T::DTYPE, &whole(from, [parts, columns], to))
}

/// The sum of all rows at once.
pub(crate) fn whole(from: Operand, [rows, columns]: [u32; 2], (to, column): (u64, i64)) -> Sum {
    Sum {
        from,
        to,
        slice: 0,
        column,
        rows,
        columns,
        rows_of_slice: rows,
        _pad: 0,
    }
}

/// Sums slices of rows.
pub(crate) fn sum(
    device: &CudaDevice,
    from: DType,
    to: DType,
    params: &Sum,
) -> Result<(), CudaError> {
    let (from, to) = (suffix(from), suffix(to));
    let name = match from == to {
        true => format!("sum_{from}"),
        false => format!("sum_{from}_{to}"),
    };
    let slices = params.rows.div_ceil(params.rows_of_slice.max(1)).max(1);
    device.launch(
        Kernel {
            module: Module::Dense,
            name: &name,
            blocks: u64::from(slices) * u64::from(params.columns).div_ceil(SUM_COLUMNS),
            threads: 256,
            shared: 0,
        },
        params,
    )
}
