"""The models that can be converted: what their configs and the names of their tensors mean."""
