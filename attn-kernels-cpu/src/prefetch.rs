//! Asking for memory before it is needed: rows of a cache lie too scattered for the processor to guess which come next.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the elements to be brought near. It changes nothing else, and does nothing where there is no such instruction.
#[inline(always)]
pub(crate) fn prefetch<T>(from: &[T]) {
    let bytes = size_of_val(from);
    let mut offset = 0;
    while offset < bytes {
        line(from.as_ptr().cast::<i8>().wrapping_add(offset));
        offset += LINE;
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
#[expect(unsafe_code, reason = "the intrinsic takes a raw pointer")]
fn line(at: *const i8) {
    use core::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: SSE is part of x86-64, and the instruction is a hint: it neither reads nor faults, whatever the address.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn line(_: *const i8) {}
