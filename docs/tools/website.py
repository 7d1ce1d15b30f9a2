"""The documentation as a site: `python docs/tools/website.py --out site`, or `make docs`.

The pages are those of docs/, README.md (the first one), CONTRIBUTING.md and CHANGELOG.md, a page for each method
(`method_pages.py`) and the reference of the Python interface, made from docstrings. Zensical builds them with warnings
as errors, so that a link that leads nowhere or a docstring that can't be read fails. `llms.txt` lists the pages for
language models, `llms-full.txt` holds them all.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from posixpath import relpath

import method_pages
import yaml

from vtc import shipped
from vtc.configuration.choices import choices
from vtc.registry import methods

LINK = re.compile(r"(?<!`)(?P<words>!?\[[^\]\n]*\])\((?P<target>[^)\s]+)\)")
# Pages outside docs/, with their names on the site.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
PART = re.compile(r"<!-- (begin|end) \w+ -->\n")


def names(root: Path) -> dict[str, str]:
    """Every page that is a file: its path from the root → its path on the site."""
    return PAGES | {f"docs/{page.name}": page.name for page in sorted((root / "docs").glob("*.md"))}


def relinked(text: str, page: str, root: Path) -> str:
    """The text of a page with its links as they are on the site.

    A link to a file that is no page, such as the code of an example, becomes its words: the site holds pages alone.

    Args:
        page: its path from the root.

    Raises:
        ValueError: a link to what isn't there.
    """
    places = names(root)

    def link(match: re.Match[str]) -> str:
        target, _, anchor = match["target"].partition("#")
        if not target or ":" in target:
            return match[0]
        path = PurePosixPath(relpath(str(PurePosixPath(page).parent / target), "."))
        if not (root / path).exists():
            raise ValueError(f"{page} links to {target}, which isn't there")
        if path.is_relative_to("docs/images"):
            there = str(path.relative_to("docs"))
        elif str(path) in places:
            there = places[str(path)]
        else:
            return match["words"][1:-1]
        return f"{match['words']}({there}{'#' if anchor else ''}{anchor})"

    return PART.sub("", LINK.sub(link, text))


def pages(root: Path) -> dict[str, str]:
    """Every page of the site, by its path there."""
    texts = {
        place: relinked((root / page).read_text(encoding="utf-8"), page, root) for page, place in names(root).items()
    }
    for name in built_in():
        texts[f"methods/{name}.md"] = method_pages.page(name, root)
    reference = yaml.safe_load((root / "docs/tools/website.yaml").read_text(encoding="utf-8"))["reference"]
    for place, modules in reference.items():
        texts[f"reference/{place}.md"] = f"# {place}\n\n" + "\n\n".join(f"::: {module}" for module in modules) + "\n"
    return texts


def built_in() -> list[str]:
    return [name for name in choices("method") if methods.path(name)]


def navigation(entries: list, texts: dict[str, str]) -> list:
    """The menu of docs/tools/website.yaml, where `methods/*` and `reference/*` stand for all pages of that folder."""
    menu: list = []
    for entry in entries:
        if isinstance(entry, dict):
            ((title, content),) = entry.items()
            menu.append({title: navigation(content, texts) if isinstance(content, list) else content})
        elif entry.endswith("/*"):
            folder = entry.removesuffix("*")
            menu += [{PurePosixPath(page).stem: page} for page in texts if page.startswith(folder)]
        else:
            menu.append(entry)
    return menu


def listed(menu: list) -> list[str]:
    """The pages of a menu."""
    pages: list[str] = []
    for entry in menu:
        for content in entry.values() if isinstance(entry, dict) else [entry]:
            pages += listed(content) if isinstance(content, list) else [content]
    return pages


def for_language_models(texts: dict[str, str], menu: list) -> dict[str, str]:
    """`llms.txt` (https://llmstxt.org) and the text of all pages."""
    order = listed(menu)
    title, about = (
        "# vtc",
        "> Visual-token compression for large vision-language models: one interface, fair comparison.",
    )
    lines = [f"- [{heading(texts[page])}]({address(page)})" for page in order]
    return {
        "llms.txt": "\n".join([title, "", about, "", "## Pages", "", *lines]) + "\n",
        "llms-full.txt": "\n\n".join(texts[page] for page in order),
    }


def address(page: str) -> str:
    """Where a page is on the site, from its root."""
    return "./" if page == "index.md" else f"{PurePosixPath(page).with_suffix('')}/"


def heading(text: str) -> str:
    return next(line.lstrip("# ") for line in text.splitlines() if line.startswith("# "))


def write(root: Path, folder: Path) -> Path:
    """Writes what Zensical reads into an empty folder, and returns its configuration."""
    settings = yaml.safe_load((root / "docs/tools/website.yaml").read_text(encoding="utf-8"))
    texts = pages(root)
    menu = navigation(settings.pop("nav"), texts)
    settings.pop("reference")
    if absent := sorted(set(texts) - set(listed(menu))):
        raise ValueError(f"docs/tools/website.yaml: nav lacks {', '.join(absent)}")
    source = folder / "docs"
    for place, text in {**texts, **for_language_models(texts, menu)}.items():
        (source / place).parent.mkdir(parents=True, exist_ok=True)
        (source / place).write_text(text, encoding="utf-8")
    shutil.copytree(root / "docs/images", source / "images")
    shutil.copy(root / "docs/tools/website.css", source)
    file = folder / "mkdocs.yml"
    settings["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(root)]
    file.write_text(yaml.safe_dump({**settings, "nav": menu}, sort_keys=False), encoding="utf-8")
    return file


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("site"), help="the folder of the site; it is made anew")
    out = parser.parse_args().out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    file = write(shipped.root(), out)
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(file)], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
