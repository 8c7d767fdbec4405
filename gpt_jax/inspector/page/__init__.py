"""Analyses as one self-contained HTML page."""

from gpt_jax.inspector.page.write import FOLDER, frame, render

__all__ = ['FOLDER', 'frame', 'render']
