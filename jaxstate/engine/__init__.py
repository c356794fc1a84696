"""Many sessions on one accelerator: entries in, answers with their version out, questions kept
answered in idle time."""
