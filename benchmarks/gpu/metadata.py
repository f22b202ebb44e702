"""Write what an installed package would say of itself, so that PYTHONPATH alone is enough: `python metadata.py FOLDER`.

Backends are found by their entry points and versions by their distribution's name; both live in `.dist-info` folders.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write(project: Path, folder: Path) -> Path:
    """The `.dist-info` folder of one package."""
    project_table = tomllib.loads(project.read_text())["project"]
    target = folder / f"{project_table['name'].replace('-', '_')}-{project_table['version']}.dist-info"
    target.mkdir(parents=True, exist_ok=True)
    (target / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project_table['name']}\nVersion: {project_table['version']}\n"
    )
    lines: list[str] = []
    for group, points in project_table.get("entry-points", {}).items():
        # pytest's plugin is given by -p; registered as well it would be loaded twice.
        if group != "pytest11":
            lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (target / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return target


def main(folder: str) -> None:
    """Every package of this checkout."""
    for project in sorted([*ROOT.glob("packages/*/pyproject.toml"), ROOT / "conformance" / "pyproject.toml"]):
        if project.is_file():
            write(project, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1])
