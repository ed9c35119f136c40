"""``elemtactl``: the commands of an operator to a daemon, over the admin socket."""
