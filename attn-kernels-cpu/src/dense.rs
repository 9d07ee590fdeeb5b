//! Products of matrices, `out = left · right + bias`, either of them transposed, or the right one packed beforehand; several right
//! factors of one left factor at once.
//!
//! A job is some rows times some columns. Panels of the right factor as wide as a register tile are gathered into scratch
//! once a job, or lie packed; a block of rows of the left factor is copied once for all panels. For each panel the tiles go
//! over slices of the depth that L1 holds:
//!
//! ```text
//! for each chunk of the depth:                     one, unless the depth is above 1024
//!     gather the job's panels                      unless packed, or so few rows that they are read as they lie
//!     for each block of rows:
//!         copy the block
//!         for each panel, for each slice:  sums += block[.., slice] · panel[slice, ..]
//! ```
//!
//! Every output is one chain over the depth in order, so its bits do not depend on the cut into jobs, blocks and slices, nor on
//! packing; only matrixmultiply, which `RowOrder::Any` allows for large `f64` products, sums in its own order.

mod cut;

use self::cut::{Cut, SLICE, padded};
use crate::buffers::aligned;
use crate::cpu::Cpu;
use crate::element::Stored;
use crate::gemm::Gemm;
use crate::matrix::{Matrix, Rows};
use crate::micro::{
    Block, MAX_WIDTH, Packed, VECTORS, for_each_block, load_row, load_tile, multiply, store_row,
    store_tile, width, zeros,
};
use crate::shared::Shared;
use crate::simd::{Kernel, Lane, Simd};
use crate::threads::{Jobs, Work};
use attn_core::{HostView, RowOrder};
use core::ops::Range;

/// Fewer rows read the right factor as it lies: gathering a panel costs about as much as two rows' products.
const PANEL_ROWS: usize = 3;
/// A right factor of at most so many elements is read as it lies by any number of rows: it stays in L1.
const SMALL: usize = 4096;
/// The right factor, `[depth, outputs]`.
#[derive(Clone, Copy)]
#[expect(
    clippy::large_enum_variant,
    reason = "without an allocator there is no box for the larger one"
)]
pub(crate) enum Right<'a, T> {
    /// As it lies.
    Matrix(Matrix<'a, T>),
    /// Panels of [`width`] columns one after the other, `[panel][depth][width]`, filled up with zeros.
    Packed(&'a [T]),
}

/// The output, `[rows, outputs]`.
pub(crate) struct Target<'a, T> {
    pub(crate) out: Shared<'a, T>,
    pub(crate) rows: Rows,
    /// Whether the product is added to what is there.
    pub(crate) accumulate: bool,
}

/// A right factor and what becomes of its product.
pub(crate) struct Part<'a, T: Stored> {
    pub(crate) right: Right<'a, T>,
    /// `[outputs]`.
    pub(crate) bias: Option<HostView<'a, T>>,
    pub(crate) outputs: usize,
    pub(crate) to: Target<'a, T>,
}

/// Most products of one left factor that are computed together: query, key and value.
pub(crate) const MAX_PARTS: usize = 3;

/// The parts that there are, without gaps.
pub(crate) type Parts<'a, T> = [Option<Part<'a, T>>; MAX_PARTS];

/// Products of one left factor, `[rows, depth]`.
pub(crate) struct Dense<'a, T: Stored> {
    pub(crate) left: Matrix<'a, T>,
    pub(crate) parts: Parts<'a, T>,
    pub(crate) rows: usize,
    pub(crate) depth: usize,
}

/// Scratch of `count` products of one left factor, their right factors packed or not.
pub(crate) fn scratch<T: Stored>(
    cpu: &Cpu,
    rows: usize,
    depth: usize,
    outputs: usize,
    count: usize,
) -> usize {
    let columns = padded(outputs).saturating_mul(count);
    let most = [false, true]
        .map(|packed| Cut::new(cpu, rows, depth, columns, packed).worker_scratch::<T::Acc>());
    most[0].max(most[1]).saturating_mul(cpu.threads())
}

