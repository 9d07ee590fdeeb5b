//! Barrier objects in shared memory: arrivals, bytes of copies, phases.

use crate::{
    access::resolve,
    block::Block,
    clocks::{Published, Who},
    finding::{Checked, Fault, FindingKind},
    lanes::{LANES, lanes_of},
    program::{Address, Arrival, Reg, Row},
    warp::Warp,
};

/// A barrier object.
#[derive(Debug, Clone, Default)]
pub(crate) struct BarrierObject {
    /// Arrivals of a phase.
    count: u32,
    /// Those that are still to come.
    pending: i64,
    /// Bytes that are still to come.
    bytes: i64,
    pub(crate) phase: u32,
    /// What those that arrived in this phase pass on.
    arriving: Published,
    /// What a completed phase passes on.
    complete: Published,
    /// The copy engine, for copies that count here.
    pub(crate) agent: Who,
    /// Whether the copy engine may know of it: a fence came after its initialisation.
    pub(crate) fenced: bool,
    /// Who initialised it, and when.
    by: Who,
    epoch: u32,
}

impl BarrierObject {
    /// Whether a wait for the phase of this parity ends.
    pub(crate) fn is_complete(&self, parity: u32) -> bool {
        self.phase & 1 != parity & 1
    }

    fn settle(&mut self) -> bool {
        if self.pending > 0 || self.bytes != 0 {
            return false;
        }
        self.phase += 1;
        self.pending = i64::from(self.count);
        self.complete.join(&self.arriving);
        self.arriving.clear();
        true
    }
}

