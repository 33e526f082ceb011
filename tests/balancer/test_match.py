"""Which containers take part in a balancer, by image, label and port."""

from ipaddress import ip_address

import pytest
from model_kernel import box, tree

from tsbus.balancer.match import LeftOut, best_key, place
from tsbus.balancer.match import match as match_by
from tsbus.config import loads
from tsbus.records import Endpoint, Image

DIGEST = f"sha256:{'ab' * 32}"
IMAGE = Image(given="docker.io/library/nginx:1.27", repo="nginx", tag="1.27", digest=DIGEST, id=f"sha256:{'cd' * 32}")
HOME = (ip_address("192.168.0.2"),)


def balancer(keys):
    return tree(keys).servers["n1"].balancers["web"]


def match(one, node, container):
    return match_by(one, node, container, best_key(one, container.image))


def six():
    """A balancer at an IPv6 address."""
    text = "[servers.a]\nip='fd00::9'\nservice_port=1\n[balancers.web]\naddress='[fd00::1]:80'\n[containers]\nnginx=80"
    return loads(text).servers["a"].balancers["web"]


@pytest.mark.parametrize(
    ("key", "how"),
    [
        ("nginx", "repository"),
        ("docker.io/library/nginx", "repository"),
        ("nginx:1.27", "name and tag"),
        ("docker.io/library/nginx:1.27", "name and tag"),
        (f"nginx@{DIGEST}", "digest"),
        ("cdcdcdcdcdcd", "id"),
        ("nginx:1.28", None),
        ("team/nginx", None),
        (f"redis@{DIGEST}", None),
    ],
)
def test_a_key_fits_an_image_in_these_ways(key, how):
    """A key names an image by repository, by name and tag, by digest or by id."""
    found = best_key(balancer(f"containers = {{'{key}' = 80}}"), IMAGE)
    assert (found and found[1]) == how


def test_the_most_precise_key_wins():
    """Of several keys that fit, the one that fits fewer images decides the port, wherever it stands."""
    for keys in ("nginx = 1, 'nginx:1.27' = 2", "'nginx:1.27' = 2, nginx = 1"):
        found = match(balancer(f"containers = {{{keys}}}"), "n1", box("a", "172.17.0.2", image="nginx:1.27"))
        assert (found.port, found.rule) == (2, "image nginx:1.27 (name and tag)")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, (80, 2)),
        ({"treescale.enable": "false"}, None),
        ({"treescale.enable": "True"}, (80, 2)),
        ({"treescale.balancer": "api"}, None),
        ({"treescale.balancer": "api, web"}, (80, 2)),
        ({"treescale.balancer": "n1/web"}, (80, 2)),
        ({"treescale.balancer": "n2/web"}, None),
        ({"treescale.port": "81", "treescale.weight": "0"}, (81, 0)),
    ],
)
def test_labels_decide(labels, expected):
    """Labels keep a container out or put it into other balancers only, and set port and weight."""
    one = balancer("containers = {nginx = 80}\nserver_weights = {nginx = 2}")
    found = match(one, "n1", box("a", "172.17.0.2", labels=labels))
    assert (found and found[:2]) == expected


def test_a_label_lets_any_image_in_at_its_only_port():
    """With the label and no key for the image, the one port of the container is meant."""
    found = match(balancer(""), "n1", box("a", "172.17.0.2", image="x", labels={"treescale.balancer": "web"}))
    assert found == (80, 1, "label treescale.balancer = web")


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"treescale.port": "http"}, "label treescale.port must be 0 to 65535, not 'http'"),
        ({"treescale.weight": "65536"}, "label treescale.weight must be 0 to 65535, not '65536'"),
        ({"treescale.weight": "٣"}, "label treescale.weight must be 0 to 65535, not '٣'"),
        ({"treescale.enable": "maybe"}, "label treescale.enable must be true or false, not 'maybe'"),
    ],
)
def test_a_label_that_cannot_be_read_leaves_the_container_out(labels, text):
    """A mistake in a label is said, and guessed at by nobody."""
    with pytest.raises(LeftOut, match=text):
        match(balancer("containers = {nginx = 80}"), "n1", box("a", "172.17.0.2", labels=labels))


def test_which_port_must_be_clear():
    """A container with several ports or none needs the label for the port."""
    two = (Endpoint(port=1, ip="172.17.0.2"), Endpoint(port=2, ip="172.17.0.2"), Endpoint(port=3, protocol="udp"))
    for endpoints, found in ((two, "it has 2 ports"), ((), "it exposes none")):
        one = box("a", "172.17.0.2", image="x", labels={"treescale.balancer": "web"}, endpoints=endpoints)
        with pytest.raises(LeftOut, match=found):
            match(balancer(""), "n1", one)


def where(one, container, port=80, *, local=False, ips=HOME):
    return str(place(container, one, port, local=local, ips=ips, node="n2"))


def test_a_local_container_is_reached_at_its_network():
    """The network of the endpoint counts, else the first by name; a port need not be exposed."""
    one, nginx = box("a", "172.17.0.2"), balancer("containers = {nginx = 80}")
    assert where(nginx, one, 81, local=True) == "172.17.0.2:81"
    endpoint = Endpoint(port=80, ip="10.1.0.2", network="z")
    both = box("a", networks={"z": "10.1.0.2", "b": "10.2.0.2"}, endpoints=(endpoint,))
    assert where(nginx, both, local=True) == "10.1.0.2:80"
    assert where(nginx, both, 81, local=True) == "10.2.0.2:81"


def test_a_container_on_the_hosts_network_is_at_the_node():
    """It has the addresses of its node, here and below, published or not."""
    one = box("a", networks={"host": ""}, endpoints=())
    for local in (True, False):
        assert where(balancer("containers = {nginx = 80}"), one, local=local) == "192.168.0.2:80"


def test_a_published_address_is_used_where_it_is_one():
    """A port that is published on one address of the node is reached there."""
    one = box("a", host_port=8080, host_ip="10.7.7.7")
    assert where(balancer("containers = {nginx = 80}"), one) == "10.7.7.7:8080"


def test_ipv6_goes_to_ipv6_only():
    """A balancer at an IPv6 address reaches containers at theirs, and says which have none."""
    local = box("a", networks={"b": "fd01::2"}, endpoints=())
    assert where(six(), local, local=True) == "[fd01::2]:80"
    below = box("a", host_port=8080, host_ip="::")
    assert where(six(), below, ips=(*HOME, ip_address("fd00::2"))) == "[fd00::2]:8080"
    with pytest.raises(LeftOut, match="no IPv6 address on a network"):
        where(six(), box("a", "172.17.0.2"), local=True)
    with pytest.raises(LeftOut, match="n2 has no IPv6 address"):
        where(six(), below)
    with pytest.raises(LeftOut, match="published for IPv4 only"):
        where(six(), box("a", host_port=8080))


def test_a_range_needs_each_port_published_as_itself():
    """With port 0 behind a range, all its ports must lead to the container under the same number."""
    one = balancer("containers = {nginx = 0}\naddresses = ['10.0.0.1:81-82']")
    ends = tuple(Endpoint(port=port, host_port=port, host_ip="::") for port in (80, 81, 82))
    assert where(one, box("a", endpoints=ends), 0) == "192.168.0.2:0"
    with pytest.raises(LeftOut, match="its port 82 is not published as 82 on n2"):
        where(one, box("a", endpoints=ends[:2]), 0)
