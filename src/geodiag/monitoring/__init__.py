"""What is recorded along a training run, and when.

monitor             the Monitor: records steps, writes sinks
observation         the measurement of one record
sharpness_tracker   S along a run: when to refresh, explore or search again
schedule            at which steps to measure
step_curvature      the slope and the curvature along a step
realized            the same without S: ζ and D
critical_step       the critical step, each search from the last ones
rounding            what a record says of its rounding errors
warn_once           warnings, one per cause
unmeasured          tensors that are not measured, and that a step may move
"""
