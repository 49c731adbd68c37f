"""Messages and stubs of `proto/tessera/v1`, written by `generate.py`."""
