"""HTML of values in a notebook: a title, a few facts, a table; everything escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

_CELL = "text-align:left;padding:1px 12px 1px 0;vertical-align:top"


class PlainText(str):
    """Text that Python and notebooks show as it is, line by line."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def short_value(value: Any) -> str:
    """A number with four figures, a missing one as a dash, anything else as text.

    Example:
        >>> short_value(0.123456), short_value(float("nan")), short_value(3), short_value("a")
        ('0.1235', '–', '3', 'a')
    """
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return "–" if value is None else str(value)


def notebook_card(
    title: str,
    facts: Iterable[tuple[str, Any]] = (),
    *,
    columns: Sequence[str] = (),
    rows: Iterable[Sequence[Any]] = (),
    remarks: Iterable[str] = (),
    picture: bytes = b"",
    parts: Iterable[str] = (),
) -> str:
    """HTML for ``_repr_html_``.

    Args:
        title: one line, what the value is.
        facts: names and values, a line each.
        columns, rows: a table below.
        remarks: sentences below the table.
        picture: a PNG.
        parts: HTML that this function gave, of values inside this one.

    Example:
        >>> notebook_card("a <b>", [("n", 3)]).count("<b>")
        0
    """
    out = [f"<div><strong>{html.escape(title)}</strong>"]
    lines = [
        f'<tr><td style="{_CELL};color:#595959">{html.escape(name)}</td>'
        f'<td style="{_CELL}">{html.escape(short_value(value))}</td></tr>'
        for name, value in facts
    ]
    if lines:
        out.append(f"<table>{''.join(lines)}</table>")
    if picture:
        import base64

        data = base64.b64encode(picture).decode()
        out.append(f'<div><img alt="Drawing of the circuit" style="width:354px;max-width:100%" '
                   f'src="data:image/png;base64,{data}"></div>')  # fmt: skip
    body = [
        "<tr>"
        + "".join(f'<td style="{_CELL}">{html.escape(short_value(v))}</td>' for v in row)
        + "</tr>"
        for row in rows
    ]
    if body:
        head = "".join(f'<th style="{_CELL}">{html.escape(name)}</th>' for name in columns)
        out.append(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")
    out += [f"<p>{html.escape(text)}</p>" for text in remarks]
    out += parts
    return "".join([*out, "</div>"])
