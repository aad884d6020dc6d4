"""Tests of caches: what batches read from them, and how they are filled, stopped and refused."""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath

from benchmarks import kill
from distill_jax.config import base, pipeline, stage
from distill_jax.data import encoded, records
from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source
from distill_jax.run import cache, encode, lock, plan, rehearsal
from distill_jax.run import pipeline as run_pipeline
from distill_jax.run.cache import COMMAND, FILE
from distill_jax.run.text_encoder import fit
from distill_jax.sampling.prompts import WordEncoder
from distill_jax.storage import checksums
from tests import forks
from tests.data.pictures import write_folder
from tests.data.test_captions import rows, write
from tests.sampling.test_autoencoder import write as write_vae
from tests.toys import ROOT

PCA = {"name": "patch_pca", "patch": 2, "channels": 3}
WORDS = {"name": "words", "width": 16, "layers": 1, "length": 10, "updates": 3}


def never():
    return False


def config_of(data, codec=PCA, conditioner=(), **cached):
    """Returns the config of one short stage on latents."""
    config = base()
    config.data = data
    config.codec, config.conditioner = dict(codec), dict(conditioner)
    config.cache.update(cached)
    config.model = {"name": "dit", "patch": 2, "width": 16, "blocks": 1, "heads": 2}
    config.batch_size = 8
    config.stages = pipeline(
        stage("teacher", "diffusion", num_steps=2, steps=2, learning_rate=1e-3)
    )
    return config


def filled(config, workdir):
    """Returns the plan with its cache, and the one without."""
    planned = plan.make(config, epath.Path(workdir))
    with lock.hold(planned.workdir) as held:
        run_pipeline.finish_fits(planned, never, held)
        made, _ = run_pipeline.fill_cache(planned, never, held)
    return made, planned


def take(dataset, *parts):
    """Returns two batches, number 5 and 6, of every part."""
    drawn = []
    for part in parts or [(0, 1)]:
        batches = dataset.batches(3, 5, 8, part)
        drawn += [next(batches), next(batches)]
    return drawn


