"""Version of the package."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("tessera-client")
except PackageNotFoundError:  # run from its sources
    __version__ = "0"
