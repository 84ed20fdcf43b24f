#!/bin/sh
# Builds and runs the checks of the kernels: natively with every compiler at hand, under the address and undefined-
# behaviour sanitizers, and for Arm under qemu-user. A missing tool is reported; with CI=true it is a failure.
#
#   run.sh [--quick] [--seed N]     (options go to the check program; the sanitizer and qemu runs are always quick)
#   CC, CLANG, AARCH64_CC, QEMU_AARCH64 name the tools; BUILD the directory for objects (default: a temporary one).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
csrc=$here/../../csrc
CC=${CC:-cc} CLANG=${CLANG:-clang} AARCH64_CC=${AARCH64_CC:-aarch64-linux-gnu-gcc} QEMU_AARCH64=${QEMU_AARCH64:-qemu-aarch64}
warnings="-I$csrc -std=c11 -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno"
sources="$here/*.c $csrc/isa/*.c"
while read -r name; do # the library's files that need neither threads nor a model
    sources="$sources $csrc/$name"
done < "$here/sources.txt"
skipped=0

if [ -z "${BUILD:-}" ]; then
    BUILD=$(mktemp -d)
    trap 'rm -rf "$BUILD"' EXIT
fi

have() { # tool, what is skipped without it
    command -v "$1" > /dev/null 2>&1 && return 0
    echo "SKIPPED: $2 ($1 is not installed)"
    skipped=1
    return 1
}

build() { # name, compiler, flags…: two compilations at a time, one program
    name=$1 compiler=$2
    shift 2
    mkdir -p "$BUILD/$name"
    # shellcheck disable=SC2086
    printf '%s\n' $sources | xargs -P 2 -I SOURCE sh -c \
        'object=$1/$(basename "$2" .c).o; compiler=$3; shift 3; "$compiler" "$@" -c "$0" -o "$object"' \
        SOURCE "$BUILD/$name" SOURCE "$compiler" $warnings "$@"
    "$compiler" "$@" "$BUILD/$name"/*.o -o "$BUILD/$name/check" -lm
}

echo "== native, $CC -O3"
build native "$CC" -O3
"$BUILD/native/check" "$@"

if have "$CLANG" "native with clang"; then
    echo "== native, $CLANG -O2"
    build clang "$CLANG" -O2
    "$BUILD/clang/check" --quick "$@"
fi

echo "== address and undefined-behaviour sanitizers"
if printf 'int main(void) { return 0; }\n' | "$CC" -x c - -fsanitize=address,undefined -o "$BUILD/probe" 2> /dev/null; then
    build sanitize "$CC" -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
    "$BUILD/sanitize/check" --quick "$@"
else
    have "the sanitizers of $CC" "the sanitizer run" || true
fi

if have "$AARCH64_CC" "the Arm tiers" && have "$QEMU_AARCH64" "the Arm tiers"; then
    echo "== aarch64, $AARCH64_CC -O2, static, under $QEMU_AARCH64"
    build aarch64 "$AARCH64_CC" -O2 -static
    "$QEMU_AARCH64" -cpu max "$BUILD/aarch64/check" --quick "$@"
    # CPUs without dot products, then without i8mm: the tiers found must be theirs, and must run there.
    for cpu in "cortex-a53: scalar neon;" "neoverse-n1: scalar neon neon_dotprod;"; do
        echo "== aarch64 as ${cpu%%:*}"
        "$QEMU_AARCH64" -cpu "${cpu%%:*}" "$BUILD/aarch64/check" --quick "$@" > "$BUILD/log" || { cat "$BUILD/log"; exit 1; }
        grep "^tiers:${cpu#*:}" "$BUILD/log" || { echo "expected tiers:${cpu#*:} but"; grep "^tiers:" "$BUILD/log"; exit 1; }
    done
fi

if [ "$skipped" = 1 ] && [ "${CI:-}" = true ]; then
    echo "with CI=true every part must run" >&2
    exit 1
fi
