#!/usr/bin/env bash
# Builds the C library and installs it: install.sh PREFIX. With DESTDIR, under that folder, as packagers need it.
# What cargo builds with can be changed as always: CARGO, CARGO_TARGET_DIR, RUSTFLAGS; panics have to unwind.
set -euo pipefail

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[ $# = 1 ] || fail "usage: install.sh PREFIX"
case $1 in
    /*) prefix=$1 ;;
    *) fail "PREFIX has to be an absolute path: $1" ;;
esac
here=$(cd "$(dirname "$0")" && pwd)
# Paths are those of the caller, and not of the folder that cargo runs in.
absolute() {
    case $1 in
        '' | /*) printf '%s' "$1" ;;
        *) printf '%s' "$PWD/$1" ;;
    esac
}
cargo=${CARGO:-cargo}
case $cargo in */*) cargo=$(absolute "$cargo") ;; esac
[ -z "${CARGO_TARGET_DIR:-}" ] || export CARGO_TARGET_DIR="$(absolute "$CARGO_TARGET_DIR")"
[ -z "${CARGO_BUILD_TARGET_DIR:-}" ] || export CARGO_BUILD_TARGET_DIR="$(absolute "$CARGO_BUILD_TARGET_DIR")"
root=$(absolute "${DESTDIR:-}")
lib=$root$prefix/lib
include=$root$prefix/include

cd "$here"
abi=$(sed -n 's/^pub const XENT_ABI_VERSION: u32 = \([0-9]*\);$/\1/p' src/version.rs)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
[ -n "$abi" ] && [ -n "$version" ] || fail "no version found in the source"

log=$(mktemp)
messages=$(mktemp)
trap 'rm -f "$log" "$messages"' EXIT
# With what to link the static library is said by the compiler when it makes one.
if ! "$cargo" rustc --locked --release --lib -p xent-c --color never --message-format=json-render-diagnostics \
    -- --print native-static-libs 2>"$log" >"$messages"; then
    cat "$log" >&2
    fail "cargo could not build the library"
fi
native=$(sed -n 's/.*native-static-libs: //p' "$log" | tail -1)
[ -n "$native" ] || fail "the compiler did not say which libraries a static one needs"
# Where the libraries are, and of which system, is for cargo to say: a target may be set in its configuration too.
artefact() {
    grep '"reason":"compiler-artifact"' "$messages" | grep -o "\"[^\"]*/libxent_c\.$1\"" | tail -1 | tr -d '"'
}
static=$(artefact a) || fail "cargo did not say where the static library is"
if shared=$(artefact so); then
    named=libxent_c.so.$abi link=libxent_c.so
elif shared=$(artefact dylib); then
    named=libxent_c.$abi.dylib link=libxent_c.dylib
else
    fail "cargo made neither libxent_c.so nor libxent_c.dylib: this target has no shared libraries of these kinds"
fi

install -d "$lib/pkgconfig" "$include"
install -m 644 include/xent.h include/xent.hpp "$include/"
install -m 644 "$static" "$lib/"
install -m 755 "$shared" "$lib/$named"
ln -sf "$named" "$lib/$link"
# What means something to sed is to be what it is in a path.
escaped=$(printf '%s' "$prefix" | sed 's/[\\&|]/\\&/g')
sed -e "s|@PREFIX@|$escaped|" -e "s|@VERSION@|$version|" -e "s|@NATIVE_LIBS@|$native|" xent.pc.in \
    >"$lib/pkgconfig/xent.pc"
chmod 644 "$lib/pkgconfig/xent.pc"
echo "xent $version is installed in $root$prefix"
