"""Tests of students that are exported: as one file, as StableHLO and as ONNX."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.noise import keys_of, noise_of, step_noise
from distill_jax.diffusion.spec import DataSpec, Leaf, image_data
from distill_jax.diffusion.trained import Ddim, Encode, Guidance, Renoise, Stochastic, Trained
from distill_jax.models.build import abstract_params, make_network
from distill_jax.sampling import codecs
from distill_jax.sampling.loading import load
from distill_jax.sampling.manifest import Lineage, Manifest, Reference
from distill_jax.sampling.program import ANY, program_of
from distill_jax.sampling.prompts import WordEncoder
from distill_jax.storage import checkpoint, safetensors
from distill_jax.teachers import importing, native, onnx, stablehlo
from tests import forks
from tests.test_commands import one_message
from tests.toys import filled

GUIDED = Trained(Ddim(2), Guidance((0.0, 4.0)))
MODELS = {
    "mlp": {"name": "mlp", "width": 8, "blocks": 1},
    "dit": {"name": "dit", "width": 8, "blocks": 2, "heads": 2, "patch": 2},
    "unet": {
        "name": "unet",
        "channels": 32,
        "embedding": 8,
        "multipliers": (1,),
        "blocks": 1,
        "attention": (4,),
        "heads": 2,
    },
}
WORDS = ("blue", "circle", "red")
needs_flatbuffers = pytest.mark.skipif(
    importlib.util.find_spec("flatbuffers") is None, reason="the extra stablehlo is not installed"
)
needs_jax2onnx = pytest.mark.skipif(
    importlib.util.find_spec("jax2onnx") is None, reason="the extra onnx is not installed"
)


def finished(folder, model="mlp", trained=GUIDED, spec=None, dtype="float32", **fields):
    """Writes a student with weights of every size in folder/s03_n0002; returns it."""
    spec = spec or image_data((4, 4, 1), 3)
    manifest = Manifest(
        "s03_n0002",
        trained,
        True,
        spec,
        MODELS[model],
        {"name": "cosine"},
        "v",
        {"name": "noise", "size": 4},
        Lineage({"name": "progressive"}, source={"format": "edm"}),
        metrics={"digits": {"w=0": 1.5}},
        **fields,
    )
    network = make_network(manifest.to_json(), spec)
    params = filled(abstract_params(network, trained.inputs))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    checkpoint.save_final(epath.Path(folder) / manifest.stage / "final", params, manifest.to_json())
    return load(folder)


def text_to_image(folder):
    """Writes a student of prompts on latents, with its codec and text encoder; returns it."""
    folder = epath.Path(folder)
    kind, images = codecs.PatchPca(2, 3), image_data((8, 8, 1), 0)
    pixels = np.random.default_rng(0).uniform(-1, 1, (40, 8, 8, 1)).astype(np.float32)
    described = {"codec": {"name": "patch_pca", **dataclasses.asdict(kind)}}
    described |= {"stage": "codec", "data": images.to_json()}
    checkpoint.save_final(folder / "codec" / "final", kind.fit(pixels), described)
    words = WordEncoder(width=8, layers=1, heads=2, length=6)
    params = filled(words.shapes(WORDS))
    described = {"conditioner": {"name": "words", **dataclasses.asdict(words)}, "words": WORDS}
    place = folder / "conditioner" / "final"
    checkpoint.save_final(place, params, {"stage": "conditioner", **described})
    refer = {
        name: Reference(f"../../{name}/final", checkpoint.fingerprint(folder / name / "final"))
        for name in ("codec", "conditioner")
    }
    leaves = tuple(words.encoder(WORDS).leaves.items())
    return finished(folder, "dit", GUIDED, DataSpec(Leaf((4, 4, 3)), False, leaves), **refer)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def prompted(tmp_path_factory):
    return text_to_image(tmp_path_factory.mktemp("prompted"))


def same(ours, theirs):
    """Checks that two students have the same arrays, bit for bit and with their dtypes."""
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours.params, theirs.params
    )


@pytest.mark.parametrize(
    ("model", "dtype"), [("mlp", "float16"), ("dit", "bfloat16"), ("unet", "float32")]
)
def test_a_file_becomes_the_same_student_without_a_config(model, dtype, tmp_path):
    student = finished(tmp_path / "run", model, dtype=dtype)
    file = native.write(student, tmp_path / "student.safetensors")
    again = load(importing.convert("safetensors", file, tmp_path / "again"))
    same(student, again)
    ours, theirs = student.manifest, again.manifest
    assert theirs.lineage.source["source"] == {"format": "edm"}
    assert dataclasses.replace(theirs, lineage=ours.lineage) == ours


def test_a_file_holds_codec_and_text_encoder(prompted, tmp_path):
    file = native.write(prompted, tmp_path / "student.safetensors")
    code, _, stderr = forks.run(
        "distill_jax.teachers", "safetensors", str(file), f"--out={tmp_path / 'again'}"
    )
    assert code == 0, stderr
    again = load(tmp_path / "again")
    same(prompted, again)
    same(prompted.codec, again.codec)
    same(prompted.text, again.text)
    given = 0, 2, ["red circle", "blue"], 1.5
    np.testing.assert_array_equal(prompted.sample(*given), again.sample(*given))


def test_a_file_that_is_changed_is_refused(prompted, tmp_path):
    file = native.write(prompted, tmp_path / "student.safetensors")
    arrays, described = safetensors.read(file), safetensors.read_metadata(file)
    manifest = json.loads(described["distill_jax"])

    def message(arrays=arrays, **changes):
        text = json.dumps({**manifest, **changes})
        safetensors.write(tmp_path / "changed.safetensors", arrays, {"distill_jax": text})
        with pytest.raises(ValueError, match="changed.safetensors") as error:
            importing.convert("safetensors", tmp_path / "changed.safetensors", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return str(error.value)

    assert "checksum is wrong" in message(stage="another")
    assert "has format 99" in message(format=99)
    assert "parameterization is" in message(parameterization=3, checksum=True)
    own = {**manifest["model"], "name": "evil.module:Name"}
    assert "evil.module:Name" in message(model=own, checksum=True)
    kept = {name: leaf for name, leaf in arrays.items() if name != "codec/manifest.json"}
    assert "lacks the codec that it refers to" in message(kept)
    with pytest.raises(ValueError, match="leave --config out"):
        native.read(file, {"model": {}})
    with pytest.raises(ValueError, match="takes no --set label_dropout"):
        native.read(file, None, {"label_dropout": 0.1})


def test_a_student_whose_sampler_is_ones_own_code_is_no_file(digits, tmp_path):
    model = {"name": "my_package:network"}
    manifest = dataclasses.replace(digits.manifest, model=model)
    with pytest.raises(ValueError, match="needs my_package:network, and a file contains no code"):
        native.write(dataclasses.replace(digits, manifest=manifest), tmp_path / "x.safetensors")


SAMPLERS = {
    "ddim": Trained(Ddim(2), Guidance((0.0, 4.0))),
    "guided": Trained(Ddim(2), Guidance(null=True), all_times=True),
    "stochastic": Trained(Stochastic(3)),
    "renoise": Trained(Renoise((1.0, 0.6, 0.3))),
}


def steps_of(key, num, trained, shape):
    """Returns the noise of every step of images 0 .. num - 1, as the samplers number it."""
    keys, like = keys_of(key, jnp.arange(num)), jnp.zeros((num, *shape))
    first = isinstance(trained.sampler, Renoise)
    return [step_noise(keys, k - 1 + first, like) for k in range(1, trained.num_steps)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_program_draws_the_students_images_from_noise_or_a_seed(name, tmp_path):
    student, seed = finished(tmp_path, trained=SAMPLERS[name]), 2**32 - 1
    label, w = np.array([2, 0, 1], np.int32), np.array([0.5, 4.0, 1.0], np.float32)
    asked = (w,) if name in ("ddim", "guided") else ()
    expected = student.sample(seed, 3, label, *asked)
    assert jnp.std(expected) > 0.1
    number = np.arange(3, dtype=np.uint32)
    found = jax.jit(program_of(student, "seed").call)(np.uint32(seed), number, label, *asked)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    k_z, k_sampler = jax.random.split(jax.random.key(seed))
    noise = noise_of(k_z, 0, 3, (4, 4, 1))
    if student.trained.sampler.draws:
        more = steps_of(k_sampler, 3, student.trained, (4, 4, 1))
        noise = jnp.stack([noise, *more], axis=1)
    program = program_of(student)
    assert [each.name for each in program.inputs] == ["noise", "label", *["w"] * len(asked)]
    assert program.calls == student.calls(1.0 if asked else None)
    found = jax.jit(program.call)(noise, label, *asked)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_number_of_steps_can_be_an_input(tmp_path):
    student = finished(tmp_path, trained=SAMPLERS["guided"])
    label, w = np.array([2, 0, 1], np.int32), np.array([0.5, 4.0, 1.0], np.float32)
    noise = noise_of(jax.random.key(1), 0, 3, (4, 4, 1))
    program = program_of(student, num_steps=ANY)
    assert [each.name for each in program.inputs] == ["noise", "label", "w", "num_steps"]
    assert program.calls == 2
    call = jax.jit(program.call)
    for steps in (1, 3):
        found = call(noise, label, w, np.int32(steps))
        np.testing.assert_allclose(found, student.decode(noise, label, w, steps), atol=1e-4)


def test_the_program_of_prompts_takes_token_numbers(prompted):
    prompts, w = ["red circle", ""], np.array([1.0, 3.0], np.float32)
    ids, _ = prompted.text.tokenizers[0](prompts)
    number = np.arange(2, dtype=np.uint32)
    found = jax.jit(program_of(prompted, "seed").call)(np.uint32(5), number, ids, w)
    np.testing.assert_allclose(found, prompted.sample(5, 2, prompts, w), atol=1e-4)


def test_what_no_program_can_be_made_of_is_one_message(digits):
    with pytest.raises(ValueError, match="num_steps is 3; this student was made for 2"):
        program_of(digits, num_steps=3)
    with pytest.raises(ValueError, match="num_steps is 0, .* takes 2 only; leave num_steps out"):
        program_of(digits, num_steps=ANY)
    with pytest.raises(ValueError, match="an encoder, which maps images to noise"):
        program_of(digits.with_sampler(Encode(2)))
    spec = digits.manifest.spec._replace(cond=(("text", Leaf((2, 3))),))
    manifest = dataclasses.replace(digits.manifest, spec=spec)
    with pytest.raises(ValueError, match="takes text; expected labels, or prompts with their"):
        program_of(dataclasses.replace(digits, manifest=manifest))


RUNS = """
import json, sys
import numpy as np
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("distill_jax", "flax"):
            raise ImportError(name)
