#!/usr/bin/env bash
# The tests of the crate and of its command on 64-bit Arm, emulated on an x86-64 Debian (12 or later, with its security
# updates): ci/aarch64.sh [MODULE...] runs those of some modules of tests/, or all.
#
# What is missing is installed, which takes root and adds arm64 to the architectures of dpkg.
# Never skips: without the tools, or if the neon backend did not run, it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "ci/aarch64.sh: $*" >&2
    exit 1
}

# The distribution's toolchain, as it has a standard library for Arm that needs no toolchain manager.
# By their whole names, because another cargo may come first in the path.
cargo=/usr/bin/cargo
export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
target=aarch64-unknown-linux-gnu
linker=aarch64-linux-gnu-gcc
emulator=qemu-aarch64

missing() {
    local tool
    for tool in "$cargo" "$RUSTC" "$RUSTDOC" cc "$linker" "$emulator"; do
        command -v "$tool" >/dev/null || { echo "$tool"; return; }
    done
    compgen -G "$("$RUSTC" --print sysroot)/lib/rustlib/$target/lib/libstd-*.rlib" >/dev/null ||
        { echo "the standard library of $target"; return; }
    [ -e "$("$linker" -print-file-name=libc.a)" ] || echo "a C library of $target"
}

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "installing, as $lacking is missing"
    command -v apt-get >/dev/null || fail "$lacking is missing, and this is not a Debian to install it on"
    [ "$(id -u)" = 0 ] || fail "$lacking is missing, and only root can install it"
    dpkg --add-architecture arm64
    apt-get update -q || fail "apt-get update failed"
    packages=(cargo-web rustc-web libstd-rust-web-dev:arm64)
    packages+=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
    # Cargo needs certificates, but those that a machine has already are its own business.
    [ -e /etc/ssl/certs/ca-certificates.crt ] || packages+=(ca-certificates)
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}" ||
        fail "the packages could not be installed"
    lacking=$(missing)
    [ -z "$lacking" ] || fail "$lacking is missing although all packages are installed"
fi

version=$("$RUSTC" --version | cut -d' ' -f2)
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
printf '%s\n%s\n' "$needed" "$version" | sort -V -C ||
    fail "$RUSTC is $version, this crate needs $needed: are the security updates of Debian enabled?"
echo "$("$RUSTC" --version), $("$emulator" --version | head -1)"

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}/aarch64
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$linker
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=$emulator
# Static, so that the emulator needs no Arm system to load libraries from: with `-L`, libraries of two
# systems could be mixed, and threads then hang.
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static"

# How tests start programs, and how much less than elsewhere they try: tests/common/lib.rs.
export XENT_TEST_RUNNER=$emulator
export XENT_TEST_THIN=${XENT_TEST_THIN:-97}
export PROPTEST_CASES=${PROPTEST_CASES:-20}

# Most of the time goes into compiling dependencies: optimize only those that tests spend time in.
export CARGO_INCREMENTAL=0 CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_OPT_LEVEL=0
options=()
for package in xent=3 xent-cli=1 xent-tests=1 wide=1 sha2=3 proptest=1; do
    options+=(--config "profile.dev.package.${package%=*}.opt-level=${package#*=}")
done

packages=(-p xent -p xent-cli -p xent-tests)
filters=()
if [ $# -gt 0 ]; then
    packages=(-p xent-tests --test suite)
    for module in "$@"; do
        grep -q "^mod $module;$" tests/suite.rs && filters+=("$module::") && continue
        echo "there is no module $module in tests/suite.rs" >&2
        # It is being written.
        [ "$module" = conformance ] || exit 1
    done
fi

mkdir -p "$CARGO_TARGET_DIR"
log=$CARGO_TARGET_DIR/tests.log
"$cargo" test "${packages[@]}" --target "$target" "${options[@]}" -- --show-output "${filters[@]}" 2>&1 | tee "$log" ||
    fail "the tests failed on $target"
for filter in "${filters[@]}"; do
    grep -q "^test $filter.* ok$" "$log" || fail "no test of ${filter%::} ran"
done

# The binary with the most kernels in it; dependencies that are not optimized have intrinsics of their own.
binary=$(sed -n 's/.*Running suite.rs (\(.*\))$/\1/p' "$log")
ci/no-calls.sh "$binary"

echo
echo "tests by backend on $target, out of $(grep -c '^test .* \.\.\. ok$' "$log") in all:"
for backend in scalar portable neon; do
    runs=$(grep -c "^backend $backend: run" "$log" || true)
    echo "  $backend: $runs"
    [ "$runs" -gt 0 ] || fail "the backend $backend did not run"
done
