"""From a request to its text, whatever the engine: the loop, its jobs, sampling, constraints, detokenizing, tools.

Runner process. Knows engines by their interface only.
"""
