"""Checks of a page's accessibility by axe-core."""

import json

import pytest

SCHEMES = ('light', 'dark')
SIZES = {'desk': {'width': 1200, 'height': 900}, 'phone': {'width': 390, 'height': 844}}
LOOKS = [
    pytest.param({'color_scheme': scheme, 'viewport': size}, id=f'{scheme}, {name}')
    for scheme in SCHEMES
    for name, size in SIZES.items()
]


def check_accessible(page):
    """Fails with the serious and critical violations that axe-core finds on a page."""
    package = pytest.importorskip(
        'axe_playwright_python.sync_playwright', reason='needs axe-playwright-python'
    )
    found = package.Axe().run(page).response
    assert found['passes'], 'axe ran'
    violations = [
        f'{each["id"]}: {node["target"]} {node["html"][:120]} {node.get("failureSummary", "")}'
        for each in found['violations']
        if each['impact'] in ('serious', 'critical')
        for node in each['nodes']
    ]
    assert not violations, json.dumps(violations, indent=1)
