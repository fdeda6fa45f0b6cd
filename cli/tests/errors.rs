//! Bad files and bad command lines: exit codes 1 and 2, one clear line, never a panic.

use crate::common::{Dtype, Files, Tensor, bytes, failure, score, xent};
use std::path::Path;
use xent::Backend;

const INTEGERS: &str = "I64, I32, I16, I8, U64, U32, U16 or U8";

fn bad_file(file: &Path, args: &[&str]) -> String {
    let message = failure(&score(file, args), 1);
    let name = file.display().to_string();
    message.strip_prefix(&name).unwrap_or_else(|| panic!("{message}")).to_owned()
}

fn bad_usage(args: &[&str]) -> String {
    let files = Files::new();
    let file = files.dump(&[0.0; 4], 2, &[0, 1]);
    failure(&score(&file, args), 2)
}

fn zeros<'a>(name: &'a str, dtype: Dtype, shape: &[usize]) -> Tensor<'a> {
    let data = vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8];
    (name, dtype, shape.to_vec(), data)
}

#[test]
fn targets_out_of_range() {
    let files = Files::new();
    let file = files.dump(&[0.0; 6], 3, &[0, 3]);
    assert_eq!(
        bad_file(&file, &[]),
        ": tensor `targets`: row 1: target 3 is out of range for a vocabulary of 3; \
         the ignore index is -100; `--ignore-index=-100,3` leaves out such rows too"
    );
    let file = files.dump(&[0.0; 6], 3, &[i64::MIN, 3]);
    let message = bad_file(&file, &["--ignore-index", "3", "--json"]);
    assert!(message.contains("row 0: target -9223372036854775808 is out of range"), "{message}");
    assert!(
        message.ends_with(
            "the ignore index is 3; `--ignore-index=3,-9223372036854775808` leaves out such rows too"
        ),
        "{message}"
    );
    assert!(score(&file, ["--ignore-index=3,-9223372036854775808"]).status.success());
    let file = files.dump(&[], 0, &[0]);
    let message = bad_file(&file, &[]);
    assert!(message.contains("target 0 is out of range for a vocabulary of 0"), "{message}");

    // Padding has no classes.
    let file = files.dump(&[0.0; 6], 3, &[1, 2]);
    let message = bad_file(&file, &["--vocab", "2"]);
    assert!(
        message.contains("row 1: target 2 is out of range for a vocabulary of 2;"),
        "{message}"
    );
    assert!(score(&file, ["--vocab", "2", "--ignore-index", "2"]).status.success());

    let sequences = [
        ("logits", Dtype::F16, vec![2, 3, 4], vec![0; 48]),
        ("targets", Dtype::I32, vec![2, 3], bytes(&[0i32, 1, 2, 3, 0, 4])),
    ];
    let file = files.tensors("sequences", &sequences);
    assert_eq!(
        bad_file(&file, &[]),
        ": tensor `targets` at [1, 2]: row 5: target 4 is out of range for a vocabulary of 4; \
         the ignore index is -100; `--ignore-index=-100,4` leaves out such rows too"
    );
    let message = bad_file(&file, &["--vocab", "3"]);
    assert!(message.starts_with(": tensor `targets` at [1, 0]: row 3: target 3 is"), "{message}");
    let message = bad_file(&file, &["--shift"]);
    assert!(message.starts_with(": tensor `targets` at [1, 2]: row 4: target 4 is"), "{message}");
    // What begins a sequence is nobody's target.
    let message = bad_file(&file, &["--shift", "--vocab", "3"]);
    assert!(message.starts_with(": tensor `targets` at [1, 2]: row 4: target 4 is"), "{message}");
    let file = files.dump(&[0.0; 6], 2, &[2, 1, 2]);
    let message = bad_file(&file, &["--shift", "2", "--json"]);
    assert!(message.starts_with(": tensor `targets` at [2]: row 0: target 2 is"), "{message}");
}

