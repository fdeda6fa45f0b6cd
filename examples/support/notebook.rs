//! The tensors of the notebook, as `torch.manual_seed(42)`, `randint` and `rand` made them.

use rand_mt::Mt;

pub(crate) const BATCH: usize = 2;
pub(crate) const TIME: usize = 4;
pub(crate) const VOCAB: usize = 50_257;

/// A batch of token sequences, and the logits of a model that guesses.
pub(crate) struct Notebook {
    /// `[BATCH, TIME]` tokens.
    pub(crate) inputs: Vec<i64>,
    /// `[BATCH, TIME]`: the token that follows each input token.
    pub(crate) targets: Vec<i64>,
    /// `[BATCH, TIME, VOCAB]`, uniform in [0, 1).
    pub(crate) logits: Vec<f32>,
}

impl Notebook {
    pub(crate) fn new() -> Self {
        // On the CPU, PyTorch draws from one Mersenne Twister, one 32-bit word per number.
        let mut twister = Mt::new(42);
        let mut token = |_| i64::from(twister.next_u32() % VOCAB as u32);
        let inputs: Vec<i64> = (0..BATCH * TIME).map(&mut token).collect();
        let last: Vec<i64> = (0..BATCH).map(&mut token).collect();
        let targets = inputs
            .chunks(TIME)
            .zip(last)
            .flat_map(|(sequence, last)| sequence[1..].iter().copied().chain([last]))
            .collect();
        // An f32 has 24 significant bits: those of the word that `rand` keeps.
        let unit = 1.0 / (1 << 24) as f32;
        let logits = (0..BATCH * TIME * VOCAB)
            .map(|_| (twister.next_u32() & 0x00ff_ffff) as f32 * unit)
            .collect();
        Notebook { inputs, targets, logits }
    }
}
