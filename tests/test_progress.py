"""What long work says of itself."""

import itertools
import re

import pytest

from medssl.progress import track


def test_lines_tell_of_an_item_under_way(monkeypatch, capsys):
    clock = itertools.count(step=60)
    monkeypatch.setattr("medssl.progress.time.monotonic", lambda: next(clock))
    with track("predict", 3, done=1) as advance:
        advance("a", 0.5)
        advance("a")
        advance("b", 0.25)
        advance("b")
    assert capsys.readouterr().err.splitlines() == [
        "predict: 1 of 3 (a, 50%), 3 min left",
        "predict: 2 of 3 (a), 2 min left",
        "predict: 2 of 3 (b, 25%), 2 min left",
        "predict: 3 of 3",
    ]


def test_short_work_is_one_line(capsys):
    with track("predict", 2) as advance:
        for name, share in (("a", 0.5), ("a", 1), ("b", 0.5), ("b", 1)):
            advance(name, share)
    assert capsys.readouterr().err == "predict: 2 of 2\n"


@pytest.mark.parametrize("done", [0, 1])
def test_a_bar_counts_items_that_are_done(monkeypatch, capsys, done):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with track("predict", 2, done=done) as advance:
        for name in ("a", "b")[done:]:
            for share in (0.5, 0.9, 1):
                advance(name, share)
    assert re.search(r"predict .*2/2", capsys.readouterr().err)