#[test]
fn shifts_of_whole_sequences() {
    let files = Files::new();
    for (shape, by, expected) in [
        (&[5, 3][..], 5, "6 or more rows for --shift 5"),
        (&[5, 3], usize::MAX, &format!("{0} or more rows for --shift {0}", usize::MAX)),
        (&[1, 3], 1, "2 or more rows for --shift 1"),
        (&[5, 2, 3], 2, "sequences of 3 or more rows for --shift 2"),
        (&[2, 1, 3], 1, "sequences of 2 or more rows for --shift 1"),
        (&[1, 5, 3], 6, "sequences of 7 or more rows for --shift 6"),
    ] {
        let targets = zeros("targets", Dtype::U32, &shape[..shape.len() - 1]);
        let file = files.tensors("short", &[zeros("x", Dtype::F64, shape), targets]);
        let args = ["--logits", "x", "--shift", &by.to_string()];
        let message = bad_file(&file, &args);
        assert_eq!(message, format!(": tensor `x` is F64 {shape:?}, expected {expected}"));
        let sequence = shape[shape.len() - 2] - 1;
        let fits = ["--logits", "x", "--shift", &sequence.to_string()];
        assert!(score(&file, fits).status.success(), "{shape:?}");
    }
}

#[test]
fn missing_tensors() {
    let files = Files::new();
    let x = || ("x", Dtype::F32, vec![1, 2], bytes(&[0f32; 2]));
    let y = || ("y", Dtype::U32, vec![1], bytes(&[0u32]));
    let both = files.tensors("both", &[x(), y()]);
    assert_eq!(
        bad_file(&both, &[]),
        ": no tensor `logits` for the logits; the file has `x` F32 [1, 2], `y` U32 [1]; \
         try `--logits x`"
    );
    assert_eq!(
        bad_file(&both, &["--logits", "x"]),
        ": no tensor `targets` for the targets; the file has `x` F32 [1, 2], `y` U32 [1]; \
         try `--targets y`"
    );
    let names: Vec<String> = (0..20).map(|i| format!("x{i:02}")).collect();
    let many: Vec<_> =
        names.iter().map(|name| (name.as_str(), Dtype::F32, vec![0, 2], vec![])).collect();
    let message = bad_file(&files.tensors("many", &many), &[]);
    assert!(message.contains("the file has `x00` F32 [0, 2], `x01` F32"), "{message}");
    assert!(
        message.ends_with(", `x15` F32 [0, 2] and 4 more; name the right one with `--logits`"),
        "{message}"
    );
    let message = bad_file(&files.tensors("none", &[]), &[]);
    assert_eq!(message, ": no tensor `logits` for the logits; the file has no tensors");
}

#[test]
fn wrong_types_and_shapes() {
    let files = Files::new();
    let file = |logits: (Dtype, Vec<usize>), targets: (Dtype, Vec<usize>)| {
        let logits = zeros("logits", logits.0, &logits.1);
        files.tensors("wrong", &[logits, zeros("targets", targets.0, &targets.1)])
    };
    let ids = || (Dtype::I64, vec![2]);
    for (dtype, shape, found) in [
        (Dtype::I8, vec![2, 3], "I8 [2, 3]"),
        (Dtype::F64, vec![1, 2, 3, 4], "F64 [1, 2, 3, 4]"),
        (Dtype::I32, vec![1, 2, 3], "I32 [1, 2, 3]"),
        (Dtype::F32, vec![6], "F32 [6]"),
        (Dtype::F32, vec![], "F32 []"),
    ] {
        let message = bad_file(&file((dtype, shape), ids()), &[]);
        let expected = "F32, F64, BF16 or F16 [rows, vocab] or [batch, time, vocab]";
        assert_eq!(message, format!(": tensor `logits` is {found}, expected {expected}"));
    }
    for (dtype, shape, found) in [
        (Dtype::BOOL, vec![2], "BOOL [2]"),
        (Dtype::F32, vec![2], "F32 [2]"),
        (Dtype::C64, vec![2], "C64 [2]"),
        (Dtype::U8, vec![4], "U8 [4]"),
        (Dtype::I64, vec![3], "I64 [3]"),
        (Dtype::I64, vec![], "I64 []"),
        (Dtype::I64, vec![1], "I64 [1]"),
        (Dtype::I64, vec![2, 2], "I64 [2, 2]"),
        (Dtype::I64, vec![2, 0], "I64 [2, 0]"),
    ] {
        let message = bad_file(&file((Dtype::F32, vec![2, 3]), (dtype, shape.clone())), &[]);
        // One token fewer, as tokens are that were cut for a shift.
        let hint = match &shape[..] {
            [1] => "; `--shift` takes one token fewer per sequence",
            _ => "",
        };
        let expected = format!("{INTEGERS} [2] to go with `logits` F32 [2, 3]{hint}");
        assert_eq!(message, format!(": tensor `targets` is {found}, expected {expected}"));
    }
    for shape in [&[6][..], &[2], &[3], &[3, 2], &[2, 3, 2], &[1, 6], &[2, 3, 4], &[]] {
        let logits = (Dtype::BF16, vec![2, 3, 4]);
        let message = bad_file(&file(logits, (Dtype::I32, shape.to_vec())), &["--vocab=4"]);
        let expected =
            format!("{INTEGERS} [2, 3] to go with `logits` BF16 [2, 3, 4] and --vocab 4");
        assert_eq!(message, format!(": tensor `targets` is I32 {shape:?}, expected {expected}"));
    }
}

