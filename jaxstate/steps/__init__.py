"""Compiled steps over session states: the only package that calls `jax.jit`.

`functional` is what users call; `extend`, `query`, `sampling` and `blocks` are the pure functions
that get compiled; `buckets` declares their shapes and `compiled` keeps one executable for each.
Does not know: files, queues, threads.
"""
