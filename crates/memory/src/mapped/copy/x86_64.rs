//! The routine and the handler.

use std::arch::global_asm;
use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

// Gives 1, or 0 when a byte was not there. It goes to a line of the target byte by byte; then line by line with stores that do
// not read the line first, asking for what comes a page later: the hardware's own guess ends at the page.
global_asm!(
    ".pushsection .text.longshore_copy, \"ax\", @progbits",
    ".p2align 6",
    ".hidden longshore_copy_streaming",
    ".hidden longshore_copy_missing",
    ".globl longshore_copy_streaming",
    ".globl longshore_copy_missing",
    "longshore_copy_streaming:",
    "mov rcx, rdi",
    "neg rcx",
    "and ecx, 63",
    "cmp rcx, rdx",
    "cmova rcx, rdx",
    "sub rdx, rcx",
    "rep movsb",
    "mov rcx, rdx",
    "shr rcx, 6",
    "je 3f",
    "2:",
    "prefetcht0 [rsi + 4096]",
    "movups xmm0, [rsi]",
    "movups xmm1, [rsi + 16]",
    "movups xmm2, [rsi + 32]",
    "movups xmm3, [rsi + 48]",
    "movntdq [rdi], xmm0",
    "movntdq [rdi + 16], xmm1",
    "movntdq [rdi + 32], xmm2",
    "movntdq [rdi + 48], xmm3",
    "add rsi, 64",
    "add rdi, 64",
    "dec rcx",
    "jne 2b",
    "3:",
    "mov ecx, edx",
    "and ecx, 63",
    "rep movsb",
    "sfence",
    "mov eax, 1",
    "ret",
    "longshore_copy_missing:",
    "sfence",
    "xor eax, eax",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    static longshore_copy_missing: u8;
    fn longshore_copy_streaming(to: *mut u8, from: *const u8, len: usize) -> c_int;
}

/// Whether the handler is there. It is from the first question on.
pub(in crate::mapped) fn recovers() -> bool {
    static INSTALLED: OnceLock<bool> = OnceLock::new();
    *INSTALLED.get_or_init(|| install().is_some())
}

/// Copies as many bytes as `to` has, past the core's caches, and past what the compiler knows of memory: others may write to
/// `from` meanwhile. False when some of `from` was not there; then some of `to` may have been written. Ask [`recovers`]
/// before.
///
/// # Safety
/// `from` must lie, for as many bytes, in a mapping.
pub(in crate::mapped) unsafe fn copy_streaming(to: &mut [u8], from: *const u8) -> bool {
    // SAFETY: the target is exclusive and has as many bytes; the source is mapped, says the caller, and where a page of it
    // has no content the handler ends the routine.
    unsafe { longshore_copy_streaming(to.as_mut_ptr(), from, to.len()) == 1 }
}

/// Whom SIGBUS went to before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

fn install() -> Option<()> {
    // SAFETY: for this structure of integers, zeros are values.
    let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only writes `before`, which lives through the call.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) };
    if asked != 0 {
        return None;
    }
    BEFORE.set(before).ok()?;
    let mut action = before;
    action.sa_sigaction = on_bus as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `on_bus` does what a signal handler may, and `BEFORE` is set.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) };
    (set == 0).then_some(())
}

/// Only what is allowed in a handler: it looks at statics, writes a register of the one who was interrupted, and calls
/// who was there before.
extern "C" fn on_bus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let start = longshore_copy_streaming as *const () as i64;
    let missing = &raw const longshore_copy_missing as i64;
    let interrupted = context.cast::<libc::ucontext_t>();
    // SAFETY: with SA_SIGINFO the kernel hands in what it says of the signal, for this handler alone.
    let code = unsafe { (*info).si_code };
    // SAFETY: as above, with the registers of the one who was interrupted.
    let at = unsafe { &mut (*interrupted).uc_mcontext.gregs[libc::REG_RIP as usize] };
    // Positive: from the kernel, because of that very instruction. Others send it by `kill`.
    if code > 0 && (start..missing).contains(at) {
        *at = missing;
        return;
    }
    let Some(before) = BEFORE.get() else { return };
    match before.sa_sigaction {
        libc::SIG_IGN if code <= 0 => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the usual action needs nothing.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
            // An instruction faults again when this returns, and ends as it would have without us; a signal that was
            // sent is sent again.
            if code <= 0 {
                // SAFETY: to this thread, where it waits until this returns.
                unsafe { libc::raise(signal) };
            }
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with this flag a handler is such a function.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without it, such a one.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
