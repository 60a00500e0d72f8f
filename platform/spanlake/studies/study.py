"""What a study is, read from YAML: which recipes it trains, what it changes in them, and what the paper reports.

Each study has two sizes. `full` trains the recipes that it names on the data that they name. `cpu` trains their small
versions (`NAME-cpu.yaml`) on the example passages.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spanlake.errors import UserError, one_line, shown
from spanlake.strict_yaml import load_yaml
from spanlake.training.recipe import Recipe, read_recipe

Size = Literal["cpu", "full"]
SuiteName = Literal["ood", "20ner", "multiconer", "open-types"]
SIZES: tuple[Size, ...] = get_args(Size)
STUDIES = Path("jobs", "studies")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Published(_Section):
    f1: float  # per cent
    source: str


class Variant(_Section):
    """One training."""

    name: str = Field(pattern=r"^[\w.-]+$")  # of its directory
    recipe: str  # its file in the recipes' directory, without .yaml
    label: str = ""  # on the figure's axis (default: the name)
    series: str = ""  # variants of one series share a colour
    start: str = ""  # the variant, earlier in the list, whose model it goes on from
    examples: dict[Size, Annotated[int, Field(gt=0)]] = {}  # of each training set, always the same ones (default: all)
    drawn: bool = True
    published: Published | None = None  # the paper's average F1
    changes: list[str] = []

    @property
    def axis_label(self) -> str:
        return self.label or self.name


class Study(_Section):
    title: str
    source: str  # the paper's figure or table
    suite: SuiteName  # of benchmark sets
    axis: str  # what the variants differ in
    chart: Literal["bars", "lines"]
    recipes: str  # the recipes' directory, relative to the study's file
    changes: dict[Size, list[str]] = {}
    notes: list[str] = []  # what cannot be compared, whatever is trained
    variants: list[Variant] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Study:
        names: set[str] = set()
        for variant in self.variants:
            if variant.name in names:
                raise ValueError(f"two variants have the name {variant.name!r}")
            if variant.start and variant.start not in names:
                raise ValueError(f"{variant.name} starts from {variant.start!r}, which is no earlier variant")
            if self.chart == "lines" and variant.drawn and {*SIZES} - {*variant.examples}:
                raise ValueError(f"{variant.name} is drawn in lines, so it needs a number of examples for each size")
            names.add(variant.name)
        return self

    def recipe(self, variant: Variant, size: Size, home: Path, changes: list[str]) -> Recipe:
        """Returns the recipe of a variant, with the changes of the study, of the variant and then `changes`.

        `home` is the directory of the study's file.
        """
        name = f"{variant.recipe}{'-cpu' if size == 'cpu' else ''}.yaml"
        return read_recipe(home / self.recipes / name, [*self.changes.get(size, []), *variant.changes, *changes])

    def paper_recipe(self, variant: Variant, home: Path) -> Recipe:
        """Returns the recipe at full size, with the paper's data and values."""
        return read_recipe(home / self.recipes / f"{variant.recipe}.yaml", [*variant.changes])


def find_study(name: str) -> Path:
    """Returns the file of a study: a YAML file, or the name of one in `jobs/studies`.

    Raises `UserError` for another name.
    """
    path = Path(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"
    if not path.is_file():
        here = ", ".join(sorted(file.stem for file in STUDIES.glob("*.yaml"))) or "none in this directory"
        raise UserError(f"The study {shown(name)} is not at {path}; name a YAML file or one of {STUDIES}: {here}.")
    return path


def read_study(path: Path) -> Study:
    """Raises `UserError` for a file that is no study."""
    try:
        values: Any = load_yaml(path.read_text(encoding="utf-8"))
        return Study.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = str(first["ctx"]["error"]) if first["type"] == "value_error" else f"{where}: {first['msg']}"
        raise UserError(f"The study {path} cannot be used ({said}); docs/studies.md describes its keys.") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"The study {path} cannot be read ({one_line(error)}).") from error
