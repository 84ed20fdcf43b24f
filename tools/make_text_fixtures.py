"""Make the fixtures of the text tests: what independent libraries say about hostile text and about chat
templates.

    python tools/make_text_fixtures.py [--model SmolLM2.gguf]

Writes tests/fixtures/text/*.json. Oracles: `tokenizers` (byte-level BPE, trained here on a small corpus and
run with the pipelines of Llama 3, Llama 4, SmolLM2 and GPT-2, built by hand), `sentencepiece` (BPE with byte
fallback, trained here) and `transformers` (chat templates). With --model, also the ids of the hostile texts
in that model's own vocabulary, from a `tokenizers` pipeline built by hand from the file: transformers 5 loses
SmolLM2's digit splitting when it rebuilds one.

Needs: tokenizers, sentencepiece, transformers, gguf.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "text"
SPECIALS = ["<|begin|>", "<|end_turn|>", "<|eot_id|>"]

HOSTILE = [
    "",
    " ",
    "  ",
    "\t",
    "\n",
    "\r\n",
    "a",
    " a",
    "a ",
    "  a  b   c    ",
    "\n\n\n",
    " \n \n",
    "\t\tx\t y",
    "line one\r\nline two\r\n\r\n  indented\r",
    "trailing spaces   \nand tabs\t\t\n",
    "nbsp\u00a0here\u2003em\u3000wide\u2028line\u2029para\u0085next",
    "\u200bzero\u200cwidth\u200djoin\ufeffbom",
    "I'm you're he's we've they'll she'd can't",
    "I'M YOU'RE HE'S WE'VE THEY'LL SHE'D CAN'T",
    "it’s ’S 's' ''s 'ſ 'LLama 'Re're",
    "0 1 12 123 1234 12345 123456 1234567890 3.14159 1,000,000 -42 1e-9 0xFF",
    "٠١٢٣ १२३ Ⅷ ½ ² ₃ ௰ 𝟘𝟙𝟚 ①②③",
    "a1b22c333d4444",
    "déjà vu naïve Ångström ÀÉÎÕÜ ß ẞ ŉ ǆ ﬁ",
    "e\u0301 a\u0308\u0323 Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!",
    "😀😃👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷👨🏿‍🚀❤️‍🔥☃️",
    "你好，世界！這是一個測試。日本語のテキスト、カタカナ。한국어 문장입니다.",
    "مرحبا بالعالم، كيف الحال؟ شَدَّة ١٢٣",
    "नमस्ते दुनिया क्षत्रिय ज्ञान १२३",
    "ไม่มีช่องว่างในภาษาไทย ລາວ မြန်မာ ខ្មែរ",
    "שלום עולם — אבגד",
    "Привет, мир! ПРИВЕТ Ёлка",
    'def f(x):\n    if x > 0:\n\t\treturn x**2  # comment\n    else:\n        raise ValueError(f"{x!r}")\n',
    "for (int i=0;i<n;++i){a[i]+=b[i]*c[i];}//done\n/* x */",
    '<html><body class="x">&amp;</body></html>',
    '{"key": [1, 2.5, null], "nested": {"a": "b\\n"}}',
    "https://example.org/path?q=1&r=%20#frag user@example.org",
    "C:\\Users\\x\\..\\y ~/bin $HOME ${VAR} `cmd` $(cmd)",
    "!!!??? ... --- *** ___ ((())) [[]] {{}} <<>> || && ==",
    "CamelCaseWords snake_case_words SCREAMING_SNAKE kebab-case XMLHttpRequest iPhone",
    "a\x00b\x00\x00c",
    "\x01\x02\x04\x1b[31mred\x7f",
    "\ufffd\ufffd replacement",
    "\ue000\uf8ff\U000f0000\U0010fffd private",
    "<s> </s> <unk> <|im_start|>user<|im_end|> <|eot_id|> [INST] <<SYS>> <|endoftext|><|begin|>",
    "<0x41> <0xFF> ▁under ▁ ▁▁ Ġbyte Ċ",
    "antidisestablishmentarianism Donaudampfschifffahrtsgesellschaftskapitän",
    "x" * 300,
    "ab" * 200,
    " " * 100 + "x" + " " * 33,
    "\n" * 50 + "y",
    "=" * 80 + "\n" + "-" * 79,
    "aAbBcCdD" * 20,
    "the the the quick brown fox jumps over the lazy dog",
]

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's a test, isn't it? You're right; they'll see.",
    "In the beginning was the word, and the word was with the model, and the model had 1234567890 tokens.",
    "def main(args):\n    for i in range(100):\n        print(i, args[i])\n    return None\n\n",
    "你好世界 這是測試 日本語 テキスト 한국어 Привет мир مرحبا नमस्ते 😀👍🏽👩‍👩‍👧",
    "HELLO WORLD CamelCase iPhone XMLHttpRequest I'M YOU'RE WE'LL   spaces    and\t\ttabs\r\n\r\nlines",
    "déjà vu naïve café über straße 12 123 1234 3.14 2024-01-02 https://example.org/a?b=c&d=e",
    "aaaa aaaaaa abababab xxxxxxxx ======== -------- ........ !!!! ((())) {{}} [[]]",
] * 3


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
UP, LOW = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
LLAMA4 = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{UP}]*[{LOW}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[{UP}]+[{LOW}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def pipeline(pre: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a model family, as its tokenizer.json states it."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    if pre == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    pattern = {"llama-bpe": LLAMA3, "llama4": LLAMA4}[pre]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), byte_level])


def train_bpe(pre: str, size: int = 900) -> Tokenizer:
    """A byte-level BPE tokenizer trained on CORPUS with the pipeline of `pre`."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    tokenizer.pre_tokenizer = pipeline(pre)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIALS,
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def bpe_metadata(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    """GGUF metadata of a trained tokenizer."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = [tokenizer.id_to_token(i) for i in range(tokenizer.get_vocab_size())]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIALS else 1 for token in tokens],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": tokens.index("<|begin|>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<|end_turn|>"),
        "tokenizer.ggml.add_bos_token": False,
    }


def train_sentencepiece() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with byte fallback and two user-defined tokens, set up as Llama's."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")),
        model_writer=out,
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        character_coverage=0.98,
        user_defined_symbols=["<extra>", "▁▁▁▁"],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())


def sentencepiece_metadata(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """GGUF metadata of a SentencePiece model."""

    def kind(i: int) -> int:
        if model.is_unknown(i):
            return 2
        if model.is_control(i):
            return 3
        if model.is_byte(i):
            return 6
        return 4 if model.id_to_piece(i) in ("<extra>", "▁▁▁▁") else 1

    n = model.get_piece_size()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(n)],
        "tokenizer.ggml.scores": [model.get_score(i) for i in range(n)],
        "tokenizer.ggml.token_type": [kind(i) for i in range(n)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }


LLAMA2_STYLE = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
LLAMA3_STYLE = """{{- bos_token }}
{%- if tools %}
    {{- "Tools: " }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{% for message in messages -%}
    {%- if message.role == "skip" %}{% continue %}{% endif -%}
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- generation %}{{ message['content'] | trim }}{% endgeneration -%}
    {{ '<|eot_id|>' }}
{%- endfor %}
{% if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\\n'"
    " }}"
    "{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {"llama2": LLAMA2_STYLE, "llama3": LLAMA3_STYLE, "smollm2": SMOLLM2}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Tells the weather in <city> & 'country' – é",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
CHATS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Hello!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  What is <b>2 & 2</b>?\n"}],
    [
        {"role": "user", "content": "你好 😀"},
        {"role": "assistant", "content": " Hi there \n"},
        {"role": "user", "content": 'It\'s "quoted" {{ not }} {% code %}'},
    ],
    [{"role": "user", "content": "one"}, {"role": "user", "content": "two"}],
]


def render_all() -> list[dict[str, Any]]:
    """Every template on every chat by transformers: the text, or the error it raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    cases = []
    for name, source in TEMPLATES.items():
        for messages in CHATS:
            for tools in (None, TOOLS):
                for prompt in (True, False):
                    case = {
                        "template": name,
                        "messages": messages,
                        "tools": tools,
                        "add_generation_prompt": prompt,
                    }
                    try:
                        texts, _ = render_jinja_template(
                            conversations=[messages],
                            tools=tools,
                            chat_template=source,
                            add_generation_prompt=prompt,
                            bos_token="<s>",
                            eos_token="</s>",
                        )
                        case["text"] = texts[0]
                    except Exception as error:
                        case["error"] = str(error)
                    cases.append(case)
    return cases


def model_ids(path: str) -> dict[str, Any]:
    """Ids of the hostile texts in the vocabulary of a GGUF file with byte-level BPE."""
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    read = {
        key: fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges", "pre", "token_type")
    }
    vocab = {token: i for i, token in enumerate(read["tokens"])}
    merges = [tuple(merge.split(" ")) for merge in read["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=read["pre"] == "llama-bpe"))
    tokenizer.pre_tokenizer = pipeline(read["pre"])
    return {"pre": read["pre"], "n_vocab": len(vocab), "ids": ids_of(tokenizer, HOSTILE)}


def ids_of(tokenizer: Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def write(name: str, value: dict[str, Any]) -> None:
    """One fixture, with where it comes from."""
    libraries = {lib: version(lib) for lib in ("tokenizers", "sentencepiece", "transformers")}
    OUT.mkdir(parents=True, exist_ok=True)
    text = json.dumps(
        {"made_by": "tools/make_text_fixtures.py", "versions": libraries, **value}, ensure_ascii=True
    )
    (OUT / name).write_text(text + "\n", encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--model", help="a GGUF file whose ids to record, for example SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    args = parser.parse_args()
    write("hostile.json", {"texts": HOSTILE})
    for pre in ("smollm", "llama-bpe", "llama4", "gpt-2"):
        tokenizer = train_bpe(pre)
        # In the library an added token is cut out of every text; without it the ids are those of plain text.
        plain = Tokenizer.from_str(json.dumps({**json.loads(tokenizer.to_str()), "added_tokens": []}))
        ids = {"ids": ids_of(plain, HOSTILE), "special_ids": ids_of(tokenizer, HOSTILE)}
        write(f"bpe-{pre}.json", {"metadata": bpe_metadata(tokenizer, pre), **ids})
    model = train_sentencepiece()
    texts = {
        "ids": [model.encode(text) for text in HOSTILE],
        "decoded": [model.decode(model.encode(t)) for t in HOSTILE],
    }
    write("sentencepiece.json", {"metadata": sentencepiece_metadata(model), **texts})
    write("templates.json", {"sources": TEMPLATES, "cases": render_all()})
    if args.model:
        write("smollm2.json", model_ids(args.model))


if __name__ == "__main__":
    main()
