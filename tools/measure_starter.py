"""How the starter model answers: questions of a first hour, each with several seeds, for settings to compare.

    python tools/measure_starter.py --temp 0.2 --repeat-penalty 1.1 [--system TEXT] [--show]

For each setting: how many of the answers ended within 400 tokens, how many were in the language of the
question (or in English), how many that have a fact in them had the right one, and how many ran into a loop
(see pyllamacpu/sampling/loops.py). `pyllamacpu.store.starter_model.STARTER` has the settings that were
chosen with it. On 2026-11-29, of 60 answers of SmolLM2-135M-Instruct Q4_1 (facts: of 12), top-p 0.9:

    temperature  penalty  system prompt               ended  looped  language  facts  tokens (median)
    0.2          1.0      the template's own             45      14        57      -       86
    0.2          1.05     the template's own             54       4        60     11       78
    0.2          1.1      the template's own             55       1        60     12       80
    0.2          1.12     the template's own             59       0        60     12       72   chosen
    0.2          1.15     the template's own             60       0        58     12       78
    0.2          1.2      the template's own             56       2        60     12       74
    0.3          1.12     the template's own             58       1        59     12       79
    0.4          1.12     the template's own             57       0        57     11       72
    0.6          1.1      "You are a helpful assistant." 58       0        57     11       86
    0.2          1.1      "You are a helpful assistant." 59       0        59     11       76
    0.2          1.15     "You are a helpful assistant." 60       0        57      9       88
    0.2          1.1      "Answer in English, in a few sentences."
                                                         58       1        59     12       60
    0.2          1.12     "You are a helpful AI assistant named SmolLM. You answer in English, clearly and
                          briefly."                      60       0        58     10       67
    0            1.0      the template's own             42      12        60     12       82
    0            1.1      the template's own             54       0        60     12       76

Differences of one or two answers are noise.
"""

from __future__ import annotations

import argparse
import re
import statistics
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pyllamacpu import Llama
from pyllamacpu.sampling.loops import LoopDetector
from pyllamacpu.store import starter_path

SEEDS = 6
LIMIT = 400  # tokens
QUESTIONS = (  # with the languages that an answer may be in
    ("What is the capital of France?", "en"),
    ("Hello!", "en"),
    ("Who are you?", "en"),
    ("Name three rivers.", "en"),
    ("Write a short poem about the sea.", "en"),
    ("Explain in two sentences why the sky is blue.", "en"),
    ("Write a Python function that reverses a string.", "en"),
    ("How do I boil an egg?", "en"),
    ("Привет!", "ru en"),
    ("Comment vas-tu ?", "fr en"),
)
FACTS = {
    "What is the capital of France?": "Paris",
    QUESTIONS[6][0]: "[::-1]",
}  # what a right answer has in it
_WORDS = {
    "en": "the a is of and to in you i that it are for with this can your my how what hello",
    "fr": "le la les un une est de et à je vous tu que pour avec dans ce des du suis bonjour",
    "es": "el la los un una es de y que en por para con usted soy hola",
    "de": "der die das ein eine ist und ich sie zu mit nicht hallo",
}


@dataclass(frozen=True)
class Answer:
    question: str
    text: str
    ended: bool
    looped: bool
    language_is_right: bool
    fact_is_right: bool | None  # None for a question without one
    n_tokens: int


def language(text: str) -> str:
    """The language of a text, by its letters and its small words; "?" for none (emoji, digits)."""
    letters = [char for char in text if char.isalpha()]
    if not letters:
        return "?"
    scripts = Counter(unicodedata.name(char, "?").split()[0] for char in letters)
    script = scripts.most_common(1)[0][0]
    if script != "LATIN":
        return "ru" if script == "CYRILLIC" else script.lower()
    words = Counter(re.findall(r"[^\W\d_]+", text.lower()))
    scores = {name: sum(words[word] for word in small.split()) for name, small in _WORDS.items()}
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] else "en"


def answer(
    llm: Llama, question: str, languages: str, seed: int, system: str, options: dict[str, float]
) -> Answer:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    made = llm.create_chat_completion(messages, seed=seed, max_tokens=LIMIT, **options)
    text = made["choices"][0]["message"]["content"]
    detector = LoopDetector()
    looped = any(detector.push(token) for token in llm.tokenize(text.encode(), add_bos=False))
    return Answer(
        question,
        text,
        made["choices"][0]["finish_reason"] == "stop",
        looped,
        language(text) in languages.split(),
        FACTS[question] in text if question in FACTS else None,
        made["usage"]["completion_tokens"],
    )


def measure(llm: Llama, system: str, options: dict[str, float]) -> list[Answer]:
    """All questions with all seeds, many at once: the bits do not depend on that."""
    work = [(question, languages, seed) for question, languages in QUESTIONS for seed in range(SEEDS)]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda item: answer(llm, *item, system, options), work))


def report(answers: list[Answer]) -> str:
    n = len(answers)
    return (
        f"ended {sum(a.ended for a in answers)}/{n}, looped {sum(a.looped for a in answers)}/{n}, "
        f"language {sum(a.language_is_right for a in answers)}/{n}, "
        f"facts {sum(bool(a.fact_is_right) for a in answers)}/{len(FACTS) * SEEDS}, "
        f"tokens {statistics.median(a.n_tokens for a in answers):.0f} (median)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--temp", type=float, nargs="+", default=[0.2])
    parser.add_argument("--top-p", type=float, nargs="+", default=[0.9])
    parser.add_argument("--repeat-penalty", type=float, nargs="+", default=[1.0])
    parser.add_argument("--system", nargs="+", default=[""])
    parser.add_argument("--show", action="store_true", help="print the answers that are not right")
    given = parser.parse_args()
    with Llama(str(starter_path()), n_ctx=1024) as llm:
        for system in given.system:
            for temperature in given.temp:
                for top_p in given.top_p:
                    for penalty in given.repeat_penalty:
                        options = {"temperature": temperature, "top_p": top_p, "repeat_penalty": penalty}
                        answers = measure(llm, system, options)
                        print(f"{options} system={system!r}: {report(answers)}", flush=True)
                        for a in answers if given.show else []:
                            if not (a.ended and a.language_is_right) or a.looped:
                                print(
                                    "   ",
                                    a.question,
                                    a.ended,
                                    a.looped,
                                    repr(a.text[:90]),
                                    repr(a.text[-120:]),
                                )


if __name__ == "__main__":
    main()
