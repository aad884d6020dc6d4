"""Tests of the report command: runs and presets beside the papers, and the tables of documents."""

import itertools
import json
import re
import shutil

import pytest
from etils import epath

from distill_jax.evaluation import beside, records
from distill_jax.evaluation.published import (
    CIFAR10,
    CLAIMS,
    INCEPTION,
    PUBLISHED,
    SAMPLES,
    Number,
    Protocol,
)
from distill_jax.methods import METHODS
from distill_jax.runtime.config_file import load_file
from distill_jax.storage.checksums import with_checksum
from tests.test_commands import one_message, run
from tests.test_configs import CONFIGS, load_config
from tests.toys import ROOT

FID = Protocol("FID", CIFAR10, SAMPLES, "50,000 training images")
SIZES = ("full", "one_stage", "church", "deterministic", "stochastic", "gpu", "small", "smoke")
SIZES += ("base", "two_students", "plan")


def cells(text):
    """Returns the rows of all Markdown tables in a text, as dicts by title."""
    rows = []
    for table in re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE):
        titles, _, *lines = (
            [c.strip() for c in x.strip("|").split("|")] for x in table.split("\n") if x
        )
        rows += [dict(zip(titles, line, strict=True)) for line in lines]
    return rows


@pytest.fixture
def workdir(chain, tmp_path):
    """Returns a copy of the finished chain of digits."""
    return epath.Path(shutil.copytree(chain, tmp_path / "digits"))


def change(path, **fields):
    """Changes fields of a JSON file and its checksum."""
    content = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps(with_checksum(content) if "checksum" in content else content))


def test_a_run_is_printed_and_written_with_its_updates_hours_device_and_costs(chain, tmp_path):
    out = tmp_path / "new" / "table.md"
    code, stdout, stderr = run("report", chain, "--w=1", f"--out={out}")
    assert code == 0, stderr
    assert stdout == out.read_text()
    rows = cells(stdout)
    numbers = [row for row in rows if row.get("protocol")]
    assert [row["stage"] for row in numbers] == sorted(path.name for path in chain.glob("s0*"))
    content = json.loads((chain / "report.json").read_text())
    measured = {(row["stage"], row["num_steps"]): row for row in content["rows"] if row["w"] == 1}
    for row in numbers:
        own = measured[row["stage"], int(row["steps"])]
        assert row["ours"] == f"FD-digits {own['FD-digits']:.3g}"
        assert row["paper"] == "none so measured"
        assert row["protocol"] == "digits, 40 samples, 1,437 training images"
        assert row["device"] == "1 x cpu"
        assert all(float(part) > 0 for part in row["hours"].split(" + "))
    assert numbers[-1]["updates"] == "8 + 56"
    costs = {
        row["stage"]: row for row in rows if "times faster" in row and row["run"] == chain.name
    }
    teacher, student = (measured["s00_teacher", 64], measured["s07_n0001", 1])
    ratio = teacher["seconds_per_image"] / student["seconds_per_image"]
    assert costs["s07_n0001"]["fewer calls"] == "128"
    assert costs["s07_n0001"]["times faster"] == f"{ratio:.3g}"
    assert costs["s07_n0001"]["time in full-size calls"] == f"{128 / ratio:.3g}"
    spent, first = re.fullmatch(r"(.+) \+ (.+)", numbers[-1]["hours"]).group(2, 1)
    cost = float(costs["s07_n0001"]["cost / teacher's training"])
    assert cost == pytest.approx(float(spent) / float(first), rel=0.1)  # Two digits of each.
    claims = [row for row in rows if row["run"].startswith("claim of ")]
    assert {row["times faster"] for row in claims} == {"up to 256", "at least 10", "-"}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_preset_is_reported_without_a_run_and_its_stages_reproduce_what_it_names(name):
    for size in SIZES:
        try:
            _, config = load_config(name, size)
        except ValueError:
            continue  # The config has no such size.
        record = records.of_config(json.loads(config.to_json()), name)
        rows = [row for row in cells(beside.show([record])) if "ours" in row]
        assert {row["ours"] for row in rows} <= {"not run", "no such stage"}
        assert {row["hours"] for row in rows} == {"not run"}
        entry = PUBLISHED.get(config.published)
        if size != "full" or entry is None:
            continue
        assert len(rows) == max(1, len(entry.numbers))
        for row, published in zip(rows, entry.numbers, strict=False):
            assert row["ours"] == "not run"
            if config.teacher and row["stage"] == "teacher":
                continue  # It is imported, and no stage of this run.
            method = config.stages[row["stage"]].method
            steps = method.get("num_steps", 1)
            assert published.steps in (steps, None)
            assert row["paper"].startswith(f"{published.number} [")
            name_of_data, side = published.number.protocol.dataset.split()
            assert (config.data.dataset, f"{config.data.size}x{config.data.size}") == (
                name_of_data,
                side,
            )


