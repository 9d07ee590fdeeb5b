//! Instructions in which lanes of a warp take part together.

use crate::{
    finding::{Checked, Fault, FindingKind},
    lanes::{LANES, lanes_of},
    program::{Pred, Reg, Row, Shuffle, Vote},
    warp::Warp,
};

/// Whether the lanes that a mask names are all here; else those that are wait.
pub(crate) fn gather(warp: &mut Warp, mask: Row) -> Checked<bool> {
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

pub(crate) fn shuffle(
    warp: &mut Warp,
    kind: Shuffle,
    d: Row,
    p: Row,
    a: Row,
    b: Row,
    c: Row,
) -> Checked<()> {
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

pub(crate) fn vote(warp: &mut Warp, kind: Vote, d: Row, a: Pred) -> Checked<()> {
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

pub(crate) fn matching(warp: &mut Warp, all: bool, d: Row, p: Row, a: Reg) -> Checked<()> {
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
