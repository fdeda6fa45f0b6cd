//! Options: an opaque object that calls share.
#![allow(unsafe_code, reason = "functions of the C ABI; raw.rs has what is not a call")]
#![allow(non_camel_case_types, reason = "their names in C")]

use crate::raw::{self, Memory, Out};
use crate::status::{Failure, guard, xent_status};
use crate::types::*;
use crate::views;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use xent::{Backend, CrossEntropy, EmptyMean, Error, Logits, Reduction, on_calling_thread};

/// What calls have in common: created by `xent_options_new`, freed by `xent_options_free`.
///
/// Any number of threads may use the same options at once. Nobody may set or free them meanwhile.
#[derive(Clone)]
pub struct xent_options {
    /// All options of a loss. Borrows from `values.class_weights` and `values.ignored`, which are
    /// never changed, only replaced together with it.
    cross_entropy: CrossEntropy<'static>,
    values: Values,
}

impl std::fmt::Debug for xent_options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.cross_entropy.fmt(f)
    }
}

#[derive(Clone)]
pub(crate) struct Values {
    pub(crate) ignored: Ignored,
    reduction: Reduction,
    empty_mean: EmptyMean,
    label_smoothing: f64,
    class_weights: Option<Weights>,
    z_loss: f64,
    pub(crate) logit_scale: f64,
    pub(crate) temperature: f64,
    pub(crate) softcap: Option<Softcap>,
    threads: Threads,
    pub(crate) backend: Option<Backend>,
}

#[derive(Clone, Copy)]
pub(crate) struct Softcap {
    pub(crate) cap: f64,
    of_all: bool,
}

/// Targets of rows to leave out.
#[derive(Clone)]
pub(crate) enum Ignored {
    One(i64),
    // Not `Arc<[_]>`, as for weights below.
    All(Arc<Vec<i64>>),
    None,
}

impl Ignored {
    pub(crate) fn ids(&self) -> &[i64] {
        match self {
            Ignored::One(id) => std::slice::from_ref(id),
            Ignored::All(ids) => ids,
            Ignored::None => &[],
        }
    }
}

#[derive(Clone)]
enum Weights {
    // Not `Arc<[_]>`: to make one of a vector allocates once more, which aborts the process where there is no memory.
    Single(Arc<Vec<f32>>),
    Double(Arc<Vec<f64>>),
}

#[derive(Clone)]
enum Threads {
    /// The pool of the thread that calls: that of the process, unless it is a thread of another.
    Shared,
    Calling,
    Own(Arc<Pool>),
}

/// A pool whose threads have ended when it is dropped.
struct Pool {
    /// `None` while it is dropped.
    pool: Option<ThreadPool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    fn new(count: usize) -> Result<Self, Failure> {
        let mut threads = Vec::new();
        let pool = ThreadPoolBuilder::new()
            .num_threads(count)
            .spawn_handler(|thread| {
                let name = format!("xent-{}", thread.index());
                threads.push(Builder::new().name(name).spawn(|| thread.run())?);
                Ok(())
            })
            .build();
        match pool {
            Ok(pool) => Ok(Pool { pool: Some(pool), threads }),
            Err(error) => {
                // Those that were started end by themselves.
                join(threads);
                Err(Failure::Threads { threads: count, error: error.to_string() })
            }
        }
    }

    fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(f),
            None => unreachable!("only while it is dropped"),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Tells its threads to end.
        self.pool = None;
        join(std::mem::take(&mut self.threads));
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        // A panic was reported by the call that it happened in.
        let _ = thread.join();
    }
}

/// Below so many classes a call never uses threads, however many there are: no pool is to be woken for it.
const SMALL: usize = 65_536;

static DEFAULT: xent_options =
    xent_options { cross_entropy: CrossEntropy::new(), values: Values::DEFAULT };

impl Values {
    const DEFAULT: Values = Values {
        ignored: Ignored::One(-100),
        reduction: Reduction::Mean,
        empty_mean: EmptyMean::Nan,
        label_smoothing: 0.0,
        class_weights: None,
        z_loss: 0.0,
        logit_scale: 1.0,
        temperature: 1.0,
        softcap: None,
        threads: Threads::Shared,
        backend: None,
    };

