"""The report of runs: what they were, their curves, warnings, evaluations and samples."""
