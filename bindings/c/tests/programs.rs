//! Programs in C and C++ against the static and the shared library of this build: all of the API, errors and threads, under
//! valgrind too, and installed with pkg-config.

#[path = "../../../tests/common/pages.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other packages, which use more of it")]
mod pages;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of this build: cargo puts the libraries that integration tests are linked with, in all their kinds, beside the
/// tests, without a hash in their names. What is there is of this profile and target, wherever the target directory is.
fn built() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let folder = test.parent().expect("it is in a folder").to_owned();
    for library in ["libxent_c.a", shared()] {
        assert!(folder.join(library).is_file(), "{} is not in {}", library, folder.display());
    }
    folder
}

fn shared() -> &'static str {
    if cfg!(target_os = "macos") { "libxent_c.dylib" } else { "libxent_c.so" }
}

/// The name under which programs look for the shared library.
fn versioned() -> String {
    let abi = xent_c::XENT_ABI_VERSION;
    match cfg!(target_os = "macos") {
        true => format!("libxent_c.{abi}.dylib"),
        false => format!("libxent_c.so.{abi}"),
    }
}

/// Whether a check that is left out is a failure.
fn required() -> bool {
    std::env::var_os("XENT_REQUIRE_TOOLS").is_some_and(|value| value == "1")
}

/// Whether a program can be started and says which version it is.
fn runs(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether there is a tool. A check that is left out for want of one is printed, and fails where tools are required.
fn has(tool: &str, check: &str) -> bool {
    if runs(tool) {
        return true;
    }
    assert!(!required(), "{tool} is missing, and XENT_REQUIRE_TOOLS=1: {check}");
    println!("skipped, as {tool} is missing: {check}");
    false
}

/// Whether programs that are compiled here are for the machine of the library. Where tests run in an emulator
/// (`ci/aarch64.sh`) they are not, and no shared library is made.
fn native() -> bool {
    if std::env::var_os("XENT_TEST_RUNNER").is_none_or(|runner| runner.is_empty()) {
        return true;
    }
    let what = "as this test runs in an emulator (XENT_TEST_RUNNER): programs in C and C++";
    assert!(!required(), "left out, and XENT_REQUIRE_TOOLS=1, {what}");
    println!("skipped, {what}");
    false
}

/// Compilers of a language. clang is tried where it is, and needed nowhere.
fn compilers(language: Language) -> Vec<&'static str> {
    let (gnu, other) = match language {
        Language::C => ("gcc", "clang"),
        Language::Cpp => ("g++", "clang++"),
    };
    let mut found = Vec::new();
    if has(gnu, "programs compiled by it") {
        found.push(gnu);
    }
    match runs(other) {
        true => found.push(other),
        false => println!("skipped, as {other} is not installed: programs compiled by it"),
    }
    found
}

#[derive(Clone, Copy, PartialEq)]
enum Language {
    C,
    Cpp,
}

impl Language {
    fn of(source: &Path) -> Language {
        if source.extension() == Some(OsStr::new("c")) { Language::C } else { Language::Cpp }
    }

    fn standard(self) -> &'static str {
        if self == Language::C { "-std=c99" } else { "-std=c++11" }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Linkage {
    Static,
    Shared,
}

/// What rustc says a static library needs, on the systems where these tests run.
const NATIVE: [&str; 3] = ["-lpthread", "-lm", "-ldl"];

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out.into_owned() + &err
}

fn compile(compiler: &str, source: &Path, to: &Path) -> Command {
    let mut command = Command::new(compiler);
    command.arg(Language::of(source).standard());
    command.args(["-pedantic", "-Wall", "-Wextra", "-Werror", "-g", "-O2"]).arg(source);
    command.arg("-o").arg(to).arg("-I").arg(root().join("tests"));
    command
}

/// A folder with the shared library under the name that programs look for.
fn library_folder(folder: &Path) {
    fs::copy(built().join(shared()), folder.join(versioned())).expect("the library can be copied");
}

/// Compiles a program against the library of this build.
fn build(compiler: &str, source: &Path, linkage: Linkage, folder: &Path) -> PathBuf {
    let program = folder.join(format!("{compiler}-{linkage:?}"));
    let mut command = compile(compiler, source, &program);
    command.arg("-I").arg(root().join("include"));
    match linkage {
        Linkage::Static => command.arg(built().join("libxent_c.a")),
        Linkage::Shared => command.arg(folder.join(versioned())),
    };
    run(command.args(NATIVE));
    program
}

fn start(program: &Path, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", folder).env("DYLD_LIBRARY_PATH", folder);
    command
}

