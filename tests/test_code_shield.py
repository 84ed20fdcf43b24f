"""Code Shield: Python's rules against semgrep's own findings, the other rules, hostile text, the command.

Covers safety/code_shield/issues.py, safety/code_shield/rules.py, safety/code_shield/code_text.py,
safety/code_shield/regex_scan.py, safety/code_shield/python_code.py, safety/code_shield/python_names.py,
safety/code_shield/python_patterns.py, safety/code_shield/python_scan.py, safety/code_shield/semgrep_scan.py,
safety/code_shield/scan.py, cli/code_shield.py.
"""

# ruff: noqa: F811 (fixtures are imported and then used as arguments)

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import regex
from cli_letters import Result, run  # noqa: F401

from pyllamacpu.errors import OptionError
from pyllamacpu.safety import CodeShield, CodeShieldScanResult, Treatment
from pyllamacpu.safety.code_shield import python_code, regex_scan
from pyllamacpu.safety.code_shield.code_text import code_parts
from pyllamacpu.safety.code_shield.issues import Analyzer, Language
from pyllamacpu.safety.code_shield.python_scan import scan_python
from pyllamacpu.safety.code_shield.rules import RULES_FILE, SCANNED, regex_rules, semgrep_rules
from pyllamacpu.safety.code_shield.scan import coverage

FIXTURES = Path(__file__).parent / "fixtures" / "code_shield"
SHIELD = CodeShield(semgrep=False)


def found(code: str, language: str | None = None, shield: CodeShield = SHIELD) -> list[str]:
    """The rules that find something, with the lines."""
    result = shield.scan(code, language)
    assert result.errors == ()
    return [f"{issue.line} {issue.pattern_id}" for issue in result.issues_found or ()]


def test_python_rules_find_what_semgrep_finds() -> None:
    """The same lines of every rule, of 44 findings in a file of traps (made by semgrep itself)."""
    code = (FIXTURES / "insecure.py.txt").read_text("utf-8")
    wanted = json.loads((FIXTURES / "semgrep.json").read_text("utf-8"))["found"]
    issues = scan_python(semgrep_rules(Language.PYTHON, "cyberseceval"), code, calls_too=True)
    assert sorted(f"{issue.line} {issue.pattern_id}" for issue in issues) == sorted(wanted)
    assert len(wanted) == 44 and all(issue.analyzer is Analyzer.AST for issue in issues)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("print eval(x)", ["1 insecure-eval-use"]),  # Python 2
        ("os.system(cmd", ["1 insecure-os-system-use"]),  # cut off
        ("def f(:\n    os.system(f'{x}')\n", ["2 insecure-os-system-use"]),
        (">>> import os\n>>> os.system(cmd)", ["2 insecure-os-system-use"]),
        ("    from os import system\n    system(cmd)", ["2 insecure-os-system-use"]),
        ("os.system('\\d')\x00; os.system(cmd)", ["1 insecure-os-system-use"]),
        (
            "x = [" + "1, " * 5000 + "]; os.system(cmd)",
            ["1 insecure-os-system-use"],
        ),  # too long for the parser
        ("# eval(x)\n'eval(x)'", []),
    ],
)
def test_python_with_faults(code: str, wanted: list[str]) -> None:
    assert found(code, "python") == wanted


