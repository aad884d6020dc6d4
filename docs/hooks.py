"""Adds the pages of python -m distill_jax.demo in build/demo to the site, linked from demo.md."""

import os
import pathlib

from mkdocs.structure.files import File

PAGES = pathlib.Path(os.environ.get("DEMO_PAGES", "build/demo")).absolute()


def on_files(files, config):
    """Adds the files of the pages."""
    for path in sorted(PAGES.rglob("*")):
        if path.is_file():
            name = f"demo/{path.relative_to(PAGES).as_posix()}"
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, files, **_):
    """Links the pages below the title of demo.md."""
    names = [path.parent.name for path in sorted(PAGES.glob("*/index.html"))]
    if page.file.src_uri != "demo.md" or not names:
        return markdown
    links = ", ".join(f"[{name}](demo/{name}/index.html)" for name in names)
    return markdown.replace("\n\n", f"\n\n**Try it in this browser: {links}.**\n\n", 1)
