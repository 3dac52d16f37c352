"""The iterations that estimators are built from: internal, pure functions of arrays.

program        what an adapter may compile
iterate        the loop of every ascent
ravel          blocks as one vector
rayleigh       the first and the last product of a measurement
line_search    the exact search along a segment
nystrom        a Nyström approximation of H, to search without products
multistart     the cold search from several starts
warm_start     the ascent from an earlier witness
power_step     one power step
lanczos        eigenvalues
"""
