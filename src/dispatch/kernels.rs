//! Which instructions run: detected once, chosen by name, entered through one function per kernel.
//!
//! This module and the instruction-set files hold all the `unsafe` of the crate.
#![allow(unsafe_code)]

use crate::data::error::Error;
use crate::kernel::row_stats::RowStats;
use crate::kernel::transpose::{self, Transpose};
use crate::kernel::{double, exp, forward, logprobs, read, softmax, sum, train, transform};
use crate::simd::Simd;
use crate::simd::float_env::{Environment, out_of_sight};
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::portable::Portable;
use crate::simd::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};
use half::{bf16, f16};
#[cfg(target_arch = "aarch64")]
use std::arch::is_aarch64_feature_detected as is_feature_detected;
#[cfg(target_arch = "x86_64")]
use std::arch::is_x86_feature_detected as is_feature_detected;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

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
/// assert!(Backend::available().contains(&Backend::Scalar));
/// assert_eq!("avx2".parse::<Backend>()?, Backend::Avx2);
/// # Ok::<(), xent::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Backend {
    /// Plain Rust, lane by lane: what the others are compared with. Slow.
    Scalar,
    /// The `wide` crate, with the instructions that this build was compiled for (SSE2 by default on
    /// x86-64, NEON on Arm).
    Portable,
    /// NEON, which every 64-bit Arm CPU has.
    Neon,
    /// AVX2, FMA and F16C, which all CPUs with the first two have.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl Backend {
    /// All backends, whether or not this machine can run them; slowest first.
    pub const ALL: &'static [Backend] =
        &[Backend::Scalar, Backend::Portable, Backend::Neon, Backend::Avx2, Backend::Avx512];

    /// The name, as `XENT_BACKEND` and the command line take it.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Scalar => "scalar",
            Backend::Portable => "portable",
            Backend::Neon => "neon",
            Backend::Avx2 => "avx2",
            Backend::Avx512 => "avx512",
        }
    }

    /// Whether its results are the same bits as those of all other such backends, on every machine.
    ///
    /// That takes fused multiply-add, which `portable` has only if it was compiled for it.
    pub const fn is_bit_exact(self) -> bool {
        match self {
            Backend::Scalar | Backend::Neon | Backend::Avx2 | Backend::Avx512 => true,
            Backend::Portable => <Portable as Simd>::FUSED,
        }
    }

    /// The backends that this machine can run, slowest first. Never empty.
    pub fn available() -> &'static [Backend] {
        static AVAILABLE: OnceLock<Vec<Backend>> = OnceLock::new();
        AVAILABLE.get_or_init(|| Self::ALL.iter().copied().filter(|b| b.detect()).collect())
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        Self::available().contains(&self)
    }

    /// The backend that is used where none is asked for: that of `XENT_BACKEND`, or the fastest.
    ///
    /// # Errors
    /// [`Error::UnknownBackend`] or [`Error::BackendUnavailable`] for a bad `XENT_BACKEND`.
    pub fn selected() -> Result<Backend, Error> {
        static SELECTED: OnceLock<Result<Backend, Error>> = OnceLock::new();
        SELECTED
            .get_or_init(|| match std::env::var_os("XENT_BACKEND") {
                Some(name) if !name.is_empty() => {
                    name.to_string_lossy().parse::<Backend>()?.require()
                }
                _ => Ok(Self::available()[Self::available().len() - 1]),
            })
            .clone()
    }

    fn require(self) -> Result<Backend, Error> {
        if self.is_available() {
            Ok(self)
        } else {
            Err(Error::BackendUnavailable { requested: self, available: Self::available() })
        }
    }

    /// The kernels of `backend`, or of the selected one.
    pub(crate) fn kernels(backend: Option<Backend>) -> Result<Kernels, Error> {
        let backend = backend.map_or_else(Backend::selected, Backend::require)?;
        Ok(Kernels(match backend {
            Backend::Scalar => &scalar::ENTRIES,
            Backend::Portable => &portable::ENTRIES,
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => &neon::ENTRIES,
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => &avx2::ENTRIES,
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => &avx512::ENTRIES,
            _ => unreachable!("`require` refuses what `detect` does not find"),
        }))
    }

    fn detect(self) -> bool {
        match self {
            Backend::Scalar | Backend::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => neon::detect(),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => avx2::detect(),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => avx512::detect(),
            // Instructions of another architecture.
            _ => false,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Backend {
    type Err = Error;

    /// The backend of that [name](Backend::name), in any case, available or not.
    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.iter().copied().find(|b| b.name().eq_ignore_ascii_case(name)).ok_or_else(|| {
            Error::UnknownBackend { name: name.to_owned(), available: Self::available() }
        })
    }
}

/// The kernels of one backend, compiled with its instructions.
///
/// Calling one is sound on a CPU that has those instructions only.
struct Entries {
    forward: unsafe fn(&mut forward::Job<'_>),
    forward_argmax: unsafe fn(&mut forward::Job<'_>),
    train: unsafe fn(&mut train::Job<'_, f32>),
    train_f64: unsafe fn(&mut train::Job<'_, f64>),
    softmax: unsafe fn(&mut softmax::Job<'_, f32>),
    log_softmax: unsafe fn(&mut softmax::Job<'_, f32>),
    logsumexp: unsafe fn(&mut softmax::LogSumExpJob<'_, f32>),
    row_loss: unsafe fn(&[f32], usize) -> f64,
    exp: unsafe fn(&mut [f32]),
    read: unsafe fn(&[f32]) -> f32,
    rewrite: unsafe fn(&mut [f32], f32),
    exp_f64: unsafe fn(&mut [f64]),
    softmax_f64: unsafe fn(&mut softmax::Job<'_, f64>),
    log_softmax_f64: unsafe fn(&mut softmax::Job<'_, f64>),
    logsumexp_f64: unsafe fn(&mut softmax::LogSumExpJob<'_, f64>),
    sum_from_f64: unsafe fn(&[f64], Option<&[f64]>, f64) -> f64,
    forward_bf16: unsafe fn(&mut forward::Job<'_, bf16>),
    forward_argmax_bf16: unsafe fn(&mut forward::Job<'_, bf16>),
    train_bf16: unsafe fn(&mut train::Job<'_, bf16>),
    softmax_bf16: unsafe fn(softmax::AnyJob<'_, '_, bf16>),
    widen_bf16: unsafe fn(&[bf16], &mut [f32]),
    narrow_bf16: unsafe fn(&[f32], &mut [bf16]),
    forward_f16: unsafe fn(&mut forward::Job<'_, f16>),
    forward_argmax_f16: unsafe fn(&mut forward::Job<'_, f16>),
    train_f16: unsafe fn(&mut train::Job<'_, f16>),
    softmax_f16: unsafe fn(softmax::AnyJob<'_, '_, f16>),
    widen_f16: unsafe fn(&[f16], &mut [f32]),
    narrow_f16: unsafe fn(&[f32], &mut [f16]),
    transpose_f32: unsafe fn(&mut Transpose<'_, f32>),
    transpose_u16: unsafe fn(&mut Transpose<'_, u16>),
    scaled_exp_f64: unsafe fn(&double::grad::ScaledExp<'_>, double::grad::Place<'_>),
    row_stats: unsafe fn(&logprobs::Part<'_>, &mut RowStats),
    compare: unsafe fn(&mut double::compare::Job<'_>),
}

/// The kernels of a backend that this machine can run: [`Backend::kernels`] makes no others.
///
/// Each is entered with a floating-point environment of its own ([`crate::simd::float_env`]).
#[derive(Clone, Copy)]
pub(crate) struct Kernels(&'static Entries);

macro_rules! safe_entries {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $(-> $out:ty)?;)*) => {
        impl Kernels {$(
            $(#[$doc])*
            #[inline]
            pub(crate) fn $name(self, $($arg: $type),*) $(-> $out)? {
                let entries = out_of_sight(self.0);
                let _environment = Environment::enter();
                // SAFETY: `Backend::kernels` detected the instructions of these entries.
                unsafe { (entries.$name)($($arg),*) }
            }
        )*}
    };
}
safe_entries! {
    forward(job: &mut forward::Job<'_>);
    forward_argmax(job: &mut forward::Job<'_>);
    train(job: &mut train::Job<'_, f32>);
    train_f64(job: &mut train::Job<'_, f64>);
    softmax(job: &mut softmax::Job<'_, f32>);
    log_softmax(job: &mut softmax::Job<'_, f32>);
    logsumexp(job: &mut softmax::LogSumExpJob<'_, f32>);
    row_loss(logits: &[f32], target: usize) -> f64;
    exp(values: &mut [f32]);
    read(values: &[f32]) -> f32;
    rewrite(values: &mut [f32], factor: f32);
    exp_f64(values: &mut [f64]);
    softmax_f64(job: &mut softmax::Job<'_, f64>);
    log_softmax_f64(job: &mut softmax::Job<'_, f64>);
    logsumexp_f64(job: &mut softmax::LogSumExpJob<'_, f64>);
    sum_from_f64(x: &[f64], weights: Option<&[f64]>, from: f64) -> f64;
    forward_bf16(job: &mut forward::Job<'_, bf16>);
    forward_argmax_bf16(job: &mut forward::Job<'_, bf16>);
    train_bf16(job: &mut train::Job<'_, bf16>);
    softmax_bf16(job: softmax::AnyJob<'_, '_, bf16>);
    widen_bf16(from: &[bf16], to: &mut [f32]);
    narrow_bf16(from: &[f32], to: &mut [bf16]);
    forward_f16(job: &mut forward::Job<'_, f16>);
    forward_argmax_f16(job: &mut forward::Job<'_, f16>);
    train_f16(job: &mut train::Job<'_, f16>);
    softmax_f16(job: softmax::AnyJob<'_, '_, f16>);
    widen_f16(from: &[f16], to: &mut [f32]);
    narrow_f16(from: &[f32], to: &mut [f16]);
    transpose_f32(job: &mut Transpose<'_, f32>);
    transpose_u16(job: &mut Transpose<'_, u16>);
    scaled_exp_f64(terms: &double::grad::ScaledExp<'_>, place: double::grad::Place<'_>);
    row_stats(part: &logprobs::Part<'_>, out: &mut RowStats);
    compare(job: &mut double::compare::Job<'_>);
}

/// One module per backend: its entry functions, and its detection from the same feature list.
///
/// `#[target_feature]` stands on these concrete functions only, and everything generic is inlined
/// into them; that is what makes the intrinsics instructions rather than calls.
macro_rules! backend {
    ($module:ident, $token:expr $(, $feature:tt)*) => {
        mod $module {
            use super::*;

            #[cfg(any(target_arch = "aarch64", target_arch = "x86_64"))]
            #[allow(dead_code, reason = "backends without features are always there")]
            pub(super) fn detect() -> bool {
                true $(&& is_feature_detected!($feature))*
            }

            $(#[target_feature(enable = $feature)])*
            unsafe fn forward(job: &mut forward::Job<'_>) {
                forward::run::<_, f32, { sum::PLAIN }>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn forward_argmax(job: &mut forward::Job<'_>) {
                forward::run::<_, f32, { sum::MAX }>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn train(job: &mut train::Job<'_, f32>) {
                train::run($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn train_f64(job: &mut train::Job<'_, f64>) {
                train::run($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn softmax(job: &mut softmax::Job<'_, f32>) {
                softmax::run::<_, _, false>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn log_softmax(job: &mut softmax::Job<'_, f32>) {
                softmax::run::<_, _, true>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn logsumexp(job: &mut softmax::LogSumExpJob<'_, f32>) {
                softmax::run_logsumexp($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn row_loss(logits: &[f32], target: usize) -> f64 {
                forward::row_loss($token, logits, target)
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn exp(values: &mut [f32]) {
                exp::run($token, values);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn read(values: &[f32]) -> f32 {
                read::run($token, values)
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn rewrite(values: &mut [f32], factor: f32) {
                read::rewrite($token, values, factor);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn exp_f64(values: &mut [f64]) {
                double::exp::run($token, values);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn logsumexp_f64(job: &mut softmax::LogSumExpJob<'_, f64>) {
                softmax::run_logsumexp($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn softmax_f64(job: &mut softmax::Job<'_, f64>) {
                softmax::run::<_, _, false>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn log_softmax_f64(job: &mut softmax::Job<'_, f64>) {
                softmax::run::<_, _, true>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn sum_from_f64(x: &[f64], weights: Option<&[f64]>, from: f64) -> f64 {
                double::scan::sum_from($token, x, weights, from)
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn scaled_exp_f64(terms: &double::grad::ScaledExp<'_>, place: double::grad::Place<'_>) {
                double::grad::run($token, terms, place);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn compare(job: &mut double::compare::Job<'_>) {
                double::compare::run($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn forward_bf16(job: &mut forward::Job<'_, bf16>) {
                forward::run::<_, _, { sum::PLAIN }>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn forward_argmax_bf16(job: &mut forward::Job<'_, bf16>) {
                forward::run::<_, _, { sum::MAX }>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn train_bf16(job: &mut train::Job<'_, bf16>) {
                train::run($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn softmax_bf16(job: softmax::AnyJob<'_, '_, bf16>) {
                softmax::run_any($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn widen_bf16(from: &[bf16], to: &mut [f32]) {
                transform::widen($token, from, to);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn narrow_bf16(from: &[f32], to: &mut [bf16]) {
                transform::narrow($token, from, to, false);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn forward_f16(job: &mut forward::Job<'_, f16>) {
                forward::run::<_, _, { sum::PLAIN }>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn forward_argmax_f16(job: &mut forward::Job<'_, f16>) {
                forward::run::<_, _, { sum::MAX }>($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn train_f16(job: &mut train::Job<'_, f16>) {
                train::run($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn softmax_f16(job: softmax::AnyJob<'_, '_, f16>) {
                softmax::run_any($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn widen_f16(from: &[f16], to: &mut [f32]) {
                transform::widen($token, from, to);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn narrow_f16(from: &[f32], to: &mut [f16]) {
                transform::narrow($token, from, to, false);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn transpose_f32(job: &mut Transpose<'_, f32>) {
                transpose::run($token, job);
            }
            $(#[target_feature(enable = $feature)])*
            unsafe fn transpose_u16(job: &mut Transpose<'_, u16>) {
                transpose::run($token, job);
            }

            $(#[target_feature(enable = $feature)])*
            unsafe fn row_stats(part: &logprobs::Part<'_>, out: &mut RowStats) {
                logprobs::run($token, part, out);
            }

            pub(super) static ENTRIES: Entries = Entries {
                forward,
                forward_argmax,
                train,
                train_f64,
                softmax,
                log_softmax,
                logsumexp,
                row_loss,
                exp,
                read,
                rewrite,
                exp_f64,
                logsumexp_f64,
                softmax_f64,
                log_softmax_f64,
                sum_from_f64,
                forward_bf16,
                forward_argmax_bf16,
                train_bf16,
                softmax_bf16,
                widen_bf16,
                narrow_bf16,
                forward_f16,
                forward_argmax_f16,
                train_f16,
                softmax_f16,
                widen_f16,
                narrow_f16,
                transpose_f32,
                transpose_u16,
                scaled_exp_f64,
                row_stats,
                compare,
            };
        }
    };
}

backend!(scalar, Scalar);
backend!(portable, Portable);
#[cfg(target_arch = "aarch64")]
backend!(
    neon,
    // SAFETY: the entry function that makes the token requires this feature.
    unsafe { Neon::new() },
    "neon"
);
#[cfg(target_arch = "x86_64")]
backend!(
    avx2,
    // SAFETY: the entry function that makes the token requires these features.
    unsafe { Avx2::new() },
    "avx2",
    "fma",
    "f16c"
);
#[cfg(target_arch = "x86_64")]
backend!(
    avx512,
    // SAFETY: the entry function that makes the token requires these features.
    unsafe { Avx512::new() },
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "fma"
);
