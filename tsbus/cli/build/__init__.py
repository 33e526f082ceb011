"""The command lines of the build: `treescale build`, also as ts-build. tsbus.build does the work.

progress.py, picture.py, reportlines.py, planlines.py, standing.py and summary.py decide what is shown and are pure.
errand.py is what a command is asked for, follow.py shows a run while it goes, running.py is the way between the two.
Commands import a run, and with it all of SSH, when they are carried out: --help and completion work without paramiko.
"""