impl<T: Stored> Dense<'_, T> {
    /// Computes it. `scratch` has at least [`scratch`] elements.
    pub(crate) fn run(&self, cpu: &Cpu, row_order: RowOrder, scratch: &mut [T::Acc]) {
        let columns: usize = self.parts().map(|part| padded(part.outputs)).sum();
        if self.rows == 0 || columns == 0 {
            return;
        }
        let operations = (self.rows.saturating_mul(self.depth)).saturating_mul(columns);
        if row_order == RowOrder::Any
            && let Some(product) = Gemm::new(cpu, self)
        {
            let work = Work {
                jobs: product.blocks(),
                operations,
            };
            cpu.run(work, scratch, 0, |jobs, _| product.run(jobs));
            return;
        }
        let packed = |part: &&Part<'_, T>| matches!(part.right, Right::Packed(_));
        let cut = Cut::new(
            cpu,
            self.rows,
            self.depth,
            columns,
            self.parts().all(|part| packed(&part)),
        );
        let each = cut.worker_scratch::<T::Acc>();
        cpu.run(
            Work {
                jobs: cut.jobs(self.rows, columns),
                operations,
            },
            scratch,
            each,
            |jobs, scratch| {
                cpu.level().dispatch(Worker {
                    call: self,
                    cut,
                    columns,
                    jobs,
                    scratch,
                });
            },
        );
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = &Part<'_, T>> {
        self.parts.iter().flatten()
    }

    /// The panels of some columns, counted over all parts.
    #[inline(always)]
    fn panels(&self, columns: Range<usize>, width: usize) -> impl Iterator<Item = Panel<'_, T>> {
        let numbered = columns.step_by(width).enumerate();
        numbered.filter_map(move |(number, mut first)| {
            for (index, part) in self.parts().enumerate() {
                if first < padded(part.outputs) {
                    let columns = first..(first + width).min(part.outputs);
                    return (!columns.is_empty()).then_some(Panel {
                        number,
                        index,
                        part,
                        columns,
                    });
                }
                first -= padded(part.outputs);
            }
            None
        })
    }
}

/// As many columns as a tile is wide.
struct Panel<'a, T: Stored> {
    /// Its number in the job.
    number: usize,
    /// Its part, and the number of that.
    index: usize,
    part: &'a Part<'a, T>,
    /// Its columns in the part.
    columns: Range<usize>,
}

impl<T: Stored> Part<'_, T> {
    /// The bias of some columns; 0 where there is none.
    #[inline(always)]
    pub(crate) fn load_bias(&self, columns: &Range<usize>, to: &mut [T::Acc]) {
        let Some(bias) = &self.bias else {
            to.fill(T::Acc::default());
            return;
        };
        let (first, stride) = (bias.layout().offset(), bias.layout().strides()[0]);
        for (column, to) in columns.clone().zip(to) {
            *to = bias.buf()[first + column * stride].to_acc();
        }
    }

    /// How the panels of a job come to the tiles.
    fn source(&self, rows: usize, depth: usize, width: usize) -> Source<'_, T> {
        match &self.right {
            Right::Packed(panels) => Source::Packed(panels),
            Right::Matrix(right) => {
                let few = rows < PANEL_ROWS || depth * self.outputs <= SMALL;
                match (T::as_acc(right.data), right.rows.even()) {
                    (Some(data), Some((first, distance)))
                        if few && !right.transposed && self.outputs.is_multiple_of(width) =>
                    {
                        Source::InPlace {
                            data: &data[first.min(data.len())..],
                            distance,
                        }
                    }
                    _ => Source::Gathered(right),
                }
            }
        }
    }
}

/// Where the tiles read the right factor.
enum Source<'a, T: Stored> {
    /// Packed in whole.
    Packed(&'a [T]),
    /// Gathered once a job and chunk.
    Gathered(&'a Matrix<'a, T>),
    /// As it lies.
    InPlace { data: &'a [T::Acc], distance: usize },
}

/// One thread's share of the jobs.
struct Worker<'a, 'c, T: Stored> {
    call: &'a Dense<'c, T>,
    cut: Cut,
    /// Columns of all parts.
    columns: usize,
    jobs: &'a Jobs,
    scratch: &'a mut [T::Acc],
}

/// A worker's scratch, cut.
struct Buffers<'a, A> {
    panels: &'a mut [A],
    bias: &'a mut [A],
    left: &'a mut [A],
    /// `[panel][row][width]`.
    sums: &'a mut [A],
}

impl<T: Stored> Kernel for Worker<'_, '_, T>
where
    T::Acc: Lane,
{
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (call, cut) = (self.call, self.cut);
        let (panels, rest) = aligned(self.scratch).split_at_mut(cut.panels);
        let (bias, rest) = rest.split_at_mut(MAX_WIDTH);
        let (sums, left) = rest.split_at_mut(cut.waiting * cut.held);
        let mut buffers = Buffers {
            panels,
            bias,
            left,
            sums,
        };
        let groups = self.columns.div_ceil(cut.columns);
        while let Some(job) = self.jobs.take() {
            let (row, column) = (job / groups * cut.rows, job % groups * cut.columns);
            let job = Area {
                rows: row..(row + cut.rows).min(call.rows),
                columns: column..(column + cut.columns).min(self.columns),
            };
            run_job(simd, call, &cut, &job, &mut buffers);
        }
    }
}

