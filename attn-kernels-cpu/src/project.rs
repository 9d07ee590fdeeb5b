//! Dense layers: `out = input · kernel + bias`, accumulated in `T::Acc`, rounded once.
//!
//! A job is a block of rows times a group of columns. Within it, panels of the kernel as wide as a register tile are
//! widened (or only gathered) into scratch once and used for all rows of the block; a single row reads the kernel as it lies.
//! Every output is one chain over the features in order, so its bits do not depend on the cut into jobs; only
//! matrixmultiply, which `RowOrder::Any` allows for large `f32` and `f64` products, sums in its own order, on a cut into
//! rows that is the same for every number of threads.

use crate::cpu::Cpu;
use crate::element::Stored;
use crate::gemm::{self, Rows};
use crate::micro::{
    Block, ByRows, MAX_WIDTH, for_each_block, load_row, multiply, store_row, width, zeros,
};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::threads::Jobs;
use attn_core::{Error, Host, HostView, HostViewMut, Layout, Projection, Result, RowOrder};
use core::ops::Range;

/// Rows of a job: the panel of the kernel is widened once for so many.
const ROWS: usize = 48;
/// Fewer rows read the kernel as it lies: gathering a panel costs about as much as two rows' products.
const PANEL_ROWS: usize = 3;
/// Columns of a job: whole panels of every instruction set, and enough jobs for the threads where rows are few.
const COLUMNS: usize = 256;
/// Rows of one call of matrixmultiply.
const GEMM_ROWS: usize = 256;
/// Bytes to which the panel is aligned.
const ALIGN: usize = 64;

/// Elements of scratch for one worker: widened rows, a panel of the kernel, one tile of results.
const fn worker_scratch<A>(rows: usize, features: usize) -> usize {
    let rows = if rows < ROWS { rows } else { ROWS };
    rows.saturating_add(MAX_WIDTH)
        .saturating_mul(features)
        .saturating_add(rows.saturating_mul(MAX_WIDTH))
        .saturating_add(MAX_WIDTH + ALIGN / size_of::<A>())
}

pub(crate) fn scratch<T: Stored>(
    cpu: &Cpu,
    rows: usize,
    features: usize,
    _outputs: usize,
) -> usize {
    worker_scratch::<T::Acc>(rows, features).saturating_mul(cpu.threads())
}

pub(crate) fn project<T: Stored>(
    cpu: &Cpu,
    projection: &Projection<'_, Host, T>,
    mut out: HostViewMut<'_, T>,
    scratch: &mut [T::Acc],
) -> Result<()> {
    let (rows, features, outputs) = projection.sizes(out.shape())?;
    let needed = self::scratch::<T>(cpu, rows, features, outputs);
    if scratch.len() < needed {
        return Err(Error::Scratch {
            argument: "tiles",
            got: scratch.len(),
            wanted: needed,
        });
    }
    for (argument, layout) in [
        ("input", projection.input.layout()),
        ("kernel", projection.kernel.layout()),
        ("output", out.layout()),
    ] {
        contiguous_columns(argument, layout)?;
    }
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    let out_layout = *out.layout();
    let call = Call {
        input: Matrix::new(&projection.input),
        kernel: Matrix::new(&projection.kernel),
        bias: projection.bias.as_ref(),
        rows,
        features,
        outputs,
        out_layout,
        out: Shared::new(&mut out),
    };
    if projection.row_order == RowOrder::Any
        && let Some(product) = call.gemm(cpu)
    {
        cpu.run(product.blocks(), scratch, 0, |jobs, _| product.run(jobs));
        return Ok(());
    }
    let jobs = rows.div_ceil(ROWS) * outputs.div_ceil(COLUMNS);
    cpu.run(
        jobs,
        scratch,
        worker_scratch::<T::Acc>(rows, features),
        |jobs, scratch| {
            cpu.level().dispatch(Worker {
                call: &call,
                jobs,
                scratch,
            });
        },
    );
    Ok(())
}

fn contiguous_columns(argument: &'static str, layout: &Layout) -> Result<()> {
    match (layout.shape().last(), layout.strides().last()) {
        (Some(&columns), Some(&stride)) if columns > 1 && stride != 1 => Err(Error::Strides {
            argument,
            wanted: "a contiguous last axis",
        }),
        _ => Ok(()),
    }
}

/// Rows anywhere, columns contiguous.
struct Matrix<'a, T> {
    data: &'a [T],
    layout: Layout,
}

impl<'a, T: Stored> Matrix<'a, T> {
    fn new(view: &HostView<'a, T>) -> Self {
        Self {
            data: view.buf(),
            layout: *view.layout(),
        }
    }

