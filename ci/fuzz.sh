#!/usr/bin/env bash
# The fuzz targets, each for some seconds, from the committed corpus: ci/fuzz.sh [--asan] [SECONDS]
#
# With the stable toolchain, which can instrument code for coverage as cargo-fuzz does. The address sanitizer
# (--asan) takes a nightly one. libFuzzer is C++: on Debian a missing compiler is installed, which takes root.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "ci/fuzz.sh: $*" >&2
    exit 1
}

asan=
if [ "${1:-}" = --asan ]; then
    asan=1
    shift
fi
seconds=${1:-20}
[[ "$seconds" =~ ^[0-9]+$ ]] || fail "$seconds is not a number of seconds"
# For libFuzzer 0 seconds are no limit; here they are the corpus and nothing else.
limit=-max_total_time=$seconds
[ "$seconds" -gt 0 ] || limit=-runs=0

compiler=${CXX:-c++}
if ! command -v "$compiler" >/dev/null; then
    echo "installing g++, as $compiler is missing"
    command -v apt-get >/dev/null || fail "$compiler is missing, and this is not a Debian to install it on"
    [ "$(id -u)" = 0 ] || fail "$compiler is missing, and only root can install it"
    apt-get update -q || fail "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends g++ ||
        fail "g++ could not be installed"
    command -v "$compiler" >/dev/null || fail "$compiler is missing although g++ is installed"
fi

# As cargo-fuzz has them, but for tracing of comparisons: there are several for every number, which halves
# the speed, and no magic value to find by them. Debug assertions and overflow checks are in the profile.
flags=(--cfg fuzzing -C passes=sancov-module)
for option in level=4 inline-8bit-counters pc-table; do
    flags+=(-C "llvm-args=-sanitizer-coverage-$option")
done
toolchain=()
directory=fuzz
if [ -n "$asan" ]; then
    cargo +nightly --version >/dev/null 2>&1 || fail "--asan takes a nightly toolchain"
    toolchain=(+nightly)
    directory=fuzz-asan
    flags+=(-Z sanitizer=address)
fi

# With a target of its own build scripts and macros are not instrumented.
target=x86_64-unknown-linux-gnu
export CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/$directory
export CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f' "${flags[@]}" | sed 's/\x1f$//')
export CARGO_INCREMENTAL=0
cargo "${toolchain[@]}" build --manifest-path fuzz/fuzz_targets/Cargo.toml --locked --release --bins --target "$target"

# So that a machine without AVX-512, say, does not pass for one that has tried it.
echo "features of this CPU: $(grep -o -m1 -w -E 'avx2|fma|avx512f|avx512bw' /proc/cpuinfo | sort -u | tr '\n' ' ')"

artifacts=$CARGO_TARGET_DIR/artifacts
work=$CARGO_TARGET_DIR/corpus
for name in loss softmax logprobs compare misuse; do
    binary=$CARGO_TARGET_DIR/$target/release/$name
    mkdir -p "$artifacts/$name" "$work/$name"
    printf '\n== %s for %s seconds\n' "$name" "$seconds"
    # New inputs go to the first directory: the committed ones stay as they are.
    "$binary" "$work/$name" "fuzz/corpus/$name" "$limit" -max_len=1024 -len_control=20 -timeout=60 \
        -artifact_prefix="$artifacts/$name/" -print_final_stats=1 2>&1 |
        tee "$artifacts/$name.log" | grep -v -E 'NEW  |REDUCE|pulse|RELOAD' || {
        input=$(sed -n 's/.*Test unit written to //p' "$artifacts/$name.log" | tail -1)
        fail "$name failed; to see it again: $binary ${input:-(no input was written)}"
    }
done
