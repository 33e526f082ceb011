"""The command lines of the build: `treescale build`, also as ts-build. tsbus.build does the work.

progress.py, picture.py, reportlines.py, planlines.py and summary.py decide what is shown and are pure; follow.py shows
a run while it goes, errand.py makes one of the files and the options.
"""
