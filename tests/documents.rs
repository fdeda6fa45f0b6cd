//! Every code block of every page is compiled, run or parsed, or is named here with the reason why it is
//! not. Rust is compiled by the tests of the documentation, C and C++ by `bindings/c/tests/blocks.rs`, and
//! commands of `xent` are run by `cli/tests/documents.rs`.

use common::pages::{Block, all_blocks, pages, root, text};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Blocks that nothing checks: page, what is behind the fence, and why.
const UNCHECKED: &[(&str, &str, &str)] = &[
    ("docs/c.md", "cmake", "a part of the build of an engine, which is not here"),
    ("docs/candle.md", "text", "the output of a run that needs a model of 98 MB: ci/perplexity.sh"),
    ("docs/layouts.md", "text", "drawings of memory"),
    ("kernels.md", "text", "formulas and drawings"),
];

/// Attributes that keep a Rust block from being run.
const NOT_RUN: &[(&str, &str, &str)] =
    &[("bindings/mpi/README.md", "no_run", "it needs mpirun; its program is compiled")];

/// The files that make pages part of a documentation whose examples are tests.
const DOCUMENTATION: &[&str] =
    &["tests/common/lib.rs", "bindings/candle/src/lib.rs", "bindings/mpi/src/lib.rs"];

fn repository() -> PathBuf {
    root(env!("CARGO_MANIFEST_DIR"), 1)
}

fn place(block: &Block) -> String {
    format!("{}:{}", block.page, block.line)
}

/// The pages that [`DOCUMENTATION`] includes.
fn documented(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for file in DOCUMENTATION {
        let file = root.join(file);
        let source = fs::read_to_string(&file).unwrap();
        for rest in source.split("doc = include_str!(\"").skip(1) {
            let (name, _) = rest.split_once('"').unwrap();
            found.insert(file.parent().unwrap().join(name).canonicalize().unwrap());
        }
    }
    found
}

#[test]
fn rust_blocks_are_tests_of_the_documentation() {
    let root = repository();
    let documented = documented(&root);
    let mut unused: BTreeSet<_> = NOT_RUN.iter().map(|&(page, word, _)| (page, word)).collect();
    // Without a language a block is Rust to rustdoc, and to nobody else.
    let blocks = all_blocks(&root, &["rust", ""]);
    for block in &blocks {
        assert_eq!(block.language, "rust", "{}: a block without a language", place(block));
        assert!(
            documented.contains(&root.join(&block.page).canonicalize().unwrap()),
            "{}: none of {DOCUMENTATION:?} includes this page, so its Rust is not compiled",
            place(block)
        );
        for word in &block.attributes {
            let known = NOT_RUN.iter().find(|(page, w, _)| block.page == *page && word == w);
            let &(page, word, _) =
                known.unwrap_or_else(|| panic!("{}: `{word}` is not in NOT_RUN", place(block)));
            unused.remove(&(page, word));
        }
    }
    assert!(blocks.len() >= 10, "{}", blocks.len());
    assert!(unused.is_empty(), "in NOT_RUN, but not in the page: {unused:?}");
}

#[test]
fn no_block_is_left_out_without_a_reason() {
    let root = repository();
    let mut unused: BTreeSet<_> = UNCHECKED.iter().map(|&(page, word, _)| (page, word)).collect();
    let all = pages(&root).into_iter().flat_map(|page| common::pages::blocks(&root, &page));
    for block in all {
        match &block.language[..] {
            "rust" | "c" | "cpp" | "sh" | "toml" | "python" => {}
            // Rust too, as the test above says.
            "" => {}
            // What `xent` prints is compared by the tests of the command.
            "text" if block.text.starts_with("$ xent ") => {}
            language => {
                let known = UNCHECKED.iter().find(|(p, l, _)| block.page == *p && language == *l);
                let &(page, language, _) = known.unwrap_or_else(|| {
                    panic!("{}: `{language}` is not in UNCHECKED", place(&block))
                });
                unused.remove(&(page, language));
            }
        }
    }
    assert!(unused.is_empty(), "in UNCHECKED, but not in the page: {unused:?}");
}

#[test]
fn toml_blocks_are_manifests() {
    let root = repository();
    let blocks = all_blocks(&root, &["toml"]);
    for block in &blocks {
        let table: toml::Table =
            block.text.parse().unwrap_or_else(|e| panic!("{}: {e}", place(block)));
        for (name, dependency) in table["dependencies"].as_table().unwrap() {
            let Some(path) = dependency.get("path") else { continue };
            // As seen from a package beside a clone that is called `xent`.
            let path =
                path.as_str().unwrap().strip_prefix("../xent").unwrap_or_else(|| {
                    panic!("{}: {path} is not the path of a clone", place(block))
                });
            let manifest = root.join(path.trim_start_matches('/')).join("Cargo.toml");
            let manifest = fs::read_to_string(&manifest).unwrap_or_else(|e| panic!("{path}: {e}"));
            let manifest: toml::Table = manifest.parse().unwrap();
            assert_eq!(manifest["package"]["name"].as_str(), Some(&name[..]), "{}", place(block));
        }
    }
    assert!(!blocks.is_empty());
}