def test_long_python_is_parsed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports of one part hold in the others; lines count from the beginning."""
    code = "from os import system as s\n" + "def f(x):\n    s(x)\n" * 20 + "try:\n    s(y)\nexcept E: pass"
    wanted = [f"{line} insecure-os-system-use" for line in (*range(3, 42, 2), 43)]
    assert found(code, "python") == wanted
    monkeypatch.setattr(python_code, "_MAX_PART", 100)
    assert found(code, "python") == wanted
    assert found("", "python") == [] == found("\n", "python")


def test_prose_is_not_code_and_fences_say_what_is() -> None:
    assert found("Never call eval(user_input) or os.system(cmd), it is dangerous.") == []
    answer = (
        "Use md5(x):\n```python\nimport os\nos.system(cmd)\n```\nThen `strcpy(a, b)`.\n~~~c\ngets(line);\n"
    )
    assert found(answer) == ["4 insecure-os-system-use", "8 bugprone-gets"]
    parts = code_parts(answer)
    assert [(part.language, part.first_line, part.is_prose) for part in parts] == [
        (None, 1, True),
        (Language.PYTHON, 3, False),
        (None, 6, True),
        (Language.C, 8, False),  # which nothing closes
    ]
    assert found("The key is AIza" + "a" * 35 + "\n```\nx\n```") == ["1 ALL-R-011"]


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ("> ```c\n> gets(b);\n> ```\n", "2 bugprone-gets"),
        (">> ```python\n>> import os\n>> os.system(x)\n>> ```\n", "3 insecure-os-system-use"),
        ("- ```c\n  gets(b);\n  ```\n", "2 bugprone-gets"),
        ("10) ```c\n    gets(b);\n    ```\n", "2 bugprone-gets"),
        ("> * ```c\n>   gets(b);\n>   ```\n", "2 bugprone-gets"),
        (" " * 16 + "```c\n" + " " * 16 + "gets(b);\n" + " " * 16 + "```\n", "2 bugprone-gets"),
        ("~~~c `x`\ngets(b);\n~~~\n", "2 bugprone-gets"),
        ("``` {.c}\ngets(b);\n```\n", "2 bugprone-gets"),
        *((f"{blank}```c\ngets(b);\n```\n", "2 bugprone-gets") for blank in "\ufeff\xa0\u200b\u2003\v"),
        *((f"```c\nint x;\n{line}\ngets(b);\n```\n", "4 bugprone-gets") for line in ("``` (", "```!")),
        *((f"```c\nint x;\n{line}\ngets(b);\n```\n", "4 bugprone-gets") for line in ("    ```", "> ```")),
        ("> ```c\n> int x;\n\n```\ngets(b);\n```\n", "5 bugprone-gets"),  # with the quote, the block ends
        ("```js\nlet x\n``` then\n```py\nimport os\nos.system(x)\n```\n", "6 insecure-os-system-use"),
    ],
)
def test_fences_wherever_they_stand(answer: str, wanted: str) -> None:
    """Code behind a fence that is not seen would be prose, as soon as the text has other fences."""
    assert found(answer) == [wanted]
    assert found(f"{answer}\nNever call gets(b).\n\n```text\nhi\n```\n> Nor gets(b).\n") == [wanted]


def test_a_block_ends_with_its_quote() -> None:
    assert found("> ```c\n> gets(a);\n\nNever call gets(b).\n") == ["2 bugprone-gets"]
    parts = code_parts("> ```c\n> gets(a);\nNever call gets(b).\n")
    assert [(part.text, part.is_prose, part.is_open) for part in parts] == [
        ("gets(a);\n", False, False),
        ("Never call gets(b).\n", True, True),
    ]
    assert [part.text for part in code_parts("> ```c\n> gets(a);\n>  x\n")] == ["gets(a);\n x\n"]


def test_code_in_arguments_of_tools() -> None:
    call = json.dumps({"name": "run", "arguments": {"code": 'import os\nos.system("ls " + name)'}})
    assert found(call) == ["2 insecure-os-system-use"]
    for said in ('{"code": "os.\\u0073ystem(cmd)"}', "<|python_tag|>os.system(cmd)"):
        assert found(said) == ["1 insecure-os-system-use"]
    for cut in ("", "\\", "\\u00", " + '"):  # an answer that ends within its call
        assert found('{"code": "import os\\nos.system(cmd)' + cut) == ["2 insecure-os-system-use"]
    assert found('"import os\\nos.system(cmd)\n') == []  # is not JSON


def test_two_rules_of_one_name_both_hold() -> None:
    shield = CodeShield("cyberseceval", semgrep=False)
    ids = [rule.id for rule in regex_rules(Language.RUST, "cyberseceval")]
    twice = next(name for name in ids if ids.count(name) == 2)
    assert found("let h = Md5::new();", "rust", shield)[0].endswith(twice)
    assert found("MessageDigest::md5()", "rust", shield) and len(found("gets(x);")) == 1


def test_severity_error_blocks_and_comments_do_not_count() -> None:
    assert SHIELD.scan("gets(line);", "c").recommended_treatment is Treatment.BLOCK
    assert SHIELD.scan("tmp = hashlib.md5()", "python").recommended_treatment is Treatment.WARN
    clean = SHIELD.scan("x = 1")
    assert clean == CodeShieldScanResult(False, None, Treatment.IGNORE)
    assert found("// gets(line);\n/* gets(line); */\n", "c") == []
    assert found("// gets(line);\n/* a */ gets(line);", "c") == ["2 bugprone-gets"]
    assert found("# sk_live_" + "a" * 24, "python") == ["1 ALL-R-013"]  # a secret is one in a comment too


def test_scan_code_has_the_shape_of_codeshield() -> None:
    result = asyncio.run(CodeShield.scan_code("hashlib.new('sha1')", Language.PYTHON))
    assert result.is_insecure and result.recommended_treatment == "warn"
    (issue,) = result.issues_found or ()
    assert json.loads(issue.to_json())["pattern_id"] == "insecure-hash-function-usage"
    with pytest.raises(OptionError, match="language='cobol'"):
        SHIELD.scan("x", "cobol")
    with pytest.raises(OptionError, match="give a text"):
        SHIELD.scan(b"x")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="codeshield or cyberseceval"):
        CodeShield("mine")  # type: ignore[arg-type]


def test_all_rules_are_there() -> None:
    """113 with regular expressions and 88 of semgrep's."""
    data = json.loads((Path(regex_scan.__file__).parent / "rules.json").read_text("utf-8"))
    assert sum(map(len, data["regex"].values())) == 113 and sum(map(len, data["semgrep"].values())) == 88
    for language in Language:
        for rule in regex_rules(language, "cyberseceval"):
            assert re.compile(rule.pattern.pattern).groups == rule.pattern.groups  # both read it
    assert len(semgrep_rules(Language.PYTHON, "codeshield")) == 10
    assert {row[0]: row[2] for row in coverage("codeshield", False)}["python"] == 0
    assert all(left == 0 for _, _, left in coverage("codeshield", True))


