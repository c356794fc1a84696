"""The engine over HTTP: sessions, OpenAI's and Anthropic's dialects, a page to watch it.

Comes in: requests. Goes out: what the engine says to them. It translates, enqueues, awaits and
streams, and decides nothing: what a session is, what an answer is, and what is durable is the
engine's. Needs the extra `serve`.
"""
