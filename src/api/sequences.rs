//! Scores of sequences whose rows follow one another: ragged batches by offsets.
#![forbid(unsafe_code)]

use crate::api::cross_entropy::{Call, CrossEntropy};
use crate::data::error::Error;
use crate::data::logits::Logits;
use crate::data::targets::Targets;
use crate::dispatch::element::Element;
use crate::kernel::outputs::RowSlices;
use crate::kernel::row::Row;
use crate::math;
use crate::simd::float_env;

/// The score of one sequence: made by [`CrossEntropy::sequences`].
///
/// Rows that are ignored, or whose token weight is 0, do not count in anything.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SequenceScore {
    /// The sum of the log-probabilities of the targets, in nats: the log-likelihood of the sequence. 0 for no
    /// tokens.
    pub logprob: f64,
    /// The number of rows that count.
    pub tokens: usize,
    /// The first of these whose target is not the most probable class, counted from the start of the sequence,
    /// rows that do not count included. A row whose log-probability is NaN has no most probable class.
    pub first_mismatch: Option<usize>,
}

impl SequenceScore {
    /// Of the rows of one sequence, in order.
    fn new(rows: &[Row]) -> Self {
        let mut score = SequenceScore::default();
        for (i, row) in rows.iter().enumerate().filter(|(_, row)| row.counts()) {
            score.logprob -= row.nll;
            score.tokens += 1;
            if !row.is_correct() && score.first_mismatch.is_none() {
                score.first_mismatch = Some(i);
            }
        }
        score
    }

    /// The mean log-probability of a token; NaN for no tokens.
    pub fn mean(&self) -> f64 {
        float_env::scope(|| self.logprob / self.tokens as f64)
    }

    /// `e^-mean`; NaN for no tokens.
    pub fn perplexity(&self) -> f64 {
        float_env::scope(|| math::exp(-self.mean()))
    }

    /// Whether every target is the most probable class of its row, the first if several are: what greedy
    /// decoding generates, `is_greedy` of lm-evaluation-harness. False if a log-probability is NaN. True for no
    /// tokens, as there `all` of nothing is.
    pub fn is_greedy(&self) -> bool {
        self.first_mismatch.is_none()
    }
}

