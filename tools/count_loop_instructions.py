"""Counts the instructions of loops with dot products in compiled Arm code (csrc/kernels/README.md).

    aarch64-linux-gnu-gcc -O3 -std=c11 -ffp-contract=off -fno-math-errno -Icsrc -c csrc/isa/neon_i8mm.c
    python tools/count_loop_instructions.py neon_i8mm.o 'gemm_(plain|two_scales)$|gemv_Q4_K$'

A loop is what lies between a branch and the earlier address that it jumps to. `--joined` takes a file as one
function: hand-written assembly whose labels are symbols.
"""

import argparse
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

DOT = ("smmla", "sdot")
FUNCTION = re.compile(r"[0-9a-f]+ <(.*)>:")
INSTRUCTION = re.compile(r"\s*([0-9a-f]+):\s+(\S+)\s*(.*)")
BRANCH = re.compile(r"(b|b\..*|cbn?z|tbn?z)$")
TARGET = re.compile(r"([0-9a-f]+) <")


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str


def functions(listing: str) -> Iterator[tuple[str, list[Instruction]]]:
    """Each function of objdump's listing and its instructions."""
    name, body = "", []
    for line in listing.splitlines():
        if head := FUNCTION.match(line):
            if body:
                yield name, body
            name, body = head[1], []
        elif found := INSTRUCTION.match(line):
            body.append(Instruction(int(found[1], 16), found[2], found[3]))
    if body:
        yield name, body


def loops(body: list[Instruction]) -> list[list[Instruction]]:
    """The instructions of every loop, in the order of their first ones."""
    index = {instruction.address: i for i, instruction in enumerate(body)}
    spans = set()
    for i, instruction in enumerate(body):
        target = BRANCH.match(instruction.name) and TARGET.search(instruction.operands)
        if target and index.get(int(target[1], 16), i + 1) <= i:
            spans.add((index[int(target[1], 16)], i))
    return [body[first : last + 1] for first, last in sorted(spans)]


def kind(instruction: Instruction) -> str:
    """A coarse class: dot product, load, store, prefetch, vector or scalar."""
    name = instruction.name
    if name in DOT:
        return name
    if name == "prfm":
        return "prefetch"
    if name.startswith(("ld", "st")):
        return "load" if name.startswith("ld") else "store"
    return "vector" if re.match(r"[vqds]\d", instruction.operands) else "scalar"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("object", help="an object file for aarch64")
    parser.add_argument("functions", nargs="?", default=".", help="a regular expression of function names")
    parser.add_argument("--joined", action="store_true", help="all functions of the file are one")
    parser.add_argument("--objdump", default="aarch64-linux-gnu-objdump")
    options = parser.parse_args()
    command = [options.objdump, "-d", "--no-show-raw-insn", options.object]
    found = list(functions(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    if options.joined:
        found = [(options.object, [instruction for _, body in found for instruction in body])]
    for name, body in found:
        for loop in loops(body) if options.joined or re.search(options.functions, name) else []:
            kinds = Counter(map(kind, loop))
            if any(kinds[dot] for dot in DOT):
                print(f"{name} {loop[0].address:#x}: {len(loop)}", dict(kinds.most_common()))


if __name__ == "__main__":
    main()
