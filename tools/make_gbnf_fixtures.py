"""Makes tests/fixtures/gbnf.json: which texts llama.cpp lets pass, byte by byte, with the grammars of
tests/gbnf_cases.py.

    python tools/make_gbnf_fixtures.py

Made with llama-cpp-python 0.3.36 (its grammar sampler, and the vocabulary of the tests' tiny model). In the
fixture: a grammar, then each text and whether it may end there.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as lib

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from gbnf_cases import CASES, INVALID  # noqa: E402
from tiny_model import EOS, PIECES, write_model  # noqa: E402

MADE_BY = "tools/make_gbnf_fixtures.py, llama-cpp-python 0.3.36"


def allowed(sampler: ctypes.c_void_p, token: int) -> bool:
    one = (lib.llama_token_data * 1)(lib.llama_token_data(token, 0.0, 0.0))
    candidates = lib.llama_token_data_array(one, 1, -1, False)
    lib.llama_sampler_apply(sampler, ctypes.byref(candidates))
    return bool(one[0].logit > -1)


def fits(vocabulary: ctypes.c_void_p, grammar: str, text: str) -> bool | None:
    """None for a grammar that is refused."""
    sampler = lib.llama_sampler_init_grammar(vocabulary, grammar.encode(), b"root")
    if not sampler:
        return None
    try:
        for byte in text.encode():
            token = PIECES.index(f"<0x{byte:02X}>")
            if not allowed(sampler, token):
                return False
            lib.llama_sampler_accept(sampler, token)
        return allowed(sampler, EOS)
    finally:
        lib.llama_sampler_free(sampler)


def main() -> None:
    lib.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        parameters = lib.llama_model_default_params()
        parameters.vocab_only = True
        path = write_model(Path(folder) / "tiny.gguf")
        model = lib.llama_model_load_from_file(str(path).encode(), parameters)
        vocabulary = lib.llama_model_get_vocab(model)
        verdicts: dict[str, dict[str, bool | None]] = {}
        for grammar, texts in CASES:
            found = verdicts.setdefault(grammar, {})
            found.update({text: fits(vocabulary, grammar, text) for text in texts})
        accepted = [grammar for grammar in INVALID if fits(vocabulary, grammar, "") is not None]
    refused = [grammar for grammar, found in verdicts.items() if None in found.values()]
    if accepted or refused:
        sys.exit(f"llama.cpp sees it otherwise: accepted {accepted}, refused {refused}")
    written = json.dumps({"made_by": MADE_BY, "verdicts": verdicts}, indent=1, ensure_ascii=False)
    (ROOT / "tests/fixtures/gbnf.json").write_text(written + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
