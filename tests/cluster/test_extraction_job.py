"""A bulk job on a real head: its status, its log, how it stops and how it continues."""

import json
import re
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import copy_parts, run

ROWS = 40_000


@pytest.mark.timeout(600)
def test_a_job_is_stopped_and_continues(head: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    checkout = copy_parts(tmp_path / "checkout")
    texts = [f"Row {row}: Ada met Marie Curie in Warsaw" for row in range(ROWS)]
    pq.write_table(pa.table({"id": range(ROWS), "text": texts}), tmp_path / "rows.parquet")
    output = tmp_path / "found"
    call = f"python jobs/extract.py {tmp_path / 'rows.parquet'} {output} --labels person,place --model {tiny_model_dir}"
    submit = f"ray job submit --address {head} --working-dir ."

    begun = run(f"{submit} --submission-id first --no-wait -- {call}", checkout)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    deadline = time.monotonic() + 200
    while len(list(output.glob("*.parquet"))) < 3:
        assert time.monotonic() < deadline, run(f"ray job logs --address {head} first", checkout).stdout
        time.sleep(0.2)
    assert "RUNNING" in run(f"ray job status --address {head} first", checkout).stdout
    started = time.monotonic()
    stopped = run(f"ray job stop --address {head} first", checkout)
    assert stopped.returncode == 0 and "was stopped" in stopped.stdout
    assert time.monotonic() - started < 60
    assert "was stopped" in run(f"ray job status --address {head} first", checkout).stdout
    log = run(f"ray job logs --address {head} first", checkout).stdout
    assert "committed units stay" in log and "Traceback" not in log

    stands = len(list(output.glob("*.parquet")))
    assert 0 < stands < json.loads((output / "_spanlake/manifest.json").read_text())["units"]
    done = run(f"{submit} --submission-id second -- {call}", checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[\d,]+ of 40,000 rows are already in", done.stdout)
    assert "units: 0 waiting" in done.stdout
    audit = run(f"spanlake audit {output}", checkout)
    assert audit.returncode == 0 and json.loads(audit.stdout)["output_rows"] == ROWS
