//! The instruction sets: their names, which of them a machine has, and the one way into each.
//!
//! This file and those of the instruction sets hold all the `unsafe` of the crate, with
//! [`float_env`](super::float_env).
#![allow(unsafe_code)]

use super::float_env::{Environment, out_of_sight};
#[cfg(target_arch = "aarch64")]
use super::neon::Neon;
use super::portable::Portable;
#[cfg(feature = "scalar")]
use super::scalar::Scalar;
use super::vectors::{InstructionSet, Op, Simd};
#[cfg(target_arch = "x86_64")]
use super::{avx2::Avx2, avx512::Avx512};
use std::fmt;
use std::sync::OnceLock;

/// A row for each backend, slowest first: its name, its token, and where it is compiled.
macro_rules! backends {
    (
        $(#[$of_all:meta])*
        backends;
        $($(#[$doc:meta])* $name:ident = $text:literal, $token:ty, if $where:meta;)*
    ) => {
        $(#[$of_all])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Backend {
            $($(#[$doc])* $name,)*
        }

        impl Backend {
            /// All backends, whether or not this machine can run them; slowest first.
            pub const ALL: &'static [Backend] = &[$(Backend::$name),*];

            /// The name, as `XENT_BACKEND` and the command line take it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Backend::$name => $text,)*
                }
            }

            /// Whether its results are the same bits as those of all other such backends, on every machine.
            ///
            /// That takes fused multiply-add, which `portable` has only if it was compiled for it.
            pub const fn is_bit_exact(self) -> bool {
                match self {
                    $(#[cfg($where)] Backend::$name => <$token as Simd>::FUSED,)*
                    // Of another machine: all that have instructions of their own have that one.
                    #[allow(unreachable_patterns)]
                    _ => true,
                }
            }

            fn detect(self) -> bool {
                match self {
                    $(#[cfg($where)] Backend::$name => <$token>::detect(),)*
                    #[allow(unreachable_patterns)]
                    _ => false,
                }
            }
        }

        impl Kernels {
            /// Computes `op` in a floating-point environment of its own
            /// ([`float_env`](super::float_env)).
            #[inline]
            pub(crate) fn run<O: Op>(self, op: O) -> O::Out {
                let entry = match self.0 {
                    $(#[cfg($where)] Backend::$name => <$token>::entry::<O>(),)*
                    #[allow(unreachable_patterns)]
                    _ => unreachable!("`Kernels::of` refuses what is not detected"),
                };
                let entry = out_of_sight(&entry);
                let _environment = Environment::enter();
                // SAFETY: `Kernels::of` saw that the instructions were detected.
                unsafe { entry(op) }
            }
        }
    };
}
backends! {
    /// An instruction set that the kernels were compiled for.
    ///
    /// The fastest available one is used unless another is asked for, by
    /// [`CrossEntropy::backend`](crate::CrossEntropy::backend) or by the environment variable
    /// `XENT_BACKEND` (read once; the API wins).
    ///
    /// `scalar`, `neon`, `avx2` and `avx512` return the same bits for every input, on every machine.
    /// `portable` does too where it was compiled with fused multiply-add (on Arm it always is), and keeps
    /// the same error bounds elsewhere (`tests/equivalence.rs`, `tests/digest.rs`).
    ///
    /// ```
    /// use xent::Backend;
    ///
    /// println!("{} of {:?}", Backend::selected()?, Backend::available());
    /// assert!(Backend::available().contains(&Backend::Portable));
    /// assert_eq!("avx2".parse::<Backend>()?, Backend::Avx2);
    /// # Ok::<(), xent::Error>(())
    /// ```
    backends;

    /// Plain Rust, lane by lane: what the others are compared with. Slow. Compiled with the feature
    /// `scalar` only, which is for tests: it takes as long to build as all others together.
    Scalar = "scalar", Scalar, if feature = "scalar";
    /// The `wide` crate, with the instructions that this build was compiled for (SSE2 by default on
    /// x86-64, NEON on Arm).
    Portable = "portable", Portable, if all();
    /// NEON, which every 64-bit Arm CPU has.
    Neon = "neon", Neon, if target_arch = "aarch64";
    /// AVX2, FMA and F16C, which all CPUs with the first two have.
    Avx2 = "avx2", Avx2, if target_arch = "x86_64";
    /// AVX-512 F, BW, DQ and VL.
    Avx512 = "avx512", Avx512, if target_arch = "x86_64";
}

impl Backend {
    /// The backends that this machine can run, slowest first. Never empty.
    ///
    /// [`Backend::Scalar`] is among them only where the crate was built with the feature `scalar`.
    pub fn available() -> &'static [Backend] {
        static AVAILABLE: OnceLock<Vec<Backend>> = OnceLock::new();
        AVAILABLE.get_or_init(|| Self::ALL.iter().copied().filter(|b| b.detect()).collect())
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        Self::available().contains(&self)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The kernels of a backend that this machine can run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernels(Backend);

impl Kernels {
    /// `None` for a backend that this machine cannot run, or that was not compiled.
    pub(crate) fn of(backend: Backend) -> Option<Kernels> {
        backend.is_available().then_some(Kernels(backend))
    }
}
