"""Training of small models on endless streams of our own making.

Comes in: a config file and a directory. Goes out: in that directory a model that `load` reads.
`data` makes streams and questions, `batches` arrays of them, `learning` a step, `run` all of it.
Does not know: sessions, engines, the command line.
"""
