"""Clear: takes everything of a node's balancers out of the kernel, for good: `ts-balancer --clear`. Blocks.

A balancer that ends leaves its table in force. This is for when the node, or TreeScale, goes away.
"""

from pathlib import Path

from tsbus.balancer import statefile
from tsbus.balancer.carrier import Carried, Carrier
from tsbus.balancer.machine import open_machine
from tsbus.balancer.plan import Named
from tsbus.config import Tree


def clear(tree: Tree, run_dir: Path) -> Carried:
    """Delete the services, rules and addresses of the balancers of `tree.current_node`, and then the state file.

    Settings of the kernel stay, as others may rely on them. Returns what was done, and what could not be. Raises
    Unusable, MachineError, StateError.
    """
    node, path = tree.current_node, run_dir / statefile.NAME
    state = statefile.load(path)
    machine = open_machine(tree.balancing_for(node).backend, "leave", node)
    try:
        carrier = Carrier(machine, path, state, Named(tree.servers[node].balancers))
        carrier.begin()
        carrier.keep(())
        carried = carrier.carry((), (), anew=True)
        carrier.carry((), (), anew=False)  # what is gone from the kernel goes from the file
        return carried
    finally:
        machine.close()
