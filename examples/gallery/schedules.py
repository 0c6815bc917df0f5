"""
# Annealing schedules

Four ways for a temperature to fall from 1 to 0.1: `step()` after each step of training, and hand the schedule to a
head as its `temperature`.
"""

import matplotlib.pyplot as plt

import igr

schedules = (
    igr.nn.ConstantTemperature(0.5),
    igr.nn.LinearTemperature(1.0, 0.1, num_steps=1000),
    igr.nn.ExponentialTemperature(1.0, 0.1, num_steps=1000),
    igr.nn.CosineTemperature(1.0, 0.1, num_steps=1000),
)

figure, axes = plt.subplots(figsize=(5.2, 3.6), layout="constrained")
for schedule in schedules:
    temperatures = []
    for _ in range(1200):
        temperatures.append(schedule.temperature)
        schedule.step()
    axes.plot(temperatures, label=type(schedule).__name__)
axes.set_xlabel("step")
axes.set_ylabel("temperature")
axes.set_ylim(0, None)
axes.legend()
