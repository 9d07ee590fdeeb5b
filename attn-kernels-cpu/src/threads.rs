//! Jobs on threads. Which thread takes which job is open; what a job computes is not, so results have the same bits for
//! every number of threads.

#[cfg(feature = "rayon")]
use alloc::sync::Arc;

/// Where jobs run: on the caller's thread, or on a pool's.
#[derive(Debug, Clone, Default)]
pub(crate) struct Threads {
    #[cfg(feature = "rayon")]
    pool: Option<Arc<rayon::ThreadPool>>,
}

/// The jobs that are left. Workers take the next until there is none.
pub(crate) struct Jobs {
    #[cfg(feature = "rayon")]
    next: core::sync::atomic::AtomicUsize,
    #[cfg(not(feature = "rayon"))]
    next: core::cell::Cell<usize>,
    count: usize,
}

/// Jobs and the multiply-adds of all of them together, about.
#[derive(Clone, Copy)]
pub(crate) struct Work {
    pub(crate) jobs: usize,
    #[cfg_attr(
        not(feature = "rayon"),
        expect(dead_code, reason = "one thread has nothing to decide")
    )]
    pub(crate) operations: usize,
}

/// Fewest multiply-adds that threads share: one does as many in about the time that it takes to wake another.
#[cfg(feature = "rayon")]
const WORTH_SHARING: usize = 1 << 19;

impl Jobs {
    fn new(count: usize) -> Self {
        Self {
            next: Default::default(),
            count,
        }
    }

    /// The next job's number, each given once.
    pub(crate) fn take(&self) -> Option<usize> {
        #[cfg(feature = "rayon")]
        let job = self
            .next
            .fetch_add(1, core::sync::atomic::Ordering::Relaxed);
        #[cfg(not(feature = "rayon"))]
        let job = self.next.replace(self.next.get() + 1);
        (job < self.count).then_some(job)
    }
}

impl Threads {
    #[cfg(feature = "rayon")]
    pub(crate) fn pool(pool: Arc<rayon::ThreadPool>) -> Self {
        Self { pool: Some(pool) }
    }

    pub(crate) fn count(&self) -> usize {
        #[cfg(feature = "rayon")]
        if let Some(pool) = &self.pool {
            return pool.current_num_threads().max(1);
        }
        1
    }

    /// Runs `worker` on as many threads as are worth it and as `scratch` serves, each with its own `each` elements of it.
    pub(crate) fn run<A: Send>(
        &self,
        work: Work,
        scratch: &mut [A],
        each: usize,
        worker: impl Fn(&Jobs, &mut [A]) + Sync,
    ) {
        let jobs = Jobs::new(work.jobs);
        #[cfg(feature = "rayon")]
        let workers = (self.count().min(jobs.count))
            .min(scratch.len().checked_div(each).unwrap_or(usize::MAX));
        #[cfg(feature = "rayon")]
        if let Some(pool) = &self.pool
            && workers > 1
            && work.operations >= WORTH_SHARING
        {
            let (jobs, worker) = (&jobs, &worker);
            pool.scope(|scope| {
                let mut rest = scratch;
                for _ in 0..workers {
                    let (own, others) = rest.split_at_mut(each.min(rest.len()));
                    rest = others;
                    scope.spawn(move |_| worker(jobs, own));
                }
            });
            return;
        }
        let each = each.min(scratch.len());
        worker(&jobs, &mut scratch[..each]);
    }
}
