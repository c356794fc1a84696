"""Tokens and context -> hidden vectors and new cells: the one decoder, and the model with
everything it needs.

Does not know: sessions, steps, who owns which block.
"""
