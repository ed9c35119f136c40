"""What became of each message, kept for a while after its end, and found by what a person knows of it."""
