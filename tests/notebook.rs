//! The notebook, cell by cell: every value that it printed, on every backend.

use crate::examples::notebook::{BATCH, Notebook, TIME, VOCAB};
use crate::golden_data::Index;
use xent::{Backend, CrossEntropy, Evaluation, Logits, RowOutputs, Softmax};

const ROWS: usize = BATCH * TIME;

/// The results of one backend.
struct Results {
    evaluation: Evaluation,
    losses: Vec<f32>,
    logsumexp: Vec<f32>,
    logprobs: Vec<f32>,
    predicted: Vec<i64>,
    probabilities: Vec<f32>,
}

impl Results {
    fn new(backend: Backend, book: &Notebook) -> Self {
        let logits = Logits::new(&book.logits, ROWS, VOCAB).unwrap();
        let (mut losses, mut logsumexp) = (vec![0.0; ROWS], vec![0.0; ROWS]);
        let (mut logprobs, mut predicted) = (vec![0.0; ROWS], vec![0; ROWS]);
        let wanted = RowOutputs::new()
            .losses(&mut losses)
            .logsumexp(&mut logsumexp)
            .logprobs(&mut logprobs)
            .argmax(&mut predicted);
        let ce = CrossEntropy::new().backend(backend);
        let evaluation = ce.evaluate(logits, &book.targets, wanted).unwrap();
        let mut probabilities = vec![0.0; ROWS * VOCAB];
        Softmax::new().backend(backend).softmax(logits, &mut probabilities).unwrap();
        Results { evaluation, losses, logsumexp, logprobs, predicted, probabilities }
    }

    /// All of them, as bits.
    fn bits(&self) -> (u64, Vec<u32>, &[i64]) {
        let Results { losses, logsumexp, logprobs, probabilities, .. } = self;
        let rows = [losses, logsumexp, logprobs, probabilities];
        let bits = rows.into_iter().flatten().map(|x| x.to_bits()).collect();
        (self.evaluation.loss().to_bits(), bits, &self.predicted)
    }
}

#[test]
fn the_tensors_are_those_of_the_notebook() {
    let book = Notebook::new();
    assert_eq!(book.inputs, [11486, 31563, 6140, 17682, 13134, 22911, 20243, 43382]);
    assert_eq!(book.targets, [31563, 6140, 17682, 18369, 22911, 20243, 43382, 45413]);

    let index = Index::load();
    let case = index.cases.iter().find(|case| case.name == "notebook").unwrap();
    let file = index.open(&case.file);
    assert_eq!(book.inputs, file.i64s(case, "input_ids"));
    assert_eq!(book.targets, file.i64s(case, "target"));
    let expected = case.regenerate.as_ref().unwrap();
    assert_eq!((expected.seed, expected.shape), (42, [BATCH, TIME, VOCAB]));
    assert_eq!(book.logits.len(), ROWS * VOCAB);
    for (i, row) in book.logits.chunks(VOCAB).enumerate() {
        let bits: Vec<u32> = row.iter().map(|x| x.to_bits()).collect();
        assert_eq!(bits[..8], expected.first8_bits[i], "row {i}");
        assert_eq!(bits[VOCAB - 8..], expected.last8_bits[i], "row {i}");
        let sum: u64 = bits.iter().copied().map(u64::from).sum();
        assert_eq!(sum, expected.row_bits_sum[i], "row {i}");
        assert_eq!(bits.iter().fold(0, |a, b| a ^ b), expected.row_bits_xor[i], "row {i}");
    }
}

#[test]
fn every_printed_value_on_every_backend() {
    let book = Notebook::new();
    for &backend in Backend::ALL {
        if !backend.is_available() {
            println!("{backend}: not on this machine, skipped");
            continue;
        }
        println!("{backend}");
        let results = Results::new(backend, &book);

        let first: f32 = results.probabilities[..VOCAB].iter().sum();
        assert_eq!(format!("{first:.4}"), "1.0000");
        for row in results.probabilities.chunks(VOCAB) {
            let sum: f64 = row.iter().copied().map(f64::from).sum();
            assert!((sum - 1.0).abs() < 1e-7, "{sum}");
        }

        let predicted = [17322, 34935, 32629, 18804, 2298, 40166, 7312, 27669];
        assert_eq!(results.predicted, predicted);
        // The notebook takes the largest probability rather than the largest logit.
        for (row, &token) in results.probabilities.chunks(VOCAB).zip(&predicted) {
            let best = row.iter().copied().fold(0.0, f32::max);
            assert_eq!(row.iter().position(|&p| p == best), Some(token as usize));
        }

        let chosen: Vec<f32> = results
            .probabilities
            .chunks(VOCAB)
            .zip(&book.targets)
            .map(|(row, &target)| row[target as usize])
            .collect();
        let printed: Vec<String> = chosen.iter().map(|p| format!("{p:.4e}")).collect();
        let expected = [
            "1.1652e-5",
            "2.0611e-5",
            "2.5886e-5",
            "2.8628e-5",
            "1.3507e-5",
            "1.5790e-5",
            "2.0037e-5",
            "2.1681e-5",
        ];
        assert_eq!(printed, expected);
        let average = chosen.iter().sum::<f32>() / ROWS as f32;
        assert_eq!(format!("{average:.4e}"), "1.9724e-5");
        let naive = -average.ln();
        assert_eq!(format!("{naive:.4}"), "10.8337");

        let loss = results.evaluation.loss();
        assert_eq!(format!("{loss:.4}"), "10.8748");
        assert_eq!(format!("{:.2}", results.evaluation.perplexity()), "52826.10");
        assert!(f64::from(naive) < loss, "Jensen's inequality");

        // The last cell: e^10.87 in f32.
        let mut last = [10.87];
        xent::internals::exp(backend, &mut last).unwrap();
        assert_eq!(format!("{:.4}", last[0]), "52575.2031");
    }
    assert!(Backend::available().contains(&Backend::Scalar));
}

#[test]
fn backends_agree_on_every_bit() {
    let book = Notebook::new();
    let scalar = Results::new(Backend::Scalar, &book);
    let mut compared = 0;
    for &backend in Backend::available() {
        // The portable backend has the instructions of the build, not those of the machine.
        if !backend.is_bit_exact() {
            println!("{backend}: compiled without fused multiply-add, same bounds but other bits");
            continue;
        }
        assert!(Results::new(backend, &book).bits() == scalar.bits(), "{backend} differs");
        compared += 1;
    }
    println!("{compared} backends agree on all bits");
    let fused = Backend::available().iter().filter(|&&b| b != Backend::Portable).count();
    assert!(compared >= fused);
}
