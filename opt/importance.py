"""Which knobs decide about the time, and how little can be said of few results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ops.space import Knob
from ..tuning_db.record import Record

FEWEST_RESULTS = 16                  # that importances are worked out from


@dataclass(frozen=True)
class Importance:
    """What decides about the time; `why_not` where too little is known."""

    shares: Mapping[str, float]      # by knob, the largest first, summing to 1
    method: str = ""
    why_not: str = ""


def share_of(row: Record) -> float | None:
    """A config's time over the default's in the same rounds; None: it was not timed."""
    return None if row.us is None or row.default_us is None else row.us / row.default_us


def importance(trials: Sequence[Record]) -> Importance:
    """PED-ANOVA: how much each knob decides whether a config is among the best tenth.

    Watanabe, Bansal and Hutter, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
    Arbitrary Subspaces" (2023), as Optuna implements it: the default there, and it needs no forest.
    """
    timed = [(r, share) for r in trials if (share := share_of(r)) is not None]
    values = {k: list(dict.fromkeys(r.config[k] for r, _ in timed if k in r.config))
              for k in (timed[0][0].config if timed else ())}
    varied = {k: v for k, v in values.items() if len(v) > 1}
    if len(timed) < FEWEST_RESULTS:
        return Importance({}, why_not=f"{len(timed)} timed configs are too few to say which knobs "
                                      f"matter; at least {FEWEST_RESULTS} are needed")
    if len(varied) < 2:
        return Importance({}, why_not="fewer than two knobs were varied")
    return Importance(*_ped_anova(timed, varied))


def _ped_anova(timed: Sequence[tuple[Record, float]], varied: Mapping[str, list[Knob]]
               ) -> tuple[dict[str, float], str]:
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    study.add_trials([create_trial(
        value=math.log(share), params={k: row.config[k] for k in varied},
        distributions={k: CategoricalDistribution(v) for k, v in varied.items()})
        for row, share in timed])
    found = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
    ordered = dict(sorted(found.items(), key=lambda f: -f[1]))
    return ordered, f"PED-ANOVA, Optuna {optuna.__version__}, {len(timed)} timed configs"