    /// Checked, as a call would.
    fn options(self) -> Result<xent_options, Failure> {
        let mut ce = CrossEntropy::new()
            .reduction(self.reduction)
            .empty_mean(self.empty_mean)
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .logit_scale(self.logit_scale)
            .temperature(self.temperature);
        ce = match &self.ignored {
            Ignored::One(id) => ce.ignore_index(*id),
            // SAFETY: `cross_entropy` is never used without the `values` that own these.
            Ignored::All(ids) => ce.ignore_indices(unsafe { raw::outlive(ids) }),
            Ignored::None => ce.no_ignore_index(),
        };
        ce = match self.softcap {
            Some(Softcap { cap, of_all: true }) => ce.softcap_of_all(cap),
            Some(Softcap { cap, of_all: false }) => ce.softcap(cap),
            None => ce,
        };
        if let Some(backend) = self.backend {
            ce = ce.backend(backend);
        }
        let nothing: &[i64] = &[];
        // Of no rows: a call checks all options whether there are rows or not.
        match &self.class_weights {
            None => ce.forward(Logits::<f32>::new(&[], 0, 1)?, nothing)?,
            Some(Weights::Single(weights)) => {
                // SAFETY: as above.
                ce = ce.class_weights(unsafe { raw::outlive(weights) });
                ce.forward(Logits::<f32>::new(&[], 0, weights.len())?, nothing)?
            }
            Some(Weights::Double(weights)) => {
                // SAFETY: as above.
                ce = ce.class_weights(unsafe { raw::outlive(weights) });
                ce.forward(Logits::<f64>::new(&[], 0, weights.len())?, nothing)?
            }
        };
        Ok(xent_options { cross_entropy: ce, values: self })
    }
}

impl xent_options {
    /// # Safety
    /// `pointer` is NULL, or options that nobody sets or frees while `'a` lasts.
    pub(crate) unsafe fn get<'a>(pointer: *const xent_options) -> &'a xent_options {
        // SAFETY: passed on.
        unsafe { raw::handle(pointer) }.unwrap_or(&DEFAULT)
    }

    pub(crate) fn cross_entropy(&self) -> &CrossEntropy<'_> {
        &self.cross_entropy
    }

    pub(crate) fn values(&self) -> &Values {
        &self.values
    }

    /// Runs a call on the threads of these options. `cost` is 0 where rows are not cut, and else how many times as long as
    /// usual a class takes.
    pub(crate) fn run<R: Send>(
        &self,
        (rows, classes): (usize, usize),
        cost: usize,
        f: impl FnOnce() -> R + Send,
    ) -> R {
        let (mut f, mut result) = (Some(f), None);
        self.run_any((rows, classes), cost, &mut || result = f.take().map(|f| f()));
        result.expect("it was called once")
    }

    /// Not generic: every instance of a pool's entry takes some kilobytes.
    fn run_any(&self, (rows, classes): (usize, usize), cost: usize, f: &mut (dyn FnMut() + Send)) {
        match &self.values.threads {
            Threads::Shared => f(),
            Threads::Calling => on_calling_thread(f),
            Threads::Own(pool) => {
                let one = rows == 1 && cost == 0;
                let work = rows.saturating_mul(classes).saturating_mul(cost.max(1));
                if one || work <= SMALL { on_calling_thread(f) } else { pool.install(f) }
            }
        }
    }

    /// That nothing is set which changes logits, but the temperature, where that is not taken into account.
    pub(crate) fn refuse_transform(
        &self,
        function: &'static str,
        temperature: bool,
    ) -> Result<(), Failure> {
        let Values { logit_scale, softcap, .. } = self.values;
        let refuse = |option, value| Err(Failure::Meaningless { option, value, function });
        if logit_scale != 1.0 {
            return refuse("logit_scale", logit_scale);
        }
        if let Some(Softcap { cap, .. }) = softcap {
            return refuse("softcap", cap);
        }
        match self.values.temperature {
            t if t != 1.0 && !temperature => refuse("temperature", t),
            _ => Ok(()),
        }
    }
}

/// Changes options if what they become is valid, and leaves them as they are if not.
///
/// # Safety
/// As [`raw::handle_mut`].
unsafe fn set(
    options: *mut xent_options,
    f: impl FnOnce(&mut Values) -> Result<(), Failure>,
) -> xent_status {
    guard(|| {
        // SAFETY: passed on.
        let options = unsafe { raw::handle_mut("options", options) }?;
        let mut values = options.values.clone();
        f(&mut values)?;
        *options = values.options()?;
        Ok(())
    })
}

/// Creates options with the defaults, which are those of PyTorch: the ignore index is -100, the loss is the mean over the kept
/// rows, and NaN if there are none; no weights, no smoothing, no z-loss, logits as they are; the fastest backend, and the
/// threads of the pool of the process.
///
/// Functions take NULL for these.
///
/// # Safety
/// A pointer can be written to `out`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_new(out: *mut *mut xent_options) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises it.
        let out = unsafe { Out::new("out", out) }?;
        out.set(raw::into_handle(DEFAULT.clone()));
        Ok(())
    })
}

/// Creates options that are like others, NULL for the defaults. Class weights and threads are shared, and freed with the last
/// options that use them.
///
/// # Safety
/// `options` is NULL or valid, and a pointer can be written to `out`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_clone(
    options: *const xent_options,
    out: *mut *mut xent_options,
) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises it.
        let (options, out) = unsafe { (xent_options::get(options), Out::new("out", out)?) };
        out.set(raw::into_handle(options.clone()));
        Ok(())
    })
}

