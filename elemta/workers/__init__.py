"""What the workers of one host and their supervisor say to each other: ``[server] workers``."""
