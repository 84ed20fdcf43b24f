"""The kernels: their C checks, built and run here, and the choice of a tier by `PYLLAMACPU_ISA`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyllamacpu import native
from pyllamacpu.limits import cpus_usable

ROOT = Path(__file__).resolve().parent.parent
ALL_TIERS = native.isa_names(available=False)
TIERS = native.isa_names()
CHECK_SOURCES = (
    *sorted((ROOT / "tests" / "csrc").glob("*.c")),
    *sorted((ROOT / "csrc" / "isa").glob("*.c")),
    *(ROOT / "csrc" / name for name in (ROOT / "tests" / "csrc" / "sources.txt").read_text().split()),
)


@pytest.fixture(scope="module")
def check_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The check program of tests/csrc, built with the machine's C compiler: once for all workers."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if sys.platform == "win32" or not compiler or not (ROOT / "tests" / "csrc").is_dir():
        pytest.skip("needs a source tree and a C compiler")
    import fcntl  # here: Windows has none

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "check_program"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "check").exists():
            build_check_program(compiler.split(), folder)
    return folder / "check"


def build_check_program(compiler: list[str], folder: Path) -> None:
    """Compiled file by file, as many at once as there are CPUs; a compiler cache can know each of them."""
    flags = [f"-I{ROOT / 'csrc'}", "-std=c11", "-O1", "-ffp-contract=off", "-fno-math-errno"]
    made = objects_of_the_extension()
    sources = [source for source in CHECK_SOURCES if source not in made]
    objects = [folder / f"{i}.o" for i in range(len(sources))]

    def compile_one(source: Path, target: Path) -> None:
        done = run([*compiler, *flags, "-c", str(source), "-o", str(target)], 240)
        assert done.returncode == 0, done.stderr

    with ThreadPoolExecutor(cpus_usable()) as pool:
        list(pool.map(compile_one, sources, objects))
    done = run([*compiler, *map(str, [*objects, *made.values()]), "-o", str(folder / "check"), "-lm"], 240)
    assert done.returncode == 0, done.stderr


def objects_of_the_extension() -> dict[Path, Path]:
    """Of C files: what the extension was linked from, where a build in this tree left it and no C file has
    changed since. Then the very kernels that Python calls are checked, and need not be compiled again.
    """
    csrc = ROOT / "csrc"
    newest = max(path.stat().st_mtime for end in ("c", "h", "inc", "def") for path in csrc.rglob(f"*.{end}"))
    for folder in (ROOT / "build").glob("temp*/csrc"):
        places = (source.relative_to(csrc) for source in CHECK_SOURCES if csrc in source.parents)
        found = {csrc / place: folder / place.with_suffix(".o") for place in places}
        if all(path.exists() and path.stat().st_mtime > newest for path in found.values()):
            return found
    return {}


def run(
    command: list[str], seconds: float, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds, env=environment, cwd=ROOT
    )


def run_check(program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return run([str(program), *options], 240)


def test_every_kernel_of_every_tier_passes_its_checks(check_program: Path) -> None:
    done = run_check(check_program, "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    ran = next(line for line in done.stdout.splitlines() if line.startswith("tiers:"))
    assert ran.removeprefix("tiers:").split(";")[0].split() == TIERS
    parts = ("elementwise", "sampling", "kv", "attention", "matmul", "int16", "position_softmax")
    for part in parts:
        assert any(line.startswith(part) and line.endswith(": ok") for line in done.stdout.splitlines()), part


@pytest.mark.parametrize("options", [["--only", "nonsense"], ["--tier", "nonsense"], ["--nonsense"]])
def test_the_check_program_refuses_to_check_nothing(check_program: Path, options: list[str]) -> None:
    assert run_check(check_program, *options).returncode == 2


def select(name: str | None) -> subprocess.CompletedProcess[str]:
    """A new process that prints the tier it uses, with PYLLAMACPU_ISA set to `name` (None: unset)."""
    environment = {k: v for k, v in os.environ.items() if k != native.ISA_VARIABLE}
    if name is not None:
        environment[native.ISA_VARIABLE] = name
    code = "from pyllamacpu.native import isa_selected; print(isa_selected())"
    return run([sys.executable, "-c", code], 60, environment)


def test_scalar_is_in_every_build_and_on_every_cpu() -> None:
    assert ALL_TIERS[0] == TIERS[0] == "scalar"
    assert set(TIERS) <= set(ALL_TIERS)


@pytest.mark.parametrize("name", TIERS)
def test_an_available_tier_can_be_forced(name: str) -> None:
    done = select(name)
    assert (done.returncode, done.stdout.strip()) == (0, name), done.stderr


@pytest.mark.parametrize("unset", [None, ""])
def test_the_fastest_available_tier_is_the_default(unset: str | None) -> None:
    assert select(unset).stdout.strip() == TIERS[-1]


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "scalar ", "../scalar"])
def test_an_unknown_tier_is_an_error_that_lists_the_tiers(name: str) -> None:
    done = select(name)
    assert done.returncode != 0
    assert f"PYLLAMACPU_ISA={name}: no such tier" in done.stderr
    assert ", ".join(ALL_TIERS) in done.stderr


@pytest.mark.parametrize("name", sorted(set(ALL_TIERS) - set(TIERS)) or [None])
def test_a_tier_that_this_cpu_lacks_is_an_error(name: str | None) -> None:
    if name is None:
        pytest.skip("this CPU has every tier of the build")
    done = select(name)
    assert done.returncode != 0
    assert f"PYLLAMACPU_ISA={name}: this CPU lacks that tier; it has {', '.join(TIERS)}" in done.stderr


def test_selecting_in_process_reports_unknown_and_unavailable_names() -> None:
    before = native.isa_selected()
    assert native.lib.pl_isa_select(b"avx1024") == native.lib.PL_EINVAL
    for name in set(ALL_TIERS) - set(TIERS):
        assert native.lib.pl_isa_select(name.encode()) == native.lib.PL_EUNSUPPORTED
    assert native.lib.pl_isa_select(before.encode()) == ALL_TIERS.index(before)


def test_what_newer_tiers_need_is_emulated() -> None:
    """Without CI=true, emulated tiers are compiled on CPUs that lack them alone: nobody would miss one."""
    used, emulated = set(), (ROOT / "tests" / "csrc" / "emulated" / "intrinsics.h").read_text()
    for name in ("avxvnni.c", "avx512.c", "avx512vbmi.c", "x86_512.h"):
        text = (ROOT / "csrc" / "isa" / name).read_text()
        used |= set(re.findall(r"\b_mm512_(\w+)|\b_mm256_(dp[a-z]*_avx_\w+)", text))
        if "512" in name:  # registers are pairs of them there, which no assembly takes
            assert re.findall(r'__asm__\(.*"[+=]?[xv]"', text) == []
    names = {wide or narrow for wide, narrow in used}
    assert len(names) > 50
    assert sorted(name for name in names if not re.search(rf"\b(emulated_)?{name}\b", emulated)) == []
