import pytest
import ray

from search.cluster import Resources, plan_resources


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
