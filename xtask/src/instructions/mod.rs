//! Instructions of representative calls, counted under Callgrind and held against a baseline that is part of the sources.

mod baseline;
mod count;
mod verdict;

use anyhow::{Result, bail};
use baseline::Baseline;
use lexopt::Arg;
use verdict::Comparison;

pub(crate) fn command(mut args: lexopt::Parser) -> Result<()> {
    let (mut accept, mut require) = (false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Arg::Long("accept") => accept = true,
            Arg::Long("require") => require = true,
            other => return Err(other.unexpected().into()),
        }
    }
    if accept {
        self::accept()
    } else {
        check(require)
    }
}

/// Counts, and fails if a call takes more instructions than the baseline and the limit allow. Where nothing can be counted that is
/// said, or is a failure if the counts are required.
pub(crate) fn check(require: bool) -> Result<()> {
    if let Some(reason) = count::hindrance() {
        if require {
            bail!("instructions cannot be counted: {reason}");
        }
        println!("SKIPPED: instructions are not counted: {reason}");
        return Ok(());
    }
    let baseline = Baseline::read()?;
    let comparison = Comparison::new(&baseline, &count::count()?);
    print!("{comparison}");
    comparison.judge()
}

/// Counts, and makes that the baseline.
fn accept() -> Result<()> {
    if let Some(reason) = count::hindrance() {
        bail!("instructions cannot be counted: {reason}");
    }
    let now = count::count()?;
    // There is none to compare with when the first is made.
    if let Ok(before) = Baseline::read() {
        print!("{}", Comparison::new(&before, &now));
    }
    now.write()
}
