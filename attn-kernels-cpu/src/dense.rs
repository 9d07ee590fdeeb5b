//! The product of two matrices of rows, `out = left · right + bias`, either of them transposed.
//!
//! A job is a block of rows times a group of columns. Within it, panels of the right factor as wide as a register tile are
//! widened (or only gathered) into scratch once and used for all rows of the block; few rows read the right factor as it
//! lies. Every output is one chain over the depth in order, so its bits do not depend on the cut into jobs; only
//! matrixmultiply, which `RowOrder::Any` allows for large `f32` and `f64` products, sums in its own order, on a cut into
//! rows that is the same for every number of threads.

use crate::cpu::Cpu;
use crate::element::Stored;
use crate::gemm::{self, Strided};
use crate::micro::{
    Block, ByRows, MAX_WIDTH, for_each_block, load_tile, multiply, store_tile, width,
};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::threads::Jobs;
use attn_core::{HostView, Layout, RowOrder};
use core::ops::Range;

/// Rows of a job: the panel of the right factor is widened once for so many.
const ROWS: usize = 48;
/// Fewer rows read the right factor as it lies: gathering a panel costs about as much as two rows' products.
const PANEL_ROWS: usize = 3;
/// Columns of a job: whole panels of every instruction set, and enough jobs for the threads where rows are few.
const COLUMNS: usize = 256;
/// Depth of a panel: with 32 columns it takes 64 KiB, and the rows beside it 96 KiB, of L2. Sums go on where they stood.
const DEPTH: usize = 512;
/// Rows of one call of matrixmultiply.
const GEMM_ROWS: usize = 256;
/// Bytes to which the panel is aligned.
const ALIGN: usize = 64;

/// Elements of scratch for one worker: widened rows, a panel of the right factor, a bias, a block of results.
const fn worker_scratch<A>(rows: usize, depth: usize) -> usize {
    let rows = if rows < ROWS { rows } else { ROWS };
    let depth = if depth < DEPTH { depth } else { DEPTH };
    (rows + MAX_WIDTH) * depth + rows * COLUMNS + MAX_WIDTH + ALIGN / size_of::<A>()
}

pub(crate) fn scratch<T: Stored>(cpu: &Cpu, rows: usize, depth: usize) -> usize {
    worker_scratch::<T::Acc>(rows, depth).saturating_mul(cpu.threads())
}

/// Rows anywhere, columns contiguous; or the transpose of that.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a, T> {
    data: &'a [T],
    layout: Layout,
    transposed: bool,
}

impl<'a, T: Stored> Matrix<'a, T> {
    pub(crate) fn new(view: &HostView<'a, T>) -> Self {
        Self {
            data: view.buf(),
            layout: *view.layout(),
            transposed: false,
        }
    }

    pub(crate) fn transposed(view: &HostView<'a, T>) -> Self {
        Self {
            transposed: true,
            ..Self::new(view)
        }
    }

    /// A row as it is stored: a column of a transposed matrix.
    fn stored_row(&self, row: usize, columns: Range<usize>) -> &'a [T] {
        let start = row_start(&self.layout, row);
        &self.data[start + columns.start..start + columns.end]
    }

    /// Widens a part of the columns of `row`.
    #[inline(always)]
    fn widen(&self, row: usize, columns: Range<usize>, to: &mut [T::Acc]) {
        if self.transposed {
            for (column, to) in columns.zip(to) {
                *to = self.data[row_start(&self.layout, column) + row].to_acc();
            }
        } else {
            T::widen(self.stored_row(row, columns), to);
        }
    }

    /// The same as evenly spaced elements, if it is.
    fn strided(&self) -> Option<Strided> {
        let rows = even_rows(&self.layout)?;
        Some(if self.transposed {
            Strided {
                row: rows.column,
                column: rows.row,
                ..rows
            }
        } else {
            rows
        })
    }
}

fn row_start(layout: &Layout, row: usize) -> usize {
    layout.base(layout.shape().rank().saturating_sub(1), row)
}

/// First element and strides of evenly spaced rows.
fn even_rows(layout: &Layout) -> Option<Strided> {
    let matrix = layout.as_matrix(1)?;
    Some(Strided {
        first: matrix.offset,
        row: if matrix.rows <= 1 {
            matrix.columns
        } else {
            matrix.row_stride
        },
        column: 1,
    })
}

/// One product.
pub(crate) struct Dense<'a, T: Stored> {
    /// `[rows, depth]`.
    pub(crate) left: Matrix<'a, T>,
    /// `[depth, outputs]`.
    pub(crate) right: Matrix<'a, T>,
    /// `[outputs]`.
    pub(crate) bias: Option<HostView<'a, T>>,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
    pub(crate) outputs: usize,
    pub(crate) out: Shared<'a, T>,
    /// Columns contiguous.
    pub(crate) out_layout: Layout,
    /// Whether the product is added to what is there.
    pub(crate) accumulate: bool,
}

