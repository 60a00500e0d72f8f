"""`spanlake train`."""

import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanlake.errors import UserError
from spanlake.ray_job import is_ray_job

if TYPE_CHECKING:
    from spanlake.storage import Place
    from spanlake.training.data import RecipeData
    from spanlake.training.recipe import Recipe

# Everything else is imported where it is used: `spanlake --help` does not wait for torch.


def add_commands(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Adds `train`. It sets `run`, a function from the parsed arguments to an exit code."""
    parser = subparsers.add_parser("train", help="train a model, in this process or on a Ray cluster")
    parser.description = (
        "Trains as the recipe says. The best package is DIR/package. The same command goes on after a failure."
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a YAML file; see jobs/recipes")
    parser.add_argument("changes", nargs="*", metavar="section.key=value", help="replaces a value of the recipe")
    parser.add_argument("--directory", metavar="DIR", help="directory of the run, a path or URI (default: runs/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.set_defaults(run=_train)


def _train(args: argparse.Namespace) -> int:
    # Threads of OpenMP that wait would otherwise spin on cores that others could use. OpenMP reads this when torch is
    # imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from spanlake.training.recipe import read_recipe

    recipe = read_recipe(args.recipe, args.changes)
    if args.dry_run:
        from spanlake.training.plan import plan_text

        print(plan_text(recipe))
        return 0
    from spanlake.package import find_model, verify_package
    from spanlake.storage import child_uri, locate

    directory = args.directory or os.path.join("runs", recipe.name)
    train(recipe, directory)
    if os.environ.get("RANK", "0") == "0":  # of torchrun's processes
        verify_package(find_model(child_uri(directory, "package")))
        print(locate(directory).inside("package").uri)
    return 0


def train(recipe: "Recipe", directory: str) -> None:
    """Trains in this process or on Ray, as the recipe says. The best package is then `directory`/package.

    `directory` is a path or URI. Raises: UserError if the recipe, its data or the directory cannot be used;
    ShortfallError if training cannot be finished.
    """
    from spanlake.storage import locate
    from spanlake.training.tracking import showing

    run = locate(directory)
    if "TORCHELASTIC_RUN_ID" in os.environ or (recipe.parallel.workers[1] == 1 and not is_ray_job()):
        from spanlake.training.processes import train_here

        train_here(recipe, run, _prepare)
        return
    if find_spec("ray") is None:
        raise UserError("Several workers need Ray, which is not installed: pip install 'spanlake[train]'.")
    from spanlake.training.launch import launch

    data = _prepare(recipe, run)
    with showing(recipe, run):
        launch(recipe, data, run)


def _prepare(recipe: "Recipe", run: "Place") -> "RecipeData":
    """Claims the directory and prepares the data."""
    from spanlake.training.data import recipe_data
    from spanlake.training.directory import claim

    claim(run, recipe)
    return recipe_data(recipe, run.inside("data"))
