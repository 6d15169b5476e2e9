"""What mkdocs does to a page besides: formulas become MathML, which browsers show without a script."""

import html
import re

from latex2mathml.converter import convert

PAGE = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)  # as arithmatex leaves them
CODE_OR_TAG = re.compile(r"(<(pre|code|script|style)\b.*?</\2>|<[^>]+>)", re.DOTALL)
NOTEBOOK = re.compile(r"(\$\$?)(.+?)\1", re.DOTALL)


def on_page_content(content, page, **_):
    """All formulas of a page."""
    if not page.file.src_uri.endswith(".ipynb"):
        return PAGE.sub(lambda found: formula(found[1], found[2]), content)
    parts = CODE_OR_TAG.split(content)  # text, code or tag, name of the tag, text, ...
    of_text = lambda text: NOTEBOOK.sub(lambda found: formula({1: "span", 2: "div"}[len(found[1])], found[2]), text)  # noqa: E731
    return "".join(of_text(text) + code for text, code in zip(parts[::3], [*parts[1::3], ""], strict=True))


def formula(tag, tex):
    """Inline in a span, in a line of its own in a div."""
    tex = html.unescape(tex).replace("{aligned}", "{align*}")  # the same, and known to the converter
    return f'<{tag} class="formula">{convert(tex, display={"span": "inline", "div": "block"}[tag])}</{tag}>'
