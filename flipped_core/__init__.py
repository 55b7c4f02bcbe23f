"""What every package shares: user errors, paths in folders and buckets, atomic file writes, and the hub's client.

Its modules import only the standard library and etils.epath until a function needs more.
"""
