//! Names the shared library after the version of its ABI, so that programs load the one that they were built for.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/version.rs");
    let source = std::fs::read_to_string("src/version.rs").expect("src/version.rs can be read");
    let abi = source
        .lines()
        .find_map(|line| line.strip_prefix("pub const XENT_ABI_VERSION: u32 = "))
        .and_then(|rest| rest.strip_suffix(';'))
        .expect("src/version.rs has XENT_ABI_VERSION");
    let os = std::env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    match os.as_str() {
        "linux" | "android" | "freebsd" | "netbsd" | "openbsd" | "dragonfly" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libxent_c.so.{abi}");
            // Names of functions that no program can link to: an eighth of the library.
            if std::env::var_os("PROFILE").is_some_and(|profile| profile == "release") {
                println!("cargo::rustc-cdylib-link-arg=-Wl,--strip-all");
            }
        }
        "macos" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libxent_c.{abi}.dylib");
        }
        _ => {}
    }
}