    fn row(&self, row: usize) -> &'a [T] {
        let columns = self.layout.shape().last().copied().unwrap_or(0);
        &self.data[row_start(&self.layout, row)..][..columns]
    }
}

fn row_start(layout: &Layout, row: usize) -> usize {
    layout.base(layout.shape().rank().saturating_sub(1), row)
}

/// First element and stride of evenly spaced rows.
fn even_rows(layout: &Layout) -> Option<Rows> {
    let matrix = layout.as_matrix(1)?;
    Some(Rows {
        first: matrix.offset,
        stride: if matrix.rows <= 1 {
            matrix.columns
        } else {
            matrix.row_stride
        },
    })
}

struct Call<'a, T: Stored> {
    input: Matrix<'a, T>,
    kernel: Matrix<'a, T>,
    bias: Option<&'a HostView<'a, T>>,
    rows: usize,
    features: usize,
    outputs: usize,
    out: Shared<'a, T>,
    out_layout: Layout,
}

impl<T: Stored> Call<'_, T> {
    fn bias_at(&self, column: usize) -> T::Acc {
        self.bias.map_or(T::Acc::default(), |bias| {
            bias.buf()[bias.layout().at(&[column])].to_acc()
        })
    }

    /// A full panel of the kernel as it lies, and its stride, where no widening is needed.
    #[inline(always)]
    fn kernel_in_place(&self, columns: &Range<usize>, width: usize) -> Option<(&[T::Acc], usize)> {
        let rows = even_rows(&self.kernel.layout)
            .filter(|rows| columns.len() == width && rows.stride >= width)?;
        let data = T::as_acc(self.kernel.data)?;
        // Up to the panel's own last element: the last step must not be cut short by the end of the buffer.
        Some((data.get(rows.first + columns.start..)?, rows.stride))
    }

    /// The call as one for matrixmultiply, if it is.
    fn gemm(&self, cpu: &Cpu) -> Option<Gemm<'_, T>> {
        if !gemm::serves::<T>(cpu, (self.rows, self.features, self.outputs)) {
            return None;
        }
        let left = even_rows(&self.input.layout)?;
        let right = even_rows(&self.kernel.layout)?;
        let out = even_rows(&self.out_layout).filter(|out| out.stride >= self.outputs)?;
        Some(Gemm {
            call: self,
            left,
            right,
            out,
        })
    }
}

/// A product by matrixmultiply, cut into blocks of rows.
struct Gemm<'a, T: Stored> {
    call: &'a Call<'a, T>,
    left: Rows,
    right: Rows,
    out: Rows,
}

impl<T: Stored> Gemm<'_, T> {
    /// The last block takes the rows that are left over, so that none is too short for packing to pay.
    fn blocks(&self) -> usize {
        (self.call.rows / GEMM_ROWS).max(1)
    }

    fn block(&self, block: usize) -> Range<usize> {
        let end = if block + 1 == self.blocks() {
            self.call.rows
        } else {
            (block + 1) * GEMM_ROWS
        };
        block * GEMM_ROWS..end
    }

    #[expect(unsafe_code, reason = "each job writes a block of its own")]
    fn run(&self, jobs: &Jobs) {
        let call = self.call;
        while let Some(block) = jobs.take() {
            let rows = self.block(block);
            let first = self.out.first + rows.start * self.out.stride;
            let last = self.out.first + (rows.end - 1) * self.out.stride;
            // SAFETY: `Jobs` gives each block once, and blocks of rows at least as far apart as they are long are disjoint ranges.
            let out = unsafe { call.out.slice(first..last + call.outputs) };
            let left = Rows {
                first: self.left.first + rows.start * self.left.stride,
                ..self.left
            };
            let size = (rows.len(), call.features, call.outputs);
            let to = Rows {
                first: 0,
                ..self.out
            };
            gemm::multiply(
                size,
                call.input.data,
                left,
                call.kernel.data,
                self.right,
                out,
                to,
            );
            self.add_bias(out);
        }
    }

    fn add_bias(&self, out: &mut [T]) {
        if self.call.bias.is_none() {
            return;
        }
        for row in out.chunks_mut(self.out.stride) {
            for (column, out) in row.iter_mut().take(self.call.outputs).enumerate() {
                *out = T::from_acc(out.to_acc() + self.call.bias_at(column));
            }
        }
    }
}

/// One thread's share of the jobs.
struct Worker<'a, 'c, T: Stored> {
    call: &'a Call<'c, T>,
    jobs: &'a Jobs,
    scratch: &'a mut [T::Acc],
}

