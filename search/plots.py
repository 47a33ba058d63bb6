"""A study's plots, as HTML fragments for one page that carries plotly.js itself. A plot that cannot be says why."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import create_trial
from plotly.colors import sample_colorscale

from search.leaderboard import trial_name
from search.results import METRICS, REPLICATE_OF, SEED, Configuration, Results, trial_config
from search.spaces import SEARCHED
from search.trial_records import TrialRecord
from trainables import metrics as names
from trainables.convergence import MARKED, converged

LEAST_FOR_IMPORTANCE = 10  # finished trials; of fewer, the best quarter is a trial or two
LEAST_FOR_CONTOUR = 6  # different points of a pair
GREY, FAINT = "#808690", "rgba(128,134,144,0.25)"  # readable on a light and on a dark page
CONFIG = {"responsive": True, "displaylogo": False}
HEIGHT = 430  # pixels
VALUE = "validation PPL"
SCALE = [[0, "#12a150"], [0.5, "#c99a1c"], [1, "#c9543d"]]  # low to high; each seen on light and dark


@dataclass(frozen=True)
class Plot:
    """One plot, or why there is none."""

    anchor: str
    title: str
    html: str = ""
    missing: str = ""  # a sentence


def _drawn(anchor: str, title: str, figure: go.Figure) -> Plot:
    figure.update_layout(
        title=None, template="plotly_white", width=None, height=HEIGHT,  # as wide as the page: Optuna's slices are not
        margin={"l": 60, "r": 20, "t": 30, "b": 50},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"color": GREY, "family": "system-ui, sans-serif"},
        hoverlabel={"namelength": -1}, modebar={"bgcolor": "rgba(0,0,0,0)", "color": FAINT, "activecolor": GREY},
    )  # fmt: skip
    figure.update_xaxes(gridcolor=FAINT, zerolinecolor=FAINT, linecolor=FAINT)
    figure.update_yaxes(gridcolor=FAINT, zerolinecolor=FAINT, linecolor=FAINT)
    figure.for_each_xaxis(_whole_numbers)
    figure.for_each_yaxis(_whole_numbers)
    html = figure.to_html(full_html=False, include_plotlyjs=False, div_id=f"plot-{anchor}", config=CONFIG)
    return Plot(anchor, title, html=html)


def _whole_numbers(axis: Any) -> None:
    """There is no half layer."""
    if (axis.title.text or "").endswith("_layers"):
        axis.dtick = 1


def all_plots(results: Results, records: dict[int, TrialRecord], bigram_ppl: float | None) -> list[Plot]:
    """Every plot of the report, in its order.

    Args:
        records: by trial number, those that can be read.
    """
    configurations = results.configurations()
    if not configurations:
        return []
    study = readable_study(results)
    return [
        learning_curves(results, records),
        convergence_curves(results, records),
        pareto(configurations, [names.TOTAL_PARAMS], "parameters", "Validation PPL against parameters"),
        # order must not make a model cheap
        pareto(
            configurations,
            [names.PHASE1_SECONDS, names.PHASE2_SECONDS],
            "seconds",
            "Validation PPL against seconds",
            "seconds; a reused Phase 1 counts in full",
        ),
        efficiency(configurations, bigram_ppl),
        *study_plots(study),
    ]


def _trial_label(results: Results, number: int) -> str:
    trial = results.optuna.get_trials(deepcopy=False)[number]
    config, figures = trial_config(trial), trial.user_attrs.get(METRICS, {})
    mark = names.CONVERGENCE in figures and not converged(config, figures)  # one that failed has no figures
    return f"#{number} {trial_name(config, SEED in trial.user_attrs)}{f', {MARKED}' * mark}"


def _label(found: Configuration) -> str:
    mark = "" if found.converged else f", {MARKED}"
    return f"#{found.first.number} {trial_name(found.config)}{mark}"


def _is_replicate(results: Results, number: int) -> bool:
    return REPLICATE_OF in results.optuna.get_trials(deepcopy=False)[number].user_attrs


def learning_curves(results: Results, records: dict[int, TrialRecord]) -> Plot:
    """Validation PPL after each epoch of every trial, best first, from green to red; replicates are thin.

    What has no result (failed, pruned) is grey and comes last.
    """
    figure = go.Figure()
    ranked = results.configurations()
    lines = [  # (trial, colour): all seeds of a configuration have one
        (trial.number, sample_colorscale(SCALE, rank / max(len(ranked) - 1, 1))[0])
        for rank, found in enumerate(ranked)
        for trial in found.trials
    ]
    lines += [(number, GREY) for number in sorted(records.keys() - dict(lines).keys())]
    for number, colour in lines:
        points = records[number].series.get(names.EPOCH_VAL_PPL, []) if number in records else []
        if points:
            width = 1 if _is_replicate(results, number) else 2
            epochs, values = zip(*points, strict=True)
            label = _trial_label(results, number)
            figure.add_scatter(
                x=epochs, y=values, name=label, mode="lines+markers", line={"width": width, "color": colour}
            )
    if not figure.data:
        return Plot("learning", "Learning curves", missing="No trial left its curves on record.")
    figure.update_layout(xaxis_title="epoch", yaxis_title="validation PPL")
    figure.update_xaxes(dtick=1 if max(max(line.x) for line in figure.data) <= 20 else None)
    return _drawn("learning", "Learning curves", figure)


def convergence_curves(results: Results, records: dict[int, TrialRecord]) -> Plot:
    """Share of converged positions after each sweep, once for all trials that share their Phase 1."""
    figure, seen = go.Figure(), set()
    trials = results.optuna.get_trials(deepcopy=False)
    for number, record in sorted(records.items()):
        config = trial_config(trials[number])
        points = record.series.get(names.SWEEP_CONVERGENCE, [])
        if points and config.phase1_key() not in seen:
            seen.add(config.phase1_key())
            sweeps, values = zip(*points, strict=True)
            label = f"C{config.context_layers} D{config.context_dim} seed {config.seed}"
            label += "" if converged(config, {names.CONVERGENCE: values[-1]}) else f", {MARKED}"
            width = 1 if _is_replicate(results, number) else 2
            figure.add_scatter(x=sweeps, y=[100 * v for v in values], name=label, mode="lines", line={"width": width})
    if not figure.data:
        return Plot("convergence", "Phase-1 convergence", missing="No trial left its curves on record.")
    wanted = 100 * trial_config(results.finished()[0]).phase1.converged_share
    figure.add_hline(y=wanted, line_dash="dot", line_color=GREY)
    figure.update_layout(xaxis_title="sweep", yaxis_title="converged positions, %")
    return _drawn("convergence", "Phase-1 convergence", figure)


def _mean(found: Configuration, name: str) -> float:
    each = [float(trial.user_attrs[METRICS][name]) for trial in found.trials]
    return math.fsum(each) / len(each)


def front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the points of which no other is at most as large in both and smaller in one, by the first."""
    order = sorted(range(len(points)), key=lambda i: points[i])
    found: list[int] = []
    for i in order:
        if not found or points[i][1] < points[found[-1]][1]:
            found.append(i)
    return found


