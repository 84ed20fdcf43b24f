"""Make tests/fixtures/smollm2/expected.json: what the starter model's weights say when computed in float32.

    python tools/make_smollm2_fixtures.py SmolLM2-135M-Instruct.Q4_1.gguf

Needs torch, transformers, tokenizers and gguf; takes about a minute on two cores. Recorded are greedy
continuations with the gap between the two best logits at each step, the perplexity of text.txt, the best
logits after a 64-token prompt, and how each of these moves when the inputs of all matrices are rounded to
8-bit blocks of 32.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from smollm2_reference import EightBitInputs, load
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "smollm2"
N_NEW, WINDOW, N_BEST = 40, 512, 100
RULE = (
    "The text's tokens, without BOS (tokenizer.ggml.add_bos_token is false), are cut into consecutive "
    "windows of 512; a shorter rest is dropped. Each window is a fresh sequence. Its positions 256 to 510 "
    "are scored: position i by -log softmax(logits[i])[token[i + 1]], which is 255 tokens a window. "
    "This is llama-perplexity's rule."
)
CHAT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PROMPTS = {
    "france": "The capital of France is",
    "story": "Once upon a time, in a village by the sea, there lived",
    "digits": "2 + 2 = 4, 12 + 30 = 42, 1024 / 2 =",
    "code": "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "unicode": "Die Straße heißt „Am Ölberg“ — naïve café, 東京 and 😀:",
    "chat": CHAT.format("What is the capital of France?"),
}


@torch.no_grad()
def logits_of(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """(n_tokens, n_vocab) float32 of a fresh sequence."""
    return model(torch.tensor([ids]), use_cache=False).logits[0]


@torch.no_grad()
def greedy(model: LlamaForCausalLM, ids: list[int], stops: set[int]) -> tuple[list[int], list[float]]:
    """Up to N_NEW token ids (an end token is kept), and each step's gap of the best two logits."""
    new: list[int] = []
    gaps: list[float] = []
    cache, feed = None, ids
    while len(new) < N_NEW and not (new and new[-1] in stops):
        out = model(torch.tensor([feed]), past_key_values=cache, use_cache=True, logits_to_keep=1)
        best = out.logits[0, -1].topk(2)
        new.append(int(best.indices[0]))
        gaps.append(float(best.values[0] - best.values[1]))
        cache, feed = out.past_key_values, new[-1:]
    return new, gaps


def gap_shift(model: LlamaForCausalLM, ids: list[int], new: list[int]) -> float:
    """The largest change of the gap between the two best logits along `new` when matrix inputs are 8-bit."""
    steps = slice(len(ids) - 1, len(ids) + len(new) - 1)
    exact = logits_of(model, ids + new)[steps]
    with EightBitInputs(model):
        rounded = logits_of(model, ids + new)[steps]
    two = exact.topk(2).indices
    exact_two, rounded_two = exact.gather(1, two), rounded.gather(1, two)
    return float(((exact_two - rounded_two) @ torch.tensor([1.0, -1.0])).abs().max())


def continuation(
    model: LlamaForCausalLM, tokenizer: Tokenizer, prompt: str, stops: set[int]
) -> dict[str, object]:
    ids = tokenizer.encode(prompt, add_special_tokens=False).ids
    new, gaps = greedy(model, ids, stops)
    with EightBitInputs(model):
        rounded, _ = greedy(model, ids, stops)
    return {
        "prompt": prompt,
        "prompt_ids": ids,
        "ids": new,
        "text": tokenizer.decode([i for i in new if i not in stops], skip_special_tokens=False),
        "top2_gap": [round(gap, 5) for gap in gaps],
        "ids_with_8bit_inputs": rounded,
        "gap_shift_with_8bit_inputs": gap_shift(model, ids, new),
    }


def window_nll(model: LlamaForCausalLM, window: list[int]) -> float:
    half = WINDOW // 2
    log_probs = logits_of(model, window)[half:-1].double().log_softmax(-1)
    return -float(log_probs.gather(1, torch.tensor(window[half + 1 :])[:, None]).sum())


def perplexity(model: LlamaForCausalLM, ids: list[int]) -> dict[str, object]:
    windows = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW + 1, WINDOW)]
    nll = [window_nll(model, w) for w in windows]
    with EightBitInputs(model):
        rounded = [window_nll(model, w) for w in windows]
    count = len(windows) * (WINDOW - WINDOW // 2 - 1)
    return {
        "rule": RULE,
        "window": WINDOW,
        "n_tokens": len(ids),
        "ids_sha256": hashlib.sha256(np.array(ids, "<i4").tobytes()).hexdigest(),
        "n_windows": len(windows),
        "n_scored": count,
        "nll_of_windows": nll,
        "nll": sum(nll),
        "perplexity": math.exp(sum(nll) / count),
        "perplexity_with_8bit_inputs": math.exp(sum(rounded) / count),
    }


def last_logits(model: LlamaForCausalLM, ids: list[int]) -> dict[str, object]:
    """The best logits after `ids`, with what is needed to judge them: mean, spread and log-sum-exp of all."""
    exact = logits_of(model, ids)[-1]
    with EightBitInputs(model):
        rounded = logits_of(model, ids)[-1]
    best = exact.topk(N_BEST)
    return {
        "prompt_ids": ids,
        "ids": best.indices.tolist(),
        "logits": [round(x, 5) for x in best.values.tolist()],
        "mean": float(exact.mean()),
        "std": float(exact.std()),
        "logsumexp": float(exact.double().logsumexp(0)),
        "rms_shift_with_8bit_inputs": float((rounded - exact).square().mean().sqrt()),
        "rms_shift_of_best_with_8bit_inputs": float((rounded - exact)[best.indices].square().mean().sqrt()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    path = parser.parse_args().model
    torch.set_num_threads(2)
    model, tokenizer, metadata = load(path)
    if metadata["tokenizer.ggml.add_bos_token"]:
        raise SystemExit("this model wants a BOS token: the rule of the windows must say where it goes")
    stops = {int(metadata["tokenizer.ggml.eos_token_id"]), tokenizer.token_to_id("<|endoftext|>")}
    ids = tokenizer.encode((OUT / "text.txt").read_text(encoding="utf-8"), add_special_tokens=False).ids
    packages = ("torch", "transformers", "tokenizers", "gguf", "numpy")
    result = {
        "made_by": {"script": "tools/make_smollm2_fixtures.py", **{name: version(name) for name in packages}},
        "model": {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "perplexity": perplexity(model, ids),
        "last_logits": last_logits(model, ids[:64]),
        "greedy": {name: continuation(model, tokenizer, prompt, stops) for name, prompt in PROMPTS.items()},
    }
    text = json.dumps(result, indent=1, ensure_ascii=False)
    (OUT / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
