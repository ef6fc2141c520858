# ruff: noqa: RUF009 - `_limited` returns a dataclass field; it is one, only written shorter
"""Site settings and the recipe: a TOML file, then ``WBCD_`` environment variables, then the command line.

A later source overrides an earlier one, key by key. A key that no section knows is refused with the nearest known one; a
value outside its limits is refused with the limits. Site settings change no number: whatever does is in the recipe
(``[recipe.*]``), whose hash every result names. ``[defaults] medium_ri`` is the one key here that does, and it is
therefore written into the recipe's ``default_medium_ri``, with ``unstated_medium`` to say that a person set it.

Environment variables are ``WBCD_<SECTION>_<KEY>`` (``WBCD_DATABASE_URL``, ``WBCD_WATCH_QUIET_S``) and
``WBCD_RECIPE_<SECTION>_<KEY>``. Only the standard library is imported here: `wbcd --help` must be quick.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import re
import socket
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit, urlunsplit

from wbcd import __version__
from wbcd.errors import BadValue, UnknownKey
from wbcd.recipe import SECTIONS as RECIPE_SECTIONS
from wbcd.recipe import Recipe

ENV_PREFIX: Final = "WBCD_"
# Names with our prefix that are not settings: where the file is, and what the tests use.
ENV_RESERVED: Final = frozenset({"WBCD_CONFIG", "WBCD_TESTING", "WBCD_FAULT_POINT", "WBCD_SHARED_DATA"})
ENV_RESERVED_PREFIX: Final = "WBCD_TEST_"
# Of the recipe, but nobody's to set: they say which code computes.
ALGORITHM_KEY: Final = "recipe.algorithms"
CREDENTIAL_NAME: Final = "database-password"

Layer = Mapping[str, Any]


def _limited(
    default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A dataclass field with its limits beside it, so that the check and the documentation read the same numbers."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True)
class WatchSettings:
    """The microscope's folder, which is only ever read."""

    dir: Path | None = _limited(None, "folder that the microscope writes into")
    rescan_s: float = _limited(60.0, "seconds between full rescans (the truth; events are hints)", low=0.05, high=86400)
    quiet_s: float = _limited(2.0, "seconds without a change of size or mtime before a file is read", low=0.0, high=3600)
    mode: str = _limited("auto", "how changes are noticed", choices=("auto", "inotify", "polling"))
    newest_first: bool = _limited(False, "work through a backlog from its newest file")
    companion_wait_s: float = _limited(
        1800.0, "seconds that a file waits for its background or notes before it is set aside", low=0.0, high=7 * 86400
    )
    same_acquisition: str = _limited(
        "duplicate",
        "an acquisition that is counted already in another format, by the instrument's own id",
        choices=("duplicate", "count"),
    )
    rehash_files: int = _limited(
        50, "counted files, chosen at random, that are hashed again each time (0: none)", low=0, high=10**6
    )
    rehash_every_h: float = _limited(24.0, "hours between two times of hashing counted files again", low=0.001, high=8760)


@dataclass(frozen=True, slots=True)
class DatabaseSettings:
    """Where results go: ``sqlite:///file`` or ``postgresql://user@host/name``."""

    url: str = _limited("sqlite:///wbcd.db", "database URL; no password in it: use password_file")
    password_file: Path | None = _limited(None, f"file with the password; else the systemd credential {CREDENTIAL_NAME}")


@dataclass(frozen=True, slots=True)
class OutputSettings:
    """Files that wbcd writes beside the database."""

    dir: Path = _limited(Path("wbcd-output"), "folder for tomograms, pictures and the daemon's state")
    keep_tomograms: bool = _limited(False, "keep each cell's RI volume as OME-Zarr")
    tomogram_window: str = _limited(
        "cell", "what viewers show of it: 1st to 99.9th percentile, or RI 1.33 to 1.42", choices=("cell", "fixed")
    )