impl Block<'_> {
    fn barrier_object(&mut self, address: u64) -> Checked<&mut BarrierObject> {
        self.objects.get_mut(&(address as u32)).ok_or_else(|| {
            Fault::new(
                FindingKind::Barrier,
                format!("byte {address} of shared memory is no barrier object"),
            )
        })
    }

    /// The addresses of the running lanes.
    fn barrier_addresses(warp: &Warp, m: u32, at: &Address) -> Checked<[u64; LANES]> {
        Self::need_address(warp, at, m)?;
        let mut addresses = [0; LANES];
        for lane in lanes_of(m) {
            (_, addresses[lane]) = resolve(at.window, Self::address(warp, at, lane));
        }
        Ok(addresses)
    }

    /// `mbarrier.init`.
    pub(crate) fn barrier_init(
        &mut self,
        warp: &Warp,
        m: u32,
        at: &Address,
        count: Row,
    ) -> Checked<()> {
        Warp::need(m, warp.defined(count), "the count of the barrier object")?;
        let addresses = Self::barrier_addresses(warp, m, at)?;
        for lane in lanes_of(m) {
            let address = addresses[lane];
            let count = warp.l(count)[lane];
            let at = self
                .shared
                .check(address, 8, 8)
                .map_err(|fault| fault.by(lane))?;
            if count == 0 || count >= 1 << 20 {
                return Err(Fault::new(
                    FindingKind::Barrier,
                    format!("a barrier object of {count} arrivals"),
                )
                .by(lane));
            }
            let agent = self.clocks.copy_agent(self.objects.len());
            self.shared.set_barrier(at, true);
            self.objects.insert(
                address as u32,
                BarrierObject {
                    count,
                    pending: i64::from(count),
                    agent,
                    by: 32 * warp.index + lane as u32,
                    epoch: self.clocks.epoch(warp.index as usize),
                    ..BarrierObject::default()
                },
            );
        }
        self.progress += 1;
        Ok(())
    }

    /// `mbarrier.inval`.
    pub(crate) fn barrier_end(&mut self, warp: &Warp, m: u32, at: &Address) -> Checked<()> {
        let addresses = Self::barrier_addresses(warp, m, at)?;
        for lane in lanes_of(m) {
            let address = addresses[lane];
            self.barrier_object(address)
                .map_err(|fault| fault.by(lane))?;
            self.objects.remove(&(address as u32));
            self.shared.set_barrier(address as usize, false);
        }
        Ok(())
    }

    /// That a thread may use an object that another initialised.
    fn check_known(&mut self, warp: &Warp, lane: usize, address: u64) -> Checked<()> {
        let object = self.barrier_object(address)?;
        let (by, epoch) = (object.by, object.epoch);
        let own = 32 * warp.index + lane as u32;
        if by != own && !self.clocks.knows(warp.index as usize, by, epoch) {
            return Err(Fault::new(
                FindingKind::SharedRace,
                format!(
                    "uses the barrier object at byte {address} of shared memory, which thread {by} initialised, and nothing orders the two"
                ),
            ));
        }
        Ok(())
    }

    /// `mbarrier.arrive` and `mbarrier.expect_tx`: `bytes` are announced, and `arrivals` are made.
    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    pub(crate) fn barrier_arrive(
        &mut self,
        warp: &mut Warp,
        m: u32,
        at: &Address,
        arrivals: Arrival,
        count: Option<Row>,
        bytes: Option<Row>,
        state: Option<Reg>,
    ) -> Checked<()> {
        for row in count.into_iter().chain(bytes) {
            Warp::need(m, warp.defined(row), "an operand of the barrier object")?;
        }
        let addresses = Self::barrier_addresses(warp, m, at)?;
        for lane in lanes_of(m) {
            let address = addresses[lane];
            self.check_known(warp, lane, address)
                .map_err(|fault| fault.by(lane))?;
            let mut published = Published::default();
            self.clocks
                .release(warp.index as usize, 1 << lane, &mut published);
            let expected = bytes.map_or(0, |row| warp.l(row)[lane]);
            let arriving = match arrivals {
                Arrival::Expect => 0,
                Arrival::Arrive | Arrival::Drop => count.map_or(1, |row| warp.l(row)[lane]),
            };
            let object = self
                .barrier_object(address)
                .map_err(|fault| fault.by(lane))?;
            object.bytes += i64::from(expected);
            object.pending -= i64::from(arriving);
            if object.pending < 0 {
                return Err(Fault::new(
                    FindingKind::Barrier,
                    format!(
                        "the barrier object at byte {address} of shared memory gets more than its {} arrivals",
                        object.count
                    ),
                )
                .by(lane));
            }
            object.arriving.join(&published);
            let phase = object.phase;
            if arrivals == Arrival::Drop {
                object.count = object.count.saturating_sub(arriving);
            }
            object.settle();
            if let Some(reg) = state {
                warp.put(reg, lane, u64::from(phase));
            }
            self.progress += 1;
        }
        Ok(())
    }

    /// `mbarrier.try_wait` and `mbarrier.test_wait`: whether the phase is complete. True if all running lanes may go on.
    pub(crate) fn barrier_test(
        &mut self,
        warp: &mut Warp,
        m: u32,
        at: &Address,
        d: Row,
        phase: Reg,
        is_parity: bool,
    ) -> Checked<bool> {
        Warp::need(m, warp.reg_defined(phase), "the phase that is waited for")?;
        let addresses = Self::barrier_addresses(warp, m, at)?;
        let mut done = 0;
        for lane in lanes_of(m) {
            let address = addresses[lane];
            self.check_known(warp, lane, address)
                .map_err(|fault| fault.by(lane))?;
            // Copies come in as late as they may: when they are waited for.
            self.land(address as u32)?;
            let wanted = warp.get(phase, lane) as u32;
            let object = self
                .barrier_object(address)
                .map_err(|fault| fault.by(lane))?;
            let complete = if is_parity {
                object.is_complete(wanted)
            } else {
                object.phase != wanted
            };
            if complete {
                done |= 1 << lane;
                let published = object.complete.clone();
                self.clocks.acquire(warp.index as usize, &published);
            }
        }
        warp.set_p(d, done, m, m);
        Ok(done == m)
    }

    /// Bytes of a copy have come in: the object counts them and passes them on.
    pub(crate) fn barrier_bytes(&mut self, address: u32, bytes: i64, epoch: u32) -> Checked<()> {
        let object = self.barrier_object(u64::from(address))?;
        object.bytes -= bytes;
        let agent = object.agent;
        object.arriving.add(agent, epoch);
        object.settle();
        self.progress += 1;
        Ok(())
    }

    /// A fence of a warp's lanes after which the copy engine knows of the objects that they initialised.
    pub(crate) fn fence_barriers(&mut self, warp: &Warp, lanes: u32) {
        for object in self.objects.values_mut() {
            if object.by / 32 == warp.index && lanes >> (object.by % 32) & 1 != 0 {
                object.fenced = true;
            }
        }
    }

    /// That a copy may count at an object.
    pub(crate) fn check_copy_barrier(
        &mut self,
        warp: &Warp,
        lane: usize,
        address: u64,
    ) -> Checked<()> {
        self.check_known(warp, lane, address)?;
        let object = self.barrier_object(address)?;
        let (fenced, by, epoch) = (object.fenced, object.by, object.epoch);
        if !fenced && !self.clocks.knows_fenced(warp.index as usize, by, epoch) {
            return Err(Fault::new(
                FindingKind::Proxy,
                format!(
                    "a copy counts at the barrier object at byte {address} of shared memory, whose initialisation no fence made known to the copy engine"
                ),
            ));
        }
        Ok(())
    }

    /// Phases that never completed though bytes or arrivals came, when the block ends.
    pub(crate) fn unfinished_barrier(&self) -> Option<String> {
        self.objects
            .iter()
            .filter(|(_, object)| object.bytes != 0)
            .min_by_key(|(address, _)| **address)
            .map(|(address, object)| {
                format!(
                    "the barrier object at byte {address} of shared memory still expects {} bytes when the block ends",
                    object.bytes
                )
            })
    }
}
