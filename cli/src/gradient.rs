//! A safetensors file with one tensor, which comes into being complete or not at all.

use crate::number::Logit;
use fs4::FileExt;
use memmap2::MmapMut;
use safetensors::tensor::{Metadata, TensorInfo};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// What is wrong with the file, apart from its name.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("is the file with the logits, which is not overwritten; give --grad another name")]
    IsInput,
    #[error("is {0}, which is not overwritten; give --grad the name of a file")]
    NotAFile(&'static str),
    #[error("cannot make a file in `{}`: {kind}{}", dir.display(), of_missing(*kind))]
    Create { dir: PathBuf, kind: io::ErrorKind },
    #[error("cannot write {bytes} bytes: {error}")]
    Write { bytes: usize, error: io::Error },
    #[error("cannot be replaced: {0}")]
    Replace(io::Error),
}

fn of_missing(kind: io::ErrorKind) -> &'static str {
    if kind == io::ErrorKind::NotFound { "; make the directory first" } else { "" }
}

/// A gradient that has a place on the disk, but not its name yet.
///
/// The kernels write into the mapped file: there is no copy of the gradient in memory other than the
/// cache of the operating system.
#[derive(Debug)]
pub(crate) struct GradientFile {
    map: MmapMut,
    /// Where the elements start.
    start: usize,
    // After the map, since some systems do not delete what is mapped.
    file: NamedTempFile,
    to: PathBuf,
}

/// Of the elements: what a cache line has, so that rows can be written in whole ones.
const ALIGNMENT: usize = 64;

impl GradientFile {
    /// A file for a gradient of logits of type `T` and this shape, which come from the file `input`.
    pub(crate) fn new<T: Logit>(to: &Path, input: &Path, shape: &[usize]) -> Result<Self, Error> {
        let to = destination(to, input)?;
        // At most the bytes of the logits, which were mapped: none of this overflows.
        let bytes = shape.iter().product::<usize>() * size_of::<T>();
        let header = header::<T>(shape, bytes);
        let start = header.len();
        let len = start + bytes;

        let dir = match to.parent() {
            Some(dir) if dir != Path::new("") => dir,
            _ => Path::new("."),
        };
        let create = |error: io::Error| Error::Create { dir: dir.to_owned(), kind: error.kind() };
        let mut file = temporary().tempfile_in(dir).map_err(create)?;
        let write = |error| Error::Write { bytes: len, error };
        reserve(&mut file, len as u64).map_err(write)?;
        // SAFETY: the file was just made under a name that nobody else knows, and has `len` bytes on the
        // disk. That no other process finds and truncates it cannot be enforced, as for the input.
        #[allow(unsafe_code)]
        let mut map = unsafe { MmapMut::map_mut(file.as_file()) }.map_err(write)?;
        map[..start].copy_from_slice(&header);
        Ok(GradientFile { map, start, file, to })
    }

    /// The elements, in the byte order of this machine. They are 0 until something else is written.
    pub(crate) fn elements<T: Logit>(&mut self) -> &mut [T] {
        // Maps start at a page, and the header is as long as it is for this.
        bytemuck::cast_slice_mut(&mut self.map[self.start..])
    }

    /// Gives the file its name, now that its elements were written.
    pub(crate) fn finish<T: Logit>(mut self) -> Result<(), Error> {
        if cfg!(target_endian = "big") {
            let elements = self.map[self.start..].chunks_exact_mut(size_of::<T>());
            elements.for_each(<[u8]>::reverse);
        }
        // What the disk has to say against it is only heard here.
        let bytes = self.map.len();
        let write = |error| Error::Write { bytes, error };
        self.map.flush().map_err(write)?;
        self.file.as_file().sync_all().map_err(write)?;
        drop(self.map);
        self.file.persist(&self.to).map_err(|error| Error::Replace(error.error))?;
        Ok(())
    }
}

/// Where the file goes: through a link, if that is what has the name.
fn destination(to: &Path, input: &Path) -> Result<PathBuf, Error> {
    // Whatever is wrong with a path that leads nowhere, making the file will tell.
    let Ok(metadata) = fs::metadata(to) else { return Ok(to.to_owned()) };
    if metadata.is_dir() {
        return Err(Error::NotAFile("a directory"));
    }
    if !metadata.is_file() {
        return Err(Error::NotAFile("a pipe or a device"));
    }
    let Ok(real) = to.canonicalize() else { return Ok(to.to_owned()) };
    if input.canonicalize().is_ok_and(|input| input == real) {
        return Err(Error::IsInput);
    }
    Ok(real)
}

/// Hidden while it is written, with the permissions of any new file in the end.
fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".xent-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    builder
}

/// Takes the space on the disk: a map of a file that has none is killed where the disk is full.
fn reserve(file: &mut NamedTempFile, len: u64) -> io::Result<()> {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match file.as_file().allocate(len) {
        Err(error) if matches!(error.kind(), FileTooLarge | QuotaExceeded | StorageFull) => {
            Err(error)
        }
        // Not every file system can do it. All can write zeros.
        Err(_) => {
            io::copy(&mut io::Read::take(io::repeat(0), len), file).and_then(|_| file.flush())
        }
        Ok(()) => file.as_file().set_len(len),
    }
}

/// The length of the header and the header, padded with spaces up to the elements.
fn header<T: Logit>(shape: &[usize], bytes: usize) -> Vec<u8> {
    let grad = TensorInfo { dtype: T::DTYPE, shape: shape.to_vec(), data_offsets: (0, bytes) };
    let metadata = Metadata::new(None, vec![("grad".to_owned(), grad)]);
    let metadata = metadata.expect("the shape is that of the logits, which was checked");
    let mut header = vec![0; 8];
    serde_json::to_writer(&mut header, &metadata).expect("nothing in it is not JSON");
    header.resize(header.len().next_multiple_of(ALIGNMENT), b' ');
    let len = (header.len() - 8) as u64;
    header[..8].copy_from_slice(&len.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_start_at_a_cache_line() {
        for rows in [0, 1, 12, 123_456_789] {
            for vocab in [0, 7, 50_257] {
                let header = header::<f32>(&[rows, vocab], rows * vocab * 4);
                assert_eq!(header.len() % ALIGNMENT, 0);
                let text = str::from_utf8(&header[8..]).unwrap();
                assert_eq!(u64::from_le_bytes(*header.first_chunk().unwrap()), text.len() as u64);
                assert!(text.starts_with(r#"{"grad":{"dtype":"F32","shape":["#), "{text}");
            }
        }
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("grad");
        let there = || fs::read_dir(dir.path()).unwrap().count();
        let mut file = GradientFile::new::<f64>(&to, Path::new("absent"), &[3, 5]).unwrap();
        assert_eq!(there(), 1);
        assert_eq!(file.elements::<f64>(), [0.0; 15]);
        drop(file);
        assert_eq!(there(), 0);
    }
}
