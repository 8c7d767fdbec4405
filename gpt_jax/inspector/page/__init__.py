"""Analyses as one self-contained HTML page."""

from gpt_jax.inspector.page.write import assemble, bundle, frame, render, to_json

__all__ = ['assemble', 'bundle', 'frame', 'render', 'to_json']
