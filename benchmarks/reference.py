"""Writes docs/reference.md from the code: every key, option, name and flag, with its default.

python benchmarks/reference.py
python benchmarks/reference.py --out=/tmp/reference.md
"""

import argparse
import ast
import importlib
import inspect
import io
import pathlib
import re
import tokenize

from absl import flags

from distill_jax import __main__ as commands
from distill_jax.config import chains, stage
from distill_jax.data import DATASETS
from distill_jax.data.masks import MASKS
from distill_jax.diffusion import noise_levels, prediction
from distill_jax.diffusion.kernels import KERNELS
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.diffusion.trained import SAMPLERS
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.edit import TASKS
from distill_jax.evaluation.feature_networks import KINDS
from distill_jax.export import FORMATS
from distill_jax.methods import METHODS
from distill_jax.models import DISCRIMINATORS, NETWORKS, discriminators
from distill_jax.runtime.options import rules_of
from distill_jax.sampling.codecs import CODECS
from distill_jax.sampling.prompts import CONDITIONERS
from distill_jax.teachers import TEACHERS

ROOT = pathlib.Path(__file__).parent.parent
BUILDERS = {
    "Methods": ("Method", METHODS),
    "Networks": ("Network", NETWORKS),
    "Schedules": ("Schedule", SCHEDULES),
    "Samplers": ("Sampler", SAMPLERS),
    "Datasets": ("Dataset", DATASETS),
    "Masks": ("Masks", MASKS),
    "Codecs": ("Codec", CODECS),
    "Text encoders": ("Text encoder", CONDITIONERS),
}
HEAD = """# Reference

Every config key, option, name and flag, with its default. `python benchmarks/reference.py` writes
this page from the code. Words are in the [glossary](glossary.md).
[Train a chain](train.md#change-a-value) says how a value is set on the command line.
"""
STAGES = """The arguments of `stage(name, method, ...)`. Every other option is one of its method.
"""
LIST = """`python -m distill_jax` lists them, and `--help` prints the flags of one.
"""
ENTRY = re.compile(r"([\w*`, ]+?)(?: \(.*?\))?: (.*)")


def described(doc):
    """Returns the meaning of every name in the sections Args and Attributes of a docstring."""
    found, names, inside = {}, (), False
    for line in inspect.cleandoc(doc or "").splitlines():
        if not line.startswith(" "):
            inside, names = line in ("Args:", "Attributes:"), names if not line else ()
        elif inside and re.match(r"  \S", line) and (entry := ENTRY.fullmatch(line.strip())):
            names = [name.strip("`* ") for name in entry[1].split(",")]
            found.update(dict.fromkeys(names, entry[2]))
        elif inside:
            found.update({name: f"{found[name]} {line.strip()}" for name in names})
    return found


def meanings(builder):
    """Returns the meaning of every option of a function, or of a class with its bases."""
    kind = getattr(builder, "fields_of", builder)
    kinds = reversed(kind.__mro__[:-1]) if inspect.isclass(kind) else (kind,)
    found = {}
    for each in (*kinds, builder):
        found.update(described(vars(each).get("__doc__") or each.__doc__))
    return found


def options(builder):
    """Returns the rows (name, default, expected, meaning) of the options of a builder."""
    rules, meaning = rules_of(builder), meanings(builder)
    kind = getattr(builder, "fields_of", builder)
    rows = []
    for name, parameter in inspect.signature(kind).parameters.items():
        if name != "spec":
            needed = parameter.default is inspect.Parameter.empty
            default = "needed" if needed else code(repr(parameter.default))
            rows.append((code(name), default, rules[name].expected, meaning.get(name, "")))
    return rows


def summary(thing):
    """Returns the first paragraph of a docstring, and the arguments of a partial function."""
    values = getattr(thing, "keywords", {})
    text = inspect.cleandoc(getattr(thing, "func", thing).__doc__ or "")
    said = [f"({key} {value})" for key, value in values.items()]
    return " ".join([*text.split("\n\n")[0].split(), *said])


def code(text):
    return f"`{text}`"


def cell(text):
    """Returns a text as a cell of a table: in one line, without HTML and ends of cells."""
    parts = " ".join(str(text).split()).replace("|", "\\|").split("`")
    return "`".join(p if i % 2 else p.replace("<", "&lt;") for i, p in enumerate(parts))


def table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    cells = ([cell(text) for text in row] for row in lines)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"


def entries(name_of, builders):
    """Returns a section for each builder: what it is, how it is named, and its options."""
    parts = []
    for name, builder in builders.items():
        parts.append(f"### {name_of} {name}\n\n{summary(builder)}\n")
        if rows := options(builder):
            parts.append(table(("option", "default", "value", "meaning"), rows))
    return "\n".join(parts)


def names(things):
    return table(("name", "meaning"), [(code(name), text) for name, text in things.items()])


