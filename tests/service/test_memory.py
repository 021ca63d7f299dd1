"""Memory of a service under load: what an hour shows in `benchmarks/serving.py soak`, in a few thousand requests."""

import psutil
from conftest import stored_rows

from mlcycle.service.local import running_service
from mlcycle.service.rows import to_json_rows

ROUNDS, REQUESTS = 4, 1000
MAX_GROWTH = 3 * 2**20  # Bytes over the last three rounds; a leak of 1 KiB a request would be 3 MiB


def test_memory_does_not_grow_with_requests(table_run, tmp_path):
    run = table_run("cancer")
    rows = to_json_rows(stored_rows(run, "holdout")[run.plan.input_columns].head(50))
    with running_service(run.workspace.root / run.release.bundle, f"sqlite:///{tmp_path}/events.db", "memory") as service:
        process, used = psutil.Process(service.pid), []
        for round_ in range(ROUNDS):
            for number in range(REQUESTS):
                place = number % len(rows)
                body = {"rows": [rows[place]], "row_ids": [f"{round_}-{number}"], "probabilities": True}
                if number % 10 == 0:
                    body = {"rows": [rows[place] | {"mean radius": "wide"}]}  # Rejected
                service.client.post("/predict", json=body)
            used.append(process.memory_info().rss)
    assert used[-1] - used[0] < MAX_GROWTH, [f"{each / 2**20:.1f} MiB" for each in used]