def test_every_entry_is_named_by_a_preset_and_every_number_says_its_w_and_source():
    named = set()
    for name, size in itertools.product(CONFIGS, ("full", "one_stage")):
        if size == "full" or name == "imagenet64_dmd2":
            named.add(load_config(name, size)[1].published)
    assert named == {"", *PUBLISHED}
    for entry in PUBLISHED.values():
        assert "arXiv:" in entry.paper
        assert entry.numbers or entry.note
        for number in entry.numbers:
            assert number.source
            assert number.number.protocol.metric in ("FID", "IS")
            assert set(number.unsure) <= set(number._fields)
    unknown = [key for key, entry in PUBLISHED.items() for n in entry.numbers if n.w is None]
    assert unknown == ["meng_2023/cifar10"]
    (seven,) = PUBLISHED["meng_2023/imagenet64"].numbers
    assert (seven.number.value, seven.w, seven.unsure) == (7.54, 1.0, ("w",))
    columns = {claim.column for claims in CLAIMS.values() for claim in claims}
    assert columns <= set(beside.COSTS)
    assert CLAIMS.keys() <= METHODS.keys()


@pytest.mark.parametrize(
    "other",
    [
        FID._replace(metric="FD-efflite0"),
        FID._replace(metric="FD-cifar10"),
        FID._replace(dataset="cifar10-jpeg 32x32"),
        FID._replace(dataset="folder cifar10 32x32"),
        FID._replace(num=2000),
        FID._replace(reference="10,000 training images"),
        FID._replace(reference=None),
    ],
)
def test_a_number_of_another_protocol_cannot_stand_beside_a_published_one(other):
    for name in ("salimans_2022/cifar10", "zhou_2024/cifar10"):
        published = PUBLISHED[name].numbers[0].number
        beside.Pair(Number(2.0, FID), published, 50_000)
        with pytest.raises(ValueError, match="is not measured as FID"):
            beside.Pair(Number(2.0, other), published, 50_000)
    assert str(Number(2.0, other)).startswith(f"{other.metric} ")


def as_cifar10(workdir, **protocol):
    """Makes the files of a digits chain those of a preset that measured FID on CIFAR-10."""
    published = "salimans_2022/cifar10"
    change(workdir / "config.json", published=published)
    content = json.loads((workdir / "report.json").read_text())
    fields = {"name": "FID", "dataset": CIFAR10, "images": 50_000, "weights": INCEPTION}
    fields |= {"num": SAMPLES, **protocol}
    rows = [{**row, fields["name"]: row["FD-digits"] / 100} for row in content["rows"]]
    made_of = {**content["made_of"], "num_samples": fields["num"]}
    reference = {name: fields[name] for name in ("dataset", "images", "weights")}
    change(
        workdir / "report.json",
        name=fields["name"],
        rows=rows,
        made_of=made_of,
        reference=reference,
    )
    return beside.show([records.of_workdir(workdir)], [0.0])


