"""Connections to Valkey: one server, Sentinel or Cluster behind one face."""
