"""Makes pyllamacpu/safety/code_shield/rules.json from the rules of the package `codeshield` (MIT).

    pip download --no-deps codeshield==1.0.1 && unzip codeshield-*.whl -d FOLDER
    python tools/make_code_shield_rules.py FOLDER

Needs PyYAML. Facts only: patterns, weaknesses (CWE), severities, messages, and which set switches a rule on.
Their licence is in LICENSE.rules beside the file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

SETS = ("codeshield", "cyberseceval")
QUICK = {"vulnerable-sprintf": "sprintf", "vulnerable-strcpy": "strcpy"}  # where a rule has none
TARGET = Path(__file__).parent.parent / "pyllamacpu/safety/code_shield/rules.json"


def sets_of(config: dict[str, Any], language: str, analyzer: str, name: str) -> list[str]:
    return [s for s in SETS if name in config[s].get(language, {}).get(analyzer, {}).get("rules", ())]


def regex_rules(root: Path, config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((root / "regex").glob("*.yaml")):
        for rule in yaml.safe_load(path.read_text("utf-8")) or ():
            found.setdefault(path.stem, []).append(
                {
                    "id": rule["pattern_id"],
                    "cwe": rule["cwe_id"],
                    "severity": rule["severity"].lower(),
                    "pattern": rule["rule"],
                    "message": rule["description"],
                    "sets": sets_of(config, path.stem, "regex", rule["pattern_id"]),
                }
            )
    return found


def semgrep_rules(root: Path, config: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """As semgrep reads them, but for the metadata, of which the weakness and the quick search stay."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted(path for path in (root / "semgrep").iterdir() if path.is_dir()):
        for path in sorted(folder.rglob("*.yaml")):
            for rule in yaml.safe_load(path.read_text("utf-8"))["rules"]:
                sets = sets_of(config, folder.name, "semgrep", rule["id"])
                kept = {key: rule["metadata"].get(key, "") for key in ("cwe_id", "prescan_regex")}
                kept["prescan_regex"] = kept["prescan_regex"] or QUICK.get(rule["id"], "")
                author = "GitLab" if "GitLab Inc." in path.read_text("utf-8") else "Meta"
                own = {**rule, "metadata": {**kept, "author": author, "sets": sets}}
                own["message"] = " ".join(rule["message"].split("\n\n")[0].split())
                found.setdefault(folder.name, []).append(own)
    return found


def main() -> None:
    root = next(Path(sys.argv[1]).rglob("insecure_code_detector/rules"))
    config = yaml.safe_load((root / "config.yaml").read_text("utf-8"))["config"]
    rules = {
        "source": "the package codeshield 1.0.1 (MIT; LICENSE.rules beside this file)",
        "regex": regex_rules(root, config),
        "semgrep": semgrep_rules(root, config),
    }
    TARGET.write_text(json.dumps(rules, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
