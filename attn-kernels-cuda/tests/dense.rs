//! The kernels of dense layers give an element the same bits whichever of them computes it, and however its arrays lie; layer norm of
//! deep rows is as exact as that of short ones.
#![expect(
    clippy::std_instead_of_alloc,
    clippy::std_instead_of_core,
    reason = "a test has std"
)]

use attn_core::{
    Dims, Element, Host, HostView, HostViewMut, Kernels, Layout, NormalizeBackward, Projection,
    ProjectionBackward, RowOrder, bf16, f16,
};
use attn_cuda_emulator::{Emulator, Options};
use attn_kernels_cuda::{Cuda, CudaDevice};
use std::error::Error;
use std::sync::Arc;

type Done = Result<(), Box<dyn Error>>;

fn cuda() -> Cuda {
    let emulator = Emulator::new(Options {
        panic_on_finding: true,
        ..Options::default()
    });
    Cuda::on(CudaDevice::with_driver(Arc::new(emulator)))
}

/// Numbers of about the size of one, the same at each run.
fn elements<T: Element>(seed: u64, count: usize) -> Vec<T> {
    let mut state = seed;
    let mut next = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f64 / f64::from(1 << 22) - 2.0
    };
    (0..count).map(|_| T::from_f64(next())).collect()
}

fn bits<T: Element>(x: &[T]) -> &[u8] {
    bytemuck::cast_slice(x)
}

/// More than two chunks of a sum, and outputs that are several tiles of every kernel, all of whole 16 bytes.
const FEATURES: usize = 600;
const OUTPUTS: usize = 264;

struct Dense<T> {
    input: Vec<T>,
    kernel: Vec<T>,
    bias: Vec<T>,
}

impl<T: Element> Dense<T>
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    fn new(rows: usize) -> Self {
        Self {
            input: elements(1, rows * FEATURES),
            kernel: elements(2, FEATURES * OUTPUTS),
            bias: elements(3, OUTPUTS),
        }
    }

    /// Some rows, whose input begins at an element of a buffer and is `apart` elements from row to row.
    fn rows(
        &self,
        cuda: &Cuda,
        [first, count]: [usize; 2],
        [start, apart]: [usize; 2],
    ) -> Result<Vec<T>, Box<dyn Error>> {
        let mut moved = vec![T::default(); start + count * apart];
        for row in 0..count {
            let from = &self.input[(first + row) * FEATURES..][..FEATURES];
            moved[start + row * apart..][..FEATURES].copy_from_slice(from);
        }
        let layout = Layout::strided(start, Dims::new(&[count, FEATURES])?, &[apart, 1])?;
        let call = Projection {
            input: HostView::with_layout(&moved, layout)?,
            kernel: HostView::new(&self.kernel, &[FEATURES, OUTPUTS])?.into(),
            bias: Some(HostView::new(&self.bias, &[OUTPUTS])?),
            row_order: RowOrder::Fixed,
        };
        let mut out = vec![T::default(); count * OUTPUTS];
        cuda.project(
            &call,
            HostViewMut::new(&mut out, &[count, OUTPUTS])?,
            &mut [],
        )?;
        Ok(out)
    }
}

fn rows_alone_and_among_many<T: Element>() -> Done
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    const ROWS: usize = 300;
    let (cuda, dense) = (cuda(), Dense::<T>::new(ROWS));
    let all = dense.rows(&cuda, [0, ROWS], [0, FEATURES])?;
    for (first, count) in [(0, 1), (1, 8), (9, 16), (131, 40), (299, 1)] {
        for place in [[0, FEATURES], [3, FEATURES + 5]] {
            let few = dense.rows(&cuda, [first, count], place)?;
            let expected = &all[first * OUTPUTS..][..count * OUTPUTS];
            let at = format!("{} rows {first}, {count} at {place:?}", T::DTYPE);
            assert!(bits(expected) == bits(&few), "{at}");
        }
    }
    let exact = |row: usize, column: usize| {
        let products = (0..FEATURES).map(|k| {
            dense.input[row * FEATURES + k].to_f64() * dense.kernel[k * OUTPUTS + column].to_f64()
        });
        products.sum::<f64>() + dense.bias[column].to_f64()
    };
    for (row, column) in [(0, 0), (127, 127), (128, 128), (299, 263), (64, 200)] {
        let got = all[row * OUTPUTS + column].to_f64();
        // A unit in the last place of bf16 is 1/128 of a number.
        let error = (got - exact(row, column)).abs();
        assert!(error < 0.2, "{} {row} {column}: {got}", T::DTYPE);
    }
    Ok(())
}

#[test]
fn rows_have_the_same_bits() -> Done {
    rows_alone_and_among_many::<f32>()?;
    rows_alone_and_among_many::<f64>()?;
    rows_alone_and_among_many::<f16>()?;
    rows_alone_and_among_many::<bf16>()
}

