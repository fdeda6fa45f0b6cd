#!/usr/bin/env bash
# Fails if a vector intrinsic was left as a function in a release binary: a call per operation makes
# a kernel tens of times slower, and nothing else would show it.
set -euo pipefail
binary=$1

if ! command -v nm >/dev/null; then
    echo "skipped: nm (binutils) is not installed"
    exit 0
fi
symbols=$(nm "$binary")
if ! grep -qE 'xent.*simd.*(avx512|neon).*entry' <<<"$symbols" && [[ $(uname -m) =~ ^(x86_64|aarch64)$ ]]; then
    echo "$binary has no symbols of the kernels: nothing was checked"
    exit 1
fi
left=$(grep -E 'core_arch.*(_mm(256|512)?_|neon.*_(f32|f64|u16|u32))' <<<"$symbols" || true)
if [ -n "$left" ]; then
    printf 'intrinsics that were not inlined into %s:\n%s\n' "$binary" "$left"
    exit 1
fi
echo "every intrinsic of $binary is an instruction"
