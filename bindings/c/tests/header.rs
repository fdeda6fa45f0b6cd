//! The header is that of the source, and C and C++ can read it.

use std::path::PathBuf;
use std::{env, fs};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// In the order in which the header has them.
const SOURCES: [&str; 7] = ["version", "status", "types", "options", "loss", "softmax", "tokens"];

fn generate() -> String {
    let [major, minor, patch] = [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ];
    let mut config = cbindgen::Config {
        header: Some(
            "/*\n * xent: cross-entropy, log-probabilities and gradients over vocabulary rows.\n *\n \
             * Generated from the Rust source by `XENT_WRITE_HEADER=1 cargo test -p xent-c --test header`: do not edit.\n \
             * How to use it, and what may change from version to version: bindings/c/README.md.\n *\n \
             * Of every function: pointers are NULL where that is allowed, or valid for as many elements as the lengths and\n \
             * strides beside them say, and nobody else writes what it reads, or touches what it writes, until it returns.\n \
             * No function keeps a pointer. All may be called from any number of threads at once.\n *\n \
             * Licence: MIT OR Apache-2.0\n */"
                .to_owned(),
        ),
        include_guard: Some("XENT_H".to_owned()),
        language: cbindgen::Language::C,
        cpp_compat: true,
        documentation: true,
        documentation_style: cbindgen::DocumentationStyle::C99,
        style: cbindgen::Style::Both,
        no_includes: true,
        sys_includes: vec!["stddef.h".to_owned(), "stdint.h".to_owned()],
        usize_is_size_t: true,
        line_length: 120,
        tab_width: 4,
        after_includes: Some(format!(
            "\n/* The version of this header. That of the library: xent_version(), xent_abi_version(). */\n\
             #define XENT_VERSION_MAJOR {major}\n#define XENT_VERSION_MINOR {minor}\n\
             #define XENT_VERSION_PATCH {patch}\n#define XENT_VERSION \"{major}.{minor}.{patch}\""
        )),
        ..cbindgen::Config::default()
    };
    config.sort_by = cbindgen::SortKey::None;
    config.enumeration.prefix_with_name = false;
    config.export.include = [
        "xent_status",
        "xent_dtype",
        "xent_id_dtype",
        "xent_reduction",
        "xent_empty_mean",
        "xent_backend",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join(format!("src/{source}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().expect("cbindgen understands the source").write(&mut header);
    let header = String::from_utf8(header).expect("UTF-8");
    tidy(&header)
}

/// Rust's words in C's: that pointers must be valid goes for any function in C, and the head of the header says it.
fn tidy(header: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut skipping = false;
    for line in header.lines().map(str::trim_end) {
        let comment = line.trim_start().strip_prefix("//");
        if comment.is_some_and(|text| text.trim() == "# Safety") {
            skipping = true;
            while lines.last().is_some_and(|line| line.trim() == "//") {
                lines.pop();
            }
        }
        skipping &= comment.is_some();
        // No links: what Rust names with its path, C finds by its name.
        let doubled = line.is_empty() && lines.last().is_some_and(String::is_empty);
        if !skipping && !doubled {
            lines.push(line.to_owned());
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_header_is_current() {
    let path = root().join("include/xent.h");
    let current = generate();
    if env::var_os("XENT_WRITE_HEADER").is_some() {
        fs::write(&path, &current).expect("the header can be written");
        println!("written: {}", path.display());
        return;
    }
    let committed = fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
    let first = committed.lines().zip(current.lines()).position(|(a, b)| a != b);
    assert!(
        committed == current,
        "include/xent.h is not that of the source, from line {:?} on: \
         XENT_WRITE_HEADER=1 cargo test -p xent-c --test header",
        first.map(|line| line + 1)
    );
}

#[test]
fn constants_of_the_header_are_those_of_the_crate() {
    assert_eq!(xent_c::XENT_MAX_TOP_K, xent::LogProbs::MAX_TOP_K);
    assert_eq!(xent_c::XENT_ROW_STATS_BYTES, xent::RowStats::BYTES);
}
