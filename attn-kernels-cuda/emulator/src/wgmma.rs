//! Products of a warpgroup: `wgmma`.
//!
//! Each warp computes its sixteen rows. Factors in shared memory are read when the product is waited for, the latest that a device may do
//! it; they are checked when it is issued, the earliest. A wait ends when all four warps of the warpgroup have issued what is waited
//! for: the operation is one of the warpgroup.
//!
//! Sums are as in [`tensor`](crate::tensor).

use crate::{
    block::{Block, Flow},
    finding::{Checked, Fault, FindingKind},
    lanes::LANES,
    program::{Element, GroupFactor, GroupProduct, Row},
    shared::CHUNK,
    tensor::widen,
    warp::Warp,
};
use alloc::{rc::Rc, sync::Arc};

/// Rows of a warp.
const ROWS: usize = 16;
/// The inner index.
const K: usize = 16;
/// Elements of a chunk.
const ELEMENTS: usize = 8;
/// Warps of a warpgroup.
const WARPS: usize = 4;

/// Sixteen bytes of a factor in shared memory: eight elements, along the inner index or across it.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    address: u32,
    /// Row of the left factor or column of the right one.
    outer: u16,
    inner: u8,
}

/// A factor in shared memory.
#[derive(Debug, Clone)]
struct Tile {
    chunks: Rc<[Chunk]>,
    /// Whether the elements of a chunk lie across the inner index.
    across: bool,
}

/// A product that was issued.
#[derive(Debug)]
pub(crate) struct Pending {
    product: Arc<GroupProduct>,
    pc: u32,
    group: u32,
    adds: bool,
    /// The left factor, if it came from registers, with what they held.
    left: Option<Box<[[f32; K]; ROWS]>>,
    held: Option<Box<[[u32; LANES]; 4]>>,
    left_tile: Option<Tile>,
    right_tile: Tile,
    /// The right factor, once it is read: for each inner index its columns.
    right: Option<Rc<Vec<f32>>>,
}

/// Products of a warp that were not waited for.
#[derive(Debug, Default)]
pub(crate) struct Products {
    pending: Vec<Pending>,
    committed: u32,
}

impl Products {
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// The fields of a descriptor.
struct Descriptor {
    start: u32,
    leading: u32,
    stride: u32,
    swizzle: u32,
}

impl Descriptor {
    fn new(bits: u64) -> Checked<Self> {
        let field = |at: u32| (bits >> at & 0x3fff) as u32 * CHUNK as u32;
        let base = bits >> 49 & 7;
        if base != 0 {
            return Err(Fault::new(
                FindingKind::Barrier,
                format!("a descriptor with base offset {base}"),
            ));
        }
        Ok(Self {
            start: field(0),
            leading: field(16),
            stride: field(32),
            swizzle: match bits >> 62 {
                0 => 0,
                1 => 128,
                2 => 64,
                _ => 32,
            },
        })
    }

    /// The address of a chunk; `outer` and `inner` are those of its first element.
    fn address(&self, outer: u32, inner: u32, across: bool) -> Checked<u32> {
        let row = self.swizzle;
        let linear = match (row, across) {
            (0, false) => {
                outer % 8 * CHUNK as u32 + outer / 8 * self.stride + inner / 8 * self.leading
            }
            (0, true) => {
                return Err(Fault::new(
                    FindingKind::Barrier,
                    "a transposed factor without swizzle",
                ));
            }
            (_, false) => outer % 8 * row + outer / 8 * self.stride + inner * 2,
            (_, true) => {
                let width = row / 2;
                outer % width * 2
                    + outer / width * self.leading
                    + inner % 8 * row
                    + inner / 8 * self.stride
            }
        };
        let address = self.start.wrapping_add(linear);
        Ok(match row {
            128 => address ^ ((address >> 7 & 7) << 4),
            64 => address ^ ((address >> 7 & 3) << 4),
            32 => address ^ ((address >> 7 & 1) << 4),
            _ => address,
        })
    }

