//! The commands of `xent` in the pages: each is one that the program takes, and what a page shows of its
//! output is its output.

use crate::common;
use crate::pages::{all_blocks, root};
use std::path::Path;
use std::process::Output;

/// The status for a command line that the program does not take: `cli/README.md`.
const USAGE: i32 = 2;

/// The commands of `xent` in a line of a shell: without what it is piped into, and without a comment.
fn own(line: &str) -> Option<Vec<&str>> {
    let line = line.split([';', '|', '#']).next()?;
    let mut words = line.split_whitespace();
    (words.next() == Some("xent")).then(|| words.collect())
}

fn run(words: &[&str], folder: &Path) -> Output {
    common::xent().args(words).current_dir(folder).output().unwrap()
}

/// In an empty folder: that a file is missing is found after the command line was understood.
#[test]
fn commands_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(env!("CARGO_MANIFEST_DIR"), 1);
    let mut checked = 0;
    for block in all_blocks(&root, &["sh"]) {
        for words in block.text.lines().filter_map(own) {
            let output = run(&words, folder.path());
            let stderr = String::from_utf8_lossy(&output.stderr);
            let place = format!("{}:{}: {words:?}", block.page, block.line);
            assert_ne!(output.status.code(), Some(USAGE), "{place}: {stderr}");
            assert!(stderr.contains("No such file") || !cfg!(unix), "{place}: {stderr}");
            checked += 1;
        }
    }
    assert!(checked >= 5, "{checked}");
}

/// The lines up to one of dots are the first ones of the output, those after it the last ones.
#[test]
fn outputs_are_as_shown() {
    let root = root(env!("CARGO_MANIFEST_DIR"), 1);
    let mut checked = 0;
    for block in all_blocks(&root, &["text"]) {
        let Some((command, shown)) = block.text.split_once('\n') else { continue };
        let Some(words) = command.strip_prefix("$ ").and_then(own) else { continue };
        let place = format!("{}:{}: {command}", block.page, block.line);
        let output = run(&words, &root);
        assert!(output.status.success(), "{place}: {output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = stdout.lines().collect();
        let shown: Vec<&str> = shown.lines().collect();
        let dots = shown.iter().position(|line| line.trim() == "...").unwrap_or(shown.len());
        let last = shown.get(dots + 1..).unwrap_or_default();
        assert!(lines.starts_with(&shown[..dots]), "{place}: it prints\n{stdout}");
        assert!(lines.ends_with(last), "{place}: it prints\n{stdout}");
        checked += 1;
    }
    assert!(checked >= 2, "{checked}");
}
