"""Reports of a run: live progress, metrics on disk, and data on the accelerators."""
