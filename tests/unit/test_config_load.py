"""TOML, then environment, then command line; unknown keys and values outside their limits are refused by name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from wbcd.config import RECIPE_LIMITS, Config, known_keys, redact
from wbcd.errors import BadValue, UnknownKey
from wbcd.recipe import Recipe


def written(folder: Path, text: str) -> Path:
    path = folder / "wbcd.toml"
    path.write_text(text)
    return path


def test_without_any_source_the_defaults_hold() -> None:
    config = Config.load(None, {}, {})
    assert config == Config()
    assert config.recipe.recipe_id == Recipe().recipe_id
    assert config.database.url == "sqlite:///wbcd.db"


def test_each_later_source_wins(tmp_path: Path) -> None:
    path = written(tmp_path, "[watch]\nquiet_s = 3\nrescan_s = 30\nmode = 'polling'\n")
    env = {"WBCD_WATCH_QUIET_S": "4", "WBCD_WATCH_RESCAN_S": "40"}
    config = Config.load(path, env, {"watch.quiet_s": 5.0, "watch.newest_first": None})
    assert (config.watch.quiet_s, config.watch.rescan_s, config.watch.mode) == (5.0, 40.0, "polling")


def test_a_byte_order_mark_before_the_file_is_none_of_its_text(tmp_path: Path) -> None:
    """As Windows' editors save it; the file with the password too."""
    path = tmp_path / "wbcd.toml"
    path.write_bytes(b"\xef\xbb\xbf[watch]\r\nquiet_s = 3\r\n")
    assert Config.load(path, {}).watch.quiet_s == 3
    secret = tmp_path / "password"
    secret.write_bytes(b"\xef\xbb\xbfhush\r\n")
    config = Config.load(None, {}, {"database.url": "postgresql://wbcd@localhost/wbcd", "database.password_file": secret})
    assert config.database_url({}) == "postgresql://wbcd:hush@localhost/wbcd"


def test_the_file_may_be_named_in_the_environment(tmp_path: Path) -> None:
    path = written(tmp_path, "[limits]\nmax_tries = 7\n")
    assert Config.load(None, {"WBCD_CONFIG": str(path)}).limits.max_tries == 7


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[wach]\ndir = 'x'", r"\[watch\]"),
        ("[watch]\nquite_s = 1", "watch.quiet_s"),
        ("[recipe.qualty]\nmin_ri = 1", r"\[recipe.quality\]"),
        ("[recipe.morphology]\nthreshhold_ri = 1.34", "recipe.morphology.threshold_ri"),
        ("[service]\nmax_batch = 3", "classification.max_batch"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UnknownKey, match=told):
        Config.load(written(tmp_path, text), {})


def test_an_unknown_environment_variable_is_refused() -> None:
    with pytest.raises(UnknownKey, match="WBCD_DATABASE_URL"):
        Config.load(None, {"WBCD_DATABSE_URL": "sqlite:///x.db"})
    Config.load(None, {"WBCD_TESTING": "1", "WBCD_TEST_POSTGRES": "x", "HOME": "/"})


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("watch.quiet_s", "soon", "number"),
        ("watch.quiet_s", -1.0, "at least 0"),
        ("watch.quiet_s", float("nan"), "finite"),
        ("watch.mode", "magic", "auto, inotify, polling"),
        ("watch.newest_first", 1, "true or false"),
        ("classification.max_batch", 2.5, "whole number"),
        ("classification.max_batch", True, "whole number"),
        ("limits.max_tries", 0, "at least 1"),
        ("output.dir", "", "non-empty path"),
        ("database.url", "mysql://host/x", "sqlite"),
        ("recipe.reconstruction.shape", "1,2", "3 numbers"),
        ("recipe.reconstruction.voxel_um", (0.2, 0.0, 0.1), "above 0"),
        ("recipe.reconstruction.iterations", 0, "at least 1"),
        ("recipe.quality.max_residual", -0.1, "at least 0"),
        ("recipe.quality.frame_quantile", 1.5, "at least 0 and at most 1"),
        ("recipe.quality.max_saturated_fraction", 2.0, "at most 1"),
        ("recipe.quality.max_lobes", 0, "at least 1"),
        ("recipe.quality.min_ri", 1.9, "below recipe.quality.max_ri, which is 1.8"),
        ("recipe.quality.min_volume_fl", 3000.0, "below recipe.quality.max_volume_fl"),
        ("recipe.reconstruction.tv_weight", -1.0, "at least 0"),
        ("recipe.reconstruction.shape", [8, 150, 150], "each number of it must be at least 16"),
        ("recipe.morphology.crop_shape", "100,150,15", "each number of it must be at least 16"),
        ("recipe.morphology.crop_voxel_um", (0.2, 50.0, 0.1), "at most 10"),
    ],
)
def test_a_value_outside_its_limits_is_refused_by_name(key: str, value: object, told: str) -> None:
    with pytest.raises(BadValue, match=told) as caught:
        Config.load(None, {}, {key: value})
    assert key in str(caught.value)


def test_every_limit_is_of_a_key_that_there_is_and_holds_its_default() -> None:
    for key, (low, high) in RECIPE_LIMITS.items():
        section, name = key.split(".")
        default = getattr(getattr(Recipe(), section), name)
        numbers = default if isinstance(default, tuple) else (default,)
        assert low <= min(numbers) <= max(numbers) <= high, key


