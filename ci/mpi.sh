#!/usr/bin/env bash
# The tests of xent-mpi under mpirun, and its example, on Debian. What is missing is installed, which takes root; with
# --install that only.
# Never skips: without MPI it fails.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "ci/mpi.sh: $*" >&2
    exit 1
}

missing() {
    local tool
    for tool in cc mpicc mpirun; do
        command -v "$tool" >/dev/null || { echo "$tool"; return; }
    done
    # What bindgen looks for.
    [ -n "${LIBCLANG_PATH:-}" ] || compgen -G "/usr/lib/llvm-*/lib/libclang*.so*" >/dev/null ||
        compgen -G "/usr/lib/*/libclang*.so*" >/dev/null || echo libclang
}

lacking=$(missing)
if [ -n "$lacking" ]; then
    echo "installing, as $lacking is missing"
    command -v apt-get >/dev/null || fail "$lacking is missing, and this is not a Debian to install it on"
    [ "$(id -u)" = 0 ] || fail "$lacking is missing, and only root can install it"
    apt-get update -q || fail "apt-get update failed"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        gcc libc6-dev libopenmpi-dev openmpi-bin libclang-dev || fail "the packages could not be installed"
    lacking=$(missing)
    [ -z "$lacking" ] || fail "$lacking is missing although all packages are installed"
fi
mpirun --version | head -1

[ "${1:-}" = --install ] && exit
cargo test -p xent-mpi
cargo build --release -p xent-mpi --example vocab_parallel
mpirun=(mpirun --oversubscribe)
[ "$(id -u)" != 0 ] || mpirun+=(--allow-run-as-root)
example=${CARGO_TARGET_DIR:-target}/release/examples/vocab_parallel
RAYON_NUM_THREADS=1 "${mpirun[@]}" -n 2 "$example" --rows 32 --rounds 3
