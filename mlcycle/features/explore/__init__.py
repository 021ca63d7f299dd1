"""Exploratory data analysis of the training rows."""
