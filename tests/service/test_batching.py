"""Requests that are predicted together are predicted as each alone."""

import asyncio
import threading
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_releases import toy_release, toy_rows

from mlcycle.errors import InputError
from mlcycle.service.app import create_app, load_served_model
from mlcycle.service.batching import MicroBatcher, ServiceBusyError
from mlcycle.service.prediction_log import PredictionLog
from mlcycle.service.prediction_options import PredictOptions
from mlcycle.service.prediction_service import PredictionService, PredictJob, predict_jobs

ROWS = toy_rows(60, seed=1).to_dict("records")


@pytest.fixture(scope="module", params=[True, False], ids=["trees", "linear"])
def served(request, tmp_path_factory):
    "A loaded release of a model that works row by row, and of one that multiplies matrices."
    return load_served_model(toy_release(tmp_path_factory.mktemp("batching"), 1, trees=request.param))


def outcome(result) -> bytes | str:
    "Bits of the predictions, or the text of the error."
    return str(result) if isinstance(result, Exception) else result.predictions.values.tobytes()


def test_models_that_multiply_matrices_are_not_predicted_in_blocks(served):
    assert served.in_blocks == (type(served.model).__name__ == "LGBMRegressor")


good = st.lists(st.sampled_from(ROWS), min_size=1, max_size=12)
missing = st.lists(st.sampled_from([row | {"x3": None} for row in ROWS]), min_size=1, max_size=3)
bad = st.sampled_from([[{}], [], [ROWS[0] | {"x0": "many"}], ROWS[:3] + [{"x0": 1}], [3]])


@given(st.lists(st.one_of(good, missing, bad), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_grouping_gives_the_bits_of_single_requests(served, requests):
    jobs = [PredictJob(served, rows, None, PredictOptions()) for rows in requests]
    together = [outcome(result) for result in predict_jobs(jobs)]
    assert together == [outcome(predict_jobs([job])[0]) for job in jobs]


def test_concurrent_requests_get_their_own_predictions_or_errors(served):
    service = PredictionService(served, PredictionLog(None, ""))

    async def send(number: int):
        rows = [ROWS[number % 60]] if number % 7 else [{"x0": f"wrong {number}"}]
        try:
            return outcome(await service.predict(rows))
        except InputError as error:
            return outcome(error)

    async def send_all():
        return await asyncio.gather(*map(send, range(300)))

    results = asyncio.run(send_all())
    service.close()
    metrics = dict(line.rsplit(" ", 1) for line in service.metrics.text().decode().splitlines() if line[0] != "#")
    for number, result in enumerate(results):
        rows = [ROWS[number % 60]] if number % 7 else [{"x0": f"wrong {number}"}]
        assert result == outcome(predict_jobs([PredictJob(served, rows, None, PredictOptions())])[0])
    assert float(metrics['mlcycle_batch_rows_count{version="1"}']) < 100, "the requests were not combined"
    assert float(metrics["mlcycle_queue_delay_seconds_count"]) == 300
    assert float(metrics["mlcycle_queue_delay_seconds_sum"]) > 0


def test_a_failing_block_is_predicted_request_by_request(served, monkeypatch):
    alone = [outcome(predict_jobs([PredictJob(served, [row], None, PredictOptions())])[0]) for row in ROWS[:4]]
    real = served.scorer.predict

    def fails_for_blocks(columns, n_rows):
        if n_rows > 1:
            raise RuntimeError("a block")
        return real(columns, n_rows)

    monkeypatch.setattr(served.scorer, "predict", fails_for_blocks)
    jobs = [PredictJob(served, [row], None, PredictOptions()) for row in ROWS[:4]]
    assert [outcome(result) for result in predict_jobs(jobs)] == alone


def test_a_large_request_does_not_hold_up_small_ones():
    go_on = threading.Event()

    def predict(jobs):
        if jobs == ["large"]:
            go_on.wait(20)
        return jobs

    batcher = MicroBatcher(predict)

    async def send():
        large = asyncio.ensure_future(batcher.submit("large", 5000))
        await asyncio.sleep(0.05)
        small = await asyncio.wait_for(batcher.submit("small"), 10)
        done_first = not large.done()
        go_on.set()
        return small, done_first, await large

    assert asyncio.run(send()) == ("small", True, "large")
    batcher.close()


def test_a_full_queue_is_503_with_retry_after(tmp_path, monkeypatch):
    app = create_app(toy_release(tmp_path, 1))

    async def busy(*arguments, **options):
        raise ServiceBusyError("512 requests are waiting.")

    monkeypatch.setattr(app.state.service.batcher, "submit", busy)

    async def send():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://toy") as client:
            return await client.post("/predict", json={"rows": ROWS[:1]})

    response = asyncio.run(send())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_requests_of_clients_that_are_gone_are_not_predicted(tmp_path: Path):
    "A worker thread is busy with a block while clients send requests and close their connections."
    app, predicted, go_on = create_app(toy_release(tmp_path, 1)), [], threading.Event()
    service = app.state.service
    real = service.batcher.small.predict_block

    def slow(jobs):
        if not predicted:
            predicted.append("first")
            go_on.wait(20)
        predicted.extend(job.row_ids[0] for job in jobs)
        return real(jobs)

    service.batcher.small.predict_block = slow

    async def request(row_id: str, gone: asyncio.Event) -> None:
        body = f'{{"rows": [{{{", ".join(f"{chr(34)}x{n}{chr(34)}: 1" for n in range(8))}}}], "row_ids": ["{row_id}"]}}'.encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": "/predict", "raw_path": b"/predict", "query_string": b"",
                 "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
                 "server": ("toy", 80), "client": ("toy", 1), "root_path": "", "asgi": {"version": "3.0"}}  # fmt: skip
        await app(scope, receive, send)

    async def run() -> None:
        gone, stays = asyncio.Event(), asyncio.Event()
        first = asyncio.ensure_future(request("one", stays))
        while not predicted:
            await asyncio.sleep(0.005)
        others = [asyncio.ensure_future(request(name, gone)) for name in ("two", "three")]
        kept = asyncio.ensure_future(request("four", stays))
        await asyncio.sleep(0.1)
        gone.set()
        await asyncio.gather(*others)
        go_on.set()
        await asyncio.gather(first, kept)

    asyncio.run(run())
    service.close()
    assert predicted == ["first", "one", "four"]