def assert_same(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        np.testing.assert_array_equal(a.index, b.index)
        assert (a.x is None) == (b.x is None)
        if a.x is not None:
            assert a.x.dtype == b.x.dtype == np.float32
            np.testing.assert_array_equal(a.x, b.x)
        assert a.cond.keys() == b.cond.keys()
        for name, leaf in a.cond.items():
            assert leaf.dtype == b.cond[name].dtype
            np.testing.assert_array_equal(leaf, b.cond[name])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Returns the plan of captioned shapes on latents with its cache, and the one without."""
    data = {"name": "shapes", "count": 2100, "tests": 64}
    return filled(config_of(data, conditioner=WORDS), tmp_path_factory.mktemp("captioned"))


def data_of(name, folder):
    if name == "digits":
        return {"name": "digits"}
    if name == "mirrored folder":
        return {"name": "folder", "path": str(write_folder(folder)), "size": 8}
    write(folder, rows(lambda i: [f"picture {i}", f"{i} picture", "picture"]))
    return {"name": "captioned_folder", "path": str(folder), "size": 8, "flip": True}


@pytest.mark.parametrize("name", ["digits", "mirrored folder", "captions"])
def test_batches_are_the_same_with_and_without_a_cache(tmp_path, name):
    conditioner = WORDS if name == "captions" else {}
    config = config_of(data_of(name, tmp_path / "data"), conditioner=conditioner)
    made, plain = filled(config, tmp_path / "run")
    parts = (0, 1), (0, 2), (1, 2)
    assert_same(take(made.dataset, *parts), take(plain.dataset, *parts))
    if name != "digits":  # Both the images and their mirror images are drawn.
        views = {row.x[0].tobytes() for row in take(made.dataset)}
        latents = made.dataset.cache.latents.take(range(len(made.dataset.cache.latents)))
        assert latents["latents"].shape[1] == 2
        found = {view.tobytes() for pair in latents["latents"] for view in pair}
        assert views < found


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Returns the plan of latents that are drawn with its cache, and the one without."""
    folder = tmp_path_factory.mktemp("drawn")
    write_vae(folder / "vae")
    codec = {"name": "autoencoder", "path": str(folder / "vae"), "draw": True}
    data = {"name": "noise", "size": 16, "count": 4}
    return filled(config_of(data, codec=codec), folder / "run")


def test_drawn_latents_are_the_same_with_and_without_a_cache(drawn):
    made, plain = drawn
    parts = (0, 1), (0, 2), (1, 2)
    mine = take(made.dataset, *parts)
    for a, b in zip(mine, take(plain.dataset, *parts), strict=True):
        np.testing.assert_allclose(a.x, b.x, atol=2e-6)  # Convolutions of other batches round.
    np.testing.assert_array_equal(mine[0].x, np.concatenate([mine[2].x, mine[4].x]))
    assert made.dataset.cache.latents.take([0])["latents"].shape == (1, 1, 4, 4, 8)
    assert mine[0].x.shape == (8, 4, 4, 4)


def test_drawn_latents_have_the_encoders_distribution():
    mean, std = np.split(np.random.default_rng(0).uniform(0.5, 2, (1, 2, 2, 6)), 2, axis=-1)
    moments = np.concatenate([mean, std], axis=-1, dtype=np.float32)
    source = Arrays(*[Source(np.zeros((1, 2, 2, 3)), np.zeros(1, np.int32))] * 2, 0, 1)
    dataset = encoded.Encoded(
        source, source.spec, lambda x: np.repeat(moments, len(x), 0), moments=True
    )
    z = (next(dataset.batches(3, 0, 4096)).x - mean) / std
    assert len(np.unique(z)) > 0.99 * z.size
    assert np.abs(z.mean(0)).max() < 5 / np.sqrt(4096)
    assert np.abs(z.std(0) - 1).max() < 5 / np.sqrt(8192)
    assert np.abs(np.corrcoef(z.reshape(4096, -1).T) - np.eye(12)).max() < 5 / np.sqrt(4096)


def test_masked_images_are_encoded_when_drawn_and_are_the_same_with_a_cache(tmp_path):
    config = config_of(data_of("captions", tmp_path / "data"), conditioner=WORDS)
    config.model = {"name": "sd_unet", "widths": (8,), "transformers": (), "heads": (1,)}
    config.model.groups, config.masks = 4, {"name": "random"}
    made, plain = filled(config, tmp_path / "run")
    assert "masks: masked images are encoded when they are drawn" in plan.show(plain)
    parts = (0, 1), (0, 2), (1, 2)
    assert_same(take(made.dataset, *parts), take(plain.dataset, *parts))
    rows = take(made.dataset)[0]
    mask, z = rows.cond["inpaint"][..., :1], rows.cond["inpaint"][..., 1:]
    assert rows.x.shape[1:] == z.shape[1:] == (4, 4, 3)
    np.testing.assert_array_equal(mask, mask.astype(bool))
    config.masks = {}
    config.model = {"name": "dit", "patch": 2, "width": 16, "blocks": 1, "heads": 2}
    config.cache.path = str(tmp_path / "run")
    config.codec, config.conditioner = ({"path": str(part.directory)} for part in parts_of(made))
    other, _ = filled(config, tmp_path / "other")  # The cache does not depend on masks.
    np.testing.assert_array_equal(take(other.dataset)[0].x, rows.x)


def test_captions_are_encoded_once_and_the_null_is_one_of_them(captioned):
    made, plain = captioned
    assert_same(take(made.dataset), take(plain.dataset))
    assert_same(
        take(made.dataset.without_images(), (1, 2)), take(plain.dataset.without_images(), (1, 2))
    )
    for name, leaf in plain.dataset.null.items():
        np.testing.assert_array_equal(made.dataset.null[name], leaf)
    texts = set(plain.dataset.source.texts["train"])
    assert len(made.dataset.cache.texts) == len(texts) + 1


def test_batches_need_neither_codec_nor_text_encoder(captioned):
    made, _ = filled(captioned[0].config, captioned[0].workdir)
    assert "codec" not in vars(made.codec)
    assert "conditioner" not in vars(made.conditioner)
    moved = [(part.directory, part.directory.with_suffix(".moved")) for part in parts_of(made)]
    for here, there in moved:
        here.rename(there)
    assert take(made.dataset)[0].x.shape == (8, 8, 8, 3)
    assert np.abs(made.dataset.null["text"]).max() > 0
    for here, there in moved:
        there.rename(here)


def parts_of(run):
    return run.codec, run.conditioner


def test_a_stopped_command_goes_on_and_a_finished_one_does_nothing(captioned, tmp_path):
    made, _ = captioned
    mine = dataclasses.replace(made.cache, directory=epath.Path(tmp_path / "cache"))
    steps = 1024 // 8
    polls = iter([False] * (steps + 5) + [True])
    with pytest.raises(InterruptedError, match="stopped while filling"):
        encode.finish(mine, lambda: next(polls))
    assert json.loads((mine.directory / FILE).read_text())["finished"] is False
    names = [path.name for path in (mine.directory / "latents").iterdir()]
    assert sorted(names) == ["00000.array_record", "00001.array_record.partial"]
    first = (mine.directory / "latents" / "00000.array_record").stat().mtime
    with pytest.raises(ValueError, match=r"is not finished; run its command again"):
        encode.finish(dataclasses.replace(mine, own=False), never)
    found, wrote = encode.finish(mine, never)
    assert wrote
    assert (mine.directory / "latents" / "00000.array_record").stat().mtime == first
    everything = range(len(found.latents))
    theirs = made.dataset.cache.latents.take(everything)
    assert found.latents.take(everything).tobytes() == theirs.tobytes()
    assert not encode.finish(mine, never)[1]
    (mine.directory / "texts" / "00000.array_record").unlink()
    assert encode.finish(mine, never)[1]
    assert not list(mine.directory.glob("*/*.partial"))


def test_a_cache_that_does_not_fit_in_memory_is_read_when_drawn(captioned, monkeypatch):
    made, _ = captioned
    monkeypatch.setattr(records, "MEMORY", 0)
    dataset = dataclasses.replace(made.dataset, cache=made.cache.read())
    assert_same(take(dataset), take(made.dataset))


def test_float16_takes_half_the_room_and_is_widened(captioned, tmp_path):
    made, _ = captioned
    half = dataclasses.replace(made.cache, directory=epath.Path(tmp_path / "cache"))
    half = dataclasses.replace(half, dtype="float16")
    dataset = dataclasses.replace(made.dataset, cache=encode.finish(half, never)[0])
    for mine, theirs in zip(take(dataset), take(made.dataset), strict=True):
        assert mine.x.dtype == mine.cond["text"].dtype == np.float32
        assert mine.cond["text_mask"].dtype == bool
        np.testing.assert_allclose(mine.x, theirs.x, rtol=5e-4, atol=1e-6)
    bytes_of = [sum(part.nbytes for part in each.shards.values()) for each in (half, made.cache)]
    assert bytes_of[0] < 0.52 * bytes_of[1]


def test_values_that_float16_does_not_hold_are_refused():
    kind = encoded.latents_dtype((1, 1, 1), 1, "float16")
    values = {"label": np.zeros(1, np.int32), "latents": np.full((1, 1, 1, 1, 1), 1e5, np.float32)}
    with pytest.raises(ValueError, match="set config.cache.dtype to float32"):
        encode._stored(values, kind)


def test_a_plan_names_the_cache_and_its_room_is_needed(tmp_path):
    made = plan.make(config_of({"name": "digits"}), tmp_path)
    assert f"cache: latents as float32 in {tmp_path / 'cache'}" in plan.show(made)
    none = dataclasses.replace(made, cache=None)
    needed = [rehearsal.needed_bytes(each, each.stages) for each in (made, none)]
    assert needed[0] - needed[1] == 1437 * (4 + 4 * 4 * 4 * 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codec": {**PCA, "power": 0.5}}, "is a cache of another codec: codec is .* in this run"),
        ({"conditioner": {**WORDS, "updates": 2}}, "is a cache of another text encoder"),
        ({"data": {"name": "shapes", "count": 2101, "tests": 64}}, "is a cache of other data"),
        ({"dtype": "float16"}, "is a cache of another dtype: dtype is 'float32' there"),
    ],
)
def test_a_cache_of_something_else_is_refused(captioned, tmp_path, change, message):
    given = {
        "data": {"name": "shapes", "count": 2100, "tests": 64},
        "conditioner": WORDS,
        "path": str(captioned[0].workdir),
    }
    config = config_of(**{**given, **change})
    with pytest.raises(ValueError, match=message) as error:
        filled(config, tmp_path)
    assert COMMAND in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_reads_the_cache_of_another_directory(captioned, tmp_path):
    made, _ = captioned
    parts = {"codec": {"path": str(made.codec.directory)}}
    parts["conditioner"] = {"path": str(made.conditioner.directory)}
    data = {"name": "shapes", "count": 2100, "tests": 64}
    other, _ = filled(config_of(data, **parts, path=str(made.workdir)), tmp_path)
    assert_same(take(other.dataset), take(made.dataset))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(FileNotFoundError, match=f"has no {FILE} in it"):
        plan.make(config_of(data, **parts, path=str(tmp_path)), tmp_path)
    none = plan.make(config_of(data, **parts, path=cache.NONE), tmp_path)
    assert none.cache is None


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign", "flipped"])
def test_a_damaged_shard_is_one_message(captioned, tmp_path, damage):
    made, _ = captioned
    directory = epath.Path(tmp_path / "cache")
    shutil.copytree(made.cache.directory, directory)
    path = directory / "latents" / "00001.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damages = {"cut": content[: len(content) // 2], "foreign": b"no shard" * 99, "flipped": content}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(damages[damage]))
    with pytest.raises(ValueError, match=r"00001.array_record cannot be read .*remove it, and run"):
        dataclasses.replace(made.cache, directory=directory, own=False).read()


