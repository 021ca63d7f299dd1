"""The pipeline of a bundle behind LitServe, with its batching. `serving_litserve.py BUNDLE PORT`."""

import sys

import litserve
import pandas as pd

from mlcycle.ml.predictions import predict
from mlcycle.service.bundle import open_release


class Pipeline(litserve.LitAPI):
    """Reads rows, predicts them by the pipeline, in batches of up to 8 requests."""

    def setup(self, device):
        """Load the model once in the worker."""
        self.bundle, self.model = open_release(sys.argv[1])
        self.types = {name: kind for name, kind in self.bundle.columns.items() if kind != "bool"}

    def decode_request(self, request):
        """The row of a request."""
        return request["rows"][0]

    def batch(self, inputs):
        """Rows as a frame."""
        return pd.DataFrame(inputs, columns=list(self.bundle.columns)).astype(self.types)

    def predict(self, x):
        """Labels of a batch."""
        return predict(self.model, x, self.bundle.problem, self.bundle.threshold).labels.tolist()

    def unbatch(self, output):
        """One label a request."""
        return output

    def encode_response(self, output):
        """The body of a response."""
        return {"predictions": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(Pipeline(max_batch_size=8, batch_timeout=0.001), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False, log_level="warning")
