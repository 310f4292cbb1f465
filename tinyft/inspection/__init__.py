"""Inspection: watches training from outside. Nothing below this folder imports it.

Next: tinyft/inspection/html.py
"""