def test_there_is_no_key_that_nothing_reads() -> None:
    with pytest.raises(UnknownKey, match="accuracy"):
        Config.load(None, {}, {"recipe.reconstruction.accuracy": "high"})


@pytest.mark.parametrize("text", ["[watch", "x = \x00"])
def test_what_is_not_toml_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadValue, match="not TOML"):
        Config.load(written(tmp_path, text), {})


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadValue, match="cannot be read"):
        Config.load(tmp_path / "none.toml", {})


def test_the_recipe_comes_from_every_source_and_changes_its_id(tmp_path: Path) -> None:
    path = written(tmp_path, "[recipe.reconstruction]\nshape = [50, 60, 60]\n")
    config = Config.load(path, {"WBCD_RECIPE_MORPHOLOGY_THRESHOLD_RI": "1.345"})
    assert config.recipe.reconstruction.shape == (50, 60, 60)
    assert config.recipe.morphology.threshold_ri == 1.345
    assert config.recipe.recipe_id != Recipe().recipe_id
    assert Recipe.from_dict(config.recipe.as_dict()) == config.recipe


@pytest.mark.parametrize(
    "text",
    [
        "[recipe.algorithms]\nfields = 7\n",
        "recipe.algorithms = 7\n",
        "[recipe.algorithms]\n",
        "[recipe]\nalgorithms = {cells = 1}\n",
    ],
)
def test_nobody_sets_the_version_of_an_algorithm_in_a_file(text: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    told = rf"{re.escape(str(path))}: .*recipe\.algorithms.* cannot be set: .* are those of this wbcd"
    with pytest.raises(UnknownKey, match=told):
        Config.load(path, {})


@pytest.mark.parametrize("name", ["WBCD_RECIPE_ALGORITHMS", "WBCD_RECIPE_ALGORITHMS_FIELDS"])
def test_nor_in_the_environment_nor_on_the_command_line(name: str) -> None:
    with pytest.raises(UnknownKey, match=f"environment: {name} cannot be set"):
        Config.load(None, {name: "2"})
    with pytest.raises(UnknownKey, match=r"command line: recipe\.algorithms\.fields cannot be set"):
        Config.load(None, {}, {"recipe.algorithms.fields": 2})


def test_the_default_medium_changes_numbers_and_so_the_recipe() -> None:
    config = Config.load(None, {}, {"defaults.medium_ri": 1.335})
    assert config.recipe.reconstruction.default_medium_ri == 1.335
    assert config.recipe.recipe_id != Recipe().recipe_id
    both = {"defaults.medium_ri": 1.335, "recipe.reconstruction.default_medium_ri": 1.34}
    assert Config.load(None, {}, both).recipe.reconstruction.default_medium_ri == 1.34


def test_site_settings_do_not_change_the_recipe_id() -> None:
    config = Config.load(None, {}, {"classification.max_batch": 3, "watch.quiet_s": 9.0})
    assert config.recipe.recipe_id == Recipe().recipe_id


def test_the_password_comes_from_its_file_or_the_credential(tmp_path: Path) -> None:
    secret = tmp_path / "database-password"
    secret.write_text("p@ss/word\n")
    config = Config.load(None, {}, {"database.url": "postgresql://wbcd@host:5432/wbcd", "database.password_file": secret})
    expected = "postgresql://wbcd:p%40ss%2Fword@host:5432/wbcd"
    assert config.database_url({}) == expected
    bare = Config.load(None, {}, {"database.url": "postgresql://wbcd@host:5432/wbcd"})
    assert bare.database_url({"CREDENTIALS_DIRECTORY": str(tmp_path)}) == expected
    assert bare.database_url({}) == "postgresql://wbcd@host:5432/wbcd"


def test_a_password_is_never_shown() -> None:
    config = Config.load(None, {}, {"database.url": "postgresql://u:secret@h/d"})
    assert "secret" not in str(config.as_dict())
    assert redact("postgresql://u:se:cret@h/d") == "postgresql://u:***@h/d"
    assert redact("postgresql://u:se@cret@h:5432/d") == "postgresql://u:***@h:5432/d"
    assert redact("postgresql://u:s@e/cr@et@h:5432/d") == "postgresql://u:***@h:5432/d"
    assert redact("postgresql://u@h/d?password=secret&sslmode=require") == "postgresql://u@h/d?password=***&sslmode=require"
    assert redact("postgresql://u@h/d") == "postgresql://u@h/d"
    assert redact("sqlite:////data/a:b/x.db") == "sqlite:////data/a:b/x.db"


def test_every_key_says_what_it_is_for() -> None:
    undocumented = [
        key for key, item in known_keys().items() if not key.startswith("recipe.") and not item.metadata.get("help")
    ]
    assert undocumented == []


def test_the_import_is_light() -> None:
    heavy = ("torch", "numpy", "scipy", "skimage", "h5py", "zarr", "sqlalchemy", "matplotlib")
    code = f"import sys, wbcd, wbcd.config, wbcd.errors, wbcd.recipe; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_page_gives_choices_for_what_is_chosen_and_ranges_for_numbers_alone() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "configuration.md").read_text()
    assert "| `mode` | `fast` | fast, accurate |" in page
    for key, item in known_keys().items():
        if item.metadata.get("choices"):
            (row,) = [
                line
                for line in page.splitlines()
                if line.startswith(f"| `{item.name}` ") and item.metadata["choices"][0] in line
            ]
            assert ", ".join(item.metadata["choices"]) in row, key
            assert "or more" not in row