#[test]
fn fewer_classes_than_the_vocabulary_has() {
    let files = Files::new();
    for (shape, vocab) in
        [(&[2, 3][..], 4), (&[2, 1, 3], 4), (&[2, 3], usize::MAX), (&[2, 0], 1), (&[0, 2, 3], 5)]
    {
        let targets = zeros("targets", Dtype::I64, &shape[..shape.len() - 1]);
        let file = files.tensors("few", &[zeros("x", Dtype::F32, shape), targets]);
        assert_eq!(
            bad_file(&file, &["--logits", "x", "--vocab", &vocab.to_string()]),
            format!(
                ": tensor `x` is F32 {shape:?}, expected {vocab} or more classes for --vocab {vocab}"
            )
        );
    }
}

#[test]
fn tensors_of_options() {
    let files = Files::new();
    let with = |dtype, shape: &[usize]| {
        let other = zeros("x", dtype, shape);
        let logits = zeros("logits", Dtype::F32, &[2, 3]);
        files.tensors("options", &[logits, zeros("targets", Dtype::I64, &[2]), other])
    };
    let out = files.path("grad");
    let grad = ["--grad", out.to_str().unwrap()];
    for (flag, what, fits, dtype, shape) in [
        ("--weight", "class weights", "F32, BF16 or F16 [3]", Dtype::F32, &[3][..]),
        ("--target-probs", "target probabilities", "F32, BF16 or F16 [2, 3]", Dtype::F32, &[2, 3]),
        ("--upstream", "upstream gradient", "F32, F64, BF16 or F16 [2] or []", Dtype::F64, &[2]),
        ("--token-weights", "token weights", "F32, F64, BF16 or F16 [2]", Dtype::BF16, &[2]),
    ] {
        assert_eq!(
            bad_file(&with(dtype, shape), &[&[flag, "y"], &grad[..]].concat()),
            format!(
                ": no tensor `y` for the {what}; the file has `logits` F32 [2, 3], `targets` I64 [2], \
                 `x` {dtype} {shape:?}; try `{flag} x`"
            )
        );
        let expected = format!("expected {fits} to go with `logits` F32 [2, 3]");
        for (dtype, shape) in [
            (Dtype::F8_E4M3, shape),
            (Dtype::I64, shape),
            (Dtype::F32, &[4][..]),
            (Dtype::F32, &[6]),
            (Dtype::F32, &[3, 2]),
            (Dtype::F32, &[1]),
            (Dtype::F32, &[0]),
            (Dtype::F32, &[1, 1]),
        ] {
            let message = bad_file(&with(dtype, shape), &[&[flag, "x"], &grad[..]].concat());
            let hint = match (flag, shape) {
                ("--token-weights", [1] | [1, 1]) => {
                    "; `--shift` takes one token fewer per sequence"
                }
                _ => "",
            };
            assert_eq!(message, format!(": tensor `x` is {dtype} {shape:?}, {expected}{hint}"));
        }
    }
    // Not all numbers of F64 are numbers of the F32 that is computed in.
    let message = bad_file(&with(Dtype::F64, &[3]), &["--weight", "x"]);
    let expected = "expected F32, BF16 or F16 [3] to go with `logits` F32 [2, 3]";
    assert_eq!(message, format!(": tensor `x` is F64 [3], {expected}"));
    let message = bad_file(&with(Dtype::F64, &[2, 3]), &["--target-probs", "x"]);
    let expected = "expected F32, BF16 or F16 [2, 3] to go with `logits` F32 [2, 3]";
    assert_eq!(message, format!(": tensor `x` is F64 [2, 3], {expected}"));
    // Nobody means the logits.
    let message = bad_file(&with(Dtype::F32, &[3]), &["--target-probs", "y"]);
    assert!(!message.contains("try"), "{message}");
    assert_eq!(files.names(), ["options"]);
}

