//! Options and targets of every kind, for the kernels and for the oracle alike.

use crate::{Rng, any_target};
use xent::reference::{Options, Target};
use xent::{Backend, CrossEntropy, Gradient, LogSumExp, Logits, LogitsMut, RowOutputs};
use xent::{Evaluation, SparseProbs, Targets};

/// Options, with the numbers that they refer to in both precisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Setup {
    pub label_smoothing: f64,
    pub weights: Option<Vec<f32>>,
    pub weights_f64: Option<Vec<f64>>,
    pub z_loss: f64,
    pub softcap: Option<f64>,
    pub caps_infinities: bool,
    /// `None` for 1.
    pub logit_scale: Option<f64>,
    pub temperature: Option<f64>,
}

/// What a combination may contain, as bits of a number below `Setup::COMBINATIONS`.
impl Setup {
    pub const SMOOTHING: usize = 1;
    pub const WEIGHTS: usize = 2;
    pub const Z_LOSS: usize = 4;
    pub const SOFTCAP: usize = 8;
    pub const SCALE: usize = 16;
    pub const TEMPERATURE: usize = 32;
    pub const COMBINATIONS: usize = 64;

    /// The options whose bits are set, with numbers of some variety.
    pub fn new(combination: usize, rng: &mut Rng, vocab: usize) -> Setup {
        let has = |option| combination & option != 0;
        let mut setup = Setup::default();
        if has(Self::SMOOTHING) {
            setup.label_smoothing = rng.pick(&[0.1, 0.001, 0.5, 0.9]);
        }
        if has(Self::WEIGHTS) {
            let signs = rng.below(4) == 0;
            let mut weight = || {
                let w = rng.pick(&[1.0, 0.0, 0.25, 3.0, 0.7]) * (0.5 + rng.unit() as f32);
                if signs && rng.below(4) == 0 { -w } else { w }
            };
            setup = setup.weights((0..vocab).map(|_| weight()).collect());
        }
        if has(Self::Z_LOSS) {
            setup.z_loss = rng.pick(&[1e-4, 0.01, 1.0]);
        }
        if has(Self::SOFTCAP) {
            setup.softcap = Some(rng.pick(&[30.0, 50.0, 5.5]));
            setup.caps_infinities = rng.below(2) == 0;
        }
        if has(Self::SCALE) {
            setup.logit_scale = Some(rng.pick(&[0.37, 0.125, 1.7]));
        }
        if has(Self::TEMPERATURE) {
            setup.temperature = Some(rng.pick(&[0.6, 2.0, 1.3]));
        }
        setup
    }

    pub fn weights(mut self, weights: Vec<f32>) -> Setup {
        self.weights_f64 = Some(weights.iter().map(|&w| w.into()).collect());
        self.weights = Some(weights);
        self
    }

    pub fn transforms(&self) -> bool {
        self.softcap.is_some() || self.logit_scale.is_some() || self.temperature.is_some()
    }

    pub fn cross_entropy(&self, backend: Backend) -> CrossEntropy<'_> {
        let mut ce = CrossEntropy::new()
            .backend(backend)
            .label_smoothing(self.label_smoothing)
            .z_loss(self.z_loss)
            .logit_scale(self.logit_scale.unwrap_or(1.0))
            .temperature(self.temperature.unwrap_or(1.0));
        if let Some(c) = self.softcap {
            ce = if self.caps_infinities { ce.softcap_of_all(c) } else { ce.softcap(c) };
        }
        match &self.weights {
            Some(weights) => ce.class_weights(weights),
            None => ce,
        }
    }

    pub fn reference(&self, token_weight: f64) -> Options<'_> {
        Options {
            logit_scale: self.logit_scale.unwrap_or(1.0),
            softcap: self.softcap,
            caps_infinities: self.caps_infinities,
            temperature: self.temperature.unwrap_or(1.0),
            label_smoothing: self.label_smoothing,
            class_weights: self.weights_f64.as_deref(),
            z_loss: self.z_loss,
            token_weight,
        }
    }
}

/// Targets of a batch, of one of three kinds.
#[derive(Clone, Debug)]
pub enum Wanted {
    Ids(Vec<i64>),
    Dense { probs: Vec<f32>, vocab: usize },
    Sparse { ids: Vec<i64>, probs: Vec<f32>, k: usize, vocab: usize },
}

impl Wanted {
    pub const KINDS: usize = 3;

    /// A class per row: any, or the most probable; now and then none if rows may be ignored.
    pub fn ids(rng: &mut Rng, rows: &[Vec<f32>], ignored: bool) -> Wanted {
        let id = |row: &Vec<f32>| {
            let ignored = row.is_empty() || ignored && rng.below(6) == 0;
            if ignored { -100 } else { any_target(rng, row) as i64 }
        };
        Wanted::Ids(rows.iter().map(id).collect())
    }

    /// Probabilities, many of them 0, that mostly sum to 1.
    pub fn dense(rng: &mut Rng, rows: usize, vocab: usize) -> Wanted {
        let mut probs = Vec::with_capacity(rows * vocab);
        for _ in 0..rows {
            let (share, sum) = (rng.pick(&[1.0, 0.3, 0.01]), rng.pick(&[1.0, 1.0, 1.0, 0.5, 3.0]));
            let row = (0..vocab).map(|_| if rng.unit() < share { rng.unit() } else { 0.0 });
            let row: Vec<f64> = row.collect();
            let total = row.iter().sum::<f64>().max(1e-3);
            probs.extend(row.iter().map(|p| (p / total * sum) as f32));
        }
        Wanted::Dense { probs, vocab }
    }

