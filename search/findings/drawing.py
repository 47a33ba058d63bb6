"""One plot of a report: an HTML fragment in colours that are readable on a light and on a dark page."""

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

GREY, FAINT = "#808690", "rgba(128,134,144,0.25)"  # readable on a light and on a dark page
CONFIG = {"responsive": True, "displaylogo": False}
HEIGHT = 430  # pixels
SCALE = [[0, "#12a150"], [0.5, "#c99a1c"], [1, "#c9543d"]]  # low to high; each seen on light and dark


@dataclass(frozen=True)
class Plot:
    """One plot, or why there is none."""

    anchor: str
    title: str
    html: str = ""
    missing: str = ""  # a sentence


def drawn(anchor: str, title: str, figure: go.Figure) -> Plot:
    """A figure as a plot of the page."""
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
