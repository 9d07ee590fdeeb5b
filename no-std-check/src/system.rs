//! What the standard library and the C library would bring: the entry, the exit and a panic handler.

use core::arch::{asm, naked_asm};
use core::panic::PanicInfo;

/// Exit status of a panic, as `std`'s.
const PANICKED: i32 = 101;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    exit(PANICKED)
}

/// Where the kernel starts the program: the stack is aligned, and nothing was called yet.
///
/// # Safety
///
/// Only the kernel may enter here.
#[unsafe(no_mangle)]
#[unsafe(naked)]
unsafe extern "C" fn _start() -> ! {
    #[cfg(target_arch = "x86_64")]
    naked_asm!("xor ebp, ebp", "call {main}", main = sym main);
    #[cfg(target_arch = "aarch64")]
    naked_asm!("mov x29, xzr", "mov x30, xzr", "b {main}", main = sym main);
}

extern "C" fn main() -> ! {
    exit(crate::run())
}

fn exit(status: i32) -> ! {
    // SAFETY: the system call takes the status in this register, touches no memory of ours and does not return.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("syscall", in("rax") 60, in("rdi") status, options(noreturn))
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!("svc 0", in("x8") 93, in("x0") status, options(noreturn))
    }
}

/// The compiled `core` names it in its tables for unwinding; nothing unwinds where a panic aborts.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
