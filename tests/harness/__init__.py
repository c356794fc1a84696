"""Engines under kills and under load: what scripts/crash_test.py, scripts/soak.py and tests run.

Comes in: how often, how long, which durability. Goes out: reports of what was found. Not shipped:
what it is made of is (`jaxstate.testing`).
"""
