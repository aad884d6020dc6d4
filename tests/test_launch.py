"""Tests of the scripts in launch/ and .ci/: lint, dry runs, usage, errors, restarts and stops."""

import itertools
import os
import re
import signal
import subprocess
import tarfile
import time

import pytest
import yaml

from distill_jax import main
from tests.toys import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), ROOT / ".ci" / "run"])
SOURCED = ("code.sh", "environment.sh", "words.sh", "xla_gpu.sh", "xla_tpu.sh")
CHOSEN = {
    "CONFIG": "configs/digits_guided.py:smoke",
    "WORKDIR": "gs://mine/runs",
    "ARGS": "--config.mesh.fsdp=2",
}
PLACES = f"--config={CHOSEN['CONFIG']} --workdir={CHOSEN['WORKDIR']}"
TRAINING = f"{PLACES} --stall_minutes=60 {CHOSEN['ARGS']}"


def environment(commands=None, **variables):
    """Returns a script's environment, where the folder `commands` is in front of PATH."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if commands is not None:
        kept["PATH"] = f"{commands}:{kept['PATH']}"
    return kept | variables


@pytest.fixture
def clouds(tmp_path):
    """Returns a folder of cloud programs, to put before PATH, that record their calls and fail."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "sbatch", "srun", "scontrol", "scancel", "sky", "git"):
        program(folder, name, "exit 99")
    return folder


