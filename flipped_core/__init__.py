"""What every package shares: user errors, atomic file writes, and the hub's client.

Its modules import nothing outside the standard library until a function needs it.
"""
