"""Where a run's measurements go: metrics.jsonl, TensorBoard, MLflow, Weights & Biases, and the terminal.

The process that trains writes. The process that launched it, maybe on another machine, shows what was written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Thread
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from spanlake.errors import UserError
from spanlake.storage import Place
from spanlake.training.recipe import MlflowSection, Recipe, WandbSection

METRICS = "metrics.jsonl"
_LOOK_SECONDS = 1.0  # between looks at what was recorded

Send = Callable[[dict[str, Any]], None]


class Tracker:
    """Writes the measurements of a run. Only the first process has one."""

    def __init__(self, recipe: Recipe, run: Place, step: int, sends: Iterable[Send]) -> None:
        """The run goes on from `step`; records of later steps are removed. Each of `sends` gets each record.


        Raises: UserError for a service whose library is not installed.
        """
        self._run = run
        written = (run.read(METRICS) or b"").decode().splitlines()
        self._lines = [line for line in written if step and json.loads(line)["step"] <= step]
        self._sends = [*sends]
        self._closes: list[Callable[[], None]] = []
        self._tensorboard: Path | None = None
        if recipe.logging.tensorboard:
            self._open_tensorboard(step)
        if recipe.logging.mlflow:
            self._open_mlflow(recipe, recipe.logging.mlflow)
        if recipe.logging.wandb:
            self._open_wandb(recipe, recipe.logging.wandb)

    def record(self, values: dict[str, Any]) -> None:
        """Records `values`: the step and what was measured."""
        self._lines.append(json.dumps(values))
        self._run.write(METRICS, ("\n".join(self._lines) + "\n").encode())
        for send in self._sends:
            send(values)
        if self._tensorboard and not self._run.is_local:
            self._run.upload(self._tensorboard, "tensorboard")

    def close(self) -> None:
        for close in self._closes:
            close()

    def _open_tensorboard(self, step: int) -> None:
        if find_spec("tensorboardX") is None:
            raise UserError(
                "TensorBoard's files need tensorboardX: pip install 'spanlake[train]', or logging.tensorboard=false."
            )
        from tensorboardX import SummaryWriter

        local = self._run.child("tensorboard") if self._run.is_local else mkdtemp(prefix="spanlake-tensorboard-")
        self._tensorboard = Path(local)
        writer = SummaryWriter(local, purge_step=step + 1, flush_secs=5)

        def send(values: dict[str, Any]) -> None:
            for name, value in numbers(values).items():
                writer.add_scalar(name, value, values["step"])
            writer.flush()

        self._sends.append(send)
        self._closes.append(writer.close)

    def _open_mlflow(self, recipe: Recipe, section: MlflowSection) -> None:
        if find_spec("mlflow") is None:
            raise UserError("The recipe logs to MLflow, which is not installed: pip install 'spanlake[tracking]'.")
        import mlflow

        mlflow.set_tracking_uri(section.tracking_uri)
        mlflow.set_experiment(section.experiment)
        mlflow.start_run(run_name=recipe.name)
        mlflow.log_dict(recipe.to_dict(), "recipe.json")

        def send(values: dict[str, Any]) -> None:
            mlflow.log_metrics(numbers(values), step=values["step"])

        self._sends.append(send)
        self._closes.append(mlflow.end_run)

    def _open_wandb(self, recipe: Recipe, section: WandbSection) -> None:
        if find_spec("wandb") is None:
            raise UserError(
                "The recipe logs to Weights & Biases, which is not installed: pip install 'spanlake[tracking]'."
            )
        import wandb

        directory = self._run.path if self._run.is_local else None
        logged = wandb.init(
            project=section.project, name=recipe.name, config=recipe.to_dict(), mode=section.mode, dir=directory
        )
        self._sends.append(lambda values: logged.log(numbers(values), step=values["step"]))
        self._closes.append(logged.finish)


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """Returns the values of a record that can be drawn as a curve over the steps."""
    return {
        name: float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


@contextmanager
def showing(recipe: Recipe, run: Place) -> Iterator[None]:
    """Shows new records on standard error while the block runs."""
    display, over = _Display(recipe), Event()
    shown = (run.read(METRICS) or b"").decode().splitlines()

    def follow() -> None:
        known = {*shown}
        while True:
            last = over.wait(_LOOK_SECONDS)
            for line in (run.read(METRICS) or b"").decode().splitlines():
                if line not in known:
                    known.add(line)
                    display.show(json.loads(line))
            if last:
                return

    follower = Thread(target=follow, name="spanlake-show", daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        display.close()


class _Display:
    """Shows a bar on a terminal, and a line for each record elsewhere."""

    def __init__(self, recipe: Recipe) -> None:
        self._steps = recipe.schedule.steps
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn(recipe.name), BarColumn(), TextColumn("{task.fields[line]}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=self._steps, line="")
            self._bar.start()

    def show(self, values: dict[str, Any]) -> None:
        step = values["step"]
        line = f"step {step:,} of {self._steps:,}"
        if "loss" in values:
            line += f", loss {values['loss']:.3f}, {values['texts_per_second']:.1f} texts/s"
            line += f", {values['tokens_per_second']:,.0f} tokens/s, {_duration(values['seconds_left'])} left"
            line += f", rates {values['encoder_lr']:.1e} and {values['head_lr']:.1e}"
        if "dev_f1" in values:
            line += f", dev F1 {100 * values['dev_f1']:.1f}"
        if "texts_to_train_on" in values:
            line += f", {values['texts_to_train_on']:,} texts to train on"
            line += f", {values['mentions_wider_than_max_width']:,} mentions too wide to be found"
            if values["mentions_inside_a_word"]:
                line += f", {values['mentions_inside_a_word']:,} that begin or end inside a word"
            line += f"; products in {values['precision']}"
        if self._bar:
            self._bar.update(self._task, completed=step, line=line)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _duration(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}"
