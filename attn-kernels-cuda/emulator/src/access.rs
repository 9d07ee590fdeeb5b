//! Reads and writes of a lane, in every space of memory.

use crate::{
    block::Block,
    finding::{Checked, Fault, FindingKind},
    global::Strength,
    lanes::{LANES, lanes_of},
    program::{Address, Atomic, Extend, Order, Reg, Window},
    shared::{Access, conflicts},
    types::Ty,
    warp::Warp,
};

/// Generic addresses of shared memory start here.
pub(crate) const SHARED: u64 = 1 << 40;
/// Generic addresses of local memory start here.
pub(crate) const LOCAL: u64 = 2 << 40;
/// Generic addresses of parameters start here.
pub(crate) const PARAM: u64 = 3 << 40;
/// Each of these windows ends this far from its start.
const WINDOW: u64 = 1 << 40;

pub(crate) fn base_of(window: Window) -> u64 {
    match window {
        Window::Generic | Window::Global => 0,
        Window::Shared => SHARED,
        Window::Local => LOCAL,
        Window::Param => PARAM,
    }
}

/// The space of a generic address, and the address in it.
pub(crate) fn resolve(window: Window, address: u64) -> (Window, u64) {
    if window != Window::Generic {
        return (window, address);
    }
    for space in [Window::Shared, Window::Local, Window::Param] {
        let offset = address.wrapping_sub(base_of(space));
        if offset < WINDOW {
            return (space, offset);
        }
    }
    (Window::Global, address)
}

