//! The pages of the repository and their code blocks. Other packages of the workspace include this file: it
//! needs the standard library alone.

use std::fs;
use std::path::{Path, PathBuf};

/// A code block of a page.
#[derive(Clone, Debug)]
pub struct Block {
    /// Relative to the root of the repository.
    pub page: String,
    /// The line of its first fence, from 1.
    pub line: usize,
    /// The first word behind the fence.
    pub language: String,
    /// What follows the language, as `no_run` does in `rust,no_run`.
    pub attributes: Vec<String>,
    pub text: String,
}

/// The root of the repository, seen from a package `depth` folders below it.
pub fn root(manifest: &str, depth: usize) -> PathBuf {
    let folder = Path::new(manifest).ancestors().nth(depth).expect("the package is below the root");
    assert!(folder.join("README.md").is_file(), "{} is not the root", folder.display());
    folder.to_owned()
}

/// All pages, with `/` in their names on every system. Links are left out: what they lead to is a page itself.
pub fn pages(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    collect(root, "", &mut found);
    found.sort();
    found
}

fn collect(folder: &Path, name: &str, found: &mut Vec<String>) {
    // Cargo marks its target folders so, wherever they are.
    if folder.join("CACHEDIR.TAG").exists() {
        return;
    }
    for entry in fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
        let entry = entry.expect("an entry of the folder");
        let Ok(file) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type().expect("the type of an entry");
        if kind.is_dir() && !file.starts_with('.') {
            collect(&entry.path(), &format!("{name}{file}/"), found);
        } else if kind.is_file() && file.ends_with(".md") {
            found.push(format!("{name}{file}"));
        }
    }
}

pub fn text(root: &Path, page: &str) -> String {
    let text = fs::read_to_string(root.join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
    text.replace("\r\n", "\n")
}

/// The code blocks of a page, in their order.
pub fn blocks(root: &Path, page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (line, text) in (1..).zip(text(root, page).lines()) {
        let fence = text.trim_start().strip_prefix("```");
        match (&mut open, fence) {
            (Some(_), Some(rest)) => {
                assert!(rest.trim().is_empty(), "{page}:{line}: a fence within a block");
                found.extend(open.take());
            }
            (Some(block), None) => {
                block.text.push_str(text);
                block.text.push('\n');
            }
            (None, Some(info)) => {
                let mut words = info.split([',', ' ']).map(str::to_owned);
                open = Some(Block {
                    page: page.to_owned(),
                    line,
                    language: words.next().unwrap_or_default(),
                    attributes: words.filter(|word| !word.is_empty()).collect(),
                    text: String::new(),
                });
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{page}: a block without an end");
    found
}

/// The code blocks of all pages in one of these languages.
pub fn all_blocks(root: &Path, languages: &[&str]) -> Vec<Block> {
    let all = pages(root).into_iter().flat_map(|page| blocks(root, &page));
    all.filter(|block| languages.contains(&&block.language[..])).collect()
}
