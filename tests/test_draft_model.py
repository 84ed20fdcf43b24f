"""engine/draft_model.py: a smaller model writes ahead; answers are the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from test_speculation import drafting, prompts, run, samplings
from tiny_model import EOS, vocabulary, write_model

from pyllamacpu import Llama
from pyllamacpu.engine.draft_model import ModelDrafts, vocabulary_difference
from pyllamacpu.engine.drafts import Wish
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.errors import OptionError
from pyllamacpu.gguf import GGUFFile

N_CTX = 128


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model, one that drafts for it, and the same one with a short context."""
    folder = tmp_path_factory.mktemp("models")
    return [
        write_model(folder / f"{i}.gguf", seed=seed, n_ctx=n_ctx)
        for i, (seed, n_ctx) in enumerate([(0, N_CTX), (1, N_CTX), (0, 40)])
    ]


def opened(path: Path) -> Engine:
    return Engine.open(str(path), n_threads=2)


def requests() -> list[Request]:
    return [Request(p, s, 40, logprobs=3) for p, s in zip(prompts(7), samplings(), strict=True)]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_answers_are_the_same(models: list[Path], which: int) -> None:
    """With drafts that are always right, mostly wrong, and of a context that is soon full."""
    engine = opened(models[0])
    plain = [run(Scheduler(engine, None), [request])[0] for request in requests()]
    source = ModelDrafts(opened(models[which]))
    scheduler = drafting(engine, None, source)
    assert run(scheduler, requests()) == plain
    assert [run(scheduler, [request])[0] for request in requests()] == plain
    for sampling in samplings()[:2]:  # the likeliest token, and one that is drawn with the same numbers
        steps = scheduler.n_steps
        answer = run(scheduler, [Request(prompts(1)[0], sampling, 40)])[0]
        if which == 0:
            assert scheduler.n_steps - steps < 0.5 * len(answer[0]) or len(answer[0]) < 10
    pages = source._engine.cache.pages_in_use
    scheduler.close()
    source._prefixes.clear()
    assert source._engine.cache.pages_in_use == 0 < pages
    source.close()


def wishes(source: ModelDrafts, histories: Sequence[Sequence[int]], n: int, chance: float) -> list[Wish]:
    return [Wish(source.start(), history, n, lambda evidence: chance) for history in histories]


def test_several_are_drafted_in_one_step_each(models: list[Path]) -> None:
    """As many as asked for while they are likely; long texts are read apart; what did not come is dropped."""
    engine, source = opened(models[0]), ModelDrafts(opened(models[0]))
    histories = [[1, *range(10, 60)], [1, 20, 21]]
    asked = wishes(source, histories, 4, 1.0)
    source.catch_up(asked)
    drafts = source.propose(asked, 0.0)
    expected = [
        run(Scheduler(engine, None), [Request(h, samplings()[0], 4, end_tokens=frozenset())])[0][0]
        for h in histories
    ]
    assert [draft.tokens for draft in drafts] == expected
    assert all(len(draft.evidence) == 4 for draft in drafts)
    changed = [
        wish._replace(history=[*wish.history, draft.tokens[0], 9])
        for wish, draft in zip(asked, drafts, strict=True)
    ]
    source.catch_up(changed)
    again = source.propose(changed, 0.0)
    fresh = wishes(source, [wish.history for wish in changed], 4, 1.0)
    source.catch_up(fresh)
    assert [d.tokens for d in source.propose(fresh, 0.0)] == [d.tokens for d in again]
    unlikely = wishes(source, histories, 4, 0.2)
    source.catch_up(unlikely)
    assert [len(draft.tokens) for draft in source.propose(unlikely, 0.0)] == [1, 1]


def test_other_vocabularies_are_refused_by_their_difference(models: list[Path], tmp_path: Path) -> None:
    keys = vocabulary()
    ours = GGUFFile.open(str(models[0])).metadata
    assert vocabulary_difference(ours, ours) is None
    tokens = list(keys["tokenizer.ggml.tokens"])
    assert vocabulary_difference({"tokenizer.ggml.tokens": tokens[:-1]}, ours) == (
        f"it has {len(tokens) - 1} tokens, the model {len(tokens)}"
    )
    tokens[EOS] = "<end>"
    assert vocabulary_difference({"tokenizer.ggml.tokens": tokens}, ours) == (
        "its token 2 is '<end>', the model's is '</s>'"
    )
    assert vocabulary_difference({}, ours) == "it has no vocabulary"
    other = write_model(tmp_path / "other.gguf", tokenizer__ggml__tokens=tokens)
    with pytest.raises(OptionError, match=r"other\.gguf cannot draft for .*: its token 2 is '<end>'"):
        Llama(str(models[0]), draft_model=str(other))
    with pytest.raises(OptionError, match=r"gone\.gguf: no such file"):
        Llama(str(models[0]), draft_model=str(tmp_path / "gone.gguf"))


def test_llama_takes_a_draft_model(models: list[Path]) -> None:
    question = {"max_tokens": 30, "temperature": 1.0, "seed": 4, "logprobs": 2}
    with Llama(str(models[0])) as plain, Llama(str(models[0]), draft_model=str(models[1])) as drafted:
        expected, found = (llm("hello the", **question)["choices"] for llm in (plain, drafted))
    assert found == expected
