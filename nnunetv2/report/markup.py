"""HTML from Python: text is escaped unless it is markup already, so that no name from a file can become part of the page."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2.report.charts import Chart

VOID = frozenset({"img", "br", "meta", "hr", "col"})


class Markup(str):
    """Text that is HTML; made by :func:`element` and :func:`joined` alone."""

    __slots__ = ()


def element(tag: str, /, *children: Any, **attributes: Any) -> Markup:
    """``<tag attribute="...">children</tag>``.

    Args:
        tag: Name.
        children: Markup stays as it is, everything else is escaped text; lists are taken apart; None is left out.
        attributes: Values are escaped; None is left out. ``class_`` is ``class``, other underscores become hyphens.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*children: Any) -> Markup:
    """Children of an element, one after the other."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(joined(*child))
        else:
            parts.append(html.escape(str(child), quote=True))
    return Markup("".join(parts))


def paragraph(*children: Any, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", *children, class_=class_)


def bullet_list(items: Iterable[Any], class_: str | None = None) -> Markup:
    """A list with one entry for each item."""
    return element("ul", [element("li", item) for item in items], class_=class_)


def table(header: Sequence[Any] | None, rows: Iterable[Sequence[Any]], *, caption: str, class_: str = "numbers") -> Markup:
    """A table that scrolls within its box where the page is narrow; the first cell of a row is its heading."""
    head = None if header is None else element("thead", element("tr", [element("th", cell, scope="col") for cell in header]))
    body = [element("tr", element("th", first, scope="row"), [element("td", cell) for cell in rest]) for first, *rest in rows]
    content = element("table", head, element("tbody", body), class_=class_, aria_label=caption)
    # Not a <caption>: that one is as wide as the table, and scrolls out of sight with it.
    box = element("div", content, class_="scroll", role="region", aria_label=caption, tabindex="0")
    return element("div", element("p", caption, class_="caption"), box, class_="table")


def interval(value: float, limits: Any, form: Any) -> Markup:
    """A number and its 95 % interval in smaller letters."""
    text = form(value)
    if not limits or not limits.get("draws"):
        return element("span", text)
    return joined(
        element("span", text),
        " ",
        element("span", f"({form(limits['low'], bare=True)}–{form(limits['high'], bare=True)})", class_="interval"),
    )


def score(value: float, bare: bool = False) -> str:
    """``0.83``; a dash where there is no number."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def percent(value: float, bare: bool = False) -> str:
    """``83 %``, without the sign where it stands in an interval."""
    return "–" if math.isnan(value) else f"{100 * value:.0f}" + ("" if bare else " %")


def facts_table(facts: Iterable[tuple[str, Any]], caption: str) -> Markup:
    """Names and values."""
    return table(None, facts, caption=caption, class_="facts")


def absent(sentence: str) -> Markup:
    """Why a section lacks something."""
    return paragraph(sentence, class_="absent")


def chart_grid(charts: Sequence[Chart], class_: str = "charts") -> Markup:
    """Charts beside each other, as far as the page is wide enough."""
    return element("div", [_chart(one) for one in charts], class_=class_)


def _chart(one: Chart) -> Markup:
    """A picture below what it shows."""
    caption = element("figcaption", element("strong", one.title), ". ", one.caption)
    return element("figure", caption, element("img", src=one.address, alt=one.text, width=one.width, height=one.height))
