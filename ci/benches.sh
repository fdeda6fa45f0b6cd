#!/usr/bin/env bash
# The benches: ci/benches.sh runs each for a short time, which is a test that they work and no measurement, and
# ci/benches.sh --arguments checks what they make of their arguments, in the build of the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
    echo "ci/benches.sh: $*" >&2
    exit 1
}

if [ "${1:-}" = --arguments ]; then
    bench() { cargo test -q --workspace --exclude xent-mpi --all-features --bench "$1" -- "${@:2}"; }
    for name in limits data; do
        bench "$name" --help | grep -q '^Usage: cargo bench' || fail "$name --help has no usage"
        [ "$(bench "$name" --list | wc -l)" -gt 10 ] || fail "$name --list is short"
    done
    [ "$(bench limits --list --filter 'call forward' | wc -l)" -ge 2 ] || fail "limits --list --filter selects nothing"
    for arguments in "limits --filter sse9" "data --row sse9" "data --operation sse9" "limits --sse9" "data 0"; do
        # shellcheck disable=SC2086
        ! bench $arguments >/dev/null 2>&1 || fail "$arguments succeeds"
    done
    echo "help, lists and filters of limits and data are right"
    exit
fi

cargo bench --bench limits -- --quick
cargo bench --bench data -- 50257
cargo bench --bench forward -- --quick
cargo bench -p xent-c --bench call_cost
cargo bench -p xent-candle --bench against_candle -- --quick
