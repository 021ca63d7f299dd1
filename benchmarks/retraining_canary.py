"""How often an equal canary is ended, and a worse one found, in simulated lives: the tables of `monitoring/canary_simulation`.

`python benchmarks/retraining_canary.py --lives 400`; a life takes about a third of a second.
"""

import sys
import time
from typing import Annotated

import typer

from mlcycle.monitoring.canary_simulation import CanaryWorld, simulate_canaries

app = typer.Typer(add_completion=False, help=__doc__)
EQUAL = {
    "a tenth of the requests": CanaryWorld(),
    "a twentieth of the requests": CanaryWorld(share=0.05),
    "half of the requests": CanaryWorld(share=0.5),
    "judged after each 100 requests": CanaryWorld(look_requests=100, max_requests=20_000),
    "2,000 rows needed": CanaryWorld(min_rows=2000, look_requests=2000, max_requests=250_000),
    "actual values of a fifth of the rows": CanaryWorld(labelled=0.2, look_requests=2000, max_requests=300_000),
    "ROC AUC": CanaryWorld(metric="roc_auc", max_requests=50_000),
    "2 % of the requests fail": CanaryWorld(failures=(0.02, 0.02)),
    "budget of 40 ms, which 4 % exceed": CanaryWorld(budget_ms=40),
    "no actual values, 200,000 requests": CanaryWorld(labelled=0, max_requests=200_000, look_requests=10_000),
    "slower by a quarter, no budget": CanaryWorld(slower=1.25),
}
BETTER = {
    "errors 8 % instead of 10 %": CanaryWorld(errors=(0.1, 0.08)),
    "errors 5 % instead of 10 %": CanaryWorld(errors=(0.1, 0.05)),
}
WORSE = {
    "errors 12 % instead of 10 %": CanaryWorld(errors=(0.1, 0.12)),
    "errors 12 %, half of the requests, 5,000 rows needed": CanaryWorld(
        errors=(0.1, 0.12), share=0.5, min_rows=5000, look_requests=2000, max_requests=110_000
    ),
    "errors 15 %": CanaryWorld(errors=(0.1, 0.15)),
    "errors 15 %, 1,000 rows needed": CanaryWorld(errors=(0.1, 0.15), min_rows=1000, max_requests=150_000),
    "errors 20 %": CanaryWorld(errors=(0.1, 0.2)),
    "errors 50 %": CanaryWorld(errors=(0.1, 0.5)),
    "2 % of the requests fail, not 0.2 %": CanaryWorld(failures=(0.002, 0.02)),
    "10 % fail, not 0.2 %": CanaryWorld(failures=(0.002, 0.1)),
    "10 % fail, not 0.2 %; a hundredth of the requests": CanaryWorld(failures=(0.002, 0.1), share=0.01),
    "twice as slow": CanaryWorld(slower=2),
    "twice as slow, budget of 40 ms": CanaryWorld(slower=2, budget_ms=40),
    "four times as slow": CanaryWorld(slower=4),
}


@app.command()
def main(
    lives: Annotated[int, typer.Option(help="Simulated lives of each kind.")] = 400,
    only: Annotated[str, typer.Option(help="Only kinds whose name contains this.")] = "",
) -> None:
    """Print the tables."""
    for title, worlds in (("as good", EQUAL), ("better", BETTER), ("worse", WORSE)):
        print(f"\nThe canary is {title}:\n\n| world | lives | ended | promoted | requests: median | 95 % |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, world in worlds.items():
            if only in name:
                start, found = time.perf_counter(), simulate_canaries(world, lives)
                print(
                    f"| {name} | {lives} | {found.ended:.3f} | {found.promoted:.3f} | {found.median_requests:,.0f} | "
                    f"{found.late_requests:,.0f} |",
                    flush=True,
                )
                print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    app()
