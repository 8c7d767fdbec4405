"""The steps in a folder of checkpoints, and the document against which each is verified.

The document is JSON: the caller's meta, the evaluation loss, and the shape, dtype and
fingerprint of every array by path. It is stored with its SHA-256.
"""

import contextlib
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gpt_jax import files, fingerprint, object_store
from gpt_jax.errors import UserError

DAMAGED = 'damaged'  # sub-folder for damaged steps
META = 'meta'  # the sub-folder of a step that holds its document


class DamagedError(Exception):
    """An error for a checkpoint that is not what was saved. The message says what is wrong."""


def make_document(
    leaves: Mapping[str, jax.Array], *, meta: Mapping[str, Any], eval_loss: float | None
) -> dict[str, Any]:
    """Returns the document of arrays by path, exactly as `read_document` will return it."""
    values = fingerprint.fingerprint_leaves(dict(leaves))
    is_known = eval_loss is not None and math.isfinite(eval_loss)
    document = {
        'eval_loss': float(eval_loss) if is_known else None,
        'leaves': {
            name: {'shape': x.shape, 'dtype': str(x.dtype), 'fingerprint': values[name]}
            for name, x in leaves.items()
        },
        'meta': dict(meta),
    }
    return json.loads(json.dumps(document))  # JSON makes tuples lists and keys strings


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the document with its hash, ready to store."""
    return {'document': document, 'sha256': _hash(document)}


def document_path(folder: pathlib.Path, step: int | str) -> pathlib.Path:
    """Returns the path of a step's document, the one that orbax's JsonSave uses."""
    return folder / str(step) / META / 'metadata'


def read_document(folder: pathlib.Path, step: int) -> dict[str, Any]:
    """Reads the document of a step.

    Raises:
      DamagedError: the document is missing or is not what was saved.
      UserError: this machine cannot read it, or the object store does not answer.
    """
    path = document_path(folder, step)
    try:
        sealed = json.loads(object_store.read_bytes(path))
        document, intact = sealed['document'], sealed['sha256'] == _hash(sealed['document'])
    except FileNotFoundError as error:
        raise DamagedError(f'{META}/{path.name} is missing') from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        if files.is_access_error(error):
            raise files.cannot_read(path, error) from error
        raise DamagedError(f'{META}/{path.name} is not a document') from error
    if not intact:
        raise DamagedError(f'{META}/{path.name} is not what was saved')
    return document


def list_steps(folder: pathlib.Path) -> list[int]:
    """Returns the finished checkpoints in a folder, damaged or not, oldest first.

    On a disk a step is finished once it has its final name, in an object store once it has its
    document.
    """
    if object_store.is_remote(folder):
        names = filter(str.isdecimal, object_store.list_names(folder))
        with object_store.naming_failures(folder):
            return sorted(int(name) for name in names if document_path(folder, name).exists())
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def read_documents(folder: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Returns the intact documents in a folder by step, oldest first."""
    documents = {}
    for step in list_steps(folder):
        with contextlib.suppress(DamagedError):
            documents[step] = read_document(folder, step)
    return documents


def read_losses(folder: pathlib.Path) -> dict[int, float | None]:
    """Returns the evaluation losses in a folder by step; None if a step was not evaluated."""
    return {step: document['eval_loss'] for step, document in read_documents(folder).items()}


def lowest_loss(losses: Mapping[int, float | None]) -> int | None:
    """Returns the step with the lowest loss, the latest of equals; None if no loss is known."""
    known = {step: loss for step, loss in losses.items() if loss is not None}
    return min(known, key=lambda step: (known[step], -step), default=None)


def check_structure(
    document: Mapping[str, Any], targets: Mapping[str, jax.ShapeDtypeStruct], *, where: str
) -> None:
    """Compares the saved arrays with those to restore into.

    Items that are not restored are not compared.

    Raises:
      UserError: an array differs in name, shape or dtype; names the first.
    """
    fix = 'go back to the settings it was made with, or start over with --fresh'
    saved = document['leaves']
    items = {name.partition('/')[0] for name in targets}
    for name in [*targets, *(name for name in saved if name.partition('/')[0] in items)]:
        if name not in saved:
            raise UserError(f'{where} has no {name}, which the run now needs; {fix}')
        if name not in targets:
            raise UserError(f'{where} has {name}, which the run no longer has; {fix}')
        shape, dtype = tuple(saved[name]['shape']), saved[name]['dtype']
        if shape != targets[name].shape:
            raise UserError(
                f'the shape of the model changed: {name} is {shape} in {where} and '
                f'{targets[name].shape} in this run; {fix}'
            )
        if dtype != str(targets[name].dtype):
            raise UserError(
                f'the dtype of {name} changed: {dtype} in {where} and '
                f'{targets[name].dtype} in this run; {fix}'
            )


def check_fingerprints(document: Mapping[str, Any], items: Mapping[str, Any]) -> None:
    """Checks arrays against the saved fingerprints. Raises DamagedError if one differs."""
    for name, value in fingerprint.fingerprint_leaves(items).items():
        if value != document['leaves'][name]['fingerprint']:
            raise DamagedError(f'{name} is not what was saved')


def by_item(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Groups `{'params/a/b': x}` as `{'params': {'a/b': x}}`."""
    items: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        item, _, key = name.partition('/')
        items.setdefault(item, {})[key or 'value'] = leaf
    return items


def to_array(name: str, leaf: Any) -> jax.Array:
    """Returns a leaf as it is saved: Python numbers and numpy arrays become jax arrays.

    Raises TypeError for a numpy dtype that jax would narrow, such as int64.
    """
    array = leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)
    if getattr(leaf, 'dtype', array.dtype) != array.dtype:
        raise TypeError(f'{name}: jax would store {leaf.dtype} as {array.dtype}; convert it first')
    return array


def to_abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns a leaf to restore into, on the first device if it has no sharding."""
    leaf = leaf if hasattr(leaf, 'dtype') else jnp.array(leaf)
    sharding = getattr(leaf, 'sharding', None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _hash(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
