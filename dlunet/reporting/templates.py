"""Fills the HTML templates of this folder."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from dlunet.reporting.viewer import bundle


def render(template: str, **values: Any) -> str:
    """Fill a template.

    Args:
        template: The name of its file.
        values: The values by name.
    """
    environment = Environment(
        loader=PackageLoader("dlunet.reporting", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(niivue=bundle, **values)
