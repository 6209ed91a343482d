"""The gateway process: who may run, where and when. Imports no torch and never the runner's code."""
