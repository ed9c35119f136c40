"""``elemtactl``: what an operator asks of a daemon and does to it, over the admin socket."""