    fn tile(&self, first: usize, count: usize, across: bool) -> Checked<Tile> {
        let mut chunks = Vec::with_capacity(count * K / ELEMENTS);
        let (outer_step, inner_step) = if across { (ELEMENTS, 1) } else { (1, ELEMENTS) };
        for outer in (0..count).step_by(outer_step) {
            for inner in (0..K).step_by(inner_step) {
                chunks.push(Chunk {
                    address: self.address((first + outer) as u32, inner as u32, across)?,
                    outer: outer as u16,
                    inner: inner as u8,
                });
            }
        }
        Ok(Tile {
            chunks: chunks.into(),
            across,
        })
    }
}

impl Block<'_> {
    /// `wgmma.mma_async`: issues a product.
    pub(crate) fn issue_product(
        &mut self,
        warp: &mut Warp,
        product: &Arc<GroupProduct>,
    ) -> Checked<()> {
        let index = warp.index as usize;
        if (index / WARPS + 1) * WARPS > self.products.len() {
            return Err(Fault::new(
                FindingKind::Divergence,
                "a product of a warpgroup that has no four warps",
            ));
        }
        Warp::need(
            u32::MAX,
            warp.pred_defined(product.adds.row),
            "whether the product is added",
        )?;
        let adds = match warp.p(product.adds) {
            0 => false,
            u32::MAX => true,
            _ => {
                return Err(Fault::new(
                    FindingKind::Divergence,
                    "whether the product is added differs between lanes",
                ));
            }
        };
        for &row in &product.d {
            let defined = warp.defined(row);
            if adds && defined != u32::MAX && !self.is_sum(index, row) {
                return Err(Fault::new(
                    FindingKind::Undefined,
                    "the sum that a product is added to",
                )
                .by((!defined).trailing_zeros() as usize));
            }
        }
        let right =
            Self::descriptor(warp, product.b)?.tile(0, usize::from(product.n), product.b_across)?;
        let (mut left, mut held, mut left_tile) = (None, None, None);
        match &product.a {
            GroupFactor::Shared { row, across } => {
                let first = index % WARPS * ROWS;
                left_tile = Some(Self::descriptor(warp, *row)?.tile(first, ROWS, *across)?);
            }
            GroupFactor::Registers(rows) => {
                for &row in rows {
                    Warp::need(u32::MAX, warp.defined(row), "a factor in registers")?;
                }
                left = Some(Box::new(registers(warp, rows, product.element)));
                held = Some(Box::new(rows.map(|row| *warp.l(row))));
            }
        }
        for tile in left_tile.iter().chain([&right]) {
            for chunk in &*tile.chunks {
                self.shared
                    .begin_product(chunk.address, index, &self.clocks)?;
            }
        }
        for &row in &product.d {
            // Until the product is waited for, its sums are nobody's to read.
            let value = *warp.l(row);
            warp.set_l(row, &value, u32::MAX, 0);
        }
        let group = self.products[index].committed;
        self.products[index].pending.push(Pending {
            product: Arc::clone(product),
            pc: warp.pc,
            group,
            adds,
            left,
            held,
            left_tile,
            right_tile: right,
            right: None,
        });
        Ok(())
    }

    /// Whether a register is a sum of a product under way.
    fn is_sum(&self, warp: usize, row: Row) -> bool {
        self.products[warp]
            .pending
            .iter()
            .any(|pending| pending.product.d.contains(&row))
    }

    fn descriptor(warp: &Warp, row: Row) -> Checked<Descriptor> {
        Warp::need(u32::MAX, warp.wide_defined(row), "a descriptor")?;
        let values = warp.q(row);
        if values.iter().any(|&value| value != values[0]) {
            return Err(Fault::new(
                FindingKind::Divergence,
                "a descriptor differs between lanes",
            ));
        }
        Descriptor::new(values[0])
    }

    /// `wgmma.commit_group`.
    pub(crate) fn commit_products(&mut self, warp: &Warp) {
        self.products[warp.index as usize].committed += 1;
        self.progress += 1;
    }

    /// `wgmma.wait_group`: all but the latest `keep` groups are to be complete.
    pub(crate) fn wait_products(&mut self, warp: &mut Warp, keep: u32) -> Checked<Flow> {
        let index = warp.index as usize;
        let limit = self.products[index].committed.saturating_sub(keep);
        let first = index / WARPS * WARPS;
        let last = (first + WARPS).min(self.products.len());
        if !self.products[index]
            .pending
            .iter()
            .any(|pending| pending.group < limit)
        {
            warp.advance();
            return Ok(Flow::Run);
        }
        if self.products[first..last]
            .iter()
            .any(|other| other.committed < limit)
        {
            return Ok(Flow::Yield);
        }
        let agent = self.clocks.tensor_agent(index / WARPS);
        let mut epoch = None;
        for other in first..last {
            let mut pending = core::mem::take(&mut self.products[other].pending);
            for one in &mut pending {
                if one.group < limit && one.right.is_none() {
                    let epoch = *epoch.get_or_insert_with(|| self.clocks.tick(agent));
                    self.read_factors(one, index / WARPS, epoch);
                }
            }
            self.products[other].pending = pending;
        }
        let known = epoch.unwrap_or_else(|| self.clocks.agent_epoch(agent));
        self.clocks.learn(index, agent, known);
        let (done, rest): (Vec<_>, Vec<_>) = core::mem::take(&mut self.products[index].pending)
            .into_iter()
            .partition(|one| one.group < limit);
        self.products[index].pending = rest;
        for one in &done {
            finish(warp, one)?;
        }
        for one in &done {
            for &row in &one.product.d {
                if !self.is_sum(index, row) {
                    let value = *warp.l(row);
                    warp.set_l(row, &value, u32::MAX, u32::MAX);
                }
            }
        }
        self.progress += 1;
        warp.advance();
        Ok(Flow::Run)
    }

