"""Compilation of the real training step for described devices: its memory and fastest time."""