    /// As [`Wanted::dense`], for at most `k` classes of a row.
    pub fn sparse(rng: &mut Rng, rows: usize, vocab: usize) -> Wanted {
        let k = 1 + rng.below(6);
        let id = |_| if rng.below(5) == 0 { -100 } else { rng.below(vocab) as i64 };
        let ids = (0..rows * k).map(id).collect();
        let probs = (0..rows * k).map(|_| (rng.unit() / k as f64) as f32).collect();
        Wanted::Sparse { ids, probs, k, vocab }
    }

    pub fn new(kind: usize, rng: &mut Rng, rows: &[Vec<f32>]) -> Wanted {
        let vocab = rows.first().map_or(0, Vec::len);
        match kind {
            0 => Wanted::ids(rng, rows, true),
            1 => Wanted::dense(rng, rows.len(), vocab),
            _ => Wanted::sparse(rng, rows.len(), vocab),
        }
    }

    pub fn targets(&self) -> Targets<'_> {
        match self {
            Wanted::Ids(ids) => ids.into(),
            Wanted::Dense { probs, .. } => Targets::probs(probs),
            Wanted::Sparse { ids, probs, k, .. } => SparseProbs::new(ids, probs, *k).into(),
        }
    }

    /// The targets of some rows, in this order.
    pub fn rows(&self, rows: &[usize]) -> Wanted {
        fn take<T: Copy>(values: &[T], rows: &[usize], k: usize) -> Vec<T> {
            rows.iter().flat_map(|i| &values[i * k..][..k]).copied().collect()
        }
        match self {
            Wanted::Ids(ids) => Wanted::Ids(take(ids, rows, 1)),
            &Wanted::Dense { ref probs, vocab } => {
                Wanted::Dense { probs: take(probs, rows, vocab), vocab }
            }
            &Wanted::Sparse { ref ids, ref probs, k, vocab } => {
                Wanted::Sparse { ids: take(ids, rows, k), probs: take(probs, rows, k), k, vocab }
            }
        }
    }

    /// The probabilities of a row, one per class; `None` for ids.
    pub fn probs(&self, row: usize) -> Option<Vec<f64>> {
        match self {
            Wanted::Ids(_) => None,
            &Wanted::Dense { ref probs, vocab } => {
                Some(probs[row * vocab..][..vocab].iter().map(|&p| p.into()).collect())
            }
            &Wanted::Sparse { ref ids, ref probs, k, vocab } => {
                let mut all = vec![0.0; vocab];
                for (id, p) in ids[row * k..][..k].iter().zip(&probs[row * k..][..k]) {
                    if let Ok(class) = usize::try_from(*id) {
                        // Two probabilities of a class are added in `f32`.
                        all[class] = f64::from(all[class] as f32 + p);
                    }
                }
                Some(all)
            }
        }
    }

    /// The target of a row as the oracle has it, `probs` being [`Wanted::probs`]; `None` if it is ignored.
    pub fn reference<'a>(&self, row: usize, probs: &'a Option<Vec<f64>>) -> Option<Target<'a>> {
        match (self, probs) {
            (Wanted::Ids(ids), _) => usize::try_from(ids[row]).ok().map(Target::Class),
            (_, probs) => probs.as_deref().map(Target::Probs),
        }
    }
}

/// Everything that a pass over some rows yields.
#[derive(Clone, Debug)]
pub struct Trained {
    pub losses: Vec<f32>,
    pub z_losses: Vec<f32>,
    pub logprobs: Vec<f32>,
    pub logsumexp: Vec<f32>,
    pub argmax: Vec<i64>,
    pub stats: Vec<LogSumExp>,
    pub gradient: Vec<f32>,
    pub evaluation: Evaluation,
}

impl Trained {
    /// All of it as bits, so that it can be compared: NaN equals NaN, and +0 is not -0.
    pub fn keys(&self) -> (Vec<u32>, Vec<i64>, [u64; 3]) {
        use crate::{key64, keys};
        let stats = self.stats.iter().flat_map(|stats| [stats.hi, stats.lo]);
        let stats: Vec<f32> = stats.collect();
        let all =
            [&self.losses, &self.z_losses, &self.logprobs, &self.logsumexp, &stats, &self.gradient];
        let e = &self.evaluation;
        (
            all.into_iter().flat_map(|values| keys(values)).collect(),
            self.argmax.clone(),
            [key64(e.loss()), key64(e.z_loss()), key64(e.mean())],
        )
    }
}

/// Loss and gradient in one call, with all outputs.
pub fn train<'a, 'u>(
    ce: &CrossEntropy<'_>,
    logits: Logits<'_>,
    targets: impl Into<Targets<'a>>,
    upstream: impl Into<xent::Upstream<'u>>,
) -> Trained {
    let (rows, vocab) = (logits.rows(), logits.vocab());
    let zeros = vec![0.0; rows];
    let (mut losses, mut z_losses) = (zeros.clone(), zeros.clone());
    let (mut logprobs, mut logsumexp, mut argmax) = (zeros.clone(), zeros, vec![0; rows]);
    let mut stats = vec![LogSumExp::default(); rows];
    // What is there before is of no consequence.
    let mut gradient = vec![f32::NAN; rows * vocab];
    let outputs = RowOutputs::new()
        .losses(&mut losses)
        .z_losses(&mut z_losses)
        .logprobs(&mut logprobs)
        .logsumexp(&mut logsumexp)
        .argmax(&mut argmax)
        .saved(&mut stats);
    let to = LogitsMut::new(&mut gradient, rows, vocab).unwrap();
    let to = Gradient::new(to).upstream(upstream.into());
    let evaluation = ce.forward_backward(logits, targets, to, outputs).unwrap();
    Trained { losses, z_losses, logprobs, logsumexp, argmax, stats, gradient, evaluation }
}
