"""A figure of one array, by matplotlib, which is optional: a line, or a heat map."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gpt_jax.errors import UserError
from gpt_jax.inspector.inspection import NamedArray

TOKENS = ('position', 'source')  # dimensions whose labels are tokens


def plot(array: NamedArray, *, title: str = '', texts: Sequence[str] = (), axes: Any = None) -> Any:
    """Draws an array of one or two dimensions; returns matplotlib's axes.

    Args:
      array: of one dimension for a line, or two for a heat map.
      title: of the figure.
      texts: of the tokens, labels of positions.
      axes: to draw on; None: those of a new figure.

    Raises:
        UserError: matplotlib is not installed, or the array has more dimensions.
    """
    try:
        from matplotlib import pyplot, ticker
    except ImportError:
        raise UserError(
            "matplotlib is not installed; pip install matplotlib, or pip install -e '.[plot]'"
        ) from None
    if len(array.dims) not in (1, 2):
        raise UserError(
            f'a plot has one or two dimensions, and this array has {", ".join(array.dims)}; '
            f'give indices, such as {array.dims[0]}=0'
        )
    axes = axes or pyplot.figure(layout='constrained').subplots()
    values = np.asarray(array.values, np.float32)
    if values.ndim == 1:
        axes.plot(values, marker='.')
        axes.grid(alpha=0.3)
    else:
        signed = (values < 0).any()
        limit = np.abs(values[np.isfinite(values)]).max(initial=0)
        scale = {'cmap': 'RdBu', 'vmin': -limit, 'vmax': limit} if signed else {'cmap': 'Blues'}
        axes.figure.colorbar(axes.imshow(values, aspect='auto', **scale), ax=axes)
    for axis, dim in zip((axes.xaxis, axes.yaxis), array.dims[::-1], strict=False):
        axis.set_label_text(dim)
        axis.set_major_locator(ticker.MaxNLocator(integer=True))
        if dim in TOKENS and len(texts) == array.sizes[dim]:
            labels = [repr(text)[1:-1].replace('$', r'\$') for text in texts]
            axis.set_ticks(range(len(texts)), labels, rotation=90 if axis is axes.xaxis else 0)
    axes.set_title(title)
    return axes