/// Compiles and runs a program with every compiler, linked both ways.
fn everywhere(source: &Path, expected: &str) {
    if !native() {
        return;
    }
    let folder = TempDir::new().expect("a temporary folder");
    library_folder(folder.path());
    for compiler in compilers(Language::of(source)) {
        for linkage in [Linkage::Static, Linkage::Shared] {
            let program = build(compiler, source, linkage, folder.path());
            let output = run(&mut start(&program, folder.path()));
            assert!(output.contains(expected), "{compiler}, {linkage:?}: {output}");
            println!("{compiler}, {linkage:?}: {}", output.trim().replace('\n', "; "));
        }
    }
}

#[test]
fn the_api_from_c() {
    everywhere(&root().join("tests/api.c"), " 0 failures");
}

#[test]
fn the_api_from_cpp() {
    everywhere(&root().join("tests/api.cpp"), " 0 failures");
}

#[test]
fn the_floating_point_environment_of_a_program() {
    everywhere(&root().join("tests/float_env.c"), " 0 failures");
}

/// On the fastest backend that valgrind knows (not AVX-512, and it says so to a program that asks the CPU), and on those
/// that every machine has.
#[test]
fn no_memory_is_lost_or_misused() {
    if !native() || !has("valgrind", "memory of the programs") {
        return;
    }
    let folder = TempDir::new().expect("a temporary folder");
    library_folder(folder.path());
    for source in ["tests/api.c", "tests/api.cpp"].map(|source| root().join(source)) {
        let compiler = if Language::of(&source) == Language::C { "gcc" } else { "g++" };
        if !has(compiler, "memory of the programs") {
            continue;
        }
        let program = build(compiler, &source, Linkage::Shared, folder.path());
        for backend in ["", "portable", "scalar"] {
            let mut command = start(Path::new("valgrind"), folder.path());
            command.args(["--error-exitcode=9", "--leak-check=full", "-q"]);
            // The threads of the pool of the process are never joined: "possibly lost" is said of what they hold.
            command
                .arg("--errors-for-leak-kinds=definite,indirect")
                .arg("--show-leak-kinds=definite,indirect");
            let output = run(command.arg(&program).env("XENT_BACKEND", backend));
            assert!(output.contains(" 0 failures"), "{output}");
            println!("valgrind, {}: {}", source.display(), output.trim().replace('\n', "; "));
        }
    }
}

#[test]
fn the_shared_library_exports_nothing_else() {
    if cfg!(not(target_os = "linux")) || !native() || !has("nm", "what the shared library exports")
    {
        return;
    }
    let output =
        Command::new("nm").args(["-D", "--defined-only"]).arg(built().join(shared())).output();
    let output = String::from_utf8(output.expect("nm runs").stdout).expect("UTF-8");
    let mut exported: Vec<_> =
        output.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    exported.sort_unstable();
    // All that the header declares, and nothing that it does not.
    let header = fs::read_to_string(root().join("include/xent.h")).expect("the header");
    let mut declared: Vec<_> = header
        .lines()
        .filter(|line| !line.trim_start().starts_with(['/', '*']))
        .filter_map(|line| line.split_once('('))
        .filter_map(|(before, _)| before.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("xent_"))
        .collect();
    declared.sort_unstable();
    assert!(declared.len() > 30, "{declared:?}");
    assert_eq!(exported, declared);
}

#[test]
fn the_shared_library_has_a_version() {
    if cfg!(not(target_os = "linux"))
        || !native()
        || !has("objdump", "the name of the shared library")
    {
        return;
    }
    let output = run(Command::new("objdump").arg("-p").arg(built().join(shared())));
    let name = output.lines().find_map(|line| line.trim().strip_prefix("SONAME"));
    assert_eq!(name.map(str::trim), Some(versioned().as_str()));
}

