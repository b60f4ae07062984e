"""`surematch keys add NAME --scope search`: make, list and remove API keys."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import CliPositionalArg, SettingsConfigDict

from index.errors import SettingsError
from index.verbs.settings import Settings, parse
from service.http import keys as stored
from service.http.keys import Scope


class KeysSettings(Settings):
    """Make, list and remove the API keys of `surematch serve --keys FILE`.

    `add NAME` prints the new key, once: only its hash is kept. A running service follows the file within a second.
    Example: surematch keys add shop --scope search --scope write
    """

    model_config = SettingsConfigDict(cli_prog_name="surematch keys")

    action: CliPositionalArg[Literal["add", "list", "remove"]] = Field(description="what to do")
    name: CliPositionalArg[str] = Field("", description="the key's name: who or what uses it")
    scope: list[Scope] = Field(
        ["search"], min_length=1, description="what the key may do: search, write, admin; give it once for each"
    )
    file: Path = Field(Path("keys.json"), description="file of the hashes")


def keys(argv: Sequence[str]) -> int:
    """`surematch keys add|list|remove NAME`"""
    settings = parse(KeysSettings, argv)
    if settings.action != "add" and settings.scope != KeysSettings.model_fields["scope"].default:
        raise SettingsError(f"--scope: is given to a key that is added. Leave it out to {settings.action}.")
    if settings.action == "list":
        if settings.name:
            raise SettingsError(f"list shows all keys. Leave {settings.name} out.")
        for key in stored.read(settings.file).values():
            sys.stdout.write(f"{key.name}\t{','.join(key.scopes)}\t{key.created}\n")
        return 0
    if not settings.name:
        raise SettingsError(f"Name the key: surematch keys {settings.action} NAME.")
    if settings.action == "remove":
        stored.remove(settings.file, settings.name)
        sys.stderr.write(f"{settings.file}: the key {settings.name} is removed.\n")
        return 0
    made = stored.add(settings.file, settings.name, settings.scope)
    sys.stdout.write(made + "\n")
    sys.stderr.write(f"{settings.file}: keeps its hash only; this is the one time the key is shown.\n")
    return 0
