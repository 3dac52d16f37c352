"""Hostile input: no argument leads to anything but a GeodiagError or a right answer.

objects.py    objects of every kind, and hostile ones
values.py     strategies: near-valid arguments and wild ones, and callables that answer garbage
answers.py    what is checked where a value is returned, by independent truth
case.py       one call: what may come out of it
targets/      one function for each public function: it draws arguments and calls
targets/situations.py   no arguments, but networks and runs as people have them: tests.networks
runner.py     counts cases by target, and keeps the shortest example of each finding
reader.py     the readers of files and of states under atheris, guided by coverage

An exception out of the user's own callable (a loss, a model, a norm, a sink) goes through as it is:
it is the user's to see. What a callable *returns* is checked like an argument. Kernels
(``Norm.value``, ``Oracle.hvp``, ``geodiag.blocks``) are asked by the library, with blocks that it
has checked: they are no boundary, and check nothing themselves.
"""