impl<T: Stored> Kernel for Worker<'_, '_, T>
where
    T::Acc: Lane,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let call = self.call;
        let skip = self
            .scratch
            .as_ptr()
            .align_offset(ALIGN)
            .min(ALIGN / size_of::<T::Acc>());
        let (panel, rest) = self.scratch[skip..].split_at_mut(MAX_WIDTH * call.features);
        let (bias, rest) = rest.split_at_mut(MAX_WIDTH);
        let (tile, input) = rest.split_at_mut(ROWS.min(call.rows) * MAX_WIDTH);
        let groups = call.outputs.div_ceil(COLUMNS);
        while let Some(job) = self.jobs.take() {
            let first = job / groups * ROWS;
            let rows = first..(first + ROWS).min(call.rows);
            if call.features > 0 {
                for (row, to) in rows.clone().zip(input.chunks_exact_mut(call.features)) {
                    T::widen(call.input.row(row), to);
                }
            }
            let start = job % groups * COLUMNS;
            for column in (start..(start + COLUMNS).min(call.outputs)).step_by(width::<S, T::Acc>())
            {
                let columns = column..(column + width::<S, T::Acc>()).min(call.outputs);
                let (depth, width) = (call.features, width::<S, T::Acc>());
                load_bias(call, columns.clone(), bias);
                let in_place = (rows.len() < PANEL_ROWS)
                    .then(|| call.kernel_in_place(&columns, width))
                    .flatten();
                let (right, stride) = match in_place {
                    Some(right) => right,
                    None => {
                        load_panel::<S, T>(call, columns.clone(), panel);
                        (&*panel, width)
                    }
                };
                let tile = &mut tile[..rows.len() * width];
                let mut product = Product {
                    input,
                    right,
                    stride,
                    bias,
                    tile,
                    depth,
                };
                for_each_block::<S, T::Acc, _>(simd, rows.len(), &mut product);
                for (row, from) in rows.clone().zip(tile.chunks_exact(width)) {
                    write_row(call, row, columns.clone(), &from[..columns.len()]);
                }
            }
        }
    }
}

/// Columns of the kernel, widened, one tile's width each; columns beyond the last are 0.
#[inline(always)]
fn load_panel<S: Simd, T: Stored>(call: &Call<'_, T>, columns: Range<usize>, panel: &mut [T::Acc]) {
    let width = width::<S, T::Acc>();
    for (feature, to) in panel
        .chunks_exact_mut(width)
        .take(call.features)
        .enumerate()
    {
        let from = &call.kernel.row(feature)[columns.clone()];
        T::widen(from, &mut to[..from.len()]);
        to[from.len()..].fill(T::Acc::default());
    }
}

#[inline(always)]
fn load_bias<T: Stored>(call: &Call<'_, T>, columns: Range<usize>, bias: &mut [T::Acc]) {
    bias.fill(T::Acc::default());
    for (column, to) in columns.zip(bias) {
        *to = call.bias_at(column);
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "each job writes a block of its own")]
fn write_row<T: Stored>(call: &Call<'_, T>, row: usize, columns: Range<usize>, from: &[T::Acc]) {
    let mut narrow = [T::default(); MAX_WIDTH];
    T::narrow(from, &mut narrow[..from.len()]);
    let start = row_start(&call.out_layout, row) + columns.start;
    // SAFETY: `Jobs` gives each job once, jobs are disjoint in (row, column), a job writes only its own block, and
    // `ViewMut` guarantees that no two elements share an index.
    unsafe { call.out.write(start, 1, &narrow[..from.len()]) };
}

/// A tile of results from rows of the input and a panel of the kernel.
struct Product<'a, A> {
    input: &'a [A],
    right: &'a [A],
    /// Elements of `right` from one feature to the next.
    stride: usize,
    bias: &'a [A],
    tile: &'a mut [A],
    depth: usize,
}

impl<S: Simd, A: Lane> Block<S> for Product<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let left = ByRows::<A, ROWS>::new(self.input, self.depth, first, self.depth);
        let acc = multiply(
            simd,
            self.depth,
            &left,
            self.right,
            self.stride,
            zeros::<S, A, ROWS>(simd),
        );
        let bias = load_row::<S, A>(simd, self.bias);
        for (row, to) in acc
            .into_iter()
            .zip(self.tile[first * width..].chunks_exact_mut(width))
        {
            store_row::<S, A>(core::array::from_fn(|v| row[v] + bias[v]), to);
        }
    }
}
