//! What runs inside of `on_calling_thread` starts no thread, and has the same bits.
#![forbid(unsafe_code)]

use std::panic;
use xent::{
    CrossEntropy, LogProbs, Logits, LogitsMut, RowOutputs, Softmax, TokenOutputs, on_calling_thread,
};

/// Everything that is spread over threads, of rows and of columns; what came out, as bits.
fn all(vocab: usize, rows: usize) -> Vec<u64> {
    let x: Vec<f32> = (0..rows * vocab).map(|i| ((i * 7919) % 4093) as f32 / 512.0).collect();
    let targets: Vec<u32> = (0..rows as u32).collect();
    let mut bits = Vec::new();
    for logits in
        [Logits::new(&x, rows, vocab).unwrap(), Logits::classes_first(&x, 1, vocab, rows).unwrap()]
    {
        let ce = CrossEntropy::new();
        bits.push(ce.forward(logits, &targets).unwrap().to_bits());
        let mut lse = vec![0.0; rows];
        Softmax::new().logsumexp(logits, &mut lse).unwrap();
        let mut entropy = vec![0.0; rows];
        let out = TokenOutputs::new().entropy(&mut entropy);
        LogProbs::new().run(logits, out).unwrap();
        bits.extend(lse.iter().chain(&entropy).map(|x| u64::from(x.to_bits())));
    }
    let mut gradient = x;
    let logits = LogitsMut::new(&mut gradient, rows, vocab).unwrap();
    let ce = CrossEntropy::new().label_smoothing(0.1);
    ce.forward_backward_in_place(logits, &targets, 1.0, RowOutputs::new()).unwrap();
    bits.extend(gradient.iter().map(|x| u64::from(x.to_bits())));
    bits
}

/// One test, as the global pool is that of the process: it cannot be built a second time.
#[test]
fn no_thread_is_started() {
    let shapes = [(50_257, 5), (2_000_000, 1)];
    let alone = shapes.map(|(vocab, rows)| on_calling_thread(|| all(vocab, rows)));
    // Nor by a small call, of columns neither, wherever it runs.
    assert!(on_calling_thread(|| all(3, 2)) == all(3, 2));
    #[cfg(feature = "rayon")]
    rayon::ThreadPoolBuilder::new().num_threads(4).build_global().expect("the pool was started");
    assert!(alone == shapes.map(|(vocab, rows)| all(vocab, rows)));

    // Also after a panic, threads are used again: without any the global pool would not be.
    let caught = panic::catch_unwind(|| on_calling_thread(|| panic!("on purpose")));
    assert!(caught.is_err());
    on_calling_thread(|| on_calling_thread(|| ()));
    assert!(alone[0] == all(shapes[0].0, shapes[0].1));
}