#[test]
fn tensors_of_sequences_and_of_padded_rows() {
    let files = Files::new();
    let out = files.path("grad");
    let grad = ["--grad", out.to_str().unwrap()];
    let with = |name, shape: &[usize]| {
        let logits = zeros("logits", Dtype::F32, &[2, 3, 8]);
        let targets = zeros("targets", Dtype::I64, &[2, 3]);
        files.tensors("options", &[logits, targets, zeros(name, Dtype::F32, shape)])
    };
    for (flag, fits, good, bad) in [
        ("--weight", "F32, BF16 or F16 [5]", &[5][..], [&[8][..], &[2, 3], &[1, 5]]),
        (
            "--target-probs",
            "F32, BF16 or F16 [2, 3, 5]",
            &[2, 3, 5],
            [&[2, 3, 8], &[6, 5], &[2, 3]],
        ),
        ("--upstream", "F32, F64, BF16 or F16 [2, 3] or []", &[2, 3], [&[6], &[2], &[3, 2]]),
        ("--token-weights", "F32, F64, BF16 or F16 [2, 3]", &[2, 3], [&[6], &[], &[3, 2]]),
    ] {
        let args = |name| [&["--vocab=5", flag, name], &grad[..]].concat();
        for shape in bad {
            let expected = format!("{fits} to go with `logits` F32 [2, 3, 8] and --vocab 5");
            assert_eq!(
                bad_file(&with("x", shape), &args("x")),
                format!(": tensor `x` is F32 {shape:?}, expected {expected}")
            );
        }
        let file = with("x", good);
        assert!(bad_file(&file, &args("y")).ends_with(&format!("; try `{flag} x`")), "{flag}");
        assert!(score(&file, args("x")).status.success(), "{flag}");
        std::fs::remove_file(&out).unwrap();
    }
}

#[test]
fn options_out_of_range() {
    for (args, message) in [
        (["--label-smoothing", "1.5"], "--label-smoothing 1.5: it must be between 0 and 1"),
        (["--label-smoothing", "-0.1"], "--label-smoothing -0.1: it must be between 0 and 1"),
        (["--label-smoothing", "nan"], "--label-smoothing NaN: it must be between 0 and 1"),
        (["--z-loss", "-1"], "--z-loss -1: it must be finite and not negative"),
        (["--z-loss", "inf"], "--z-loss inf: it must be finite and not negative"),
        (["--softcap", "0"], "--softcap 0: it must be a positive number of the range of f32"),
        (
            ["--logit-scale", "-2"],
            "--logit-scale -2: it must be a positive number of the range of f32",
        ),
        (
            ["--temperature", "0"],
            "--temperature 0: it must be a positive number of the range of f32",
        ),
    ] {
        assert_eq!(bad_usage(&args), message);
    }
    let files = Files::new();
    let probs = |rows: usize| ("q", Dtype::F32, vec![rows, 2], bytes(&vec![0.5f32; rows * 2]));
    let logits = ("logits", Dtype::F32, vec![1, 2], bytes(&[0f32; 2]));
    let file = files.tensors("probs", &[logits, probs(1)]);
    let out = files.path("grad");
    let args = ["--target-probs", "q", "--ignore-index", "1", "--grad", out.to_str().unwrap()];
    let message = failure(&score(&file, args), 2);
    assert_eq!(
        message,
        "--ignore-index 1 is a class, and with --target-probs no row has a target to compare it \
         with; leave rows out with --mask"
    );
    // Nothing was written where the gradient would have gone.
    assert_eq!(files.names(), ["probs"]);
    assert!(score(&file, ["--target-probs", "q", "--ignore-index", "-1"]).status.success());
}

