//! The backend value.

use crate::element::Stored;
use crate::isa::Isa;
use crate::modifiers::Modifiers;
use crate::simd::Level;
use crate::threads::{Jobs, Threads, Work};
use crate::{attend, attend_backward, merge, normalize, pack, project, rotate};
use attn_core::{
    Attention, AttentionBackward, AttentionShape, Backend, Element, Error, Features, Host,
    HostView, HostViewMut, Kernels, Merge, NormalizeBackward, Packing, Projection,
    ProjectionBackward, Result, Rotate,
};

/// A CPU with a chosen instruction set and threads.
///
/// Cheap to clone. Results depend on the instruction set in their last bits, never on the number of threads.
#[derive(Debug, Clone)]
pub struct Cpu {
    isa: Isa,
    level: Level,
    threads: Threads,
}

impl Cpu {
    /// The best instruction set of this machine, the caller's thread alone.
    #[must_use]
    pub fn detect() -> Self {
        Self::with_isa(Isa::detect()).unwrap_or_else(|_| Self::portable())
    }

    /// Plain Rust, on any machine.
    #[must_use]
    pub fn portable() -> Self {
        let level = Level::Portable(fearless_simd::Fallback::new());
        Self {
            isa: Isa::Portable,
            level,
            threads: Threads::default(),
        }
    }

    /// This instruction set.
    ///
    /// ```
    /// use attn_kernels_cpu::{Cpu, Isa};
    /// assert_eq!(Cpu::with_isa(Isa::Portable)?.isa(), Isa::Portable);
    /// # Ok::<(), attn_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if this machine lacks it.
    pub fn with_isa(isa: Isa) -> Result<Self> {
        Ok(Self {
            isa,
            level: isa.level()?,
            threads: Threads::default(),
        })
    }

    /// With a pool of `threads` threads of its own (1 means the caller's thread).
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the system gives no threads.
    #[cfg(feature = "rayon")]
    pub fn with_threads(self, threads: usize) -> Result<Self> {
        if threads <= 1 {
            return Ok(Self {
                threads: Threads::default(),
                ..self
            });
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|_| Error::Unsupported {
                backend: "this system",
                feature: "another thread",
                instead: "Ask for fewer threads",
            })?;
        Ok(self.with_pool(alloc::sync::Arc::new(pool)))
    }

    /// On the caller's pool.
    #[cfg(feature = "rayon")]
    #[must_use]
    pub fn with_pool(self, pool: alloc::sync::Arc<rayon::ThreadPool>) -> Self {
        Self {
            threads: Threads::pool(pool),
            ..self
        }
    }

    /// The instruction set.
    #[must_use]
    pub const fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    pub(crate) const fn level(&self) -> Level {
        self.level
    }

    pub(crate) fn run<A: Send>(
        &self,
        work: Work,
        scratch: &mut [A],
        each: usize,
        worker: impl Fn(&Jobs, &mut [A]) + Sync,
    ) {
        self.threads.run(work, scratch, each, worker);
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::detect()
    }
}

impl Backend for Cpu {
    type Storage = Host;
    type Error = Error;

    fn name(&self) -> &'static str {
        self.isa.name()
    }
}

/// Attention with a user's own modifiers.
pub trait AttendModified<T: Element>: Kernels<T> {
    /// As [`Kernels::attend`], with `modifiers`. There is no gradient.
    ///
    /// ```
    /// use attn_core::{Attention, AttentionShape, HostView, HostViewMut, Kernels};
    /// use attn_kernels_cpu::{AttendModified, At, Cpu, Modifiers};
    ///
    /// // Four tokens, one head of depth 1: [length, heads, depth]. A token sees itself and those an even number of tokens before it.
    /// let cpu = Cpu::detect();
    /// let x = [0.0f32; 4];
    /// let v = [1.0f32, 2.0, 3.0, 4.0];
    /// let (x, v) = (HostView::new(&x, &[4, 1, 1])?, HostView::new(&v, &[4, 1, 1])?);
    /// let shape = AttentionShape::of(x.shape(), x.shape(), v.shape())?;
    /// let mut scratch = vec![0.0; Kernels::<f32>::attend_scratch(&cpu, &shape)];
    /// let mut out = [0.0f32; 4];
    /// let sees = |at: At| at.key <= at.query && (at.query - at.key).is_multiple_of(2);
    /// let modifiers = Modifiers { mask: Some(&sees), ..Modifiers::default() };
    /// cpu.attend_modified(Attention::new(x, x, v), modifiers, HostViewMut::new(&mut out, &[4, 1, 1])?, &mut scratch)?;
    /// assert_eq!(out, [1.0, 2.0, 2.0, 3.0]);
    /// # Ok::<(), attn_core::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`Kernels::attend`].
    fn attend_modified(
        &self,
        call: Attention<'_, Host, T>,
        modifiers: Modifiers<'_, T::Acc>,
        out: HostViewMut<'_, T>,
        scratch: &mut [T::Acc],
    ) -> Result<()>;
}

