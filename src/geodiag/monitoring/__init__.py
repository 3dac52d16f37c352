"""What is recorded along a training run, and when.

monitor             the Monitor: records steps, writes sinks
observation         one record's numbers
sharpness_tracker   S along a run: when to refresh, explore or search again
schedule            which steps are recorded
step_curvature      the curvature along a step
"""
