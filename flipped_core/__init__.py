"""What every package shares: user errors, paths (local or in buckets), atomic writes. Imports none of our packages."""
