"""Checkpoints of any kind to GGUF: readers, name maps and the streaming conversion.

Sources: folders of Hugging Face (safetensors, `pytorch_model*.bin`, single or sharded; GPTQ, AWQ, FP8,
compressed-tensors, bitsandbytes, MLX), of Meta and Mistral (`consolidated.*`, `params.json`), LoRA adapters
of PEFT and MLX (`--base` names the folder with the base's config.json), GGUF files (another type or other
metadata, the tokenizer alone, in parts or in one). Pickles are read by an unpickler that can only build
tensors.
Models: LlamaForCausalLM and MistralForCausalLM of any shape, MixtralForCausalLM, Llama 4 (experts stacked)
and Llama 3.2 Vision (the vision tower becomes a file of its own, beside the text model's),
DebertaV2ForSequenceClassification (Prompt Guard).
Types: f32, f16, bf16, every type and mix of `quantize` that needs no importance matrix, `auto` (the
checkpoint's 16-bit type, or those of a GGUF file).
Tokenizers: `tokenizer.json` (byte-level BPE, BPE with byte fallback), `vocab.json` with `merges.txt`,
`tokenizer.model` (SentencePiece BPE; tiktoken, as Llama 3 and 4 have it), DeBERTa's Unigram step by step,
added tokens, end tokens of `generation_config.json`, all chat templates. Without any of these files the
result serves token ids.

Torch is not needed, and neither is memory: slabs of rows go from the checkpoint through all threads into
the file, so that resident memory stays below twice the largest tensor and 300 MB. (Layers of the 405B's
shape, 34 GB in BF16, became Q4_0 within 70 MB.) Files are written beside their target and get their names
when all of them are whole.

What could change a result is never guessed: unknown config keys and tensors, shapes that do not fit the
config, weights that are NaN, infinite or too large for F16, tokens without a row are errors that name
them. What a GGUF file cannot state is an error or a note: dynamic rope scaling beyond the trained
context, a sliding window for llama.cpp, Llama 4 constants other than the released ones.
"""