impl<T: Stored> Dense<'_, T> {
    /// Computes it. `scratch` has at least [`scratch`] elements.
    pub(crate) fn run(&self, cpu: &Cpu, row_order: RowOrder, scratch: &mut [T::Acc]) {
        if self.rows == 0 || self.outputs == 0 {
            return;
        }
        if row_order == RowOrder::Any
            && let Some(product) = self.gemm(cpu)
        {
            cpu.run(product.blocks(), scratch, 0, |jobs, _| product.run(jobs));
            return;
        }
        let jobs = self.rows.div_ceil(ROWS) * self.outputs.div_ceil(COLUMNS);
        let each = worker_scratch::<T::Acc>(self.rows, self.depth);
        cpu.run(jobs, scratch, each, |jobs, scratch| {
            cpu.level().dispatch(Worker {
                call: self,
                jobs,
                scratch,
            });
        });
    }

    fn bias_at(&self, column: usize) -> T::Acc {
        self.bias.map_or(T::Acc::default(), |bias| {
            bias.buf()[bias.layout().at(&[column])].to_acc()
        })
    }

    /// A full panel of the right factor as it lies, and its stride, where no widening is needed.
    #[inline(always)]
    fn right_in_place(&self, columns: &Range<usize>, width: usize) -> Option<(&[T::Acc], usize)> {
        if self.right.transposed || columns.len() != width {
            return None;
        }
        let rows = even_rows(&self.right.layout).filter(|rows| rows.row >= width)?;
        let data = T::as_acc(self.right.data)?;
        // Up to the panel's own last element: the last step must not be cut short by the end of the buffer.
        Some((data.get(rows.first + columns.start..)?, rows.row))
    }

    /// The product as one for matrixmultiply, if it is.
    fn gemm(&self, cpu: &Cpu) -> Option<Gemm<'_, T>> {
        if !gemm::serves::<T>(cpu, (self.rows, self.depth, self.outputs)) {
            return None;
        }
        Some(Gemm {
            call: self,
            left: self.left.strided()?,
            right: self.right.strided()?,
            out: even_rows(&self.out_layout).filter(|out| out.row >= self.outputs)?,
        })
    }
}

/// A product by matrixmultiply, cut into blocks of rows.
struct Gemm<'a, T: Stored> {
    call: &'a Dense<'a, T>,
    left: Strided,
    right: Strided,
    out: Strided,
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
            let first = self.out.first + rows.start * self.out.row;
            let last = self.out.first + (rows.end - 1) * self.out.row;
            // SAFETY: `Jobs` gives each block once, and blocks of rows at least as far apart as they are long are disjoint ranges.
            let out = unsafe { call.out.slice(first..last + call.outputs) };
            let left = Strided {
                first: self.left.first + rows.start * self.left.row,
                ..self.left
            };
            let to = Strided {
                first: 0,
                ..self.out
            };
            gemm::multiply(
                (rows.len(), call.depth, call.outputs),
                (call.left.data, left),
                (call.right.data, self.right),
                (out, to),
                call.accumulate,
            );
            self.add_bias(out);
        }
    }

    fn add_bias(&self, out: &mut [T]) {
        const CHUNK: usize = 64;
        if self.call.bias.is_none() {
            return;
        }
        let columns = self.call.outputs;
        for first in (0..columns).step_by(CHUNK) {
            let count = CHUNK.min(columns - first);
            let mut bias = [T::Acc::default(); CHUNK];
            for (column, bias) in (first..first + count).zip(&mut bias) {
                *bias = self.call.bias_at(column);
            }
            for row in out.chunks_mut(self.out.row) {
                for (out, bias) in row[first..first + count].iter_mut().zip(&bias) {
                    *out = T::from_acc(out.to_acc() + *bias);
                }
            }
        }
    }
}

/// One thread's share of the jobs.
struct Worker<'a, 'c, T: Stored> {
    call: &'a Dense<'c, T>,
    jobs: &'a Jobs,
    scratch: &'a mut [T::Acc],
}

/// A worker's scratch, cut.
struct Buffers<'a, A> {
    panel: &'a mut [A],
    bias: &'a mut [A],
    /// Results, one panel's columns after the other.
    block: &'a mut [A],
    left: &'a mut [A],
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
        let depth = call.depth.min(DEPTH);
        let (panel, rest) = self.scratch[skip..].split_at_mut(MAX_WIDTH * depth);
        let (bias, rest) = rest.split_at_mut(MAX_WIDTH);
        let (block, left) = rest.split_at_mut(ROWS.min(call.rows) * COLUMNS);
        let mut buffers = Buffers {
            panel,
            bias,
            block,
            left,
        };
        let groups = call.outputs.div_ceil(COLUMNS);
        while let Some(job) = self.jobs.take() {
            let (row, column) = (job / groups * ROWS, job % groups * COLUMNS);
            let rows = row..(row + ROWS).min(call.rows);
            let columns = column..(column + COLUMNS).min(call.outputs);
            multiply_block(simd, call, rows, columns, &mut buffers);
        }
    }
}

