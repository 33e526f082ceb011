"""What a node makes of a tree that comes over the bus: whether it takes it, and which of its services must know."""

from dataclasses import replace

import pytest

from tsbus.config import Balancer, ConfigError, ExecutorPolicy, Handler, Operator, Server, Tree, loads
from tsbus.copies import Copies, digest, own_copy
from tsbus.core.roles import Role
from tsbus.supervision import SupervisionError
from tsbus.supervision.incoming import check, restarts, text_of

KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
OTHER = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
TREE = Tree(servers={
    "a": Server("a", "10.0.0.1", 8888, childs=("b",)),
    "b": Server("b", "10.0.0.2", 8888, balancers={"web": Balancer("web", "10.0.0.9:80", servers={"b": 80})}),
})  # fmt: skip
SHARED = Copies(TREE, {"a": KEY, "b": OTHER}).shared


def test_the_shared_text_is_nobodys_configuration():
    """A node that got it as it is would not start with it."""
    with pytest.raises(ConfigError, match=r'no server named "\."'):
        loads(SHARED)


def test_each_node_makes_its_own_copy():
    """With its name, and the keys that the console has; a key that is taken away is not in it."""
    found = check(SHARED, "b", [KEY, OTHER])
    assert (found.text, found.tree.current_node) == (own_copy(SHARED, "b"), "b")
    exchanged = loads(Copies(found.tree, {"a": ""}, {"b": KEY}).text("a"))
    assert (exchanged.servers["a"].public_keys, exchanged.servers["b"].public_keys) == ((), (OTHER, KEY))


def test_the_body_is_the_text_alone_or_with_its_digest():
    """A person sends the text, a program its digest as well, which must be right."""
    assert text_of(SHARED) == text_of(Copies(TREE, {"a": KEY, "b": OTHER}).sealed) == SHARED
    for wrong in (
        None,
        "",
        7,
        [SHARED],
        {},
        {"tree": 1},
        {"tree": SHARED},
        {"tree": SHARED[:-1], "sha256": digest(SHARED)},
    ):
        with pytest.raises(SupervisionError, match="send"):
            text_of(wrong)


@pytest.mark.parametrize(
    ("change", "who"),
    [
        ({}, []),
        ({"operators": {"al": Operator("al", KEY, Role.ADMIN)}}, []),
        ({"executor": ExecutorPolicy(max_jobs=7)}, ["executor"]),
        ({"handlers": {"h": Handler("h", "a.b", ("true",))}}, ["executor"]),
        ({"servers": {**TREE.servers, "b": replace(TREE.servers["b"], tags=("new",))}}, ["balancer"]),
        ({"servers": {**TREE.servers, "b": replace(TREE.servers["b"], balancers={})}}, ["balancer"]),
        ({"servers": {**TREE.servers, "a": replace(TREE.servers["a"], public_key=KEY)}}, []),
    ],
)
def test_who_has_read_what_changed_starts_anew(change, who):
    """A service is told when something that it reads is another, and left alone otherwise: what it does would end."""
    assert restarts(TREE, replace(TREE, **change), "b") == who


def test_a_shape_matters_to_handlers_that_name_nodes():
    """An executor with handlers works out from the tree whose events they are for."""
    tree = replace(TREE, handlers={"h": Handler("h", "a.b", ("true",), origin="@new")})
    servers = {**TREE.servers, "a": replace(TREE.servers["a"], tags=("new",))}
    assert restarts(tree, replace(tree, servers=servers), "a") == ["executor"]
