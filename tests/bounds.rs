//! No kernel reads or writes outside of its slices: they end and begin at pages that nobody may touch.
#![cfg(unix)]

use common::{Rng, for_each_backend, keys};
use std::io;
use xent::{
    Backend, CrossEntropy, Gradient, LogSumExp, Logits, LogitsMut, RowOutputs, Softmax, Targets,
};

/// Pages of floats between two pages that fault.
struct Guarded {
    base: *mut u8,
    page: usize,
    pages: usize,
}

impl Guarded {
    fn new(floats: usize) -> Guarded {
        // SAFETY: a query without arguments that could be wrong.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let pages = (floats * size_of::<f32>()).div_ceil(page);
        let len = (pages + 2) * page;
        let (flags, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_NONE);
        // SAFETY: a new mapping of memory that nobody else has.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        let guarded = Guarded { base: base.cast(), page, pages };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the pages between the first and the last of the mapping just made.
        let rc = unsafe { libc::mprotect(guarded.start().cast(), pages * page, access) };
        assert_eq!(rc, 0, "{}", io::Error::last_os_error());
        guarded
    }

    fn start(&self) -> *mut u8 {
        self.base.wrapping_add(self.page)
    }

    fn end(&self) -> *mut u8 {
        self.start().wrapping_add(self.pages * self.page)
    }

    /// A copy of `values` that ends with the last byte, or begins with the first.
    fn place(&mut self, values: &[f32], at_end: bool) -> &mut [f32] {
        assert!(size_of_val(values) <= self.pages * self.page);
        let start =
            if at_end { self.end().wrapping_sub(size_of_val(values)) } else { self.start() };
        // SAFETY: within the accessible pages, which are zeroed memory of this struct alone, borrowed
        // as long as the slice is; aligned, as pages and their ends are.
        let slice = unsafe { std::slice::from_raw_parts_mut(start.cast::<f32>(), values.len()) };
        slice.copy_from_slice(values);
        slice
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, of which no slice is left.
        unsafe { libc::munmap(self.base.cast(), (self.pages + 2) * self.page) };
    }
}

/// Asks the kernel to read a byte, which it refuses where a program would crash.
fn can_be_read(byte: *const u8) -> bool {
    let mut pipe = [0; 2];
    // SAFETY: an array of two descriptors; `write` gets a pointer that it is free to refuse.
    unsafe {
        assert_eq!(libc::pipe(pipe.as_mut_ptr()), 0);
        let written = libc::write(pipe[1], byte.cast(), 1);
        let refused =
            written < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT);
        libc::close(pipe[0]);
        libc::close(pipe[1]);
        assert!(written == 1 || refused);
        written == 1
    }
}

#[test]
fn the_guards_are_up() {
    let guarded = Guarded::new(1);
    assert!(!can_be_read(guarded.start().wrapping_sub(1)) && !can_be_read(guarded.end()));
    assert!(can_be_read(guarded.start()) && can_be_read(guarded.end().wrapping_sub(1)));
}