macro_rules! impl_kernels {
    ($(($type:ty, $variant:ident, $acc:ty)),+ $(,)?) => {$(
        impl AttendModified<$type> for Cpu {
            fn attend_modified(
                &self,
                call: Attention<'_, Host, $type>,
                modifiers: Modifiers<'_, $acc>,
                out: HostViewMut<'_, $type>,
                scratch: &mut [$acc],
            ) -> Result<()> {
                attend::attend(self, call, modifiers, out, scratch)
            }
        }

        impl Kernels<$type> for Cpu {
            fn project_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize {
                project::scratch::<$type>(self, rows, features, outputs, 1)
            }

            fn project(
                &self,
                call: &Projection<'_, Host, $type>,
                out: HostViewMut<'_, $type>,
                scratch: &mut [$acc],
            ) -> Result<()> {
                project::project(self, call, out, scratch)
            }

            fn project_each(
                &self,
                calls: &[Projection<'_, Host, $type>],
                outs: &mut [HostViewMut<'_, $type>],
                scratch: &mut [$acc],
            ) -> Result<()> {
                project::project_each(self, calls, outs, scratch)
            }

            fn project_each_scratch(&self, rows: usize, features: usize, outputs: usize, count: usize) -> usize {
                project::scratch::<$type>(self, rows, features, outputs, count)
            }

            fn packing(&self, features: usize, outputs: usize) -> Option<Packing> {
                Some(pack::packing::<$type>(self, features, outputs))
            }

            fn pack(&self, kernel: HostView<'_, $type>, to: &mut [$type]) -> Result<()> {
                pack::pack(self, &kernel, to)
            }

            fn normalize(&self, x: HostViewMut<'_, $type>, scale: HostView<'_, $acc>, epsilon: f64) -> Result<()> {
                normalize::normalize(x, scale, epsilon)
            }

            fn features(&self) -> Features {
                attend::SUPPORTED
            }

            fn backward_features(&self) -> Features {
                attend_backward::SUPPORTED
            }

            fn attend_scratch(&self, shape: &AttentionShape) -> usize {
                attend::scratch::<$type>(self, shape)
            }

            fn attend(
                &self,
                call: Attention<'_, Host, $type>,
                out: HostViewMut<'_, $type>,
                scratch: &mut [$acc],
            ) -> Result<()> {
                attend::attend(self, call, Modifiers::default(), out, scratch)
            }

            fn project_backward_scratch(&self, rows: usize, features: usize, outputs: usize) -> usize {
                project::backward_scratch::<$type>(self, rows, features, outputs)
            }

            fn project_backward(&self, call: ProjectionBackward<'_, Host, $type>, scratch: &mut [$acc]) -> Result<()> {
                project::project_backward(self, call, scratch)
            }

            fn normalize_backward(&self, call: NormalizeBackward<'_, Host, $type>) -> Result<()> {
                normalize::normalize_backward(call)
            }

            fn attend_backward_scratch(&self, shape: &AttentionShape) -> usize {
                attend_backward::scratch::<$type>(self, shape)
            }

            fn attend_backward(&self, call: AttentionBackward<'_, Host, $type>, scratch: &mut [$acc]) -> Result<()> {
                attend_backward::attend_backward(self, call, scratch)
            }

            fn rotate(&self, call: Rotate<'_, Host, $type>) -> Result<()> {
                rotate::rotate(self, call)
            }

            fn merge(&self, call: Merge<'_, Host, $type>) -> Result<()> {
                merge::merge(self, call)
            }
        }
    )+};
}
attn_core::for_each_dtype!(impl_kernels);

// The macro above lists the same types; this keeps the list and the trait in step.
const _: fn() = || {
    fn stored<T: Stored>() {}
    stored::<f32>();
    stored::<f64>();
    stored::<attn_core::f16>();
    stored::<attn_core::bf16>();
};
