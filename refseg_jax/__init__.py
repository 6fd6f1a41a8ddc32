"""Language-guided segmentation at any granularity, in JAX.

    from refseg_jax import Predictor

    predictor = Predictor.from_checkpoint("runs/scenes_unires")
    predictions = predictor.predict("picture.jpg", ["the red car", "the wheels of the red car"])

These names are loaded when they are first used, so that `import refseg_jax` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from refseg_jax.batch import Batch as Batch
    from refseg_jax.batch import SegOutput as SegOutput
    from refseg_jax.models import build_model as build_model
    from refseg_jax.prediction.painting import Prediction as Prediction
    from refseg_jax.prediction.predictor import Predictor as Predictor

__version__ = "0.1.0"

#: Public name -> the module that holds it.
_PUBLIC = {
    "Batch": "refseg_jax.batch",
    "Prediction": "refseg_jax.prediction.painting",
    "Predictor": "refseg_jax.prediction.predictor",
    "SegOutput": "refseg_jax.batch",
    "build_model": "refseg_jax.models",
}

__all__ = ["Batch", "Prediction", "Predictor", "SegOutput", "__version__", "build_model"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
