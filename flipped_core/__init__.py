"""What every package shares: user errors and atomic file writes. Imports nothing outside the standard library."""
