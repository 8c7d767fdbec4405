"""Self-contained HTML pages: one style, and small JavaScript modules that pages share."""

from gpt_jax.page.assemble import assemble, bundle, frame, save, to_json

__all__ = ['assemble', 'bundle', 'frame', 'save', 'to_json']
