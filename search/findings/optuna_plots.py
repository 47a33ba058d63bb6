"""Optuna's own plots of a study's finished trials. A plot that cannot be says why."""

import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial
from plotly.colors import sample_colorscale

from search.findings.drawing import FAINT, GREY, SCALE, Plot, drawn
from search.ledger.results import Results
from search.ledger.trials import trial_config
from search.spaces import SEARCHED

LEAST_FOR_IMPORTANCE = 10  # finished trials; of fewer, the best quarter is a trial or two
LEAST_FOR_CONTOUR = 6  # different points of a pair
VALUE = "validation PPL"


def readable_study(results: Results) -> optuna.Study:
    """A copy of the finished trials, without repeats and replicates, with D itself in place of its rank."""
    trials = results.finished()
    configs = [trial_config(trial).flat() for trial in trials]
    distributions: dict[str, BaseDistribution] = {}
    for name in SEARCHED:
        values = sorted({config[name] for config in configs})
        if len(values) < 2:
            continue  # nothing can be seen of what did not vary
        numeric = isinstance(values[0], int)
        distributions[name] = (
            IntDistribution(values[0], values[-1]) if numeric else CategoricalDistribution(tuple(values))
        )
    study = optuna.create_study(direction="minimize")
    for trial, config in zip(trials, configs, strict=True):
        params = {name: config[name] for name in distributions}
        study.add_trial(create_trial(value=trial.value, params=params, distributions=distributions))
    return study


def study_plots(study: optuna.Study) -> list[Plot]:
    """Optuna's own plots."""
    from optuna import visualization as draw

    number = len(study.trials)
    distributions = study.trials[0].distributions
    few = f"{number} finished trial{'s' * (number > 1)}"

    def importances() -> go.Figure:
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)  # of a dozen trials three are good
        return draw.plot_param_importances(study, evaluator=evaluator)

    varied = "" if distributions else "No parameter varies among the finished trials."
    two = "" if len(distributions) > 1 else "Fewer than two parameters vary among the finished trials."
    enough = "" if number >= LEAST_FOR_IMPORTANCE else f"{few}: importances need {LEAST_FOR_IMPORTANCE}."
    several = "" if number > 1 else f"{few}: there is no history yet."
    plots = [
        _optuna("history", "History", several, lambda: draw.plot_optimization_history(study, target_name=VALUE)),
        _optuna("importances", "Importance of the parameters", two or enough, importances),
        _optuna("parallel", "Parallel coordinates", two, lambda: _parallel(study)),
        _optuna("slice", "Slices", varied, lambda: _slices(study)),
    ]
    pairs = contour_pairs(study)
    for pair in pairs:
        title = f"Contour of {pair[0].replace('_', ' ')} and {pair[1].replace('_', ' ')}"
        plots.append(_optuna("-".join(("contour", *pair)), title, "", _contour(study, pair)))
    if not pairs:
        why = f"No two numeric parameters vary over {LEAST_FOR_CONTOUR} different points in a plane."
        plots.append(Plot("contour", "Contours", missing=why))
    return plots


def _parallel(study: optuna.Study) -> go.Figure:
    """Optuna's plot in colours that are seen on a dark page too; a line's first height is its value's, 0 to 1."""
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=VALUE)
    for line in figure.select_traces(selector={"mode": "lines"}):
        line.update(line={"color": sample_colorscale(SCALE, line.y[0])[0], "width": 2}, opacity=0.8)
    figure.update_traces(marker={"colorscale": SCALE, "reversescale": False}, selector={"mode": "markers"})
    return figure.update_annotations(font={"color": GREY})


def _slices(study: optuna.Study) -> go.Figure:
    figure = optuna.visualization.plot_slice(study, target_name=VALUE)
    return figure.update_traces(marker={"colorscale": SCALE, "line": {"color": FAINT}})


def contour_pairs(study: optuna.Study) -> list[tuple[str, str]]:
    """Pairs of numeric parameters with points enough to draw a surface over."""
    numeric = [name for name, d in study.trials[0].distributions.items() if isinstance(d, IntDistribution)]
    return [
        (a, b)
        for a, b in combinations(numeric, 2)
        if len({(t.params[a], t.params[b]) for t in study.trials}) >= LEAST_FOR_CONTOUR
    ]


def _contour(study: optuna.Study, pair: tuple[str, str]) -> Callable[[], go.Figure]:
    return lambda: optuna.visualization.plot_contour(study, params=list(pair), target_name=VALUE)


def _optuna(anchor: str, title: str, missing: str, draw: Callable[[], Any]) -> Plot:
    if missing:
        return Plot(anchor, title, missing=missing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return drawn(anchor, title, draw())
