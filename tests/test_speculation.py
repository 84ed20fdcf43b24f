"""engine/speculation.py and engine/drafts.py: drafts change the time of an answer, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_model import byte, write_model

from pyllamacpu.engine.cost_model import RowCosts
from pyllamacpu.engine.drafts import CalledDrafts, Draft, DraftSource, Evidence, PromptLookup, Wish
from pyllamacpu.engine.engine import Engine
from pyllamacpu.engine.generate import Request
from pyllamacpu.engine.handle import Handle
from pyllamacpu.engine.scheduler import Scheduler
from pyllamacpu.engine.session import Session
from pyllamacpu.engine.speculation import Acceptance, Speculation, most_drafted
from pyllamacpu.sampling.grammar import Grammar, GrammarCompiler
from pyllamacpu.sampling.sampler import SamplingOptions
from pyllamacpu.text import Tokenizer, load_tokenizer

GREEDY = SamplingOptions(temperature=0.0)
N_CTX = 200


class Oracle(CalledDrafts):
    """Drafts that are right with a chance, for answers that are known, and always believed in."""

    def __init__(self, answers: Sequence[Sequence[int]], chance: float = 1.0, seed: int = 0) -> None:
        self.answers, self.chance = answers, chance
        self.random = random.Random(seed)
        self.n_proposed = 0

    is_free = True

    def _draft(self, history: Sequence[int], n: int) -> Draft:
        n = self.random.randint(0, n)
        here = next((a[len(history) :] for a in self.answers if list(a[: len(history)]) == list(history)), ())
        tokens = [t if self.random.random() < self.chance else self.random.randint(10, 200) for t in here[:n]]
        self.n_proposed += len(tokens)
        return Draft(tokens, [Evidence("oracle", 1.0)] * len(tokens))


class FixedCosts(RowCosts):
    """Rows cost little, whatever the machine does."""

    def ratio(self, n: int) -> float:
        return 1 + 0.1 * (n - 1)

    def seconds(self, n: int) -> float:
        return 0.0


def drafting(engine: Any, tokenizer: Tokenizer | None, source: DraftSource | None) -> Watched:
    scheduler = Watched(engine, tokenizer, drafts=source)
    scheduler._speculation = None if source is None else Speculation(source, FixedCosts())
    return scheduler


class Watched(Scheduler):
    """Looks at every sequence that goes into the prefix cache."""

    def watch(self, allowed: Sequence[Sequence[int]]) -> None:
        insert = self.prefixes.insert

        def checked(sequence: Any, *more: Any) -> None:
            assert any(list(a[: len(sequence)]) == list(sequence.tokens) for a in allowed)
            insert(sequence, *more)

        self.prefixes.insert = checked  # type: ignore[assignment,method-assign]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = write_model(tmp_path_factory.mktemp("drafts") / "tiny.gguf", n_ctx=N_CTX)
    return Engine.open(str(path), n_ctx=N_CTX, n_threads=2)


@pytest.fixture(scope="module")
def tokenizer(engine: Engine) -> Tokenizer:
    found = load_tokenizer(engine.file.metadata)
    assert found is not None
    return found


def run(scheduler: Scheduler, requests: Sequence[Request], every: int = 1) -> list[tuple[Any, ...]]:
    """Tokens, logprobs, text, reason and stop string of each, submitted `every` steps one after another."""
    handles: list[Handle] = []
    found: dict[Handle, list[Any]] = {}
    waiting = list(requests)
    while waiting or scheduler.has_work:
        if waiting:
            handles.append(scheduler.submit(waiting.pop(0)))
            found[handles[-1]] = [[], [], "", None, None]
        for _ in range(every):
            for event in scheduler.step():
                assert event.error is None
                if event.text is not None:
                    tokens, logprobs, text, _, _ = found[event.handle]
                    found[event.handle] = [
                        [*tokens, *event.text.tokens],
                        [*logprobs, *event.text.logprobs],
                        text + event.text.text,
                        event.text.finish_reason,
                        event.text.stop_string,
                    ]
    return [tuple(found[h]) for h in handles]


def samplings() -> list[SamplingOptions]:
    wild: dict[str, Any] = {"top_k": 0, "min_p": 0.0, "top_p": 1.0}
    return [
        GREEDY,
        SamplingOptions(temperature=1.2, seed=1, **wild),
        SamplingOptions(temperature=0.7, seed=2, repeat_penalty=1.3, presence_penalty=0.5),
        SamplingOptions(temperature=1.0, seed=3, dry_multiplier=0.8, dry_sequence_breakers=()),
        SamplingOptions(temperature=1.0, seed=4, mirostat=2),
        SamplingOptions(temperature=1.0, seed=5, xtc_probability=0.5, xtc_threshold=0.05),
        SamplingOptions(temperature=1.0, seed=6, samplers=("adaptive_p",), adaptive_target=0.3),
    ]


def prompts(n: int) -> list[list[int]]:
    chance = random.Random(7)
    texts = [[chance.choice([byte(c) for c in b"abcd "]) for _ in range(12)] for _ in range(n)]
    return [[1, *text, *text, *text[:5]] for text in texts]


def requests_of(engine: Engine, tokenizer: Tokenizer) -> list[Request]:
    """All kinds: samplers, stop strings, grammars, criteria, processors, limits, logits kept by a session."""

    def ends(ids: np.ndarray, logits: np.ndarray) -> bool:
        return len(ids) > 60 and float(logits[0]) > -1e9

    def shifted(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[ids[-1]] += 1.0
        return logits

    form = GrammarCompiler(tokenizer).compile(Grammar.regex("([ab]{3} ){5}c"))
    found = [
        Request(prompt, options, 40, logprobs=4)
        for prompt, options in zip(prompts(7), samplings(), strict=True)
    ]
    stop = tokenizer.decode([run(Scheduler(engine, tokenizer), [found[1]])[0][0][20]])
    more: list[dict[str, Any]] = [
        {"stop": (stop,)},
        {"grammar": form},
        {"criteria": (ends,)},
        {"processors": (shifted,)},
        {"session": Session(engine, keep_all=True)},
        {"stop_loops": True},
    ]
    return [*found, *(Request(found[1].prompt, found[1].sampling, 50, logprobs=2, **kind) for kind in more)]


def test_answers_are_the_same_bit_for_bit(engine: Engine, tokenizer: Tokenizer) -> None:
    """Alone and in batches, with drafts that are right, wrong, and copied from the prompt."""
    plain = [run(Scheduler(engine, tokenizer), [request])[0] for request in requests_of(engine, tokenizer)]
    requests = requests_of(engine, tokenizer)
    known = [[*request.prompt, *answer[0]] for request, answer in zip(requests, plain, strict=True)]
    n_true = n_steps = 0
    for source in (Oracle(known), Oracle(known, 0.7), Oracle(known, 0.0), PromptLookup()):
        for alone in (True, False):
            requests = requests_of(engine, tokenizer)
            schedulers = (
                [drafting(engine, tokenizer, source) for _ in requests]
                if alone
                else [drafting(engine, tokenizer, source)]
            )
            parts = [[request] for request in requests] if alone else [requests]
            found = [a for s, part in zip(schedulers, parts, strict=True) for a in run(s, part)]
            assert found == plain
            n_steps += sum(s.n_steps for s in schedulers)
            n_true += sum(len(a[0]) for a in found)
    assert n_steps < 0.9 * n_true  # some drafts came true


def test_sessions_end_as_without_drafts(engine: Engine) -> None:
    """What a session keeps: tokens, the last row of logits and all of them."""
    request = Request(prompts(1)[0], SamplingOptions(temperature=1.0, seed=3), 30)
    kept = []
    tokens = run(Scheduler(engine, None), [request])[0][0]
    for drafts in (None, Oracle([[*request.prompt, *tokens]]), Oracle([[*request.prompt, *tokens]], 0.5)):
        session = Session(engine, keep_all=True)
        one = Request(request.prompt, request.sampling, 30, session=session)
        run(drafting(engine, None, drafts), [one])
        assert session.scores is not None and session.last is not None
        scores = session.scores[: session.n_scored].tobytes()
        kept.append((list(session.tokens), session.n_scored, scores, session.last.tobytes()))
    assert kept[0] == kept[1] == kept[2]


def test_the_prefix_cache_never_holds_a_rejected_token(tmp_path: Path) -> None:
    """Also when requests are cancelled or sent away between steps, and when memory is short."""
    engine = Engine.open(str(write_model(tmp_path / "tiny.gguf", n_ctx=N_CTX)), n_threads=2)
    requests = [Request(p, SamplingOptions(temperature=1.0, seed=i), 60) for i, p in enumerate(prompts(6))]
    first = Scheduler(engine, None)
    plain = [run(first, [request])[0] for request in requests]
    first.close()
    known = [[*r.prompt, *a[0]] for r, a in zip(requests, plain, strict=True)]
    scheduler = drafting(engine, None, Oracle(known, 0.6))
    scheduler.watch(known)
    engine.cache.limit_bytes = 12 * engine.cache.page_bytes
    try:
        assert run(scheduler, requests, every=2) == plain
        handles = [scheduler.submit(request) for request in requests]
        for _ in range(12):
            scheduler.step()
        for handle in handles:
            scheduler.cancel(handle)
        scheduler.step()
        assert run(Scheduler(engine, None, prefixes=scheduler.prefixes), requests) == plain
    finally:
        scheduler.close()
    assert engine.cache.pages_in_use == 0


def test_interrupts_lose_nothing() -> None:
    """The next step goes on, wherever the last one was left."""
    script = [byte(65 + i % 7) for i in range(30)]
    engine = FakeEngine(script, n_prompt=3)
    scheduler = drafting(engine, None, Oracle([[1, 2, 3, *script]]))
    handle = scheduler.submit(Request([1, 2, 3], GREEDY, 30))
    tokens: list[int] = []
    chance = random.Random(1)
    while not handle.is_finished:
        engine.interrupt_at = chance.choice([None, len(handle.history), len(handle.history) + 2])
        try:
            for event in scheduler.step():
                assert event.text is not None
                tokens += event.text.tokens
        except KeyboardInterrupt:
            continue
    assert tokens == script
    assert max(map(len, engine.evaluated)) > 3


def test_endless_requests_and_those_that_decline_have_no_drafts() -> None:
    oracle = Oracle([[1, 2, 3, *range(10, 40)]])
    scheduler = drafting(FakeEngine(list(range(10, 40)), n_prompt=3), None, oracle)
    run(scheduler, [Request([1, 2, 3], GREEDY, 5, draft=False)])
    endless = scheduler.submit(Request([1, 2, 3], GREEDY, endless=True))
    for _ in range(4):
        scheduler.step()
    scheduler.cancel(endless)
    assert oracle.n_proposed == 0
    answer = scheduler.submit(Request([1, 2, 3], GREEDY, 20))
    while not answer.is_finished:
        events = scheduler.step()
    assert events[-1].text is not None and events[-1].text.stats is not None
    assert 0 < events[-1].text.stats.n_accepted <= events[-1].text.stats.n_drafted <= oracle.n_proposed


# What is proposed


def proposal(text: Sequence[int], n: int = 6) -> list[int]:
    return PromptLookup().start().propose(list(text), n).tokens


def test_lookup_takes_the_longest_match() -> None:
    assert proposal([1, 2, 3, 4, 5, 9, 2, 3, 7, 7, 1, 2, 3]) == [4, 5, 9, 2, 3, 7]
    assert proposal([1, 2, 3]) == []
    assert proposal([5, 6] * 4, 5) == [5, 6, 5, 6, 5]  # what repeats itself goes on so
    assert proposal([8, 8, 8], 4) == [8, 8, 8, 8]
    assert proposal([1, 2, 3, 1, 2], 0) == []


def test_lookup_goes_on_behind_a_token_that_was_changed() -> None:
    source = list(range(10, 40))
    lookup = PromptLookup().start()
    assert lookup.propose([*source, 10, 11, 12], 3).tokens == [13, 14, 15]
    resumed = lookup.propose([*source, 10, 11, 12, 99], 3)
    assert resumed.tokens == [14, 15, 16]
    assert resumed.evidence[0].kind != lookup.propose([*source, 10, 11, 12, 99, 14, 15], 3).evidence[0].kind
    gone = lookup
    for i in range(5):
        found = gone.propose([*source, 10, 11, 12, 99, 14, 15, *range(90, 91 + i)], 3)
    assert found.tokens == []


def test_functions_of_other_programs() -> None:
    source = CalledDrafts(lambda ids: np.array([ids[-1] + 1, ids[-1] + 2, 7]))
    wish = Wish(source.start(), [4, 5], 2, lambda evidence: 0.5)
    assert source.propose([wish], 0.0)[0].tokens == [6, 7]
    assert CalledDrafts(lambda ids: []).propose([wish], 0.0) == [Draft([], [])]


# What is chosen


def choose(costs: RowCosts, priors: Sequence[Sequence[float]], n_rows: int = 64) -> list[int]:
    """The lengths of the drafts that are verified, for tokens with these chances."""
    oracle = Oracle([])
    speculation = Speculation(oracle, costs)
    answers = [speculation.start([]) for _ in priors]
    for answer, chances in zip(answers, priors, strict=True):
        answer.proposal = Draft(list(range(len(chances))), [Evidence(f"{p}", p) for p in chances])
    speculation.choose(answers, 0, n_rows)
    return [len(answer.draft) for answer in answers]


def measured(seconds: dict[int, float]) -> RowCosts:
    costs = RowCosts()
    for _ in range(60):
        for n, value in seconds.items():
            costs.observe(n, value)
    return costs


JUMP = {1: 1.0, 2: 1.1, 3: 1.3, 4: 1.5, 5: 2.4, 6: 2.5, 7: 2.6, 8: 2.7}  # times of steps with n rows


def test_rows_must_be_worth_their_time() -> None:
    costs = measured(JUMP)
    assert costs.ratio(4) == pytest.approx(1.5, rel=0.1) and costs.ratio(8) == pytest.approx(2.7, rel=0.1)
    assert choose(costs, [[0.7] * 7]) == [3]  # not over the jump
    assert choose(costs, [[1.0] * 7]) == [7]
    assert choose(costs, [[0.05] * 7]) == [0]
    assert choose(costs, [[1.0] * 7], n_rows=3) == [2]
    assert choose(costs, [[0.1] * 3, [0.95] * 3]) == [0, 2]  # to whom it is worth most
    steep = measured({n: float(n) for n in range(1, 9)})
    assert choose(steep, [[0.9] * 7]) == [0]


def test_costs_follow_the_machine() -> None:
    """A step that takes longer with the text's length says nothing about the ratios."""
    costs = RowCosts()
    for i in range(400):
        costs.observe((1, 4)[i % 2], (1 + i / 100) * (1.0, 1.5)[i % 2])
    assert costs.ratio(4) == pytest.approx(1.5, rel=0.1)
    costs.observe(4, 1000.0)  # once: the machine was busy
    assert costs.ratio(4) < 1.7


