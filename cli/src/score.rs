//! `xent score`: loss, perplexity and accuracy of logits, and the gradient of the loss.
#![forbid(unsafe_code)]

mod args;
mod pass;
mod report;

pub(crate) use args::Args;

use crate::command::{self, bad_input, in_pool, in_words};
use crate::error::{Error, complain};
use crate::gradient::GradientFile;
use crate::input::Input;
use crate::number::{Logit, for_logits};
use crate::tensor::Named;
use pass::Scores;
use safetensors::SafeTensors;
use std::io::{self, BufWriter, Write};

pub(crate) fn run(args: &Args) -> Result<(), Error> {
    let file = command::map(&args.file)?;
    let tensors = command::tensors(&args.file, &file)?;
    let logits = command::logits(&args.file, &tensors, &args.source.logits)?;
    for_logits!(logits.view.dtype(), T => score::<T>(&tensors, &logits, args))
}

fn score<T: Logit>(
    tensors: &SafeTensors<'_>,
    logits: &Named<'_, '_>,
    args: &Args,
) -> Result<(), Error> {
    let input = Input::<T>::new(tensors, logits, &args.source, args.tensors())
        .map_err(|error| bad_input(&args.file, error))?;
    let failed = |error| in_words(error, &input, &args.file, &args.source);
    input.check_targets().map_err(failed)?;
    let run = |gradient: Option<&mut [T]>| {
        in_pool(args.compute, || pass::run(&input, args, gradient))?.map_err(failed)
    };
    let scores = match &args.gradient.grad {
        None => run(None)?,
        Some(to) => {
            let bad_gradient = |error| Error::Gradient { file: to.clone(), error };
            let mut file = GradientFile::new::<T>(to, &args.file, &input.layout.shape)
                .map_err(bad_gradient)?;
            let scores = run(Some(file.elements()))?;
            file.finish::<T>().map_err(bad_gradient)?;
            scores
        }
    };
    if let Some(warning) = scores.nan.warning("loss", |row| input.bad_logits(row)) {
        complain(&format!("{}: {warning}", args.file.display()));
    }
    print(&scores, &input, args).map_err(Error::Output)
}

fn print<T: Logit>(scores: &Scores<T::Real>, input: &Input<'_, T>, args: &Args) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    report::print(&mut out, scores, input, args)?;
    out.flush()
}
