"""Measuring: what this machine can do at best, and how much of it a model gets.

system.py and machine.py look at the machine, cost.py at a plan; cases.py and runner.py measure tokens per
second, batched.py those of many sequences at once; formats.py and plot.py show them; doctor.py advises.
"""
