"""Sessions that are fed and asked: entries in, answers with their version out."""
