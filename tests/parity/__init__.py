"""Parity with transformers: the same weights must give the same logits and the same tokens."""
