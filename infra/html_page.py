"""A template, style sheets and scripts -> one self-contained HTML page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render_page(
    template: Path,
    styles: Sequence[Path],
    scripts: Sequence[Path],
    filters: Mapping[str, Callable[..., object]],
    **variables: object,
) -> str:
    """Returns the page. The template's variables are `variables`, `style` and `script`: the files' content."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    style, script = (
        Markup("\n".join(file.read_text(encoding="utf-8") for file in files)) for files in (styles, scripts)
    )
    return environment.get_template(template.name).render(style=style, script=script, **variables)
