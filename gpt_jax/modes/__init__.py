"""What the command line can do, a file each: `define_flags(flags)` and `run(...) -> status`."""
