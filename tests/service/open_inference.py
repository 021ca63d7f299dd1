"""A description of the Open Inference Protocol's REST interface in OpenAPI, written from its specification."""

TEXT, NAMES = {"type": "string"}, ("name", "datatype", "shape")


def _object(required: dict, optional: dict | None = None) -> dict:
    "An object; the protocol permits further properties."
    return {"type": "object", "required": [*required], "properties": {**required, **(optional or {})}}


def _list(items: dict) -> dict:
    return {"type": "array", "items": items}


def open_inference_document(model: str, version: str) -> dict:
    "The document for a model and its version."
    parameters = {"type": "object", "additionalProperties": {"anyOf": [TEXT, {"type": "number"}, {"type": "boolean"}]}}
    shape, data = _list({"type": "integer"}), _list({"anyOf": [TEXT, {"type": "number"}, {"type": "boolean"}, _list({})]})
    tensor = {"name": TEXT, "datatype": TEXT, "shape": shape}
    sent = _object({**tensor, "data": data}, {"parameters": parameters})
    wanted = _object({"name": TEXT}, {"parameters": parameters})
    request = _object({"inputs": _list(sent)}, {"id": TEXT, "parameters": parameters, "outputs": _list(wanted)})
    response = _object(
        {"model_name": TEXT, "outputs": _list(sent)}, {"model_version": TEXT, "id": TEXT, "parameters": parameters}
    )
    server = _object({"name": TEXT, "version": TEXT, "extensions": _list(TEXT)})
    metadata = _object({"name": TEXT, "platform": TEXT, "inputs": _list(_object(tensor)), "outputs": _list(_object(tensor))},
                       {"versions": _list(TEXT), "properties": {"type": "object", "additionalProperties": TEXT}})  # fmt: skip
    error = _object({"error": TEXT})

    def operation(answer: dict | None, body: dict | None = None, statuses: tuple[int, ...] = ()) -> dict:
        content = {"content": {"application/json": {"schema": answer}}} if answer else {}
        errors = {
            str(status): {"description": "error", "content": {"application/json": {"schema": error}}} for status in statuses
        }
        sent = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}} if body else {}
        return {"responses": {"200": {"description": "OK", **content}, **errors}, **sent}

    names = [{"name": name, "in": "path", "required": True, "schema": {"enum": [value]}}
             for name, value in (("model", model), ("version", version))]  # fmt: skip
    paths: dict[str, dict] = {"/v2": {"get": operation(server)}}
    paths |= {f"/v2/health/{what}": {"get": operation(None)} for what in ("live", "ready")}
    for path, used in (("/v2/models/{model}", names[:1]), ("/v2/models/{model}/versions/{version}", names)):
        paths[path] = {"parameters": used, "get": operation(metadata, statuses=(400, 404))}
        paths[f"{path}/ready"] = {"parameters": used, "get": operation(None, statuses=(400, 404))}
        paths[f"{path}/infer"] = {"parameters": used, "post": operation(response, request, (400, 404))}
    return {"openapi": "3.0.3", "info": {"title": "Open Inference Protocol", "version": "2.0"}, "paths": paths}
