"""Metrics: Prometheus reads what the model says, within bounds, and all that the Grafana dashboard asks for."""

import json
import re
from pathlib import Path

import msgspec
import told
from prometheus_client.parser import text_string_to_metric_families

from tsbus.dashboard.answers import Stats
from tsbus.dashboard.history import FRESH_MS
from tsbus.dashboard.metrics import MAX_CONTAINERS, exposition, take
from tsbus.dashboard.state import Model
from tsbus.lb_records import BalancerTraffic
from tsbus.records import Sample

NOW = told.NOW
LABELS = ("kind", "node", "peer", "lane", "reason", "balancer", "name", "image", "state")
"""All of them, in the order in which the tests have their values."""
GRAFANA = Path(__file__).parents[2] / "conf/grafana-dashboard.json"


def read(model: Model, now_ms: int = NOW) -> dict[tuple[str, ...], float]:
    """All samples: name and label values -> value."""
    text = exposition(take(model, now_ms)).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    found = {
        (sample.name, *(sample.labels[label] for label in LABELS if label in sample.labels)): sample.value
        for sample in samples
    }
    assert len(found) == len(samples), "a series is there twice"
    return found


def full_model() -> Model:
    """A model with something of everything."""
    model = told.model()
    told.Node(model, "a", told.container(health="healthy"), told.container(2, "exited", restarts=3))
    model.figures(told.figures("a", {1: Sample(cpu=150.0, memory=7, net_rx=9, throttled_ms=500)}), NOW)
    link = {"name": "a", "kind": "child", "role": "child", "rtt_ms": 2.0, "queue": {"event": 7}}
    model.router("root", msgspec.convert({"links": [link], "counters": {"stale": 4}}, Stats), NOW)
    model.balancing("a", [told.balancer("web", "empty", told.server())], NOW)
    model.traffic("a", BalancerTraffic(name="web", connections=5, in_bytes=6), NOW)
    return model


def test_metrics_say_what_the_model_says():
    """Nodes, links, containers, balancers and problems, in base units."""
    found = read(full_model())
    expected = {
        ("treescale_connected",): 1,
        ("treescale_problems", "balancer-empty"): 1,
        ("treescale_node_state", "b", "up"): 1,
        ("treescale_node_state", "b", "lost"): 0,
        ("treescale_node_rtt_seconds", "a"): 0.002,
        ("treescale_node_cpu_cores", "a"): 0.5,
        ("treescale_node_containers", "a", "running"): 1,
        ("treescale_link_queue_bytes", "root", "a", "event"): 7,
        ("treescale_router_counted_total", "root", "stale"): 4,
        ("treescale_container_running", "a", "c2", "nginx"): 0,
        ("treescale_container_restarts_total", "a", "c2", "nginx"): 3,
        ("treescale_container_healthy", "a", "c1", "nginx"): 1,
        ("treescale_container_cpu_cores", "a", "c1", "nginx"): 1.5,
        ("treescale_container_received_bytes_total", "a", "c1", "nginx"): 9,
        ("treescale_container_throttled_seconds_total", "a", "c1", "nginx"): 0.5,
        ("treescale_balancer_servers", "a", "web", "active"): 1,
        ("treescale_balancer_connections_total", "a", "web"): 5,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert told.short() not in str(found)


def test_what_is_not_known_now_has_no_sample():
    """Old figures and all of a lost node are gaps, and the state says lost."""
    model = full_model()
    old = read(model, NOW + FRESH_MS + 1)
    assert ("treescale_container_cpu_cores", "a", "c1", "nginx") not in old
    assert old["treescale_container_running", "a", "c1", "nginx"] == 1
    assert old["treescale_node_figures_age_seconds", "a"] > 10
    model.status(told.status(lost=("a",)), NOW)
    lost = read(model)
    assert lost["treescale_node_state", "a", "lost"] == 1
    assert not [key for key in lost if key[0].startswith("treescale_container_")]


def test_labels_are_bounded_and_nothing_is_there_twice():
    """Names that are too many, the same or hostile make no series without end, and no page that cannot be read."""
    model = told.model()
    hostile = told.container(1, name='"} 1\nx{y="' + "z" * 1000)
    told.Node(model, "a", hostile, told.container(2, name="twin"), told.container(3, name="twin"))
    told.Node(model, "b", *(told.container(number) for number in range(10, MAX_CONTAINERS + 10)))
    found = read(model)
    names = [key[2] for key in found if key[0] == "treescale_container_running"]
    assert len(names) == MAX_CONTAINERS
    assert max(map(len, names)) == 200
    assert found["treescale_containers_left_out",] == 3


def test_the_grafana_dashboard_asks_for_what_there_is():
    """Each metric that conf/grafana-dashboard.json names is told, with the labels that it uses."""
    board = json.loads(GRAFANA.read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [one["query"]["query"] for one in board["templating"]["list"] if one["type"] == "query"]
    asked = {name for query in queries for name in re.findall(r"treescale_\w+", query)}
    text = exposition(take(full_model(), NOW)).decode()
    families = {
        name
        for family in text_string_to_metric_families(text)
        for name in (family.name, *(f"{family.name}_total",) * (family.type == "counter"))
    }
    assert asked <= families
    assert len(asked) > 15
    labels = {label for query in queries for label in re.findall(r"(\w+)(?==~?\")", query)}
    assert labels <= {"node", "state"}
    assert len({(place["x"], place["y"]) for place in (panel["gridPos"] for panel in board["panels"])}) == len(
        board["panels"]
    )
