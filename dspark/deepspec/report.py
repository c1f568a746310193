"""A report on drafters as files: report.json, report.html (one file, pictures inside), PNGs and comparison.md.

Knows the records of results.py, the tables of cards.py and the pictures of figures.py. Every text from outside is escaped; the page
runs no script and loads nothing.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path

from dspark.deepspec.cards import calibration_rows, comparison_markdown, comparison_rows, node_rows, position_rows, sweep_rows
from dspark.deepspec.figures import (
    DARK,
    LIGHT,
    Theme,
    acceptance_figure,
    conditional_acceptance_figure,
    reliability_figure,
    sweep_figure,
)
from dspark.deepspec.files import write_atomically
from dspark.deepspec.results import EvaluationResult, PositionCalibration, Report, write_report_json

HTML = "report.html"
COMPARISON = "comparison.md"

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1f2328; --faint: #d5d9de; --soft: #59636e; --band: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #161b22; --ink: #e6edf3; --faint: #3a424c; --soft: #9aa4af; --band: #1d242d; }
}
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
p.note, figcaption { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { border-bottom: 1px solid var(--faint); padding: .35rem .7rem; text-align: left; white-space: nowrap; }
thead th { border-bottom-width: 2px; } tbody tr:nth-child(even) { background: var(--band); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: var(--soft); } dd { margin: 0; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; }
"""

Draw = Callable[[Theme], bytes | None]


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure of the report as PNG, on light and on dark paper."""

    name: str
    """Of its file."""
    caption: str
    light: bytes
    dark: bytes


def write_report(folder: Path, report: Report) -> list[Path]:
    """All files of the report into the folder; returns them, the page first."""
    pictures = list(_pictures(report))
    paths = [folder / HTML, write_report_json(folder, report), folder / COMPARISON]
    for picture in pictures:
        write_atomically(folder / picture.name, picture.light)
        paths.append(folder / picture.name)
    write_atomically(folder / COMPARISON, f"# {report.title}\n\n{comparison_markdown(report.results)}\n".encode())
    write_atomically(folder / HTML, _page(report, pictures).encode())
    return paths


def report_html(report: Report) -> str:
    """The page by itself."""
    return _page(report, list(_pictures(report)))


def _page(report: Report, drawn: Sequence[Picture]) -> str:
    title = escape(report.title)
    facts = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in report.facts.items())
    sections = "\n".join(_sections(report, {picture.name: picture for picture in drawn}))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n<dl>{facts}</dl>\n{sections}\n</body></html>\n"
    )


def _sections(report: Report, pictures: dict[str, Picture]) -> Iterator[str]:
    yield "<h2>Comparison</h2>" + _note(
        "tau: committed tokens per round, the target's own included; plain decoding has 1. Brackets: 95 % bootstrap intervals over "
        "prompts. accepted, verified and drafted are tokens per round."
    )
    yield _table(*comparison_rows(report.results))
    yield "<h2>Acceptance by position</h2>" + _image(pictures, "acceptance.png")
    yield _table(*position_rows(report.results, conditional=False))
    yield "<h3>Given that all before it were accepted</h3>" + _image(pictures, "conditional_acceptance.png")
    yield _table(*position_rows(report.results, conditional=True))
    if any(result.sweep for result in report.results):
        yield "<h2>Threshold sweep</h2>" + _image(pictures, "sweep.png")
        yield from (f"<h3>{_label(r)}</h3>{_table(*sweep_rows(r))}" for r in report.results if r.sweep)
    if any(result.calibration for result in report.results):
        yield "<h2>Calibration</h2>" + _note(
            "Estimated survival before → after, on sessions that the fit did not see. The floor is what perfect estimates would show on so "
            "few rounds: an error near it cannot be told from none."
        )
        yield from _calibration_sections(report.results, pictures)
    if report.nodes:
        yield "<h2>Candidates of trees</h2>" + _note(
            "Chance of a candidate to be the target's token, given that its parent is: estimators on sessions that the fit did not see."
        )
        yield _table(*node_rows(report.nodes))


def _calibration_sections(results: Sequence[EvaluationResult], pictures: dict[str, Picture]) -> Iterator[str]:
    for index, result in enumerate(results):
        if result.calibration:
            images = "".join(_image(pictures, name) for name, _ in _reliability_groups(index, result))
            yield f"<h3>{_label(result)}</h3>{_table(*calibration_rows(result.calibration))}{images}"


def _pictures(report: Report) -> Iterator[Picture]:
    """Those for which there is something to draw."""
    for name, caption, draw in _drawings(report):
        light, dark = draw(LIGHT), draw(DARK)
        if light is not None and dark is not None:
            yield Picture(name, caption, light, dark)


def _drawings(report: Report) -> Iterator[tuple[str, str, Draw]]:
    """File name, caption, and how to draw it."""
    results = report.results
    caption = "Share of rounds that accepted each draft position together with all before it."
    yield "acceptance.png", caption, partial(acceptance_figure, results)
    yield (
        "conditional_acceptance.png",
        "The same among rounds that accepted all before it.",
        partial(conditional_acceptance_figure, results),
    )
    caption = "tau against verified tokens per round; the number at a point is its threshold of estimated survival."
    yield "sweep.png", caption, partial(sweep_figure, results)
    for index, result in enumerate(results):
        for name, rows in _reliability_groups(index, result):
            label = f"{result.drafter}, {result.prompt_set}, temperature {rows[0].sampling_temperature:g}"
            caption = f"{label}: claimed against observed survival; the larger the dot, the more rounds."
            yield name, caption, partial(reliability_figure, rows)


def _reliability_groups(index: int, result: EvaluationResult) -> Iterator[tuple[str, list[PositionCalibration]]]:
    """File name and rows of one diagram per sampling temperature. Numbers, not names, make the file name: names come from outside."""
    for temperature in sorted({row.sampling_temperature for row in result.calibration}):
        rows = [row for row in result.calibration if row.sampling_temperature == temperature]
        yield f"reliability_{index}_t{temperature:g}.png", rows


def _image(pictures: dict[str, Picture], name: str) -> str:
    """In both themes; the browser picks."""
    picture = pictures.get(name)
    if picture is None:
        return _note("Nothing to draw.")
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in (picture.light, picture.dark)]
    caption = escape(picture.caption)
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{urls[1]}">'
        f'<img alt="{caption}" src="{urls[0]}"></picture><figcaption>{caption}</figcaption></figure>'
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _label(result: EvaluationResult) -> str:
    return escape(f"{result.drafter}, {result.prompt_set}, temperature {result.temperature:g}")
