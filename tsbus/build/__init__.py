"""The build: servers become nodes, over SSH. docs/build.md is the contract.

What decides is pure: access.py says how to log in, facts.py reads what probe.sh prints, wanted.py says what each
server should be, plan.py makes steps of the difference (distros.py: how packages are installed), course.py says who
comes next in a run, trouble.py says what went wrong and what to do about it.

What acts: ssh/ logs in and runs scripts, runner.py does so on many servers at once, bundle.py packs what a node is
made of, installer.py makes a node of it there. jobs.py is what is done on one server in one exchange; run.py and
campaign.py put all of it together, under lock.py, with store.py as their memory.
"""


class NotAConsole(ImportError):
    """What logs in to servers is not installed on this machine; the text says what to do."""
