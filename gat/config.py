"""YAML files and `key=value` words, merged and checked once into a frozen tree.

    settings = load(TrainSettings, ["configs/quickstart.yaml"], ["optim.lr=3e-4", "attack.step_size.style/16/*=0.3"])

Three rules decide what wins:

* A later file, and then an override, replaces what an earlier one said at the same key. Settings merge key by key, also where
  an override says several at once (`train={steps: 400, lr: 1e-3}`); a table or a list (a field that is not itself a `Config`)
  is replaced whole, while an override may edit one entry of it.
* What nobody says is the default. An override edits the default it finds: `attack.steps=3` needs no `attack.name=`.
* Choosing another kind drops the old kind's settings: under `attack.name=pgd`, what a file said for another attack no
  longer counts, even where both have a key of that name, because it was meant in other units. Overrides for the new kind
  count in any order.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, ValidationError

Kind = Any  # the annotation of a node; None where nothing is known about it
KeyPath = tuple[str, ...]


class ConfigError(ValueError):
    """What a user wrote does not make a configuration. The text names the key, what arrived and what is on offer."""


class Config(BaseModel):
    """Settings: frozen once read, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


C = TypeVar("C", bound=BaseModel)


def load(cls: type[C], files: Iterable[str | Path] = (), overrides: Iterable[str] = ()) -> C:
    """Merge, resolve `${...}` references, validate.

    Args:
        cls: the root of the tree. A field that may be one of several settings is a union of models with a literal `name`.
        files: YAML, later ones win.
        overrides: `dotted.key=value`, value in YAML (`1e-4`, `[a, b]`, `null`); globs may be part of a key.

    Raises:
        ConfigError: one line per mistake.
    """
    tree: dict[str, Any] = {}
    for file in files:
        _apply(tree, cls, _leaves(cls, read_yaml(file)))
    said = [_parse_override(word) for word in overrides]
    _apply(tree, cls, (leaf for path, value in said for leaf in _override_leaves(cls, tree, path, value)))
    try:
        plain = OmegaConf.to_container(OmegaConf.create(tree), resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: wanted, but '???' says that it is still missing") from error
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    try:
        return cls.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_explain(cls, plain, error)) from error


def dump(config: BaseModel) -> str:
    """The whole tree as YAML that `load` reads back to the same settings."""
    return OmegaConf.to_yaml(OmegaConf.create(config.model_dump(mode="json")))


def read_yaml(file: str | Path) -> dict[str, Any]:
    """One YAML file whose top level is a mapping; `1e-4` is a number.

    Raises:
        ConfigError: if there is no such file, or it is empty, not YAML (with the line), or not a mapping.
    """
    path = Path(file)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        there = sorted(str(other) for other in path.parent.glob("*.y*ml"))
        raise ConfigError(f"no config file {path}; on offer there: {', '.join(there) or 'none'}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read config file {path}: {error}") from error
    try:
        top = yaml.compose(text, Loader=yaml.SafeLoader)
        if top is None:
            raise ConfigError(f"{path} is empty; wanted `key: value` lines")
        if not isinstance(top, yaml.MappingNode):
            kind = type(top).__name__.removesuffix("Node").lower()
            raise ConfigError(
                f"{path}, line {top.start_mark.line + 1}: wanted `key: value` lines, got a {kind}"
            )
        plain = OmegaConf.to_container(OmegaConf.create(text))
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{path}{line}: {error.problem or error.context}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _parse_override(word: str) -> tuple[KeyPath, Any]:
    """Split at dots only: OmegaConf's own syntax would take the brackets of a glob for list indices."""
    key, equals, text = word.partition("=")
    path = tuple(key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"override {word!r}: wanted key=value, with dots between the parts of the key")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"override {word!r}: {text!r} is not a YAML value") from error
    return path, value


# Walking a tree of plain values beside the annotations that say what its nodes mean.


def _models(kind: Kind) -> list[type[BaseModel]]:
    """The settings classes an annotation allows: several for a union, one for a plain field, none for a value."""
    origin: Any = get_origin(kind)
    if origin is Annotated:
        return _models(get_args(kind)[0])
    if origin in (Union, UnionType):
        return [model for part in get_args(kind) for model in _models(part)]
    return [kind] if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _names(model: type[BaseModel]) -> tuple[str, ...]:
    """What `name` may be: the values of its Literal."""
    field = model.model_fields.get("name")
    return () if field is None else tuple(str(value) for value in get_args(field.annotation))


def _model(kind: Kind, node: Any) -> type[BaseModel] | None:
    """The class of this very node; None if it is no settings node or its `name` does not decide."""
    models = _models(kind)
    if len(models) == 1:
        return models[0]
    name = node.get("name") if isinstance(node, Mapping) else None
    return next((model for model in models if name in _names(model)), None)


