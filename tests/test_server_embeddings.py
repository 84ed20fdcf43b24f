"""Embeddings of the server in all dialects, and how they are pooled. Covers engine/pooling.py."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from serving import serving, tiny_path, wait_until
from tiny_model import write_model

from pyllamacpu import Llama
from pyllamacpu.engine.pooling import CLS, LAST, MEAN, NONE, own_pooling

TEXT = "hello the world"
path = tiny_path()


def of_class(path: Path, pooling: int, normalize: bool = True) -> np.ndarray:
    with Llama(str(path), n_ctx=0, n_threads=1, kv_type="f32", pooling_type=pooling) as llm:
        return np.array(llm.embed(TEXT, normalize=normalize))


@pytest.mark.parametrize("pooling", [None, MEAN, CLS, LAST])
def test_one_vector_of_a_text(path: Path, pooling: int | None) -> None:
    expected = of_class(path, MEAN if pooling is None else pooling)
    with serving(("tiny", path), pooling=pooling) as running:
        data = running.post("/v1/embeddings", input=TEXT).json()["data"]
        np.testing.assert_array_equal(data[0]["embedding"], expected)
        ollamas = running.post("/api/embed", model="tiny", input=TEXT).json()["embeddings"]
        np.testing.assert_array_equal(ollamas[0], expected)
        (own,) = running.post("/embedding", content=TEXT).json()
        np.testing.assert_array_equal(own["embedding"], [expected])


def test_which_text_is_too_long(path: Path) -> None:
    with serving(("tiny", path)) as running:
        for long in ("x" * 5000, [5] * 5000):
            refused = running.post("/v1/embeddings", input=[TEXT, long])
            assert refused.status_code == 400
            assert re.match(r"input 1: \d+ tokens do not fit", refused.json()["error"]["message"])


def test_a_vector_of_each_token(path: Path) -> None:
    expected = of_class(path, NONE, normalize=False)
    assert expected.ndim == 2
    with serving(("tiny", path), pooling=NONE) as running:
        (own,) = running.post("/embedding", content=TEXT).json()
        np.testing.assert_array_equal(own["embedding"], expected)
        (own,) = running.post("/embedding", content=TEXT, embd_normalize=2).json()
        np.testing.assert_array_equal(own["embedding"], of_class(path, NONE))
        for url in ("/v1/embeddings", "/api/embed"):
            refused = running.post(url, model="tiny", input=TEXT)
            assert refused.status_code == 400 and "--pooling none" in refused.text


def test_what_the_file_says(tmp_path: Path, path: Path) -> None:
    last = write_model(tmp_path / "last.gguf", llama__pooling_type=LAST)
    np.testing.assert_array_equal(of_class(last, -1), of_class(path, LAST))
    with serving(("last", last)) as running:
        wait_until(lambda: running.get("/health").status_code == 200)
        data = running.post("/v1/embeddings", input=TEXT).json()["data"]
        np.testing.assert_array_equal(data[0]["embedding"], of_class(path, LAST))
    for odd in (0, 4, 99, "last", None):
        assert own_pooling({"general.architecture": "llama", "llama.pooling_type": odd}) == MEAN
