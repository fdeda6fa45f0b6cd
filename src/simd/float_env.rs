//! The floating-point environment that every result is computed in, whatever the calling thread has
//! set.
//!
//! Arithmetic obeys a register of the thread: MXCSR on x86-64, FPCR on Arm. Callers may have set it
//! to flush subnormals to 0 (`torch.set_flush_denormal`, Intel OpenMP, anything linked with
//! `-ffast-math`), to round otherwise than to nearest (`fesetround`), or to raise a signal at a
//! division by 0 (`feenableexcept`). Bits would depend on it, and on which of the threads of a pool
//! inherited it from the thread that started them.
//!
//! So all arithmetic of this crate is done between [`Environment::enter`] and the end of what that
//! returns: in the kernels, which [`crate::backend`] enters, and in [`scope`] for the rest. Both
//! cost a read of the register where it is as programs start with it. No environment is entered
//! around anything that runs code of the caller, or waits for another thread: a thread of rayon
//! that waits may run a task of the caller's, which is to find the register as the caller left it.
//!
//! # What keeps arithmetic inside
//! The compiler takes arithmetic for a function of its operands, and may move it from behind an
//! instruction that writes the register to before it. It cannot move a call of which it knows
//! nothing across assembly that may read and write memory. Hence both ways in call a function that
//! passed through assembly as a pointer ([`out_of_sight`]). Operands are those of the caller, or were
//! computed inside.
#![allow(unsafe_code)]

use std::mem::{ManuallyDrop, MaybeUninit};

/// Calls `f` in the environment that programs start with, and gives the caller's back afterwards,
/// with its sticky flags, also if `f` panics.
///
/// `f` runs no code of the caller's, and waits for no other thread. It may be nested.
#[inline(always)]
pub(crate) fn scope<R>(f: impl FnOnce() -> R) -> R {
    let mut call = Call { f: ManuallyDrop::new(f), result: MaybeUninit::uninit() };
    let run: &unsafe fn(&mut Call<_, R>) = &(Call::run as unsafe fn(&mut Call<_, R>));
    let run = out_of_sight(run);
    let environment = Environment::enter();
    // SAFETY: for the first and only time.
    unsafe { run(&mut call) };
    drop(environment);
    // SAFETY: `run` wrote it, as it returned.
    unsafe { call.result.assume_init() }
}

/// A call of a closure by a function that is the same for all of its type: what passes between goes
/// through memory.
struct Call<F, R> {
    f: ManuallyDrop<F>,
    result: MaybeUninit<R>,
}

impl<F: FnOnce() -> R, R> Call<F, R> {
    /// Writes the result, if it returns.
    ///
    /// # Safety
    /// It was not called before.
    unsafe fn run(&mut self) {
        // SAFETY: nobody else takes it, so that it is there.
        let f = unsafe { ManuallyDrop::take(&mut self.f) };
        self.result.write(f());
    }
}

pub(crate) use register::{Environment, out_of_sight};

#[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
mod register {
    use crate::simd::float_env::control::{self, Register};
    use std::arch::asm;

    /// As long as it lives the register of the thread is as programs start with it; then it is the
    /// caller's again.
    ///
    /// It stays on the thread that made it.
    pub(crate) struct Environment {
        callers: Register,
        not_send: std::marker::PhantomData<*const ()>,
    }

    impl Environment {
        #[inline(always)]
        pub(crate) fn enter() -> Self {
            let callers = control::read();
            if !control::is_default(&callers) {
                enter_from_elsewhere();
            }
            Environment { callers, not_send: std::marker::PhantomData }
        }
    }

    impl Drop for Environment {
        #[inline(always)]
        fn drop(&mut self) {
            if !control::is_default(&self.callers) {
                give_back(&self.callers);
            }
        }
    }

    #[cold]
    fn enter_from_elsewhere() {
        control::write(&control::DEFAULT);
    }

