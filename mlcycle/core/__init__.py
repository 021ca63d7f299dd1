"""Files, versions, settings, the workspace, runs, retries: nothing here knows of machine learning."""
