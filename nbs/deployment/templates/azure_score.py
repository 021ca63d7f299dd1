"""Entry script for Azure ML's inference server: `init` loads the release, `run` handles a request as the service does.

The release is found in AZUREML_MODEL_DIR. A body of JSON is that of `POST /predict`: {"rows": [{...}]}; CSV and JSON lines are
those of `POST /invocations`.
"""

from typing import Any

from azureml_inference_server_http.api.aml_request import rawhttp
from azureml_inference_server_http.api.aml_response import AMLResponse

from mlcycle.service.entry_script import InProcessService, score_path

SERVICE: Any = None


def init() -> None:
    """Load the release of the model folder."""
    global SERVICE
    SERVICE = InProcessService()


@rawhttp
def run(request: Any) -> Any:
    """Handle a request; a row that cannot be used gets the status and the body of the service, not an error of this server."""
    headers = {"Content-Type": "application/json", **request.headers}
    response = SERVICE.post(score_path(headers["Content-Type"]), request.get_data(), headers)
    returned = {name.title(): value for name, value in response.headers.items() if name != "content-length"}
    return AMLResponse(response.body, response.status, returned)
