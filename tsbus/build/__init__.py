"""The build: servers become nodes, over SSH. docs/build.md is the contract.

What decides is pure: access.py says how to log in, facts.py reads what probe.sh prints, wanted.py says what each
server should be, plan.py makes steps of the difference (distros.py: how packages are installed), trouble.py says what
went wrong and what to do about it.
"""