def program(folder, name, text):
    """Writes a program to the folder; it records each call in the file `calls` there."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >> "{folder}/calls"\n{text}\n')
    path.chmod(0o755)


def calls(folder):
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def script(name, *arguments, **options):
    command = ["bash", str(LAUNCH / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def dry_run(name, clouds, *arguments, **variables):
    done = script(name, "--dry-run", *arguments, env=environment(clouds, **variables))
    assert done.returncode == 0, done.stderr
    assert calls(clouds) == []
    return done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing_in_a_script(path):
    command = ["shellcheck", "--external-sources", "--source-path=SCRIPTDIR/..", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_may_be_executed_unless_it_is_sourced(path):
    assert os.access(path, os.X_OK) == (path.name not in SOURCED)


def test_without_a_python_that_is_new_enough_there_is_one_message(tmp_path):
    (tmp_path / "launch").mkdir()
    for name in ("local.sh", "environment.sh", "words.sh"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": ""}
    shadow = tmp_path / "bin"
    shadow.mkdir()
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (shadow / name).write_text("#!/bin/sh\nexit 1\n")
        (shadow / name).chmod(0o755)
    environment["PATH"] = f"{shadow}:{environment['PATH']}"
    command = ["bash", str(tmp_path / "launch" / "local.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "error: no Python 3.11 or newer" in done.stderr


def test_every_flag_of_a_launcher_is_one_of_the_training_command(clouds):
    known = {*main.flags.FLAGS}
    texts = [dry_run(name, clouds) for name in ("tpu_pod.sh", "slurm.sh", "gke.sh")]
    texts.append((LAUNCH / "skypilot.yaml").read_text())
    for text in texts:
        commands = re.findall(r"(?:distill_jax\.main|launch/local\.sh)((?: [^\n]|[^\n'])*)", text)
        named = re.findall(r"--([a-z_]+)", " ".join(commands))
        assert {"config", "workdir"} <= set(named) <= known


# What a dry run prints


def test_the_dry_run_of_a_pod_prints_every_command(clouds):
    variables = CHOSEN | {"PROJECT": "p", "ZONE": "z", "NAME": "n", "ACCELERATOR_TYPE": "v4-8"}
    lines = dry_run("tpu_pod.sh", clouds, **variables).splitlines()
    tpus, place = "gcloud compute tpus", "--project=p --zone=z"
    assert lines[0] == (
        f"{tpus} queued-resources create n {place} --node-id=n --accelerator-type=v4-8 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    assert lines[2] == "git archive --format=tar.gz --output=/tmp/distill_jax.tar.gz HEAD"
    assert lines[5] == (
        f"{tpus} tpu-vm ssh n {place} --worker=all '--command=cd distill_jax && . launch/xla_tpu.sh"
        f" && EXTRA=tpu,gcs launch/background.sh start launch/local.sh {TRAINING}'"
    )
    assert lines[-1] == f"{tpus} queued-resources delete n {place} --force --quiet"
    on_demand = dry_run("tpu_pod.sh", clouds, SPOT="0", SOURCE="https://host/it.git", REF="v1")
    assert "--spot" not in on_demand and "git archive" not in on_demand
    assert "git clone --quiet https://host/it.git distill_jax" in on_demand
    assert "fetch --quiet origin v1" in on_demand


def test_the_dry_run_under_slurm_prints_the_submission_and_the_step(clouds):
    variables = CHOSEN | {"NODES": "2", "GPUS": "4"}
    step = f"--cpu-bind=none --gpu-bind=none python -m distill_jax.main {TRAINING}"
    assert dry_run("slurm.sh", clouds, "--partition=gpu", **variables).splitlines() == [
        "sbatch --nodes=2 --gpus-per-node=4 --partition=gpu launch/slurm.sh",
        f"JAX_LOCAL_DEVICE_IDS=0,1,2,3 srun --nodes=2 --ntasks=2 --ntasks-per-node=1 {step}",
    ]
    lines = dry_run("slurm.sh", clouds, **variables, PER="gpu").splitlines()
    assert lines[1] == f"srun --nodes=2 --ntasks=8 --ntasks-per-node=4 {step}"
    line = dry_run("slurm.sh", clouds, **variables, IMAGE="host#it:1").splitlines()[1]
    container = f"--container-image=host#it:1 --container-mounts={ROOT} --container-workdir={ROOT}"
    assert f"{container} /distill_jax/.venv/bin/python -m distill_jax.main {TRAINING}" in line


def test_the_dry_run_of_skypilot_prints_the_submission(clouds):
    line = dry_run("skypilot.sh", clouds, "--gpus=A100:8", **CHOSEN, IMAGE="it:1").strip()
    chosen = [f"--env {name}={CHOSEN[name]}" for name in ("CONFIG", "WORKDIR", "ARGS")]
    assert line == " ".join(
        ["sky jobs launch --name=distill --image-id=docker:it:1", *chosen]
        + ["--env DISTILL_JAX_COMMIT=HEAD --gpus=A100:8 launch/skypilot.yaml"]
    )


def test_the_options_of_a_slurm_job_requeue_and_warn_it():
    options = re.findall(r"^#SBATCH (\S+)$", (LAUNCH / "slurm.sh").read_text(), re.MULTILINE)
    assert {"--requeue", "--signal=B:TERM@120", "--open-mode=append"} <= set(options)


def test_the_jobset_restarts_pods_but_not_mistakes(clouds):
    text = dry_run("gke.sh", clouds, **CHOSEN, NODES="4", TOPOLOGY="4x4", NAME="n")
    assert not re.search(r"\$\{(?!VARIABLES)", text)
    jobset = yaml.safe_load(text)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "n"
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 100
    assert policy["rules"] == [
        {
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
        }
    ]
    assert jobset["spec"]["ttlSecondsAfterFinished"] > 0
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["completions"] == job["parallelism"] == 4
    assert (job["completionMode"], job["backoffLimit"]) == ("Indexed", 0)
    assert job["activeDeadlineSeconds"] == 14 * 24 * 3600
    rule = job["podFailurePolicy"]["rules"][0]
    assert (rule["action"], rule["onExitCodes"]["values"]) == ("FailJob", [1])
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], pod["terminationGracePeriodSeconds"]) == ("Never", 120)
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    container = pod["containers"][0]
    assert container["name"] == rule["onExitCodes"]["containerName"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert container["resources"]["requests"].keys() > {"google.com/tpu", "cpu", "memory"}
    watched = f"--heartbeat=/tmp/heartbeat --stall_minutes=60 {CHOSEN['ARGS']}"
    assert container["args"][0].rstrip().endswith(f"exec launch/local.sh {PLACES} {watched}")
    assert "gke-spot" not in dry_run("gke.sh", clouds, SPOT="0")


@pytest.mark.parametrize(("minutes", "healthy"), [(None, True), (1, True), (61, False)])
def test_the_probe_of_a_pod_ends_a_process_whose_heartbeat_is_old(
    clouds, tmp_path, minutes, healthy
):
    """Before the first beat, while the pod installs, there is no file."""
    jobset = yaml.safe_load(dry_run("gke.sh", clouds))
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    file = tmp_path / "heartbeat"
    if minutes:
        file.touch()
        os.utime(file, 2 * (time.time() - 60 * minutes,))
    probe = pod["containers"][0]["livenessProbe"]["exec"]["command"]
    probe = [part.replace("/tmp/heartbeat", str(file)) for part in probe]
    assert (subprocess.run(probe).returncode == 0) == healthy


def test_the_skypilot_job_recovers_when_stopped_but_not_from_mistakes():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert (task["num_nodes"], task["resources"]["accelerators"]) == (2, "H100:8")
    assert task["resources"]["use_spot"] is True
    recovered = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert {130, 143} <= set(recovered) and not {0, 1, 137} & set(recovered)
    assert "max_restarts_on_errors" not in task["resources"]["job_recovery"]
    assert {"CONFIG", "WORKDIR", "ARGS"} <= set(task["envs"])


def test_the_skypilot_job_sets_the_rank_of_each_node(tmp_path):
    """The run section is executed with echo instead of python."""
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert all("launch/words.sh" in task[section].splitlines()[1] for section in ("setup", "run"))
    lines = [line for line in task["run"].splitlines() if not line.startswith(". launch/env")]
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines).replace("exec python", "echo")],
        cwd=ROOT,
        env=environment(
            **(task["envs"] | CHOSEN),
            SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2",
            SKYPILOT_NUM_NODES="2",
            SKYPILOT_NODE_RANK="1",
        ),
        capture_output=True,
        text=True,
    )
    assert done.stdout == (
        f"-m distill_jax.main {TRAINING} --coordinator=10.0.0.1:8476 --num_processes=2 "
        "--process_id=1\n"
    )


# Calls that must not reach any cloud


# Words that a script accepts, in addition to --help and --dry-run.
TAKES = {
    "background.sh": [("stop",), ("follow",), ("code",), ("start",)],
    "constraints.sh": [(), ("--upgrade",)],
    "gke.sh": [(), ("down", "--yes")]
    + [(part,) for part in ("start", "status", "logs", "errors", "down")],
    "local.sh": [("--config=a.py", "--config.steps=1")],
    "lowest.sh": [(), ("tests/diffusion", "-x")],
    "skypilot.sh": [(), ("--gpus=A100:8", "--yes")],
    "slurm.sh": [("--partition=gpu", "--time=8:00:00")],
    "test.sh": [("--all",), ("tests/diffusion", "-x")],
    "tpu_pod.sh": [(), ("down", "--yes")]
    + [(part,) for part in ("all", "up", "install", "start", "logs", "errors", "codes")]
    + [("stop",), ("down",)],
}
READY = CHOSEN | {"PROJECT": "p", "SOURCE": "https://host/it.git"}


def test_every_executable_script_is_tested():
    assert TAKES.keys() == {path.name for path in LAUNCH.glob("*.sh")} - {*SOURCED}


@pytest.fixture
def nothing(clouds):
    """Returns a folder of failing substitutes for every program that a script starts."""
    for name in ("python", "python3", "ruff", "mypy", "uv", "setsid", "mktemp"):
        program(clouds, name, "exit 99")
    return clouds


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_prints_the_usage_and_does_nothing_wherever_it_stands(nothing, name, word):
    for words in [*TAKES[name], ("nonsense",)]:
        for order in itertools.permutations((word, *words)):
            done = script(name, *order, env=environment(nothing, **READY))
            assert (done.returncode, done.stderr) == (0, ""), order
            assert done.stdout.startswith((LAUNCH / name).read_text().splitlines()[1][2:])
            assert f"launch/{name}" in done.stdout
            assert calls(nothing) == [], order


@pytest.mark.parametrize("name", TAKES)
def test_a_dry_run_does_nothing_wherever_the_word_stands(nothing, name):
    for words in TAKES[name]:
        words = (*words, "true") if words == ("start",) and name == "background.sh" else words
        for place in range(len(words) + 1 - ("true" in words)):
            order = (*words[:place], "--dry-run", *words[place:])
            done = script(name, *order, env=environment(nothing, **READY))
            assert (done.returncode, done.stderr) == (0, ""), order
            assert done.stdout
            assert calls(nothing) == [], order


UNKNOWN = ("status", "dry-run", "--dryrun", "--dry_run", "--DRY-RUN", "--dry-run=1", "-n", "--hepl")
TYPOS = ("dry-run", "--dryrun", "--dry_run", "-dry-run", "--Dry-Run", "--dry-run=1", "--dr-yrun")
MISTAKES = {
    "background.sh": [((word, other), {}) for word in UNKNOWN for other in ("stop", "code")]
    + [((), {}), (("start",), {}), (("stop", "code"), {})],
    "constraints.sh": [((word,), {}) for word in (*UNKNOWN, "upgrade")],
    "gke.sh": [((word, *part), {}) for word in UNKNOWN[1:] for part in ((), ("down",))]
    + [(("down",), {}), (("--yes",), {}), (("logs", "down"), {}), (("down", "x"), {})]
    + [((), {"SOURCE": "image", "IMAGE": "host/it:1"}), ((), {"NAME": "my-run"})]
    + [((), {"WORKDIR": "gs://my-bucket/guided"}), ((), {"ARGS": "--a=gs://my-bucket/data"})]
    + [((), {"SOURCE": "https://github.com/my-name/distill_jax"})]
    + [((), {"SOURCE": "git@github.com:my-name/distill_jax"})],
    "local.sh": [((word, "--config=a.py"), {}) for word in (*TYPOS, "--helpful")],
    "lowest.sh": [((word, "-x"), {}) for word in TYPOS],
    "skypilot.sh": [((word, "--gpus=A100:8"), {}) for word in (*TYPOS, "status", "-n", "down")]
    + [((), {"WORKDIR": "gs://my-bucket/guided"}), ((), {"ARGS": "--a=gs://my-bucket/data"})],
    "slurm.sh": [((word, "--partition=gpu"), {}) for word in (*TYPOS, "status", "-n", "-p", "gpu")]
    + [((), {"WORKDIR": "gs://my-bucket/guided"}), ((), {"PER": "rack"})],
    "test.sh": [((word, "-x"), {}) for word in TYPOS],
    "tpu_pod.sh": [((word, part), {}) for word in UNKNOWN for part in ("down", "start")]
    + [((word,), {}) for word in UNKNOWN]
    + [(("stop", "down"), {}), (("--yes",), {}), (("--yes", "stop"), {}), (("down",), {})]
    + [(("up",), {"PROJECT": "my-project"}), (("down", "--yes"), {"PROJECT": "my-project"})]
    + [((), {"WORKDIR": "gs://my-bucket/guided"}), ((), {"PROJECT": "my-project-1"})]
    + [(("install",), {"SOURCE": "https://github.com/my-name/distill_jax"})],
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_does_nothing_in_any_order(nothing, name):
    for words, variables in MISTAKES[name]:
        for order in itertools.permutations(words):
            chosen = environment(nothing, **(READY | variables))
            done = script(name, *order, env=chosen, stdin=subprocess.DEVNULL)
            assert done.returncode == 1, order
            assert re.fullmatch(r"error: .+\n", done.stderr), done.stderr
            assert all(value in done.stderr for value in variables.values())
            assert (done.stdout, calls(nothing)) == ("", []), order


def test_a_value_like_a_placeholder_may_be_allowed(clouds):
    program(clouds, "kubectl", "")
    chosen = READY | {"WORKDIR": "gs://my-bucket/guided", "REF": "1" * 40, "ALLOW_MY": "1"}
    assert script("gke.sh", env=environment(clouds, **chosen)).returncode == 0
    assert [line.split()[1] for line in calls(clouds)] == ["get", "create"]


@pytest.mark.parametrize(
    ("words", "answer", "deleted"),
    [
        (("down",), "yes\n", True),
        (("down",), "y\n", False),
        (("down",), "no\n", False),
        (("down",), "\n", False),
        (("--yes", "down"), None, True),
        (("down", "--yes"), None, True),
    ],
)
def test_a_slice_is_deleted_only_if_the_answer_is_yes(clouds, words, answer, deleted):
    program(clouds, "gcloud", "")
    ours, theirs = os.openpty()
    if answer:
        os.write(ours, answer.encode())
    stdin = theirs if answer else subprocess.DEVNULL
    done = script("tpu_pod.sh", *words, env=environment(clouds, **READY), stdin=stdin)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == (not deleted)
    assert ("Delete the slice distill" in done.stderr) == (answer is not None)
    assert len(calls(clouds)) == deleted


# The code that runs on other machines


GIT = """
case "$1" in
  rev-parse) [ -e {0}/repository ] || exit 128; echo 1234abcd ;;
  status) cat {0}/changed ;;
  branch) cat {0}/pushed ;;
  ls-files) printf 'setup.py\\0deleted.py\\0' ;;
