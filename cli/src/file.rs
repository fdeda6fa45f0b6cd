//! A file that may be a safetensors file.

use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// What is wrong with the file, apart from its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("is {0}, not a safetensors file; {HOW}")]
    NotAFile(&'static str),
    #[error("not a safetensors file but {0}; {HOW}")]
    Other(&'static str),
    #[error("not a safetensors file: {0}; {HOW}")]
    Format(SafeTensorError),
    #[error("not a safetensors file, or a damaged one: {0}; {HOW}")]
    Damaged(SafeTensorError),
}

const HOW: &str = "`safetensors.numpy.save_file({\"logits\": x, \"targets\": t}, name)` writes one";

/// Maps the file into memory.
pub(crate) fn map(path: &Path) -> Result<Mmap, Error> {
    // Asked before opening, as opening a pipe would wait for someone to write to it.
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(Error::NotAFile("a directory"));
    }
    if !metadata.is_file() {
        return Err(Error::NotAFile("a pipe or a device, which cannot be mapped into memory"));
    }
    if metadata.len() == 0 {
        return Err(Error::NotAFile("empty"));
    }
    let file = File::open(path)?;
    // SAFETY: the map is private to this process and only ever read. That no other process changes
    // or truncates the file meanwhile cannot be enforced; the help text asks for it, as every
    // program that maps files must.
    #[allow(unsafe_code)]
    Ok(unsafe { Mmap::map(&file) }?)
}

/// The tensors that are in these bytes.
pub(crate) fn tensors(bytes: &[u8]) -> Result<SafeTensors<'_>, Error> {
    SafeTensors::deserialize(bytes).map_err(|error| match (other_format(bytes), error) {
        (Some(format), _) => Error::Other(format),
        (None, error @ SafeTensorError::MetadataIncompleteBuffer) => Error::Damaged(error),
        (None, error) => Error::Format(error),
    })
}

/// What files begin with that are no safetensors files, but hold tensors or something else that is
/// taken for one.
fn other_format(bytes: &[u8]) -> Option<&'static str> {
    const FORMATS: [(&[u8], &str); 9] = [
        (b"\x93NUMPY", "a NumPy array (.npy)"),
        (b"PK\x03\x04", "a zip archive (.npz, or .pt of PyTorch)"),
        (b"GGUF", "a GGUF file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x1f\x8b", "a gzip archive"),
        (b"\x28\xb5\x2f\xfd", "a zstd archive"),
        (b"ARROW1", "an Arrow file"),
        (b"PAR1", "a Parquet file"),
        (b"version https://git-lfs", "a pointer of Git LFS, without the file it stands for"),
    ];
    let starts_with = |(magic, _): &&(&[u8], &str)| bytes.starts_with(magic);
    if let Some((_, format)) = FORMATS.iter().find(starts_with) {
        return Some(format);
    }
    match bytes {
        // The protocol of a pickle, and its first instruction: a frame, a mark, an empty container,
        // a number, a name.
        [0x80, 2..=5, 0x95 | b'(' | b'}' | b']' | b')' | b'c' | b'X' | 0x8a | 0x8c, ..] => {
            Some("a pickle (.pkl, or .pt of PyTorch)")
        }
        // The length of a header begins with any byte, but ends in zeros.
        _ if bytes.iter().take(8).any(|&byte| byte == 0) => None,
        _ => match bytes.trim_ascii_start() {
            [b'{' | b'[', ..] => Some("JSON"),
            _ => None,
        },
    }
}
