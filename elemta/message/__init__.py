"""Messages as they travel: header fields read with bounds, and the trace fields that Elemta adds."""