impl Block<'_> {
    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    pub(crate) fn load(
        &mut self,
        warp: &mut Warp,
        m: u32,
        at: &Address,
        size: usize,
        extend: Extend,
        to: &[Reg],
        order: Order,
    ) -> Checked<()> {
        Self::need_address(warp, at, m)?;
        let bytes = size * to.len();
        if bytes > 16 {
            return Err(Fault::new(
                FindingKind::Misaligned,
                "a vector of more than 16 bytes",
            ));
        }
        if at.window == Window::Param && at.base.is_none() {
            // The same for all lanes.
            let value = self.param(at.offset as u64, bytes)?;
            for lane in lanes_of(m) {
                put_elements(warp, to, lane, value, size, extend);
            }
            return Ok(());
        }
        let mut banks = [0; LANES];
        let mut count = 0;
        for lane in lanes_of(m) {
            let address = Self::address(warp, at, lane);
            let (window, address) = resolve(at.window, address);
            if window == Window::Shared {
                banks[count] = address as u32;
                count += 1;
            }
            let value = self
                .read(warp, window, address, bytes, lane, order)
                .map_err(|fault| fault.by(lane))?;
            put_elements(warp, to, lane, value, size, extend);
        }
        if count > 0 {
            self.counts.conflicts[warp.pc as usize] += conflicts(&banks[..count], bytes);
        }
        Ok(())
    }

    pub(crate) fn store(
        &mut self,
        warp: &mut Warp,
        m: u32,
        at: &Address,
        size: usize,
        from: &[Reg],
        order: Order,
    ) -> Checked<()> {
        Self::need_address(warp, at, m)?;
        for &reg in from {
            Warp::need(m, warp.reg_defined(reg), "the value that is stored")?;
        }
        let bytes = size * from.len();
        if bytes > 16 {
            return Err(Fault::new(
                FindingKind::Misaligned,
                "a vector of more than 16 bytes",
            ));
        }
        let mut banks = [0; LANES];
        let mut count = 0;
        for lane in lanes_of(m) {
            let address = Self::address(warp, at, lane);
            let (window, address) = resolve(at.window, address);
            if window == Window::Shared {
                banks[count] = address as u32;
                count += 1;
            }
            let mut value = 0u128;
            for (part, &reg) in from.iter().enumerate() {
                let bits = warp.get(reg, lane);
                let bits = if size == 8 {
                    bits
                } else {
                    bits & ((1 << (8 * size)) - 1)
                };
                value |= u128::from(bits) << (8 * size * part);
            }
            self.write(warp, window, address, bytes, value, lane, order)
                .map_err(|fault| fault.by(lane))?;
        }
        if count > 0 {
            self.counts.conflicts[warp.pc as usize] += conflicts(&banks[..count], bytes);
        }
        Ok(())
    }

    /// Reads as one lane.
    pub(crate) fn read(
        &mut self,
        warp: &Warp,
        window: Window,
        address: u64,
        bytes: usize,
        lane: usize,
        order: Order,
    ) -> Checked<u128> {
        match window {
            Window::Shared => self.shared_read(warp, address, bytes, lane),
            Window::Local => self.local.load(thread(warp, lane), address, bytes),
            Window::Param => self.param(address, bytes),
            Window::Global | Window::Generic => {
                let strength = strength(order);
                if order != Order::Weak {
                    self.acquire(address);
                }
                self.global.load(address, bytes, bytes, strength)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one access")]
    pub(crate) fn write(
        &mut self,
        warp: &Warp,
        window: Window,
        address: u64,
        bytes: usize,
        value: u128,
        lane: usize,
        order: Order,
    ) -> Checked<()> {
        match window {
            Window::Shared => self.shared_write(warp, address, bytes, value, lane),
            Window::Local => self.local.store(thread(warp, lane), address, bytes, value),
            Window::Param => Err(Fault::new(
                FindingKind::Wild,
                "a write to the kernel's parameters",
            )),
            Window::Global | Window::Generic => {
                if order.releases() || (order != Order::Weak && self.fenced) {
                    self.publish(address);
                }
                self.global.store(address, bytes, value, strength(order))
            }
        }
    }

    /// An atomic operation; false if it left everything as it was.
    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    pub(crate) fn atomic(
        &mut self,
        warp: &mut Warp,
        m: u32,
        at: &Address,
        kind: Atomic,
        ty: Ty,
        d: Option<&[Reg]>,
        b: &[Reg],
        c: Option<Reg>,
        order: Order,
    ) -> Checked<bool> {
        Self::need_address(warp, at, m)?;
        for reg in b.iter().copied().chain(c) {
            Warp::need(m, warp.reg_defined(reg), "an operand of the operation")?;
        }
        let size = ty.size();
        let mut changed = false;
        for lane in lanes_of(m) {
            let start = Self::address(warp, at, lane);
            for (part, &reg) in b.iter().enumerate() {
                let (window, address) = resolve(at.window, start + (part * size) as u64);
                let operand = warp.get(reg, lane);
                let other = c.map_or(0, |reg| warp.get(reg, lane));
                let change = |old| {
                    let new = crate::atomic::apply(kind, ty, old, operand, other);
                    changed |= new != old;
                    new
                };
                let old = match window {
                    Window::Shared => {
                        self.shared
                            .update(address, size, &access(warp, lane), &self.clocks, change)
                    }
                    Window::Global | Window::Generic => {
                        if order.releases() || self.fenced {
                            self.publish(address);
                        }
                        self.acquire(address);
                        self.global.update(address, size, change)
                    }
                    _ => Err(Fault::new(
                        FindingKind::Wild,
                        "an atomic operation on local memory",
                    )),
                }
                .map_err(|fault| fault.by(lane))?;
                if let Some(&reg) = d.and_then(|d| d.get(part)) {
                    warp.put(reg, lane, old);
                }
            }
        }
        self.progress += u64::from(changed);
        Ok(changed)
    }

    /// What this block and those it has seen wrote can be seen through an atomic variable.
    pub(crate) fn publish(&mut self, address: u64) {
        let known = self.published.entry(address).or_default();
        for block in self.global.seen().chain([self.number]) {
            if !known.contains(&block) {
                known.push(block);
            }
        }
    }

    pub(crate) fn acquire(&mut self, address: u64) {
        if let Some(blocks) = self.published.get(&address) {
            for &block in blocks {
                self.global.acquire(block);
            }
        }
    }

    /// Reads shared memory as one lane.
    pub(crate) fn shared_read(
        &mut self,
        warp: &Warp,
        address: u64,
        bytes: usize,
        lane: usize,
    ) -> Checked<u128> {
        self.shared
            .load(address, bytes, &access(warp, lane), &self.clocks)
    }

    /// Writes shared memory as one lane.
    pub(crate) fn shared_write(
        &mut self,
        warp: &Warp,
        address: u64,
        bytes: usize,
        value: u128,
        lane: usize,
    ) -> Checked<()> {
        self.shared
            .store(address, bytes, value, &access(warp, lane), &self.clocks)
    }
}

/// Who accesses shared memory.
pub(crate) fn access(warp: &Warp, lane: usize) -> Access {
    Access {
        warp: warp.index as usize,
        lane,
        pc: warp.pc,
    }
}

pub(crate) fn thread(warp: &Warp, lane: usize) -> usize {
    32 * warp.index as usize + lane
}

pub(crate) fn strength(order: Order) -> Strength {
    if order == Order::Weak {
        Strength::Plain
    } else {
        Strength::Atomic
    }
}

/// Writes the elements that a lane loaded.
#[inline(always)]
pub(crate) fn put_elements(
    warp: &mut Warp,
    to: &[Reg],
    lane: usize,
    value: u128,
    size: usize,
    extend: Extend,
) {
    for (part, &reg) in to.iter().enumerate() {
        let bits = (value >> (8 * size * part)) as u64;
        let value = match (extend, size) {
            (_, 8) => bits,
            (Extend::Zero, _) => bits & ((1 << (8 * size)) - 1),
            (Extend::Sign16, _) => bits as i8 as u64 & 0xffff,
            (Extend::Sign, 1) => bits as i8 as u64,
            (Extend::Sign, 2) => bits as i16 as u64,
            (Extend::Sign, _) => bits as i32 as u64,
        };
        warp.put(reg, lane, value);
    }
}
