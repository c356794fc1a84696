"""What is given and told: values, options, events. Knows nothing of the engine."""