@dataclass(frozen=True, slots=True)
class ClassificationSettings:
    """Which model runs where; the model id is stored with every prediction."""

    model: str = _limited("reference", "model bundle: a folder, or `reference` for the shipped one")
    device: str = _limited("auto", "auto, cpu, cuda or cuda:N")
    backend: str = _limited(
        "eager",
        "what computes the network; auto measures at the start",
        choices=("auto", "eager", "cuda", "onnxruntime", "openvino"),
    )
    max_batch: int = _limited(16, "most cells of one batch", low=1, high=4096)
    max_latency_s: float = _limited(0.5, "longest wait for a fuller batch after its first cell", low=0.0, high=60)


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """What one file may cost."""

    max_logical_bytes: int = _limited(
        768 * 2**20,
        "most bytes that one array of a file may unpack to; MemoryMax of the unit must be 11 times that and 3 GiB",
        low=2**20,
        high=2**44,
    )
    max_file_bytes: int = _limited(32 * 2**30, "longest file, or folder of files, that is read", low=2**20, high=2**44)
    isolate: bool = _limited(True, "open files in limited child processes")
    max_tries: int = _limited(3, "times a file is begun before it is set aside", low=1, high=100)


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """How the daemon speaks."""

    log_level: str = _limited("info", "least level that is logged", choices=("debug", "info", "warning", "error"))
    log_format: str = _limited("auto", "auto: console on a terminal, JSON elsewhere", choices=("auto", "json", "console"))
    log_lines_min: int = _limited(120, "most log lines a minute of one kind; more are summed up (0: all)", low=0, high=10**6)
    host: str | None = _limited(None, "name of this machine in a database that several share (default: its host name)")
    heartbeat_s: float = _limited(5.0, "seconds between STATUS= and watchdog reports", low=0.05, high=3600)
    drain_s: float = _limited(60.0, "longest time that a stop waits for work in hand", low=0.0, high=3600)


@dataclass(frozen=True, slots=True)
class DefaultSettings:
    """What to take where a file does not say."""

    medium_ri: float | None = _limited(
        None, "RI of the medium where a file states none (into the recipe's default_medium_ri)", low=1.0, high=2.0
    )
    sample_id: str | None = _limited(None, "sample of files that name none")


SITE_SECTIONS: Final[Mapping[str, type[Any]]] = {
    "watch": WatchSettings,
    "database": DatabaseSettings,
    "output": OutputSettings,
    "classification": ClassificationSettings,
    "limits": LimitSettings,
    "service": ServiceSettings,
    "defaults": DefaultSettings,
}

# Limits of recipe values that are not simply "0 or more"; of a triple, those of each number.
_SHARE: Final = (0.0, 1.0)
_SHAPE: Final = (16, 2048)
_PITCH_UM: Final = (0.001, 10.0)
RECIPE_LIMITS: Final[Mapping[str, tuple[float, float]]] = {
    "reconstruction.voxel_um": _PITCH_UM,
    "reconstruction.shape": _SHAPE,
    "reconstruction.iterations": (1, 10_000),
    "reconstruction.tv_weight": (0.0, 1e6),
    "reconstruction.refocus_range_um": (0.0, 1000.0),
    "reconstruction.default_medium_ri": (1.0, 2.0),
    "reconstruction.refinement_iterations": (1, 1000),
    "reconstruction.refinement_tv": (0.0, 10.0),
    "reconstruction.hold_out_every": (0, 1000),
    "quality.frame_quantile": _SHARE,
    "quality.min_fringe_contrast": _SHARE,
    "quality.max_saturated_fraction": _SHARE,
    "quality.max_phase_residue_fraction": _SHARE,
    "quality.max_lost_frames": _SHARE,
    "quality.max_repeated_frames": _SHARE,
    "quality.max_non_physical_fraction": _SHARE,
    "quality.min_kept_frames": (1, 10_000),
    "quality.min_ri": (0.5, 3.0),
    "quality.max_ri": (0.5, 3.0),
    "quality.min_mean_ri": (0.5, 3.0),
    "quality.max_mean_ri": (0.5, 3.0),
    "quality.min_solidity": _SHARE,
    "quality.max_lobes": (1, 1000),
    "morphology.threshold_ri": (1.0, 3.0),
    "morphology.ri_increment_ml_g": (0.01, 1.0),
    "morphology.crop_shape": _SHAPE,
    "morphology.crop_voxel_um": _PITCH_UM,
    "classification.min_probability": (0.0, 1.0),
}


