"""HTTP for many programs over one engine: `pyllamacpu serve`.

A dialect module (openai, anthropic, ollama, native) turns a body into the requests of `generation` and
their events back into its own shapes; nothing else of the package knows HTTP. One thread (`engine_thread`)
steps the schedulers of all loaded models (`models`); the event loop carries events to clients, and a pool of
threads renders templates, tokenizes and builds grammars. `access` stands before everything: hosts,
origins, keys, sizes and times.
"""