#[test]
fn gradients_that_cannot_be_written() {
    let files = Files::new();
    let file = files.dump(&[0.0; 4], 2, &[0, 1]);
    let before = std::fs::read(&file).unwrap();
    let refused = |to: &Path, code: i32| {
        let message = failure(&score(&file, [Path::new("--grad"), to]), code);
        let name = to.display().to_string();
        message.strip_prefix(&name).unwrap_or_else(|| panic!("{message}")).to_owned()
    };
    let is_input =
        ": is the file with the logits, which is not overwritten; give --grad another name";
    assert_eq!(refused(&file, 2), is_input);
    assert_eq!(refused(&files.path("./dump.safetensors"), 2), is_input);
    let is_directory = ": is a directory, which is not overwritten; give --grad the name of a file";
    assert_eq!(refused(&files.path("."), 1), is_directory);
    assert_eq!(refused(Path::new("/"), 1), is_directory);
    let message = refused(&files.path("absent/grad"), 1);
    assert!(message.starts_with(": cannot make a file in `"), "{message}");
    assert!(message.ends_with("absent`: entity not found; make the directory first"), "{message}");
    let message = refused(&file.join("grad"), 1);
    assert!(message.ends_with("dump.safetensors`: not a directory"), "{message}");
    #[cfg(unix)]
    {
        let link = files.path("link");
        std::os::unix::fs::symlink(&file, &link).unwrap();
        assert_eq!(refused(&link, 2), is_input);
        std::fs::remove_file(link).unwrap();
        let message = refused(Path::new("/dev/null"), 1);
        assert_eq!(
            message,
            ": is a pipe or a device, which is not overwritten; give --grad the name of a file"
        );
        let locked = files.path("locked");
        std::fs::create_dir(&locked).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o555);
        std::fs::set_permissions(&locked, mode).unwrap();
        // Whoever may do anything may write there.
        if std::fs::write(locked.join("probe"), "").is_err() {
            let message = refused(&locked.join("grad"), 1);
            assert!(message.ends_with("locked`: permission denied"), "{message}");
        } else {
            println!("skipped: these tests may write anywhere");
            std::fs::remove_file(locked.join("probe")).unwrap();
        }
        std::fs::remove_dir(locked).unwrap();
    }
    assert_eq!(std::fs::read(&file).unwrap(), before);
    assert_eq!(files.names(), ["dump.safetensors"]);

    // An error in the input leaves the file of before, and no other.
    let bad = files.dump(&[0.0; 4], 2, &[0, 2]);
    let out = files.write("grad", b"of before");
    let message = bad_file(&bad, &["--grad", out.to_str().unwrap()]);
    assert!(message.contains("row 1: target 2 is out of range"), "{message}");
    assert_eq!(std::fs::read(&out).unwrap(), b"of before");
    assert_eq!(files.names(), ["dump.safetensors", "grad"]);
}

/// How to make one.
const HOW: &str =
    "; `safetensors.numpy.save_file({\"logits\": x, \"targets\": t}, name)` writes one";