@pytest.mark.parametrize(
    "text",
    ["setcookie(" + ", " * 20_000, "(" * 100_000, "a+" * 50_000 + "a", "the cat, " * 20_000, "f(" * 20_000,
     '"' * 50_000, "-" * 100_000, "x: " * 20_000, "\n" * 100_000, "#\n" * 20_000,
     "eval(" * 3000 + ")" * 3000, '"' + '\\"' * 100_000 + "\n", "```" + "a" * 100_000 + "`",
     "```" + " " * 100_000 + "`", "```python\n" + "a" * 100_000 + " $\n",
     "```python\n" + "a." * 50_000 + " $", "\n".join(">" * i + "```c" for i in range(1000)),
     ">" * 100_000 + "```c\n" * 9, "- " * 50_000 + "x", "> ```c\n" + "> ```py x\n> y\n" * 20_000],
)  # fmt: skip
def test_hostile_texts_end_in_time(text: str) -> None:
    start = time.monotonic()
    CodeShield("cyberseceval", semgrep=False).scan(text)
    assert time.monotonic() - start < 20  # a second or two, on a machine of its own


def test_a_rule_that_takes_too_long_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex_scan, "RULE_SECONDS", 0.02)
    monkeypatch.setattr("pyllamacpu.safety.code_shield.scan.regex_rules", lambda *_: [slow])
    slow = type("Rule", (), {"pattern": regex.compile("(a+)+$"), "language": Language.C, "id": "slow"})
    result = SHIELD.scan("a" * 2000 + "b", "c")
    assert result.is_insecure and result.issues_found is None
    assert result.recommended_treatment is Treatment.BLOCK and "took more than" in result.errors[0]
    assert SHIELD.scan("x" * 1_000_001).recommended_treatment is Treatment.BLOCK


def test_time_of_other_threads_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """`regex` counts the processor time of all threads."""
    monkeypatch.setattr(regex_scan, "RULE_SECONDS", 0.05)
    stop = threading.Event()

    def spin() -> None:
        pattern = regex.compile("(a+)+$")
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                pattern.search("a" * 2000 + "b", timeout=0.1, concurrent=True)

    others = [threading.Thread(target=spin) for _ in range(8)]
    for thread in others:
        thread.start()
    try:
        assert regex_scan.search(regex.compile("ba*a*a*c"), "b" + "a" * 1000) is None  # 0.01 s of its own
    finally:
        stop.set()
        for thread in others:
            thread.join()


def fake_semgrep(tmp_path: Path, body: str) -> CodeShield:
    program = tmp_path / "semgrep"
    program.write_text(f"#!{sys.executable}\nimport json, sys\n{body}\n")
    program.chmod(0o755)
    return CodeShield(semgrep=str(program))


