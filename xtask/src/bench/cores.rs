//! Which cores a race runs on: the last of those that this process may use, as many as it has threads.
//!
//! One thread that wanders between cores loses its caches, and a library that counts cores to choose its threads must not find more than the
//! others have. Where cores cannot be chosen, the system chooses them.

/// This thread, and those that it starts, keep to some cores until this is dropped.
#[must_use]
pub(crate) struct Kept {
    #[cfg(target_os = "linux")]
    before: Option<rustix::thread::CpuSet>,
}

#[cfg(target_os = "linux")]
impl Kept {
    pub(crate) fn to(threads: usize) -> Self {
        use rustix::thread::{sched_getaffinity, sched_setaffinity};
        let before = sched_getaffinity(None).ok();
        if let Some(before) = &before {
            // Of no consequence if it fails: the race is then run on all cores.
            let _ = sched_setaffinity(None, &last(before, threads));
        }
        Self { before }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = rustix::thread::sched_setaffinity(None, before);
        }
    }
}

/// The last `count` cores of `all`.
#[cfg(target_os = "linux")]
fn last(all: &rustix::thread::CpuSet, count: usize) -> rustix::thread::CpuSet {
    use rustix::thread::CpuSet;
    let mut kept = CpuSet::new();
    let cores = (0..CpuSet::MAX_CPU).rev().filter(|&core| all.is_set(core));
    for core in cores.take(count) {
        kept.set(core);
    }
    kept
}

#[cfg(not(target_os = "linux"))]
impl Kept {
    pub(crate) const fn to(_threads: usize) -> Self {
        Self {}
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use rustix::thread::{CpuSet, sched_getaffinity};

    #[test]
    fn the_last_cores_are_kept() {
        let mut all = CpuSet::new();
        for core in [0, 2, 5, 9] {
            all.set(core);
        }
        let kept = last(&all, 2);
        assert_eq!([2, 5, 9].map(|core| kept.is_set(core)), [false, true, true]);
        assert_eq!(last(&all, 7), all);
    }

    #[test]
    fn afterwards_it_is_as_before() {
        let before = sched_getaffinity(None).unwrap();
        let kept = Kept::to(1);
        assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
        drop(kept);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
