//! The copy engine: boxes of an array into shared memory and back, as tensor maps describe them.
//!
//! A copy to shared memory comes in when its barrier object is waited for, the latest that a device may do it.

use crate::{
    access::resolve,
    block::Block,
    finding::{Checked, Fault, FindingKind},
    global::Strength,
    lanes::lanes_of,
    program::{Address, Reg, Row},
    shared::{Access, CHUNK},
    warp::Warp,
};
use attn_kernels_cuda::driver::TensorMap;

/// Marks what [`encode`] made.
const MAGIC: u64 = 0x7465_6e73_6f72_6d70;
/// Bytes of a row of a box, within which chunks are swizzled.
const ROW: usize = 128;
/// Bytes of an element.
const ELEMENT: usize = 2;

/// A tensor map as the emulator's copy engine reads it: the fields one after another.
///
/// # Errors
///
/// What the copy engine could not do.
pub(crate) fn encode(map: &TensorMap) -> Result<[u64; 16], String> {
    if !map.address.is_multiple_of(16) {
        return Err(format!("address {:#x} is no multiple of 16", map.address));
    }
    if let Some(stride) = map
        .strides
        .iter()
        .find(|&&stride| !stride.is_multiple_of(16) || stride >= 1 << 40)
    {
        return Err(format!("stride {stride} is no multiple of 16 below 2^40"));
    }
    if map
        .dims
        .iter()
        .any(|&length| length == 0 || length > 1 << 32)
    {
        return Err(format!("axis lengths {:?}", map.dims));
    }
    if map
        .box_dims
        .iter()
        .any(|&length| length == 0 || length > 256)
        || map.box_dims[0] as usize * ELEMENT > ROW
    {
        return Err(format!("a box of {:?}", map.box_dims));
    }
    let mut words = [0; 16];
    words[0] = map.address;
    words[1..5].copy_from_slice(&map.dims);
    words[5..8].copy_from_slice(&map.strides);
    for (word, &length) in words[8..12].iter_mut().zip(&map.box_dims) {
        *word = u64::from(length);
    }
    words[12] = u64::from(map.is_bf16);
    words[15] = MAGIC;
    Ok(words)
}

/// A box that is on its way.
#[derive(Debug, Clone)]
pub(crate) struct BoxCopy {
    map: TensorMap,
    at: [i64; 4],
    shared: u32,
    /// The barrier object that counts its bytes.
    barrier: u32,
    pc: u32,
    thread: u32,
}

/// Where chunk `chunk` of row `row` of a box at `start` lies: rows of 128 bytes, chunks swizzled by the address.
fn swizzled(start: u32, row: usize, chunk: usize) -> u32 {
    let linear = start + (row * ROW + chunk * CHUNK) as u32;
    linear ^ ((linear >> 7 & 7) << 4)
}

impl BoxCopy {
    fn bytes(&self) -> usize {
        self.rows() * self.row_bytes()
    }

    fn rows(&self) -> usize {
        self.map.box_dims[1..]
            .iter()
            .map(|&length| length as usize)
            .product()
    }

    fn row_bytes(&self) -> usize {
        self.map.box_dims[0] as usize * ELEMENT
    }

    /// The address in global memory of the first element of a row of the box, unless the row is outside the array.
    fn row_address(&self, row: usize) -> Option<u64> {
        let mut rest = row as i64;
        let mut address = self.map.address;
        for axis in 1..4 {
            let length = i64::from(self.map.box_dims[axis]);
            let index = self.at[axis] + rest % length;
            rest /= length;
            if index < 0 || index as u64 >= self.map.dims[axis] {
                return None;
            }
            address += index as u64 * self.map.strides[axis - 1];
        }
        Some(address)
    }
}

