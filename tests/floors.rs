//! Imports go down: from floor to floor of `src/`, and from file to file everywhere.

use common::imports::{Modules, circle, imports, modules};
use std::path::{Path, PathBuf};

/// The floors of `src/`, lowest first. A file imports files of its own floor and of those below.
const FLOORS: [&str; 7] = ["math", "simd", "data", "kernel", "dispatch", "rows", "api"];

/// The files of `src/` that are on no floor: the crate itself, and what tests compare with.
const ABOVE: [&str; 1] = ["reference"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn of_crate() -> Modules {
    let modules = modules(&repository().join("src"));
    assert!(modules.len() > 60, "{} files", modules.len());
    modules
}

fn floor(module: &[String]) -> Option<usize> {
    FLOORS.iter().position(|floor| module.first().is_some_and(|name| name == floor))
}

/// `simd::vectors`, in words.
fn name(module: &[String]) -> String {
    if module.is_empty() { "the root of the crate".to_owned() } else { module.join("::") }
}

/// Each import that does not go down.
fn upward(modules: &Modules) -> Vec<String> {
    let mut found = Vec::new();
    for (module, imported) in imports(modules) {
        if module.is_empty() {
            continue;
        }
        for from in imported {
            let is_fine = match (floor(&module), floor(&from)) {
                (Some(to), Some(from)) => from <= to,
                // What tests compare with has arithmetic of its own.
                (None, Some(_)) => ["math", "simd"].contains(&&from[0][..]),
                (_, None) => false,
            };
            if !is_fine {
                found.push(format!("{} imports {}", name(&module), name(&from)));
            }
        }
    }
    found
}

#[test]
fn imports_go_down() {
    let found = upward(&of_crate());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_file_is_on_a_floor() {
    for module in of_crate().keys().filter(|module| !module.is_empty()) {
        let is_above = ABOVE.contains(&&module[0][..]);
        assert!(floor(module).is_some() || is_above, "{} is on no floor", name(module));
    }
}

#[test]
fn no_two_files_import_each_other() {
    for folder in ["src", "cli/src", "fuzz/src"] {
        let modules = modules(&repository().join(folder));
        assert!(modules.len() > 10 && modules.contains_key(&vec![]), "{folder}");
        assert_eq!(circle(&imports(&modules)), None, "{folder}");
    }
}

#[test]
fn imports_that_go_up_are_found() {
    let of = |files: &[(&str, &str)]| {
        let split = |path: &str| path.split_terminator("::").map(str::to_owned).collect();
        let files = files.iter().map(|(path, text)| (split(path), (*text).to_owned()));
        upward(&files.collect())
    };
    let root = ("", "mod api;\nmod kernel;\nmod math;\nmod reference;\n");
    let files = |kernel: &'static str, reference: &'static str| {
        of(&[root, ("api", ""), ("kernel", kernel), ("math", ""), ("reference", reference)])
    };
    let none: [String; 0] = [];
    assert_eq!(files("use crate::math::exp;", "use crate::math::exp;"), none);
    assert_eq!(files("use crate::api::Job;", ""), ["kernel imports api"]);
    assert_eq!(
        files("fn f() { crate::Error::new() }", ""),
        ["kernel imports the root of the crate"]
    );
    assert_eq!(files("", "use crate::kernel::X;"), ["reference imports kernel"]);
}

#[test]
fn circles_are_found() {
    let of = |files: &[(&str, &str)]| {
        let split = |path: &str| path.split_terminator("::").map(str::to_owned).collect();
        let files = files.iter().map(|(path, text)| (split(path), (*text).to_owned()));
        circle(&imports(&files.collect()))
    };
    let root = ("", "mod a;\nmod b;\nmod c;\n");
    assert_eq!(of(&[root, ("a", "use crate::b::X;"), ("b", "use crate::c;"), ("c", "")]), None);
    let circle = Some(vec!["a".to_owned(), "b".to_owned()]);
    for (a, b) in [
        ("use crate::b::X;", "use crate::a::Y;"),
        ("use crate::{\n    b::{X as Z, self},\n    c,\n};", "fn f() { crate::a::g::<u8>(); }"),
        ("use super::{c::{A, B}, b::*};", "pub(crate) use super::a;"),
    ] {
        assert_eq!(of(&[root, ("a", a), ("b", b), ("c", "")]), circle, "{a} {b}");
    }
    let three = of(&[root, ("a", "use crate::b;"), ("b", "use crate::c;"), ("c", "use crate::a;")]);
    assert_eq!(three.unwrap(), ["a", "b", "c"]);
    // An item of the root is of the file that has all modules.
    let with_root = of(&[root, ("a", "use crate::{Error, c};"), ("b", ""), ("c", "")]);
    assert_eq!(with_root.unwrap(), ["the root", "a"]);
    let child = of(&[("", "mod a;\n"), ("a", "mod b;\n"), ("a::b", "use super::Item;")]);
    assert_eq!(child.unwrap(), ["a", "a::b"]);
    // Comments and unit tests import nothing.
    let tests = "// use crate::a;\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}";
    assert_eq!(of(&[root, ("a", "use crate::b;"), ("b", tests), ("c", "")]), None);
}