def test_a_number_of_the_same_protocol_stands_beside_the_published_one(workdir):
    rows = [row for row in cells(as_cifar10(workdir)) if "ours" in row]
    papers = {row["steps"]: row for row in rows if row["paper"].startswith("FID")}
    assert set(papers) == {"not stated", "8", "4", "2", "1"}
    for steps in "8421":
        assert re.fullmatch(r"FID \d\.\d\d", papers[steps]["ours"])
    assert papers["not stated"]["ours"] == "not so measured"
    once = [row["stage"] for row in rows]
    assert once.count("s07_n0001") == 1  # Not again among the other rows.


@pytest.mark.parametrize(
    "protocol",
    [{"dataset": "cifar10-jpeg 32x32"}, {"num": 2000}, {"images": 45_000}, {"name": "FD-efflite0"}]
    + [{"weights": "0123abcd"}],
)
def test_a_number_of_another_protocol_has_its_own_row(workdir, protocol):
    rows = [row for row in cells(as_cifar10(workdir, **protocol)) if "ours" in row]
    for row in rows:
        published = row["paper"] != "none so measured"
        assert row["ours"] == "not so measured" if published else row["ours"].startswith("F")


def test_an_unfinished_run_says_how_far_it_came(workdir):
    shutil.rmtree(workdir / "s07_n0001" / "final")
    (workdir / "report.json").unlink()
    lines = (workdir / "s07_n0001" / "scalars.jsonl").read_text().splitlines(keepends=True)
    (workdir / "s07_n0001" / "scalars.jsonl").write_text("".join(lines[:2]) + '{"step": 6, "lo')
    (row,) = cells(beside.show([records.of_workdir(workdir)]))
    assert row["ours"] == "not finished"
    assert re.fullmatch(r"8 \+ \d+ of 64", row["updates"])
    assert int(row["updates"].split()[2]) == 48 + json.loads(lines[1])["step"]


def test_rows_about_weights_that_a_stage_no_longer_has_are_left_out(workdir):
    content = json.loads((workdir / "report.json").read_text())
    content["made_of"]["networks"]["s07_n0001"] += 1
    change(workdir / "report.json", made_of=content["made_of"])
    found = records.of_workdir(workdir)
    assert {row["stage"] for row in found.rows} == set(found.stages) - {"s07_n0001"}


def test_a_student_of_an_imported_teacher_has_no_cost_over_its_training(workdir):
    shutil.rmtree(workdir / "s00_teacher")
    config = json.loads((workdir / "config.json").read_text())
    del config["stages"]["s00_teacher"]
    config["stages"]["s01_guided"]["teacher"] = "/elsewhere/final"
    (workdir / "config.json").write_text(json.dumps(config))
    path = workdir / "s01_guided" / "final" / "manifest.json"
    lineage = {**json.loads(path.read_text())["lineage"], "parent": "/elsewhere/final"}
    change(path, lineage=lineage)
    content = json.loads((workdir / "report.json").read_text())
    del content["made_of"]["networks"]["s00_teacher"]
    change(workdir / "report.json", made_of=content["made_of"])
    rows = cells(beside.show([records.of_workdir(workdir)], [1.0]))
    student = [row for row in rows if row["stage"] == "s07_n0001"]
    assert student[0]["updates"] == "imported + 56"
    assert student[1]["fewer calls"] == "128"
    assert student[1]["cost / teacher's training"] == "-"
    # Published numbers of the teacher stand in rows of the imported network, as measured ones do.
    rows = [row for row in cells(as_cifar10(workdir)) if "ours" in row]
    teacher = [row for row in rows if row["stage"] == "s00_teacher"]
    assert [row["paper"].partition(" [")[0] for row in teacher] == [
        *("FID 2.51", "IS 9.58"),
        "none so measured",
    ]
    assert [row["ours"].partition(" ")[0] for row in teacher] == ["not", "not", "FID"]
    assert {row[key] for row in teacher for key in ("updates", "hours")} == {"imported"}


