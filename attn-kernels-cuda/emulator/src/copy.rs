//! `cp.async`: copies of a thread to shared memory that come in when they are waited for.
//!
//! The source is read at once and the target written at the wait, the earliest and the latest that a device may do either.

use crate::{
    access::{access, resolve},
    block::Block,
    finding::Checked,
    global::Strength,
    lanes::lanes_of,
    program::{Address, Pred, Row},
    warp::{PendingCopy, Warp},
};

impl Block<'_> {
    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    pub(crate) fn copy_async(
        &mut self,
        warp: &mut Warp,
        m: u32,
        to: &Address,
        from: &Address,
        size: usize,
        source: Option<Row>,
        ignore: Option<Pred>,
    ) -> Checked<()> {
        Self::need_address(warp, to, m)?;
        Self::need_address(warp, from, m)?;
        if let Some(row) = source {
            Warp::need(m, warp.defined(row), "the bytes of the source")?;
        }
        let ignored = match ignore {
            None => 0,
            Some(pred) => {
                Warp::need(m, warp.pred_defined(pred.row), "whether to copy")?;
                warp.p(pred)
            }
        };
        for lane in lanes_of(m) {
            let (_, target) = resolve(to.window, Self::address(warp, to, lane));
            let bytes = if ignored >> lane & 1 != 0 {
                0
            } else {
                source.map_or(size, |row| (warp.l(row)[lane] as usize).min(size))
            };
            let value = if bytes == 0 {
                0
            } else {
                let (_, address) = resolve(from.window, Self::address(warp, from, lane));
                self.global
                    .load(address, bytes, size, Strength::Plain)
                    .map_err(|fault| fault.by(lane))?
            };
            self.shared
                .begin_copy(target, size, size, &access(warp, lane), &self.clocks)
                .map_err(|fault| fault.by(lane))?;
            let copy = PendingCopy {
                lane: lane as u8,
                bytes: size as u8,
                group: warp.committed[lane],
                to: target as u32,
                pc: warp.pc,
                value,
            };
            warp.copies.push(copy);
        }
        Ok(())
    }

    /// Lets copies come in until at most `keep` groups of each lane are under way.
    pub(crate) fn copy_wait(&mut self, warp: &mut Warp, m: u32, keep: u32, all: bool) {
        let mut copies = core::mem::take(&mut warp.copies);
        copies.retain(|copy| {
            let lane = usize::from(copy.lane);
            let done = m >> lane & 1 != 0 && (all || copy.group + keep < warp.committed[lane]);
            if done {
                self.shared.end_copy(
                    u64::from(copy.to),
                    usize::from(copy.bytes),
                    copy.value,
                    32 * warp.index + u32::from(copy.lane),
                    self.clocks.epoch(warp.index as usize),
                    copy.pc,
                );
            }
            !done
        });
        warp.copies = copies;
    }
}
