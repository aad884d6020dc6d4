"""Formats the table of benchmarks/accelerator as Markdown, with only the standard library."""

TITLES = (
    "of",
    "with",
    "device",
    "batch",
    "parameters",
    "computes in",
    "compile s",
    "updates/s",
    "images/s",
    "MFU",
    "peak memory",
    "note",
)
TOOLS = {"accelerator_torch": "PyTorch", "accelerator_diffusers": "diffusers"}
NOTES = """\
Rows are updates, or with "calls" the sampling of a batch, which counts as one update. Compile s:
tracing and compilation; of PyTorch and diffusers the first update. MFU, model FLOPs utilisation:
the products and convolutions of the method's gradient, as `--plan` counts them, over what the
devices could do in that time in bfloat16; unknown where the peak or the type is another. Peak
memory: of a device, "host" of the whole process, where devices do not say. Notes of PyTorch and
diffusers say how it ran, and how far its output was off ours, relative, before."""


def as_table(lines, here):
    """Returns the table of the newest line of every measurement, and the state of training.

    Args:
      lines: of rows.jsonl.
      here: what accelerator_update.device says.
    """
    newest = {identity(line): line for line in lines}.values()
    rows = [line for line in newest if ":" in line["measure"]]
    text = [
        "# This accelerator",
        f"{here['count']} x {here['device']}, JAX {here['jax']}, PyTorch "
        f"{here['torch'] or 'not installed'}, "
        f"diffusers {here['diffusers'] or 'not installed'}.",
        "\n".join(f"| {' | '.join(each)} |" for each in (TITLES, ["---"] * len(TITLES)))
        + "".join(f"\n| {' | '.join(cells(line, rows))} |" for line in rows),
        NOTES,
    ]
    trained = [training(line) for line in newest if ":" not in line["measure"]]
    return "\n\n".join(text + (["## Training", *trained] if trained else [])) + "\n"


def identity(line):
    return tuple(line[key] for key in ("row", "measure", "device", "count", "size", "asked"))


def name_of(line):
    return line["row"] + (", smoke: a tiny one" if line["size"] == "smoke" else "")


def cells(line, rows):
    """Returns the cells of one line."""
    tool = TOOLS.get(line["measure"].partition(":")[0], "JAX")
    start = (name_of(line), tool, f"{line['count']} x {line['device']}")
    if line["status"] != "measured":
        gone = line["status"] == "not installed"
        what = f"{tool} not installed" if gone else line["status"]
        return (*start, str(line["batch"]), *["-"] * 7, what)
    return (
        *start,
        f"{line['batch']:,}",
        f"{line['parameters']:,}",
        line["dtype"],
        f"{line['compile_seconds']:.1f}",
        number(line["updates_per_second"]),
        number(line["images_per_second"]),
        "unknown" if line["mfu"] is None else f"{line['mfu']:.1%}",
        memory(line),
        note(line, rows),
    )


def number(value):
    """Formats a number with three digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def memory(line):
    """Formats the memory in GiB, with its kind."""
    where = "" if line["peak_of"] == "device" else " host"
    return f"{line['peak_bytes'] / 2**30:.2f} GiB{where}"


def note(line, rows):
    """Returns the note of a row, and whether its batch is the best of those tried."""
    same = [each for each in rows if identity(each)[:-1] == identity(line)[:-1]]
    speeds = [each["images_per_second"] for each in same if each["status"] == "measured"]
    best = len(same) > 1 and line["images_per_second"] == max(speeds)
    return "; ".join(filter(None, (line.get("note"), "best batch" if best else "")))


def training(line):
    """Returns in words how far training got, or where its pictures are."""
    if line["status"] != "measured":
        return f"{line['row']}: {line['status']}, see log.txt."
    if "networks" in line:
        found = ", ".join(line["networks"]) or "no network yet"
        return f"[Pictures and distances](report/report.md) of {found}."
    text = f"{line['row']}: {line['done']:,} of {line['of']:,} updates of {line['stage']}"
    if "all_of" in line:
        text += f", {line['all_done']:,} of {line['all_of']:,} of the chain"
    if "loss" in line:
        waited = line["input_seconds"] * line["updates_per_second"]
        text += f"; loss {line['loss']:.4f}, {number(line['updates_per_second'])} updates/s, "
        text += (
            f"{number(line['images_per_second'])} images/s, {waited:.1%} of it waiting for images"
        )
    return text + (f", {line['mfu']:.1%} MFU." if "mfu" in line else ".")
