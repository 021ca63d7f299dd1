"""How a notebook is executed: a fork server that has imported the heavy libraries, and kernels that are its forks."""