/// Frees options; NULL is fine. Threads of their own end.
///
/// # Safety
/// `options` is NULL or valid, and nobody uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_free(options: *mut xent_options) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises it.
        unsafe { raw::free_handle(options) };
        Ok(())
    })
}

/// Sets the target of rows to leave out, the only one. It may be a class.
///
/// # Safety
/// `options` is valid, and nobody else uses it meanwhile. (So for all functions `xent_options_set_..`.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_ignore_index(
    options: *mut xent_options,
    ignore_index: i64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.ignored = Ignored::One(ignore_index);
            Ok(())
        })
    }
}

/// Sets the targets of rows to leave out: those of padding and of the end of the text, say. They
/// are copied. They replace what was ignored before, -100 included. Each may be a class. No ids at
/// all are `xent_options_set_no_ignore_index`. It should be a short list: a target is compared with
/// one id after the other.
///
/// # Safety
/// As `xent_options_set_ignore_index`; and `ids` is NULL or there are `len` of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_ignore_indices(
    options: *mut xent_options,
    ids: *const i64,
    len: usize,
) -> xent_status {
    let of = |values: &mut Values| {
        // SAFETY: the caller promises that they are valid.
        let ids: &[i64] = unsafe { Memory::new().input("ids", ids.cast(), len as u128) }?;
        values.ignored = match ids {
            [] => Ignored::None,
            [id] => Ignored::One(*id),
            _ => Ignored::All(copied(ids)?),
        };
        Ok(())
    };
    // SAFETY: passed on.
    unsafe { set(options, of) }
}

/// No row is left out: every target has to be a class.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_no_ignore_index(
    options: *mut xent_options,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.ignored = Ignored::None;
            Ok(())
        })
    }
}

/// Sets how row losses become one number, an `xent_reduction`. `count` is the divisor of `XENT_MEAN_OVER`, finite and above 0;
/// for the others it does not matter.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_reduction(
    options: *mut xent_options,
    reduction: i32,
    count: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.reduction = match reduction {
                0 => Reduction::Mean,
                1 => Reduction::Sum,
                2 => Reduction::MeanOver(count),
                value => {
                    let needed = "XENT_MEAN, XENT_SUM or XENT_MEAN_OVER";
                    return Err(Failure::Enum { what: "reduction", value, needed });
                }
            };
            Ok(())
        })
    }
}

/// Sets what the mean of no rows is, or of rows none of which weighs anything, an `xent_empty_mean`.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_empty_mean(
    options: *mut xent_options,
    empty_mean: i32,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.empty_mean = match empty_mean {
                0 => EmptyMean::Nan,
                1 => EmptyMean::Zero,
                value => {
                    let needed = "XENT_EMPTY_MEAN_NAN or XENT_EMPTY_MEAN_ZERO";
                    return Err(Failure::Enum { what: "empty_mean", value, needed });
                }
            };
            Ok(())
        })
    }
}

/// Moves the share `e` of each target's probability to all classes alike; 0 to 1.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_label_smoothing(
    options: *mut xent_options,
    e: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.label_smoothing = e;
            Ok(())
        })
    }
}

/// Sets a weight per class, of any sign, which a row's loss is multiplied by; they are copied. `XENT_F32`, or `XENT_F64` for
/// logits that are. NULL or `XENT_NONE`: no weights.
///
/// # Safety
/// As `xent_options_set_ignore_index`; and `weights` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_class_weights(
    options: *mut xent_options,
    weights: *const xent_floats,
) -> xent_status {
    let of = |values: &mut Values| {
        if weights.is_null() {
            values.class_weights = None;
            return Ok(());
        }
        let what = "class_weights";
        // SAFETY: the caller promises that it is valid.
        let floats = unsafe { raw::read(what, weights) }?;
        // SAFETY: the same.
        let weights = unsafe { views::floats(&mut Memory::new(), what, &floats) }?;
        values.class_weights = match weights {
            None => None,
            Some(xent::Floats::F32(weights)) => Some(Weights::Single(copied(weights)?)),
            Some(xent::Floats::F64(weights)) => Some(Weights::Double(copied(weights)?)),
            Some(_) => {
                let (value, needed) = (floats.dtype, "XENT_F32 or XENT_F64");
                return Err(Failure::Dtype { what, value, needed });
            }
        };
        Ok(())
    };
    // SAFETY: passed on.
    unsafe { set(options, of) }
}

fn copied<T: Copy>(values: &[T]) -> Result<Arc<Vec<T>>, Failure> {
    let mut copy = Vec::new();
    if copy.try_reserve_exact(values.len()).is_err() {
        return Err(Failure::Memory { len: values.len(), size: size_of::<T>() });
    }
    copy.extend_from_slice(values);
    Ok(Arc::new(copy))
}

