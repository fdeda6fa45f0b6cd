//! A language model small enough to be understood at a glance, and its training.
//!
//! It predicts each character from the one before it, its *bigram* model: the logits of the next
//! character are a row of a `[vocab, vocab]` table, which is all there is to learn. With more than one
//! character of context there is one such table for each place before the next character, and the logits
//! are the sum of a row of each.
//!
//! Everything but the loss, its gradient and the softmax is here, in additions, multiplications, divisions
//! and square roots of one fixed order. IEEE 754 leaves no choice about the bits of those, and the crate
//! none about its own: the same seed gives the same model on every machine.
#![allow(dead_code, reason = "the example and the test use a part each")]

use rand_mt::Mt;
use std::iter;
use std::ops::Range;
use xent::{CrossEntropy, Error, Evaluation, Logits, LogitsMut, RowOutputs, Softmax};

/// A text as tokens, one per character.
#[derive(Clone, Debug)]
pub(crate) struct Corpus {
    /// The different characters of the text, sorted; a token is an index into it.
    pub(crate) alphabet: Vec<char>,
    pub(crate) tokens: Vec<usize>,
}

impl Corpus {
    pub(crate) fn new(text: &str) -> Self {
        let mut alphabet: Vec<char> = text.chars().collect();
        alphabet.sort_unstable();
        alphabet.dedup();
        let tokens = text.chars().map(|c| alphabet.partition_point(|&other| other < c)).collect();
        Corpus { alphabet, tokens }
    }

    pub(crate) fn vocab(&self) -> usize {
        self.alphabet.len()
    }

    /// The positions to predict in training: the first nine tenths that have `context` tokens before them.
    pub(crate) fn training(&self, context: usize) -> Range<usize> {
        context..self.split().max(context)
    }

    /// The positions that training never sees. A model whose loss sinks on the others alone learns them by
    /// heart, and nothing about the language.
    pub(crate) fn held_out(&self) -> Range<usize> {
        self.split()..self.tokens.len()
    }

    fn split(&self) -> usize {
        self.tokens.len() / 10 * 9
    }

    pub(crate) fn text(&self, tokens: &[usize]) -> String {
        tokens.iter().map(|&token| self.alphabet[token]).collect()
    }
}

/// The tables.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) vocab: usize,
    pub(crate) context: usize,
    /// `[context, vocab, vocab]`: how far back, which character is there, which one comes next.
    pub(crate) tables: Vec<f32>,
}

impl Model {
    /// Knows nothing: all characters are equally probable, and the loss is `ln(vocab)`.
    pub(crate) fn untrained(vocab: usize, context: usize) -> Self {
        Model { vocab, context, tables: vec![0.0; context * vocab * vocab] }
    }

    /// What training has to find: the bigram model with the smallest loss on `positions`. No training is
    /// needed, as its probabilities are how often each character followed each other one. Their logarithms
    /// are logits for them, and so are those of the counts, as softmax divides by the sum.
    ///
    /// A pair that never occurs has probability 0 and logit -inf; where the text goes on like that
    /// nevertheless, the loss is infinite. A fraction of a count `added` to each pair avoids it.
    pub(crate) fn of_counts(corpus: &Corpus, positions: Range<usize>, added: f64) -> Self {
        let mut model = Model::untrained(corpus.vocab(), 1);
        let mut counts = vec![added; model.tables.len()];
        for position in positions {
            counts[corpus.tokens[position - 1] * model.vocab + corpus.tokens[position]] += 1.0;
        }
        // The only function here whose last bit is left to the platform. No model is trained with it.
        model.tables = counts.iter().map(|count| count.ln() as f32).collect();
        model
    }

    /// Where in the tables the logits of `position` come from: one row of each table.
    fn rows(&self, tokens: &[usize], position: usize) -> impl Iterator<Item = Range<usize>> {
        let vocab = self.vocab;
        let before = tokens[position - self.context..position].iter().rev();
        before.enumerate().map(move |(table, token)| {
            let start = (table * vocab + token) * vocab;
            start..start + vocab
        })
    }

    /// Fills `logits`, `[positions, vocab]`.
    fn logits(
        &self,
        tokens: &[usize],
        positions: impl IntoIterator<Item = usize>,
        logits: &mut Vec<f32>,
    ) {
        logits.clear();
        for position in positions {
            let row = logits.len();
            logits.resize(row + self.vocab, 0.0);
            for range in self.rows(tokens, position) {
                add(&mut logits[row..], &self.tables[range]);
            }
        }
    }

