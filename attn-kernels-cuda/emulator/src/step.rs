//! One instruction of a warp.

use crate::{
    alu,
    block::{Block, Flow, NamedBarrier},
    finding::{Checked, Fault, FindingKind},
    global::Strength,
    lanes::{LANES, lanes_of, map1},
    program::{
        Address, Atomic, Extend, Op, Order, Pred, Reduce, Reduced, Reg, Row, Shuffle, Vote, Window,
    },
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

fn base_of(window: Window) -> u64 {
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
    /// Runs the instruction at which the warp stands.
    pub(crate) fn step(&mut self, warp: &mut Warp) -> Checked<Flow> {
        let program = self.program;
        let pc = warp.pc as usize;
        let instruction = &program.code[pc];
        let mut m = warp.mask;
        if let Some(guard) = instruction.guard {
            Warp::need(
                m,
                warp.pred_defined(guard.row),
                "the guard of the instruction",
            )?;
            m &= warp.p(guard);
        }
        self.clock += 1;
        self.counts.warps[pc] += 1;
        self.counts.threads[pc] += u64::from(m.count_ones());
        if m == 0 {
            warp.advance();
            return Ok(Flow::Run);
        }
        match &instruction.op {
            Op::Nothing => {}
            &Op::L1 { f, d, a } => {
                let value = f(warp.l(a));
                warp.set_l(d, &value, m, warp.defined(a));
            }
            &Op::L2 { f, d, a, b } => {
                let value = f(warp.l(a), warp.l(b));
                warp.set_l(d, &value, m, warp.defined(a) & warp.defined(b));
            }
            &Op::L3 { f, d, a, b, c } => {
                let value = f(warp.l(a), warp.l(b), warp.l(c));
                let defined = warp.defined(a) & warp.defined(b) & warp.defined(c);
                warp.set_l(d, &value, m, defined);
            }
            &Op::L4 { f, d, s } => {
                let value = f(warp.l(s[0]), warp.l(s[1]), warp.l(s[2]), warp.l(s[3]));
                let defined = s.iter().fold(u32::MAX, |all, &row| all & warp.defined(row));
                warp.set_l(d, &value, m, defined);
            }
            &Op::Q1 { f, d, a } => {
                let value = f(warp.q(a));
                warp.set_q(d, &value, m, warp.wide_defined(a));
            }
            &Op::Q2 { f, d, a, b } => {
                let value = f(warp.q(a), warp.q(b));
                warp.set_q(d, &value, m, warp.wide_defined(a) & warp.wide_defined(b));
            }
            &Op::Q3 { f, d, a, b, c } => {
                let value = f(warp.q(a), warp.q(b), warp.q(c));
                let defined = warp.wide_defined(a) & warp.wide_defined(b) & warp.wide_defined(c);
                warp.set_q(d, &value, m, defined);
            }
            &Op::Shift { f, d, a, b } => {
                let value = f(warp.q(a), warp.l(b));
                warp.set_q(d, &value, m, warp.wide_defined(a) & warp.defined(b));
            }
            &Op::Extract { f, d, a, b, c } => {
                let value = f(warp.q(a), warp.l(b), warp.l(c));
                let defined = warp.wide_defined(a) & warp.defined(b) & warp.defined(c);
                warp.set_q(d, &value, m, defined);
            }
            &Op::Insert { f, d, s } => {
                let value = f(warp.q(s[0]), warp.q(s[1]), warp.l(s[2]), warp.l(s[3]));
                let defined = warp.wide_defined(s[0])
                    & warp.wide_defined(s[1])
                    & warp.defined(s[2])
                    & warp.defined(s[3]);
                warp.set_q(d, &value, m, defined);
            }
            &Op::Widen1 { f, d, a } => {
                let value = f(warp.l(a));
                warp.set_q(d, &value, m, warp.defined(a));
            }
            &Op::Widen2 { f, d, a, b } => {
                let value = f(warp.l(a), warp.l(b));
                warp.set_q(d, &value, m, warp.defined(a) & warp.defined(b));
            }
            &Op::Widen3 { f, d, a, b, c } => {
                let value = f(warp.l(a), warp.l(b), warp.q(c));
                let defined = warp.defined(a) & warp.defined(b) & warp.wide_defined(c);
                warp.set_q(d, &value, m, defined);
            }
            &Op::Narrow { f, d, a } => {
                let value = f(warp.q(a));
                warp.set_l(d, &value, m, warp.wide_defined(a));
            }
            &Op::CompareL {
                f,
                d,
                complement,
                a,
                b,
                with,
            } => {
                let found = f(warp.l(a), warp.l(b));
                let defined = warp.defined(a) & warp.defined(b);
                compared(warp, found, defined, d, complement, with, m);
            }
            &Op::CompareQ {
                f,
                d,
                complement,
                a,
                b,
                with,
            } => {
                let found = f(warp.q(a), warp.q(b));
                let defined = warp.wide_defined(a) & warp.wide_defined(b);
                compared(warp, found, defined, d, complement, with, m);
            }
            &Op::SetL { f, d, a, b, one } => {
                let found = f(warp.l(a), warp.l(b));
                let value =
                    core::array::from_fn(|lane| if found >> lane & 1 != 0 { one } else { 0 });
                warp.set_l(d, &value, m, warp.defined(a) & warp.defined(b));
            }
            &Op::SelectL { d, a, b, p } => {
                let pick = warp.p(p);
                let defined =
                    (pick & warp.defined(a) | !pick & warp.defined(b)) & warp.pred_defined(p.row);
                let (x, y) = (*warp.l(a), *warp.l(b));
                warp.set_l(d, &y, m & !pick, defined);
                warp.set_l(d, &x, m & pick, defined);
            }
            &Op::SelectQ { d, a, b, p } => {
                let pick = warp.p(p);
                let defined = (pick & warp.wide_defined(a) | !pick & warp.wide_defined(b))
                    & warp.pred_defined(p.row);
                let (x, y) = (*warp.q(a), *warp.q(b));
                warp.set_q(d, &y, m & !pick, defined);
                warp.set_q(d, &x, m & pick, defined);
            }
            &Op::Logic { logic, d, a, b } => {
                let value = logic.apply(warp.p(a), warp.p(b));
                let defined = warp.pred_defined(a.row) & warp.pred_defined(b.row);
                warp.set_p(d, value, m, defined);
            }
            &Op::CarryL {
                subtract,
                take,
                give,
                d,
                a,
                b,
            } => {
                let carry = if take { warp.carry } else { 0 };
                let (value, carries) = alu::carry(warp.l(a), warp.l(b), carry, subtract);
                if give {
                    warp.carry = (warp.carry & !m) | (carries & m);
                }
                warp.set_l(d, &value, m, warp.defined(a) & warp.defined(b));
            }
            &Op::CarryQ {
                subtract,
                take,
                give,
                d,
                a,
                b,
            } => {
                let carry = if take { warp.carry } else { 0 };
                let (value, carries) = alu::carry_wide(warp.q(a), warp.q(b), carry, subtract);
                if give {
                    warp.carry = (warp.carry & !m) | (carries & m);
                }
                warp.set_q(d, &value, m, warp.wide_defined(a) & warp.wide_defined(b));
            }
            &Op::MadCarry {
                f,
                take,
                give,
                d,
                a,
                b,
                c,
            } => {
                let product = f(warp.l(a), warp.l(b));
                let carry = if take { warp.carry } else { 0 };
                let (value, carries) = alu::carry(&product, warp.l(c), carry, false);
                if give {
                    warp.carry = (warp.carry & !m) | (carries & m);
                }
                let defined = warp.defined(a) & warp.defined(b) & warp.defined(c);
                warp.set_l(d, &value, m, defined);
            }
            Op::ConvertNumber { conversion, d, a } => {
                let defined = warp.reg_defined(*a);
                for lane in lanes_of(m) {
                    let value = alu::convert(conversion, warp.get(*a, lane));
                    warp.put(*d, lane, value);
                }
                undefine(warp, *d, m & !defined);
            }
            Op::ConvertPair {
                conversion,
                d,
                a,
                b,
            } => {
                let one = |x: u32| alu::convert(conversion, u64::from(x)) as u32;
                let (high, low) = (map1(warp.l(*a), one), map1(warp.l(*b), one));
                let value = core::array::from_fn(|lane| high[lane] << 16 | low[lane]);
                warp.set_l(*d, &value, m, warp.defined(*a) & warp.defined(*b));
            }
            &Op::Clock { d } => {
                for lane in lanes_of(m) {
                    warp.put(d, lane, self.clock);
                }
            }
            &Op::ActiveMask { d } => warp.set_l(d, &[m; LANES], m, m),
            &Op::IsSpace { window, d, a } => {
                let mut found = 0;
                for lane in lanes_of(m) {
                    let (space, _) = resolve(Window::Generic, warp.get(a, lane));
                    found |= u32::from(space == window) << lane;
                }
                warp.set_p(d, found, m, warp.reg_defined(a));
            }
            &Op::ConvertAddress {
                window,
                to_generic,
                d,
                a,
            } => {
                let base = base_of(window);
                let defined = warp.reg_defined(a);
                for lane in lanes_of(m) {
                    let address = warp.get(a, lane);
                    let value = if to_generic {
                        address.wrapping_add(base)
                    } else {
                        address.wrapping_sub(base)
                    };
                    warp.put(d, lane, value);
                }
                undefine(warp, d, m & !defined);
            }
            Op::Load {
                at,
                size,
                extend,
                to,
                order,
            } => {
                self.load(warp, m, at, usize::from(*size), *extend, to, *order)?;
                if *order != Order::Weak {
                    // It may wait for another warp to change what it reads.
                    warp.advance();
                    return Ok(Flow::Yield);
                }
            }
            Op::Store {
                at,
                size,
                from,
                order,
            } => {
                self.store(warp, m, at, usize::from(*size), from, *order)?;
                self.progress += 1;
            }
            Op::Atomic {
                at,
                kind,
                ty,
                d,
                b,
                c,
                order,
            } => {
                if !self.atomic(warp, m, at, *kind, *ty, d.as_deref(), b, *c, *order)? {
                    // It may wait for another warp to change what it leaves as it is.
                    warp.advance();
                    return Ok(Flow::Yield);
                }
            }
            &Op::Fence { wide } => self.fenced |= wide,
            &Op::Branch { target } => {
                warp.branch(m, target);
                return Ok(Flow::Run);
            }
            Op::BranchIndexed { index, targets } => {
                return branch_indexed(warp, m, *index, targets);
            }
            Op::Exit => {
                self.progress += 1;
                return Ok(if warp.exit(m)? { Flow::Run } else { Flow::Done });
            }
            Op::Trap => return Err(Fault::new(FindingKind::Trap, "the kernel stopped itself")),
            Op::Barrier {
                id,
                threads,
                waits,
                aligned,
                reduce,
            } => {
                warp.split(m);
                return self.barrier(warp, *id, *threads, *waits, *aligned, reduce.as_ref());
            }
            &Op::SyncWarp { mask } => {
                warp.split(m);
                if !gather(warp, mask)? {
                    return Ok(Flow::Run);
                }
                self.clocks.join_lanes(warp.index as usize, warp.mask);
                self.progress += 1;
            }
            &Op::Shuffle {
                kind,
                d,
                p,
                a,
                b,
                c,
                mask,
            } => {
                warp.split(m);
                if !gather(warp, mask)? {
                    return Ok(Flow::Run);
                }
                shuffle(warp, kind, d, p, a, b, c)?;
            }
            &Op::Vote { kind, d, a, mask } => {
                warp.split(m);
                if !gather(warp, mask)? {
                    return Ok(Flow::Run);
                }
                vote(warp, kind, d, a)?;
            }
            &Op::Match { all, d, p, a, mask } => {
                warp.split(m);
                if !gather(warp, mask)? {
                    return Ok(Flow::Run);
                }
                matching(warp, all, d, p, a)?;
            }
            &Op::Reduce { f, d, a, mask } => {
                warp.split(m);
                if !gather(warp, mask)? {
                    return Ok(Flow::Run);
                }
                let m = warp.mask;
                Warp::need(m, warp.defined(a), "an operand of `redux`")?;
                let values = *warp.l(a);
                let mut lanes = lanes_of(m);
                let first = lanes.next().map_or(0, |lane| values[lane]);
                let value = lanes.fold(first, |sum, lane| f(sum, values[lane]));
                warp.set_l(d, &[value; LANES], m, m);
            }
            &Op::Elect { d, p, mask } => {
                warp.split(m);
                if !gather(warp, mask)? {
                    return Ok(Flow::Run);
                }
                let m = warp.mask;
                let leader = m.trailing_zeros();
                warp.set_l(d, &[leader; LANES], m, m);
                warp.set_p(p, 1 << leader, m, m);
            }
            Op::LoadMatrix { at, transposed, to } => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                self.load_matrix(warp, at, *transposed, to)?;
            }
            Op::StoreMatrix {
                at,
                transposed,
                from,
            } => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                self.store_matrix(warp, at, *transposed, from)?;
            }
            Op::Mma { shape, d, a, b, c } => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                crate::tensor::mma(warp, *shape, d, a, b, c)?;
            }
            Op::BarrierInit { at, count } => self.barrier_init(warp, m, at, *count)?,
            Op::BarrierEnd { at } => self.barrier_end(warp, m, at)?,
            Op::BarrierArrive {
                at,
                arrivals,
                count,
                bytes,
                state,
            } => self.barrier_arrive(warp, m, at, *arrivals, *count, *bytes, *state)?,
            Op::BarrierTest {
                at,
                d,
                phase,
                is_parity,
            } => {
                let done = self.barrier_test(warp, m, at, *d, *phase, *is_parity)?;
                warp.advance();
                return Ok(if done { Flow::Run } else { Flow::Yield });
            }
            Op::FenceProxy => {
                self.clocks.fence(warp.index as usize, m);
                self.fence_barriers(warp, m);
            }
            Op::FenceBarriers => self.fence_barriers(warp, m),
            Op::CopyBox {
                to,
                map,
                coordinates,
                barrier,
            } => self.box_copy(warp, m, to, *map, coordinates, barrier)?,
            Op::GroupFence => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                self.clocks.join_lanes(warp.index as usize, warp.mask);
            }
            Op::GroupIssue(product) => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                self.issue_product(warp, product)?;
            }
            Op::GroupCommit => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                self.commit_products(warp);
            }
            &Op::GroupWait { keep } => {
                warp.split(m);
                if !whole(warp)? {
                    return Ok(Flow::Run);
                }
                return self.wait_products(warp, keep);
            }
            Op::CopyAsync {
                to,
                from,
                size,
                source,
                ignore,
            } => self.copy_async(warp, m, to, from, usize::from(*size), *source, *ignore)?,
            Op::CopyCommit => {
                for lane in lanes_of(m) {
                    warp.committed[lane] += 1;
                }
            }
            &Op::CopyWait { keep, all } => self.copy_wait(warp, m, keep, all),
        }
        warp.advance();
        Ok(Flow::Run)
    }

    /// The address of each lane.
    #[inline(always)]
    pub(crate) fn address(warp: &Warp, at: &Address, lane: usize) -> u64 {
        match at.base {
            None => at.offset as u64,
            Some(Reg::Q(row)) => warp.q(row)[lane].wrapping_add(at.offset as u64),
            // Addresses of 32 bits are those of shared memory, and wrap.
            Some(Reg::L(row)) => u64::from(warp.l(row)[lane].wrapping_add(at.offset as u32)),
        }
    }

    pub(crate) fn need_address(warp: &Warp, at: &Address, m: u32) -> Checked<()> {
        match at.base {
            None => Ok(()),
            Some(reg) => Warp::need(m, warp.reg_defined(reg), "the address"),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    fn load(
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

    fn store(
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
    fn read(
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
    fn write(
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

    /// Reads a parameter.
    pub(crate) fn param(&self, address: u64, bytes: usize) -> Checked<u128> {
        let at = address as usize;
        let Some(found) = self.params.get(at..at.saturating_add(bytes)) else {
            return Err(Fault::new(
                FindingKind::OutOfBounds,
                format!(
                    "{bytes} bytes at byte {at} of the parameters, which have {}",
                    self.params.len()
                ),
            ));
        };
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(found);
        Ok(u128::from_le_bytes(value))
    }

    /// An atomic operation; false if it left everything as it was.
    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    fn atomic(
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
    fn publish(&mut self, address: u64) {
        let known = self.published.entry(address).or_default();
        for block in self.global.seen().chain([self.number]) {
            if !known.contains(&block) {
                known.push(block);
            }
        }
    }

    fn acquire(&mut self, address: u64) {
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

    fn barrier(
        &mut self,
        warp: &mut Warp,
        id: Row,
        threads: Option<Row>,
        waits: bool,
        aligned: bool,
        reduce: Option<&(Reduce, Pred, Reduced)>,
    ) -> Checked<Flow> {
        let m = warp.mask;
        if aligned && warp.exited != 0 {
            return Err(Fault::new(
                FindingKind::Divergence,
                format!(
                    "lanes {m:#010x} reach a barrier of the whole warp; lanes {:#010x} have exited",
                    warp.exited
                ),
            )
            .by(m.trailing_zeros() as usize));
        }
        if m != warp.live() {
            warp.park()?;
            return Ok(Flow::Run);
        }
        let uniform = |row: Row, what: &str| -> Checked<u32> {
            Warp::need(m, warp.defined(row), what)?;
            let values = warp.l(row);
            let first = values[m.trailing_zeros() as usize];
            if lanes_of(m).any(|lane| values[lane] != first) {
                return Err(Fault::new(
                    FindingKind::Divergence,
                    format!("{what} differs between the lanes of a warp"),
                ));
            }
            Ok(first)
        };
        let id = uniform(id, "the number of the barrier")?;
        let all = self
            .position
            .threads
            .iter()
            .product::<u32>()
            .next_multiple_of(32);
        let expected = match threads {
            Some(row) => uniform(row, "the number of threads")?,
            None => all,
        };
        if id >= 16 || expected == 0 || !expected.is_multiple_of(32) || expected > all {
            return Err(Fault::new(
                FindingKind::Barrier,
                format!("barrier {id} of {expected} threads, in a block of {all}"),
            ));
        }
        let barrier = &mut self.barriers[id as usize];
        if barrier.expected != 0 && barrier.expected != expected {
            return Err(Fault::new(
                FindingKind::Barrier,
                format!(
                    "barrier {id} of {expected} threads, where other warps wait for {}",
                    barrier.expected
                ),
            ));
        }
        if barrier.waiting >> warp.index & 1 != 0 || barrier.came >> warp.index & 1 != 0 {
            return Err(Fault::new(
                FindingKind::Barrier,
                format!("warp {} comes to barrier {id} a second time", warp.index),
            ));
        }
        self.clocks
            .release(warp.index as usize, m, &mut barrier.published);
        barrier.expected = expected;
        barrier.arrived += 32;
        barrier.came |= 1 << warp.index;
        if let Some((kind, pred, to)) = reduce {
            Warp::need(m, warp.pred_defined(pred.row), "the predicate of `bar.red`")?;
            barrier.yes += (warp.p(*pred) & m).count_ones();
            barrier.said += m.count_ones();
            barrier.results.push((warp.index, *kind, *to));
        }
        if waits {
            barrier.waiting |= 1 << warp.index;
        }
        let complete = barrier.arrived >= barrier.expected;
        if complete {
            let done = core::mem::take(barrier);
            self.complete(&done);
        }
        warp.advance();
        self.progress += 1;
        Ok(if waits {
            Flow::Barrier(id as u8)
        } else {
            Flow::Run
        })
    }

    fn complete(&mut self, barrier: &NamedBarrier) {
        self.released |= barrier.waiting;
        for warp in lanes_of(barrier.waiting) {
            self.clocks.acquire(warp, &barrier.published);
        }
        for &(warp, kind, to) in &barrier.results {
            let value = match kind {
                Reduce::Count => barrier.yes,
                Reduce::And => u32::from(barrier.yes == barrier.said),
                Reduce::Or => u32::from(barrier.yes != 0),
            };
            self.votes.push((warp, to, value));
        }
    }
}

impl crate::block::Local {
    /// Memory for `threads` threads of `bytes` each.
    pub(crate) fn reset(&mut self, threads: usize, bytes: usize) {
        self.bytes = bytes;
        self.data.clear();
        self.data.resize(threads * bytes, 0xcd);
        self.written.clear();
        self.written.resize(threads * bytes, 0);
    }

    fn place(&self, thread: usize, address: u64, bytes: usize) -> Checked<usize> {
        if address.saturating_add(bytes as u64) > self.bytes as u64 {
            return Err(Fault::new(
                FindingKind::OutOfBounds,
                format!(
                    "{bytes} bytes at byte {address} of local memory, which has {} bytes",
                    self.bytes
                ),
            ));
        }
        if !address.is_multiple_of(bytes as u64) {
            return Err(Fault::new(
                FindingKind::Misaligned,
                format!("byte {address} of local memory for {bytes} bytes"),
            ));
        }
        Ok(thread * self.bytes + address as usize)
    }

    fn load(&self, thread: usize, address: u64, bytes: usize) -> Checked<u128> {
        let at = self.place(thread, address, bytes)?;
        if self.written[at..at + bytes].contains(&0) {
            return Err(Fault::new(
                FindingKind::Unwritten,
                format!("byte {address} of local memory"),
            ));
        }
        let mut value = [0; 16];
        value[..bytes].copy_from_slice(&self.data[at..at + bytes]);
        Ok(u128::from_le_bytes(value))
    }

    fn store(&mut self, thread: usize, address: u64, bytes: usize, value: u128) -> Checked<()> {
        let at = self.place(thread, address, bytes)?;
        self.data[at..at + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        self.written[at..at + bytes].fill(1);
        Ok(())
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

fn thread(warp: &Warp, lane: usize) -> usize {
    32 * warp.index as usize + lane
}

fn strength(order: Order) -> Strength {
    if order == Order::Weak {
        Strength::Plain
    } else {
        Strength::Atomic
    }
}

/// Writes the elements that a lane loaded.
#[inline(always)]
fn put_elements(
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

/// Takes the definedness of a result back from lanes whose operand had none.
fn undefine(warp: &mut Warp, reg: Reg, lanes: u32) {
    if lanes == 0 {
        return;
    }
    match reg {
        Reg::L(row) => {
            let value = *warp.l(row);
            warp.set_l(row, &value, lanes, 0);
        }
        Reg::Q(row) => {
            let value = *warp.q(row);
            warp.set_q(row, &value, lanes, 0);
        }
    }
}

fn compared(
    warp: &mut Warp,
    found: u32,
    defined: u32,
    d: Row,
    complement: Row,
    with: Option<(crate::program::Logic, Pred)>,
    m: u32,
) {
    let (mut yes, mut no, mut defined) = (found, !found, defined);
    if let Some((logic, p)) = with {
        let other = warp.p(p);
        yes = logic.apply(yes, other);
        no = logic.apply(no, other);
        defined &= warp.pred_defined(p.row);
    }
    warp.set_p(d, yes, m, defined);
    if complement != crate::program::PRED_SINK {
        warp.set_p(complement, no, m, defined);
    }
}

fn branch_indexed(warp: &mut Warp, m: u32, index: Row, targets: &[u32]) -> Checked<Flow> {
    Warp::need(m, warp.defined(index), "the index of the branch")?;
    // One target at a time: the lanes that go elsewhere stand here again.
    let first = m.trailing_zeros() as usize;
    let values = *warp.l(index);
    let Some(&target) = targets.get(values[first] as usize) else {
        return Err(Fault::new(
            FindingKind::OutOfBounds,
            format!("target {} of {}", values[first], targets.len()),
        )
        .by(first));
    };
    let same = lanes_of(m)
        .filter(|&lane| values[lane] == values[first])
        .fold(0, |mask, lane| mask | 1 << lane);
    if same == warp.mask {
        warp.branch(same, target);
    } else {
        warp.leave(same, target);
    }
    Ok(Flow::Run)
}

/// Whether the lanes that a mask names are all here; else those that are wait.
fn gather(warp: &mut Warp, mask: Row) -> Checked<bool> {
    let m = warp.mask;
    Warp::need(m, warp.defined(mask), "the mask of lanes")?;
    let masks = warp.l(mask);
    let first = m.trailing_zeros() as usize;
    let named = masks[first];
    if let Some(lane) = lanes_of(m).find(|&lane| masks[lane] >> lane & 1 == 0) {
        return Err(Fault::new(
            FindingKind::Divergence,
            format!("a lane that its mask {:#010x} does not name", masks[lane]),
        )
        .by(lane));
    }
    // Lanes with different masks go apart, as two collectives.
    let same = lanes_of(m)
        .filter(|&lane| masks[lane] == named)
        .fold(0, |all, lane| all | 1 << lane);
    if same != m {
        warp.hold(m & !same);
    }
    let missing = named & !same & warp.lanes;
    if missing & warp.exited != 0 {
        return Err(Fault::new(
            FindingKind::Divergence,
            format!(
                "the mask {named:#010x} names lanes {:#010x}, which have exited",
                missing & warp.exited
            ),
        )
        .by(first));
    }
    if missing != 0 {
        warp.park()?;
        return Ok(false);
    }
    Ok(true)
}

/// Whether all lanes of the warp are here; else those that are wait.
pub(crate) fn whole(warp: &mut Warp) -> Checked<bool> {
    if warp.exited != 0 || warp.lanes != u32::MAX {
        return Err(Fault::new(
            FindingKind::Divergence,
            format!(
                "an operation of a whole warp, of which lanes {:#010x} are not there",
                !warp.live()
            ),
        )
        .by(warp.mask.trailing_zeros() as usize));
    }
    if warp.mask != u32::MAX {
        warp.park()?;
        return Ok(false);
    }
    Ok(true)
}

fn shuffle(warp: &mut Warp, kind: Shuffle, d: Row, p: Row, a: Row, b: Row, c: Row) -> Checked<()> {
    let m = warp.mask;
    Warp::need(m, warp.defined(b) & warp.defined(c), "which lane to read")?;
    let values = *warp.l(a);
    let known = warp.defined(a);
    let mut out = values;
    let mut inside = 0;
    let mut defined = 0;
    for lane in lanes_of(m) {
        let by = warp.l(b)[lane] & 0x1f;
        let control = warp.l(c)[lane];
        let clamp = control & 0x1f;
        let segment = control >> 8 & 0x1f;
        let own = lane as u32;
        let most = (own & segment) | (clamp & !segment);
        let least = own & segment;
        let (from, valid) = match kind {
            Shuffle::Up => {
                let from = own.wrapping_sub(by);
                (from, from as i32 >= most as i32)
            }
            Shuffle::Down => (own + by, own + by <= most),
            Shuffle::Butterfly => (own ^ by, own ^ by <= most),
            Shuffle::Index => {
                let from = least | (by & !segment);
                (from, from <= most)
            }
        };
        let from = if valid { from } else { own };
        if m >> from & 1 == 0 {
            return Err(Fault::new(
                FindingKind::Divergence,
                format!("reads lane {from}, which takes no part"),
            )
            .by(lane));
        }
        out[lane] = values[from as usize];
        inside |= u32::from(valid) << lane;
        defined |= (known >> from & 1) << lane;
    }
    warp.set_l(d, &out, m, defined);
    warp.set_p(p, inside, m, m);
    Ok(())
}

fn vote(warp: &mut Warp, kind: Vote, d: Row, a: Pred) -> Checked<()> {
    let m = warp.mask;
    Warp::need(m, warp.pred_defined(a.row), "what is voted on")?;
    let yes = warp.p(a) & m;
    let all = |holds: bool| if holds { u32::MAX } else { 0 };
    match kind {
        Vote::Ballot => warp.set_l(d, &[yes; LANES], m, m),
        Vote::All => warp.set_p(d, all(yes == m), m, m),
        Vote::Any => warp.set_p(d, all(yes != 0), m, m),
        Vote::Uniform => warp.set_p(d, all(yes == m || yes == 0), m, m),
    }
    Ok(())
}

fn matching(warp: &mut Warp, all: bool, d: Row, p: Row, a: Reg) -> Checked<()> {
    let m = warp.mask;
    Warp::need(m, warp.reg_defined(a), "an operand of `match`")?;
    let mut out = [0; LANES];
    for lane in lanes_of(m) {
        let own = warp.get(a, lane);
        out[lane] = lanes_of(m)
            .filter(|&other| warp.get(a, other) == own)
            .fold(0, |mask, other| mask | 1 << other);
    }
    if all {
        let same = lanes_of(m).all(|lane| out[lane] == m);
        let value = if same { m } else { 0 };
        warp.set_l(d, &[value; LANES], m, m);
        warp.set_p(p, if same { u32::MAX } else { 0 }, m, m);
    } else {
        warp.set_l(d, &out, m, m);
    }
    Ok(())
}
