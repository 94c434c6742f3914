"""What our pages and docstrings write and Markdown does not know: equations, roles, doctests and diagrams.

Equations become MathML and diagrams SVG while the site is built, so that a page needs no script for them:

- ``$x$`` and ``:math:`x``` in a line; ``$$ ... $$`` and ``.. math::`` as blocks, aligned at ``&`` where there is one;
- ``:class:`name``` and ``:func:`name``` link to the name's entry in the reference;
- a paragraph that begins with ``>>>`` is an example;
- a fence ``mermaid`` is the picture of it that ``docs/tools/diagrams.py`` has drawn into ``docs/assets/diagrams``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from markdown.preprocessors import Preprocessor

DIAGRAMS = Path(__file__).resolve().parents[1] / "assets" / "diagrams"
FENCE = re.compile(r"\s*(```+|~~~+)\s*(\w*)")
HTML_MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?=\S)([^$\n<>]+?)(?<=\S)\$(?![\w$])", re.DOTALL)

REPAIRS = (  # of what latex2mathml writes: a space before a function, none behind a sign
    (r"(?<=</m[ino]>)<mi>(exp|log|tanh|min|max)</mi>", r'<mspace width="0.17em"/><mi>\1</mi>'),
    (
        r'(<mo stretchy="false">&#x0002[8];|<mo stretchy="false">\[)</mo><mo>&#x02212;</mo>',
        r'\1</mo><mo form="prefix">&#x02212;</mo>',
    ),
)


def mathml(source: str, *, block: bool = False) -> str:
    r"""The MathML of an equation in LaTeX.

    >>> mathml("x")
    '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mi>x</mi></mrow></math>'
    """
    source = source.strip()
    if block and (r"\\" in source or "&" in source) and r"\begin" not in source:
        source = rf"\begin{{align*}}{source}\end{{align*}}"
    for theirs, known in (("aligned}", "align*}"), (r"\tfrac", r"\frac")):
        source = source.replace(theirs, known)
    found = convert(source, display="block" if block else "inline")
    for written, meant in REPAIRS:
        found = re.sub(written, meant, found)
    return f'<div class="equation">{found}</div>' if block else found


def equations_of_html(html: str) -> str:
    """HTML in which ``$`` equations outside of code are MathML: notebooks are no Markdown when they come to us."""
    parts = re.split(r"(<pre.*?</pre>|<code.*?</code>|<script.*?</script>|<style.*?</style>)", html, flags=re.DOTALL)
    for place in range(0, len(parts), 2):
        parts[place] = HTML_MATH.sub(lambda m: mathml(unescape(m[1] or m[2]), block=m[1] is not None), parts[place])
    return "".join(parts)


def diagram_file(source: str) -> Path:
    """Where the picture of a diagram lies: its name is the hash of its source, so that a changed one is missed."""
    return DIAGRAMS / f"{hashlib.sha256(source.strip().encode()).hexdigest()[:16]}.svg"


def fences(lines: list[str]) -> Iterator[tuple[str | None, list[str]]]:
    """Runs of lines: the language of a fence with its lines and marks, or None with the lines between fences."""
    between: list[str] = []
    inside: list[str] = []
    mark = language = ""
    for line in lines:
        match = FENCE.match(line)
        if mark:
            inside.append(line)
            if match and line.strip() == mark:
                yield language, inside
                inside, mark = [], ""
        elif match:
            yield None, between
            between, inside = [], [line]
            mark, language = match[1], match[2]
        else:
            between.append(line)
    yield None, between + inside


class Blocks(Preprocessor):
    """Diagrams, doctests and block equations, before anything else reads the lines."""

    def run(self, lines: list[str]) -> list[str]:
        done: list[str] = []
        for language, part in fences(lines):
            if language == "mermaid":
                done += ["", self.md.htmlStash.store(_diagram("\n".join(part[1:-1]))), ""]
            else:
                done += part if language is not None else self._between(part)
        return done

    def _between(self, lines: list[str]) -> list[str]:
        done: list[str] = []
        rest = list(lines)
        while rest:
            line = rest.pop(0)
            if line.startswith(">>> "):
                example = [line, *_taken(rest, lambda following: following.strip() != "")]
                done += ["", "```pycon", *example, "```", ""]
            elif line.startswith(".. math::"):
                source = [line.removeprefix(".. math::")]
                source += _taken(rest, lambda following: following.startswith("  ") or not following.strip())
                done += self._equation(" ".join(source))
            elif line.strip().startswith("$$"):
                source = [line.strip().removeprefix("$$")]
                while not source[-1].rstrip().endswith("$$") and rest:
                    source.append(rest.pop(0))
                done += self._equation("\n".join(source).strip().removesuffix("$$"))
            else:
                done.append(line)
        return done

    def _equation(self, source: str) -> list[str]:
        return ["", self.md.htmlStash.store(mathml(source, block=True)), ""]


class InlineEquation(InlineProcessor):
    """``$x$`` and ``:math:`x```."""

    def handleMatch(self, match: re.Match[str], data: str) -> tuple[str, int, int]:
        return self.md.htmlStash.store(mathml(match[1])), match.start(0), match.end(0)


class Role(InlineProcessor):
    """``:class:`name```: the last part of the name, linked where the reference has it."""

    def handleMatch(self, match: re.Match[str], data: str) -> tuple[Element, int, int]:
        name = match[1].lstrip("~")
        link = Element("autoref", {"identifier": name if "." in name else f"elm_neuro.{name}", "optional": ""})
        code = Element("code")
        code.text = name.removeprefix("elm_neuro.")
        link.append(code)
        return link, match.start(0), match.end(0)


class Markup(Extension):
    """All of it; appended to the extensions of the site and of its docstrings by hooks.py."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(Blocks(md), "elm_neuro-blocks", 28)  # before fences (25)
        md.inlinePatterns.register(
            InlineEquation(r"(?<![\\$\w])\$(?=\S)([^$\n\x02]+?)(?<=\S)\$(?![\w$])", md), "elm_neuro-math", 189
        )
        md.inlinePatterns.register(InlineEquation(r":math:`([^`]+)`", md), "elm_neuro-math-role", 192)
        md.inlinePatterns.register(Role(r":(?:class|func|meth|mod|attr):`([^`]+)`", md), "elm_neuro-role", 191)


def _taken(rest: list[str], while_true: Callable[[str], bool]) -> list[str]:
    taken: list[str] = []
    while rest and while_true(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _diagram(source: str) -> str:
    path = diagram_file(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"the diagram {source.strip()[:60]!r} has no picture: python docs/tools/diagrams.py draws it"
        )
    return f'<figure class="diagram">{path.read_text(encoding="utf-8")}</figure>'


def makeExtension(**options: Any) -> Markup:
    """The name that Markdown asks for."""
    return Markup(**options)
