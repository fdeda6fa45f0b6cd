//! Files to score, and the tool run on them.
#![allow(dead_code, reason = "not every test file uses everything")]

pub(crate) use safetensors::Dtype;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// The tool, away from whatever the environment of the tests says but for `XENT_TEST_RUNNER`: the
/// emulator to run it with, since an emulated process cannot start another like itself.
pub(crate) fn xent() -> Command {
    let program = env!("CARGO_BIN_EXE_xent");
    let runner = std::env::var_os("XENT_TEST_RUNNER").filter(|runner| !runner.is_empty());
    let mut command = Command::new(runner.as_deref().unwrap_or(OsStr::new(program)));
    if runner.is_some() {
        command.arg(program);
    }
    command.env_remove("XENT_BACKEND").env_remove("RAYON_NUM_THREADS");
    command
}

pub(crate) fn score<S: AsRef<OsStr>>(file: &Path, args: impl IntoIterator<Item = S>) -> Output {
    xent().arg("score").arg(file).args(args).output().unwrap()
}

/// Runs with `--json` and all rows, which must succeed, and parses the one line that must come out.
pub(crate) fn json(file: &Path, args: &[&str]) -> Value {
    let (report, stderr) = json_and_stderr(file, args);
    assert_eq!(stderr, "");
    report
}

/// The same where something may be said on standard error.
pub(crate) fn json_and_stderr(file: &Path, args: &[&str]) -> (Value, String) {
    let output = score(file, args.iter().chain(&["--json", "--per-token"]));
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let report = serde_json::from_str(stdout).unwrap();
    nulls_are_named(&report, stdout);
    (report, stderr.to_owned())
}

/// That every null in a report has a sibling that says what it stands for, and nothing else has
/// one.
#[track_caller]
pub(crate) fn nulls_are_named(report: &Value, whole: &str) {
    match report {
        Value::Object(map) => {
            for (key, value) in map {
                let is = map.get(&format!("{key}_is")).map(|is| is.as_str().unwrap());
                match value {
                    Value::Null => {
                        let is = is.unwrap_or_else(|| panic!("{key} in {whole}"));
                        assert!(["nan", "inf", "-inf", "none"].contains(&is), "{key} is {is}");
                    }
                    _ => assert!([None, Some("finite")].contains(&is), "{key} in {whole}"),
                }
                nulls_are_named(value, whole);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| {
            assert!(!value.is_null(), "{whole}");
            nulls_are_named(value, whole);
        }),
        _ => {}
    }
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Asserts the exit code and returns the message, which must be the one line of `xent: message`.
pub(crate) fn failure(output: &Output, code: i32) -> String {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert_eq!(text(&output.stdout), "");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    stderr.strip_prefix("xent: ").unwrap().trim_end().to_owned()
}

pub(crate) fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// A tensor to write: name, type, shape, little-endian bytes.
pub(crate) type Tensor<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Files(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The names of all files there are, hidden ones included.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn tensors(&self, name: &str, tensors: &[Tensor<'_>]) -> PathBuf {
        let views = tensors.iter().map(|(name, dtype, shape, data)| {
            (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
        });
        self.write(name, &safetensors::serialize(views, None).unwrap())
    }

    /// The usual two tensors by their usual names.
    pub(crate) fn dump(&self, logits: &[f32], vocab: usize, targets: &[i64]) -> PathBuf {
        let shape = vec![targets.len(), vocab];
        let logits = ("logits", Dtype::F32, shape, bytes(logits));
        let targets = ("targets", Dtype::I64, vec![targets.len()], bytes(targets));
        self.tensors("dump.safetensors", &[logits, targets])
    }

    /// A file with this header, whatever it says, and these bytes after it.
    pub(crate) fn raw(&self, header: &str, data: &[u8]) -> PathBuf {
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        self.write("raw.safetensors", &file)
    }
}

/// The one tensor of a file.
#[derive(Debug, PartialEq)]
pub(crate) struct Grad {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

pub(crate) fn read_grad(path: &Path) -> Grad {
    let file = std::fs::read(path).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.names(), ["grad"]);
    let view = tensors.tensor("grad").unwrap();
    let header = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
    assert_eq!((8 + header) % 64, 0, "elements are aligned");
    let data = view.data().to_vec();
    Grad { dtype: view.dtype(), shape: view.shape().to_vec(), data }
}

/// All that does not depend on the clock.
pub(crate) fn results(mut report: Value) -> Value {
    for key in ["seconds", "gb_per_s"] {
        assert!(report.as_object_mut().unwrap().remove(key).is_some(), "{key}");
    }
    report
}

/// Numbers between -8 and 8 that look random (a linear congruential generator).
pub(crate) fn noise(len: usize, mut seed: u64) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u32 << 20) as f32 - 8.0
    };
    (0..len).map(|_| next()).collect()
}

/// What the library says.
pub(crate) fn losses<const N: usize>(logits: &[f32], vocab: usize, targets: [i64; N]) -> [f32; N] {
    let mut losses = [0.0; N];
    let logits = xent::Logits::new(logits, N, vocab).unwrap();
    xent::CrossEntropy::new().forward_into(logits, &targets, &mut losses).unwrap();
    losses
}
