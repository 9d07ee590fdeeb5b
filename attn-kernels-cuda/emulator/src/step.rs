//! One instruction of a warp.

use crate::{
    access::{base_of, resolve},
    alu,
    block::{Block, Flow},
    collective::{gather, matching, shuffle, vote, whole},
    finding::{Checked, Fault, FindingKind},
    lanes::{LANES, lanes_of, map1},
    program::{Address, Op, Order, Pred, Reg, Row, Window},
    warp::Warp,
};

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
