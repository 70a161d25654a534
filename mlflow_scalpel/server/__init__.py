"""The views as live pages: inside `mlflow server`, or on loopback beside somebody else's server."""