/// One job.
#[inline(always)]
fn multiply_block<S: Simd, T: Stored>(
    simd: S,
    call: &Dense<'_, T>,
    rows: Range<usize>,
    columns: Range<usize>,
    buffers: &mut Buffers<'_, T::Acc>,
) {
    let width = width::<S, T::Acc>();
    let tile = rows.len() * width;
    buffers.block[..columns.len().div_ceil(width) * tile].fill(T::Acc::default());
    for start in (0..call.depth).step_by(DEPTH) {
        let depth = start..(start + DEPTH).min(call.depth);
        for (row, to) in rows.clone().zip(buffers.left.chunks_exact_mut(depth.len())) {
            call.left.widen(row, depth.clone(), to);
        }
        for (panel, block) in panels(&columns, width).zip(buffers.block.chunks_exact_mut(tile)) {
            let in_place = (rows.len() < PANEL_ROWS)
                .then(|| call.right_in_place(&panel, width))
                .flatten();
            let (right, stride) = match in_place {
                Some((right, stride)) => (&right[depth.start * stride..], stride),
                None => {
                    load_panel(call, depth.clone(), panel, width, buffers.panel);
                    (&*buffers.panel, width)
                }
            };
            let mut product = Product {
                left: buffers.left,
                right,
                stride,
                block,
                depth: depth.len(),
            };
            for_each_block::<S, T::Acc, _>(simd, rows.len(), &mut product);
        }
    }
    for (panel, block) in panels(&columns, width).zip(buffers.block.chunks_exact_mut(tile)) {
        for (column, to) in panel.clone().zip(buffers.bias.iter_mut()) {
            *to = call.bias_at(column);
        }
        for (row, from) in rows.clone().zip(block.chunks_exact_mut(width)) {
            let from = &mut from[..panel.len()];
            for (from, bias) in from.iter_mut().zip(buffers.bias.iter()) {
                *from += *bias;
            }
            write_row(call, row, panel.start, from);
        }
    }
}

fn panels(columns: &Range<usize>, width: usize) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns
        .clone()
        .step_by(width)
        .map(move |start| start..(start + width).min(end))
}

/// Columns of the right factor, widened, one tile's width each; columns beyond the last are 0.
#[inline(always)]
fn load_panel<T: Stored>(
    call: &Dense<'_, T>,
    depth: Range<usize>,
    columns: Range<usize>,
    width: usize,
    panel: &mut [T::Acc],
) {
    let panel = &mut panel[..depth.len() * width];
    if call.right.transposed {
        panel.fill(T::Acc::default());
        for (lane, column) in columns.enumerate() {
            let from = call.right.stored_row(column, depth.clone());
            for (to, from) in panel.chunks_exact_mut(width).zip(from) {
                to[lane] = from.to_acc();
            }
        }
        return;
    }
    for (step, to) in depth.zip(panel.chunks_exact_mut(width)) {
        let from = call.right.stored_row(step, columns.clone());
        T::widen(from, &mut to[..from.len()]);
        to[from.len()..].fill(T::Acc::default());
    }
}

#[inline(always)]
#[expect(unsafe_code, reason = "each job writes a block of its own")]
fn write_row<T: Stored>(call: &Dense<'_, T>, row: usize, column: usize, from: &mut [T::Acc]) {
    let start = row_start(&call.out_layout, row) + column;
    // SAFETY: `Jobs` gives each job once, jobs are disjoint in (row, column), a job reaches only its own block, and
    // `ViewMut` guarantees that no two elements share an index.
    let to = unsafe { call.out.slice(start..start + from.len()) };
    if call.accumulate {
        for (from, to) in from.iter_mut().zip(to.iter()) {
            *from += to.to_acc();
        }
    }
    T::narrow(from, to);
}

/// Rows of the left factor times a panel of the right one, added to a tile of results.
struct Product<'a, A> {
    left: &'a [A],
    right: &'a [A],
    /// Elements of `right` from one step to the next.
    stride: usize,
    block: &'a mut [A],
    depth: usize,
}

impl<S: Simd, A: Lane> Block<S> for Product<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let left = ByRows::<A, ROWS>::new(self.left, self.depth, first, self.depth);
        let tile = &mut self.block[first * width..][..ROWS * width];
        let acc = load_tile::<S, A, ROWS>(simd, tile);
        let acc = multiply(simd, self.depth, &left, self.right, self.stride, acc);
        store_tile::<S, A, ROWS>(acc, tile);
    }
}