    /// The loss at `positions`, a batch at a time: the logits of a whole text would be as many times larger
    /// than the text as there are classes.
    pub(crate) fn evaluate(
        &self,
        loss: &CrossEntropy<'_>,
        tokens: &[usize],
        positions: Range<usize>,
    ) -> Result<Evaluation, Error> {
        const BATCH: usize = 4096;
        let mut logits = Vec::new();
        let mut evaluate = |positions: Range<usize>| {
            let (rows, targets) = (positions.len(), &tokens[positions.clone()]);
            self.logits(tokens, positions, &mut logits);
            let logits = Logits::new(&logits, rows, self.vocab)?;
            loss.evaluate(logits, targets, RowOutputs::new().count_correct())
        };
        let Range { start, end } = positions;
        let mut all = evaluate(start..end.min(start + BATCH))?;
        for start in (start + BATCH..end).step_by(BATCH) {
            all = all.merge(&evaluate(start..end.min(start + BATCH))?);
        }
        Ok(all)
    }

    /// Appends `count` tokens to `tokens`, each drawn with the probability that the model gives it.
    pub(crate) fn write(
        &self,
        softmax: &Softmax,
        tokens: &mut Vec<usize>,
        count: usize,
        random: &mut Mt,
    ) -> Result<(), Error> {
        let mut probabilities = Vec::new();
        for _ in 0..count {
            self.logits(tokens, iter::once(tokens.len()), &mut probabilities);
            softmax.softmax_in_place(LogitsMut::new(&mut probabilities, 1, self.vocab)?)?;
            // The first token up to which the probabilities sum to more than a number in [0, 1).
            let mut left = f64::from(random.next_u32()) / 2f64.powi(32);
            let next = probabilities.iter().position(|&p| {
                left -= f64::from(p);
                left < 0.0
            });
            // They may sum to a little less than 1.
            tokens.push(next.unwrap_or(self.vocab - 1));
        }
        Ok(())
    }
}

/// What training depends on, besides the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    /// How many characters the next one is predicted from.
    pub(crate) context: usize,
    /// How often the training text is read.
    pub(crate) epochs: usize,
    /// Positions per step.
    pub(crate) batch: usize,
    /// Of the first step; from there it sinks to 0 in a straight line.
    pub(crate) learning_rate: f32,
    /// Of the order in which positions are read.
    pub(crate) seed: u32,
}

impl Default for Options {
    fn default() -> Self {
        Options { context: 1, epochs: 20, batch: 1024, learning_rate: 0.05, seed: 42 }
    }
}

/// A model in training.
#[derive(Debug)]
pub(crate) struct Trainer<'a> {
    pub(crate) model: Model,
    loss: CrossEntropy<'a>,
    tokens: &'a [usize],
    options: Options,
    /// What there is to predict, in the order of this epoch.
    positions: Vec<usize>,
    random: Mt,
    adam: Adam,
    /// How many steps were taken.
    steps: usize,
    /// `[context, vocab, vocab]`, as the tables.
    pub(crate) gradient: Vec<f32>,
    /// `[batch, vocab]`: first the logits of a batch, then their gradient.
    logits: Vec<f32>,
    targets: Vec<usize>,
}

impl<'a> Trainer<'a> {
    pub(crate) fn new(corpus: &'a Corpus, loss: CrossEntropy<'a>, options: Options) -> Self {
        let model = Model::untrained(corpus.vocab(), options.context);
        Trainer {
            loss,
            tokens: &corpus.tokens,
            options,
            positions: corpus.training(options.context).collect(),
            random: Mt::new(options.seed),
            adam: Adam::new(model.tables.len()),
            steps: 0,
            gradient: vec![0.0; model.tables.len()],
            logits: Vec::new(),
            targets: Vec::new(),
            model,
        }
    }

    pub(crate) fn steps_per_epoch(&self) -> usize {
        self.positions.len().div_ceil(self.options.batch)
    }

    /// Reads the training text once, in random order, and calls `after_step` with the loss of each batch.
    pub(crate) fn epoch(&mut self, mut after_step: impl FnMut(f64)) -> Result<(), Error> {
        shuffle(&mut self.positions, &mut self.random);
        for start in (0..self.positions.len()).step_by(self.options.batch) {
            let end = self.positions.len().min(start + self.options.batch);
            after_step(self.step(start..end)?.loss());
        }
        Ok(())
    }