def comments(path):
    """Returns the comment of every key of a file's dicts, beside it or above it, as mesh.data."""
    text = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = [token for token in tokens if token.type == tokenize.COMMENT]
    notes = {token.start[0]: token.string for token in found}
    whole = {token.start[0] for token in found if token.line.strip() == token.string}
    found = {}
    nodes = list(ast.walk(ast.parse(text)))
    named = {n.value: ast.unparse(n.targets[0]) for n in nodes if isinstance(n, ast.Assign)}
    for node in (node for node in nodes if isinstance(node, ast.Dict)):
        group = named.get(node, "").strip("_").lower()
        for key, value in ((k, v) for k, v in zip(node.keys, node.values, strict=True) if k):
            first = key.lineno
            while first - 1 in whole:
                first -= 1
            lines = [*range(first, key.lineno), value.end_lineno]
            said = " ".join(notes[n].lstrip("# ") for n in lines if n in notes)
            if said:
                found.setdefault(f"{group}.{key.value}".strip("."), said)
    return found


def config_keys():
    """Returns the rows (key, default, meaning) of a config."""
    notes, rows = comments(pathlib.Path(chains.__file__)), []
    for key, value in sorted(chains.base().to_dict().items()):
        group = any(note.startswith(f"{key}.") for note in notes)
        found = {f"{key}.{part}": value[part] for part in value} if group else {key: value}
        rows += [(code(f"config.{k}"), code(repr(v)), notes.get(k, "")) for k, v in found.items()]
    return rows


def stage_keys():
    """Returns the rows (option, default, meaning) of a stage."""
    notes = described(stage.__doc__)
    for line in re.split(r"\n\s*(?=`\w+`: )", stage.__doc__)[1:]:
        name, _, text = line.partition(": ")
        notes[name.strip("`")] = " ".join(text.split())
    given = stage("", "", steps=0, learning_rate=0.0)
    needed = {"name", "method", "steps", "learning_rate"}
    return [
        (code(key), "needed" if key in needed else code(repr(value)), notes.get(key, ""))
        for key, value in given.items()
    ]


def flags_of(command):
    """Returns the rows (flag, default, value, meaning) of the flags of a command."""
    there = set(flags.FLAGS)
    name = f"distill_jax.{command}"
    module = importlib.import_module(f"{name}.__main__" if command == "teachers" else name)
    key = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(module)}
    if hasattr(module, "define_flags"):
        module.define_flags()
    key |= set(flags.FLAGS) - there
    rows = []
    for flag in sorted(key):
        found = flags.FLAGS[flag]
        value = getattr(found.parser, "enum_values", None)
        value = ", ".join(value) if value else found.parser.syntactic_help.removeprefix("a ")
        default = "" if found.default is None else code(found.default)
        text = found.help.replace("repeat this option to specify a list of values", "repeatable")
        rows.append((code(f"--{flag}"), default, value, text.replace(".;", ";")))
        delattr(flags.FLAGS, flag)
    return rows


def command(name):
    """Returns the section of a command: what it does, how it is called, and its flags."""
    doc = ast.get_docstring(ast.parse(source_of(name).read_text()))
    usage = "\n".join(line for line in doc.splitlines() if line.startswith("python -m"))
    rows = flags_of(name)
    head = f"### Command {name}\n\n{doc.splitlines()[0]}\n\n```sh\n{usage}\n```\n"
    return f"{head}\n{table(('flag', 'default', 'value', 'meaning'), rows)}"


def source_of(name):
    package = ROOT / "distill_jax"
    folder = package / name
    return folder / "__main__.py" if folder.is_dir() else package / f"{name}.py"


def functions():
    """Returns the sections of tables whose entries have no options."""
    heads = {
        name: getattr(discriminators, builder.__code__.co_names[0])
        if builder.__name__ == "<lambda>"
        else builder
        for name, builder in DISCRIMINATORS.items()
    }
    converters = {n: p.predict for n, p in prediction.PARAMETERIZATIONS.items()}
    summaries = {
        "Parameterizations": converters,
        "Weightings": WEIGHTINGS,
        "Noise levels": noise_levels.NOISE_LEVELS,
        "Kernels of MMD": KERNELS,
        "Discriminators": heads,
        "Checkpoint formats": TEACHERS,
        "Tasks of edit": TASKS,
        "Formats of export": {name: format_.write for name, format_ in FORMATS.items()},
    }
    tables = {t: {n: summary(f) for n, f in things.items()} for t, things in summaries.items()}
    tables["Feature networks"] = {name: kind.advice for name, kind in KINDS.items()}
    return tables


def page():
    """Returns the text of docs/reference.md."""
    titles = ("key", "default", "meaning")
    parts = [HEAD, "## Config\n", table(titles, config_keys())]
    parts += ["## Stages\n", STAGES, table(("option", *titles[1:]), stage_keys())]
    for title, (noun, builders) in BUILDERS.items():
        parts += [f"## {title}\n", entries(noun, builders)]
    for title, things in functions().items():
        parts += [f"## {title}\n", names(things)]
    parts += ["## Commands\n", LIST, *(command(name) for name in commands.COMMANDS)]
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default=str(ROOT / "docs" / "reference.md"))
    pathlib.Path(parser.parse_args().out).write_text(page())


if __name__ == "__main__":
    main()
