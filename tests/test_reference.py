"""The page of settings: it is that of the models, and what it says can be set."""

from pathlib import Path

import pytest

from medssl.config import flatten, load_yaml
from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.reference import describe, json_schema, markdown, sections
from medssl.run import load_run_config

ROOT = Path(__file__).parent.parent
DATA = ROOT / "configs/data/hippocampus.yaml"
SECTIONS = sections()


def test_the_page_in_docs_is_what_the_command_writes():
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == markdown()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_key_of_a_run_is_listed_with_a_sentence_and_takes_its_default(method):
    listed = [section for name, section in SECTIONS.items() if name not in METHODS or name == method]
    keys = {key.name: key for section in listed for key in section.keys}
    assert all(key.says.endswith(".") for key in keys.values())
    config = load_run_config([DATA], [f"method.name={method}"])
    for name in flatten(config.to_plain()).keys() - {"method.name", "protocol"}:
        assert any(name == key or name.startswith(f"{key}.") for key in keys), name
    given = [key for key in keys.values() if key.default != "required" and not key.name.startswith("data.")]
    again = load_run_config([DATA], [f"method.name={method}", *(f"{key.name}={key.default}" for key in given
                                                                if not key.name.startswith("protocol."))])  # fmt: skip
    for section in ("window", "logging"):  # what the file of the data leaves alone
        assert getattr(again, section) == getattr(config, section)


def models_of(schema, models):
    """What a place of a schema may be."""
    kinds = [schema, *schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return [models[kind["$ref"].rpartition("/")[2]] if "$ref" in kind else kind for kind in kinds]


def strangers(values, schema, models, place=""):
    """Keys of nested values that a schema has not, and constants that it does not allow."""
    kinds = models_of(schema, models)
    named = [kind for kind in kinds if kind.get("properties", {}).get("name", {}).get("const") == values.get("name")]
    known = {name: field for kind in named or kinds for name, field in kind.get("properties", {}).items()}
    if not known:  # names that are the user's own
        return
    for key, value in values.items():
        if key not in known:
            yield f"{place}{key}"
        elif isinstance(value, dict):
            yield from strangers(value, known[key], models, f"{place}{key}.")


FOLDERS = ("data", "method", "protocol", "size")
FILES = sorted(file for folder in FOLDERS for file in (ROOT / "configs" / folder).glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_editors_find_no_fault_in_our_files(file):
    schema = json_schema()
    values = load_yaml(file.read_text(encoding="utf-8"))
    assert list(strangers(values, schema, schema["$defs"])) == []
    assert list(strangers({**values, "trian": 1}, schema, schema["$defs"])) == ["trian"]
    odd = {**values, "method": {"name": "bcp", "decay": 1}, "data": {"recipe": {"spacin": 1}}}
    assert set(strangers(odd, schema, schema["$defs"])) == {"method.decay", "data.recipe.spacin"}


def test_a_schema_asks_for_nothing_and_closes_every_section():
    schema = json_schema()
    sections = [schema, *schema["$defs"].values(), *schema["properties"]["method"]["anyOf"]]
    assert all(section["additionalProperties"] is False for section in sections)
    assert not any("required" in section for section in sections)
    assert {one["properties"]["name"]["const"] for one in schema["properties"]["method"]["anyOf"]} == set(METHODS)


def test_bounds_and_kinds_are_those_that_are_checked():
    keys = {key.name: key for section in SECTIONS.values() for key in section.keys}
    assert keys["train.lr"].values == "number > 0"
    assert keys["window.overlap"].values == "number >= 0 and < 1"
    assert keys["augment.flips"].values == "list of (0 | 1 | 2)"
    assert keys["train.patch"].values == "[integer > 0, integer > 0, integer > 0]"
    assert keys["data.values"].values == "names, each with list of integer"
    for wrong in ("train.lr=0", "window.overlap=1", "augment.flips=[3]", "train.patch=[1, 2]", "data.values={a: 1}"):
        with pytest.raises(ConfigError, match=wrong.split("=")[0].split(".")[-1]):
            load_run_config([DATA], ["method.name=bcp", wrong])


def test_any_terminal_and_file_can_take_the_text():
    assert describe().isascii()


def test_a_section_alone_in_plain_text():
    text = describe("bcp")
    assert text.startswith("method: bcp\n")
    assert "method.alpha: number >= 0; default 0.5\n    Weight of the unlabelled side" in text
    assert "train.lr" not in text
    assert describe("train.lr").count("default") == 1
    assert "data.recipe.intensity.kind" in describe("data.recipe")
    assert "data.classes" not in describe("data.recipe")
    assert describe("method.alpha").count("method.alpha:") == 2  # of bcp and combined
    with pytest.raises(ConfigError, match=r"settings zzz: no such key or section; the sections are run, .*combined"):
        describe("zzz")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("trian", "train"), ("lr", "train.lr"), ("train.iteration", "train.iterations"), ("supervized", "supervised")],
)
def test_what_was_meant_is_asked(typed, meant):
    with pytest.raises(ConfigError, match=rf"settings {typed}: .*; did you mean {meant}\? The sections are run, "):
        describe(typed)
