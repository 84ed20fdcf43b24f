"""The house itself: imports go one way, files and functions are short, every module has a test that names it.

A test module names a module of the package by importing it, or in its docstring, by its path below
`pyllamacpu/` ("Covers cli/pull.py, cli/list.py.").
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pyllamacpu"

# Each package imports from those before it only. A new one finds its place here.
ORDER = (
    "_native", "errors", "units", "files", "progress", "forks", "limits", "topology", "native", "gguf",
    "store", "text", "images", "sampling", "model", "weights", "graph", "engine", "evaluate", "quantize",
    "convert", "bench", "api", "llama_cpp", "safety", "server", "cli",
    "__main__",
)  # fmt: skip
TOP_LEVEL = {
    "pyproject.toml", "setup.py", "csrc", "pyllamacpu", "tools", "tests", "benchmarks",
    "README.md", "LICENSE", "CHANGELOG.md",
}  # fmt: skip
MADE = {".whl", ".so", ".o", ".pyc", ".gz", ".zip"}  # by tools, or by others: nothing of ours
MAX_FILE = 500  # lines
MAX_FUNCTION = 60  # lines


def module_name(path: Path) -> str:
    """`pyllamacpu.text.bpe` for text/bpe.py; a package for its __init__.py."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TESTS = sorted((ROOT / "tests").glob("test_*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(nodes: Iterable[ast.AST], typing: bool) -> Iterator[str]:
    """The modules that code imports, also inside functions; those for type checkers only with `typing`."""
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not typing:
            yield from imports(node.orelse, typing)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "pyllamacpu." * node.level + (node.module or "")  # only native.py has a relative one
            names = [f"{module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else module for name in names)
        parts = ("body", "orelse", "finalbody", "handlers", "cases")  # of statements; no expression imports
        yield from imports((child for part in parts for child in getattr(node, part, ())), typing)


@cache
def imports_of(path: Path, typing: bool = True) -> frozenset[str]:
    found = imports([tree_of(path)], typing)
    return frozenset(name for name in found if name.split(".")[0] == "pyllamacpu")


def find_circle(edges: Mapping[str, Iterable[str]]) -> list[str]:
    """Names that lead back to the first of them, or none."""
    done: set[str] = set()

    def visit(name: str, trail: list[str]) -> list[str]:
        if name in trail:
            return [*trail[trail.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges.get(name, ())):
            if circle := visit(other, [*trail, name]):
                return circle
        done.add(name)
        return []

    return next((circle for name in sorted(edges) if (circle := visit(name, []))), [])


def test_no_circle_of_imports() -> None:
    """Between files, also inside functions and for type hints. (An __init__ may import its modules only.)"""
    edges = {name: imports_of(path) - {name} for name, path in MODULES.items()}
    del edges["pyllamacpu"]  # the front door: `__version__` and the `Llama` class, made when first asked for
    assert find_circle(edges) == []


def functions_of(sources: Mapping[str, str]) -> dict[str, str]:
    """Which C file defines a function that others may call (its name begins with pl_)."""
    pattern = re.compile(r"^(?!static|typedef|extern)\w[\w *]*?\b(pl_\w+)\([^;{]*\)\s*\{", re.M)
    return {name: file for file, text in sources.items() for name in pattern.findall(text)}


def calls_between(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """The C files whose functions a C file names."""
    home = functions_of(sources)
    return {
        file: {home[name] for name in re.findall(r"\bpl_\w+", text) if name in home} - {file}
        for file, text in sources.items()
    }


def test_no_circle_of_calls_in_c() -> None:
    """But for tables of functions (op_table.c), which others read as data."""
    files = sorted((ROOT / "csrc").rglob("*.c"))
    sources = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in files}
    edges = calls_between(sources)
    assert sum(map(len, edges.values())) > 50  # the pattern still finds functions
    assert find_circle(edges) == []


def test_circles_of_calls_are_found() -> None:
    a = "int pl_a(int n)\n{\n    return pl_b(n);\n}\n"
    b = "static int pl_c(void) { return 1; }\nvoid *pl_b(int n,\n           int m)\n{\n}\n"
    assert calls_between({"a.c": a, "b.c": b}) == {"a.c": {"b.c"}, "b.c": set()}
    assert find_circle(calls_between({"a.c": a, "b.c": b.replace("return 1", "return pl_a(1)")})) != []


def test_circles_are_found() -> None:
    assert find_circle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c", "b"]
    assert find_circle({"a": ["b", "c"], "b": ["c"], "c": []}) == []
    code = (
        "def f():\n    from pyllamacpu.text import bpe\nif TYPE_CHECKING:\n    import pyllamacpu.cli.main\n"
    )
    tree = ast.parse(code)
    assert set(imports([tree], typing=False)) == {"pyllamacpu.text.bpe"}
    assert set(imports([tree], typing=True)) == {"pyllamacpu.text.bpe", "pyllamacpu.cli.main"}


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    """Along ORDER; what a file imports for its type hints only may lie anywhere."""
    parts = name.split(".")
    if len(parts) == 1:
        return  # the front door
    assert parts[1] in ORDER, f"{parts[1]} has no place in ORDER"
    place = ORDER.index(parts[1])
    others = {other for other in imports_of(MODULES[name], typing=False) if other != "pyllamacpu"}
    upward = {other for other in others if ORDER.index(other.split(".")[1]) > place}
    assert not upward


def test_only_one_module_imports_the_extension() -> None:
    found = {name for name, path in MODULES.items() if "pyllamacpu._native" in imports_of(path)}
    assert found == {"pyllamacpu.native"}


def test_the_top_level_holds_what_its_rooms_are_for() -> None:
    git = shutil.which("git")
    if not git or not (ROOT / ".git").exists():
        pytest.skip("no git, or not a repository: what is tracked is not known")
    command = [git, "-c", "safe.directory=*", "ls-files", "-z"]  # whoever the folder belongs to
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    files = [name for name in listed.split("\0") if name]
    top = {name.split("/")[0] for name in files}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL
    assert [name for name in files if Path(name).suffix in MADE] == []


def test_files_in_c_are_short() -> None:
    sources = [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix in {".c", ".h", ".inc", ".def"}]
    assert len(sources) > 100
    assert {path.name for path in sources if len(path.read_bytes().splitlines()) > MAX_FILE} == set()


def test_the_build_names_all_that_it_reads() -> None:
    """setuptools puts that, and nothing else of csrc/, into a source distribution."""
    build = runpy.run_path(str(ROOT / "csrc" / "build_cffi.py"))
    named = {*build["sources"](), *build["depends"]()}
    files = [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix not in {".md", ".pyc"}]
    assert named == {str(path.relative_to(ROOT)) for path in files}


@pytest.mark.skipif(sys.platform == "win32", reason="flags of gcc and clang; cl has no such ones")
def test_flags_of_pythons_own_that_slow_kernels_are_taken_back(tmp_path: Path) -> None:
    """setup.py compiles with Python's own flags and then those of the package: the last one counts."""
    slow, told, compiler = ("-fwrapv", "-fstack-clash-protection"), tmp_path / "told", tmp_path / "cc"
    compiler.write_text(f"echo \"$*\" >> '{told}'; exit 1\n")  # nothing is built
    folders = ["--build-temp", str(tmp_path), "--build-lib", str(tmp_path)]
    environment = {**os.environ, "CC": f"sh {compiler}", "CFLAGS": " ".join(slow)}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--force", *folders]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode != 0 and told.exists(), done.stderr
    for line in told.read_text().splitlines():
        words = line.split()
        for flag in slow:
            back = words.index(flag.replace("-f", "-fno-", 1))
            assert back > max(i for i, word in enumerate(words) if word == flag)
        wanted = "-O1" if line.count("scalar.c") else "-O3"
        assert [word for word in words if word.startswith("-O")][-1] == wanted


@pytest.mark.parametrize("name", MODULES)
def test_files_and_functions_are_short(name: str) -> None:
    path = MODULES[name]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE
    functions = [
        node for node in ast.walk(tree_of(path)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    long = {node.name for node in functions if (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION}
    assert long == set()


@cache
def named_by_tests() -> frozenset[str]:
    """The modules that test modules import, and paths that their docstrings have."""
    names: set[str] = set()
    for path in TESTS:
        names |= imports_of(path)
        names.update(re.findall(r"[\w/]+\.py\b", ast.get_docstring(tree_of(path)) or ""))
    return frozenset(names)


@pytest.mark.parametrize("name", [name for name, path in MODULES.items() if path.name != "__init__.py"])
def test_every_module_is_named_by_a_test_module(name: str) -> None:
    relative = MODULES[name].relative_to(PACKAGE).as_posix()
    assert {name, relative} & named_by_tests(), (
        f"no tests/test_*.py imports {name}; write one, or say in the docstring of the one that runs it: "
        f"Covers {relative}."
    )


def test_docstrings_of_tests_name_modules_that_exist() -> None:
    """ "Covers x.py" goes stale when x.py moves."""
    there = {path.relative_to(PACKAGE).as_posix() for path in MODULES.values()}
    for path in TESTS:
        text = ast.get_docstring(tree_of(path)) or ""
        covered = re.findall(r"Covers ([^.]*\.py(?:[^.]*\.py)*)\.", text)
        named = {file for found in covered for file in re.findall(r"[\w/]+\.py\b", found)}
        assert named <= there, f"{path.name} names {sorted(named - there)}"


def test_c_names_files_that_exist() -> None:
    """In comments and READMEs of csrc/: such names go stale when a file moves."""
    files = [path for path in (ROOT / "csrc").rglob("*.*") if path.suffix != ".pyc"]
    there = {path.name for path in (*files, *(ROOT / "tests" / "csrc").rglob("*.*"))}
    found: dict[str, str] = {}
    for path in files:
        text = re.sub(r"#include <.*>", "", path.read_text(encoding="utf-8"))
        found |= dict.fromkeys(re.findall(r"\b\w+\.(?:c|h|inc|def)\b", text), path.name)
    assert len(found) > 50
    assert {name: path for name, path in found.items() if name not in there} == {}


def test_links_of_readmes_lead_somewhere() -> None:
    pages = [path for path in ROOT.rglob("*.md") if "build" not in path.parts]
    links = [
        (page, link) for page in pages for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    ]
    inner = [(page, link) for page, link in links if "://" not in link]
    assert len(inner) > 5
    for page, link in inner:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{page.name}: {link}"
        titles = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.M) if heading else []
        anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
        assert not heading or heading in anchors, f"{page.name}: {link}"
