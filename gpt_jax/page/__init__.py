"""Self-contained HTML pages: one style, and small JavaScript modules that pages share."""

from gpt_jax.page.assemble import SHARED, assemble, bundle, frame, save, to_json

__all__ = ['SHARED', 'assemble', 'bundle', 'frame', 'save', 'to_json']