#[test]
fn files_that_cannot_be_mapped() {
    let files = Files::new();
    let message = bad_file(&files.path("absent"), &[]);
    assert!(message.starts_with(": No such file"), "{message}");
    let message = bad_file(files.path(".").as_path(), &[]);
    assert_eq!(message, format!(": is a directory, not a safetensors file{HOW}"));
    let message = bad_file(&files.write("empty", &[]), &[]);
    assert_eq!(message, format!(": is empty, not a safetensors file{HOW}"));
    #[cfg(unix)]
    {
        let message = bad_file(Path::new("/dev/null"), &[]);
        assert!(message.starts_with(": is a pipe or a device"), "{message}");
        assert!(message.ends_with(&format!(", not a safetensors file{HOW}")), "{message}");
    }
}

#[test]
fn files_of_other_formats() {
    let files = Files::new();
    let npy =
        b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";
    let pickle = b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x06logits\x94].";
    let old_pickle = b"\x80\x02}q\x00X\x06\x00\x00\x00logitsq\x01]q\x02.";
    // As `torch.save` wrote before it wrote archives: a number of its own comes first.
    let old_pt = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    for (bytes, what) in [
        (&npy[..], "a NumPy array (.npy)"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x00\x00", "a zip archive (.npz, or .pt of PyTorch)"),
        (pickle, "a pickle (.pkl, or .pt of PyTorch)"),
        (old_pickle, "a pickle (.pkl, or .pt of PyTorch)"),
        (old_pt, "a pickle (.pkl, or .pt of PyTorch)"),
        (b"{\"logits\": [[1, 2], [3, 4]]}", "JSON"),
        (b"{}", "JSON"),
        (b" [[1.0, 2.0], [3.0, 4.0]]\n", "JSON"),
        (b"GGUF\x03\x00\x00\x00\x00", "a GGUF file"),
        (b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file"),
        (lfs, "a pointer of Git LFS, without the file it stands for"),
    ] {
        let file = files.write("other", bytes);
        let expected = format!(": not a safetensors file but {what}{HOW}");
        assert_eq!(bad_file(&file, &[]), expected);
        for command in ["logprobs", "compare"] {
            let mut xent = xent();
            xent.arg(command).arg(&file);
            if command == "compare" {
                xent.arg(&file);
            }
            let message = failure(&xent.output().unwrap(), 1);
            assert!(message.ends_with(&expected), "{message}");
        }
    }
    // Text, noise, and a header whose length looks like a brace.
    for bytes in [&b"1.0 2.0 3.0\n"[..], b"\x80\x7f", b"{\0\0\0\0\0\0\0{}", &[0xff; 99]] {
        let message = bad_file(&files.write("other", bytes), &[]);
        assert!(message.starts_with(": not a safetensors file: "), "{message}");
        assert!(message.ends_with(HOW), "{message}");
    }
}

#[test]
fn hostile_files() {
    let files = Files::new();
    let good = std::fs::read(files.dump(&[0.0; 6], 3, &[0, 1])).unwrap();
    let not_valid = ": not a safetensors file";
    // Every prefix of a good file, and one byte too many.
    for len in (1..good.len()).chain([good.len() + 1]) {
        let mut bytes = good.clone();
        bytes.resize(len, 0);
        bytes.truncate(len);
        let message = bad_file(&files.write("cut", &bytes), &[]);
        assert!(message.starts_with(not_valid), "{len} bytes: {message}");
        assert!(!message.contains(" but "), "{len} bytes: {message}");
    }
    for length in [0, 1, good.len() as u64, 1 << 40, u64::MAX - 7, u64::MAX] {
        let mut bytes = good.clone();
        bytes[..8].copy_from_slice(&length.to_le_bytes());
        let message = bad_file(&files.write("header", &bytes), &[]);
        assert!(message.starts_with(not_valid), "header of {length}: {message}");
    }
    let logits = |shape: &str, offsets: &str| {
        format!(
            r#"{{"logits":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}},
            "targets":{{"dtype":"I64","shape":[2],"data_offsets":[16,32]}}}}"#
        )
    };
    let nested = "[".repeat(100_000);
    for header in [
        "",
        "{",
        "null",
        "not json",
        "\u{7f}ELF",
        &nested,
        &logits("[2,2]", "[0,32]"),
        &logits("[2,2]", "[8,24]"),
        &logits("[2,2]", "[16,0]"),
        &logits("[2,2]", "[0,18446744073709551615]"),
        &logits("[2,2]", "[0,18446744073709551616]"),
        &logits("[2,2]", "[-16,0]"),
        &logits("[2,3]", "[0,16]"),
        &logits("[4294967296,4294967296]", "[0,16]"),
        &logits("[4611686018427387904,4]", "[0,16]"),
        &logits("[9223372036854775808,2]", "[0,16]"),
        &logits("[4294967296,4294967296,0]", "[0,0]").replace("16,32", "0,16"),
        &logits("[2,2,4611686018427387904]", "[0,16]"),
        &logits("[-2,-2]", "[0,16]"),
        &logits("[2.0,2]", "[0,16]"),
        &logits("\"2\"", "[0,16]"),
        &logits("[2,2]", "[0,16]").replace("F32", "F33"),
    ] {
        let message = bad_file(&files.raw(header, &[0; 32]), &[]);
        let start: String = header.chars().take(90).collect();
        assert!(message.starts_with(not_valid), "{start}: {message}");
    }
    // The pattern of all of these is fine with numbers that are.
    assert!(score(&files.raw(&logits("[2,2]", "[0,16]"), &[0; 32]), [""; 0]).status.success());
}