esac
"""
SUBMIT = {
    "gke.sh": ((), "kubectl create"),
    "skypilot.sh": ((), "sky jobs launch"),
    "slurm.sh": ((), "sbatch"),
    "tpu_pod.sh": (("install",), "gcloud compute tpus tpu-vm scp"),
}


@pytest.fixture
def submit(clouds):
    """Returns a function that runs a launcher in a checkout with changed files and pushed branches.

    It returns the exit code, the messages, and the calls that send something.
    """
    program(clouds, "git", GIT.format(clouds))
    for name in ("gcloud", "sky", "sbatch"):
        program(clouds, name, f'echo "commit $DISTILL_JAX_COMMIT" >> {clouds}/calls')
    program(clouds, "kubectl", f"case $1 in create) cat >> {clouds}/calls ;; esac")

    def run(name, changed="", pushed="origin/main", repository=True, **variables):
        for path, text in (("changed", changed), ("pushed", pushed)):
            (clouds / path).write_text(text)
        (clouds / "repository").unlink(missing_ok=True)
        if repository:
            (clouds / "repository").touch()
        (clouds / "calls").unlink(missing_ok=True)
        words, sends = SUBMIT[name]
        chosen = {**CHOSEN, "PROJECT": "p", **variables}
        chosen |= {"SOURCE": "https://host/it.git"} if name == "gke.sh" else {}
        done = script(name, *words, env=environment(clouds, **chosen), stdin=subprocess.DEVNULL)
        made = [line for line in calls(clouds) if not line.startswith(("git status", "git rev"))]
        assert any(line.startswith(sends) for line in made) == (done.returncode == 0), done.stderr
        return done.returncode, done.stderr, "\n".join(made)

    return run


@pytest.mark.parametrize("name", SUBMIT)
def test_every_launcher_runs_the_commit_of_this_checkout_and_refuses_changes(submit, name):
    code, said, sent = submit(name)
    assert (code, said) == (0, f"code: 1234abcd{' of https://host/it.git' * (name == 'gke.sh')}\n")
    assert "1234abcd" in sent and "changes" not in sent
    code, said, _ = submit(name, changed=" M configs/digits_guided.py\n")
    assert code == 1 and "error: this checkout is 1234abcd + changes" in said
    code, said, _ = submit(name, repository=False)
    assert code == 1 and "error: this checkout is none + changes" in said


@pytest.mark.parametrize("name", SUBMIT)
@pytest.mark.parametrize("repository", [True, False])
def test_changes_run_if_they_are_allowed_and_can_be_sent(submit, name, repository):
    changed = " M configs/digits_guided.py\n"
    code, said, sent = submit(name, changed, repository=repository, ALLOW_DIRTY="1")
    if name == "gke.sh":
        assert code == 1 and "lacks the changes; commit and push them" in said
        return
    commit = "1234abcd" if repository else "none"
    assert (code, said) == (0, f"code: {commit} + changes\n")
    assert f"{commit} + changes" in sent
    assert "git archive" not in sent


def test_pods_do_not_clone_a_commit_that_is_not_pushed(submit):
    code, said, _ = submit("gke.sh", pushed="")
    assert code == 1 and "error: commit 1234abcd of this checkout is not pushed" in said


def test_the_files_of_a_changed_checkout_are_packed_without_those_that_are_gone(clouds, tmp_path):
    program(clouds, "git", GIT.format(clouds))
    (clouds / "repository").touch()
    (clouds / "changed").write_text(" D deleted.py\n")
    out = tmp_path / "code.tar.gz"
    lines = f"set -euo pipefail; . launch/words.sh; . launch/code.sh; pin_code; pack {out}"
    chosen = environment(clouds, SOURCE="", REF="", ALLOW_DIRTY="1")
    subprocess.run(["bash", "-c", lines], cwd=ROOT, env=chosen, capture_output=True, check=True)
    with tarfile.open(out) as archive:
        assert archive.getnames() == ["setup.py"]


@pytest.mark.parametrize("variables", [{}, {"ALLOW_DIRTY": "1"}])
def test_a_slurm_job_does_not_restart_with_other_code_than_was_submitted(clouds, variables):
    command, chosen = slurm(clouds, 143, DISTILL_JAX_COMMIT="5678", **variables)
    program(clouds, "git", GIT.format(clouds))
    (clouds / "repository").touch()
    (clouds / "changed").touch()
    done = subprocess.run(command, env=chosen, capture_output=True, text=True, timeout=60)
    assert done.returncode == (143 if variables else 1)
    assert ("this checkout is 1234abcd, but 5678 was submitted" in done.stderr) != bool(variables)


@pytest.mark.parametrize("name", ["gke.sh", "tpu_pod.sh"])
def test_a_branch_or_tag_of_a_url_is_made_a_commit_before_anything_starts(clouds, name, tmp_path):
    program(clouds, "git", f"cat {tmp_path}/listed")
    (tmp_path / "listed").write_text(
        "aaaa refs/heads/you/v1\nbbbb refs/heads/main\ncccc refs/tags/v1\n"
    )
    program(clouds, "gcloud", f"echo $* >> {tmp_path}/sent")
    program(clouds, "kubectl", f"[ $1 = get ] || cat >> {tmp_path}/sent")

    def fetched(ref):
        """Returns the exit code, and the commits that the machines fetch."""
        (tmp_path / "sent").write_text("")
        words = ("install",) if name == "tpu_pod.sh" else ()
        chosen = environment(clouds, **READY, REF=ref)
        done = script(name, *words, env=chosen, stdin=subprocess.DEVNULL)
        sent = (tmp_path / "sent").read_text()
        return done.returncode, re.findall(
            r"(?:fetch|checkout) --quiet (?:origin )?\"?(?!FETCH)(\w+)", sent
        )

    assert fetched("v1") == (0, ["cccc"])
    assert fetched("main") == (0, ["bbbb"])
    assert fetched("v2") == (1, [])
    assert fetched("1" * 40) == (0, ["1" * 40])
    program(clouds, "git", "exit 128")
    assert fetched("main") == (1, [])


@pytest.mark.parametrize(
    ("found", "answer", "ends"),
    [
        ("", None, ["create"]),
        ("distill ", None, []),
        ("distill Failed", None, []),
        ("distill Failed", "no", []),
        ("distill Failed", "yes", ["delete", "create"]),
        ("distill Completed", "yes", ["delete", "create"]),
    ],
)
def test_a_finished_jobset_is_replaced_after_a_question_and_a_running_one_never(
    clouds, found, answer, ends
):
    program(clouds, "kubectl", f'[ $1 != get ] || echo -n "{found}"')
    ours, theirs = os.openpty()
    os.write(ours, f"{answer}\n".encode())
    stdin = theirs if answer else subprocess.DEVNULL
    chosen = environment(clouds, **READY, REF="1" * 40)
    done = script("gke.sh", env=chosen, stdin=stdin)
    os.close(ours)
    os.close(theirs)
    assert (done.returncode == 0) == bool(ends)
    assert [line.split()[1] for line in calls(clouds)] == ["get", *ends]
    assert ("Delete the finished JobSet" in done.stderr) == (answer is not None)


@pytest.mark.parametrize("section", ["setup", "run"])
def test_the_skypilot_job_ends_at_a_placeholder_before_it_installs_anything(nothing, section):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    variables = environment(nothing, **task["envs"])
    command = ["bash", "-c", task[section]]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert (done.returncode, done.stdout, calls(nothing)) == (1, "", [])
    assert re.fullmatch("error: WORKDIR is gs://my-bucket/.*\n", done.stderr)


# Flags of XLA


def preset(name, **variables):
    variable = {"xla_gpu.sh": "XLA_FLAGS", "xla_tpu.sh": "LIBTPU_INIT_ARGS"}[name]
    command = ["bash", "-c", f'. launch/{name}; . launch/{name}; echo "${variable}"']
    done = subprocess.run(
        command, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("name", "variable"), [("xla_gpu.sh", "XLA_FLAGS"), ("xla_tpu.sh", "LIBTPU_INIT_ARGS")]
)
def test_a_preset_adds_each_flag_once_and_leaves_those_that_are_set(name, variable):
    whole = preset(name)
    assert len(whole) == len({flag.partition("=")[0] for flag in whole}) > 1
    mine = f"{whole[0].partition('=')[0]}=mine"
    assert preset(name, **{variable: f"--other=1 {mine}"}) == ["--other=1", mine, *whole[1:]]


def test_jaxlib_accepts_every_flag_of_the_gpu_preset(tmp_path):
    command = ["python", "-c", "import jax; jax.devices()"]

    def starts(chosen):
        variables = environment(XLA_FLAGS=" ".join(chosen), JAX_PLATFORMS="cpu")
        return subprocess.run(command, env=variables, capture_output=True).returncode == 0

    chosen = preset("xla_gpu.sh", DETERMINISTIC="1")
    assert "--xla_gpu_exclude_nondeterministic_ops=true" in chosen
    assert starts(chosen)
    assert not starts([*chosen, "--xla_gpu_flag_that_does_not_exist=true"])


# Restarts: programs of the clouds with the answers of a test


POD = """
case "$*" in
  *" describe "*)
    count=$(($(cat {0}/looks 2> /dev/null || echo 0) + 1)); echo "$count" > {0}/looks
    state="$(sed -n "${{count}}p" {0}/states)"
    state="${{state:-$(tail -n 1 {0}/states)}}"
    [ "$state" != NONE ] || {{ echo "ERROR: NOT_FOUND: no such resource" >&2; exit 1; }}
    [ "$state" != UNKNOWN ] || {{ echo "ERROR: no network" >&2; exit 1; }}
    echo "$state" ;;
  *"background.sh code"*)
    codes="$(head -n 1 {0}/codes)"; sed -i 1d {0}/codes
    [ "$codes" != silent ] || exit 255
    for code in $codes; do echo "code=$code"; done ;;
