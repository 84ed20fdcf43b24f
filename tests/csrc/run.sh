#!/bin/sh
# Builds and runs the checks of the kernels: natively with every compiler at hand, under the address and undefined-
# behaviour sanitizers, the x86 tiers that this CPU lacks with their instructions replaced by AVX2's, and for Arm under
# qemu-user. A missing tool is reported; with CI=true it is a failure, and all x86 tiers are emulated.
#
#   run.sh [--quick] [--seed N]     (options go to the check program; all but the native run of CC are always quick)
#   CC, CLANG, AARCH64_CC, QEMU_AARCH64 name the tools; BUILD the directory for objects (default: a temporary one);
#   OBJECTS a build of the extension with CC (build/temp…), whose objects are then checked in place of new ones.
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

compile() { # name, compiler, flags…: the files that stdin names, two at a time
    directory=$BUILD/$1
    shift
    mkdir -p "$directory"
    # shellcheck disable=SC2016
    xargs -P 2 -I SOURCE sh -c 'object=$1/$(basename "$0" .c).o; shift; "$@" -c "$0" -o "$object"' SOURCE "$directory" "$@"
}

made_before() { # name of a program, source: an object that it can take as it is, if there is one
    case $1 in
        native) [ -z "${OBJECTS:-}" ] || echo "$OBJECTS/csrc/${2#"$csrc"/}" | sed 's/c$/o/' ;;
        sanitize) # tiers that this CPU lacks do not run
            for tier in $tiers; do
                [ "$2" != "$csrc/isa/$tier.c" ] || echo "$BUILD/native/$tier.o"
            done
            ;;
    esac
}

to_compile() { # name of a program: its files but those that were made before, whose objects are copied
    mkdir -p "$BUILD/$1"
    for source in $sources; do
        object=$(made_before "$1" "$source")
        if [ -e "$object" ]; then cp "$object" "$BUILD/$1/"; else echo "$source"; fi
    done
}

build() { # name, compiler, flags…: one program
    name=$1 compiler=$2
    shift 2
    # shellcheck disable=SC2086
    to_compile "$name" | compile "$name" "$compiler" $warnings "$@"
    "$compiler" "$@" "$BUILD/$name"/*.o -o "$BUILD/$name/check" -lm
}

newer() { # the x86 tiers above AVX2, where AVX2 can emulate them
    case $has in *avx2*) echo avxvnni avx512 avx512vbmi ;; esac
}

lacking() { # those that this CPU does not have
    for tier in $(newer); do
        case " $has " in *" $tier "*) ;; *) echo "$tier" ;; esac
    done
}

build_emulated() { # compiler, the build whose other objects are taken, tiers: see emulated/intrinsics.h
    compiler=$1 from=$2
    shift 2
    mkdir -p "$BUILD/emulated"
    set -- "$@" cpu
    objects=$(find "$BUILD/$from" -name '*.o')
    renamed='s/_mm512_/emulated_/g; s/__m512/emulated_m512/g; s/_mm256_\(dp[a-z]*\)_avx_/emulated_\1_avx_/g'
    sed "$renamed" "$csrc/isa/x86_512.h" > "$BUILD/emulated/x86_512.h"
    for file; do
        objects=$(printf '%s\n' "$objects" | grep -v "/$file.o\$")
        [ "$file" != cpu ] || continue
        {
            printf '#include "emulated/intrinsics.h"\n#line 1 "csrc/isa/%s.c"\n' "$file"
            sed "$renamed"'; s/^PL_TARGET_BEGIN(.*)/PL_TARGET_BEGIN("avx2,fma,f16c")/' "$csrc/isa/$file.c"
        } > "$BUILD/emulated/$file.c"
    done
    # shellcheck disable=SC2086
    printf '%s\n' "$BUILD"/emulated/*.c "$here/emulated/cpu.c" |
        compile emulated "$compiler" $warnings "-I$csrc/isa" "-I$here" -O1
    # shellcheck disable=SC2086
    "$compiler" "$BUILD"/emulated/*.o $objects -o "$BUILD/emulated/check" -lm
}

start() { # title, command…: a check program runs while the next one is built; `finish` shows what it wrote
    n_started=$((n_started + 1))
    log=$BUILD/$n_started.log
    echo "== $1" > "$log"
    shift
    { "$@" >> "$log" 2>&1 || echo "failed with exit code $?" >> "$log"; } &
}

finish() { # every log in order; fails when a check did
    wait
    for n in $(seq "$n_started"); do
        cat "$BUILD/$n.log"
    done
    for n in $(seq "$n_started"); do
        ! grep -q "^failed with exit code" "$BUILD/$n.log" || { head -n 1 "$BUILD/$n.log"; return 1; }
    done
}

emulated() { # CPU, the tiers that must be found; the newest of them is checked there, each older one on its own CPU
    out=$BUILD/$1.out
    "$QEMU_AARCH64" -cpu "$1" "$BUILD/aarch64/check" --quick --newest $options > "$out" || { cat "$out"; return 1; }
    grep -qx "this CPU has: $2" "$out" || { echo "expected: $2"; cat "$out"; return 1; }
    grep -q "^tiers: scalar ${2##* };" "$out" || { echo "not checked: ${2##* }"; cat "$out"; return 1; }
    cat "$out"
}

n_started=0 options="$*"

build native "$CC" -O3
start "native, $CC -O3" "$BUILD/native/check" "$@"

if have "$CLANG" "native with clang"; then
    build clang "$CLANG" -O2
    start "native, $CLANG -O2" "$BUILD/clang/check" --quick "$@"
fi

has=$("$BUILD/native/check" --newest --only distribution | sed -n 's/^this CPU has://p')
tiers=$(lacking) emulated=$tiers
[ "${CI:-}" != true ] || emulated=$(newer) # or nothing would show here that other CPUs cannot compile them
if [ -n "$emulated" ]; then # clang takes half of gcc's time for them
    # shellcheck disable=SC2086
    if [ -d "$BUILD/clang" ]; then build_emulated "$CLANG" clang $emulated; else build_emulated "$CC" native $emulated; fi
    for tier in $emulated; do
        start "$tier, emulated by AVX2" "$BUILD/emulated/check" --quick --tier "$tier" "$@"
    done
fi

calls="--param asan-instrumentation-with-call-threshold=0"
"$CC" --version | grep -q clang && calls=
if printf 'int main(void) { return 0; }\n' | "$CC" -x c - -fsanitize=address,undefined -o "$BUILD/probe" 2> /dev/null; then
    # Lines but no variables for the debugger, and the address checks as calls: gcc takes half the time.
    build sanitize "$CC" -O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all $calls
    start "address and undefined-behaviour sanitizers" "$BUILD/sanitize/check" --quick "$@"
else
    have "the sanitizers of $CC" "the sanitizer run" || true
fi

if have "$AARCH64_CC" "the Arm tiers" && have "$QEMU_AARCH64" "the Arm tiers"; then
    build aarch64 "$AARCH64_CC" -O2 -static
    # CPUs without dot products, then without i8mm, then with all.
    start "aarch64 as cortex-a53 under $QEMU_AARCH64" emulated cortex-a53 "scalar neon"
    start "aarch64 as neoverse-n1" emulated neoverse-n1 "scalar neon neon_dotprod"
    start "aarch64 as max" emulated max "scalar neon neon_dotprod neon_i8mm"
fi

finish || { echo "failed" >&2; exit 1; }
if [ "$skipped" = 1 ] && [ "${CI:-}" = true ]; then
    echo "with CI=true every part must run" >&2
    exit 1
fi
