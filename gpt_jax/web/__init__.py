"""The page that generates text, and its backend that runs the model in the browser itself."""

from gpt_jax.web.page_files import browser_files, page_files

__all__ = ['browser_files', 'page_files']
