"""The look of a report: one HTML file with its style inside, and the few blocks that it is made of.

Every function escapes the text it is given; arguments named `*_html` are HTML already. The page's content policy
forbids anything from outside the file.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #fff; --text: #1c1d22; --muted: #676b76; --line: #e4e5e9;
  --c0: #0b6bcb; --c1: #d9730d; --c2: #2c8a57; --c3: #8a4fc7; --c4: #c2385a; --c5: #0f8f9e; --c6: #8f7a00;
  --c7: #7a7f8c; }
@media (prefers-color-scheme: dark) { :root { --ground: #14151a; --card: #1c1e25; --text: #e9eaee; --muted: #989daa;
  --line: #2f323c; --c0: #5aa9f8; --c1: #f0a04b; --c2: #5ec48d; --c3: #b98cf0; --c4: #f07a97; --c5: #4fc7d6;
  --c6: #d3bd45; --c7: #9ba1af; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", sans-serif; -webkit-text-size-adjust: 100%; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 18px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 44px 0 4px; letter-spacing: -.005em; }
p { margin: 0 0 12px; max-width: 46rem; }
.note { color: var(--muted); font-size: .9rem; }
.missing { color: var(--muted); border: 1px dashed var(--line); border-radius: 8px; padding: 10px 14px;
  font-size: .9rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 20px 0 12px; }
.tile, figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile b { display: block; font-size: 2rem; line-height: 1.15; font-weight: 650; letter-spacing: -.02em;
  font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: .85rem; }
.tile.main { border-color: var(--c0); }
.tile.main b { color: var(--c0); }
.multiples { display: grid; gap: 12px; margin-top: 10px; max-width: calc(var(--count) * var(--widest));
  grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); }
figure { margin: 0; padding: 12px 14px 8px; min-width: 0; }
figcaption { font-size: .88rem; font-weight: 600; margin-bottom: 6px; }
.legend { font-weight: 400; color: var(--muted); font-size: .8rem; display: flex; flex-wrap: wrap; gap: 0 12px; }
.legend i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px;
  background: var(--c); }
.legend em { font-style: normal; color: var(--text); font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: var(--muted); }
svg .name, svg .value { fill: var(--text); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke: var(--c); stroke-linejoin: round; }
svg .line { stroke-width: 1.8; }
svg .faint { stroke-width: 1; opacity: .3; }
svg .dot { fill: var(--c); }
svg .whisker { stroke: var(--c); stroke-width: 5; stroke-linecap: round; opacity: .35; }
img, video { display: block; width: 100%; height: auto; border-radius: 6px; image-rendering: pixelated; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card);
  margin-top: 10px; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--muted); font-size: .78rem; }
th[colspan] { text-align: center; }
tr > :first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tr.dim { color: var(--muted); }
tr:last-child td { border-bottom: 0; }
td.group, th.group { border-left: 1px solid var(--line); }
td small { color: var(--muted); }
.share { display: inline-block; height: 8px; border-radius: 4px; background: var(--c0); min-width: 2px; }
td.wide { width: 45%; text-align: left; }
details { margin-top: 12px; border: 1px solid var(--line); border-radius: 10px; background: var(--card); }
summary { cursor: pointer; padding: 10px 14px; font-weight: 600; font-size: .92rem; }
details > :not(summary) { margin: 0 14px 14px; }
pre { overflow-x: auto; font: .8rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 18px; margin: 10px 0;
  font-size: .9rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
""" + "".join(f".c{i} {{ --c: var(--c{i}); }}\n" for i in range(8))

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def page(title: str, sections_html: Iterable[str]) -> str:
    """The whole file."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections_html)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, content_html: str, note: str = "") -> str:
    """A heading, a sentence on how to read what follows, and what follows."""
    return f"<section><h2>{escape(title)}</h2>{paragraph(note, 'note') if note else ''}{content_html}</section>"


def paragraph(text: str, css: str = "") -> str:
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def missing(text: str) -> str:
    """Says that an input is not there, where its content would be."""
    return paragraph(text, "missing")


def tiles(entries: Iterable[tuple[str, str, bool]]) -> str:
    """Large figures: (figure, what it is, whether it is the main one)."""
    blocks = (
        f'<div class="tile{" main" if main else ""}"><b>{escape(figure)}</b><span>{escape(text)}</span></div>'
        for figure, text, main in entries
    )
    return f'<div class="tiles">{"".join(blocks)}</div>'


def figure(title: str, content_html: str, legend: Sequence[tuple[int, str, str]] = (), aside: str = "") -> str:
    """A card with a title; legend: (colour, name, last value) of each curve; aside: what else stands by the title."""
    keys = "".join(
        f'<span class="c{colour}"><i></i>{escape(name)} <em>{escape(value)}</em></span>'
        for colour, name, value in legend
    )
    keys = f'<span class="legend">{keys}{escape(aside)}</span>' if keys or aside else ""
    return f"<figure><figcaption>{escape(title)}{keys}</figcaption>{content_html}</figure>"


def multiples(figures_html: Sequence[str], widest_px: int = 370) -> str:
    """Cards side by side, as many as fit, none wider than `widest_px`."""
    style = f"--count: {len(figures_html)}; --widest: {widest_px}px"
    return f'<div class="multiples" style="{style}">{"".join(figures_html)}</div>'


def definitions(entries: Mapping[str, str]) -> str:
    """Names and their values."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>' for name, value in entries.items())}</dl>"


def folded(title: str, content_html: str) -> str:
    """Content that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{content_html}</details>"
