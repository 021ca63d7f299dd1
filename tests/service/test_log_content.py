"""What reaches the prediction log: personal columns, rejected and failed requests, versions; with a toy release."""

from pathlib import Path

import pytest
from toy_releases import toy_release, toy_rows

from mlcycle.errors import InputError
from mlcycle.service.app import create_app
from mlcycle.service.bundle import read_description
from mlcycle.service.prediction_log import PredictionLog, flush_prediction_log
from mlcycle.service.prediction_options import PredictOptions
from mlcycle.service.service_settings import ServiceSettings
from mlcycle.stores.event_log import open_event_log, read_log, read_requests
from mlcycle.stores.event_views import release_view_name

SECRET = "ann.secret@example.org"


@pytest.fixture
def release(tmp_path) -> Path:
    "The folder of a toy release."
    return toy_release(tmp_path, 1)


def test_personal_columns_reach_neither_spool_nor_database(release, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MLCYCLE_LOG_HASH_KEY", "0123456789abcdef-key")
    file, spool = tmp_path / "log" / "log.db", tmp_path / "spool"  # The folder does not exist yet: events stay in the spool
    settings = ServiceSettings(log_hash_columns="x0,row_id", log_drop_columns="x1", spool=str(spool))
    service = create_app(release, f"sqlite:///{file}", "run", settings=settings).state.service
    rows = [row | {"x0": 1234.56789, "x1": 8765.4321} for row in toy_rows(2).to_dict("records")]
    service.predict_now(rows, [SECRET, "other"])
    assert not flush_prediction_log(service.log, 0.3)
    assert service.add_feedback([1.5], [SECRET]) == 1, "a hashed row id is found"
    assert not flush_prediction_log(service.log, 0.3)
    in_spool = b"".join(path.read_bytes() for path in spool.iterdir())
    file.parent.mkdir()
    assert flush_prediction_log(service.log)
    in_database = b"".join(path.read_bytes() for path in file.parent.iterdir())
    service.close()
    for data in (in_spool, in_database):
        assert b"x0__hmac" in data
        assert not any(text in data for text in (SECRET.encode(), b"1234.56", b"8765.43"))
    url, bundle = f"sqlite:///{file}", read_description(release)
    (block,) = read_log(engine := open_event_log(url), bundle.model.name, bundle.columns)
    engine.dispose()
    assert block.missing_columns == {"x0", "x1"}
    assert block.hashed_columns == {"x0"}
    assert block.events.n_actuals.tolist() == [1, 0]
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err


def test_an_unknown_personal_column_is_refused_with_a_suggestion(release):
    name = next(iter(read_description(release).columns))
    with pytest.raises(InputError, match="does not read") as caught:
        create_app(release, settings=ServiceSettings(log_drop_columns=f"{name}x"))
    assert name in caught.value.remedy


def test_a_key_that_is_too_short_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("MLCYCLE_LOG_HASH_KEY", "geheim")
    with pytest.raises(InputError, match="too short") as caught:
        PredictionLog(None, "run", ServiceSettings(log_hash_columns="x"))
    assert "geheim" not in str(caught.value)


def test_rejected_and_failed_requests_are_recorded_without_values(release, tmp_path):
    url, bundle = f"sqlite:///{tmp_path}/log.db", read_description(release)
    service = create_app(release, url, "run").state.service
    good, number = (
        toy_rows(1).to_dict("records")[0],
        next(name for name, kind in bundle.columns.items() if kind.startswith("float")),
    )
    bad = good | {number: SECRET}
    for rows in ([bad], "no rows"):
        with pytest.raises(InputError):
            service.predict_now(rows)
    service.predict_now([good, bad, bad], None, PredictOptions(skip_invalid=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlcycle.service.prediction_service.predict_prepared", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            service.predict_now([good, good])
    service.close()
    requests = read_requests(engine := open_event_log(url), bundle.model.name)
    with engine.connect() as connection:
        view = release_view_name(bundle.model.name, str(bundle.model.version))
        viewed = connection.exec_driver_sql(f'SELECT "{number}" FROM "{view}"').all()
    engine.dispose()
    assert requests[["kind", "rows"]].values.tolist() == [["rejected", 1], ["rejected", 1], ["rejected", 2], ["failed", 2]]
    assert requests.rule.tolist()[3] == "ZeroDivisionError"
    assert viewed == [(good[number],)]
    assert SECRET.encode() not in (tmp_path / "log.db").read_bytes()


def test_an_actual_value_of_a_row_that_an_earlier_version_predicted_is_taken(tmp_path):
    url = f"sqlite:///{tmp_path}/log.db"
    first, second = toy_release(tmp_path, 1), toy_release(tmp_path, 2)
    assert read_description(first).model.name == read_description(second).model.name
    service = create_app(first, url, "run of version 1").state.service
    service.predict_now(toy_rows(1).to_dict("records"), ["a"])
    service.close()
    later = create_app(second, url, "run of version 2").state.service
    assert later.add_feedback([1.5], ["a"]) == 1
    with pytest.raises(InputError):
        later.add_feedback([1.5], ["b"])
    later.close()
    (block,) = read_log(engine := open_event_log(url), read_description(first).model.name, {})
    engine.dispose()
    assert block.events[["model_version", "n_actuals"]].values.tolist() == [["1", 1]]