#[test]
fn more_rows_than_there_is_memory_need_as_many_targets() {
    let files = Files::new();
    let header = r#"{"logits":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]},
        "targets":{"dtype":"I64","shape":[2],"data_offsets":[0,16]}}"#;
    let message = bad_file(&files.raw(header, &[0; 16]), &["--json"]);
    assert!(message.starts_with(": tensor `targets` is I64 [2], expected"), "{message}");

    // Probabilities are as many as the logits: none.
    let header = r#"{"logits":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]},
        "q":{"dtype":"F32","shape":[4611686018427387904,0],"data_offsets":[0,0]},
        "up":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    let file = files.raw(header, &[0; 4]);
    let no_classes = ": 4611686018427387904 rows with probability targets have no classes";
    let out = files.path("grad");
    let grad = ["--grad", out.to_str().unwrap(), "--upstream", "up"];
    for args in [&["--json"][..], &["--per-token"], &[], &grad] {
        let message = bad_file(&file, &[&["--target-probs", "q"], args].concat());
        assert_eq!(message, no_classes, "{args:?}");
    }
    assert_eq!(files.names(), ["raw.safetensors"]);
}

#[test]
fn more_classes_than_there_is_memory_have_no_rows() {
    let files = Files::new();
    let out = files.path("grad");
    let grad = ["--grad", out.to_str().unwrap()];
    for (logits, targets) in [
        ("[0,18446744073709551615]", "[0]"),
        ("[0,4294967296,4294967296]", "[0,4294967296]"),
        ("[4294967296,0,4294967296]", "[4294967296,0]"),
    ] {
        let header = format!(
            r#"{{"logits":{{"dtype":"F64","shape":{logits},"data_offsets":[0,0]}},
            "targets":{{"dtype":"I64","shape":{targets},"data_offsets":[0,0]}}}}"#
        );
        let file = files.raw(&header, &[]);
        for args in [&["--json"][..], &["--per-token", "--vocab", "4294967296"], &grad] {
            let output = score(&file, args);
            assert!(output.status.success(), "{logits} {args:?}: {output:?}");
        }
    }
}

#[test]
fn names_cannot_garble_the_terminal() {
    let files = Files::new();
    let file = files.tensors("x", &[("a\u{1b}[2J\nxent: b", Dtype::F32, vec![0, 2], vec![])]);
    let message = bad_file(&file, &[]);
    assert!(message.contains(r"`a\u{1b}[2J\nxent: b` F32 [0, 2]"), "{message}");
}

