//! What the command lines of all commands share.
#![forbid(unsafe_code)]

use xent::Backend;

/// What the targets tensor is called unless the command line says otherwise.
pub(crate) const TARGETS: &str = "targets";

/// Which tensors are logits and targets, and which rows of them count.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Source {
    /// Name of the logits tensor
    #[arg(long, value_name = "NAME", default_value = "logits")]
    pub(crate) logits: String,

    /// Name of the targets tensor [default: targets]
    ///
    /// `xent score` must have targets or --target-probs. Other commands go on without targets if
    /// the file has no tensor of that name and no option asks for them.
    #[arg(long, value_name = "NAME")]
    pub(crate) targets: Option<String>,

    /// Classes of a row that are used: the first N, the rest is padding [default: all]
    ///
    /// Padding is never read. Whatever has an element per class must have N: class weights are [N],
    /// target probabilities [rows, N] or [batch, time, N].
    #[arg(long, value_name = "N", value_parser = classes, allow_negative_numbers = true)]
    pub(crate) vocab: Option<usize>,

    /// Targets are the tokens that went into the model: row i predicts token i + K [default K: 1]
    ///
    /// Of each sequence; without a batch, all rows are one. The last K rows of a sequence have no
    /// target and are ignored, as if it was the ignore index. A sequence must have more than K
    /// rows. Targets of K fewer per sequence, [batch, time - K], were cut already: row t predicts
    /// element t, and the last K none.
    #[arg(
        long,
        value_name = "K",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = shift,
        allow_negative_numbers = true
    )]
    pub(crate) shift: Option<usize>,

    #[command(flatten)]
    pub(crate) rows: Rows,
}

impl Source {
    /// The name that the targets tensor has, if there is one.
    pub(crate) fn targets(&self) -> &str {
        self.targets.as_deref().unwrap_or(TARGETS)
    }

    /// Whether an option means nothing without targets.
    pub(crate) fn asks_for_targets(&self) -> bool {
        self.targets.is_some() || self.shift.is_some() || self.rows.offsets.is_some()
    }
}

/// Under this heading are options of rows: one of a whole group would be that of all that follows.
const ROWS: &str = "Rows that count";

/// Which rows count.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Rows {
    /// Targets of rows to leave out: one, or several after commas or in options of their own
    ///
    /// The logits of such rows are not read, and their loss is 0, as is their gradient. With target
    /// probabilities there is no target to compare: a class is then an error.
    #[arg(
        long,
        help_heading = ROWS,
        value_name = "I",
        value_delimiter = ',',
        default_value = "-100",
        // `-100,0` is no number.
        allow_hyphen_values = true
    )]
    pub(crate) ignore_index: Vec<i64>,

    /// Name of a mask with an element per target: rows where it is 0 are left out, as if ignored
    ///
    /// Integers, BOOL, or floats that are not negative, of the shape of the targets; all but 0
    /// counts. With --shift it is of tokens, as an attention mask is: a row counts if the token
    /// that it predicts does, whether its own does or not.
    #[arg(long, help_heading = ROWS, value_name = "NAME")]
    pub(crate) mask: Option<String>,

    /// Name of weights with an element per target, F32, F64, BF16 or F16
    ///
    /// `xent score` multiplies the loss of a row by its weight, and a mean divides by their sum.
    /// Perplexities, log-probabilities and divergences have no weights: there rows of weight 0 are
    /// left out, and others count alike. With --shift they are of tokens: a row has the weight of
    /// the token that it predicts.
    #[arg(long, help_heading = ROWS, value_name = "NAME")]
    pub(crate) token_weights: Option<String>,

    /// Name of offsets of documents that are packed into the rows, [documents + 1], as cu_seqlens
    ///
    /// Of any integer type: 0, the end of the first document, that of the second, up to the number
    /// of rows. Rows are counted through all sequences, whose place documents take: the last row of
    /// each document, or with --shift K the last K, has no target and is left out. Documents may be
    /// empty.
    #[arg(long, help_heading = ROWS, value_name = "NAME")]
    pub(crate) offsets: Option<String>,
}

/// What is done to logits before anything else.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Transform {
    /// Divides logits, T > 0 [default: 1]
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub(crate) temperature: Option<f64>,
}

/// What computes.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Compute {
    /// Instructions to use: scalar, portable, neon, avx2 or avx512
    ///
    /// By default that of the environment variable XENT_BACKEND, or else the fastest that this
    /// machine can run.
    #[arg(long, value_name = "B", value_parser = available_backend)]
    backend: Option<Backend>,

    /// Threads, 1 to 1024; by default one per core
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

impl Compute {
    pub(crate) fn backend(self) -> Result<Backend, xent::Error> {
        self.backend.map_or_else(Backend::selected, Ok)
    }
}

fn classes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("a row has at least 1 class".to_owned()),
        Ok(classes) => Ok(classes),
        Err(error) => Err(error.to_string()),
    }
}

fn shift(text: &str) -> Result<usize, String> {
    // A file after a plain `--shift` is taken for its value.
    text.parse().map_err(|error| format!("{error}; before a file name write --shift=1"))
}

fn available_backend(name: &str) -> Result<Backend, xent::Error> {
    let backend: Backend = name.parse()?;
    if backend.is_available() {
        Ok(backend)
    } else {
        let available = Backend::available();
        Err(xent::Error::BackendUnavailable { requested: backend, available })
    }
}
