"""Authorship and licence of weights, read from their files and copied to exports."""

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any, Self

import yaml

README = 'README.md'
HUB = 'https://huggingface.co/'
_BASE = 'general.base_model.'
_HUB_NAME = re.compile(r'\w[\w.-]*(/\w[\w.-]*)?')  # never a local path
_MOST_BYTES = 2**16  # read from a README.md; the metadata come first
_MOST_CHARACTERS = 300  # of a string
_MOST_PARTS = 16  # of a list
# Keys of a model card by field. The first is written; the others are only read. llama.cpp's
# converter reads the same names.
_CARD_KEYS = {
    'name': ('model_name', 'name'),
    'author': ('model_author', 'author', 'model_creator'),
    'organization': ('model_organization', 'organization'),
    'license': ('license',),
    'license_name': ('license_name',),
    'license_link': ('license_link',),
    'url': ('model_url',),
    'repo_url': ('model_repo_url',),
}
_GGUF_KEYS = {
    'name': 'general.name',
    'author': 'general.author',
    'organization': 'general.organization',
    'license': 'general.license',
    'license_name': 'general.license.name',
    'license_link': 'general.license.link',
    'url': 'general.url',
    'repo_url': 'general.repo_url',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credits:
    """The origin of a model according to its files; '' where unknown."""

    name: str = ''
    author: str = ''
    organization: str = ''
    license: str = ''
    license_name: str = ''  # where `license` is 'other'
    license_link: str = ''
    url: str = ''
    repo_url: str = ''
    base_models: tuple[str, ...] = ()  # ORGANIZATION/NAME, or plain names

    def of_derived(self) -> Self:
        """Returns the credits of a model trained from this one; the licence is kept."""
        repository = self.repo_url.removeprefix(HUB)
        name = repository if _HUB_NAME.fullmatch(repository) else self.name
        return dataclasses.replace(
            self,
            base_models=(name,) if name else self.base_models,
            **dict.fromkeys(('name', 'author', 'organization', 'url', 'repo_url'), ''),
        )

    def of_hub(self, repository: str) -> Self:
        """Returns the credits of a model downloaded from the hub under this name."""
        return dataclasses.replace(
            self, name=self.name or repository.split('/')[-1], repo_url=HUB + repository
        )

    def to_card(self) -> dict[str, str | list[str]]:
        """Returns the metadata of a model card."""
        card: dict[str, Any] = {
            keys[0]: getattr(self, field)
            for field, keys in _CARD_KEYS.items()
            if getattr(self, field)
        }
        return card | ({'base_model': list(self.base_models)} if self.base_models else {})

    def to_gguf(self) -> dict[str, str | int]:
        """Returns the keys of a GGUF file."""
        values: dict[str, Any] = {
            key: getattr(self, field) for field, key in _GGUF_KEYS.items() if getattr(self, field)
        }
        if self.base_models:
            values[f'{_BASE}count'] = len(self.base_models)
        for index, base in enumerate(self.base_models):
            organization, _, name = base.rpartition('/')
            values[f'{_BASE}{index}.name'] = name
            if organization:
                values[f'{_BASE}{index}.organization'] = organization
                values[f'{_BASE}{index}.repo_url'] = HUB + base
        return values


NO_CREDITS = Credits()


def read_gguf(metadata: Mapping[str, Any]) -> Credits:
    """Returns the credits in the metadata of a GGUF file; ignores values that are not strings."""
    values = {field: _text(metadata.get(key)) for field, key in _GGUF_KEYS.items()}
    bases = []
    for index in range(_MOST_PARTS):
        name, organization, url = (
            _text(metadata.get(f'{_BASE}{index}.{key}'))
            for key in ('name', 'organization', 'repo_url')
        )
        repository = url.removeprefix(HUB)
        if _HUB_NAME.fullmatch(repository):
            bases.append(repository)
        elif name:
            bases.append(f'{organization}/{name}' if organization else name)
    return Credits(**values, base_models=tuple(bases))


def read_folder(folder: pathlib.Path, config: Mapping[str, Any]) -> Credits:
    """Returns the credits in a folder of transformers: its README.md, and the name in its config.

    Values that are not strings are ignored, and so are missing or malformed metadata.
    """
    card = _read_card(folder / README)
    values = {
        field: next(filter(None, (_joined(card.get(key)) for key in keys)), '')
        for field, keys in _CARD_KEYS.items()
    }
    if not values['name'] and _HUB_NAME.fullmatch(_text(config.get('_name_or_path'))):
        values['name'] = _text(config['_name_or_path']).split('/')[-1]
    bases = card.get('base_model')
    bases = bases[:_MOST_PARTS] if isinstance(bases, list) else [bases]
    return Credits(**values, base_models=tuple(filter(None, map(_text, bases))))


def _read_card(path: pathlib.Path) -> Mapping[str, Any]:
    """Returns the metadata at the start of a README.md; {} if missing or malformed."""
    try:
        with path.open('rb') as file:
            page = file.read(_MOST_BYTES).decode('utf-8', 'replace')
        front = re.match(r'\ufeff?---[ \t]*\r?\n(.*?)\n---', page, re.DOTALL)
        card = yaml.safe_load(front[1]) if front else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return card if isinstance(card, dict) else {}


def _joined(value: Any) -> str:
    """Returns a string, or a list of strings joined by commas."""
    values = value[:_MOST_PARTS] if isinstance(value, list) else [value]
    return ', '.join(filter(None, map(_text, values)))[:_MOST_CHARACTERS]


def _text(value: Any) -> str:
    """Returns a string on a single line; '' for a value of another type."""
    return ' '.join(value.split())[:_MOST_CHARACTERS] if isinstance(value, str) else ''
