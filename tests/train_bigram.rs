//! Training with this crate: right gradients, the loss that can be reached, and the same bits of it
//! everywhere.

use crate::examples::bigram::{Corpus, Model, Options, Trainer};
use rand_mt::Mt;
use sha2::{Digest, Sha256};
use xent::{Backend, CrossEntropy, Softmax};

static BOOK: &str = include_str!("../examples/data/alice.txt");

fn fastest() -> Backend {
    *Backend::available().last().expect("there is always one")
}

/// What came out of training, to the last bit.
#[derive(Debug, PartialEq)]
struct Outcome {
    /// On the training text and on the held-out text.
    losses: [f64; 2],
    /// SHA-256 of the tables.
    digest: String,
    /// What the model writes.
    text: String,
}

impl Outcome {
    fn of_training(backend: Backend, corpus: &Corpus, options: Options) -> Self {
        let loss = CrossEntropy::new().backend(backend);
        let mut trainer = Trainer::new(corpus, loss.clone(), options);
        for _ in 0..options.epochs {
            trainer.epoch(|_| ()).unwrap();
        }
        let model = trainer.model;
        let losses = [corpus.training(options.context), corpus.held_out()]
            .map(|positions| model.evaluate(&loss, &corpus.tokens, positions).unwrap().loss());
        let bytes: Vec<u8> = model.tables.iter().flat_map(|x| x.to_le_bytes()).collect();
        let digest = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let mut tokens = corpus.tokens[..options.context].to_vec();
        let softmax = Softmax::new().backend(backend);
        model.write(&softmax, &mut tokens, 40, &mut Mt::new(options.seed)).unwrap();
        Outcome { losses, digest, text: corpus.text(&tokens[options.context..]) }
    }

    /// That this is `expected`; or close to it, for the rounding of a backend without fused multiply-add.
    fn check(&self, backend: Backend, expected: &Outcome) {
        if backend.is_bit_exact() {
            assert_eq!(self, expected, "{backend}");
            return;
        }
        for (loss, expected) in self.losses.iter().zip(expected.losses) {
            assert!((loss - expected).abs() < 1e-5, "{backend}: {loss} instead of {expected}");
        }
    }
}

#[test]
fn training_ends_with_the_same_bits_on_every_backend() {
    // A tenth of the book: the scalar backend takes a hundred times as long as the others.
    let corpus = Corpus::new(&BOOK[..15_000]);
    let options = Options { context: 2, epochs: 2, batch: 256, ..Options::default() };
    let expected = Outcome {
        losses: [2.2703969462046376, 2.396588470920652],
        digest: "4477fd715168bbcbe559d82bc5e87b1d2aae3433c8bd25411cca9181315945d6".to_owned(),
        text: "ast othe g   buin th  uppra\n was li g de".to_owned(),
    };
    for &backend in Backend::available() {
        let outcome = Outcome::of_training(backend, &corpus, options);
        println!("{backend}: {outcome:?}");
        outcome.check(backend, &expected);
    }
}

#[test]
fn the_example_ends_where_it_did_and_near_the_best_there_is() {
    let (corpus, options) = (Corpus::new(BOOK), Options::default());
    let expected = Outcome {
        losses: [2.426883037959472, 2.4539260170736865],
        digest: "cf2de8d6102f649054cdeaed8a863c5145ffa6d78e45613a17b50e57c6300eab".to_owned(),
        text: "bry sorhan   folidel  wits  Gr mblibe\n h".to_owned(),
    };
    let outcome = Outcome::of_training(fastest(), &corpus, options);
    println!("{}: {outcome:?}", fastest());
    outcome.check(fastest(), &expected);

    let best = Model::of_counts(&corpus, corpus.training(1), 0.0);
    let loss =
        |positions| best.evaluate(&CrossEntropy::new(), &corpus.tokens, positions).unwrap().loss();
    let above = outcome.losses[0] - loss(corpus.training(1));
    assert!((0.0..1e-3).contains(&above), "{above}");
    // The book goes on with pairs of characters that it did not have before.
    assert_eq!(loss(corpus.held_out()), f64::INFINITY);
}

#[test]
fn the_gradient_of_the_best_model_is_zero() {
    let corpus = Corpus::new(BOOK);
    let all = corpus.training(1);
    let mut trainer = Trainer::new(&corpus, CrossEntropy::new(), Options::default());
    trainer.gradient(0..all.len()).unwrap();
    let largest = |gradient: &[f32]| gradient.iter().fold(0.0, |a: f32, g| a.max(g.abs()));
    assert!(largest(&trainer.gradient) > 0.01);
    trainer.model = Model::of_counts(&corpus, all.clone(), 0.0);
    trainer.gradient(0..all.len()).unwrap();
    // Sums of up to 26,000 numbers in f32.
    assert!(largest(&trainer.gradient) < 1e-6, "{}", largest(&trainer.gradient));
}

#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let corpus = Corpus::new(&BOOK[..3_000]);
    let (loss, context) = (CrossEntropy::new(), 2);
    let all = corpus.training(context);
    let options = Options { context, epochs: 10, batch: 100, ..Options::default() };
    let mut trainer = Trainer::new(&corpus, loss.clone(), options);
    // Somewhere on the way, where no table is all zeros.
    trainer.epoch(|_| ()).unwrap();
    trainer.gradient(0..all.len()).unwrap();
    let mut model = trainer.model;
    let (mut compared, step) = (0, 1.0 / 64.0);
    for (i, &gradient) in trainer.gradient.iter().enumerate() {
        if gradient.abs() < 1e-3 {
            continue;
        }
        let mut at = |offset: f32| {
            let before = model.tables[i];
            model.tables[i] += offset;
            let moved = f64::from(model.tables[i]);
            let value = model.evaluate(&loss, &corpus.tokens, all.clone()).unwrap().loss();
            model.tables[i] = before;
            (moved, value)
        };
        let ((left, below), (right, above)) = (at(-step), at(step));
        let slope = (above - below) / (right - left);
        assert!((slope - f64::from(gradient)).abs() < 1e-6, "{i}: {gradient}, slope {slope}");
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}