/// Rows, and columns counted over all parts.
struct Area {
    rows: Range<usize>,
    columns: Range<usize>,
}

#[inline(always)]
fn run_job<S: Simd, T: Stored>(
    simd: S,
    call: &Dense<'_, T>,
    cut: &Cut,
    job: &Area,
    buffers: &mut Buffers<'_, T::Acc>,
) {
    let width = width::<S, T::Acc>();
    let mut sources = [const { None }; MAX_PARTS];
    for (source, part) in sources.iter_mut().zip(call.parts()) {
        *source = Some(part.source(job.rows.len(), call.depth, width));
    }
    for chunk in pieces(0..call.depth.max(1), cut.chunk.max(1)) {
        // A product over no depth is the bias.
        let chunk = chunk.start..chunk.end.min(call.depth);
        for panel in call.panels(job.columns.clone(), width) {
            if let Some(Source::Gathered(right)) = &sources[panel.index] {
                let to = &mut buffers.panels[panel.number * chunk.len() * width..];
                right.widen_panel(simd, chunk.clone(), panel.columns, width, to);
            }
        }
        for (number, rows) in pieces(job.rows.clone(), cut.block).enumerate() {
            let block = Step {
                rows,
                chunk: chunk.clone(),
                // Sums that wait for the next chunk have a place each.
                first_sum: number * cut.block * cut.held * usize::from(chunk.len() < call.depth),
            };
            multiply_block(simd, call, &sources, &block, job, buffers);
        }
    }
}

/// A block of rows and a chunk of the depth.
struct Step {
    rows: Range<usize>,
    chunk: Range<usize>,
    first_sum: usize,
}

