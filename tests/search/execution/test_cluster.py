"""What each trial gets of a cluster, and a real one of two nodes that loses one."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import ray
from optuna.trial import TrialState
from ray.cluster_utils import Cluster
from studies import command, descendants, made, mlflow_runs, optuna_trials, wait_for

from search.execution import cluster as cluster_module
from search.execution.cluster import Resources, check_hosts, plan_resources, start_ray
from search.ledger.trials import LOST, METRICS, REASON
from trainables.metrics import PHASE1_SHARED


def on(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    """A cluster of these machines, and one that has died."""
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: [*alive, {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}])


def test_without_gpus_trials_share_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, {"CPU": 5.0}, {"CPU": 2.0})
    assert plan_resources(2, None, None) == Resources(2, 0.0, 3)
    assert plan_resources(1, None, 4) == Resources(1, 0.0, 4)


def test_each_trial_gets_a_gpu_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, {"CPU": 8.0}, {"CPU": 16.0, "GPU": 4.0})
    assert plan_resources(1, None, None) == Resources(1, 1.0, 4)
    assert plan_resources(1, 0.0, None) == Resources(1, 0.0, 24)


@pytest.mark.parametrize(("share", "trials"), [(0.5, 2), (0.2, 5), (0.1, 10), (0.3, 3)])
def test_fractions_of_a_gpu_fill_it(monkeypatch: pytest.MonkeyPatch, share: float, trials: int) -> None:
    on(monkeypatch, {"CPU": 16.0, "GPU": 1.0})
    assert plan_resources(1, share, None).max_concurrent == trials


def test_what_no_single_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, {"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0})
    with pytest.raises(ValueError, match="no machine of this Ray cluster has both"):
        plan_resources(4, None, None)
    with pytest.raises(ValueError, match=r"--gpus-per-trial 2 .*\n?.*at most 1 GPUs"):
        plan_resources(1, 2, None)


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two nodes of one CPU each, the first one the head; a node that dies is missed after two seconds."""
    for name, value in {"period_ms": 500, "failure_threshold": 4, "initial_delay_ms": 0}.items():
        monkeypatch.setenv(f"RAY_health_check_{name}", str(value))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)  # an earlier test's Ray may have set it; the driver finds out
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_each_host_of_a_cluster_runs_this_code_or_is_named_before_anything_is_made(
    two_nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_ray(two_nodes.address)
    try:
        check_hosts()
        monkeypatch.setattr(cluster_module, "own_code", lambda: "another")
        with pytest.raises(ValueError, match=r"OtherCodeError: .* runs the code in .* \(and 1 more\)"):
            check_hosts()
        monkeypatch.setattr(cluster_module, "HOSTS_ANSWER_WITHIN", 0)
        with pytest.raises(ValueError, match="runs no task"):
            check_hosts()
    finally:
        ray.shutdown()


def raylet(node: ray._private.node.Node) -> int:
    """The process that a node's workers are children of."""
    pid: int = node.all_processes["raylet"][0].process.pid
    return pid


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc")
def test_a_node_that_dies_costs_a_study_nothing_but_time(two_nodes: Cluster, chat_file: Path, tmp_path: Path) -> None:
    (second,) = two_nodes.worker_nodes

    def training(node: ray._private.node.Node) -> list[int]:
        below = descendants(raylet(node))
        return [pid for pid, line in below.items() if line.startswith("ray::ImplicitFunc.train")]

    stopped: list[int] = []

    def stops() -> bool:
        """Whether a trial of the second node was stopped in the middle, so that it cannot end before its node does."""
        for pid in training(second):
            os.kill(pid, signal.SIGSTOP)
            if pid in training(second):
                stopped.append(pid)
                return True
            os.kill(pid, signal.SIGCONT)  # it had ended just before
        return False

    options = ("--epochs", "80", "--trials", "4", "--address", two_nodes.address)
    line = command("search/asym_layers.py", chat_file, tmp_path, *options)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        wait_for(process, "2 trial(s) at once")
        wait_until(lambda: bool(training(two_nodes.head_node) and training(second)))
        wait_for(process, "2/4")
        wait_until(stops)
        two_nodes.remove_node(second, allow_graceful=False)
        with suppress(ProcessLookupError):
            os.kill(*stopped, signal.SIGKILL)  # it cannot see that its node is gone
        output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    assert "the worker process died: it is run again" in output
    assert "4 trials finished, 0 failed" in output
    trials = optuna_trials(tmp_path)
    assert [t.user_attrs[REASON] for t in trials if t.state == TrialState.FAIL] == [LOST]
    # Each of the two was trained on one of the nodes, and the head, where the last trials ran, found both.
    assert sum(t.user_attrs[METRICS][PHASE1_SHARED] for t in made(trials)) == 2
    _, children, _ = mlflow_runs(tmp_path)
    assert [run.info.status for run in children] == ["FINISHED"] * 4
