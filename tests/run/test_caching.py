import os

import jax
import pytest

from distill_jax.run.caching import keep_programs


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns a function that calls keep_programs, and returns the folder of the cache or None."""
    before = jax.config.values["jax_compilation_cache_dir"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def call(given=None):
        jax.config.update("jax_compilation_cache_dir", given)
        keep_programs()
        return jax.config.values["jax_compilation_cache_dir"]

    yield call
    jax.config.update("jax_compilation_cache_dir", before)


def test_programs_are_cached_in_a_folder_of_the_user_that_nobody_else_can_read(
    cache, tmp_path, monkeypatch
):
    folder = tmp_path / "distill_jax" / "compilation"
    for _ in range(2):
        assert cache() == str(folder)
        assert {path.stat().st_mode & 0o777 for path in (folder, folder.parent)} == {0o700}
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache() == str(tmp_path / "home" / ".cache" / "distill_jax" / "compilation")


def test_the_folder_that_the_user_names_comes_first(cache, tmp_path):
    assert cache("gs://bucket/cache") == "gs://bucket/cache"
    assert not (tmp_path / "distill_jax").exists()


@pytest.mark.parametrize("name", ["distill_jax", "distill_jax/compilation"])
def test_a_folder_that_others_can_write_or_own_is_not_used(
    name, cache, tmp_path, monkeypatch, capsys
):
    cache()
    (tmp_path / name).chmod(0o777)
    assert cache() is None
    assert "compiled programs are not cached: " in capsys.readouterr().out
    (tmp_path / name).chmod(0o700)
    assert cache() is not None
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache() is None
    assert f"{tmp_path / 'distill_jax'} belongs to another user" in capsys.readouterr().out


def test_without_room_for_a_folder_nothing_is_cached(cache, tmp_path, capsys):
    (tmp_path / "distill_jax").write_text("a file")
    assert cache() is None
    assert "not cached: " in capsys.readouterr().out
