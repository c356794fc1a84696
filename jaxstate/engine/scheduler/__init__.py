"""What runs next: pure functions of what is seen at one moment."""