/// What a program says of a text; `None` where it is not installed.
fn checked_by(program: &str, arguments: &[&str], text: &str) -> Option<Result<(), String>> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Some(if output.status.success() { Ok(()) } else { Err(stderr) })
}

#[test]
fn blocks_of_python_and_of_the_shell_parse() {
    let python = ["-c", "import ast, sys; ast.parse(sys.stdin.read())"];
    for (language, program, arguments) in
        [("sh", "bash", &["-n"][..]), ("python", "python3", &python)]
    {
        let blocks = all_blocks(&repository(), &[language]);
        assert!(!blocks.is_empty());
        for block in blocks {
            match checked_by(program, arguments, &block.text) {
                Some(result) => result.unwrap_or_else(|e| panic!("{}: {e}", place(&block))),
                None => println!("skipped, as {program} is missing: {}", place(&block)),
            }
        }
    }
}

/// The commands in a text: lines of shell blocks, and what is between backquotes. Lines that end with a
/// backslash go on in the next one.
fn cargo_commands(page: &str) -> Vec<String> {
    let joined = page.replace("\\\n", " ");
    let mut found = Vec::new();
    let mut in_block = false;
    // Of the lines outside of blocks, as a span may begin on one and end on the next.
    let mut prose = String::new();
    for line in joined.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if in_block {
            found.push(line.to_owned());
        } else {
            prose.push_str(line.trim());
            prose.push(' ');
        }
    }
    found.extend(prose.split('`').skip(1).step_by(2).map(str::to_owned));
    let command = |text: String| {
        let start = text.find("cargo ")?;
        let command = text[start..].split('#').next().unwrap_or_default();
        Some(command.trim_end().to_owned())
    };
    found.into_iter().filter_map(command).collect()
}

/// What a command of cargo names is there: packages, examples, benches, tests and features.
#[test]
fn commands_of_cargo_name_what_there_is() {
    let root = repository();
    // Not with `cargo metadata`: in an emulator no other program can be started.
    let manifests: Vec<(String, toml::Table)> = members(&root)
        .into_iter()
        .map(|member| {
            let manifest = fs::read_to_string(root.join(&member).join("Cargo.toml")).unwrap();
            (member, manifest.parse().unwrap())
        })
        .collect();
    let name = |manifest: &toml::Table| manifest["package"]["name"].as_str().unwrap().to_owned();
    let defaults = [".", "benches"];
    let mut checked = 0;
    for page in pages(&root) {
        for command in cargo_commands(&text(&root, &page)) {
            let own = command.split(" -- ").next().unwrap_or_default();
            let words: Vec<&str> = own.split_whitespace().skip(1).collect();
            if !matches!(words.first(), Some(&("run" | "test" | "bench" | "build" | "doc"))) {
                continue;
            }
            checked += 1;
            let values = |option: &str| -> Vec<&str> {
                let pairs = words.iter().zip(words.iter().skip(1));
                pairs.filter(|(word, _)| **word == option).map(|(_, value)| *value).collect()
            };
            let packages = [values("-p"), values("--package")].concat();
            for package in packages.iter().copied().chain(values("--exclude")) {
                let known = manifests.iter().any(|(_, manifest)| name(manifest) == package);
                assert!(known, "{page}: `{command}`: there is no package {package}");
            }
            let selected: Vec<_> = manifests
                .iter()
                .filter(|(member, manifest)| match () {
                    () if !packages.is_empty() => packages.contains(&&name(manifest)[..]),
                    () if words.contains(&"--workspace") => true,
                    () => defaults.contains(&&member[..]),
                })
                .collect();
            for (option, folder) in
                [("--example", "examples"), ("--bench", "benches"), ("--test", "tests")]
            {
                for value in values(option) {
                    let there = selected.iter().any(|(member, manifest)| {
                        let kind = option.trim_start_matches('-');
                        let listed = manifest.get(kind).and_then(|targets| targets.as_array());
                        let is_listed = |t: &toml::Value| t["name"].as_str() == Some(value);
                        let auto = manifest["package"].get(format!("auto{folder}"));
                        let is_file = auto.and_then(toml::Value::as_bool) != Some(false)
                            && root.join(member).join(folder).join(format!("{value}.rs")).is_file();
                        is_file || listed.is_some_and(|targets| targets.iter().any(is_listed))
                    });
                    assert!(there, "{page}: `{command}`: there is no {value} in {folder}/");
                }
            }
        }
    }
    assert!(checked >= 10, "{checked}");
}

/// The folders of the members of the workspace.
fn members(root: &Path) -> Vec<String> {
    let manifest: toml::Table =
        fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let names = members.iter().map(|member| member.as_str().unwrap().to_owned());
    [".".to_owned()].into_iter().chain(names).collect()
}

/// Scripts that a block of the shell begins with are there.
#[test]
fn scripts_are_there() {
    let root = repository();
    let mut checked = 0;
    for block in all_blocks(&root, &["sh"]) {
        for line in block.text.lines() {
            let word = line.split_whitespace().find(|word| !word.contains('=')).unwrap_or_default();
            if word.ends_with(".sh") || word == ".ci/run" {
                assert!(root.join(word).is_file(), "{}: there is no {word}", place(&block));
                checked += 1;
            }
        }
    }
    assert!(checked > 0);
}
