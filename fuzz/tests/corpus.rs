//! The committed inputs of the fuzz targets, replayed: no fuzzer and no instrumented build is needed.

use std::fs;
use std::path::{Path, PathBuf};

/// Gives every input of a target to it. An input that fails is the last one that was printed.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= 32, "{} has {} inputs", folder.display(), inputs.len());
    for input in &inputs {
        println!("{}", input.display());
        run(&fs::read(input).unwrap());
    }
}

#[test]
fn loss() {
    replay("loss", xent_fuzz::loss::run);
}

#[test]
fn softmax() {
    replay("softmax", xent_fuzz::softmax::run);
}

#[test]
fn logprobs() {
    replay("logprobs", xent_fuzz::logprobs::run);
}

#[test]
fn compare() {
    replay("compare", xent_fuzz::compare::run);
}

#[test]
fn misuse() {
    replay("misuse", xent_fuzz::misuse::run);
}