#[inline(always)]
fn multiply_block<S: Simd, T: Stored>(
    simd: S,
    call: &Dense<'_, T>,
    sources: &[Option<Source<'_, T>>; MAX_PARTS],
    block: &Step,
    job: &Area,
    buffers: &mut Buffers<'_, T::Acc>,
) {
    let width = width::<S, T::Acc>();
    let (rows, chunk) = (block.rows.clone(), block.chunk.clone());
    for_each_block::<S, T::Acc, _>(
        simd,
        rows.len(),
        &mut Pack {
            left: &call.left,
            first: rows.start,
            chunk: chunk.clone(),
            to: buffers.left,
        },
    );
    let several = chunk.len() < call.depth;
    for panel in call.panels(job.columns.clone(), width) {
        let (number, columns) = (panel.number, &panel.columns);
        let slot = block.first_sum
            + if several {
                number * rows.len() * width
            } else {
                0
            };
        let sums = &mut buffers.sums[slot..][..rows.len() * width];
        if chunk.is_empty() {
            sums.fill(T::Acc::default());
        }
        for slice in pieces(chunk.clone(), SLICE) {
            let within = slice.start - chunk.start;
            let (right, distance) = match &sources[panel.index] {
                Some(Source::InPlace { data, distance }) => {
                    (&data[slice.start * distance + columns.start..], *distance)
                }
                Some(Source::Gathered(_)) | None => {
                    let panel = &buffers.panels[number * chunk.len() * width..];
                    (&panel[within * width..], width)
                }
                Some(Source::Packed(panels)) => {
                    let first = (columns.start / width * call.depth + slice.start) * width;
                    let packed = &panels[first..first + slice.len() * width];
                    let packed = T::as_acc(packed).unwrap_or_else(|| {
                        let wide = &mut buffers.panels[..packed.len()];
                        T::widen(packed, wide);
                        wide
                    });
                    (packed, width)
                }
            };
            let mut product = Product {
                left: buffers.left,
                chunk: chunk.len(),
                within,
                right,
                distance,
                sums,
                depth: slice.len(),
                fresh: slice.start == 0,
            };
            for_each_block::<S, T::Acc, _>(simd, rows.len(), &mut product);
        }
        if chunk.end == call.depth {
            panel.part.load_bias(columns, buffers.bias);
            write_panel(simd, panel.part, &rows, columns, sums, buffers.bias);
        }
    }
}

/// A range cut into pieces of a length.
fn pieces(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    range
        .step_by(length)
        .map(move |start| start..(start + length).min(end))
}

/// Adds the bias to the sums of a panel, and writes them.
#[inline(always)]
#[expect(unsafe_code, reason = "each job writes a block of its own")]
fn write_panel<S: Simd, T: Stored>(
    simd: S,
    part: &Part<'_, T>,
    rows: &Range<usize>,
    columns: &Range<usize>,
    sums: &mut [T::Acc],
    bias: &[T::Acc],
) {
    let (to, width) = (&part.to, width::<S, T::Acc>());
    let bias = load_row::<S, T::Acc, VECTORS>(simd, bias);
    // Where a whole row of the tile lies side by side it is stored as it is.
    let whole = to.rows.pieces(columns.clone()).next();
    let whole = whole.filter(|(piece, _)| piece.len() == width && !to.accumulate);
    let whole = whole.map(|(_, place)| place);
    for (start, sums) in (to.rows.starts(rows.clone())).zip(sums.chunks_exact_mut(width)) {
        let [a, b] = load_row::<S, T::Acc, VECTORS>(simd, sums);
        let sum = [a + bias[0], b + bias[1]];
        if let Some(place) = whole {
            // SAFETY: `Jobs` gives each job once, jobs are disjoint in (part, row, column), the row of a panel lies side by side (`whole`), so
            // the slice holds nothing else, it is dropped before the next is made, and `ViewMut` guarantees that no two elements share an
            // index.
            let out = unsafe { to.out.slice(start + place..start + place + width) };
            if let Some(out) = T::as_acc_mut(out) {
                store_row::<S, T::Acc, VECTORS>(&sum, out);
                continue;
            }
        }
        store_row::<S, T::Acc, VECTORS>(&sum, sums);
        for (piece, place) in to.rows.pieces(columns.clone()) {
            let from = &mut sums[piece.start - columns.start..piece.end - columns.start];
            // SAFETY: `Jobs` gives each job once, jobs are disjoint in (part, row, column), a job reaches only its own block, a piece
            // lies side by side, so the slice holds nothing else, and `ViewMut` guarantees that no two elements share an index.
            let out = unsafe { to.out.slice(start + place..start + place + piece.len()) };
            if to.accumulate {
                for (from, out) in from.iter_mut().zip(out.iter()) {
                    *from += out.to_acc();
                }
            }
            narrow_short::<T>(from, out);
        }
    }
}

/// Rounds a few elements, by pieces of constant length as [`Matrix::widen_panel`] widens them.
#[inline(always)]
fn narrow_short<T: Stored>(from: &[T::Acc], to: &mut [T]) {
    const PIECE: usize = 8;
    let (pieces, rest) = from.as_chunks::<PIECE>();
    let (to_pieces, to_rest) = to.as_chunks_mut::<PIECE>();
    for (from, to) in pieces.iter().zip(to_pieces) {
        T::narrow(from, to);
    }
    for (from, to) in rest.iter().zip(to_rest) {
        *to = T::from_acc(*from);
    }
}

/// Copies a block of the left factor for its tiles: `[tile][chunk][rows of the tile]`.
struct Pack<'a, 'c, T: Stored> {
    left: &'a Matrix<'c, T>,
    first: usize,
    chunk: Range<usize>,
    to: &'a mut [T::Acc],
}

impl<S: Simd, T: Stored> Block<S> for Pack<'_, '_, T> {
    const PACKED: bool = true;

    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let to = &mut self.to[first * self.chunk.len()..][..ROWS * self.chunk.len()];
        self.left
            .pack::<S, ROWS>(simd, self.first + first, self.chunk.clone(), to);
    }
}

/// Rows of the left factor times a slice of a panel, added to sums.
struct Product<'a, A> {
    /// As [`Pack`] makes it.
    left: &'a [A],
    /// Depth of `left`, and where the slice begins in it.
    chunk: usize,
    within: usize,
    right: &'a [A],
    /// Elements of `right` from one step to the next.
    distance: usize,
    sums: &'a mut [A],
    depth: usize,
    /// Whether the sums begin here.
    fresh: bool,
}

impl<S: Simd, A: Lane> Block<S> for Product<'_, A> {
    const PACKED: bool = true;

    #[inline(always)]
    fn run<const ROWS: usize>(&mut self, simd: S, first: usize) {
        let width = width::<S, A>();
        let left = Packed(&self.left[first * self.chunk + self.within * ROWS..]);
        let sums = &mut self.sums[first * width..][..ROWS * width];
        let acc = match self.fresh {
            true => zeros::<S, A, ROWS, VECTORS>(simd),
            false => load_tile::<S, A, ROWS>(simd, sums),
        };
        let acc = match self.distance == width {
            // A constant distance needs no multiplications of addresses.
            true => multiply(simd, self.depth, &left, self.right, width, acc),
            false => multiply(simd, self.depth, &left, self.right, self.distance, acc),
        };
        store_tile::<S, A, ROWS>(acc, sums);
    }
}
