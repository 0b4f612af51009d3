"""What a model makes of one or two texts -> one self-contained HTML page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cloze.infra.html_page import render_page
from cloze.infra.inspection.attention import AttentionSection, attention_section
from cloze.infra.inspection.masks import MasksSection, masks_section
from cloze.infra.inspection.model import InspectedModel
from cloze.infra.inspection.nearest import NearestSection, Sentences, nearest_section
from cloze.infra.inspection.word import WordSection, word_section
from cloze.infra.report.page import SCRIPT, STYLE

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """The template's variables. `identity` says which weights the model has."""

    name: str
    identity: str
    texts: list[tuple[str, str]]  # (A, text); the letter is empty for a single text
    key_figures: list[tuple[str, str]]
    attention: AttentionSection
    masks: MasksSection
    nearest: NearestSection
    word: WordSection


def inspect(
    model: InspectedModel, name: str, identity: str, texts: Sequence[str], sentences: Sentences, word: str | None
) -> str:
    """The page about one or two texts. Raises UserError when they do not fit the model, or `word` is not in them."""
    read = model.read(texts)
    attention = attention_section(model, read)
    figures = [
        ("tokens" if len(texts) == 1 else "tokens of both texts", f"{len(read.tokens):,}"),
        ("layers × heads", f"{attention.layers} × {attention.heads}"),
        ("hidden size", f"{model.layers.hidden_size:,}"),
        ("parameters of the encoder", f"{model.parameters / 1e6:,.1f} M"),
    ]
    page = Page(
        name,
        identity,
        list(zip("AB" if len(texts) > 1 else [""], texts, strict=False)),
        figures,
        attention,
        masks_section(model, texts),
        nearest_section(model, texts, sentences),
        word_section(model, texts, sentences.texts, word),
    )
    styles, scripts = [STYLE, _FOLDER / "inspection.css"], [SCRIPT, _FOLDER / "attention.js"]
    filters = {"count": lambda value: f"{value:,}"}
    return render_page(_FOLDER / "page.html", styles, scripts, filters, page=page)
