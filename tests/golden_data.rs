//! Reads `tests/golden`: the index, and tensors from files whose checksum it holds.

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Deserialize)]
pub(crate) struct Index {
    pub(crate) format_version: u32,
    pub(crate) case_count: usize,
    pub(crate) files: BTreeMap<String, FileInfo>,
    pub(crate) cases: Vec<Case>,
}

#[derive(Deserialize)]
pub(crate) struct FileInfo {
    pub(crate) bytes: usize,
    pub(crate) sha256: String,
}

#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) op: String,
    pub(crate) dtype: String,
    pub(crate) file: String,
    pub(crate) rows: usize,
    pub(crate) classes: usize,
    pub(crate) target: String,
    #[serde(default)]
    pub(crate) options: Options,
    pub(crate) regenerate: Option<Regenerate>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
pub(crate) struct Options {
    pub(crate) reduction: String,
    pub(crate) ignore_index: i64,
    pub(crate) label_smoothing: f64,
    pub(crate) weight: bool,
}

/// What the regenerated logits of the notebook must be, per row.
#[derive(Deserialize)]
pub(crate) struct Regenerate {
    pub(crate) seed: u32,
    pub(crate) shape: [usize; 3],
    pub(crate) first8_bits: Vec<[u32; 8]>,
    pub(crate) last8_bits: Vec<[u32; 8]>,
    pub(crate) row_bits_sum: Vec<u64>,
    pub(crate) row_bits_xor: Vec<u32>,
}

fn path(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "golden", name].iter().collect()
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|e| panic!("tests/golden/{name}: {e}"))
}

impl Index {
    pub(crate) fn load() -> Self {
        let index: Index = serde_json::from_slice(&read("cases.json")).unwrap();
        assert_eq!(index.format_version, 1);
        assert_eq!(index.cases.len(), index.case_count);
        index
    }

    /// The tensors of a file, once its bytes are known to be those that PyTorch's run produced.
    pub(crate) fn open(&self, name: &str) -> Tensors {
        let (bytes, info) = (read(name), &self.files[name]);
        assert_eq!(bytes.len(), info.bytes, "{name}");
        let sha256: String =
            Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sha256, info.sha256, "{name}");
        let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        Tensors { metadata, data: bytes[8 + header..].to_vec() }
    }
}

/// A `.safetensors` file, its header parsed once.
pub(crate) struct Tensors {
    metadata: Metadata,
    data: Vec<u8>,
}

impl Tensors {
    fn elements<const N: usize>(&self, case: &Case, name: &str, dtype: Dtype) -> Vec<[u8; N]> {
        let name = format!("{}/{name}", case.name);
        let info = self.metadata.info(&name).unwrap_or_else(|| panic!("no tensor {name}"));
        assert_eq!(info.dtype, dtype, "{name}");
        let (start, end) = info.data_offsets;
        self.data[start..end].as_chunks().0.to_vec()
    }

    pub(crate) fn f32s(&self, case: &Case, name: &str) -> Vec<f32> {
        self.elements(case, name, Dtype::F32).into_iter().map(f32::from_le_bytes).collect()
    }

    pub(crate) fn f64s(&self, case: &Case, name: &str) -> Vec<f64> {
        self.elements(case, name, Dtype::F64).into_iter().map(f64::from_le_bytes).collect()
    }

    /// The bits of 16-bit numbers.
    pub(crate) fn u16s(&self, case: &Case, name: &str, dtype: Dtype) -> Vec<u16> {
        self.elements(case, name, dtype).into_iter().map(u16::from_le_bytes).collect()
    }

    pub(crate) fn i64s(&self, case: &Case, name: &str) -> Vec<i64> {
        self.elements(case, name, Dtype::I64).into_iter().map(i64::from_le_bytes).collect()
    }
}