def test_a_student_of_a_teacher_that_was_only_fine_tuned_has_no_cost_over_its_training(workdir):
    path = workdir / "s00_teacher" / "final" / "manifest.json"
    lineage = {**json.loads(path.read_text())["lineage"], "init": "/elsewhere/final"}
    change(path, lineage=lineage)
    rows = cells(beside.show([records.of_workdir(workdir)], [1.0]))
    numbers, costs = (row for row in rows if row["stage"] == "s07_n0001")
    assert numbers["updates"] == "imported + 8 + 56"
    assert costs["cost / teacher's training"] == "-"


FILES = ("config.json", "report.json", "environment.jsonl", "s03_n0016/scalars.jsonl")
FILES += ("s03_n0016/final/manifest.json",)
CONTENTS = {
    "empty": b"",
    "cut": b'{"name": "FD-dig',
    "a list": b"[1]\n",
    "null": b"null\n",
    "no UTF-8": b"\xff\xfe\0\n",
    "nested": b"[" * 100_000 + b"\n",
    "another object": b'{"a": {"b": 1}}\n',
    "escapes": b'{"devices": "\\u001b[31m", "step": 1, "updates_per_second": -1}\n',
}


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_one_message_or_nothing_and_stays_as_it_is(workdir, file):
    path = workdir / file
    for name, content in CONTENTS.items():
        path.write_bytes(content)
        before = sorted(each.name for each in path.parent.iterdir())
        try:
            text = beside.show([records.of_workdir(workdir)])
        except ValueError as error:
            assert "\n" not in str(error)
            assert path.name in str(error)
        else:  # A log without a whole line is that of a run that was killed early.
            assert path.suffix == ".jsonl" and name in ("empty", "cut", "nested")[:2], name
            assert "| s03_n0016" in text
        assert path.read_bytes() == content
        assert sorted(each.name for each in path.parent.iterdir()) == before


MISTAKES = {
    "no run": (("/nowhere",), "/nowhere has no config.json; expected the workdir of a run"),
    "no argument": ((), "RUN... is missing"),
    "config that does not exist": (
        ("configs/digit_guided.py",),
        "such as configs/digits_guided.py",
    ),
    "size that the config lacks": (("configs/cifar10_sid.py:smok",), "unknown size 'smok'"),
    "no config": (("tests/toys.py",), "has no get_config(): it is no config"),
    "strengths that are no numbers": (("configs/cifar10_sid.py", "--w=a"), "no list of numbers"),
    "output that cannot be written": (
        ("configs/cifar10_sid.py", "--out=/proc/nowhere/a.md"),
        "/proc/nowhere",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_message(mistake):
    flags, text = MISTAKES[mistake]
    assert text in one_message(*run("report", *flags))


GENERATED = re.compile(r"```sh\npython -m distill_jax\.report (configs[^\n]+)\n```\n\n")


def test_the_tables_of_the_results_are_the_output_of_the_command_above_them():
    text = (ROOT / "docs" / "results.md").read_text()
    found = list(GENERATED.finditer(text))
    assert found
    for command in found:
        names = [str(p.relative_to(ROOT)) for word in command[1].split() for p in _expanded(word)]
        made = beside.show([_of_file(name) for name in names])
        assert text[command.end() :].startswith(f"{made}\n\n")


def _expanded(word):
    """Returns the files of a word, as a shell does; a size stays."""
    file, _, size = word.partition(":")
    return sorted(ROOT.glob(file)) if not size else [ROOT / word]


def _of_file(name):
    file, _, size = name.partition(":")
    config = load_file(ROOT / file).get_config(size or "full")
    stem = file.rpartition("/")[2].removesuffix(".py")
    return records.of_config(json.loads(config.to_json()), stem + (f":{size}" if size else ""))