/// Every kernel on slices at the edge, with the results it has elsewhere.
fn check(backend: Backend, memory: &mut [Guarded; 2], rows: usize, vocab: usize, at_end: bool) {
    let mut rng = Rng::new(vocab as u64);
    let data: Vec<f32> = (0..rows * vocab).map(|_| 3.0 * rng.normal()).collect();
    let targets: Vec<usize> = (0..rows).map(|_| rng.below(vocab)).collect();
    let [input, output] = memory;
    let ce = CrossEntropy::new().backend(backend);
    let softmax = Softmax::new().backend(backend);
    let what = || format!("{backend}, {rows} rows of {vocab}, at the end: {at_end}");

    // The results elsewhere, as keys of all outputs in turn.
    let losses = |data: &[f32], losses: &mut [f32]| {
        let logits = Logits::new(data, rows, vocab).unwrap();
        ce.forward_into(logits, &targets, losses).unwrap();
        let plain = keys(losses);
        let mut argmax = vec![0; rows];
        let outputs = RowOutputs::new().losses(losses).argmax(&mut argmax);
        ce.evaluate(logits, &targets, outputs).unwrap();
        let all = keys(losses);
        softmax.logsumexp(logits, losses).unwrap();
        (plain, all, argmax, keys(losses))
    };
    let want = losses(&data, &mut vec![0.0; rows]);
    let zeros = vec![0.0; rows];
    let got = losses(input.place(&data, at_end), output.place(&zeros, at_end));
    assert!(got == want, "losses: {}", what());

    for log in [false, true] {
        let out_of_place = |data: &[f32], out: &mut [f32]| {
            let logits = Logits::new(data, rows, vocab).unwrap();
            if log { softmax.log_softmax(logits, out) } else { softmax.softmax(logits, out) }
                .unwrap();
            keys(out)
        };
        let zeros = vec![0.0; rows * vocab];
        let want = out_of_place(&data, &mut zeros.clone());
        let got = out_of_place(input.place(&data, at_end), output.place(&zeros, at_end));
        assert!(got == want, "log {log}: {}", what());

        let place = input.place(&data, at_end);
        let logits = LogitsMut::new(place, rows, vocab).unwrap();
        if log { softmax.log_softmax_in_place(logits) } else { softmax.softmax_in_place(logits) }
            .unwrap();
        assert!(keys(place) == want, "in place, log {log}: {}", what());
    }
}

/// Gradients at the edge, with the results they have elsewhere: every loop that there is.
fn check_gradients(
    backend: Backend,
    memory: &mut [Guarded; 3],
    rows: usize,
    vocab: usize,
    at_end: bool,
) {
    let mut rng = Rng::new(vocab as u64);
    let data: Vec<f32> = (0..rows * vocab).map(|_| 3.0 * rng.normal()).collect();
    let probs: Vec<f32> = (0..rows * vocab).map(|_| rng.unit() as f32).collect();
    let ids: Vec<usize> = (0..rows).map(|_| rng.below(vocab)).collect();
    let weights: Vec<f32> = (0..vocab).map(|_| rng.unit() as f32).collect();
    let [input, output, others] = memory;
    let plain = CrossEntropy::new().backend(backend);
    let smooth = plain.clone().label_smoothing(0.1);
    for (i, ce) in [plain.clone(), smooth.clone(), plain.clone().softcap(9.0), smooth.softcap(9.0)]
        .into_iter()
        .enumerate()
    {
        for with_probs in [false, true] {
            let run = |data: &[f32], g: &mut [f32], probs: &[f32], weights: &[f32]| {
                let ce = ce.clone();
                let ce = if with_probs { ce } else { ce.class_weights(weights) };
                let targets = || match with_probs {
                    true => Targets::probs(probs),
                    false => Targets::from(&ids),
                };
                let logits = Logits::new(data, rows, vocab).unwrap();
                let mut stats = vec![LogSumExp::default(); rows];
                let outputs = RowOutputs::new().saved(&mut stats);
                let to = Gradient::new(LogitsMut::new(g, rows, vocab).unwrap());
                ce.forward_backward(logits, targets(), to, outputs).unwrap();
                let once = keys(g);
                let to = Gradient::new(LogitsMut::new(g, rows, vocab).unwrap()).accumulate();
                ce.backward(logits, targets(), &stats, to).unwrap();
                let twice = keys(g);
                g.copy_from_slice(data);
                let in_place = LogitsMut::new(g, rows, vocab).unwrap();
                ce.backward_in_place(in_place, targets(), &stats, 1.0).unwrap();
                (once, twice, keys(g))
            };
            let zeros = vec![0.0; rows * vocab];
            let want = run(&data, &mut zeros.clone(), &probs, &weights);
            let (data, g) = (input.place(&data, at_end), output.place(&zeros, at_end));
            let got = if with_probs {
                run(data, g, others.place(&probs, at_end), &weights)
            } else {
                run(data, g, &probs, others.place(&weights, at_end))
            };
            assert!(got == want, "{backend}, options {i}, {rows} x {vocab}, at the end: {at_end}");
        }
    }
}

