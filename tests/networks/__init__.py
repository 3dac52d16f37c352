"""Small networks with what real ones have beside their layers, in both frameworks.

network.py         what is drawn, and the truth
torch_networks.py  as a torch module
jax_networks.py    as a JAX loss
runs.py            four steps of an optimizer, with an event in mid-run

Each part of a network is written three times. The truth is a plain function of float64 parameters
without modules, custom derivatives or tricks; a detached part of it is a constant, kept from the
first evaluation.
"""
