"""KV cells: how a session's memory is laid out, the device arrays, and the immutable session state.

Comes in: new keys and values of tokens. Goes out: pools with those cells written, and blocks read
back. Does not know: models, weights, text, which step runs when.
"""
