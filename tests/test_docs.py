"""docs/methods.md says of every method what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from medssl.catalogue import entries
from medssl.config import bundled
from medssl.methods import METHODS
from medssl.predictor import chosen_networks
from medssl.run import build_method, load_run_config

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", PAGE, flags=re.MULTILINE | re.DOTALL))


def settings() -> list[tuple[str, str, str]]:
    """Section, key and value of each `key: value` that a section recommends or explains."""
    pattern = r"`([a-z_]+(?:\.[a-z_]+)*): ([^`]+)`"
    return [(name, *found) for name, text in SECTIONS.items() for found in re.findall(pattern, text)]


def test_every_method_has_a_section_and_every_section_a_configuration():
    assert set(METHODS) <= set(SECTIONS)
    assert all(bundled(f"method/{name}.yaml") for name in SECTIONS)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_is_a_figure_and_a_paragraph(name):
    figure, paragraph = SECTIONS[name].strip().split("\n\n")
    assert re.fullmatch(rf"!\[.+\]\(figures/{name}\.png\)", figure)
    assert (ROOT / f"docs/figures/{name}.png").stat().st_size <= 60 * 1024
    assert re.findall(r"\*\*.+?\*\*", paragraph.replace("\n", " ")) == [
        "**Choose it**", "**It costs**", "**What matters**", "**Traps**", "**Reproduced**"
    ]  # fmt: skip


def test_no_figure_is_left_over():
    assert {path.stem for path in (ROOT / "docs/figures").glob("*.png")} == set(SECTIONS)


@pytest.mark.parametrize(("name", "key", "value"), settings())
def test_a_setting_on_the_page_can_be_given(name, key, value):
    key = key if re.match(r"(augment|network|train|window)\.", key) else f"method.{key}"
    files = [bundled("data/phantom_cbct.yaml"), bundled(f"method/{name}.yaml")]
    config = load_run_config(files, [f"{key}={value}"])
    assert config.method.name == load_run_config(files).method.name


def test_the_page_counts_what_a_step_costs_as_the_catalogue_does():
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d +]+) \| \d+ \| ([\d +]+) \| (\d+) \| ([\d.]+) \|$", PAGE, flags=re.MULTILINE
    )
    costs = {one.file: one.cost for one in entries()}
    trained = {one.file: [one.students, one.teachers] for one in entries()}
    unit = costs["supervised.yaml"].student + 2 * costs["supervised.yaml"].backward
    assert {name for name, *_ in rows} == set(SECTIONS)
    for name, networks, forward, back, time in rows:
        cost = costs[f"{name}.yaml"]
        assert [int(n) for n in networks.split(" + ")] == [n for n in trained[f"{name}.yaml"] if n], name
        assert [int(n) for n in forward.split(" + ")] == [n for n in (cost.student, cost.teacher) if n], name
        assert int(back) == cost.backward, name
        assert float(time) == round((cost.student + cost.teacher + 2 * cost.backward) / unit, 1), name


@pytest.mark.parametrize("name", sorted(set(SECTIONS) - {"supervised", "umct"}))
def test_the_time_in_a_section_is_that_of_the_table(name):
    said = re.search(r"([\d.]+)\s+times\s+the\s+time", SECTIONS[name])
    row = re.search(rf"^\| `{name}` .* ([\d.]+) \|$", PAGE, flags=re.MULTILINE)
    assert said is not None
    assert row is not None
    assert float(said[1]) == float(row[1])


@pytest.mark.parametrize("name", SECTIONS)
def test_as_many_networks_predict_as_the_table_says(name):
    config = load_run_config([bundled("data/phantom_cbct.yaml"), bundled(f"method/{name}.yaml")])
    row = re.search(rf"^\| `{name}` \| [\d +]+ \| (\d+) \|", PAGE, flags=re.MULTILINE)
    assert row is not None
    assert len(chosen_networks(build_method(config), config.window.network)) == int(row[1])
