//! A block at work: what its warps share, and in which order they run.

use crate::{
    bulk::BoxCopy,
    clocks::{Clocks, Published},
    emulator::WarpOrder,
    finding::{Checked, Fault, FindingKind},
    global::Global,
    local::Local,
    mbarrier::BarrierObject,
    program::{Program, Reduce, Reduced},
    shared::Shared,
    warp::{Position, Warp},
    wgmma::Products,
};
use std::collections::HashMap;

/// Instructions that a warp runs before another has its turn.
const SLICE: u32 = 4096;
/// Turns without anything but waiting after which no thread will ever go on.
const IDLE_TURNS: u32 = 1024;
/// Instructions of the warps of a block after which it will never end.
const MOST_STEPS: u64 = 1 << 28;

/// What a warp did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Goes on.
    Run,
    /// Waits at a named barrier.
    Barrier(u8),
    /// Gives its turn to the other warps.
    Yield,
    Done,
}

/// A named barrier.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamedBarrier {
    /// Threads that it waits for; 0 while none has come.
    pub(crate) expected: u32,
    pub(crate) arrived: u32,
    /// Warps that wait.
    pub(crate) waiting: u32,
    /// Warps that came, waiting or not.
    pub(crate) came: u32,
    /// What those that came pass on.
    pub(crate) published: Published,
    /// `bar.red`: threads that said yes, and that said anything.
    pub(crate) yes: u32,
    pub(crate) said: u32,
    /// Where each warp wants the result: warp, operation, register.
    pub(crate) results: Vec<(u32, Reduce, Reduced)>,
}

/// Counters of a launch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Times each instruction was run by a warp.
    pub(crate) warps: Vec<u64>,
    /// Its threads, summed.
    pub(crate) threads: Vec<u64>,
    /// Extra passes over the banks of shared memory.
    pub(crate) conflicts: Vec<u64>,
}

/// What the warps of a block share.
pub(crate) struct Block<'a> {
    pub(crate) program: &'a Program,
    pub(crate) global: &'a mut Global,
    pub(crate) params: &'a [u8],
    pub(crate) position: Position,
    pub(crate) number: u32,
    pub(crate) shared: Shared,
    pub(crate) local: Local,
    pub(crate) barriers: Vec<NamedBarrier>,
    pub(crate) counts: Counts,
    /// Warps that a barrier let go since it was last looked at.
    pub(crate) released: u32,
    /// Results of `bar.red` that are to be written.
    pub(crate) votes: Vec<(u32, Reduced, u32)>,
    /// Grows whenever something happens that a waiting thread may have waited for.
    pub(crate) progress: u64,
    pub(crate) clock: u64,
    /// Atomic variables and the blocks whose writes they publish.
    pub(crate) published: HashMap<u64, Vec<u32>>,
    pub(crate) fenced: bool,
    pub(crate) clocks: Clocks,
    /// Barrier objects by their address.
    pub(crate) objects: HashMap<u32, BarrierObject>,
    /// Boxes on their way to shared memory.
    pub(crate) boxes: Vec<BoxCopy>,
    /// Products under way, for each warp.
    pub(crate) products: Vec<Products>,
}

/// Where a fault was made: warp, lane and instruction.
#[derive(Debug)]
pub(crate) struct Located {
    pub(crate) fault: Box<Fault>,
    pub(crate) warp: u32,
    pub(crate) pc: u32,
}

