"""The Python API: the `Llama` class, and what code for llama-cpp-python brings along."""
