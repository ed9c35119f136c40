"""The Twisted shell of the server: it moves bytes between transports and sessions, and knows no SMTP."""
