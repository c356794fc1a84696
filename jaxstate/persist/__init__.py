"""State to disk and back.

Comes in: a session state and its model. Goes out: a directory that can be restored, exactly, under
the same model, tokenizer and layout, into any capacity that holds it. Does not know: queues,
threads, names.
"""
