"""Settings: files merge left to right, overrides last; every shipped configuration is valid."""

from pathlib import Path

import pytest

from medssl.config import load_yaml, merge, parse, update
from medssl.data.cases import DatasetConfig
from medssl.errors import ConfigError
from medssl.networks import check_patch
from medssl.run import load_run_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def test_later_files_win_key_by_key_and_overrides_win_over_all(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {lr: 1, iterations: 5}\ndata: {name: x}\n")
    (tmp_path / "b.yaml").write_text("train: {lr: 2}\n")
    merged = merge([tmp_path / "a.yaml", tmp_path / "b.yaml"], ["train.seed=7", "data.name=null", "network.a.b=[1, 2]"])
    assert merged == {
        "train": {"lr": 2, "iterations": 5, "seed": 7},
        "data": {"name": None},
        "network": {"a": {"b": [1, 2]}},
    }


@pytest.mark.parametrize("text", ["site #2/x", "#2/x", " a #b ", "~/a #1, b #2", "1 #2", "null #2", "a\t#2"])
def test_a_hash_in_an_override_is_part_of_its_text(text):
    assert merge([], [f"data.root={text}"]) == {"data": {"root": text.strip()}}


@pytest.mark.parametrize(
    ("text", "value"), [("'a #b' # c", "a #b"), ('"2"', "2"), (" 'a' ", "a"), ("[a] # b", ["a"]), ("a#b", "a#b")]
)
def test_what_is_quoted_or_listed_is_read_as_in_a_file(text, value):
    assert merge([], [f"data.x={text}"]) == {"data": {"x": value}}


@pytest.mark.parametrize(("text", "value"), [("1e-3", 0.001), ("1.5E+2", 150.0), ("-2e3", -2000.0), ("e3", "e3")])
def test_scientific_notation_is_a_number(text, value):
    assert load_yaml(text) == value


def test_yaml_that_is_no_mapping_is_refused(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="list"):
        merge([tmp_path / "list.yaml"])
    (tmp_path / "code.yaml").write_text("a: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        merge([tmp_path / "code.yaml"])


@pytest.mark.parametrize("data", sorted(p.stem for p in (CONFIGS / "data").glob("*.yaml")))
@pytest.mark.parametrize("method", sorted(p.stem for p in (CONFIGS / "method").glob("*.yaml")))
def test_every_shipped_pair_of_configurations_fits(data, method):
    config = load_run_config([CONFIGS / "data" / f"{data}.yaml", CONFIGS / "method" / f"{method}.yaml"])
    check_patch(config.train.patch, config.network)
    assert (config.name or config.method.name) == method


PROTOCOLS = {
    "acdc_ssl4mis": ("acdc", ["supervised", "mean_teacher", "bcp"], ["acdc_ssl4mis"]),
    "acdc_bcp": ("acdc", ["bcp"], ["acdc_ssl4mis", "acdc_bcp"]),
    "la_uamt": ("la", ["supervised", "mean_teacher", "bcp"], ["la_uamt"]),
    "la_bcp": ("la", ["bcp"], ["la_uamt", "la_bcp"]),
}


def test_every_protocol_is_known_here():
    assert {path.stem for path in (CONFIGS / "protocol").glob("*.yaml")} == set(PROTOCOLS)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_fits_its_data_and_methods_and_names_its_departures(name):
    data, methods, protocols = PROTOCOLS[name]
    for method in methods:
        files = [CONFIGS / "data" / f"{data}.yaml", CONFIGS / "method" / f"{method}.yaml"]
        assert load_run_config(files).protocol is None
        config = load_run_config([*files, *(CONFIGS / "protocol" / f"{name}.yaml" for name in protocols)])
        check_patch(config.train.patch, config.network)
        assert config.protocol.name == name
        assert config.protocol.convention == "ssl4mis"
        assert config.protocol.departures
        assert config.train.labelled_batch == config.train.unlabelled_batch


@pytest.mark.parametrize(("protocol", "method"), [("acdc_bcp", "bcp_acdc"), ("la_bcp", "bcp")])
def test_a_protocol_and_the_methods_own_file_have_the_published_numbers_alike(protocol, method):
    data, (base,), protocols = PROTOCOLS[protocol]
    files = [CONFIGS / "data" / f"{data}.yaml", CONFIGS / "method" / f"{base}.yaml"]
    ours = load_run_config([*files, *(CONFIGS / "protocol" / f"{name}.yaml" for name in protocols)])
    theirs = load_run_config([files[0], CONFIGS / "method" / f"{method}.yaml"])
    assert ours.method == theirs.method
    for name in ("iterations", "labelled_batch", "unlabelled_batch", "optimizer", "lr", "schedule", "weight_decay"):
        assert getattr(ours.train, name) == getattr(theirs.train, name)


def test_nothing_of_a_protocol_is_on_by_default():
    config = load_run_config([CONFIGS / "data" / "acdc.yaml", CONFIGS / "method" / "bcp.yaml"])
    assert config.protocol is None
    assert config.data.recipe.resize is None
    assert (config.window.stride, config.window.blend) == (None, "gaussian")


@pytest.mark.parametrize("text", ["2024-13-45", "!!int a", "[1"])
def test_a_value_that_yaml_cannot_make_is_named(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"name: {text}\n")
    with pytest.raises(ConfigError, match=r"--set name="):
        merge([], [f"name={text}"])
    with pytest.raises(ConfigError, match=r"a\.yaml: cannot be read as YAML"):
        merge([tmp_path / "a.yaml"])


def test_what_is_merged_stays_as_it_was():
    shared, row = {"data": {"recipe": {"intensity": {"window": [1, 99]}}}}, {}
    update(row, shared)
    update(row, {"data": {"recipe": {"intensity": {"window": [10, 90]}}}})
    assert row["data"]["recipe"]["intensity"]["window"] == [10, 90]
    assert shared["data"]["recipe"]["intensity"]["window"] == [1, 99]


def test_faults_are_listed_together():
    files = [CONFIGS / "data" / "hippocampus.yaml", CONFIGS / "method" / "bcp.yaml"]
    with pytest.raises(ConfigError) as failure:
        load_run_config(files, ["train.lr=-1", "train.sead=3", "network.norm=layer"])
    for words in ("train.lr", "train.sead: unknown key; did you mean train.seed?", "network.norm"):
        assert words in str(failure.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"values": {"tooht": [1]}}, "  data: `values` names tooht, which `classes` does not list"),
        ({"recipe": {"spacng": [1, 1, 1]}}, "  data.recipe.spacng: unknown key; did you mean data.recipe.spacing?"),
        (
            {"recipe": {"threshold": "none"}},
            "  data.recipe.threshold: Input should be a valid number, unable to parse string as a number, got 'none'\n"
            "  data.recipe.threshold: Input should be 'nonzero', got 'none'",
        ),
        ({"name": None}, "  data.name: Input should be a valid string, got None"),
        ({"regions": {"all": "tooth"}}, "  data.regions.all: expected a list, got 'tooth'"),
        ({"sides": [["tooth"]]}, "  data.sides.0: value 2 is missing, got ['tooth']"),
        ({"classes": ["background", "tooth", "tooth"]}, "  data: `classes` names tooth more than once"),
        (
            {"regions": {"all": ["tooth", "tooth"]}},
            "  data: `regions.all` needs one class or more, each once, and not the background",
        ),
    ],
)
def test_a_fault_names_its_whole_place_and_not_all_that_stands_there(change, said):
    values = {"name": "cbct", "classes": ["background", "tooth"], **change}
    with pytest.raises(ConfigError) as failure:
        parse(DatasetConfig, values, where="data")
    assert str(failure.value).partition("\n")[2] == said


def test_a_few_lines_that_stand_for_gigabytes_make_a_short_message(tmp_path):
    lines = ["a0: &a0 [lol, lol, lol]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))]
    values = load_yaml("\n".join(lines))
    for change in ({"name": values["a8"]}, {"name": "x", "classes": values["a8"]}):
        with pytest.raises(ConfigError) as failure:
            parse(DatasetConfig, change, where="data")
        assert len(str(failure.value)) < 10_000
    (tmp_path / "deep.yaml").write_text("[" * 5000)
    with pytest.raises(ConfigError, match=r"deep\.yaml: cannot be read as YAML"):
        merge([tmp_path / "deep.yaml"])


@pytest.mark.parametrize("section", ["data", "method"])
def test_a_section_that_no_file_brings_is_named_with_the_files_that_do(section, tmp_path):
    other = {"data": "method/bcp.yaml", "method": "data/acdc.yaml"}[section]
    with pytest.raises(ConfigError, match=f"  {section}: required, but not set; a file such as configs/{section}/"):
        load_run_config([CONFIGS / other])
