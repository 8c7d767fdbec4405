"""Searches over knobs: a sweep file, a study of Optuna, and one workdir per trial."""
