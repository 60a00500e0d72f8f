"""Measures the processor time of one `spanlake predict` with the embedded model, against `import torch` alone.

    python benchmarks/startup.py [--rounds 5]

Each is a process of its own. They take turns, and the figure is the median of user and system time.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

from arguments import plain_errors
from machine import machine

from spanlake.options import positive

PREDICT = 'import spanlake.cli; spanlake.cli.main(["predict", "Ada Lovelace lived in London.", "--labels", "person"])'
SIDES = {"import torch": "import torch", "spanlake predict": PREDICT}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    print(machine(os.cpu_count() or 1, "torch"))
    taken: dict[str, list[float]] = {name: [] for name in SIDES}
    for turn in range(args.rounds + 1):
        for name, program in SIDES.items():
            seconds = processor_seconds(program)
            if turn:  # the first round reads the files into memory
                taken[name].append(seconds)
    for name, seconds in taken.items():
        print(f"{name:<18}{statistics.median(seconds):6.2f} s of processor time")


def processor_seconds(program: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    with plain_errors():
        main()
