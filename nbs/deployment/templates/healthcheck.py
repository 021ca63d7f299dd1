"Exit with 0 if the service in this container is ready: the health check of the image."

import os
import sys
from http.client import HTTPConnection

PORTS = ("AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT", "PORT")  # The first that is set; as `mlcycle-service serve`
port = next((os.environ[name] for name in PORTS if os.environ.get(name)), "8080")
try:
    connection = HTTPConnection("127.0.0.1", int(port), timeout=4)
    connection.request("GET", "/health")
    sys.exit(connection.getresponse().status != 200)
except (OSError, ValueError) as error:
    sys.exit(f"The service does not respond on port {port}: {error}")
