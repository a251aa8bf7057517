"""The figures of `openmodal bench` as a picture: SVG, written by hand, for it is bars and words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from xml.sax.saxutils import escape

Medians = Mapping[str, float]

_WIDTH, _LABELS, _BARS = 800, 290, 320
_ROW, _GAP, _TOP = 20, 14, 56

# An image in a page has no styles of the page's: it follows the reader's light or dark itself.
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .small { font-size: 11px; fill: #59636e }
.bar0 { fill: #4f46e5 } .bar1 { fill: #afb8c1 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .small { fill: #9198a1 } .bar0 { fill: #8b8cf8 } .bar1 { fill: #545d68 }
}"""


def bars(title: str, series: Mapping[str, Medians], note: str) -> str:
    """Draw milliseconds: a group of bars for each step that all of the series have.

    Args:
        title: said above.
        series: by their names, the first one ours; each has milliseconds by the names of steps.
        note: said below: where and how this was measured.
    """
    steps = [step for step in next(iter(series.values())) if all(step in medians for medians in series.values())]
    y, parts = _TOP, [f'<text class="title" x="16" y="28">{escape(title)}</text>']
    for step in steps:
        found = [(name, medians[step]) for name, medians in series.items()]
        parts.append(f'<text x="16" y="{y + 15}">{escape(step)}</text>')
        parts += _group(y, found, list(series))
        y += _ROW * len(found) + _GAP
    for line in note.splitlines():
        parts.append(f'<text class="small" x="16" y="{y + 14}">{escape(line)}</text>')
        y += 16
    height = y + 14
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _group(y: int, found: Sequence[tuple[str, float]], names: Sequence[str]) -> Iterator[str]:
    """The bars of a step; its slowest has the full length, so each step has a scale of its own."""
    most = max(ms for _, ms in found)
    ours = found[0][1]
    for row, (name, ms) in enumerate(found):
        top, length = y + row * _ROW, max(2.0, ms / most * _BARS)
        times = f" ({ms / ours:.1f} x)" if row and ours else ""
        text = f"{figure(ms)} ms  {name}{times}" if len(names) > 1 else f"{figure(ms)} ms"
        yield (
            f'<rect class="bar{min(1, names.index(name))}" x="{_LABELS}" y="{top + 3}" width="{length:.1f}" '
            f'height="{_ROW - 5}" rx="2"/>'
        )
        yield f'<text x="{_LABELS + length + 8:.1f}" y="{top + 15}">{escape(text)}</text>'


def figure(ms: float) -> str:
    """A number as short as it is exact."""
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}"


__all__ = ["bars", "figure"]