def test_other_languages_by_semgrep(tmp_path: Path) -> None:
    answer = (
        "files = [a for a in sys.argv if a.endswith('.js')]\n"
        "rules = json.load(open(sys.argv[sys.argv.index('--config') + 1]))['rules']\n"
        "assert 'exec' in open(files[0]).read() and all(rule['languages'] for rule in rules)\n"
        "print(json.dumps({'errors': [{'type': ['PartialParsing', []]}], 'results': [{'path': files[0],"
        " 'check_id': 'tmp.x.' + rules[0]['id'], 'start': {'line': 2, 'col': 3}}]}))"
    )
    shield = fake_semgrep(tmp_path, answer)
    code = "x\n```js\nconst cp = require('child_process');\ncp.exec(a);\n```"
    result = shield.scan(code)
    (issue,) = result.issues_found or ()
    assert (issue.line, issue.pattern_id, issue.analyzer) == (4, "child-process", Analyzer.SEMGREP)
    assert result.errors == result.not_covered == ()
    assert shield.scan("let x = 1", "javascript").errors == ()  # no rule can match: it is not started
    without = SHIELD.scan(code)
    assert not without.is_insecure and "javascript: child-process" in without.not_covered[0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("sys.exit('no core')", "ended with 1 and without results: no core"),
        ("print('[]')", "not an object"),
        ("print(json.dumps({'results': [{'path': 'x'}]}))", "results cannot be read"),
        ("print(json.dumps({'errors': None}))", "results cannot be read"),
        ("import os; os.fork() or __import__('time').sleep(60)", "did not end within"),  # holds the output
        ("print(json.dumps({'errors': [{'type': 'Fatal error', 'message': 'oops'}]}))", "semgrep: oops"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
)
def test_semgrep_fails_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str) -> None:
    monkeypatch.setattr("pyllamacpu.safety.code_shield.semgrep_scan.SECONDS", 1.0 if "sleep" in body else 30)
    result = fake_semgrep(tmp_path, body).scan("eval(x)", "javascript")
    assert result.is_insecure and result.recommended_treatment is Treatment.BLOCK
    assert words in result.errors[0]
    missing = CodeShield(semgrep=str(tmp_path / "none")).scan("eval(x)", "javascript")
    assert missing.recommended_treatment is Treatment.BLOCK


def test_semgrep_runs_once_for_all_and_what_it_found_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shield = fake_semgrep(
        tmp_path,
        f"open({str(log)!r}, 'a').write('run\\n')\n"
        "files = [a for a in sys.argv if a.endswith(('.js', '.php'))]\n"
        "rules = json.load(open(sys.argv[sys.argv.index('--config') + 1]))['rules']\n"
        "own = [rule['id'] for rule in rules if {'js', 'javascript'} & set(rule['languages'])]\n"
        "print(json.dumps({'results': [{'path': f, 'check_id': own[0], 'start': {'line': 1, 'col': 1}}"
        " for f in files if f.endswith('js')]}))",
    )
    code = "```js\nexec(a)\n```\n\n```php\nunserialize($x);\n```\n```js\nb(); exec(a)\n```"
    for text, n_runs in ((code, 1), (code, 1), (f"And:\n{code}", 1), (code.replace("b()", "c()"), 2)):
        issues = shield.scan(text).issues_found or ()
        found = [issue.line for issue in issues if issue.analyzer is Analyzer.SEMGREP]
        shift = text.count("And")
        assert found == [2 + shift, 9 + shift]
        assert log.read_text().count("run") == n_runs


def test_semgrep_is_not_asked_about_code_that_goes_on(tmp_path: Path) -> None:
    shield = fake_semgrep(tmp_path, "print(json.dumps({'results': []}))")
    for text, waits in (
        ("```js\nexec(a)\n", True),
        ("```js\nexec(a)\n```\n", False),
        ("exec(a)", True),
        ("```js\nlet a = 1\n", False),
        ("```js\nexec(a)\n```\nexec(b) is no code here", False),
        ('{"code": "exec(a)\\n", "more": ', True),
    ):
        assert shield.scan_by_semgrep(text, whole=False)[1] is waits, text
        assert shield.scan_by_semgrep(text) == (SHIELD.scan("let x = 1", "javascript"), False)


def test_a_scan_that_runs_is_ended_when_all_is_closed(tmp_path: Path) -> None:
    started = tmp_path / "started"
    shield = fake_semgrep(tmp_path, f"open({str(started)!r}, 'w'); import time; time.sleep(60)")
    found: list[CodeShieldScanResult] = []
    thread = threading.Thread(target=lambda: found.append(shield.scan("exec(a)", "javascript")))
    thread.start()
    while not started.exists():
        time.sleep(0.01)
    shield.close()
    thread.join(30)
    assert found[0].recommended_treatment is Treatment.BLOCK and "was stopped" in found[0].errors[0]
    assert "was stopped" in shield.scan("exec(a)", "javascript").errors[0]


