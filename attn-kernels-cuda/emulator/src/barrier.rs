//! Named barriers of a block.

use crate::{
    block::{Block, Flow, NamedBarrier},
    finding::{Checked, Fault, FindingKind},
    lanes::lanes_of,
    program::{Pred, Reduce, Reduced, Row},
    warp::Warp,
};

impl Block<'_> {
    pub(crate) fn barrier(
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

    pub(crate) fn complete(&mut self, barrier: &NamedBarrier) {
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