def test_a_damaged_index_is_one_message(captioned, tmp_path):
    made, _ = captioned
    broken = dataclasses.replace(made.cache, directory=epath.Path(tmp_path))
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match="is no readable JSON .*; move .* away, and the run makes"):
        encode.finish(broken, never)


def test_a_dataset_whose_images_have_no_numbers_is_encoded_when_drawn(captioned, tmp_path):
    @dataclasses.dataclass
    class Own:
        source: object

        def __getattr__(self, name):
            if name in ("flip", "num_examples", "examples", "with_train"):
                raise AttributeError(name)
            return getattr(self.source, name)

    _, plain = captioned
    dataset = dataclasses.replace(plain.dataset, source=Own(plain.dataset.source))
    mine = dataclasses.replace(plain.cache, dataset=dataset, directory=epath.Path(tmp_path))
    found, wrote = encode.finish(mine, never)
    assert wrote and found.latents is None
    assert_same(take(dataclasses.replace(dataset, cache=found)), take(plain.dataset))


def test_a_cache_for_networks_on_pixels_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing is encoded; leave the path out"):
        plan.make(config_of({"name": "digits"}, codec={}, path=str(tmp_path)), tmp_path)


def test_a_caption_that_is_not_in_the_cache_is_named(captioned):
    made, _ = captioned
    source = dataclasses.replace(
        made.dataset.source, texts={"train": ["?"] * 2100, "test": [""] * 64}
    )
    with pytest.raises(ValueError, match=r"have the caption '\?', which is not in the cache"):
        next(dataclasses.replace(made.dataset, source=source).batches(0, 0, 8))