#[test]
#[ignore = "builds the library in the release profile: ci/full.sh"]
fn installed_with_pkg_config() {
    let what = "the installed library";
    if cfg!(not(unix)) || !native() || !has("gcc", what) || !has("pkg-config", what) {
        return;
    }
    let folder = TempDir::new().expect("a temporary folder");
    let (staged, prefix) = (folder.path().join("stage"), "/opt/a|b & xent of a test");
    // Of this target directory, so that nothing is built twice.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the target directory");
    let install = |prefix: &str, destination: &str| {
        let mut command = Command::new(root().join("install.sh"));
        command.arg(prefix).env("DESTDIR", destination).env("CARGO_TARGET_DIR", target);
        command.env("CARGO", env!("CARGO")).env_remove("CARGO_BUILD_TARGET");
        run(command.current_dir(folder.path()))
    };
    // What is relative is so from where the script was started, not from where it is.
    println!("{}", install(prefix, "stage").trim());
    let under = staged.join(prefix.trim_start_matches('/'));
    for file in ["include/xent.h", "include/xent.hpp", "lib/libxent_c.a", "lib/pkgconfig/xent.pc"] {
        assert!(under.join(file).is_file(), "{file}");
    }
    assert!(under.join("lib").join(versioned()).is_file());
    let pc = fs::read_to_string(under.join("lib/pkgconfig/xent.pc")).expect("xent.pc");
    assert!(pc.contains(&format!("prefix={prefix}\n")), "{pc}");
    assert!(pc.contains(concat!("Version: ", env!("CARGO_PKG_VERSION"), "\n")), "{pc}");

    let prefix = folder.path().join("prefix");
    install(prefix.to_str().expect("UTF-8"), "");
    for (linkage, arguments) in [
        (Linkage::Shared, &["--cflags", "--libs"][..]),
        (Linkage::Static, &["--static", "--cflags", "--libs"]),
    ] {
        let flags = run(Command::new("pkg-config")
            .args(arguments)
            .arg("xent")
            .env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
        let program = folder.path().join(format!("{linkage:?}"));
        let mut command = compile("gcc", &root().join("tests/api.c"), &program);
        // pkg-config does not choose between the two files; the linker does, and would take the shared one.
        let flags = match linkage {
            Linkage::Static if cfg!(target_os = "linux") => {
                flags.replace("-lxent_c", "-l:libxent_c.a")
            }
            Linkage::Static => {
                fs::remove_file(prefix.join("lib").join(shared())).expect("the link");
                flags
            }
            Linkage::Shared => flags,
        };
        run(command.args(flags.split_whitespace()).args(["-lm", "-lpthread"]));
        let libraries = match linkage {
            Linkage::Static => folder.path().to_owned(), // where it is not
            Linkage::Shared => prefix.join("lib"),
        };
        let output = run(&mut start(&program, &libraries));
        assert!(output.contains(" 0 failures"), "{output}");
        println!("pkg-config {arguments:?}: {}", flags.trim());
    }
    let failed = Command::new(root().join("install.sh")).arg("relative").output().expect("it runs");
    assert!(!failed.status.success());
}

/// The first block of a language in a file of Markdown.
fn snippet(file: &str, language: &str) -> String {
    let text = fs::read_to_string(root().join(file)).expect(file).replace("\r\n", "\n");
    let (_, rest) = text.split_once(&format!("```{language}\n")).expect("there is such a block");
    rest.split_once("```").expect("it ends").0.to_owned()
}

#[test]
fn the_example_of_the_readme() {
    let folder = TempDir::new().expect("a temporary folder");
    let source = folder.path().join("readme.c");
    fs::write(&source, snippet("README.md", "c")).expect("it can be written");
    everywhere(&source, "loss 2.8245\n");
}

/// Every block of every page, as it stands there; those that are programs run.
#[test]
fn blocks_of_the_pages() {
    if !native() {
        return;
    }
    let repository = pages::root(env!("CARGO_MANIFEST_DIR"), 2);
    let folder = TempDir::new().expect("a temporary folder");
    library_folder(folder.path());
    for (language, extension) in [("c", "c"), ("cpp", "cpp")] {
        let blocks = pages::all_blocks(&repository, &[language]);
        assert!(blocks.len() >= 2, "{language}: {}", blocks.len());
        for block in blocks {
            println!("{}:{}", block.page, block.line);
            let source = folder.path().join(format!("block.{extension}"));
            fs::write(&source, &block.text).expect("it can be written");
            for compiler in compilers(Language::of(&source)) {
                if block.text.contains("int main(") {
                    let program = build(compiler, &source, Linkage::Shared, folder.path());
                    run(&mut start(&program, folder.path()));
                } else {
                    let object = folder.path().join("block.o");
                    let mut command = compile(compiler, &source, &object);
                    run(command.arg("-c").arg("-I").arg(root().join("include")));
                }
            }
        }
    }
}

#[test]
fn the_example_for_llama_cpp() {
    let source = root().join("examples/llama_perplexity.cpp");
    everywhere(&source, "both agree");
    // The page shows parts of the program, word for word; each has the includes that it needs alone.
    let program = fs::read_to_string(&source).expect("the example").replace("\r\n", "\n");
    let page = fs::read_to_string(root().join("../../docs/c.md"))
        .expect("docs/c.md")
        .replace("\r\n", "\n");
    let blocks: Vec<_> =
        page.split("```cpp\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 2, "docs/c.md shows how to replace code of llama.cpp");
    let parts = blocks.iter().flat_map(|block| block.split("\n\n"));
    for part in parts.filter(|part| !part.starts_with("#include")) {
        assert!(
            program.contains(part.trim_end()),
            "this part of docs/c.md is not in examples/llama_perplexity.cpp:\n{part}"
        );
    }
}
