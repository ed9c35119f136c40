"""Authentication: twisted.cred checkers, the users file, and the delays for wrong passwords."""
