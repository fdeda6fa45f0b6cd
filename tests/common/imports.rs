//! Which files of a crate import which: whoever reads a file needs those that it imports, and no
//! circle of others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Files by their module path: the root is empty, `score::pass` is `["score", "pass"]`.
pub type Modules = BTreeMap<Vec<String>, String>;

/// The files that each file imports.
pub type Imports = BTreeMap<Vec<String>, BTreeSet<Vec<String>>>;

/// The files of a folder.
pub fn modules(folder: &Path) -> Modules {
    let mut modules = Modules::new();
    let mut folders: Vec<(PathBuf, Vec<String>)> = vec![(folder.to_owned(), Vec::new())];
    while let Some((folder, path)) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder:?}: {e}")) {
            let entry = entry.unwrap().path();
            let name = entry.file_stem().unwrap().to_str().unwrap().to_owned();
            if entry.is_dir() {
                folders.push((entry, [&path[..], &[name]].concat()));
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let is_root = path.is_empty() && ["main", "lib"].contains(&&name[..]);
                let path = match (is_root, &name[..]) {
                    (true, _) | (_, "mod") => path.clone(),
                    _ => [&path[..], &[name]].concat(),
                };
                modules.insert(path, std::fs::read_to_string(&entry).unwrap());
            }
        }
    }
    modules
}

/// The code of a file, without comments and without the unit tests at its end.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    code.lines().filter_map(|line| line.split("//").next()).collect::<Vec<_>>().join("\n")
}

/// The paths that begin at `from`, as `a::{b, c::d}` in `crate::a::{b, c::d}`: all that it stands
/// for, and where it ends.
fn paths(from: &str) -> (Vec<Vec<String>>, usize) {
    let mut at = from.len() - from.trim_start().len();
    if from[at..].starts_with('{') {
        at += 1;
        let mut all = Vec::new();
        while !from[at..].trim_start().starts_with('}') {
            let (some, end) = paths(&from[at..]);
            all.extend(some);
            at += end;
            at += from[at..].len() - from[at..].trim_start_matches([',', ' ', '\n']).len();
        }
        return (all, at + from[at..].find('}').unwrap() + 1);
    }
    let is_name = |c: char| c.is_alphanumeric() || c == '_' || c == '*';
    let len = from[at..].find(|c| !is_name(c)).unwrap_or(from[at..].len());
    assert!(len > 0, "no path: {}", from.chars().take(80).collect::<String>());
    let name = from[at..at + len].to_owned();
    at += len;
    let Some(rest) = from[at..].strip_prefix("::") else {
        let renamed = from[at..].trim_start().strip_prefix("as ");
        let end = renamed.map_or(at, |name| from.len() - name.trim_start_matches(is_name).len());
        return (vec![vec![name]], end);
    };
    // A path in code may go on with `::<T>`.
    if !rest.trim_start().starts_with(|c: char| is_name(c) || c == '{') {
        return (vec![vec![name]], at);
    }
    let (rest, end) = paths(rest);
    let all = rest.into_iter().map(|path| [vec![name.clone()], path].concat());
    (all.collect(), at + 2 + end)
}

/// What each file imports: in `use` lines and in paths, and the files that it declares.
pub fn imports(modules: &Modules) -> Imports {
    let mut imports = Imports::new();
    for (module, text) in modules {
        let code = code(text);
        let found = imports.entry(module.clone()).or_default();
        let mut add = |base: &[String], rest: &str| {
            for path in paths(rest).0 {
                let mut path = [base, &path].concat();
                // What is no module is something in one.
                while !modules.contains_key(&path) {
                    assert!(path.pop().is_some(), "nothing is at the root");
                }
                found.insert(path);
            }
        };
        for (word, levels) in [("crate::", module.len()), ("super::", 1)] {
            for (at, _) in code.match_indices(word) {
                let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$';
                if !code[..at].ends_with(is_word) {
                    let base = &module[..module.len() - levels];
                    add(base, &code[at + word.len()..]);
                }
            }
        }
        // A file that has modules uses them.
        for line in code.lines() {
            let declared = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
            if let Some(name) = declared.strip_prefix("mod ").and_then(|m| m.strip_suffix(';')) {
                let child = [&module[..], &[name.to_owned()]].concat();
                assert!(modules.contains_key(&child), "{child:?} is not a file");
                found.insert(child);
            }
        }
        found.remove(module);
    }
    imports
}

/// The files of a circle, if there is one.
pub fn circle(imports: &Imports) -> Option<Vec<String>> {
    let mut left: Imports = imports.clone();
    loop {
        let done: Vec<Vec<String>> = left
            .iter()
            .filter(|(_, needs)| needs.iter().all(|need| !left.contains_key(need)))
            .map(|(module, _)| module.clone())
            .collect();
        if done.is_empty() {
            break;
        }
        done.iter().for_each(|module| drop(left.remove(module)));
    }
    let mut walk = vec![left.keys().next()?.clone()];
    loop {
        let last = walk.last().unwrap();
        let next = left[last].iter().find(|need| left.contains_key(*need)).unwrap().clone();
        if let Some(start) = walk.iter().position(|module| *module == next) {
            let name = |module: &Vec<String>| match &module[..] {
                [] => "the root".to_owned(),
                path => path.join("::"),
            };
            return Some(walk[start..].iter().map(name).collect());
        }
        walk.push(next);
    }
}