# Pairs of which the first must lie below the second, else nothing could ever pass.
RECIPE_ORDER: Final = (
    ("quality.min_ri", "quality.max_ri"),
    ("quality.min_mean_ri", "quality.max_mean_ri"),
    ("quality.min_volume_fl", "quality.max_volume_fl"),
    ("morphology.threshold_ri", "quality.max_ri"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one process, checked."""

    watch: WatchSettings = field(default_factory=WatchSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    classification: ClassificationSettings = field(default_factory=ClassificationSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    service: ServiceSettings = field(default_factory=ServiceSettings)
    defaults: DefaultSettings = field(default_factory=DefaultSettings)
    recipe: Recipe = field(default_factory=Recipe)

    @classmethod
    def load(cls, path: Path | None = None, env: Mapping[str, str] | None = None, overrides: Layer | None = None) -> Config:
        """Read, merge and check; ``overrides`` maps ``"section.key"`` to a value and wins (None is skipped).

        Raises :class:`UnknownKey` or :class:`BadValue`.
        """
        env = os.environ if env is None else env
        if path is None and env.get("WBCD_CONFIG"):
            path = Path(env["WBCD_CONFIG"])
        values: dict[str, Any] = {}
        for layer in (_from_toml(path), _from_environment(env), _from_overrides(overrides or {})):
            values.update(layer)
        return _build(values)

    def as_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, JSON-ready; paths as text; a password in the URL is not shown."""
        data = json.loads(json.dumps({**dataclasses.asdict(self), "recipe": self.recipe.as_dict()}, default=str))
        data["database"]["url"] = redact(self.database.url)
        return dict(data)

    @property
    def host(self) -> str:
        """Name of this machine in a PostgreSQL that several share; empty with SQLite, whose file is one machine's."""
        if self.database.url.startswith("sqlite") or "://" not in self.database.url:
            return ""
        return self.service.host or socket.gethostname()

    def database_url(self, env: Mapping[str, str] | None = None) -> str:
        """The URL to connect with: the password from ``password_file`` or the systemd credential put in.

        Raises :class:`BadValue` when the named password file cannot be read.
        """
        password = _password(self.database, os.environ if env is None else env)
        if password is None or self.database.url.startswith("sqlite"):
            return self.database.url
        return _with_password(self.database.url, password)


def known_keys() -> dict[str, dataclasses.Field[Any]]:
    """Every key that may be set, ``section.key`` or ``recipe.section.key``, with its dataclass field."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    for prefix, sections in (("", SITE_SECTIONS), ("recipe.", RECIPE_SECTIONS)):
        for name, kind in sections.items():
            keys.update({f"{prefix}{name}.{item.name}": item for item in dataclasses.fields(kind)})
    return keys


def redact(url: str) -> str:
    """The URL without its password, for logs and `config show`."""
    # To the last @: a password may hold @ and /, whatever the standard says of it; rather too much is hidden than too little.
    return re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", re.sub(r"(://[^:/@]*):.*@", r"\1:***@", url, flags=re.DOTALL))


# --- the three sources ---------------------------------------------------------------------------


def _from_toml(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows put a byte order mark before it
    except OSError as error:
        raise BadValue(f"The configuration file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadValue(f"The configuration file {path} is not TOML: {error}.") from error
    return dict(_flatten(data, source=str(path)))


def _flatten(data: Mapping[str, Any], *, source: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    known = known_keys()
    for name, value in data.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            _refuse_unknown_section(key, source)
            yield from _flatten(value, source=source, prefix=f"{key}.")
        elif key in known:
            yield key, (value, f"{source}: {key}")
        else:
            raise UnknownKey(_unknown(key, known, source))


def _refuse_unknown_section(key: str, source: str) -> None:
    sections = {"recipe", *SITE_SECTIONS, *(f"recipe.{name}" for name in RECIPE_SECTIONS)}
    if key not in sections:
        raise UnknownKey(_unknown(f"[{key}]", [f"[{name}]" for name in sections], source))


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    names = {ENV_PREFIX + key.replace(".", "_").upper(): key for key in known_keys()}
    values: dict[str, Any] = {}
    for name, text in env.items():
        if not name.startswith(ENV_PREFIX) or name in ENV_RESERVED or name.startswith(ENV_RESERVED_PREFIX):
            continue
        if name not in names:
            raise UnknownKey(_unknown(name, names, "environment"))
        values[names[name]] = (text, f"environment: {name}")
    return values


def _from_overrides(overrides: Layer) -> dict[str, Any]:
    known = known_keys()
    for key in overrides:
        if key not in known:
            raise UnknownKey(_unknown(key, known, "command line"))
    return {key: (value, f"command line: {key}") for key, value in overrides.items() if value is not None}


def _unknown(key: str, known: Any, source: str) -> str:
    """The refusal: the key of that very name in another section, else the nearest whole key."""
    if key.strip("[]").removeprefix(ENV_PREFIX).replace("_", ".").lower().startswith(ALGORITHM_KEY):
        return (
            f"{source}: {key} cannot be set: the versions of the algorithms are those of this wbcd, {__version__}."
            " Take it out; who wants an earlier version's numbers runs that version."
        )
    last = key.rsplit(".", 1)[-1]
    same = [name for name in known if "." in name and name.rsplit(".", 1)[-1] == last]
    nearest = same or difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f" The nearest known key is {nearest[0]}." if nearest else ""
    return f"{source}: {key} is not a known key.{hint}"


# --- checks --------------------------------------------------------------------------------------


def _build(values: Mapping[str, tuple[Any, str]]) -> Config:
    if "defaults.medium_ri" in values:
        value, where = values["defaults.medium_ri"]
        values = {"recipe.reconstruction.default_medium_ri": (value, where), **values}
    if "recipe.reconstruction.default_medium_ri" in values:
        # A medium that a person set is a statement; the built-in default is none. In the recipe, for it changes numbers.
        _, where = values["recipe.reconstruction.default_medium_ri"]
        values = {"recipe.reconstruction.unstated_medium": ("default", where), **values}
    parts: dict[str, Any] = {name: _section(name, kind, values) for name, kind in SITE_SECTIONS.items()}
    recipe = {name: _section(f"recipe.{name}", kind, values) for name, kind in RECIPE_SECTIONS.items()}
    _check_database(parts["database"])
    _check_order(recipe)
    return Config(recipe=Recipe(**recipe), **parts)


def _section(prefix: str, kind: type[Any], values: Mapping[str, tuple[Any, str]]) -> Any:
    hints = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    for item in dataclasses.fields(kind):
        key = f"{prefix}.{item.name}"
        if key in values:
            value, where = values[key]
            given[item.name] = _checked(_coerced(value, hints[item.name], where), item, key, where)
    return kind(**given)


def _coerced(value: Any, kind: Any, where: str) -> Any:
    """``value`` as ``kind``; text (from the environment) is parsed, anything else must have the type already."""
    if isinstance(kind, types.UnionType):
        if value in (None, ""):
            return None
        return _coerced(value, next(option for option in kind.__args__ if option is not type(None)), where)
    if typing.get_origin(kind) is tuple:
        return _coerced_tuple(value, typing.get_args(kind), where)
    if kind is bool:
        return _coerced_bool(value, where)
    if kind in (int, float):
        return _coerced_number(value, kind, where)
    if kind is Path and isinstance(value, (str, Path)) and str(value):
        return Path(value).expanduser()
    if kind is str and isinstance(value, str) and value:
        return value
    raise BadValue(f"{where} is {value!r}; a non-empty {'path' if kind is Path else 'text'} is needed.")


def _coerced_tuple(value: Any, kinds: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    items = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or len(items) != len(kinds):
        raise BadValue(f"{where} is {value!r}; {len(kinds)} numbers (z, y, x) are needed.")
    numbers = tuple(_coerced(item, kind, where) for item, kind in zip(items, kinds, strict=True))
    if min(numbers) <= 0:
        raise BadValue(f"{where} is {value!r}; each number must be above 0.")
    return numbers


def _coerced_bool(value: Any, where: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise BadValue(f"{where} is {value!r}; true or false is needed.")


def _coerced_number(value: Any, kind: type[int] | type[float], where: str) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    allowed = (int, str) if kind is int else (int, float, str)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise BadValue(f"{where} is {value!r}; {wanted} is needed.")
    try:
        number = kind(value)
    except ValueError as error:
        raise BadValue(f"{where} is {value!r}; {wanted} is needed.") from error
    if not math.isfinite(number):
        raise BadValue(f"{where} is {value!r}; a finite number is needed.")
    return number


def _checked(value: Any, item: dataclasses.Field[Any], key: str, where: str) -> Any:
    choices: tuple[str, ...] = item.metadata.get("choices", ())
    if choices and value not in choices:
        raise BadValue(f"{where} is {value!r}; it must be one of {', '.join(choices)}.")
    numbers = value if isinstance(value, tuple) else (value,)
    if isinstance(value, bool) or not all(isinstance(number, (int, float)) for number in numbers):
        return value
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if key.startswith("recipe."):
        low, high = RECIPE_LIMITS.get(key.removeprefix("recipe."), (0.0, None))
    if (low is not None and min(numbers) < low) or (high is not None and max(numbers) > high):
        each = "each number of it" if isinstance(value, tuple) else "it"
        raise BadValue(f"{where} is {value}; {each} must be {_range(low, high)}.")
    return value


def _range(low: float | None, high: float | None) -> str:
    parts = ([f"at least {low:g}"] if low is not None else []) + ([f"at most {high:g}"] if high is not None else [])
    return " and ".join(parts)


def _check_order(recipe: Mapping[str, Any]) -> None:
    def value(key: str) -> float:
        section, name = key.split(".")
        return float(getattr(recipe[section], name))

    for low, high in RECIPE_ORDER:
        if value(low) >= value(high):
            raise BadValue(f"recipe.{low} is {value(low):g}; it must be below recipe.{high}, which is {value(high):g}.")


def _check_database(settings: DatabaseSettings) -> None:
    scheme = settings.url.split(":", 1)[0].split("+", 1)[0]
    if scheme not in ("sqlite", "postgresql"):
        raise BadValue(
            f"database.url is {redact(settings.url)!r}; it must begin with sqlite:/// or postgresql://.",
            action="Write sqlite:///FILE (four slashes for an absolute path) or postgresql://USER@HOST/NAME.",
        )


def _password(settings: DatabaseSettings, env: Mapping[str, str]) -> str | None:
    credentials = env.get("CREDENTIALS_DIRECTORY")
    credential = Path(credentials, CREDENTIAL_NAME) if credentials else None
    source = settings.password_file or (credential if credential and credential.is_file() else None)
    if source is None:
        return None
    try:
        return source.read_text(encoding="utf-8-sig").strip() or None  # an empty file is there for systemd's sake
    except OSError as error:
        raise BadValue(f"database.password_file {source} cannot be read: {error.strerror}.") from error


def _with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    name = user.split(":", 1)[0]
    return urlunsplit(parts._replace(netloc=f"{name}:{quote(password, safe='')}@{host}"))
