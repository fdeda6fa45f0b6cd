//! The same operations on the same memory, in other layouts and under a mask.

use super::{Group, Timed, VALID, Variant, copy, fastest_backend, lock, read};
use crate::common::Batch;
use rayon::ThreadPool;
use std::hint::black_box;
use std::sync::Mutex;
use xent::{AllowedTokens, Backend, CrossEntropy, Logits, LogitsMut, RowOutputs};

/// What the memory of a batch is taken for.
#[derive(Clone, Copy)]
enum Layout {
    Rows,
    /// The last classes of each row are no classes.
    Padded,
    /// `[1, vocab, rows]`
    ClassesFirst,
    /// `[32, 21, pixels]`
    Images,
}

const PADDING: usize = 65;
const IMAGES: usize = 32;
const IMAGE_CLASSES: usize = 21;

impl Layout {
    fn shape(self, batch: &Batch) -> [usize; 3] {
        match self {
            Layout::Rows => [1, batch.rows, batch.vocab],
            Layout::Padded => [1, batch.rows, batch.vocab - PADDING],
            Layout::ClassesFirst => [1, batch.rows, batch.vocab],
            Layout::Images => {
                [IMAGES, batch.logits.len() / (IMAGES * IMAGE_CLASSES), IMAGE_CLASSES]
            }
        }
    }

    fn strides(self, batch: &Batch) -> [usize; 3] {
        match self {
            Layout::Rows | Layout::Padded => [0, batch.vocab, 1],
            Layout::ClassesFirst => [0, 1, batch.rows],
            Layout::Images => {
                let [_, pixels, classes] = self.shape(batch);
                [pixels * classes, 1, pixels]
            }
        }
    }

    fn logits(self, batch: &Batch) -> Logits<'_> {
        Logits::strided(black_box(&batch.logits), self.shape(batch), self.strides(batch))
            .expect(VALID)
    }

    fn logits_mut<'a>(self, batch: &Batch, data: &'a mut [f32]) -> LogitsMut<'a> {
        LogitsMut::strided(data, self.shape(batch), self.strides(batch)).expect(VALID)
    }

    fn targets(self, batch: &Batch) -> Vec<i64> {
        let [n, time, vocab] = self.shape(batch);
        (0..n * time).map(|row| ((row * 7919 + vocab / 3) % vocab) as i64).collect()
    }
}

const LAYOUTS: [(&str, &str, Layout); 4] = [
    ("forward", "in place", Layout::Rows),
    ("forward, padded", "in place, padded", Layout::Padded),
    ("forward, classes first", "in place, classes first", Layout::ClassesFirst),
    ("forward, images", "in place, images", Layout::Images),
];

/// A mask that half of the classes pass, without any order.
pub(crate) fn mask(batch: &Batch) -> Vec<u32> {
    let words = batch.rows * batch.vocab.div_ceil(32);
    (0..words as u32).map(|i| i.wrapping_mul(0x9e37_79b9).rotate_left(i % 32)).collect()
}

/// The loss, against reading as much memory.
pub(crate) fn against_reading<'a>(
    batch: &'a Batch,
    pool: &'a ThreadPool,
    backends: &[Backend],
    mask: &'a [u32],
) -> Group<'a> {
    let threads = pool.current_num_threads();
    let limit = Timed::new(move || {
        black_box(read(fastest_backend(), black_box(&batch.logits), threads));
    });
    let mut variants = Vec::new();
    for &backend in backends {
        let loss = CrossEntropy::new().backend(backend);
        for (op, _, layout) in LAYOUTS {
            let (loss, targets) = (loss.clone(), layout.targets(batch));
            let mut losses = vec![0.0; targets.len()];
            variants.push(Variant::new(op, backend.name(), move || {
                loss.forward_into(layout.logits(batch), &targets, &mut losses).expect(VALID);
                black_box(&losses);
            }));
        }
        let masked = loss.allowed_tokens(AllowedTokens::new(mask));
        let mut losses = vec![0.0; batch.rows];
        variants.push(Variant::new("forward, masked", backend.name(), move || {
            masked.forward_into(batch.logits(), &batch.targets, &mut losses).expect(VALID);
            black_box(&losses);
        }));
    }
    Group { batch, rows: batch.rows, dtype: "f32", pool: Some(pool), limit, variants }
}

/// The gradient in place, against a copy of as much memory.
pub(crate) fn against_copying<'a>(
    batch: &'a Batch,
    pool: &'a ThreadPool,
    backends: &[Backend],
    scratch: &'a Mutex<Vec<f32>>,
    mask: &'a [u32],
) -> Group<'a> {
    let threads = pool.current_num_threads();
    let limit = Timed::new(move || copy(&batch.logits, &mut lock(scratch), threads));
    let mut variants = Vec::new();
    for &backend in backends {
        let loss = CrossEntropy::new().backend(backend);
        let masked = loss.clone().allowed_tokens(AllowedTokens::new(mask));
        let layouts = LAYOUTS.map(|(_, op, layout)| (op, layout, loss.clone()));
        let all = layouts.into_iter().chain([("in place, masked", Layout::Rows, masked)]);
        for (op, layout, loss) in all {
            let targets = layout.targets(batch);
            variants.push(Variant::new(op, backend.name(), move || {
                let mut x = lock(scratch);
                let x = layout.logits_mut(batch, &mut x);
                let all = loss.forward_backward_in_place(x, &targets, 1.0, RowOutputs::new());
                black_box(all.expect(VALID));
            }));
        }
    }
    Group { batch, rows: batch.rows, dtype: "f32", pool: Some(pool), limit, variants }
}
