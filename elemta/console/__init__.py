"""The web console, and the admin API for peers with credentials: access, pages, and the stream of events."""