CHAIN = """
from tests.run.test_cache import WORDS, config_of


def get_config():
    data = {"name": "shapes", "count": 2100, "tests": 64}
    config = config_of(data, conditioner=WORDS)
    config.save_every = config.log_every = 2
    config.evaluate.update(w=(0.0,), num_samples=20)
    config.stages.s00_teacher.steps = 9
    return config
"""


def test_the_command_says_what_it_did_and_refuses_what_it_cannot_do(tmp_path):
    (tmp_path / "chain.py").write_text(CHAIN)
    out = tmp_path / "made"
    given = [f"--config={tmp_path / 'chain.py'}", f"--out={out}"]
    code, stdout, stderr = forks.run("distill_jax.cache", *given)
    assert code == 0, stderr
    assert "cache: 2,100 latents and" in stdout + stderr
    code, stdout, stderr = forks.run("distill_jax.cache", *given)
    assert code == 0
    assert "nothing left to do" in stdout + stderr
    for flags, message in (
        ([*given, "--config.cache.path=x"], "leave it out"),
        ([given[1], "--config=configs/digits_guided.py"], "neither a codec nor a conditioner"),
        (given[:1], "--out"),
    ):
        code, _, stderr = forks.run("distill_jax.cache", *flags)
        assert code == 1
        assert message in stderr
        assert "Traceback" not in stderr


