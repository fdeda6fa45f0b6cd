//! What comparisons and scores of sequences allocate.
#![allow(unsafe_code, reason = "a global allocator cannot be written without")]

mod common;

use common::{Rng, for_each_backend};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use xent::{Compare, CompareOutputs, CrossEntropy, Logits, SequenceScore};

/// The system allocator, counting what this thread asks of it.
struct Counting;

thread_local! {
    /// Bytes. Not dropped and not lazily made: neither may happen in an allocator.
    static BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get() + layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes(call: impl FnOnce()) -> usize {
    let before = BYTES.get();
    call();
    BYTES.get() - before
}

/// Few enough elements to stay on this thread.
const ROWS: usize = 20;
const VOCAB: usize = 3000;

#[test]
fn calls_allocate_what_they_say() {
    let mut rng = Rng::new(1);
    let mut random = || -> Vec<f32> { (0..ROWS * VOCAB).map(|_| rng.normal()).collect() };
    let (p, q) = (random(), random());
    let (base, other) =
        (Logits::new(&p, ROWS, VOCAB).unwrap(), Logits::new(&q, ROWS, VOCAB).unwrap());
    let targets: Vec<i64> = (0..ROWS as i64).map(|i| if i % 3 == 0 { -100 } else { i }).collect();
    let [mut kl, mut jsd, mut delta_p] = [[0.0; ROWS]; 3];
    let mut scores = [SequenceScore::default(); 2];
    for_each_backend(|backend| {
        let compare = Compare::new().backend(backend).targets(&targets);
        let n = bytes(|| {
            let outputs = CompareOutputs::new().kl(&mut kl).jsd(&mut jsd).delta_p(&mut delta_p);
            compare.divergences(base, other, outputs).unwrap();
        });
        assert_eq!(n, 0, "{backend}: divergences");
        let n = bytes(|| _ = compare.evaluate(base, other, CompareOutputs::new()).unwrap());
        assert_eq!(n, 33 * ROWS, "{backend}: evaluate");
        let ce = CrossEntropy::new().backend(backend);
        let n = bytes(|| ce.sequences(base, &targets, &[0, 5, ROWS], &mut scores).unwrap());
        assert_eq!(n, 48 * ROWS, "{backend}: sequences");
    });
}
