"""Analyses as one self-contained HTML page."""

from gpt_jax.inspector.page.write import bundle, frame, render, to_json

__all__ = ['bundle', 'frame', 'render', 'to_json']