/// The gradients of the columns `first..first + count` of the output.
fn gradients<T: Element>(
    cuda: &Cuda,
    dense: &Dense<T>,
    d_out: &[T],
    [rows, first, count]: [usize; 3],
) -> Result<[Vec<T>; 2], Box<dyn Error>>
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    let columns = |rows| {
        let shape = Dims::new(&[rows, count])?;
        Layout::strided(first, shape, &[OUTPUTS, 1])
    };
    let mut d_input = vec![T::default(); rows * FEATURES];
    let mut d_kernel = vec![T::default(); FEATURES * count];
    let call = ProjectionBackward {
        input: HostView::new(&dense.input[..rows * FEATURES], &[rows, FEATURES])?,
        kernel: HostView::with_layout(&dense.kernel, columns(FEATURES)?)?,
        d_out: HostView::with_layout(d_out, columns(rows)?)?,
        d_input: Some(HostViewMut::new(&mut d_input, &[rows, FEATURES])?),
        accumulate: false,
        d_kernel: Some(HostViewMut::new(&mut d_kernel, &[FEATURES, count])?),
        d_bias: None,
    };
    cuda.project_backward(call, &mut [])?;
    Ok([d_input, d_kernel])
}

fn gradients_alone_and_among_many<T: Element>() -> Done
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    const ROWS: usize = 260;
    let (cuda, dense) = (cuda(), Dense::<T>::new(ROWS));
    let d_out: Vec<T> = elements(4, ROWS * OUTPUTS);
    let [d_input, d_kernel] = gradients(&cuda, &dense, &d_out, [ROWS, 0, OUTPUTS])?;
    let [of_few_rows, _] = gradients(&cuda, &dense, &d_out, [30, 0, OUTPUTS])?;
    assert!(
        bits(&d_input[..30 * FEATURES]) == bits(&of_few_rows),
        "{} d_input",
        T::DTYPE
    );
    for (first, count) in [(0, 40), (137, 9)] {
        let [_, of_few_columns] = gradients(&cuda, &dense, &d_out, [ROWS, first, count])?;
        for feature in 0..FEATURES {
            let expected = &d_kernel[feature * OUTPUTS + first..][..count];
            let got = &of_few_columns[feature * count..][..count];
            let at = format!("{} d_kernel {feature}, columns {first}", T::DTYPE);
            assert!(bits(expected) == bits(got), "{at}");
        }
    }
    Ok(())
}

#[test]
fn gradients_have_the_same_bits() -> Done {
    gradients_alone_and_among_many::<f32>()?;
    gradients_alone_and_among_many::<f64>()?;
    gradients_alone_and_among_many::<f16>()?;
    gradients_alone_and_among_many::<bf16>()
}

/// Rows deeper than a warp holds.
fn deep_rows<T: Element>(tolerance: f64) -> Done
where
    Cuda: Kernels<T, Storage = Host, Error = attn_core::Error>,
{
    const EPSILON: f64 = 1e-6;
    let (rows, depth) = (70, 300);
    let cuda = cuda();
    let x: Vec<T> = elements(5, rows * depth);
    let scale: Vec<T::Acc> = elements(6, depth);
    let gradient: Vec<T> = elements(7, rows * depth);
    let shape = [rows, depth];
    let (mut normal, mut d_x) = (x.clone(), gradient.clone());
    let mut d_scale = vec![<T::Acc as Element>::from_f64(0.0); depth];
    let scale_view = HostView::new(&scale, &[depth])?;
    cuda.normalize(HostViewMut::new(&mut normal, &shape)?, scale_view, EPSILON)?;
    cuda.normalize_backward(NormalizeBackward {
        x: HostView::new(&x, &shape)?,
        scale: scale_view,
        epsilon: EPSILON,
        gradient: HostViewMut::new(&mut d_x, &shape)?,
        d_scale: Some(HostViewMut::new(&mut d_scale, &[depth])?),
    })?;
    let near = |got: f64, wanted: f64, what: &str, at: usize| {
        let error = (got - wanted).abs();
        let terms = if what == "d_scale" { 10.0 } else { 1.0 };
        let allowed = tolerance * terms * (1.0 + wanted.abs());
        assert!(error <= allowed, "{what} {at}: {got}, wanted {wanted}");
    };
    let mut sums = vec![0.0; depth];
    for row in 0..rows {
        let of = |array: &[T], column: usize| array[row * depth + column].to_f64();
        let mean_of = |f: &dyn Fn(usize) -> f64| (0..depth).map(f).sum::<f64>() / depth as f64;
        let mean = mean_of(&|column| of(&x, column));
        let variance = mean_of(&|column| (of(&x, column) - mean).powi(2));
        let factor = 1.0 / (variance + EPSILON).sqrt();
        let n = |column: usize| (of(&x, column) - mean) * factor;
        let g = |column: usize| of(&gradient, column) * scale[column].to_f64();
        let (mean_g, mean_gn) = (mean_of(&g), mean_of(&|column| g(column) * n(column)));
        for column in 0..depth {
            let scaled = n(column) * scale[column].to_f64();
            near(of(&normal, column), scaled, "normal", column);
            let wanted = factor * (g(column) - mean_g - n(column) * mean_gn);
            near(of(&d_x, column), wanted, "d_x", column);
            sums[column] += of(&gradient, column) * n(column);
        }
    }
    for (column, sum) in sums.iter().enumerate() {
        near(d_scale[column].to_f64(), *sum, "d_scale", column);
    }
    Ok(())
}

#[test]
fn deep_rows_are_exact() -> Done {
    deep_rows::<f32>(2e-7)?;
    deep_rows::<f64>(1e-14)?;
    deep_rows::<f16>(1e-3)?;
    deep_rows::<bf16>(8e-3)
}
