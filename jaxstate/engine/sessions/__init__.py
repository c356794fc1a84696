"""What a session is: its log of tokens, its queue, its cells, who pushed what."""
