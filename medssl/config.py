"""Read YAML files and `--set key=value` into frozen pydantic models.

Files merge left to right, overrides last. Models refuse unknown keys and name the nearest known
one. The models themselves live beside the code that they configure.
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from medssl.errors import ConfigError, DataError
from medssl.files import read_object, whole_file


class Settings(BaseModel):
    """Base of every settings model: frozen, and a typo in a key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


EACH_ONCE = AfterValidator(lambda values: tuple(dict.fromkeys(values)))
"""Removes duplicates from a tuple, as in `Annotated[tuple[int, ...], EACH_ONCE]`."""

SettingsT = TypeVar("SettingsT", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number; in YAML 1.1 it is text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def load_yaml(text: str) -> Any:
    """Parse YAML text, plain values only."""
    return yaml.load(text, Loader=_Loader)


def merge(files: Sequence[Path | str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge YAML files left to right, then `key.sub=value` overrides, into one nested dict.

    Raises:
        ConfigError: a file is missing, is not YAML or not a mapping; an override has no `=`.
    """
    wanted = [_override(text) for text in overrides]  # first: without its `=`, an override's value looks like a file
    merged: dict[str, Any] = {}
    for values in (*(_read_mapping(Path(path)) for path in files), *wanted):
        update(merged, values)
    return merged


def section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of merged settings, empty if there is none.

    Raises:
        ConfigError: the section is not a mapping.
    """
    found = values.get(name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: expected keys such as `name: ...` below it, found {found!r}")
    return found


def update(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    """Merge nested `values` into `into`, in place."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            update(into[key], value)
        else:
            into[key] = deepcopy(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings on one level, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def parse(model: type[SettingsT], values: Mapping[str, Any], *, where: str = "") -> SettingsT:
    """Validate `values`, or raise one ConfigError that lists every fault with its key.

    `where` is the dotted key of `values` in the files, so that messages name the whole key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_describe(model, fault, where)}" for fault in error.errors()]
        raise ConfigError("the configuration is not valid\n" + "\n".join(lines)) from None


def read_model(model: type[SettingsT], path: Path) -> SettingsT:
    """Read a JSON file that medssl wrote from such a model.

    Raises:
        DataError: the file cannot be read, or does not fit the model; every fault is listed with its key.
    """
    values = read_object(path)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"  {_describe(model, fault, '')}" for fault in error.errors()]
        raise DataError("\n".join([f"{path}: not as medssl writes it; create it again", *lines])) from None


def dump(values: Mapping[str, Any], path: Path) -> None:
    """Write a nested dict of plain values as YAML, keys in their given order."""
    with whole_file(path) as partial:
        partial.write_text(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True), encoding="utf-8")


_KIND_OF_VALUE = re.compile(r"float|int|one|each|(literal|tuple)\[.*")
"""What pydantic appends to a key whose value may be of several types; `one` and `each` are medssl's own tags."""
_HASH = re.compile(r"""#|[^'"|>&!*\[{].*\s#""")
"""Text with a # at which a comment would begin in a YAML file."""


def _override(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {text}: expected key=value, for example --set train.iterations=200")
    try:
        values: Any = value.strip() if _HASH.match(value.strip()) else load_yaml(value)
    except (ValueError, yaml.YAMLError) as error:  # an invalid date or number raises a ValueError
        raise ConfigError(f"--set {text}: the value is not YAML: {error}") from None
    for part in reversed(key.split(".")):
        values = {part: values}
    made: dict[str, Any] = values
    return made


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected sections such as `data:`, found a {type(values).__name__}")
    return values


def _describe(model: type[BaseModel], fault: Mapping[str, Any], where: str) -> str:
    # If a value may be of several types, pydantic names the type in the last part.
    parts = [str(part) for part in fault["loc"]]
    own = ".".join(part for part in parts if not _KIND_OF_VALUE.fullmatch(part))
    prefix = f"{where}." if where else ""
    key = (prefix + own).rstrip(".")
    title = f"{key}: " if key else ""
    if fault["type"] == "extra_forbidden":
        near = difflib.get_close_matches(own, list(_keys(model)), n=1)
        return f"{title}unknown key" + (f"; did you mean {prefix}{near[0]}?" if near else "")
    if fault["type"] == "missing" and isinstance(fault["loc"][-1], int):  # a list that is too short
        return f"{key.rpartition('.')[0]}: value {fault['loc'][-1] + 1} is missing, got {_short(list(fault['input']))}"
    if fault["type"] == "missing":
        top = key.partition(".")[0]
        files = f"; a file such as configs/{top}/NAME.yaml sets it" if top in ("data", "method") else ""
        return f"{title}required, but not set{files}"
    said = "expected a list" if fault["type"] == "tuple_type" else fault["msg"].removeprefix("Value error, ")
    return f"{title}{said}" + (f", got {_short(fault['input'])}" if not isinstance(fault["input"], Mapping) else "")


_FEW = reprlib.Repr()
_FEW.maxlevel = 2


def _short(value: Any) -> str:
    """Return a value as text for a message; a few nested YAML aliases may stand for gigabytes."""
    return repr(value) if isinstance(value, str | int | float) else _FEW.repr(value)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a model has, including those of nested models."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for kind in (field.annotation, *map(_plain, get_args(field.annotation))):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _keys(kind, f"{prefix}{name}.")


def _plain(kind: Any) -> Any:
    """Return a type without what `Annotated` adds."""
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def bundled(path: Path | str) -> Path | None:
    """Return the path of a configuration that comes with the package, such as `configs/data/acdc.yaml`; None if there
    is none of that name."""
    here, path = Path(__file__).resolve().parent, Path(path)
    inner = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for root in (here / "configs", here.parent / "configs"):
        if (root / inner).is_file():
            return root / inner
    return None


def config_path(path: Path) -> Path:
    """Return `path` if it exists, otherwise the configuration of that name that comes with the package, if any."""
    return path if path.exists() else bundled(path) or path
