"""Training of pyramid diffusion models: the networks, the procedural scenery, the recipes.

The networks are written here in PyTorch and once more in Rust (`src/model`), with the same parameter
names; the fixtures under `tests/fixtures` tie the two.
"""

__version__ = "0.1.0"