esac
"""


def pod(clouds, codes, states=("ACTIVE",), **variables):
    """Runs tpu_pod.sh, whose workers have `codes` at each poll; returns exit code and counts."""
    (clouds / "states").write_text("\n".join(states) + "\n")
    (clouds / "codes").write_text("\n".join(codes) + "\n")
    program(clouds, "gcloud", POD.format(clouds))
    program(clouds, "git", "")
    variables = {"POLL": "0", "PROJECT": "p", **CHOSEN, **variables}
    done = script("tpu_pod.sh", env=environment(clouds, **variables))
    count = {
        part: sum(part in line for line in calls(clouds))
        for part in ("create", "background.sh start", "delete")
    }
    pod.said = done.stderr
    return done.returncode, count["create"], count["background.sh start"], count["delete"]


@pytest.mark.parametrize(
    ("codes", "ends"),
    [
        (["0 0"], (0, 0, 1, 1)),
        (["143 143", "0 0"], (0, 0, 2, 1)),
        (["130 130", "134 137", "0 0"], (0, 0, 3, 1)),
        (["lost lost", "0 0"], (0, 0, 2, 1)),
        (["running running", "0 running", "0 0"], (0, 0, 1, 1)),
        (["silent", "silent", "0 0"], (0, 0, 1, 1)),
        (["1 1"], (1, 0, 1, 0)),
        (["134 1"], (1, 0, 1, 0)),
    ],
    ids=lambda value: " then ".join(value) if isinstance(value, list) else "",
)
def test_a_pod_starts_again_unless_all_workers_are_done_or_refuse(clouds, codes, ends):
    assert pod(clouds, codes) == ends


def test_after_a_mistake_the_errors_of_all_workers_are_printed_and_the_slice_is_named_or_deleted(
    clouds,
):
    assert pod(clouds, ["1 1"]) == (1, 0, 1, 0)
    (line,) = [line for line in calls(clouds) if "tail -n 40 distill_jax/run.log" in line]
    assert "--worker=all" in line
    assert "costs money" in pod.said and "until launch/tpu_pod.sh down" in pod.said
    (clouds / "calls").unlink()
    (clouds / "looks").unlink()
    assert pod(clouds, ["1 1"], DOWN_AFTER_MISTAKE="1") == (1, 0, 1, 1)
    assert "costs money" not in pod.said


def test_a_preempted_pod_is_requested_again(clouds):
    states = ("NONE", "WAITING_FOR_RESOURCES", "ACTIVE", "SUSPENDED", "SUSPENDED", "NONE", "ACTIVE")
    assert pod(clouds, ["0 0"], states) == (0, 2, 2, 2)


def test_a_pod_continues_while_gcloud_has_no_network(clouds):
    assert pod(clouds, ["0 0"], ("ACTIVE", "UNKNOWN", "UNKNOWN", "ACTIVE")) == (0, 0, 1, 1)


def test_the_locked_versions_are_installed_unless_others_are_wanted(tmp_path):
    """The second installation is for a changed lock, and the last one for the newest versions."""
    for name in ("launch/environment.sh", "launch/constraints.txt", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "venv").mkdir()
    program(tmp_path, "python", "")

    def install(**variables):
        given = environment(tmp_path, VIRTUAL_ENV=str(tmp_path / "venv"), **variables)
        command = ["bash", "-c", "set -eu; . launch/environment.sh tpu"]
        subprocess.run(command, cwd=tmp_path, env=given, capture_output=True, check=True)
        return [line.partition("-check ")[2] for line in calls(tmp_path)]

    lock = tmp_path / "launch" / "constraints.txt"
    done = [f"--constraint {lock} --editable {tmp_path}[tpu]"]
    assert install() == install() == done
    lock.write_text("jax==0.10.1\n")
    assert install() == done * 2
    assert install(CONSTRAINTS="") == [*done * 2, f"--editable {tmp_path}[tpu]"]


def test_a_failed_installation_is_tried_again_and_not_taken_for_done(tmp_path):
    for name in ("launch/environment.sh", "launch/constraints.txt", "setup.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "venv").mkdir()
    program(tmp_path, "python", "exit 1")
    variables = environment(tmp_path, VIRTUAL_ENV=str(tmp_path / "venv"))
    for _ in range(2):
        command = ["bash", "-c", ". launch/environment.sh tpu && echo installed"]
        done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert (done.returncode, done.stdout.count("installed")) == (75, 0), done.stderr
    assert len(calls(tmp_path)) == 2


def test_a_pod_that_always_crashes_ends_with_an_error(clouds):
    assert pod(clouds, ["134 134"] * 9, MAX_RESTARTS="2") == (1, 0, 3, 0)


def test_an_unavailable_pod_ends_with_an_error(clouds):
    assert pod(clouds, ["0 0"], ["FAILED"], MAX_FAILURES="3") == (1, 0, 0, 3)


SRUN = """
trap 'exit 143' TERM
echo $$ > {0}/srun.pid
[ "{1}" != wait ] || while true; do sleep 0.1; done
exit {1}
"""


def slurm(clouds, code, state="RUNNING", **variables):
    """Returns the command of a job whose srun ends with `code`."""
    program(clouds, "srun", SRUN.format(clouds, code))
    program(clouds, "scontrol", f"echo JobState={state}")
    program(clouds, "scancel", f"kill -TERM $(cat {clouds}/srun.pid)")
    program(clouds, "python", "")  # For the installation by environment.sh.
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", "SLURM_SUBMIT_DIR": str(ROOT)}
    venv = clouds.parent / "venv"
    venv.mkdir(exist_ok=True)
    return ["bash", str(LAUNCH / "slurm.sh")], environment(
        clouds, VIRTUAL_ENV=str(venv), **job, **variables
    )


@pytest.mark.parametrize(
    ("code", "variables", "requeued"),
    [
        (0, {}, False),
        (1, {}, False),
        (130, {}, True),
        (143, {}, True),
        (134, {}, True),
        (134, {"SLURM_RESTART_COUNT": "20"}, False),
        (143, {"state": "CANCELLED"}, False),
    ],
)
def test_a_slurm_job_goes_back_into_the_queue_when_it_should(clouds, code, variables, requeued):
    command, variables = slurm(clouds, code, **variables)
    done = subprocess.run(command, env=variables, capture_output=True, timeout=60)
    assert done.returncode == code
    assert ("scontrol requeue 7" in calls(clouds)) == requeued


def test_a_slurm_job_passes_sigterm_to_its_tasks_and_waits_for_them(clouds):
    command, variables = slurm(clouds, "wait")
    job = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not (clouds / "srun.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 143
    finally:
        job.kill()
        subprocess.run(["kill", (clouds / "srun.pid").read_text().strip()], capture_output=True)
    assert calls(clouds)[-3:] == [
        "scancel --signal=TERM 7",
        "scontrol show job 7",
        "scontrol requeue 7",
    ]


# The script on a worker


@pytest.fixture
def worker(tmp_path):
    """Returns a function that runs a copy of background.sh; its commands are ended afterwards."""
    path = tmp_path / "launch" / "background.sh"
    path.parent.mkdir()
    for name in ("background.sh", "words.sh"):
        (path.parent / name).write_text((LAUNCH / name).read_text())

    def run(*arguments, **variables):
        done = subprocess.run(
            ["bash", str(path), *arguments],
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    run("stop", GRACE="0")


def test_a_worker_follows_the_log_and_prints_the_exit_code(worker):
    assert worker("code") == "code=lost\n"
    worker("start", "bash", "-c", "echo one; sleep 0.5; echo two >&2; exit 143")
    assert worker("follow") == "one\ntwo\n"
    assert worker("code") == "code=143\n"


def test_a_worker_stops_the_old_command_before_it_starts_another(worker, tmp_path):
    trap = f"trap 'touch {tmp_path}/saved; exit 143' TERM"
    saves = f"{trap}; touch {tmp_path}/up; while :; do sleep .1; done"
    worker("start", "bash", "-c", saves)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    assert worker("code") == "code=running\n"
    worker("start", "bash", "-c", "exit 0")
    worker("follow")
    assert (tmp_path / "saved").exists()
    assert worker("code") == "code=0\n"
