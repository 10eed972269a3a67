"""The MIB benchmark: its data sets, names, score files, curves and submissions."""