impl CrossEntropy<'_> {
    /// The score of each sequence of a ragged batch: sequence `i` is rows `offsets[i]..offsets[i + 1]`, as
    /// `cu_seqlens` of variable-length attention has it. `n` sequences have `n + 1` offsets, from 0 to the number
    /// of rows. They may be empty. `scores` has one element per sequence.
    ///
    /// Sums are of losses in `f64`, before they are rounded, in row order: a score has the same bits as that of
    /// a call with the rows of its sequence alone (`tests/sequences.rs`). With [`CrossEntropy::temperature`], masks
    /// and other transforms of the logits log-probabilities are those of the transformed logits; weights, smoothing,
    /// z-loss and reduction have no part in them, but that rows whose token weight is 0 do not count, as if their
    /// targets were ignored. Targets may also be probabilities, whose log-probability is
    /// the negative of their cross-entropy with its options, and whose most probable class has to be that of the
    /// model.
    ///
    /// A row with a NaN or +inf, or with nothing but -inf, has log-probability NaN, and so has its sequence, which is
    /// not greedy; no other sequence is affected. A target that is masked makes its sequence -inf. Allocates 48 bytes per row.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, SequenceScore};
    ///
    /// let x = [0.0_f32, 2.0, 0.0, 0.0, 1.0, 0.0, 0.0, 3.0]; // four rows of two classes
    /// let logits = Logits::new(&x, 4, 2)?;
    /// let mut scores = [SequenceScore::default(); 2];
    /// CrossEntropy::new().sequences(logits, &[1i64, -100, 1, 1], &[0, 1, 4], &mut scores)?;
    ///
    /// assert!((scores[0].logprob - -0.126928).abs() < 1e-6);
    /// assert!(scores[0].is_greedy());
    /// assert_eq!((scores[1].tokens, scores[1].first_mismatch), (2, Some(1)));
    /// assert!((scores[1].mean() - (-1.313262 - 0.048587) / 2.0).abs() < 1e-6);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Preference and policy losses
    /// DPO, KTO and GRPO need these numbers, of a policy and of a reference, and nothing else of a forward pass.
    /// DPO: `-ln sigmoid(beta (r_chosen - r_rejected))` with `r` the difference of the sums. GRPO: of each token
    /// the ratio `e^(logp - old)`, and the k3 estimator of the KL divergence from the reference, `e^d - 1 - d` with
    /// `d = reference - logp` (`exp_m1` keeps the digits of small ones):
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits, RowOutputs};
    ///
    /// let (policy, reference) = ([0.0_f32, 1.0, 2.0, 0.0], [0.0_f32, 0.9, 1.8, 0.0]);
    /// let (policy, reference) = (Logits::new(&policy, 2, 2)?, Logits::new(&reference, 2, 2)?);
    /// let (ce, targets, offsets) = (CrossEntropy::new(), [1i64, 1], [0, 1, 2]);
    ///
    /// // GRPO, per token:
    /// let (mut logp, mut old) = ([0.0; 2], [0.0; 2]);
    /// ce.evaluate(policy, &targets, RowOutputs::new().logprobs(&mut logp))?;
    /// ce.evaluate(reference, &targets, RowOutputs::new().logprobs(&mut old))?;
    /// let ratio = (logp[0] - old[0]).exp();
    /// let d = old[0] - logp[0];
    /// let k3 = d.exp_m1() - d;
    /// assert!((ratio - 1.0282848).abs() < 1e-6 && (k3 - 0.0003854).abs() < 1e-6);
    ///
    /// // DPO, of a chosen and a rejected sequence:
    /// let of = |logits| ce.score_sequences(logits, &targets, &offsets);
    /// let (pi, rf) = (of(policy)?, of(reference)?);
    /// let margin = (pi[0].logprob - rf[0].logprob) - (pi[1].logprob - rf[1].logprob);
    /// let loss = (-0.1 * margin).exp().ln_1p(); // -ln sigmoid(beta margin)
    /// assert!((loss - 0.6831060).abs() < 1e-6);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoOffsets`], [`Error::OffsetOrder`], [`Error::OffsetBound`], [`Error::OutputLength`] unless `scores` has
    /// one element per sequence, and those of [`CrossEntropy::forward`]. On error `scores` is as it was.
    pub fn sequences<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        offsets: &[usize],
        scores: &mut [SequenceScore],
    ) -> Result<(), Error> {
        let expected = check_offsets(offsets, logits.rows())?;
        if scores.len() != expected {
            return Err(Error::OutputLength { output: "scores", len: scores.len(), expected });
        }
        let rows = self.score_rows(logits, targets.into())?;
        for (score, range) in scores.iter_mut().zip(offsets.windows(2)) {
            *score = float_env::scope(|| SequenceScore::new(&rows[range[0]..range[1]]));
        }
        Ok(())
    }

    /// As [`CrossEntropy::sequences`], into a new vector.
    ///
    /// ```
    /// use xent::{CrossEntropy, Logits};
    ///
    /// let logits = Logits::new(&[0.0_f32; 6], 3, 2)?;
    /// let scores = CrossEntropy::new().score_sequences(logits, &[0i64, 0, 0], &[0, 2, 2, 3])?;
    /// assert_eq!(scores[0].logprob, -2.0 * 2f64.ln());
    /// assert!(scores[1].mean().is_nan()); // no tokens
    /// assert_eq!(scores[2].perplexity(), 2.0);
    /// # Ok::<(), xent::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`CrossEntropy::sequences`].
    pub fn score_sequences<'a, T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: impl Into<Targets<'a>>,
        offsets: &[usize],
    ) -> Result<Vec<SequenceScore>, Error> {
        check_offsets(offsets, logits.rows())?;
        let rows = self.score_rows(logits, targets.into())?;
        let ranges = offsets.windows(2).map(|range| range[0]..range[1]);
        Ok(float_env::scope(|| ranges.map(|range| SequenceScore::new(&rows[range])).collect()))
    }

    /// What the pass found about each row.
    fn score_rows<T: Element>(
        &self,
        logits: Logits<'_, T>,
        targets: Targets<'_>,
    ) -> Result<Vec<Row>, Error> {
        // Checked before memory is asked for: the matrix may have any number of rows of no elements.
        let (count, elements) = (logits.rows(), logits.vocab());
        targets.check_len(count, elements)?;
        let mut rows = Vec::new();
        if rows.try_reserve_exact(count).is_err() {
            return Err(Error::Overflow { rows: count, elements });
        }
        rows.resize(count, Row::IGNORED);
        let out = RowSlices { rows: Some(&mut rows[..]), ..RowSlices::default() };
        self.run(Call::new(Some(logits), targets, out, None), true)?;
        Ok(rows)
    }
}

/// The number of sequences.
fn check_offsets(offsets: &[usize], rows: usize) -> Result<usize, Error> {
    let (&[first, ..], &[.., last]) = (offsets, offsets) else {
        return Err(Error::NoOffsets);
    };
    if first != 0 {
        return Err(Error::OffsetBound { index: 0, offset: first, expected: 0 });
    }
    if let Some(i) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
        return Err(Error::OffsetOrder {
            index: i + 1,
            offset: offsets[i + 1],
            before: offsets[i],
        });
    }
    let sequences = offsets.len() - 1;
    if last != rows {
        return Err(Error::OffsetBound { index: sequences, offset: last, expected: rows });
    }
    Ok(sequences)
}