impl Block<'_> {
    fn tensor_map_at(&mut self, address: u64) -> Checked<TensorMap> {
        let (window, address) = resolve(crate::program::Window::Generic, address);
        if !address.is_multiple_of(64) {
            return Err(Fault::new(
                FindingKind::Misaligned,
                format!("a tensor map at {address:#x}, which is no multiple of 64"),
            ));
        }
        let mut words = [0u64; 16];
        for (index, word) in words.iter_mut().enumerate() {
            let at = address + 8 * index as u64;
            *word = match window {
                crate::program::Window::Param => self.param(at, 8)?,
                crate::program::Window::Global => self.global.load(at, 8, 8, Strength::Plain)?,
                _ => {
                    return Err(Fault::new(
                        FindingKind::Wild,
                        "a tensor map that is neither a parameter nor in global memory",
                    ));
                }
            } as u64;
        }
        if words[15] != MAGIC {
            return Err(Fault::new(
                FindingKind::Wild,
                format!("{address:#x} is no tensor map"),
            ));
        }
        Ok(TensorMap {
            address: words[0],
            dims: [words[1], words[2], words[3], words[4]],
            strides: [words[5], words[6], words[7]],
            box_dims: [
                words[8] as u32,
                words[9] as u32,
                words[10] as u32,
                words[11] as u32,
            ],
            is_bf16: words[12] != 0,
        })
    }

    /// `cp.async.bulk.tensor` to shared memory: begins the copy.
    pub(crate) fn box_copy(
        &mut self,
        warp: &Warp,
        m: u32,
        to: &Address,
        map: Reg,
        coordinates: &[Row],
        barrier: &Address,
    ) -> Checked<()> {
        Self::need_address(warp, to, m)?;
        Self::need_address(warp, barrier, m)?;
        Warp::need(m, warp.reg_defined(map), "the address of the tensor map")?;
        for &row in coordinates {
            Warp::need(m, warp.defined(row), "a coordinate of the box")?;
        }
        for lane in lanes_of(m) {
            self.box_copy_of(warp, lane, to, map, coordinates, barrier)
                .map_err(|fault| fault.by(lane))?;
        }
        Ok(())
    }

    fn box_copy_of(
        &mut self,
        warp: &Warp,
        lane: usize,
        to: &Address,
        map: Reg,
        coordinates: &[Row],
        barrier: &Address,
    ) -> Checked<()> {
        let map = self.tensor_map_at(warp.get(map, lane))?;
        let (_, shared) = resolve(to.window, Self::address(warp, to, lane));
        let (_, barrier) = resolve(barrier.window, Self::address(warp, barrier, lane));
        if !shared.is_multiple_of(ROW as u64) {
            return Err(Fault::new(
                FindingKind::Misaligned,
                format!("a box at byte {shared} of shared memory, which is no multiple of {ROW}"),
            ));
        }
        self.check_copy_barrier(warp, lane, barrier)?;
        let mut at = [0; 4];
        for (at, &row) in at.iter_mut().zip(coordinates) {
            *at = i64::from(warp.l(row)[lane] as i32);
        }
        let copy = BoxCopy {
            map,
            at,
            shared: shared as u32,
            barrier: barrier as u32,
            pc: warp.pc,
            thread: 32 * warp.index + lane as u32,
        };
        let by = Access {
            warp: warp.index as usize,
            lane,
            pc: warp.pc,
        };
        // Rows of a box are 128 bytes apart only if they are that long: a shorter one is another layout.
        if copy.row_bytes() != ROW {
            return Err(Fault::new(
                FindingKind::Launch,
                format!("a box with rows of {} bytes", copy.row_bytes()),
            ));
        }
        for row in 0..copy.rows() {
            for chunk in 0..copy.row_bytes() / CHUNK {
                self.shared.begin_copy(
                    u64::from(swizzled(copy.shared, row, chunk)),
                    CHUNK,
                    CHUNK,
                    &by,
                    &self.clocks,
                )?;
            }
        }
        self.boxes.push(copy);
        Ok(())
    }

    /// Lets the copies that count at a barrier object come in.
    pub(crate) fn land(&mut self, barrier: u32) -> Checked<()> {
        if !self.boxes.iter().any(|copy| copy.barrier == barrier) {
            return Ok(());
        }
        let boxes = core::mem::take(&mut self.boxes);
        let (landing, rest): (Vec<_>, Vec<_>) =
            boxes.into_iter().partition(|copy| copy.barrier == barrier);
        self.boxes = rest;
        let agent = self
            .objects
            .get(&barrier)
            .map_or(self.clocks.copy_agent(0), |object| object.agent);
        let epoch = self.clocks.tick(agent);
        for copy in landing {
            for row in 0..copy.rows() {
                let source = copy.row_address(row);
                for chunk in 0..copy.row_bytes() / CHUNK {
                    let value = self.chunk(&copy, source, chunk)?;
                    let to = swizzled(copy.shared, row, chunk);
                    self.shared
                        .end_copy(u64::from(to), CHUNK, value, agent, epoch, copy.pc);
                }
            }
            self.barrier_bytes(barrier, copy.bytes() as i64, epoch)?;
        }
        Ok(())
    }

    /// Sixteen bytes of a row of a box, zeros outside the array.
    fn chunk(&mut self, copy: &BoxCopy, row: Option<u64>, chunk: usize) -> Checked<u128> {
        let Some(row) = row else {
            return Ok(0);
        };
        let first = copy.at[0] + (chunk * CHUNK / ELEMENT) as i64;
        let length = copy.map.dims[0] as i64;
        let elements = (CHUNK / ELEMENT) as i64;
        let fail = |mut fault: Box<Fault>| {
            fault.message = format!("{} (read by the copy engine)", fault.message);
            fault.other = Some(copy.pc);
            fault.by(copy.thread as usize % 32)
        };
        if first >= 0 && first + elements <= length {
            let address = row + first as u64 * ELEMENT as u64;
            return self
                .global
                .load(address, CHUNK, ELEMENT, Strength::Plain)
                .map_err(fail);
        }
        let mut value = 0;
        for element in 0..elements {
            let index = first + element;
            if (0..length).contains(&index) {
                let address = row + index as u64 * ELEMENT as u64;
                let one = self
                    .global
                    .load(address, ELEMENT, ELEMENT, Strength::Plain)
                    .map_err(fail)?;
                value |= one << (16 * element);
            }
        }
        Ok(value)
    }
}
