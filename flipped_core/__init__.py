"""What every package shares: errors, settings, paths, atomic writes, the hub. Imports none of our packages."""
