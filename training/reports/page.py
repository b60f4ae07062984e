"""A self-contained HTML page: one style sheet inside, no script, nothing fetched. All text is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(title: str, *, header: str, sections: Iterable[str], footer: str) -> str:
    """The whole document. `title` is text; the others are HTML. Its policy forbids scripts and every request."""
    style = STYLE.read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"<header>\n{header}\n</header>\n<main>\n" + "\n".join(part for part in sections if part) + "\n</main>\n"
        f"<footer>{footer}</footer>\n</body>\n</html>\n"
    )


def text(content: object) -> str:
    """A user's words: escaped, and kept from turning the direction of what stands around them."""
    clean = str(content).encode("utf-8", "replace").decode("utf-8")
    return f"<bdi>{escape(clean)}</bdi>"


def section(title: str, lead: str, content: str) -> str:
    """One card. `title` is text; `lead` and `content` are HTML."""
    said = f'<p class="soft">{lead}</p>' if lead else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{said}\n{content}\n</section>"


def tile(what: str, figure: str, note: str) -> str:
    """A figure large enough to read from afar. All three are HTML."""
    return (
        f'<div class="tile"><div class="what">{what}</div><div class="figure">{figure}</div>'
        f'<div class="note">{note}</div></div>'
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; the first column is set to the left, the others are figures."""
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    names = "".join(f'<th scope="col">{name}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{names}</tr></thead><tbody>{cells}</tbody></table></div>'


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """Horizontal bars: (name, share from 0 to 1, what is written after it), name and note as HTML."""
    return (
        '<div class="bars">'
        + "".join(
            f'<div>{name}</div><div class="bar"><i style="width:{100 * share:.1f}%"></i></div>'
            f'<div class="value">{note}</div>'
            for name, share, note in rows
        )
        + "</div>"
    )


def figure(caption: str, drawing: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{drawing}</figure>"
