"""The Lanczos iteration.

recurrence   its steps
host         driven from the host, reorthogonalised in full
fused        driven by the adapter in one compiled program
"""
