//! The product of two matrices of rows, `out = left · right + bias`, either of them transposed.
//!
//! A job is a block of rows times a group of columns. Within it, panels of the right factor as wide as a register tile are
//! widened (or only gathered) into scratch once and used for all rows of the block; few rows read the right factor as it
//! lies. Every output is one chain over the depth in order, so its bits do not depend on the cut into jobs; only
//! matrixmultiply, which `RowOrder::Any` allows for large `f64` products, sums in its own order, on a cut into
//! rows that is the same for every number of threads.

use crate::buffers::{aligned, margin};
use crate::cpu::Cpu;
use crate::element::Stored;
use crate::gemm::{self, Strided};
use crate::micro::{
    Block, ByColumns, ByRows, Left, MAX_ROWS, MAX_WIDTH, for_each_block, load_tile, multiply,
    store_tile, width,
};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::threads::Jobs;
use attn_core::{HostView, Layout, RowOrder};
use core::ops::Range;

/// Most rows of a job: the panel of the right factor is gathered once for so many. Their results, 384 × 256 × 4 bytes = 384 KiB,
/// and a block of the left factor, 288 KiB, stay in L2.
const ROWS: usize = 384;
/// Fewest rows of a job where there are threads to keep busy.
const MIN_ROWS: usize = 48;
/// Fewer rows read the right factor as it lies: gathering a panel costs about as much as two rows' products.
const PANEL_ROWS: usize = 3;
/// Columns of a job: whole panels of every instruction set, and enough jobs for the threads where rows are few.
const COLUMNS: usize = 256;
/// Depth of a panel: 192 × 32 × 4 bytes = 24 KiB of L1, and 6 KiB for eight rows of the left factor. Sums go on where they
/// stood.
const DEPTH: usize = 192;
/// Rows of one call of matrixmultiply.
const GEMM_ROWS: usize = 256;
/// How a product is cut into jobs. The cut changes no bit of the result.
#[derive(Clone, Copy)]
struct Cut {
    /// Rows of a job.
    rows: usize,
    /// Columns of a job's block, whole panels.
    columns: usize,
    /// Depth of a panel.
    depth: usize,
}

impl Cut {
    fn new(cpu: &Cpu, rows: usize, depth: usize, outputs: usize) -> Self {
        let groups = outputs.div_ceil(COLUMNS).max(1);
        // Twice as many jobs as threads, if the rows allow it.
        let per_job = (rows.div_ceil(2 * cpu.threads())).saturating_mul(groups);
        let most = match cpu.threads() {
            1 => ROWS,
            _ => per_job.min(ROWS).next_multiple_of(MAX_ROWS).max(MIN_ROWS),
        };
        Self {
            rows: rows.min(most),
            columns: outputs.min(COLUMNS).next_multiple_of(MAX_WIDTH),
            depth: depth.min(DEPTH),
        }
    }

    /// Elements of scratch for one worker: widened rows, a panel of the right factor, a bias, a block of results.
    fn worker_scratch<A>(&self) -> usize {
        (self.rows + MAX_WIDTH) * self.depth + self.rows * self.columns + MAX_WIDTH + margin::<A>()
    }
}

pub(crate) fn scratch<T: Stored>(cpu: &Cpu, rows: usize, depth: usize, outputs: usize) -> usize {
    let cut = Cut::new(cpu, rows, depth, outputs);
    cut.worker_scratch::<T::Acc>().saturating_mul(cpu.threads())
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

    /// Widens a block as it is stored, row after row: `[rows][columns]`, or `[columns][rows]` of a transposed matrix.
    #[inline(always)]
    fn widen(&self, rows: Range<usize>, columns: Range<usize>, to: &mut [T::Acc]) {
        let (stored, along) = match self.transposed {
            true => (columns, rows),
            false => (rows, columns),
        };
        for (row, to) in stored.zip(to.chunks_exact_mut(along.len())) {
            T::widen(self.stored_row(row, along.clone()), to);
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
        let cut = Cut::new(cpu, self.rows, self.depth, self.outputs);
        let jobs = self.rows.div_ceil(cut.rows) * self.outputs.div_ceil(COLUMNS);
        let each = cut.worker_scratch::<T::Acc>();
        cpu.run(jobs, scratch, each, |jobs, scratch| {
            cpu.level().dispatch(Worker {
                call: self,
                cut,
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
    cut: Cut,
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
        let (call, cut) = (self.call, self.cut);
        let (panel, rest) = aligned(self.scratch).split_at_mut(MAX_WIDTH * cut.depth);
        let (bias, rest) = rest.split_at_mut(MAX_WIDTH);
        let (block, left) = rest.split_at_mut(cut.rows * cut.columns);
        let mut buffers = Buffers {
            panel,
            bias,
            block,
            left,
        };
        let groups = call.outputs.div_ceil(COLUMNS);
        while let Some(job) = self.jobs.take() {
            let (row, column) = (job / groups * cut.rows, job % groups * COLUMNS);
            let rows = row..(row + cut.rows).min(call.rows);
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
        call.left.widen(rows.clone(), depth.clone(), buffers.left);
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
                left: &*buffers.left,
                rows: rows.len(),
                right,
                stride,
                block,
                depth: depth.len(),
            };
            match call.left.transposed {
                true => {
                    let mut product = OfColumns(product);
                    for_each_block::<S, T::Acc, _>(simd, rows.len(), &mut product);
                }
                false => for_each_block::<S, T::Acc, _>(simd, rows.len(), &mut product),
            }
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
    // SAFETY: `Jobs` gives each job once, jobs are disjoint in (row, column), a job reaches only its own block, columns are
    // contiguous (the callers check it), so the slice holds nothing else, and `ViewMut` guarantees that no two elements share
    // an index.
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
    /// `[rows][depth]`.
    left: &'a [A],
    rows: usize,
    right: &'a [A],
    /// Elements of `right` from one step to the next.
    stride: usize,
    block: &'a mut [A],
    depth: usize,
}

/// The same of a left factor that lies transposed, `[depth][rows]`.
struct OfColumns<'a, A>(Product<'a, A>);

impl<A: Lane> Product<'_, A> {
    #[inline(always)]
    fn add<S: Simd, L: Left<A, ROWS>, const ROWS: usize>(
        &mut self,
        simd: S,
        first: usize,
        left: &L,
    ) {
        let width = width::<S, A>();
        let tile = &mut self.block[first * width..][..ROWS * width];
        let acc = load_tile::<S, A, ROWS>(simd, tile);
        let acc = multiply(simd, self.depth, left, self.right, self.stride, acc);
        store_tile::<S, A, ROWS>(acc, tile);
    }
}

impl<S: Simd, A: Lane> Block<S> for Product<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let left = ByRows::<A, ROWS>::new(self.left, self.depth, first, self.depth);
        self.add(simd, first, &left);
    }
}

impl<S: Simd, A: Lane> Block<S> for OfColumns<'_, A> {
    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let left = ByColumns {
            matrix: self.0.left,
            stride: self.0.rows,
            first,
        };
        self.0.add::<S, _, ROWS>(simd, first, &left);
    }
}