#[test]
fn command_lines() {
    let shown = |args: &[&str], part: &str| {
        let message = bad_usage(args);
        assert!(message.contains(part), "{args:?}: {message}");
        assert!(message.ends_with("see `xent score --help`"), "{args:?}: {message}");
    };
    shown(&["--frobnicate"], "unexpected argument '--frobnicate' found");
    shown(&["--per-tokens"], "a similar argument exists: '--per-token'");
    shown(&["second"], "unexpected argument 'second' found");
    shown(&["--reduction", "batchmean"], "expected none, sum, mean or mean-over:N");
    shown(&["--reduction", "mean-over:0"], "a finite number above 0");
    shown(&["--reduction", "mean-over:nan"], "a finite number above 0");
    shown(&["--threads", "0"], "0 is not in 1..=1024");
    shown(&["--threads", "1025"], "1025 is not in 1..=1024");
    shown(&["--threads", "two"], "invalid value 'two' for '--threads <N>'");
    shown(&["--ignore-index", "1.5"], "invalid value '1.5' for '--ignore-index <I>'");
    shown(&["--ignore-index", "9223372036854775808"], "number too large");
    shown(&["--vocab", "0"], "invalid value '0' for '--vocab <N>': a row has at least 1 class");
    shown(&["--vocab", "-1"], "invalid value '-1' for '--vocab <N>'");
    shown(&["--vocab", "2.0"], "invalid value '2.0' for '--vocab <N>'");
    shown(&["--vocab", "18446744073709551616"], "number too large");
    shown(&["--shift", "-1"], "invalid value '-1' for '--shift [<K>]'");
    shown(&["--shift", "1.5"], "invalid digit found in string");
    shown(&["--shift", "18446744073709551616"], "number too large");
    shown(
        &["--shift", "--target-probs", "q"],
        "'--shift [<K>]' cannot be used with '--target-probs <NAME>'",
    );
    shown(&["--label-smoothing", "much"], "invalid value 'much' for '--label-smoothing <E>'");
    shown(&["--z-loss", ""], "invalid value '' for '--z-loss <F>'");
    shown(&["--upstream", "up"], "required arguments were not provided: --grad <OUT.safetensors>");
    shown(
        &["--targets", "a", "--target-probs", "b"],
        "'--targets <NAME>' cannot be used with '--target-probs <NAME>'",
    );
    let names: Vec<&str> = Backend::available().iter().map(|backend| backend.name()).collect();
    let available = format!("unknown backend `neon2`; available: {}", names.join(", "));
    shown(&["--backend", "neon2"], &available);

    let message = failure(&xent().args(["score", "--shift", "dump.st"]).output().unwrap(), 2);
    assert!(message.contains("invalid value 'dump.st' for '--shift [<K>]'"), "{message}");
    assert!(message.contains("before a file name write --shift=1"), "{message}");
    let message = failure(&xent().arg("score").output().unwrap(), 2);
    assert!(message.contains("arguments were not provided: <FILE.safetensors>"), "{message}");
    let message = failure(&xent().arg("scores").output().unwrap(), 2);
    assert!(message.contains("unrecognized subcommand 'scores'"), "{message}");
}

#[test]
fn backends_that_this_machine_lacks() {
    let mut ran = 0;
    for &backend in Backend::ALL {
        if backend.is_available() {
            println!("skipped: {backend} is available here");
            continue;
        }
        let message = bad_usage(&["--backend", backend.name()]);
        let part = format!("backend `{backend}` is not available here; available: ");
        assert!(message.contains(&part), "{message}");
        ran += 1;
    }
    assert_eq!(ran, Backend::ALL.len() - Backend::available().len());
}

#[test]
fn a_bad_backend_in_the_environment_is_bad_usage() {
    let files = Files::new();
    let file = files.dump(&[0.0; 4], 2, &[0, 1]);
    let output = xent().env("XENT_BACKEND", "mmx").arg("score").arg(&file).output().unwrap();
    let message = failure(&output, 2);
    assert!(
        message
            .starts_with("environment variable XENT_BACKEND: unknown backend `mmx`; available: "),
        "{message}"
    );
    assert!(message.ends_with("; unset it, or say --backend"), "{message}");
    // The command line wins, so that a bad variable does not matter.
    let mut command = xent();
    command.env("XENT_BACKEND", "mmx").arg("score").arg(&file).args(["--backend", "scalar"]);
    assert!(command.output().unwrap().status.success());
}