    /// One step of training: a small change of the tables that makes the loss of a batch smaller.
    fn step(&mut self, batch: Range<usize>) -> Result<Evaluation, Error> {
        let evaluation = self.gradient(batch)?;
        let steps = self.options.epochs * self.steps_per_epoch();
        let left = 1.0 - self.steps as f32 / steps as f32;
        let learning_rate = self.options.learning_rate * left.max(0.0);
        self.adam.update(&mut self.model.tables, &self.gradient, learning_rate);
        self.steps += 1;
        Ok(evaluation)
    }

    /// The mean loss of a batch of `self.positions`; and its derivative by each number of the tables, in
    /// `self.gradient`.
    pub(crate) fn gradient(&mut self, batch: Range<usize>) -> Result<Evaluation, Error> {
        let (rows, vocab) = (batch.len(), self.model.vocab);
        let positions = &self.positions[batch];

        // Forward: what does the model expect at these positions, and what is there?
        self.model.logits(self.tokens, positions.iter().copied(), &mut self.logits);
        self.targets.clear();
        self.targets.extend(positions.iter().map(|&position| self.tokens[position]));

        // The loss, and its derivative by each logit. That needs no memory of its own: it takes the place
        // of the logits, which nobody needs any more.
        let logits = LogitsMut::new(&mut self.logits, rows, vocab)?;
        let outputs = RowOutputs::new();
        let evaluation =
            self.loss.forward_backward_in_place(logits, &self.targets, 1.0, outputs)?;

        // Backward: a row of a table was added to the logits of many positions, so that its gradient is the
        // sum of theirs. They were divided by the size of the batch already, as the loss is a mean.
        self.gradient.fill(0.0);
        for (by_logits, &position) in self.logits.chunks_exact(vocab).zip(positions) {
            for range in self.model.rows(self.tokens, position) {
                add(&mut self.gradient[range], by_logits);
            }
        }
        Ok(evaluation)
    }
}

/// The optimizer of Kingma and Ba, 2015: a step for each parameter that does not depend on how large its
/// gradients are, only on how much they agree with each other. The row of a rare character, whose
/// gradients are small, is learned as fast as that of a frequent one.
#[derive(Debug)]
struct Adam {
    /// Moving averages of the gradients and of their squares.
    mean: Vec<f32>,
    square: Vec<f32>,
    /// What these averages still have of the zeros that they began with.
    mean_bias: f32,
    square_bias: f32,
}

impl Adam {
    const MEAN_DECAY: f32 = 0.9;
    const SQUARE_DECAY: f32 = 0.999;
    const EPSILON: f32 = 1e-8;

    fn new(parameters: usize) -> Self {
        let zeros = vec![0.0; parameters];
        Adam { mean: zeros.clone(), square: zeros, mean_bias: 1.0, square_bias: 1.0 }
    }

    fn update(&mut self, parameters: &mut [f32], gradient: &[f32], learning_rate: f32) {
        // A product per step rather than a power, whose last bit would be left to the platform.
        self.mean_bias *= Self::MEAN_DECAY;
        self.square_bias *= Self::SQUARE_DECAY;
        let moments = self.mean.iter_mut().zip(&mut self.square);
        for ((parameter, &g), (mean, square)) in parameters.iter_mut().zip(gradient).zip(moments) {
            *mean += (1.0 - Self::MEAN_DECAY) * (g - *mean);
            *square += (1.0 - Self::SQUARE_DECAY) * (g * g - *square);
            let mean = *mean / (1.0 - self.mean_bias);
            let square = *square / (1.0 - self.square_bias);
            *parameter -= learning_rate * mean / (square.sqrt() + Self::EPSILON);
        }
    }
}

fn add(to: &mut [f32], from: &[f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to += from;
    }
}

/// Fisher and Yates: each of the rest is as likely to come next.
fn shuffle(items: &mut [usize], random: &mut Mt) {
    for last in (1..items.len()).rev() {
        // Of 2^32 equally likely numbers to `last + 1` places: uneven by a thousandth for texts of
        // millions of characters.
        let chosen = (u64::from(random.next_u32()) * (last as u64 + 1)) >> 32;
        items.swap(last, chosen as usize);
    }
}