sys.meta_path.insert(0, Absent())
import jax
from jax import export
with open(sys.argv[1], "rb") as file:
    program = export.deserialize(bytearray(file.read()))
inputs = np.load(sys.argv[2])
described = json.load(open(sys.argv[1].replace(".stablehlo", ".json")))
images = program.call(*(inputs[each["name"]] for each in described["inputs"]))
assert not {"distill_jax", "flax"} & set(sys.modules)
np.save(sys.argv[3], images)
"""


@needs_flatbuffers
@pytest.mark.parametrize("model", ["mlp", "dit", "unet"])
def test_stablehlo_draws_the_students_images_without_this_package(model, tmp_path):
    student = finished(tmp_path / "run", model)
    label, w = np.arange(3, dtype=np.int32), np.array([0.0, 2.0, 4.0], np.float32)
    out = stablehlo.write(student, tmp_path / "student.stablehlo", "seed")
    described = json.loads((tmp_path / "student.json").read_text())
    assert described["platforms"] == ["cpu", "cuda", "tpu"]
    assert {each["name"]: (each["shape"], each["range"]) for each in described["inputs"]} == {
        "seed": ([], [0, 2**32 - 1]),
        "number": (["b"], None),
        "label": (["b"], [0, 2]),
        "w": (["b"], [0, 4]),
    }
    number = np.arange(3, dtype=np.uint32)
    np.savez(tmp_path / "in.npz", seed=np.uint32(7), number=number, label=label, w=w)
    files = [str(tmp_path / name) for name in ("in.npz", "out.npy")]
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(out), *files],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(files[1]), student.sample(7, 3, label, w), atol=1e-4)


@needs_flatbuffers
def test_the_command_writes_stablehlo_of_prompts_with_its_tokenizer(prompted, tmp_path):
    import tokenizers
    from jax import export

    given = [f"--student={prompted.directory}", "--format=stablehlo"]
    given += [f"--out={tmp_path / 'x.stablehlo'}", "--batch=2"]
    code, stdout, stderr = forks.run("distill_jax.export", *given)
    assert code == 0, stderr
    assert "x.json says what it takes" in stdout
    described = json.loads((tmp_path / "x.json").read_text())
    assert [each["shape"][0] for each in described["inputs"]] == [2, 2, 2]
    (facts,) = described["tokenizers"]
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / facts["file"]))
    ids = np.full((2, facts["length"]), facts["pad"], np.int32)
    words = tokenizer.encode("red circle", add_special_tokens=False).ids
    ids[:, : len(words) + 2] = [facts["start"], *words, facts["end"]]
    z, w = np.asarray(noise_of(jax.random.key(0), 0, 2, (4, 4, 3))), np.ones(2, np.float32)
    program = export.deserialize(bytearray((tmp_path / "x.stablehlo").read_bytes()))
    expected = prompted.decode(z, ["red circle"] * 2, w)
    np.testing.assert_allclose(program.call(z, ids, w), expected, atol=1e-4)


def test_flags_of_other_formats_are_one_message(digits, tmp_path):
    given = [f"--student={digits.directory}", f"--out={tmp_path / 'x.safetensors'}"]
    for flag, kind in (("--batch=2", "safetensors"), ("--start=seed", "onnx")):
        message = one_message(*forks.run("distill_jax.export", *given, f"--format={kind}", flag))
        assert f"{flag} is not read with --format={kind}; leave it out" in message
    with pytest.raises(ValueError, match=r"no name of a file of safetensors; expected FILE\.safe"):
        native.write(digits, tmp_path / "x.bin")
    (tmp_path / "x.safetensors").write_text("")
    with pytest.raises(ValueError, match="exists; choose the name of a new file"):
        native.write(digits, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("module", "package"), [(stablehlo, "flatbuffers"), (onnx, "jax2onnx"), (onnx, "onnxruntime")]
)
def test_a_missing_extra_is_one_message(module, package, digits, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else 1)
    with pytest.raises(ValueError, match=rf"needs {package}; run pip install -e \"\.\[(.+)\]\""):
        module.write(digits, tmp_path / "x")


@needs_jax2onnx
@pytest.mark.parametrize("model", ["mlp", "unet"])
def test_onnx_draws_the_students_images(model, tmp_path, capfd):
    """In a process without the type checker of the tests, which the converter's shapes fail."""
    import onnxruntime

    student, file = finished(tmp_path / "run", model), tmp_path / "student.onnx"
    given = (f"--student={student.directory}", "--format=onnx", f"--out={file}")
    code, _, stderr = forks.run("distill_jax.export", *given)
    assert code == 0, stderr
    described = json.loads((tmp_path / "student.json").read_text())
    assert described["deviation"] < 2e-5  # It would be 9e-5 if alpha(1) were 0.
    z = np.asarray(noise_of(jax.random.key(1), 0, 3, (4, 4, 1)))
    given = {"noise": z, "label": np.arange(3, dtype=np.int32), "w": np.ones(3, np.float32)}
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    assert capfd.readouterr().err == ""  # onnxruntime warns of what no node takes.
    expected = student.decode(*given.values())
    np.testing.assert_allclose(session.run(["images"], given)[0], expected, atol=1e-4)
