"""What users hold: engines and sessions."""
