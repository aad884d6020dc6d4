"""A report as one HTML file, which needs no network: its tables, pictures, curves and sliders."""

import html
import json
import pathlib
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

WEB = pathlib.Path(__file__).parent / "web"
LINK = re.compile(r"\[([^\]]+)\]\((https?://[^\s)]+)\)")
END = "</html>\n"


class Part(NamedTuple):
    """A part of a page.

    Attributes:
      title: its heading, "" for none.
      text: its text, in the Markdown of `as_html`.
      host: what page.js draws in it: same_noise, quality, explorer or losses; "" for nothing.
      folded: whether it is folded away.
    """

    title: str
    text: str = ""
    host: str = ""
    folded: bool = False


def render(title: str, parts: Sequence[Part], data: Mapping[str, Any]) -> str:
    """Returns a page.

    Args:
      title: its title.
      parts: its parts.
      data: data of its curves and pictures, from plots.data.
    """
    # In a script, "<" could end it; in JSON, "\\u003c" is the same letter.
    content = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    template = string.Template((WEB / "page.html").read_text())
    return template.substitute(
        title=html.escape(title),
        style=(WEB / "page.css").read_text(),
        body="\n".join(map(_part, parts)),
        data=content,
        script=(WEB / "page.js").read_text(),
    )


def _part(part: Part) -> str:
    """Returns a part in HTML."""
    inner = as_html(part.text)
    if part.host:
        scroll = ' class="scroll" tabindex="0" role="region"' if part.host == "same_noise" else ""
        inner += (
            f'\n<div data-host="{part.host}"{scroll} aria-label="{html.escape(part.title)}"></div>'
        )
    title = html.escape(part.title)
    if part.folded:
        return f"<details><summary>{title}</summary>\n{inner}\n</details>"
    heading = f"<h2>{title}</h2>\n" if title else ""
    return f"<section>\n{heading}{inner}\n</section>"


def as_html(text: str) -> str:
    """Returns Markdown in HTML: paragraphs, lists, tables, `code`, and links to the web."""
    return "\n".join(_block(block) for block in re.split(r"\n{2,}", text.strip()) if block)


def _block(block: str) -> str:
    lines = block.splitlines()
    if all(line.startswith("|") for line in lines):
        return _table(lines)
    for tag, mark in (("ul", r"\* "), ("ol", r"\d+\. ")):
        if all(re.match(mark, line) for line in lines):
            items = (f"<li>{_inline(re.sub(f'^{mark}', '', line))}</li>" for line in lines)
            return f"<{tag}>{''.join(items)}</{tag}>"
    if heading := re.match(r"#+ ", block):
        return f"<h3>{_inline(block[heading.end() :])}</h3>"
    return f"<p>{_inline(' '.join(lines))}</p>"


def _table(lines: Sequence[str]) -> str:
    titles, _, *rows = ([cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines)
    head = "".join(f'<th scope="col">{_inline(cell)}</th>' for cell in titles)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{table}</div>'


def _cell(cell: str) -> str:
    return f"<td{' class=text' if len(cell) > 24 else ''}>{_inline(cell)}</td>"


def _inline(text: str) -> str:
    """Returns a line in HTML; nothing in it is a tag."""
    safe = html.escape(text)
    safe = LINK.sub(r'<a href="\2">\1</a>', safe)
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
