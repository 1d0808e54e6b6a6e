"""distbp from Python: the same functions that the commands call, for a notebook or a script under mpirun.

    from distbp.api import settings, train, predict

    result = train(settings({"network": {"widths": [64]}}), name="mine")
    print(result.validation.metrics["accuracy"], result.sha256)
    print(predict("mine", "more.csv"))
    train(arrays=(x, y), name="from numpy")

In a script under mpirun every rank calls the same functions with the same arguments; what they return is said there.
The names are not in ``distbp`` itself because ``distbp.train`` is the module behind ``python -m distbp.train``.
"""

from distbp.network.network import Network
from distbp.options import make as settings
from distbp.options import read_toml
from distbp.settings import Settings
from distbp.training.apply import evaluate, predict
from distbp.training.evaluation import Evaluation
from distbp.training.model import Model
from distbp.training.run import Result, train

__all__ = [
    "Evaluation", "Model", "Network", "Result", "Settings", "evaluate", "predict", "read_toml", "settings", "train",
]  # fmt: skip
