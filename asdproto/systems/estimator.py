"""The habits of scikit-learn and PyOD: parameters, and what all outlier detectors can do."""

import dataclasses
import inspect
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from asdproto.config import ConfigError, override
from asdproto.data.dcase import Clip
from asdproto.scoring.metrics import auc
from asdproto.scoring.thresholds import Limit, ThresholdWarning, decide, limit
from asdproto.systems import choose, preset
from asdproto.systems.inputs import Clips, check_contamination, check_rate, labels_of
from asdproto.systems.system import System


class OutlierDetector:
    """What follows from a detector's parameters, ``fit``, ``details`` and held-out scores.

    Parameters are the keywords of its class, kept under their names; all others are ``overrides``.
    """

    system: Any
    preset: str
    contamination: float
    sample_rate: int | None
    overrides: dict[str, Any]
    fit: Any
    details: Any
    about_: dict[str, Any]
    decision_scores_: np.ndarray
    _train_machines: list[str]
    _limits: dict[float, dict[str, Limit]]

    def fit_predict(self, X: Clips, y: Any = None, **known: Any) -> np.ndarray:
        """``fit``, and ``labels_`` of the training clips, int64 ``[clips]``."""
        return self.fit(X, y, **known).labels_

    def decision_function(self, X: Clips, **known: Any) -> np.ndarray:
        """Anomaly scores, float64, shape ``[clips]``, higher is more anomalous; see `details`."""
        return np.array([row.score for row in self.details(X, **known)], np.float64)

    def predict(self, X: Clips, **known: Any) -> np.ndarray:
        """Decisions, int64, shape ``[clips]``: 1 for an anomaly, 0 for normal; see `details`."""
        return np.array([row.decision for row in self.details(X, **known)], np.int64)

    def predict_proba(self, X: Clips, **known: Any) -> np.ndarray:
        """Normal and anomalous share, float64 ``[clips, 2]``, linear as PyOD's.

        A score as low as the lowest held-out one has (1, 0), one as high as the highest (0, 1).
        """
        scores = self.decision_function(X, **known)
        low, high = self.decision_scores_.min(), self.decision_scores_.max()
        span = max(high - low, np.finfo(np.float64).tiny)
        anomalous = np.clip((scores - low) / span, 0.0, 1.0)
        return np.stack([1.0 - anomalous, anomalous], axis=1)

    def score(self, X: Clips, y: Any, **known: Any) -> float:
        """Area under the ROC curve in [0, 1], of clips with ``y`` 0 for normal, 1 for anomaly."""
        scores = self.decision_function(X, **known)
        return auc(scores, labels_of(y, len(scores)) == 1)

    # --- limits

    @property
    def threshold_(self) -> float | dict[str, float]:
        """Scores above it are anomalies; by machine type where there are several."""
        thresholds = self.thresholds()
        return next(iter(thresholds.values())) if len(thresholds) == 1 else thresholds

    @property
    def labels_(self) -> np.ndarray:
        """Decisions on the training clips by their held-out scores, int64 ``[clips]``."""
        thresholds = self.thresholds()
        limits = np.array([thresholds[machine] for machine in self._train_machines])
        return decide(self.decision_scores_, limits)

    def limits(self, contamination: float | None = None) -> dict[str, Limit]:
        """Decision threshold of each machine type, and what it rests on.

        Args:
          contamination: Share of normal clips that may be called anomalies; the parameter when
            ``None``.
        """
        self._check_fitted()
        share = self.contamination if contamination is None else contamination
        if share not in self._limits:
            quantile, machines = check_contamination(share), np.array(self._train_machines)
            self._limits[share] = {
                str(machine): limit(self.decision_scores_[machines == machine], quantile=quantile)
                for machine in np.unique(machines)
            }
        return self._limits[share]

    def thresholds(self) -> dict[str, float]:
        """Decision threshold of each machine type; see :meth:`limits`."""
        return {machine: one.threshold for machine, one in self.limits().items()}

    def warn_of_limits(self) -> None:
        """Warns once of thresholds that rest on little."""
        cautions = [f"{key}: {one.caution}" for key, one in self.limits().items() if one.caution]
        if cautions:
            shown = "; ".join(cautions[:3]) + ("; ..." if len(cautions) > 3 else "")
            text = f"{self.about_['name']}: trust the threshold with care: {shown}"
            warnings.warn(text, ThresholdWarning, stacklevel=3)

    # --- parameters

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Parameters by name, apart from overrides."""
        parameters = inspect.signature(cls).parameters.values()
        return {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY}

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters as given, overrides among them."""
        del deep
        return {name: vars(self)[name] for name in self._defaults()} | self.overrides

    def set_params(self, **params: Any) -> Self:
        """Changes parameters; what was fitted stays until the next ``fit``."""
        known = self._defaults()
        vars(self).update({name: params.pop(name) for name in known if name in params})
        self.overrides = self.overrides | params
        return self

    def __repr__(self) -> str:
        defaults, parts = self._defaults(), []
        for name, value in self.get_params().items():
            if name not in defaults or value is not defaults[name]:
                text = value if isinstance(value, str) or name != "system" else value.kind
                parts.append(f"{name}={text!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="outlier_detector",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(two_d_array=False, string=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return "members_" in vars(self)

    def _check_fitted(self) -> None:
        if "members_" not in vars(self):
            from sklearn.exceptions import NotFittedError

            raise NotFittedError("this Detector is not fitted; call fit, or Detector.load(run)")

    def _rate(self, sample_rate: int | None) -> int | None:
        rate = self.sample_rate if sample_rate is None else sample_rate
        return None if rate is None else check_rate(rate)

    def _system(self, clips: Sequence[Clip]) -> System:
        system = self.system
        if isinstance(system, str):
            system = preset(choose(clips)[0] if system == "auto" else system, self.preset)
        if not dataclasses.is_dataclass(type(system)):
            raise ConfigError(
                f"system={system!r}: expected a name, the path of a class, or a value"
            )
        overrides = [f"{name.replace('__', '.')}={value}" for name, value in self.overrides.items()]
        return override(system, overrides)