def _child(kind: Kind, node: Any, key: str) -> tuple[Kind, Any]:
    """Annotation and default (as plain values, None without one) of what lies under `key`."""
    model = _model(kind, node)
    if model is not None:
        field = model.model_fields.get(key)
        if field is None:
            return None, None
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        return field.annotation, _plain(default)
    origin: Any = get_origin(kind)
    if origin is Annotated:
        return _child(get_args(kind)[0], node, key)
    if origin in (Union, UnionType):
        parts = [_child(part, node, key) for part in get_args(kind) if not _models(part)]
        return next((part for part in parts if part[0] is not None), (None, None))
    arguments = get_args(kind)
    return (arguments[-1 if isinstance(node, Mapping) else 0] if arguments else None), None


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _leaves(kind: Kind, node: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Everything a file says of settings, as assignments; tables, lists and empty settings are one value each."""
    for key, value in node.items():
        key = str(key)
        below = _child(kind, node, key)[0]
        if isinstance(value, Mapping) and value and _models(below):
            yield from _leaves(below, value, (*path, key))
        else:
            yield (*path, key), value


def _override_leaves(
    cls: type[BaseModel], tree: dict[str, Any], path: KeyPath, value: Any
) -> Iterator[tuple[KeyPath, Any]]:
    """An override as assignments: `train={steps: 3}` says one thing about `train`, as the same words in a file would."""
    kind: Kind = cls
    node: Any = tree
    for key in path:
        kind, default = _child(kind, node, key)
        node = node.get(key, default) if isinstance(node, Mapping) else None
    if isinstance(value, Mapping) and value and _models(kind):
        yield from _leaves(kind, value, path)
    else:
        yield path, value


def _apply(tree: dict[str, Any], cls: type[BaseModel], assignments: Iterable[tuple[KeyPath, Any]]) -> None:
    """Write assignments into the tree, choices of a kind first and outer ones before inner ones."""
    for path, value in sorted(
        assignments, key=lambda item: (item[0][-1] != "name", len(item[0]) * (item[0][-1] == "name"))
    ):
        _assign(tree, cls, path, value)


def _assign(tree: dict[str, Any], cls: type[BaseModel], path: KeyPath, value: Any) -> None:
    kind: Kind = cls
    node: Any = tree
    for depth, key in enumerate(path):
        is_last = depth == len(path) - 1
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                where = ".".join(path[:depth])
                raise ConfigError(f"{'.'.join(path)}: {where} is a list of {len(node)}, got index {key!r}")
            slot: Any = int(key)
        else:
            slot = key
        below, default = _child(kind, node, key)
        current = node[slot] if isinstance(node, list) else node.get(key, default)
        if is_last:
            if value == {} and isinstance(current, dict) and _models(below):
                value = current  # no settings said, none changed
            if key == "name" and len(_models(kind)) > 1 and node.get("name", value) != value:
                node.clear()  # another kind: what was said for the old one does not count
            node[slot] = value
            return
        if not isinstance(current, dict | list):
            current = {}
        node[slot] = current
        kind, node = below, current


# Saying what is wrong.


def _explain(cls: type[BaseModel], tree: Any, error: ValidationError) -> str:
    """One line per mistake, in the words of the file rather than of the validator."""
    lines: dict[str, list[str]] = {}
    for mistake in error.errors(include_url=False):
        path, kind, node = _locate(cls, tree, mistake["loc"])
        where, says = _describe(mistake, path, kind, node)
        lines.setdefault(where, []).append(says)
    return "\n".join(
        f"{where}: {' or '.join(dict.fromkeys(says))}".removeprefix(": ") for where, says in lines.items()
    )


def _locate(cls: type[BaseModel], tree: Any, loc: Sequence[int | str]) -> tuple[list[str], Kind, Any]:
    """The keys of `loc` that exist in the tree, and the node that holds the last one. pydantic adds the names of union
    members to a location, which a user never wrote."""
    kind: Kind = cls
    holder_kind, holder, node = kind, tree, tree
    path: list[str] = []
    for part in loc:
        is_item = isinstance(node, list) and isinstance(part, int) and part < len(node)
        present = part in node if isinstance(node, dict) else is_item
        if present:
            holder_kind, holder = kind, node
            kind, node = _child(kind, node, str(part))[0], node[part]
            path.append(str(part))
    return path, holder_kind, holder


def _describe(mistake: Any, path: list[str], kind: Kind, node: Any) -> tuple[str, str]:
    where, got = ".".join(path), f"got {_short(mistake['input'])}"
    match mistake["type"]:
        case "extra_forbidden":
            model = _model(kind, node)
            fields = [] if model is None else list(model.model_fields)
            near = get_close_matches(path[-1], fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"on offer: {', '.join(fields)}"
            return where, f"unexpected key, {got}; {hint}"
        case "missing":
            return ".".join([*path, str(mistake["loc"][-1])]), "wanted, but not given"
        case "union_tag_invalid":
            names = _tags(kind, node, path)
            return f"{where}.name", f"{mistake['input'].get('name')!r} is not one of {names}"
        case "union_tag_not_found":
            return f"{where}.name", f"not given; choose one of {_tags(kind, node, path)}"
        case "value_error" | "assertion_error":
            return where, str(mistake["ctx"]["error"])
        case _:
            says = mistake["msg"][0].lower() + mistake["msg"][1:]
            return where, f"{says}, {got}"


def _tags(kind: Kind, node: Any, path: list[str]) -> list[str]:
    union = _child(kind, node, path[-1])[0]
    return sorted(name for model in _models(union) for name in _names(model))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