#[test]
fn gradients_stay_within_their_slices() {
    let sizes: Vec<usize> = (1..=70).chain(1020..1030).chain([2049, 32_769]).collect();
    let mut memory = [2 * 32_769, 2 * 32_769, 2 * 32_769].map(Guarded::new);
    for_each_backend(|backend| {
        for &vocab in &sizes {
            let rows = 1 + vocab % 2;
            check_gradients(backend, &mut memory, rows, vocab, true);
            check_gradients(backend, &mut memory, rows, vocab, false);
        }
    });
}

/// Rows to ignore may be where nobody can read: they are not looked at.
#[test]
fn ignored_rows_are_never_read() {
    let mut memory = Guarded::new(1);
    let vocab = memory.page / size_of::<f32>();
    memory = Guarded::new(3 * vocab);
    let mut rng = Rng::new(1);
    let data: Vec<f32> = (0..3 * vocab).map(|_| rng.normal()).collect();
    let protect = |page: *mut u8, access| {
        // SAFETY: the second of the three pages of `memory`.
        let rc = unsafe { libc::mprotect(page.cast(), vocab * size_of::<f32>(), access) };
        assert_eq!(rc, 0, "{}", io::Error::last_os_error());
    };
    let middle = memory.start().wrapping_add(memory.page);
    let start = memory.place(&data, true).as_ptr();
    protect(middle, libc::PROT_NONE);
    assert!(!can_be_read(middle));
    // SAFETY: what `place` returned, of which no other slice is left.
    let data = unsafe { std::slice::from_raw_parts(start, 3 * vocab) };
    let logits = Logits::new(data, 3, vocab).unwrap();
    let targets = [5i64, -100, 7];
    for_each_backend(|backend| {
        let plain = CrossEntropy::new().backend(backend);
        for ce in [plain.clone(), plain.label_smoothing(0.1).softcap(9.0).z_loss(0.1)] {
            let (mut losses, mut argmax) = ([7.0; 3], [7; 3]);
            let mut stats = [LogSumExp::default(); 3];
            ce.forward_into(logits, &targets, &mut losses).unwrap();
            assert!(losses[1] == 0.0 && losses[0] > 0.0 && losses[2] > 0.0);
            let outputs = RowOutputs::new().argmax(&mut argmax).saved(&mut stats);
            let mut g = vec![7.0; 3 * vocab];
            let to = Gradient::new(LogitsMut::new(&mut g, 3, vocab).unwrap());
            ce.forward_backward(logits, &targets, to, outputs).unwrap();
            assert_eq!(argmax[1], -1);
            assert!(keys(&g[vocab..][..vocab]).iter().all(|&g| g == 0));
            let before = keys(&g);
            let to = Gradient::new(LogitsMut::new(&mut g, 3, vocab).unwrap()).upstream(0.0);
            ce.backward(logits, &targets, &stats, to.accumulate()).unwrap();
            assert!(keys(&g)[vocab..][..vocab] == before[vocab..][..vocab]);
        }
    });
    protect(middle, libc::PROT_READ | libc::PROT_WRITE);
}

#[test]
fn kernels_stay_within_their_slices() {
    // Every remainder of a vector and a step, and the sizes around one and two blocks and a chunk.
    let sizes: Vec<usize> =
        (1..=200).chain(1000..1050).chain(2030..2070).chain([32_767, 32_768, 32_769]).collect();
    let mut memory = [Guarded::new(2 * 32_769), Guarded::new(2 * 32_769)];
    let mut checked = 0;
    for_each_backend(|backend| {
        for &vocab in &sizes {
            for rows in [1, 2] {
                check(backend, &mut memory, rows, vocab, true);
                check(backend, &mut memory, rows, vocab, false);
                checked += 2;
            }
        }
    });
    assert_eq!(checked, sizes.len() * 4 * Backend::available().len());
}
