#!/usr/bin/env bash
# The tests of the C library with all tools: gcc, g++, valgrind and pkg-config, which are installed if they are
# missing, on Debian and by root; with --install that only. Never skips: without the tools it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "ci/c.sh: $*" >&2
    exit 1
}

missing() {
    local tool
    for tool in gcc g++ nm objdump valgrind pkg-config; do
        command -v "$tool" >/dev/null || { echo "$tool"; return; }
    done
}

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "installing, as $lacking is missing"
    command -v apt-get >/dev/null || fail "$lacking is missing, and this is not a Debian to install it on"
    [ "$(id -u)" = 0 ] || fail "$lacking is missing, and only root can install it"
    apt-get update -q || fail "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        gcc g++ libc6-dev binutils valgrind pkg-config ||
        fail "the packages could not be installed"
    lacking=$(missing)
    [ -z "$lacking" ] || fail "$lacking is missing although all packages are installed"
fi
# For jobs that need the tools and run something else.
[ "${1:-}" = --install ] && exit

# With it, tests would take themselves to be in an emulator, and leave programs out.
unset XENT_TEST_RUNNER
gcc --version | head -1
valgrind --version

XENT_REQUIRE_TOOLS=1 "${CARGO:-cargo}" test -p xent-c -- --show-output