def test_drafts_that_lose_are_switched_off_and_come_back() -> None:
    """What does not come true is not verified any more, but still counted."""
    script = [byte(c) for c in np.random.default_rng(1).integers(0, 250, 55)]
    engine = FakeEngine(script, n_prompt=3)
    wrong = Oracle([[1, 2, 3, *script]], 0.0)
    scheduler = drafting(engine, None, wrong)
    run(scheduler, [Request([1, 2, 3], GREEDY, 55)])
    assert sum(len(tokens) > 1 for tokens in engine.evaluated[1:]) < 8
    wrong.chance = 1.0
    engine.evaluated.clear()
    for _ in range(3):
        run(scheduler, [Request([1, 2, 3], GREEDY, 55)])
        scheduler.prefixes.clear()
    assert sum(len(tokens) > 2 for tokens in engine.evaluated) > 5


def test_acceptance_follows_what_came_true() -> None:
    shared = Acceptance()
    one, other = Acceptance(shared), Acceptance(shared)
    evidence = Evidence("match", 0.5)
    assert one.probability(evidence) == 0.5
    for _ in range(100):
        one.observe(evidence, True)
    assert one.probability(evidence) > 0.95
    assert 0.8 < other.probability(evidence) <= one.probability(evidence)
    for _ in range(100):
        other.observe(evidence, False)
    assert other.probability(evidence) < 0.1 < one.probability(evidence)


def test_no_more_is_drafted_than_may_come() -> None:
    assert most_drafted(None, 100) == 15
    assert most_drafted(4, 100) == 3 and most_drafted(1, 100) == 0
    assert most_drafted(None, 2) == 2 and most_drafted(9, -1) == 0