def test_the_fit_of_a_text_encoder_stops_between_updates_and_ends_the_same(captioned):
    source, polls = captioned[1].dataset.source, iter([False, True])
    given = WordEncoder(**{k: v for k, v in WORDS.items() if k != "name"}), ["a red cross"] * 8
    latents, words = source.train.x[:8] / np.float32(255), ["a", "cross", "red"]
    with pytest.raises(InterruptedError, match="after 1 of 3 updates .*, which begins again"):
        fit(*given, latents, words, lambda: next(polls))
    once, again = (fit(*given, latents, words, never) for _ in range(2))
    assert checksums.of_arrays(once) == checksums.of_arrays(again)


def wait_for(process, workdir, sign, log):
    while process.poll() is None and not list(workdir.glob(sign)):
        time.sleep(0.002)
    assert process.poll() is None, log.read_text()


def test_a_run_killed_in_fits_cache_and_training_ends_with_the_same_weights(tmp_path):
    (tmp_path / "chain.py").write_text(CHAIN)
    flags, programs = [f"--config={tmp_path / 'chain.py'}"], os.environ["JAX_COMPILATION_CACHE_DIR"]
    undisturbed = kill.Command(tmp_path / "undisturbed", flags, 1, programs)
    kill.run_undisturbed(undisturbed)
    command = kill.Command(tmp_path / "disturbed", flags, 1, programs)
    for sign, kind, code in (
        ("codec/final/manifest.json", "SIGTERM", 143),
        ("cache/latents/*", "SIGKILL", 137),
        ("s00_teacher/states/2", "SIGKILL", 137),
    ):
        command.start()
        wait_for(command._processes[0], command.workdir, sign, command.log(0))
        assert command.signal(kind, 0)[0] == [code], command.log(0).read_text()
    command.start()
    assert command.wait(1200) == [0], command.log(0).read_text()
    assert kill.compare(command.workdir, undisturbed.workdir, kill.Tally()) == 0
    # The command that the run prints at its end draws a picture.
    printed = shlex.split(command.log(0).read_text().split("  sample   ")[1].splitlines()[0])
    out = tmp_path / "x.png"
    code, _, stderr = forks.run(printed[2], *printed[3:], "--num=1", f"--out={out}")
    assert (code, out.exists()) == (0, True), stderr
    assert sum(word.startswith("--prompt=a ") for word in printed) == 1


def test_two_processes_that_lose_one_fill_the_same_cache(captioned, tmp_path):
    (tmp_path / "chain.py").write_text(CHAIN)
    out, log = tmp_path / "out", tmp_path / "log"
    command = [sys.executable, "-m", "distill_jax.cache", f"--config={tmp_path / 'chain.py'}"]
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "2"}

    def start():
        several = [f"--coordinator=localhost:{kill.free_port()}", "--num_processes=2"]
        with open(log, "a") as file:
            given = {"cwd": ROOT, "env": environment, "stdout": file, "stderr": file}
            flags = [*command, f"--out={out}", *several]
            return [subprocess.Popen([*flags, f"--process_id={i}"], **given) for i in range(2)]

    first, second = start()
    wait_for(first, out, "codec/final/manifest.json", log)
    for process in (second, first):  # A launcher kills the others, too.
        process.kill()
        process.wait()
    assert [process.wait(1200) for process in start()] == [0, 0], log.read_text()
    theirs = captioned[0].dataset.cache
    mine = dataclasses.replace(captioned[0].cache, directory=epath.Path(out / "cache")).read()
    every = range(len(theirs.latents))
    assert mine.latents.take(every).tobytes() == theirs.latents.take(every).tobytes()
    # XLA splits the sums of the fit by the number of devices of a process.
    tokens = [each.texts.take(range(len(theirs.texts)))["text"] for each in (mine, theirs)]
    np.testing.assert_allclose(*tokens, atol=1e-4)
    assert json.loads((out / "cache" / FILE).read_text())["finished"]
    assert not list((out / "cache").glob("*/*.partial"))
