#!/usr/bin/env bash
# Everything that .ci/run leaves out because it takes long. Run both on what is to be released.
#
# It needs a Rust toolchain and, for most of it, an x86-64 Debian whose packages may be installed, as root: an Arm
# emulator, a C++ compiler for libFuzzer, C compilers with valgrind, MPI, and a language model that is fetched with
# pip. XENT_CI_SKIP=aarch64,fuzz,c,mpi,perplexity leaves these out. Without it, a step that cannot run fails.
set -euo pipefail
cd "$(dirname "$0")/.."
. ci/steps.sh

optional c ci/c.sh --install
is_skipped c || export XENT_REQUIRE_TOOLS=1

# Tests that try every number, and the installed C library.
step cargo test --workspace --exclude xent-mpi --all-features -- --ignored
# Cases that no run had before.
XENT_TEST_RANDOM=1 step cargo test -p xent-tests --all-features
step cargo run --release --example train_bigram
step ci/benches.sh
optional mpi ci/mpi.sh
optional perplexity ci/perplexity.sh
optional fuzz ci/fuzz.sh "${XENT_FUZZ_SECONDS:-60}"
optional aarch64 ci/aarch64.sh
