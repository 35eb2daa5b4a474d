"""The tables of a report as Markdown and as LaTeX for papers. LaTeX needs the package booktabs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medssl.report.tables import Cell, Column, Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "−": "$-$", "–": "--", "“": "``", "”": "''", "’": "'", "∩": r"$\cap$",
}  # fmt: skip
_MARKDOWN = str.maketrans({c: "\\" + c for c in "\\`*_[]<>|~$"})


def as_markdown(title: str, tables: Sequence[Table]) -> str:
    """Return the tables as Markdown, one below the other, numbered as on the page."""
    return "\n\n".join([f"# {_plain(title)}", *(_markdown(i, table) for i, table in enumerate(tables, 1))]) + "\n"


def as_latex(title: str, tables: Sequence[Table]) -> str:
    """Return the tables as LaTeX, each a `table` float, to be read with \\input. LaTeX numbers them."""
    head = f"% {_line(title)}\n% needs \\usepackage{{booktabs}}; for wide tables, \\resizebox of the package graphicx"
    return "\n\n".join([head, *map(_latex, tables)]) + "\n"


def _markdown(number: int, table: Table) -> str:
    grouped = any(name for name, _ in table.groups)
    heads = [*(["Class or group"] if grouped else []), *(_plain(_joined(column)) for column in table.columns)]
    rule = [*(["---"] if grouped else []), *("---:" if c.kind == "number" else "---" for c in table.columns)]
    lines = [
        [*([_plain(name)] if grouped else []), *(_plain(_joined(cell)) for cell in line)]
        for name, cells in table.groups for line in cells
    ]  # fmt: skip
    rows = ["| " + " | ".join(line) + " |" for line in (heads, rule, *lines)]
    return f"Table {number}. {_plain(table.caption)}\n\n" + "\n".join(rows)


def _latex(table: Table) -> str:
    align = {"number": "r", "text": "l", "long": "p{4cm}"}
    width = len(table.columns)
    body = []
    for name, lines in table.groups:
        if name:
            body.append(rf"\midrule \multicolumn{{{width}}}{{l}}{{\emph{{{_escaped(name)}}}}} \\")
        body += [" & ".join(_escaped(_joined(cell)) for cell in line) + r" \\" for line in lines]
    return "\n".join([
        r"\begin{table}",
        rf"\caption{{{_escaped(table.caption)}}}",
        rf"\label{{tab:{table.id}}}",
        r"\centering\small",
        rf"\begin{{tabular}}{{{''.join(align[column.kind] for column in table.columns)}}}",
        r"\toprule",
        " & ".join(_escaped(_joined(column)) for column in table.columns) + r" \\",
        *([] if table.groups[0][0] else [r"\midrule"]),
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ])  # fmt: skip


def _joined(part: Cell | Column) -> str:
    text = part.head if isinstance(part, Column) else part.text
    return f"{text} ({part.note})" if part.note else text


def _line(text: str) -> str:
    return " ".join(text.split())


def _plain(text: str) -> str:
    return _line(text).translate(_MARKDOWN)


def _escaped(text: str) -> str:
    told = re.sub("|".join(map(re.escape, _LATEX)), lambda found: _LATEX[found[0]], _line(text))
    return "{}" + told if told.startswith(("[", "*")) else told  # else the \\ above reads it as its argument
