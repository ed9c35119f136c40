"""The SMTP protocol with no I/O in it: grammar, replies, framing, server session, client session."""
