"""A second start finds all that it would compile."""

import collections
import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from refseg_jax.errors import UserError
from refseg_jax.training.compilations import keep_compilations
from tests.refseg_jax.training.loop_runs import build_sound, train

sound = pytest.fixture(scope="module")(build_sound)

ASKED = "/jax/compilation_cache/compile_requests_use_cache"
FOUND = "/jax/compilation_cache/cache_hits"
FIELDS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def restored() -> Iterator[None]:
    """JAX's settings are those of before, afterwards."""
    before = {name: getattr(jax.config, name) for name in FIELDS}
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@contextlib.contextmanager
def _events() -> Iterator[collections.Counter[str]]:
    counts: collections.Counter[str] = collections.Counter()

    def note(event: str, **details: object) -> None:
        del details
        counts[event] += 1

    jax.monitoring.register_event_listener(note)
    try:
        yield counts
    finally:
        jax.monitoring.unregister_event_listener(note)


@pytest.mark.usefixtures("restored")
def test_another_start_compiles_nothing(sound: Path, tmp_path: Path) -> None:
    keep_compilations(str(tmp_path / "deep" / "cache"))
    results = []
    for name in ("first", "second"):
        # As a new process, which has compiled nothing.
        jax.clear_caches()
        with _events() as counts:
            results.append(train(tmp_path / name, sound, 2).state)
        assert counts[ASKED] > 0
        assert counts[FOUND] == (counts[ASKED] if name == "second" else 0)
    assert (results[0].params["liked"] == results[1].params["liked"]).all()
    assert any("jit_step" in path.name for path in (tmp_path / "deep" / "cache").iterdir())


@pytest.mark.usefixtures("restored")
def test_nothing_changes_where_no_folder_is_named() -> None:
    before = [getattr(jax.config, name) for name in FIELDS]
    keep_compilations("")
    assert [getattr(jax.config, name) for name in FIELDS] == before


@pytest.mark.usefixtures("restored")
def test_a_bucket_is_left_to_jax() -> None:
    keep_compilations("gs://somewhere/cache")
    assert jax.config.jax_compilation_cache_dir == "gs://somewhere/cache"
    assert not Path("gs:").exists()


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir
    with pytest.raises(UserError, match=r"config\.loop\.compilation_cache=.*/file.*: \w") as caught:
        keep_compilations(str(tmp_path / "file" / inside))
    assert "\n" not in str(caught.value)
    assert jax.config.jax_compilation_cache_dir == before
