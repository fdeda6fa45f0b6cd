//! Output for people, help, and pipes.

use crate::common::{Files, losses, results, score, text, xent};
use serde_json::Value;
use std::io::{Read, Write};
use std::process::Stdio;

const LOGITS: [f32; 9] = [1.0, 2.0, 3.0, 0.5, -1.0, 2.0, 0.0, 0.0, 0.0];

#[test]
fn the_summary() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, -100]);
    let output = score(&file, ["--threads", "2", "--backend", "scalar"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stderr), "", "no progress is shown where there is no terminal");
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(
        lines[..6],
        [
            "loss            1.824459 +/- 1.416853 (mean)",
            "perplexity      6.199438 +/- 8.783690",
            "bits per token  2.632137",
            "accuracy        50.00 % (1 of 2)",
            "rows            2 kept, 1 ignored",
            "backend         scalar, 2 threads",
        ]
    );
    assert_eq!(lines.len(), 7);
    assert!(lines[6].starts_with("time            ") && lines[6].ends_with(" GB/s"), "{lines:?}");

    let sum = score(&file, ["--reduction=sum"]);
    assert_eq!(text(&sum.stdout).lines().next(), Some("loss            3.648917 (sum)"));
}

#[test]
fn one_line_per_token() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, -100]);
    let [a, b] = losses(&LOGITS[..6], 3, [2, 1]);
    let per_token = score(&file, ["--per-token", "--threads", "1"]);
    let lines: Vec<&str> = text(&per_token.stdout).lines().collect();
    assert_eq!(
        lines[..5],
        [
            "     row   target           loss        logprob            lse   argmax correct",
            &format!("       0        2 {a:>14?} {:>14?}       3.407606        2 yes", -a),
            &format!("       1        1 {b:>14?} {:>14?}      2.2413113        2 no", -b),
            "       2     -100              -              -              -        - ignored",
            "",
        ]
    );
    assert!(lines[5].starts_with("loss "));
    assert!(lines[10].ends_with(" 1 thread"), "{}", lines[10]);

    // No reduction, no loss of all rows.
    let none = score(&file, ["--reduction", "none"]);
    let none: Vec<&str> = text(&none.stdout).lines().collect();
    assert_eq!(none[..5], lines[..5]);
    assert!(none[5].starts_with("perplexity "));
}

#[test]
fn rows_are_printed_if_asked_for() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, -100]);
    let report = |args: &[&str]| -> Value {
        let output = score(&file, args);
        assert!(output.status.success(), "{output:?}");
        results(serde_json::from_slice(&output.stdout).unwrap())
    };
    for more in [&[][..], &["--z-loss=0.1", "--label-smoothing=0.1"]] {
        let with = |args: &[&'static str]| report(&[args, more].concat());
        let short = with(&["--json"]);
        assert!(short.get("rows").is_none(), "{short}");
        let mut long = with(&["--json", "--per-token"]);
        assert_eq!(long["rows"].as_array().unwrap().len(), 3);
        long.as_object_mut().unwrap().remove("rows");
        assert_eq!(short, long);
    }
    // There would be little else.
    let none = report(&["--json", "--reduction=none"]);
    assert_eq!(none["rows"].as_array().unwrap().len(), 3);
}

#[test]
fn losses_of_confident_tokens_do_not_vanish() {
    let files = Files::new();
    let file = files.dump(&[60.0, 0.0], 2, &[0]);
    let output = score(&file, ["--per-token"]);
    let stdout = text(&output.stdout);
    let [loss] = losses(&[60.0, 0.0], 2, [0]);
    assert!(stdout.contains(&format!(" {loss:>14?} {:>14?} ", -loss)), "{stdout}");
    assert!(stdout.contains("loss            8.756511e-27 (mean)"), "{stdout}");
}

#[test]
fn help_and_version() {
    let output = xent().args(["score", "--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for part in [
        "--ignore-index",
        "[batch, time, vocab]",
        "--vocab <N>",
        "--shift [<K>]",
        "row i predicts token i + K",
        "0 where --vocab leaves padding",
        "mean-over:N",
        "XENT_BACKEND",
        "Options of the loss:",
        "loss = (1 - E) w[t] (-ln p[t]) + E / vocab * sum_c w[c] (-ln p[c])",
        "F * lse^2",
        "C * tanh(x / C)",
        "--grad <OUT.safetensors>",
        "Examples:",
        "Exit status:",
    ] {
        assert!(help.contains(part), "{part} is missing from\n{help}");
    }
    let output = xent().arg("--version").output().unwrap();
    assert_eq!(text(&output.stdout), format!("xent {}\n", env!("CARGO_PKG_VERSION")));
    let output = xent().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("Usage: xent <COMMAND>"));
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let files = Files::new();
    let rows = 50_000;
    let file = files.dump(&vec![0.0; rows], 1, &vec![0; rows]);
    for flags in [&["--json", "--per-token"][..], &["--per-token"]] {
        let mut child = xent()
            .arg("score")
            .arg(&file)
            .args(flags)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // More would fit into no pipe, so the tool is still writing when its reader goes.
        child.stdout.take().unwrap().read_exact(&mut [0; 10]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(text(&output.stderr), "", "{flags:?}");
        assert_eq!(output.status.code(), Some(0), "{flags:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error() {
    let files = Files::new();
    let file = files.dump(&LOGITS, 3, &[2, 1, 0]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    assert!((&full).write_all(b"x").is_err());
    let output = xent().arg("score").arg(&file).stdout(full).output().unwrap();
    let message = crate::common::failure(&output, 1);
    assert!(message.starts_with("standard output: No space left on device"), "{message}");
}