def test_time_of_semgrep_is_not_that_of_the_other_rules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyllamacpu.safety.code_shield.scan.SECONDS", 2.0)
    shield = fake_semgrep(tmp_path, "import time; time.sleep(2.1); print(json.dumps({'results': []}))")
    assert shield.scan("```js\nexec(a)\n```\n```python\nx = 1\n```").errors == ()


def test_a_rule_whose_quick_search_is_a_whole_name_is_wanted() -> None:
    """ "^(SqlCommand|…)$" is of a name, not of the text."""
    result = SHIELD.scan(
        'var c = new SHA1CryptoServiceProvider();\nvar d = new SqlCommand("a" + b);', "csharp"
    )
    assert "sql" in result.not_covered[0].lower() and "semgrep is not installed" in result.not_covered[0]


def test_known_languages_are_the_scanned_ones() -> None:
    assert {one.value for one in SCANNED} == {
        "c", "cpp", "csharp", "java", "javascript", "php", "python", "rust"
    }  # fmt: skip


def test_command(tmp_path: Path, run: Callable[..., Result]) -> None:
    path = tmp_path / "app.py"
    path.write_text("import os\npassword = 'x'\nos.system(cmd)\n")
    result = run("code-shield", str(path), "--no-semgrep")
    assert result.code == 0 and result.out.splitlines()[0] == "warn"
    assert result.out.splitlines()[1].startswith("line 3: warning: ") and "CWE-78" in result.out
    everything = run("code-shield", str(path), "--all-rules", "--json", "--no-semgrep")
    assert [issue["line"] for issue in json.loads(everything.out)["issues_found"]] == [2, 3]
    js = tmp_path / "x.js"
    js.write_text("eval(a + b)")
    assert "not covered: javascript: eval-with-expression" in run("code-shield", str(js), "--no-semgrep").err
    listed = run("code-shield", "--list", "--no-semgrep")
    assert "javascript" in listed.out and "13 need semgrep" in listed.out
    rows = json.loads(run("code-shield", "--list", "--no-semgrep", "--json").out)
    assert len(rows) == len(listed.out.splitlines()) - 1
    assert {row["language"]: row["not_applied"] for row in rows}["javascript"] == 13
    path.write_bytes(b"\xff")
    for more in (str(path), "--language=c"):  # which it would not look at
        assert run("code-shield", "--list", more).code == 2
    assert run("code-shield", str(path)).code == 1
    assert run("code-shield", str(tmp_path / "none.py")).code == 1
    assert "known are" in run("code-shield", "--language", "cobol", str(js)).err


def test_the_rules_come_with_their_licence() -> None:
    """In every wheel: both files are named there, and the licence names who wrote the rules."""
    licence = RULES_FILE.with_name("LICENSE.rules").read_text("utf-8")
    authors = set(re.findall('"author": "(.*)"', RULES_FILE.read_text("utf-8")))
    assert authors == {"Meta", "GitLab"} and "Permission is hereby granted" in licence
    assert all(f"Copyright (c) {author}" in licence for author in authors)
    project = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    assert all(f'"safety/code_shield/{name}"' in project for name in ("rules.json", "LICENSE.rules"))


def test_lines_of_many_parts_are_those_of_the_text() -> None:
    """They are counted on from part to part: from the beginning each time it would take minutes."""
    text = "".join(f"\n\nwords\n```c\nx{i}();\n```\n" + "\n" * (i % 3) for i in range(100))
    blocks = [part for part in code_parts(text) if part.language is Language.C]
    assert len(blocks) == 100
    for part in blocks:
        assert text.splitlines()[part.first_line - 1] == part.text.strip()
    strings = "".join(f'{{"a": "x\\\\n{i}"}}\n\n' for i in range(100))
    assert [part.first_line for part in code_parts(strings)[1:]] == [*range(1, 201, 2)]
    assert len(code_parts('{"a": "x\\n"}' * 20000)) == 20001


def test_looking_for_what_semgrep_may_find_has_a_limit_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyllamacpu.safety.code_shield.scan.SECONDS", -1.0)
    result, waits = SHIELD.scan_by_semgrep("```js\nexec(a)\n```")
    assert result.recommended_treatment is Treatment.BLOCK and not waits
    assert "judging took more than" in result.errors[0]