    #[cold]
    fn give_back(callers: &Register) {
        control::write(callers);
    }

    /// The same reference, of which the compiler knows no more where it came from nor what is
    /// there.
    #[inline(always)]
    pub(crate) fn out_of_sight<T>(value: &T) -> &T {
        let mut at: *const T = value;
        // SAFETY: there is no instruction: `at` is what it was, a reference that lives as long as
        // `value`.
        unsafe {
            asm!("/* {0} */", inout(reg) at, options(nostack, preserves_flags));
            &*at
        }
    }
}

/// MXCSR. (The control word of the x87 has no effect on numbers of 32 and 64 bits in Rust.)
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod control {
    use std::arch::asm;

    pub(super) type Register = u32;

    /// All exceptions masked, rounding to nearest, subnormals neither flushed nor taken for 0, no
    /// flag raised.
    pub(super) const DEFAULT: Register = 0x1f80;

    /// What arithmetic raises and nothing obeys.
    const FLAGS: Register = 0x3f;

    #[inline(always)]
    pub(super) fn read() -> Register {
        let mut register = 0;
        // SAFETY: every x86-64 CPU has the instruction. It writes the four bytes of `register` and
        // nothing else.
        unsafe {
            asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack, preserves_flags));
        }
        register
    }

    #[inline(always)]
    pub(super) fn is_default(register: &Register) -> bool {
        register & !FLAGS == DEFAULT
    }

    pub(super) fn write(register: &Register) {
        // SAFETY: it reads four bytes. They are `DEFAULT`, or what `read` found, so that no bit is
        // set which the CPU does not know. What the compiler takes for granted about the register
        // is what `DEFAULT` makes true; where it was not until now, or will not be from now on, no
        // arithmetic of this crate runs, and that of callers is as it was.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) std::ptr::from_ref(register), options(nostack));
        }
    }
}

/// FPCR, and FPSR, which has the flags that arithmetic raises.
#[cfg(all(target_arch = "aarch64", not(miri)))]
mod control {
    use std::arch::asm;

    pub(super) struct Register {
        control: u64,
        flags: u64,
    }

    /// Rounding to nearest, subnormals kept in all formats, NaN propagated, nothing trapped.
    pub(super) const DEFAULT: Register = Register { control: 0, flags: 0 };

    #[inline(always)]
    pub(super) fn read() -> Register {
        let control: u64;
        // SAFETY: every 64-bit Arm CPU of the targets of Rust's standard library has the register,
        // which anyone may read.
        unsafe { asm!("mrs {}, fpcr", out(reg) control, options(nostack, preserves_flags)) };
        let mut register = Register { control, flags: 0 };
        if !is_default(&register) {
            // SAFETY: the same.
            unsafe {
                asm!("mrs {}, fpsr", out(reg) register.flags, options(nostack, preserves_flags));
            }
        }
        register
    }

    #[inline(always)]
    pub(super) fn is_default(register: &Register) -> bool {
        register.control == DEFAULT.control
    }

    pub(super) fn write(register: &Register) {
        // SAFETY: anyone may write these registers. They get `DEFAULT`, or what `read` found. What
        // the compiler takes for granted about them is what `DEFAULT` makes true; where it was not
        // until now, or will not be from now on, no arithmetic of this crate runs, and that of
        // callers is as it was.
        unsafe {
            asm!("msr fpcr, {}", in(reg) register.control, options(nostack));
            asm!("msr fpsr, {}", in(reg) register.flags, options(nostack));
        }
    }
}

/// Targets without such a register, or where nobody has tried: the environment is as it is.
#[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
mod register {
    pub(crate) struct Environment(());

    impl Environment {
        #[inline(always)]
        pub(crate) fn enter() -> Self {
            Environment(())
        }
    }

    #[inline(always)]
    pub(crate) fn out_of_sight<T>(value: &T) -> &T {
        value
    }
}