impl Block<'_> {
    /// Runs the block to its end.
    pub(crate) fn run(&mut self, warps: &mut [Warp], order: WarpOrder) -> Result<(), Located> {
        let count = warps.len();
        let mut flows = vec![Flow::Run; count];
        let mut turns: Vec<usize> = (0..count).collect();
        if order == WarpOrder::Backward {
            turns.reverse();
        }
        let mut random = match order {
            WarpOrder::Seeded(seed) => seed ^ u64::from(self.number),
            _ => 0,
        };
        let mut idle = 0;
        let mut seen = self.progress;
        loop {
            if let WarpOrder::Seeded(_) = order {
                shuffle(&mut turns, &mut random);
            }
            let mut ran = false;
            for &index in &turns {
                let warp = &mut warps[index];
                if flows[index] == Flow::Yield {
                    flows[index] = Flow::Run;
                }
                if flows[index] == Flow::Run {
                    warp.wake();
                }
                let mut left = SLICE;
                while flows[index] == Flow::Run && left > 0 {
                    left -= 1;
                    ran = true;
                    let pc = warp.pc;
                    flows[index] = self.step(warp).map_err(|fault| Located {
                        fault,
                        warp: warp.index,
                        pc: if warp.mask == 0 { pc } else { warp.pc },
                    })?;
                    if flows[index] == Flow::Yield && warp.rest() {
                        flows[index] = Flow::Run;
                    }
                }
                if left == 0 {
                    // It computes, as long as it likes: waiting would have ended its turn.
                    self.progress += 1;
                }
                if self.released != 0 {
                    self.release(warps, &mut flows);
                }
            }
            if flows.iter().all(|&flow| flow == Flow::Done) {
                return self.end(warps);
            }
            if !ran {
                return Err(self.stuck(warps, &flows));
            }
            if self.progress == seen || self.clock > MOST_STEPS {
                idle += 1;
                if idle > IDLE_TURNS || self.clock > MOST_STEPS {
                    return Err(spinning(warps, &flows));
                }
            } else {
                idle = 0;
                seen = self.progress;
            }
        }
    }

    /// Lets go the warps whose barrier is complete.
    fn release(&mut self, warps: &mut [Warp], flows: &mut [Flow]) {
        for (index, flow) in flows.iter_mut().enumerate() {
            if self.released >> index & 1 != 0 && matches!(flow, Flow::Barrier(_)) {
                *flow = Flow::Run;
            }
        }
        for (index, to, value) in self.votes.drain(..) {
            let warp = &mut warps[index as usize];
            let lanes = warp.live();
            match to {
                Reduced::Number(row) => warp.set_l(row, &[value; 32], lanes, lanes),
                Reduced::Pred(row) => {
                    warp.set_p(row, if value != 0 { u32::MAX } else { 0 }, lanes, lanes);
                }
            }
        }
        self.released = 0;
        self.progress += 1;
    }

    /// What is left over when all threads are done.
    fn end(&self, warps: &[Warp]) -> Result<(), Located> {
        for warp in warps {
            if let Some(copy) = warp.copies.first() {
                return Err(Located {
                    fault: Fault::new(
                        FindingKind::InFlight,
                        format!(
                            "{} copies to shared memory are under way when the block ends, the first to byte {}",
                            warp.copies.len(),
                            copy.to
                        ),
                    )
                    .by(usize::from(copy.lane)),
                    warp: warp.index,
                    pc: warp.pc,
                });
            }
        }
        let over = |kind, message: String, warp: u32| Located {
            fault: Fault::new(kind, message),
            warp,
            pc: warps[warp as usize].pc,
        };
        if !self.boxes.is_empty() {
            return Err(over(
                FindingKind::InFlight,
                format!(
                    "{} boxes are on their way to shared memory when the block ends",
                    self.boxes.len()
                ),
                0,
            ));
        }
        if let Some(warp) = self.products.iter().position(|one| !one.is_empty()) {
            return Err(over(
                FindingKind::InFlight,
                format!("warp {warp} has products that were not waited for when the block ends"),
                warp as u32,
            ));
        }
        if let Some(message) = self.unfinished_barrier() {
            return Err(over(FindingKind::Barrier, message, 0));
        }
        for (id, barrier) in self.barriers.iter().enumerate() {
            if barrier.arrived != 0 {
                return Err(Located {
                    fault: Fault::new(
                        FindingKind::Divergence,
                        format!(
                            "barrier {id} has {} of {} threads when the block ends",
                            barrier.arrived, barrier.expected
                        ),
                    ),
                    warp: 0,
                    pc: warps.first().map_or(0, |warp| warp.pc),
                });
            }
        }
        Ok(())
    }

    /// No warp can go on: says who waits where.
    fn stuck(&self, warps: &[Warp], flows: &[Flow]) -> Located {
        let mut text = String::new();
        for (id, barrier) in self.barriers.iter().enumerate() {
            if barrier.arrived != 0 {
                text.push_str(&format!(
                    "barrier {id} has {} of {} threads (warps {:#x}); ",
                    barrier.arrived, barrier.expected, barrier.came
                ));
            }
        }
        let done: Vec<u32> = warps
            .iter()
            .zip(flows)
            .filter(|(_, flow)| **flow == Flow::Done)
            .map(|(warp, _)| warp.index)
            .collect();
        text.push_str(&format!("warps that have ended: {done:?}"));
        let first = warps
            .iter()
            .zip(flows)
            .find(|(_, flow)| matches!(flow, Flow::Barrier(_)))
            .map(|(warp, _)| warp);
        Located {
            fault: Fault::new(FindingKind::Deadlock, text),
            warp: first.map_or(0, |warp| warp.index),
            pc: first.map_or(0, |warp| warp.pc.saturating_sub(1)),
        }
    }
}

fn spinning(warps: &[Warp], flows: &[Flow]) -> Located {
    let mut text = String::from("threads spin and nothing else happens:");
    for (warp, flow) in warps.iter().zip(flows) {
        text.push_str(&match flow {
            Flow::Done => format!(" warp {} has ended;", warp.index),
            Flow::Barrier(id) => format!(" warp {} waits at barrier {id};", warp.index),
            _ => format!(" warp {} at instruction {};", warp.index, warp.pc),
        });
    }
    let first = warps
        .iter()
        .zip(flows)
        .find(|(_, flow)| matches!(flow, Flow::Run | Flow::Yield))
        .map(|(warp, _)| warp);
    Located {
        fault: Fault::new(FindingKind::Deadlock, text),
        warp: first.map_or(0, |warp| warp.index),
        pc: first.map_or(0, |warp| warp.pc),
    }
}

/// The next of a sequence of numbers that look random.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn shuffle(turns: &mut [usize], state: &mut u64) {
    for last in (1..turns.len()).rev() {
        let other = (next(state) % (last as u64 + 1)) as usize;
        turns.swap(last, other);
    }
}

/// Checks what the kernel and the device allow, apart from the parameters.
pub(crate) fn check_launch(
    program: &Program,
    block: [u32; 3],
    shared: usize,
    most: usize,
) -> Checked<()> {
    let threads = block.iter().product::<u32>();
    if threads == 0 || threads > 1024 {
        return Err(Fault::new(
            FindingKind::Launch,
            format!("a block of {threads} threads"),
        ));
    }
    if program.max_threads.is_some_and(|most| threads > most) {
        return Err(Fault::new(
            FindingKind::Launch,
            format!(
                "a block of {threads} threads, where the kernel was compiled for {:?}",
                program.max_threads
            ),
        ));
    }
    if shared > most {
        return Err(Fault::new(
            FindingKind::Launch,
            format!("{shared} bytes of shared memory, where the device has {most}"),
        ));
    }
    Ok(())
}
