"""A study's plots, as HTML fragments for one page that carries plotly.js itself. A plot that cannot be says why."""

import math

import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from search.findings.drawing import GREY, SCALE, Plot, drawn
from search.findings.leaderboard import trial_name
from search.findings.optuna_plots import readable_study, study_plots
from search.ledger.records import TrialRecord
from search.ledger.results import Configuration, Results
from search.ledger.trials import METRICS, REPLICATE_OF, SEED, trial_config
from trainables import metrics as names
from trainables.phases.convergence import MARKED, converged


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
    return drawn("learning", "Learning curves", figure)


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
    return drawn("convergence", "Phase-1 convergence", figure)


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
    return drawn(f"pareto-{shown}", title, figure)


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
    return drawn(anchor, title, figure)
