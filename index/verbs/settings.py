"""Typed settings for every verb: one pydantic model is the flags, the TOML file and the documentation at once.

Order of precedence: flags, then `--config file.toml`, then the defaults written in the model. Environment variables
are read only where a model asks for them with `env_prefix`, so that a stray `TEXT=...` never changes a run.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    CliApp,
    CliPositionalArg,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from index.errors import SettingsError

S = TypeVar("S", bound="Settings")
_WITHOUT_FLAG = get_args(CliPositionalArg[str])[1]


class Settings(BaseSettings):
    """Base of all verbs' settings: frozen, unknown names refused, field descriptions are the help text."""

    config: Path | None = Field(
        default=None, description="TOML file with the settings below, one `name = value` a line; flags override it"
    )

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_parse_none_str="\0",  # a word nobody can give: "null" may be the name of a column
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        sources = (init_settings, _TomlSource(settings_cls))
        return (*sources, env_settings) if settings_cls.model_config.get("env_prefix") else sources


class _TomlSource(PydanticBaseSettingsSource):
    """The table read from `--config`, put here by `parse` for the length of one parse."""

    table: ClassVar[dict[str, Any]] = {}

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self.table.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self.table)


class _WholeWords(CliSettingsSource[Any]):
    """Takes every word of a list as it stands; pydantic-settings would split "hello, world" at its comma."""

    def _merge_parsed_list(self, parsed_list: list[str], field_name: str) -> str:
        return json.dumps(parsed_list)


def parse(settings: type[S], argv: Sequence[str]) -> S:
    """Flags (and the TOML file they name) as a checked settings object.

    Raises `SettingsError` with one line a fault; prints help and exits on `--help`, as argparse does.
    """
    flags, config = _take_config(list(argv))
    _TomlSource.table = _read_toml(config, settings) if config else {}
    try:
        with _help_in_full():
            found = CliApp.run(settings, cli_args=flags, cli_settings_source=_WholeWords(settings))
    except ValidationError as error:
        raise SettingsError(_explain(settings, error, config)) from error
    finally:
        _TomlSource.table = {}
    if found.config is not None:  # the flag was taken, so only the environment can have set it
        raise SettingsError(
            f"The environment names {found.config} as the configuration, which is not read. Give it with --config, and "
            f"unset {settings.model_config.get('env_prefix')}CONFIG."
        )
    return found


@contextmanager
def _help_in_full() -> Iterator[None]:
    """Prints what argparse does: itself, it would keep quiet about a disk without room for its help."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        sys.stdout.write(said.getvalue())


def _take_config(argv: list[str]) -> tuple[list[str], Path | None]:
    """The other words, and the file that `--config` names. Raises `SettingsError` for a second one: only one is read,
    and what the other says (`keys`, say) would be missed without a word."""
    words, paths, given = [], [], iter(argv)
    for word in given:
        if word == "--config":
            path = next(given, None)
            if path is None:
                raise SettingsError("--config needs the path of a TOML file after it.")
            paths.append(Path(path))
        elif word.startswith("--config="):
            paths.append(Path(word.removeprefix("--config=")))
        else:
            words.append(word)
    if len(paths) > 1:
        named = ", ".join(map(str, paths))
        raise SettingsError(f"--config was given {len(paths)} times ({named}). Put all settings into one file.")
    return words, paths[0] if paths else None


def _read_toml(path: Path, settings: type[Settings]) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: the configuration file cannot be read ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}. Write one `name = value` a line.") from error
    found: dict[str, Any] = {}
    for written, value in table.items():
        name = written.replace("-", "_")
        if name in found:
            raise SettingsError(f"{path}: {name} is set twice, as {name.replace('_', '-')} too. Keep one of the two.")
        found[name] = value
    if "config" in found:
        raise SettingsError(f"{path}: a file cannot name another one with `config`. Put all settings into one file.")
    fields = {name: field for name, field in settings.model_fields.items() if name in found}
    run_on = [name for name, field in fields.items() if field.is_required() and _WITHOUT_FLAG in field.metadata]
    if run_on:  # argparse asks for these words, whatever the file holds
        raise SettingsError(
            f"{path}: holds {' and '.join(run_on)}, which the verb is run on. Take that out of the file and give it in "
            "the command, without a flag."
        )
    return found


def _explain(settings: type[Settings], error: ValidationError, config: Path | None) -> str:
    faults = []
    for fault in error.errors(include_url=False):
        said = fault["msg"].removeprefix("Value error, ")
        if not fault["loc"]:  # of several settings together, which it names
            faults.append(said)
            continue
        name = ".".join(str(part) for part in fault["loc"])
        flag = _from_environment(settings, name, fault.get("input")) or _flag(*fault["loc"])
        if fault["type"] == "extra_forbidden":
            faults.append(f"there is no setting {flag}")
        elif fault["type"] == "missing":
            faults.append(f"{flag} is needed")
        else:
            faults.append(f"{flag}: {said}, got {fault.get('input')!r}")
    where = f" (flags and {config})" if config else ""
    return f"Wrong settings{where}: {'; '.join(faults)}. Run the verb with --help to see every setting."


def _flag(*place: str | int) -> str:
    """As it is typed; which of a list's words it was is seen from what was got."""
    name = ".".join(part for part in place if isinstance(part, str))
    return f"-{name}" if len(name) == 1 else "--" + name.replace("_", "-")


def _from_environment(settings: type[Settings], name: str, value: Any) -> str | None:
    """The variable that gave this value; None when none did."""
    prefix = settings.model_config.get("env_prefix") or ""
    wanted = (prefix + name).lower()
    return next((key for key, held in os.environ.items() if prefix and key.lower() == wanted and held == value), None)