/// Adds `factor * lse^2` to the loss of each kept row, with `lse` its logsumexp; finite and not negative.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_z_loss(
    options: *mut xent_options,
    factor: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.z_loss = factor;
            Ok(())
        })
    }
}

/// Logits are multiplied by this first; finite and above 0.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_logit_scale(
    options: *mut xent_options,
    scale: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.logit_scale = scale;
            Ok(())
        })
    }
}

/// Logits are divided by this last; finite and above 0.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_temperature(
    options: *mut xent_options,
    temperature: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.temperature = temperature;
            Ok(())
        })
    }
}

/// Logits are bounded by `c tanh(x / c)`; finite and above 0. Masks stay masks: -inf stays -inf.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_softcap(
    options: *mut xent_options,
    c: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { set_softcap(options, c, false) }
}

/// As `xent_options_set_softcap`, but -inf becomes `-c` and +inf becomes `c`.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_softcap_of_all(
    options: *mut xent_options,
    c: f64,
) -> xent_status {
    // SAFETY: passed on.
    unsafe { set_softcap(options, c, true) }
}

/// # Safety
/// As [`set`].
unsafe fn set_softcap(options: *mut xent_options, cap: f64, of_all: bool) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.softcap = Some(Softcap { cap, of_all });
            Ok(())
        })
    }
}

/// Logits are not bounded.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_no_softcap(options: *mut xent_options) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.softcap = None;
            Ok(())
        })
    }
}

/// Sets which threads calls run on: 0, a pool that all of the process share, which is started by the first call that needs it
/// and has as many threads as there are CPUs (or as `RAYON_NUM_THREADS` says); 1, the thread that calls, and no other; more,
/// that many threads, which these options and their clones have for themselves, and which are started now.
///
/// Small calls stay on the calling thread. Results have the same bits for any number of threads. A process that has threads
/// must not fork and go on with them.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_threads(
    options: *mut xent_options,
    threads: usize,
) -> xent_status {
    /// More than there are CPUs in any machine: what is larger is a mistake, and not to be tried.
    const MOST: usize = 1 << 16;
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.threads = match threads {
                0 => Threads::Shared,
                1 => Threads::Calling,
                2..=MOST => Threads::Own(Arc::new(Pool::new(threads)?)),
                _ => {
                    let (option, value) = ("threads", threads.to_string());
                    return Err(Error::Option { option, value, range: "at most 65536" }.into());
                }
            };
            Ok(())
        })
    }
}

/// Sets the instructions to use, an `xent_backend`. `XENT_BACKEND_AUTO` is the default.
///
/// # Safety
/// As `xent_options_set_ignore_index`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_options_set_backend(
    options: *mut xent_options,
    backend: i32,
) -> xent_status {
    // SAFETY: passed on.
    unsafe {
        set(options, |values| {
            values.backend = backend_of(backend)?;
            Ok(())
        })
    }
}

fn backend_of(value: i32) -> Result<Option<Backend>, Failure> {
    Ok(match value {
        0 => None,
        1 => Some(Backend::Scalar),
        2 => Some(Backend::Portable),
        3 => Some(Backend::Neon),
        4 => Some(Backend::Avx2),
        5 => Some(Backend::Avx512),
        value => return Err(Failure::Enum { what: "backend", value, needed: "an xent_backend" }),
    })
}

/// Tells whether this machine can run a backend: 1 or 0 into `available`. `XENT_BACKEND_AUTO` it can.
///
/// # Safety
/// A number can be written to `available`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_backend_available(backend: i32, available: *mut i32) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises it.
        let available = unsafe { Out::new("available", available) }?;
        let backend = backend_of(backend)?;
        available.set(backend.is_none_or(Backend::is_available).into());
        Ok(())
    })
}

/// Tells which backend calls use that ask for none: an `xent_backend` into `backend`.
///
/// # Safety
/// A number can be written to `backend`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn xent_backend_selected(backend: *mut i32) -> xent_status {
    guard(|| {
        // SAFETY: the caller promises it.
        let out = unsafe { Out::new("backend", backend) }?;
        let selected = Backend::selected()?;
        out.set(match selected {
            Backend::Scalar => xent_backend::XENT_BACKEND_SCALAR as i32,
            Backend::Portable => xent_backend::XENT_BACKEND_PORTABLE as i32,
            Backend::Neon => xent_backend::XENT_BACKEND_NEON as i32,
            Backend::Avx2 => xent_backend::XENT_BACKEND_AVX2 as i32,
            Backend::Avx512 => xent_backend::XENT_BACKEND_AVX512 as i32,
            _ => xent_backend::XENT_BACKEND_AUTO as i32,
        });
        Ok(())
    })
}
