"""The Python API: the `Llama` class, and what code for llama-cpp-python brings along.

Methods, arguments and answers are those of llama-cpp-python: `create_completion` (and calling the
object), `create_chat_completion`, `create_embedding`, `embed`, `tokenize`, `detokenize`, `generate`,
`eval`, `sample`, `reset`, `save_state`, `load_state`, `n_ctx`, `n_vocab`, `n_embd`, `token_bos`,
`token_eos`, `token_nl`, `from_pretrained`, `close`. Beyond them:

- `Llama.logits(tokens)`: float32 logits (n_tokens, n_vocab) after each token of a fresh sequence.
- `Llama(..., kv_type="f32")`: the type of cached keys and values: f32, f16 (default), bf16, q8_0, q4_0.
  `type_k` and `type_v` set them one by one, by name or number.
- `Llama.stream(token_ids, SamplingOptions(...), max_tokens, stop, on_prompt)`: events with text that
  never ends inside a character, their tokens, and at the end the finish reason and timings.
- Every field of `SamplingOptions` is also a keyword: `llm(prompt, dry_multiplier=0.8,
  xtc_probability=0.5)`.
- `logprobs` work without `logits_all=True`.

What is good to know:

- Ctrl-C leaves any call as `KeyboardInterrupt`, and the object stays usable.
- A prompt longer than the context, or as long as it, raises `ContextError`; nothing is truncated. An
  empty text is BOS, where the model has one; otherwise it is an `OptionError`, and so is an empty list of
  ids.
- A file without a tokenizer serves token ids (`generate`, `eval`, `stream`, `logits`); text calls raise
  `TokenizerError`. `vocab_only=True` opens only the tokenizer.
- `embed` gives the mean of a text's final states unless the file or `pooling_type` says otherwise (0 none,
  2 first, 3 last). A text longer than the context loses its end, with a UserWarning, or with
  `truncate=False` is an error.
- Options about GPUs, mmap and the like are accepted; one that asks for something that will not happen is
  reported by a `UserWarning`, once, and so is a keyword that nobody knows. `numa` counts, for the process.
- Penalties count the answer's tokens, as in llama-cpp-python; with DRY the prompt's too. `stream` and the
  command line count the prompt, as llama-cli does. A bare `sample` counts what was evaluated, where
  llama-cpp-python counts nothing. A temperature below 0 draws from all tokens.
- `chat_format` takes llama-cpp-python's names: see `pyllamacpu.text.named_formats` for what differs.
- Methods that a subclass replaces (`tokenize`, `eval`, `sample`, `generate`, `create_completion` ...) are
  called; answers are then made token by token in Python, and slower.
- `pyllamacpu.llama_cpp` has these and llama-cpp-python's other names, for programs that import `llama_cpp`.
- `grammar=LlamaGrammar...` (GBNF, Lark, a JSON schema, a regular expression, a choice) and `response_format`
  give an answer its form. What cannot be enforced is an `OptionError`; an answer that reached `max_tokens`
  has the finish reason "length", and is not whole. In a JSON schema an object with `properties` has no
  others unless `additionalProperties` says so, as in llama.cpp's grammars; tools' arguments likewise.
- `AsyncLlama` has the completions, chats and embeddings for asyncio; a stream that is left ends its request.
- All errors are classes of `pyllamacpu.errors` under `PyllamacpuError`; those about arguments are
  `ValueError`s too.
"""
