"""A trained network with all that predicting needs: theta, scaling, the names of features and classes.

A row's prediction is computed in a block of a fixed shape, in which its place depends on its number alone, so it has
the same bits on any number of ranks and, at the same row number, in any file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distbp.coordinator import files
from distbp.data.scaling import Scaling
from distbp.data.source import Shape
from distbp.network.network import Network
from distbp.network.passes import Pass
from distbp.training.evaluation import block_rows

Array = NDArray[Any]


@dataclass(frozen=True)
class Model:
    """A network with its theta, and how raw rows become inputs and outputs become answers.

    Attributes
    ----------
    network, theta
        theta is (n_parameters,) of the network's dtype; ``network.layout.views(theta)`` gives W and b.
    shape
        Features, outputs, task and classes of the data it was trained on.
    x_scaling, y_scaling
        As fitted to the training rows.
    """

    network: Network
    theta: Array = field(repr=False)
    shape: Shape
    x_scaling: Scaling
    y_scaling: Scaling

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the outputs: the network's, or float64 where they are scaled back."""
        return self.network.dtype if self.y_scaling.plain else np.dtype(np.float64)

    @np.errstate(over="ignore", invalid="ignore")  # as in evaluation
    def outputs(self, x: Array) -> Array:
        """Return a[L] for raw rows x, (rows, n_0): probabilities, or values in the targets' own units, (rows, n_L).

        **Local.**

        Raises
        ------
        ValueError
            x has another number of columns than the network has inputs.
        """
        if x.ndim != 2 or x.shape[1] != self.network.widths[0]:
            raise ValueError(
                f"x: expected rows of {self.network.widths[0]} features, got an array of shape {x.shape}. "
                "Give one row a sample, as in training."
            )
        rows = block_rows(self.network)
        pass_ = Pass(self.network, 1, rows, training=False)
        W, b = self.network.layout.views(self.theta)
        results = []
        for start in range(0, len(x), rows):
            n = len(x[start : start + rows])
            pass_.x[0, :n] = self.x_scaling.apply(x[start : start + n], self.network.dtype)
            pass_.count([n])
            results.append(self.y_scaling.undo(self.network.forward(W, b, pass_)[0, :n].copy()))
        return np.concatenate(results) if results else np.empty((0, self.network.widths[-1]), self.dtype)

    def predict(self, x: Array) -> Array:
        """Return an answer for each raw row, as `answers` gives them. **Local.**"""
        return self.answers(self.outputs(x))

    def kind(self, wanted: str) -> str:
        """Return what is answered, classes, probabilities or values, for a wish that may be "auto".

        Raises
        ------
        ValueError
            The model cannot give that.
        """
        fits = ["values"] if self.shape.task == "regression" else ["classes", "probabilities"]
        if wanted not in ("auto", *fits):
            raise ValueError(
                f"--as: expected {' or '.join(fits)} of a {self.shape.task} model, got {wanted}. Leave it out."
            )
        return fits[0] if wanted == "auto" else wanted

    def answers(self, a: Array) -> Array:
        """Return answers for outputs a[L]: class names (str), labels as 0/1, or the values themselves."""
        if self.shape.task == "classification":
            names: Array = np.array(self.shape.classes)
            return names[a.argmax(axis=-1)]  # type: ignore[no-any-return]
        return (a > 0.5).astype(np.int64) if self.shape.task == "labels" else a

    def tensors(self) -> dict[str, Array]:
        """Return the arrays of a model file."""
        return {
            "theta": self.theta,
            "x_shift": self.x_scaling.shift,
            "x_factor": self.x_scaling.factor,
            "y_shift": self.y_scaling.shift,
            "y_factor": self.y_scaling.factor,
        }

    def about(self) -> dict[str, Any]:
        """Return the plain values of a model file."""
        data = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.shape).items()}
        return {"network": self.network.description(), "data": data}

    @classmethod
    def of(cls, tensors: Mapping[str, Array], about: Mapping[str, Any]) -> Model:
        """Return the model that `tensors` and `about` describe: those of a model file or of a checkpoint."""
        network = Network(**about["network"])
        data = dict(about["data"])
        data["feature_names"], data["classes"] = tuple(data["feature_names"]), tuple(data["classes"])
        return cls(
            network,
            tensors["theta"],
            Shape(**data),
            Scaling(tensors["x_shift"], tensors["x_factor"]),
            Scaling(tensors["y_shift"], tensors["y_factor"]),
        )

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read a model file or a checkpoint.

        Raises
        ------
        ValueError
            No such file, or not one of ours, or of a newer format.
        RuntimeError
            The file is damaged.
        """
        tensors, about = files.read(Path(path))
        return cls.of(tensors, about)
