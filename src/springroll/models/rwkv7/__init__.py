"""RWKV-7, a recurrent language model."""