def pareto(configurations: list[Configuration], costs: list[str], shown: str, title: str, axis: str = "") -> Plot:
    """All configurations by PPL and a cost (a sum of figures), and the front of those that nothing beats in both.

    Args:
        shown: the cost's unit.
        axis: what is written under it, if not that.
    """
    points = [(sum(_mean(found, cost) for cost in costs), found.ppl) for found in configurations]
    labels = list(map(_label, configurations))
    best = front(points)
    figure = go.Figure()
    line = {"x": [points[i][0] for i in best], "y": [points[i][1] for i in best], "hoverinfo": "skip"}
    figure.add_scatter(**line, mode="lines", line={"shape": "hv", "dash": "dot"}, name="front")
    for name, chosen in (("on the front", best), ("beaten in both", sorted(set(range(len(points))) - set(best)))):
        figure.add_scatter(
            x=[points[i][0] for i in chosen], y=[points[i][1] for i in chosen], text=[labels[i] for i in chosen],
            mode="markers", marker={"size": 10}, name=name,
            hovertemplate=f"%{{text}}<br>%{{x:,.4~s}} {shown}<br>PPL %{{y:.2f}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(xaxis_title=axis or shown, yaxis_title="validation PPL")
    return _drawn(f"pareto-{shown}", title, figure)


def efficiency(configurations: list[Configuration], bigram_ppl: float | None) -> Plot:
    """What each million trained parameters took off the bigram's loss."""
    anchor, title = "efficiency", "Parameter efficiency"
    if not bigram_ppl:
        return Plot(anchor, title, missing="The embedding is no bigram model, so there is no line to gain on.")
    trained = [_mean(f, names.PHASE1_PARAMS) + _mean(f, names.PHASE2_PARAMS) for f in configurations]
    gains = [math.log(bigram_ppl / found.ppl) for found in configurations]
    labels = list(map(_label, configurations))
    figure = go.Figure()
    figure.add_scatter(
        x=trained, y=[1e6 * gain / count for gain, count in zip(gains, trained, strict=True)], mode="markers",
        text=labels, customdata=gains, marker={"size": 10},
        hovertemplate="%{text}<br>%{x:,.4~s} trained parameters<br>%{customdata:.3f} nats below the bigram<br>"
        "%{y:.3f} nats per million<extra></extra>",
    )  # fmt: skip
    figure.update_layout(xaxis_title="trained parameters", yaxis_title="nats below the bigram, per million")
    return _drawn(anchor, title, figure)


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
        return _drawn(anchor, title, draw())