    fn read_factors(&mut self, pending: &mut Pending, group: usize, epoch: u32) {
        let element = pending.product.element;
        if let Some(tile) = pending.left_tile.take() {
            let mut left = Box::new([[0f32; K]; ROWS]);
            for chunk in &*tile.chunks {
                let value = self
                    .shared
                    .end_product(chunk.address, group, epoch, pending.pc);
                for part in 0..ELEMENTS {
                    let x = widen(element, (value >> (16 * part)) as u32);
                    let (outer, inner) = place(chunk, part, tile.across);
                    left[outer][inner] = x;
                }
            }
            pending.left = Some(left);
        }
        let n = usize::from(pending.product.n);
        let mut right = vec![0f32; n * K];
        for chunk in &*pending.right_tile.chunks {
            let value = self
                .shared
                .end_product(chunk.address, group, epoch, pending.pc);
            for part in 0..ELEMENTS {
                let x = widen(element, (value >> (16 * part)) as u32);
                let (outer, inner) = place(chunk, part, pending.right_tile.across);
                right[inner * n + outer] = x;
            }
        }
        pending.right = Some(Rc::new(right));
    }
}

/// Outer and inner index of an element of a chunk.
fn place(chunk: &Chunk, part: usize, across: bool) -> (usize, usize) {
    let (outer, inner) = (usize::from(chunk.outer), usize::from(chunk.inner));
    if across {
        (outer + part, inner)
    } else {
        (outer, inner + part)
    }
}

fn registers(warp: &Warp, rows: &[Row; 4], element: Element) -> [[f32; K]; ROWS] {
    let mut left = [[0f32; K]; ROWS];
    for (index, &row) in rows.iter().enumerate() {
        for (lane, &bits) in warp.l(row).iter().enumerate() {
            let to = &mut left[lane / 4 + 8 * (index % 2)];
            let first = 2 * (lane % 4) + 8 * (index / 2);
            to[first] = widen(element, bits);
            to[first + 1] = widen(element, bits >> 16);
        }
    }
    left
}

/// Computes a product whose factors are read, and writes its sums.
fn finish(warp: &mut Warp, pending: &Pending) -> Checked<()> {
    let product = &*pending.product;
    if let (Some(held), GroupFactor::Registers(rows)) = (&pending.held, &product.a) {
        for (held, &row) in held.iter().zip(rows) {
            if let Some(lane) = (0..LANES).find(|&lane| held[lane] != warp.l(row)[lane]) {
                let mut fault = Fault::new(
                    FindingKind::InFlight,
                    "a register that a product reads was overwritten before the product was waited for",
                );
                fault.other = Some(pending.pc);
                return Err(fault.by(lane));
            }
        }
    }
    let n = usize::from(product.n);
    let (Some(left), Some(right)) = (&pending.left, &pending.right) else {
        return Ok(());
    };
    let mut sums = vec![0f32; ROWS * n];
    if pending.adds {
        for (index, &row) in product.d.iter().enumerate() {
            for (lane, &bits) in warp.l(row).iter().enumerate() {
                let (r, c) = sum_place(index, lane);
                sums[r * n + c] = f32::from_bits(bits);
            }
        }
    }
    for (sums, left) in sums.chunks_exact_mut(n).zip(left.iter()) {
        for (&x, right) in left.iter().zip(right.chunks_exact(n)) {
            let x = x * product.scale_a * product.scale_b;
            for (sum, &y) in sums.iter_mut().zip(right) {
                *sum += x * y;
            }
        }
    }
    for (index, &row) in product.d.iter().enumerate() {
        if warp.defined(row) != 0 {
            let mut fault = Fault::new(
                FindingKind::InFlight,
                "a sum of a product was overwritten before the product was waited for",
            );
            fault.other = Some(pending.pc);
            return Err(fault);
        }
        let value = core::array::from_fn(|lane| {
            let (r, c) = sum_place(index, lane);
            sums[r * n + c].to_bits()
        });
        warp.set_l(row, &value, u32::MAX, 0);
    }
    Ok(())
}

/// Row and column of a register's lane in the sums of a warp.
fn sum_place(index: usize, lane: usize) -> (usize, usize) {
    (
        lane / 4 + 8 * (index / 2 % 2),
        8 * (index / 4) + 2 * (lane % 4) + index % 2,
    )
}
