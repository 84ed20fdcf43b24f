"""Quantizing models: recipes of types, importance matrices, types chosen for a size.

Options, type names and the mix of types of each name are llama-quantize's, and so are metadata, the order
of tensors and split files: where a type leaves no choice (F16, BF16, Q8_0) the files are the same byte by
byte. Rows go through in slabs, with all threads, so memory stays small whatever the model's size; the
output appears when it is whole. A row length that a type does not fit falls back as it does there, with a
message.

With a target size or bits per weight there is no type: each tensor gets its own. The model writes a text
(or reads one); importance is collected on it; every type's error is measured on a sample of each tensor,
and how much the model minds an error by running it with one group of tensors quantized. From the two
follows the KL divergence of any choice, and a knapsack takes the best one that fits. It takes as long as
some sixty readings of the probe tokens by the unquantized model.

`imatrix` reads and writes both of llama-imatrix's formats. The engine adds up the squares of each
weight's input in float64, in the order of the tokens, so the file does not depend on the number of
threads. `collect` does it from Python.
"""
