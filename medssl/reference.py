"""The job behind `medssl settings`: every key of a run's settings with its allowed values, default and meaning.

All of it is read from the models that validate the settings, so the command, and docs/settings.md that it writes,
always match the code.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from medssl.errors import ConfigError
from medssl.methods import METHODS
from medssl.run import RunConfig

WIDTH = 100
"""Line width of the plain text, in characters."""
_SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
_KINDS = {"string": "text", "boolean": "true or false", "null": "null"}
_HEAD = """# Settings

This page lists every key that can be set in the YAML files of `medssl train` or with `--set`. It is the output of
`medssl settings --markdown`; `medssl settings train` and `medssl settings bcp` print parts of it. Defaults are those of
the package. Files in `configs/` set other values, and files in `configs/method/` set those of a method's paper. The
`config.yaml` of a run holds all keys with their values.

An editor can check a file as you type and explain its keys. For this, run
`medssl settings --json-schema > medssl.schema.json` and begin the file with the line
`# yaml-language-server: $schema=medssl.schema.json`.
"""


@dataclass(frozen=True)
class Key:
    """A setting."""

    name: str
    """The dotted name with its sections, as `--set` takes it."""
    values: str
    """The allowed values, in words."""
    default: str
    """As YAML, or `required`."""
    says: str


@dataclass(frozen=True)
class Section:
    """The settings of a section, or of a method."""

    title: str
    says: str
    keys: tuple[Key, ...]


def sections() -> dict[str, Section]:
    """Return all sections by name; a method's section has the name of the method."""
    whole = RunConfig.model_json_schema()
    models, plain = whole["$defs"], {}
    found = {}
    for name, field in whole["properties"].items():
        model = _model(field, models)
        if model is None:
            plain[name] = field
        elif name != "method":
            keys = tuple(_keys(model, models, f"{name}."))
            found[name] = Section(f"`{name}`", _line(model.get("description", "")), keys)
    run = Section("The run itself", "", tuple(_keys({"properties": plain}, models, "")))
    for name, method in METHODS.items():
        schema = method.Config.model_json_schema()
        del schema["properties"]["name"]
        says = f"The `method` section where `method.name` is `{name}`."
        found[name] = Section(f"`method`: {name}", says, tuple(_keys(schema, schema.get("$defs", {}), "method.")))
    return {"run": run, **found}


def describe(name: str | None = None) -> str:
    """Return, as plain text, a section, a part of one such as `data.recipe`, a key such as `train.lr`, or everything.

    Raises:
        ConfigError: there is no such section or key.
    """
    found = sections()
    chosen = found if name is None else {name: found[name]} if name in found else _part(found, name)
    if not chosen:
        likely = _likely(found, str(name))
        meant = f"did you mean {' or '.join(likely)}? The" if likely else "the"
        raise ConfigError(f"settings {name}: no such key or section; {meant} sections are {', '.join(found)}")
    return "\n".join(_as_text(section) for section in chosen.values())


def _part(found: Mapping[str, Section], name: str) -> dict[str, Section]:
    """The sections, reduced to the keys that are `name` or inside it."""
    inside = {
        title: tuple(key for key in section.keys if f"{key.name}.".startswith(f"{name}."))
        for title, section in found.items()
    }
    return {title: replace(found[title], keys=keys) for title, keys in inside.items() if keys}


def _likely(found: Mapping[str, Section], name: str) -> list[str]:
    """The keys that end in `name`, or else the key or section with the most similar spelling."""
    keys = list(dict.fromkeys(key.name for section in found.values() for key in section.keys))
    return [key for key in keys if key.endswith(f".{name}")] or difflib.get_close_matches(name, [*found, *keys], n=1)


def markdown() -> str:
    """Return the page docs/settings.md."""
    return "\n".join([_HEAD, *(_as_table(section) for section in sections().values())])


def json_schema() -> dict[str, Any]:
    """Return a JSON Schema of a run's YAML files for editors. Files are merged, so no single one must have any key."""
    schema = RunConfig.model_json_schema()
    named = {name: method.Config.model_json_schema() for name, method in METHODS.items()}
    for name, each in named.items():
        schema["$defs"] |= each.pop("$defs", {})
        each["properties"]["name"]["const"] = name
    del schema["$defs"]["MethodConfig"]
    schema["properties"]["method"] = {"anyOf": list(named.values())}
    optional: dict[str, Any] = _without_required(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **optional, "title": "Settings of medssl"}


def _without_required(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_required(value) for key, value in schema.items()
                if key != "required" or not isinstance(value, list)}  # fmt: skip
    return [_without_required(value) for value in schema] if isinstance(schema, list) else schema


def _keys(model: Mapping[str, Any], models: Mapping[str, Any], prefix: str) -> Iterator[Key]:
    """The keys of a JSON schema; those of a section inside it follow it."""
    for key, field in model["properties"].items():
        inside, name = _model(field, models), prefix + key
        if inside is None or _kinds(field):  # a section that may be something else, such as null, is a key as well
            default = _as_yaml(field["default"]) if "default" in field else "required"
            yield Key(name, _values(field), default, _line(field.get("description", "")))
        if inside is not None:
            yield from _keys(inside, models, f"{name}.")


def _model(field: Mapping[str, Any], models: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The section that a field is, or may be."""
    for one in (field, *_kinds(field)):
        if "$ref" in one:
            model: Mapping[str, Any] = models[one["$ref"].rpartition("/")[2]]
            return model
    return None


def _kinds(field: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The alternatives of a field that may be of several kinds; empty for others."""
    kinds: Sequence[Mapping[str, Any]] = field.get("anyOf") or field.get("oneOf") or ()
    return kinds


def _values(field: Mapping[str, Any]) -> str:
    """The allowed values of a field of a JSON schema, in words."""
    if kinds := _kinds(field):
        return " or ".join(_values(one) for one in kinds)
    if "$ref" in field:
        return "a section"
    if "enum" in field or "const" in field:
        return " | ".join(str(value) for value in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"[{', '.join(_values(item) for item in field['prefixItems'])}]"
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_as_one(_values(field['items']))}"
    if kind == "object":
        inside = field.get("additionalProperties", True)
        return f"names, each with {_as_one(_values(inside))}" if isinstance(inside, dict) else "keys with values"
    kind = "path" if field.get("format") == "path" else _KINDS.get(kind, kind)
    return f"{kind} {' and '.join(f'{sign} {field[key]:g}' for key, sign in _SIGNS.items() if key in field)}".rstrip()


def _as_one(values: str) -> str:
    return f"({values})" if " or " in values or " | " in values else values


def _as_yaml(value: Any) -> str:
    value = round(value, 4) if isinstance(value, float) else value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _line(text: str) -> str:
    return " ".join(text.split())


def _as_text(section: Section) -> str:
    lines = [section.title.replace("`", ""), *textwrap.wrap(section.says, WIDTH)]
    for key in section.keys:
        lines += ["", f"{key.name}: {key.values}; {_default(key)}"]
        lines += textwrap.wrap(key.says, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _default(key: Key) -> str:
    return key.default if key.default == "required" else f"default {key.default}"


def _as_table(section: Section) -> str:
    rows = [("key", "values", "default", "what it does"), ("---",) * 4]
    for key in section.keys:
        default = key.default if key.default == "required" else f"`{key.default}`"
        rows.append((f"`{key.name}`", key.values, default, key.says))
    table = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"## {section.title}", "", *([section.says, ""] if section.says else []), *table, ""])
